"""Loading weights: into a classifier or a detector, from a file of any known layout, all of it or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from resnest_det.backbone.catalog import IMAGENET_MEAN, IMAGENET_STD, VARIANTS
from resnest_det.backbone.downloads import resolve_weights
from resnest_det.errors import UserError
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.names import find_backbone, state_dict_of, to_own_names

__all__ = ["LoadReport", "check_input_matches", "errors_naming", "load_state", "load_weights", "looks_like", "resolve_weights"]

# What detectors of earlier versions saved beside their parameters; the configuration decides these.
_NOT_PARAMETERS = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors", "num_batches_tracked")


@dataclass
class LoadReport:
    """What `load_weights` did.

    Attributes:
        path: the file.
        layout: "detectron2", "timm", "mmdet" or "caffe2".
        loaded: names of the model's parameters and buffers that were set.
        left: parameter of the file that was not used, to the reason.
        fresh: parameter of the model that the file has nothing for, to the reason.
        mismatched: one text for each parameter that should have fitted; empty unless mismatches were allowed.
    """

    path: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    mismatched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} parameters and buffers from {self.path} ({self.layout} layout)"]
        for title, names in (("left in the file", self.left), ("freshly initialised", self.fresh)):
            for reason in dict.fromkeys(names.values()):
                parts.append(f"{title}: {_brief([name for name in names if names[name] == reason])}: {reason}")
        if self.mismatched:
            parts.append(f"did not fit: {_brief(self.mismatched)}")
        return "; ".join(parts)


def _brief(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def load_weights(model: nn.Module, path: str | os.PathLike, *, allow_mismatch: bool = False) -> LoadReport:
    """Load a checkpoint into a classifier, a feature extractor, a backbone or a detector.

    The file's layout (the authors' and timm's, Detectron2's, MMDetection's) is recognised by its parameter names. A file
    without detector heads sets a detector's backbone; a file of a detector sets all of it. Either everything that has to
    fit is copied, or nothing is.

    Args:
        model: on any device.
        path: a local file, see `read_checkpoint`; `resolve_weights` makes one of an address or a published name.
        allow_mismatch: load what fits, and report the rest in `LoadReport.mismatched`.

    Returns:
        What was loaded, left and freshly initialised, and why.

    Raises:
        UserError: the file cannot be used, or its parameters do not fit the model's (both shapes are listed).
    """
    checkpoint = read_checkpoint(path)
    with errors_naming(path):
        return load_state(model, state_dict_of(checkpoint), str(path), allow_mismatch=allow_mismatch)


@contextmanager
def errors_naming(path: str | os.PathLike) -> Iterator[None]:
    """Put the file's name before errors about what is in it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"weights {path}: {error}") from None


def load_state(model: nn.Module, state: dict[str, Tensor], path: str, *, allow_mismatch: bool = False) -> LoadReport:
    """`load_weights` for tensors that were read already; `path` is only for the report."""
    backbone, origin, layout, file_prefix = to_own_names(state)
    targets = model.state_dict()
    found = find_backbone(targets)
    if found is None:
        raise UserError(f"a {type(model).__name__} has no ResNeSt backbone to load them into")
    report = LoadReport(path, layout)

    prefix = found[1]
    wanted = {name if name.startswith("linear.") else prefix + name: (value, origin[name]) for name, value in backbone.items()}
    same_detector = layout == "detectron2" and prefix == file_prefix != ""
    has_heads = False
    for name in state.keys() - set(origin.values()):
        if any(part in name for part in _NOT_PARAMETERS):
            report.left[name] = "set by the configuration or counted anew"
        elif same_detector:
            wanted[name] = (state[name], name)
            has_heads = True
        else:
            report.left[name] = "not a part of the backbone"

    copies = _match(targets, wanted, prefix, report, has_heads)
    if report.mismatched and not allow_mismatch:
        raise UserError(_mismatch_message(report.mismatched, backbone, targets, prefix))
    with torch.no_grad():
        for name, value in copies.items():
            targets[name].copy_(value)
    report.loaded = list(copies)
    return report


