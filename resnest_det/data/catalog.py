"""Names of datasets and where they live; nothing is read before a dataset is asked for."""

import difflib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from resnest_det.data import shapes
from resnest_det.data.coco import Dataset, load_coco_instances
from resnest_det.errors import UserError

# name: (image folder, annotation file), below the datasets root, and the archives to unpack there
_COCO = {
    "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json", "train2014"),
    "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json", "val2014"),
    "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json", "train2017"),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json", "val2017"),
    "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json", "val2017"),
}

_registered: dict[str, tuple[str, str]] = {}


def datasets_root() -> Path:
    """The folder that holds the known datasets: $DETECTRON2_DATASETS, or ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def dataset_names() -> list[str]:
    """Every name that get_dataset knows, sorted."""
    return sorted([*_builtin(), *_registered])


def register_coco(name: str, json_file: str, image_root: str) -> None:
    """Make a dataset in COCO's instance format known under `name`; its files are not touched yet.

    Raises:
        UserError: another dataset has this name.
    """
    paths = (str(json_file), str(image_root))
    if name in _builtin() or _registered.get(name, paths) != paths:
        raise UserError(f"a dataset named {name} exists already; register yours under another name")
    _registered[name] = paths


def register_from_argument(argument: str) -> None:
    """Register from the text of a command-line option, "NAME=ANNOTATIONS.json,IMAGE_DIR".

    Raises:
        UserError: the text has another form, or the name is taken.
    """
    name, _, paths = argument.partition("=")
    json_file, _, image_root = paths.partition(",")
    if not (name.strip() and json_file.strip() and image_root.strip()):
        raise UserError(f"--register {argument}: expected NAME=ANNOTATIONS.json,IMAGE_DIR")
    register_coco(name.strip(), os.path.expanduser(json_file.strip()), os.path.expanduser(image_root.strip()))


def get_dataset(name: str) -> Dataset:
    """Read the dataset of that name; shapes_train and shapes_val are generated on first use.

    Raises:
        UserError: the name is unknown, files are absent (the message says which, and how to get them), or see
            `resnest_det.data.coco.load_coco_instances`.
    """
    if name in _registered:
        return _load(name, *_registered[name], hint="")
    builtin = _builtin()
    if name in builtin:
        return builtin[name]()
    near = difflib.get_close_matches(name, dataset_names(), n=3, cutoff=0.4) or dataset_names()
    raise UserError(
        f"unknown dataset {name!r}; nearest known names: {', '.join(near)}; "
        f"a COCO-format dataset of your own is made known by --register {name}=ANNOTATIONS.json,IMAGE_DIR"
    )


def _builtin() -> dict[str, Callable[[], Dataset]]:
    loaders: dict[str, Callable[[], Dataset]] = {name: partial(_load_known_coco, name) for name in _COCO}
    return loaders | {f"shapes_{split}": partial(_load_shapes, split) for split in shapes.SPLITS}


def _load_known_coco(name: str) -> Dataset:
    image_root, json_file, archive = _COCO[name]
    year = archive[-4:]
    hint = (
        f"; unpack http://images.cocodataset.org/zips/{archive}.zip and "
        f"http://images.cocodataset.org/annotations/annotations_trainval{year}.zip into {datasets_root() / 'coco'}, or set "
        f"DETECTRON2_DATASETS to the folder that holds coco/, or use the generated shapes_train and shapes_val"
    )
    return _load(name, str(datasets_root() / json_file), str(datasets_root() / image_root), hint)


def _load_shapes(split: str) -> Dataset:
    folder = shapes.ensure_shapes(datasets_root())
    return _load(f"shapes_{split}", str(folder / shapes.instances_json(split)), str(folder / split), hint="")


def _load(name: str, json_file: str, image_root: str, hint: str) -> Dataset:
    if not os.path.isfile(json_file):
        raise UserError(f"dataset {name}: expected its annotations at {os.path.abspath(json_file)}, which does not exist{hint}")
    if not os.path.isdir(image_root):
        raise UserError(f"dataset {name}: expected its images in {os.path.abspath(image_root)}, which is not a folder{hint}")
    return load_coco_instances(name, json_file, image_root)
