#!/usr/bin/env python
"""Write docs/configuration.md: every key with its type, default, meaning, and who honours it; and the keys of docs/imagenet.md.

Meanings are in `resnest_det.configuration.meanings`, all else is read from the code.
"""

from resnest_det.commands import run_tool  # isort: skip (must come before torch)

import os
import tempfile
from pathlib import Path

from fvcore.common.config import CfgNode

from resnest_det.configuration.checking import AT_LEAST, AT_MOST, CHOICES, NOT_READ
from resnest_det.configuration.classifier import KEYS
from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.meanings import DETECTRON2_IGNORES, MEANINGS, OWN_KEYS
from resnest_det.configuration.nodes import leaves, with_values
from resnest_det.configuration.reading import load_config
from resnest_det.data.catalog import get_dataset
from resnest_det.data.shapes import write_shapes
from resnest_det.files import atomic_write
from resnest_det.integrations.mmdet_config import mmdet_config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
CLASSIFIER_PAGE = PAGE.with_name("imagenet.md")
# Recipes that together have every part that can be translated.
RECIPES = (
    "cascade_mask_rcnn_ResNeSt50_FPN",
    "mask_rcnn_ResNet50_FPN",
    "quick_schedules/mask_rcnn_ResNeSt14_FPN_shapes",
    "panoptic_ResNeSt14_FPN_shapes",
)

# Of `resnest/torch/config.py` in the authors' repository.
AUTHORS_KEYS = {
    "SEED",
    *(f"DATA.{name}" for name in ("DATASET", "ROOT", "BASE_SIZE", "CROP_SIZE", "LABEL_SMOOTHING", "MIXUP", "RAND_AUG")),
    *(f"MODEL.{name}" for name in ("NAME", "FINAL_DROP")),
    *(f"TRAINING.{n}" for n in ("BATCH_SIZE", "TEST_BATCH_SIZE", "LAST_GAMMA", "EPOCHS", "START_EPOCHS", "WORKERS")),
    *(f"OPTIMIZER.{n}" for n in ("LR", "LR_SCHEDULER", "MOMENTUM", "WEIGHT_DECAY", "DISABLE_BN_WD", "WARMUP_EPOCHS")),
}

INTRODUCTION = """# Configuration

Written by `tools/make_configuration_docs.py`; a test compares. Keys are set in a YAML file (`MODEL: {MASK_ON: True}`), which may
begin with `_BASE_: other.yaml`, and at the end of a command (`MODEL.MASK_ON True`). Names and defaults are Detectron2's; *own*
keys are those of ResNeSt and of this project. A key that is unknown, or a value that nothing honours, is an error that says what
would work.

Who honours a key: **b** the built-in detector, **d** Detectron2 (`--engine detectron2`), **m** MMDetection, after `to-mmdet` has
translated it. A key without **b** is one of Detectron2's that the built-in detector has no part for: values other than the
default are refused. A key without **d** has no effect there, or is refused. A key without **m** is not translated: it belongs to
training or evaluation here, or [mmdetection.md](mmdetection.md) says what MMDetection does instead.
"""


def page() -> str:
    """The text of docs/configuration.md."""
    translated = keys_that_mmdet_reads()
    sections: dict[str, list[str]] = {}
    for key, default in leaves(default_config()):
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(
            f"| `{name}` | {_type(default)} | `{_default(default)}` | {_meaning(key)} | {_hosts(key, translated)} |"
        )
    parts = [INTRODUCTION]
    for section, rows in sections.items():
        title = f"## {section}" if section else "## At the top"
        parts.append("\n".join([title, "", "| key | type | default | meaning | hosts |", "|---|---|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def classifier_page() -> str:
    """The text of docs/imagenet.md, with its table of keys as the code has them."""
    before, rest = CLASSIFIER_PAGE.read_text().split("<!-- keys", 1)
    note, rest = rest.split("\n", 1)
    rows = [
        f"| `{key}` | `{_default(default)}` | {'' if key in AUTHORS_KEYS else '*own:* '}{meaning} |"
        for key, (default, meaning) in KEYS.items()
    ]
    table = "\n".join(["", "| key | default | meaning |", "|---|---|---|", *rows, "", ""])
    return f"{before}<!-- keys{note}\n{table}<!-- end of keys -->{rest.split('<!-- end of keys -->', 1)[1]}"


def _type(default: object) -> str:
    if isinstance(default, (list, tuple)):
        inner = {type(each).__name__ for each in default}
        return f"list of {inner.pop()}" if len(inner) == 1 else "list"
    return "float or None" if default is None else type(default).__name__


def _default(default: object) -> str:
    text = repr(list(default)) if isinstance(default, tuple) else repr(default)
    return text.replace("|", r"\|")


def _meaning(key: str) -> str:
    text = MEANINGS[key]
    if key in CHOICES:
        text += f"; one of {', '.join(f'`{choice}`' if choice != '' else 'empty' for choice in CHOICES[key])}"
    elif key in AT_LEAST or key in AT_MOST:
        ends = [f"{AT_LEAST[key]} or more" if key in AT_LEAST else "", f"up to {AT_MOST[key]:,}" if key in AT_MOST else ""]
        text += f" ({', '.join(filter(None, ends))})"
    return f"*own:* {text}" if key.startswith(OWN_KEYS) else text


def _hosts(key: str, translated: set[str]) -> str:
    built_in = "" if key.startswith(NOT_READ) else "b"
    detectron2 = "" if key.startswith(DETECTRON2_IGNORES) else "d"
    return " ".join(filter(None, (built_in, detectron2, "m" if key in translated else "")))


class _Recorder(CfgNode):
    """A configuration that notes which keys are read."""

    def __getitem__(self, name: str) -> object:
        value = super().__getitem__(name)
        # Not as attributes: they would be keys.
        path, read = self.__dict__.get("_path", ""), self.__dict__.get("_read")
        if isinstance(value, _Recorder):
            value.__dict__.update(_path=f"{path}{name}.", _read=read)
        elif read is not None:
            read.add(path + name)
        return value


def keys_that_mmdet_reads() -> set[str]:
    """The keys that translating to MMDetection reads, to translate them or to refuse values that it has no equal for."""
    read: set[str] = set()
    before = os.environ.get("DETECTRON2_DATASETS")
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(Path(folder, "shapes"), {"train": 1, "val": 1})
        os.environ["DETECTRON2_DATASETS"] = folder
        try:
            for recipe in RECIPES:
                cfg = load_config(recipe)
                name = "shapes_val_panoptic" if "panoptic" in recipe else "shapes_val"
                schedules = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
                for schedule in schedules:
                    values = {
                        "SOLVER.LR_SCHEDULER_NAME": schedule,
                        "SOLVER.CLIP_GRADIENTS.ENABLED": schedule == schedules[0],
                        "INPUT.CROP.ENABLED": schedule == schedules[0],
                        "SEED": 1,
                    }
                    recorder = _Recorder(with_values(cfg, values))
                    recorder.__dict__["_read"] = read
                    metadata = get_dataset(name).metadata
                    mmdet_config(recorder, test=metadata, train=[metadata], num_processes=1, checkpoint="model.pth")
        finally:
            os.environ.pop("DETECTRON2_DATASETS")
            if before is not None:
                os.environ["DETECTRON2_DATASETS"] = before
    return read


def main(arguments: list[str]) -> None:
    for path, text in ((PAGE, page()), (CLASSIFIER_PAGE, classifier_page())):
        with atomic_write(path) as file:
            file.write(text)


if __name__ == "__main__":
    run_tool(main)