def _match(targets: dict[str, Tensor], wanted: dict, prefix: str, report: LoadReport, has_heads: bool) -> dict[str, Tensor]:
    """What to copy where; everything else goes into the report."""
    copies = {}
    built = {name.removeprefix(prefix).split(".")[0] for name in targets if name.startswith(prefix)}
    for name, (value, name_in_file) in wanted.items():
        part = name.removeprefix(prefix).split(".")[0]
        if name in targets:
            if value.shape == targets[name].shape:
                copies[name] = value
            else:
                report.mismatched.append(f"{name} {tuple(value.shape)} in the file, {tuple(targets[name].shape)} in the model")
        elif name.startswith("linear."):
            report.left[name_in_file] = "the model has no classification head"
        elif name.startswith(prefix) and part in ("res3", "res4", "res5") and part not in built:
            report.left[name_in_file] = "the model ends before this stage"
        elif name.endswith("num_batches_tracked"):
            report.left[name_in_file] = "the model's norms do not count batches"
        else:
            report.mismatched.append(f"{name} is not in the model")
    for name in targets:
        if name in wanted or any(part in name for part in _NOT_PARAMETERS):
            continue
        if name.startswith("linear."):
            report.fresh[name] = "the file has no classification head"
        elif "conv2_offset." in name:
            report.fresh[name] = "the file has no deformable convolutions; offsets start at zero"
        elif _is_backbone(name, prefix) or has_heads:
            report.mismatched.append(f"{name} is not in the file")
        else:
            report.fresh[name] = "the file has only a backbone"
    return copies


def _is_backbone(name: str, prefix: str) -> bool:
    return name.startswith((prefix + "stem.", prefix + "res"))


def _mismatch_message(mismatched: list[str], backbone: dict[str, Tensor], targets: dict[str, Tensor], prefix: str) -> str:
    of_model = {name.removeprefix(prefix): value for name, value in targets.items() if _is_backbone(name, prefix)}
    in_file, in_model = looks_like(backbone), looks_like(of_model)
    message = f"they do not fit the model: {_brief(mismatched)}"
    if in_file and in_file != in_model:
        message += f"; the file looks like {' or '.join(in_file)}, the model like {' or '.join(in_model) or 'none of the family'}"
    return message


def looks_like(backbone: dict[str, Tensor]) -> list[str]:
    """Names of the variants that have parameters of these shapes, under this package's names without a prefix.

    There may be two: resnest50 and resnest50_fast_2s1x64d differ only in where they pool.
    """
    try:
        first, split = backbone["res2.0.conv1.weight"], backbone["res2.0.conv2.conv.weight"]
        stem_width = backbone["stem.conv1_1.weight"].shape[0]
    except KeyError:
        return []
    width = first.shape[0]
    radix = split.shape[0] // width
    groups = width // max(split.shape[1] * radix, 1)
    blocks = [len({name.split(".")[1] for name in backbone if name.startswith(f"res{stage}.")}) for stage in (2, 3, 4, 5)]
    return [variant.name for variant in VARIANTS.values()
            if (variant.radix, variant.groups, variant.stem_width) == (radix, groups, stem_width)
            and variant.bottleneck_width * variant.groups == width
            # A model can end before the last stages; a file of it is still of this variant.
            and all(count in (0, expected) for count, expected in zip(blocks, variant.blocks))]


def check_input_matches(pixel_mean, pixel_std, input_format: str, weights: str = "") -> list[str]:
    """Warnings about input that ImageNet weights were not trained on; such training runs, but ends worse.

    Args:
        pixel_mean, pixel_std: MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, for pixels in 0 ... 255, in the order of `input_format`.
        input_format: INPUT.FORMAT, "RGB" or "BGR".
        weights: MODEL.WEIGHTS as it was given. Detectron2's model zoo is trained on BGR and is not checked.

    Returns:
        One text for each key that does not fit, with the value these weights expect. Empty when all fit.
    """
    if not weights or weights.startswith("detectron2://"):
        return []
    mean = [255 * value for value in IMAGENET_MEAN]
    std = [255 * value for value in IMAGENET_STD]
    warnings = []
    # The authors' detectors differ from their classifiers in the second decimal: 1 is nothing, a swapped channel is 20.
    for key, given, expected in (("MODEL.PIXEL_MEAN", pixel_mean, mean), ("MODEL.PIXEL_STD", pixel_std, std)):
        if len(given) != len(expected) or any(abs(a - b) > 1 for a, b in zip(given, expected)):
            values = ", ".join(f"{value:.3f}" for value in expected)
            warnings.append(f"{key} is {list(given)}, but ResNeSt weights expect [{values}] (RGB)")
    if input_format != "RGB":
        warnings.append(f"INPUT.FORMAT is {input_format}, but ResNeSt weights expect RGB")
    return warnings
