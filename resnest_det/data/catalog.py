"""Names of datasets and where they live; nothing is read before a dataset is asked for."""

import difflib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from resnest_det.data import shapes
from resnest_det.data.coco import Dataset, load_coco_instances
from resnest_det.data.panoptic import load_coco_panoptic
from resnest_det.errors import UserError

# name: (image folder, annotation file), below the datasets root, and the archives to unpack there
_COCO = {
    "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json", "train2014"),
    "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json", "val2014"),
    "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json", "train2017"),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json", "val2017"),
    "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json", "val2017"),
}

# name: (folder of panoptic PNG files, panoptic file, dataset of the same images with instances)
_COCO_PANOPTIC = {
    "coco_2017_train_panoptic": ("coco/panoptic_train2017", "coco/annotations/panoptic_train2017.json", "coco_2017_train"),
    "coco_2017_val_panoptic": ("coco/panoptic_val2017", "coco/annotations/panoptic_val2017.json", "coco_2017_val"),
    "coco_2017_val_100_panoptic": (
        "coco/panoptic_val2017_100", "coco/annotations/panoptic_val2017_100.json", "coco_2017_val_100"),
}

# Arguments of `_load`, or of `_load_panoptic`, that follow the name.
_registered: dict[str, tuple[str, str]] = {}
_registered_panoptic: dict[str, tuple[str, str, str, str | None]] = {}


