"""The flags `--register`, `--register-panoptic` and `--register-semantic`, which several commands have."""

import argparse
import os

from resnest_det.data.catalog import CocoFiles, DatasetFiles, PanopticFiles
from resnest_det.data.formats.labels import KINDS, LabelFiles
from resnest_det.data.formats.splits import find_labels
from resnest_det.data.semantic import SemanticFiles
from resnest_det.errors import UserError, naming, nearest

_INSTANCES = "NAME=ANNOTATIONS.json,IMAGE_DIR or NAME=LABELS[,images=DIR][,from=FORMAT][,split=SPLIT]"
_PANOPTIC = "NAME=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR[,INSTANCES.json]"
_SEMANTIC = "NAME=LABEL_DIR,IMAGE_DIR,CLASSES[,ignore=VALUE]..."
_INSTANCES_HELP = (
    "a dataset in COCO's format, taken as it is; or a file or folder with labels of any format (docs/labels.md), which "
    "is recognised and whose common faults are mended. Settings of those: images=DIR, where the images are; from=FORMAT, one of "
    f"{', '.join(KINDS)}; split=train, val or test, where it has several"
)
_SEMANTIC_HELP = (
    "a dataset with a label PNG for each image, one byte a pixel. CLASSES: a .json or .txt file with names, or their number. "
    "More settings: ignore=VALUE, of pixels without a label (255); reduce_zero_label=yes where 0 means no label and class i is "
    "value i + 1; list=FILE, a text with the images to take; "
    "label_suffix=TEXT and image_suffix=TEXT, which end names that are the same but for them; instances=FILE.json, COCO "
    "annotations of objects on the same images"
)
# Settings of --register-semantic by the argument of `SemanticFiles` that each is.
_SETTINGS = {
    "ignore_value": "ignore",
    "list_file": "list",
    "label_suffix": "label_suffix",
    "image_suffix": "image_suffix",
    "instances_json": "instances",
    "reduce_zero_label": "reduce_zero_label",
}
_YES = {"yes": True, "true": True, "no": False, "false": False}


def add_register_flags(parser: argparse.ArgumentParser, *, all_kinds: bool = True) -> None:
    """Add the flags, or without `all_kinds` that of panoptic datasets alone."""
    if all_kinds:
        parser.add_argument("--register", action="append", default=[], metavar=_INSTANCES, help=_INSTANCES_HELP)
        parser.add_argument("--register-semantic", action="append", default=[], metavar=_SEMANTIC, help=_SEMANTIC_HELP)
    parser.add_argument(
        "--register-panoptic", action="append", default=[], metavar=_PANOPTIC, help="a dataset in COCO's panoptic format"
    )


def registered_datasets(args: argparse.Namespace) -> dict[str, DatasetFiles]:
    """The datasets of the flags, by name.

    Raises:
        UserError: a flag's text has the wrong form, or two flags use one name.
    """
    datasets: dict[str, DatasetFiles] = {}
    # A function gives None where the parts have another form.
    for flag, form, texts, files_of in (
        ("--register", _INSTANCES, getattr(args, "register", ()), _instance_files),
        ("--register-panoptic", _PANOPTIC, args.register_panoptic, _panoptic_files),
        ("--register-semantic", _SEMANTIC, getattr(args, "register_semantic", ()), _semantic_files),
    ):
        for text in texts:
            name, _, rest = text.partition("=")
            name, parts = name.strip(), [part.strip() for part in rest.split(",")]
            try:
                files = files_of(parts) if name and all(parts) else None
            except UserError as error:
                raise UserError(f"{flag} {text}: {error}") from None
            if files is None:
                raise UserError(f"{flag} {text}: expected {form}")
            if datasets.setdefault(name, files) != files:
                raise UserError(f"{flag} {text}: another flag already registers {name}")
    return datasets


def _instance_files(parts: list[str]) -> CocoFiles | LabelFiles | None:
    path = os.path.expanduser(parts[0])
    settings = dict(part.split("=", 1) for part in parts[1:] if part.startswith(("images=", "from=", "split=")))
    if len(parts) == 2 and not settings:
        return CocoFiles(path, os.path.expanduser(parts[1]))
    if len(settings) < len(parts) - 1:
        return None
    images = os.path.expanduser(settings["images"]) if "images" in settings else None
    return find_labels(path, settings.get("from"), images, settings.get("split"))


def _panoptic_files(parts: list[str]) -> PanopticFiles | None:
    return PanopticFiles(*map(os.path.expanduser, parts)) if len(parts) in (3, 4) else None


def _semantic_files(parts: list[str]) -> SemanticFiles | None:
    if len(parts) < 3:
        return None
    label_root, image_root, classes = map(os.path.expanduser, parts[:3])
    arguments = {setting: argument for argument, setting in _SETTINGS.items()}
    values: dict[str, str | int] = {}
    for part in parts[3:]:
        setting, _, value = part.partition("=")
        if setting not in arguments:
            near = nearest(setting, arguments, count=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{part!r} is not one of {', '.join(f'{each}=' for each in arguments)}{hint}")
        values[arguments[setting]] = os.path.expanduser(value) if setting in ("list", "instances") else value
    if str(values.get("ignore_value", "")).isdecimal():
        values["ignore_value"] = int(values["ignore_value"])
    if "reduce_zero_label" in values:
        if values["reduce_zero_label"].lower() not in _YES:
            raise UserError(f"reduce_zero_label is {values['reduce_zero_label']!r}; supported: yes, no")
        values["reduce_zero_label"] = _YES[values["reduce_zero_label"].lower()]
    with naming(_SETTINGS):
        return SemanticFiles(label_root, image_root, int(classes) if classes.isdecimal() else classes, **values)
