"""The flags `--register` and `--register-panoptic` of several commands."""

import argparse
import os

from resnest_det.data.catalog import CocoFiles, PanopticFiles
from resnest_det.errors import UserError

_INSTANCES = "NAME=ANNOTATIONS.json,IMAGE_DIR"
_PANOPTIC = "NAME=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR[,INSTANCES.json]"


def add_register_flags(parser: argparse.ArgumentParser, *, instances: bool = True) -> None:
    """Add both flags; without `instances`, only the one for panoptic datasets."""
    if instances:
        parser.add_argument("--register", action="append", default=[], metavar=_INSTANCES, help="a dataset in COCO's format")
    parser.add_argument(
        "--register-panoptic", action="append", default=[], metavar=_PANOPTIC, help="a dataset in COCO's panoptic format"
    )


def registered_datasets(args: argparse.Namespace) -> dict[str, CocoFiles | PanopticFiles]:
    """The datasets of the flags, by name.

    Raises:
        UserError: a flag's text has the wrong form, or two flags use one name.
    """
    datasets: dict[str, CocoFiles | PanopticFiles] = {}
    for flag, form, texts in (
        ("--register", _INSTANCES, getattr(args, "register", ())),
        ("--register-panoptic", _PANOPTIC, args.register_panoptic),
    ):
        for text in texts:
            name, _, paths = text.partition("=")
            name, parts = name.strip(), [os.path.expanduser(path.strip()) for path in paths.split(",")]
            if not name or not all(parts) or len(parts) not in ((2,) if flag == "--register" else (3, 4)):
                raise UserError(f"{flag} {text}: expected {form}")
            files = CocoFiles(*parts) if flag == "--register" else PanopticFiles(*parts)
            if datasets.setdefault(name, files) != files:
                raise UserError(f"{flag} {text}: another flag already registers {name}")
    return datasets