def datasets_root() -> Path:
    """The folder that holds the known datasets: $DETECTRON2_DATASETS, or ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def dataset_names() -> list[str]:
    """Every name that get_dataset knows, sorted."""
    return sorted([*_builtin(), *_registered, *_registered_panoptic])


def register_coco(name: str, json_file: str, image_root: str) -> None:
    """Make a dataset in COCO's instance format known under `name`; its files are not touched yet.

    Raises:
        UserError: another dataset has this name, or it cannot be part of a file's name.
    """
    paths = (str(json_file), str(image_root))
    _check_free(name, _registered, paths)
    _registered[name] = paths


def register_panoptic(
    name: str, panoptic_json: str, panoptic_root: str, image_root: str, instances_json: str | None = None
) -> None:
    """Make a dataset in COCO's panoptic format known under `name`; its files are not touched yet.

    Args:
        panoptic_root: folder of the PNG files.
        instances_json: instance annotations of the same images; without it the thing segments are the instances.

    Raises:
        UserError: another dataset has this name, or it cannot be part of a file's name.
    """
    paths = (str(panoptic_json), str(panoptic_root), str(image_root), None if instances_json is None else str(instances_json))
    _check_free(name, _registered_panoptic, paths)
    _registered_panoptic[name] = paths


def _check_free(name: str, registered: dict[str, tuple], paths: tuple) -> None:
    # Files in OUTPUT_DIR are named after it.
    if not name.isprintable() or ".." in name or any(character in name for character in "/\\"):
        raise UserError(
            f"dataset name {ascii(name)[:80]}: it becomes part of file names; it must have no '/', '\\' or '..' and no control "
            "character in it")
    others = {*_builtin(), *_registered, *_registered_panoptic} - set(registered)
    if name in others or registered.get(name, paths) != paths:
        raise UserError(f"a dataset named {name} exists already; register yours under another name")


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


def register_panoptic_from_argument(argument: str) -> None:
    """Register from the text of a command-line option, "NAME=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR[,INSTANCES.json]".

    Raises:
        UserError: the text has another form, or the name is taken.
    """
    name, _, paths = argument.partition("=")
    parts = [os.path.expanduser(path.strip()) for path in paths.split(",")]
    if not name.strip() or not all(parts) or len(parts) not in (3, 4):
        raise UserError(f"--register-panoptic {argument}: expected NAME=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR[,INSTANCES.json]")
    register_panoptic(name.strip(), *parts)


def get_dataset(name: str) -> Dataset:
    """Read the dataset of that name; shapes_train and shapes_val are generated on first use.

    Raises:
        UserError: the name is unknown, files are absent (the message says which, and how to get them), or see
            `resnest_det.data.coco.load_coco_instances` and `resnest_det.data.panoptic.load_coco_panoptic`.
    """
    if name in _registered:
        return _load(name, *_registered[name], hint="")
    if name in _registered_panoptic:
        return _load_panoptic(name, *_registered_panoptic[name], hint="")
    builtin = _builtin()
    if name in builtin:
        return builtin[name]()
    near = difflib.get_close_matches(name, dataset_names(), n=3, cutoff=0.4) or dataset_names()
    raise UserError(
        f"unknown dataset {name!r}; nearest known names: {', '.join(near)}; "
        f"a COCO-format dataset of your own is made known by --register {name}=ANNOTATIONS.json,IMAGE_DIR, a panoptic one "
        f"by --register-panoptic {name}=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR"
    )


def _builtin() -> dict[str, Callable[[], Dataset]]:
    loaders: dict[str, Callable[[], Dataset]] = {name: partial(_load_known_coco, name) for name in _COCO}
    for prefix in _COCO_PANOPTIC:
        loaders[f"{prefix}_separated"] = partial(_load_known_coco_panoptic, prefix, "separated")
        loaders[f"{prefix}_stuffonly"] = partial(_load_known_coco_panoptic, prefix, "stuffonly")
    for split in shapes.SPLITS:
        loaders[f"shapes_{split}"] = partial(_load_shapes, split)
        loaders[f"shapes_{split}_panoptic"] = partial(_load_shapes_panoptic, split)
    return loaders


def _load_known_coco(name: str) -> Dataset:
    image_root, json_file, archive = _COCO[name]
    year = archive[-4:]
    hint = (
        f"; unpack http://images.cocodataset.org/zips/{archive}.zip and "
        f"http://images.cocodataset.org/annotations/annotations_trainval{year}.zip into {datasets_root() / 'coco'}, or set "
        f"DETECTRON2_DATASETS to the folder that holds coco/, or use the generated shapes_train and shapes_val"
    )
    return _load(name, str(datasets_root() / json_file), str(datasets_root() / image_root), hint)


def _load_known_coco_panoptic(prefix: str, form: str) -> Dataset:
    panoptic_root, panoptic_json, instances_name = _COCO_PANOPTIC[prefix]
    image_root, instances_json, archive = _COCO[instances_name]
    stuff_only = form == "stuffonly"
    root = datasets_root()
    hint = (
        f"; unpack http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip, the archives in it and "
        f"http://images.cocodataset.org/zips/{archive}.zip into {root / 'coco'}, or set DETECTRON2_DATASETS to the folder "
        f"that holds coco/, or use the generated shapes_train_panoptic and shapes_val_panoptic"
    )
    return _load_panoptic(
        f"{prefix}_{form}", str(root / panoptic_json), str(root / panoptic_root), str(root / image_root),
        None if stuff_only else str(root / instances_json), hint, stuff_only=stuff_only)


def _load_shapes(split: str) -> Dataset:
    folder = shapes.ensure_shapes(datasets_root())
    return _load(f"shapes_{split}", str(folder / shapes.instances_json(split)), str(folder / split), hint="")


def _load_shapes_panoptic(split: str) -> Dataset:
    folder = shapes.ensure_shapes(datasets_root())
    return _load_panoptic(
        f"shapes_{split}_panoptic", str(folder / shapes.panoptic_json(split)), str(folder / f"panoptic_{split}"),
        str(folder / split), str(folder / shapes.instances_json(split)), hint="")


def _load(name: str, json_file: str, image_root: str, hint: str) -> Dataset:
    _check_there(name, [json_file], {"images": image_root}, hint)
    return load_coco_instances(name, json_file, image_root)


def _load_panoptic(
    name: str, panoptic_json: str, panoptic_root: str, image_root: str, instances_json: str | None, hint: str,
    stuff_only: bool = False,
) -> Dataset:
    files = [panoptic_json] if instances_json is None else [panoptic_json, instances_json]
    _check_there(name, files, {"panoptic PNG files": panoptic_root, "images": image_root}, hint)
    return load_coco_panoptic(name, panoptic_json, panoptic_root, image_root, instances_json, stuff_only=stuff_only)


def _check_there(name: str, files: list[str], folders: dict[str, str], hint: str) -> None:
    for file in files:
        if not os.path.isfile(file):
            raise UserError(f"dataset {name}: expected its annotations at {os.path.abspath(file)}, which does not exist{hint}")
    for what, folder in folders.items():
        if not os.path.isdir(folder):
            raise UserError(f"dataset {name}: expected its {what} in {os.path.abspath(folder)}, which is not a folder{hint}")
