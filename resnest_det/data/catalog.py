"""Names of datasets and where they live; nothing is read until a dataset is asked for."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from resnest_det.data import shapes
from resnest_det.data.benchmarks import ADE20K, CITYSCAPES, Benchmark
from resnest_det.data.coco import Dataset, LabelsMetadata, dataset_of, load_coco_instances
from resnest_det.data.formats.labels import LabelFiles
from resnest_det.data.formats.packed_labels import packed_labels
from resnest_det.data.formats.panoptic_export import panoptic_root_of
from resnest_det.data.panoptic import load_coco_panoptic
from resnest_det.data.pascal_context import PHASES, PascalContextFiles, load_pascal_context
from resnest_det.data.semantic import SemanticFiles, load_semantic
from resnest_det.errors import UserError, nearest

logger = logging.getLogger(__name__)

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
        "coco/panoptic_val2017_100",
        "coco/annotations/panoptic_val2017_100.json",
        "coco_2017_val_100",
    ),
}

_ADE20K_FOLDERS = {"train": "training", "val": "validation"}
_CITYSCAPES_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CocoFiles:
    """Where a dataset in COCO's instance format lives."""

    json_file: str
    image_root: str


@dataclass(frozen=True)
class PanopticFiles:
    """Where a dataset in COCO's panoptic format lives.

    Attributes:
        panoptic_root: folder of the PNG files.
        instances_json: instance annotations of the same images; without it the thing segments are the instances.
        stuff_only: leave instances out.
    """

    panoptic_json: str
    panoptic_root: str
    image_root: str
    instances_json: str | None = None
    stuff_only: bool = False


DatasetFiles = CocoFiles | PanopticFiles | SemanticFiles | PascalContextFiles | LabelFiles

_registered: dict[str, DatasetFiles] = {}


_root = ""


def use_root(folder: str) -> None:
    """Look for the known datasets in `folder` where $DETECTRON2_DATASETS is not set; "" for ./datasets again."""
    global _root
    _root = folder


def datasets_root(folder: str = "") -> Path:
    """The folder that holds the known datasets: $DETECTRON2_DATASETS, else `folder` or that of `use_root`, else ./datasets."""
    folder = folder or _root
    return Path(os.environ.get("DETECTRON2_DATASETS") or (folder if os.path.isdir(folder) else "datasets")).expanduser()


def dataset_names() -> list[str]:
    """Every name that get_dataset knows, sorted."""
    return sorted([*_builtin(), *_registered])


def register_coco(name: str, json_file: str, image_root: str) -> None:
    """Register a dataset in COCO's instance format under `name`; its files are not read yet.

    Raises:
        UserError: another dataset has this name, or it cannot be part of a file's name.
    """
    register(name, CocoFiles(str(json_file), str(image_root)))


def register_panoptic(
    name: str, panoptic_json: str, panoptic_root: str, image_root: str, instances_json: str | None = None
) -> None:
    """Register a dataset in COCO's panoptic format under `name`; its files are not read yet.

    Args:
        panoptic_root, instances_json: see `PanopticFiles`.

    Raises:
        UserError: another dataset has this name, or it cannot be part of a file's name.
    """
    instances = None if instances_json is None else str(instances_json)
    register(name, PanopticFiles(str(panoptic_json), str(panoptic_root), str(image_root), instances))


def register_semantic(
    name: str,
    label_root: str,
    image_root: str,
    classes: str | int | Sequence[str],
    *,
    ignore_value: int = 255,
    list_file: str | None = None,
    label_suffix: str = "",
    image_suffix: str = "",
    instances_json: str | None = None,
    reduce_zero_label: bool = False,
) -> None:
    """Make a dataset whose label PNG files have the names of its images known under `name`; its files are not touched yet.

    Args:
        label_root, image_root, classes and all others: see `resnest_det.data.semantic.SemanticFiles`.

    Raises:
        UserError: another dataset has this name, or it cannot be part of a file's name; or see `SemanticFiles`.
    """
    classes = classes if isinstance(classes, (str, int)) else tuple(classes)
    files = SemanticFiles(
        label_root, image_root, classes, ignore_value, list_file, label_suffix, image_suffix, instances_json, reduce_zero_label
    )
    register(name, files)


def register(name: str, files: DatasetFiles) -> None:
    """`register_coco`, `register_panoptic` or `register_semantic`, by the kind of `files`; the same twice does nothing.

    Raises:
        UserError: another dataset has this name, or it cannot be part of a file's name.
    """
    # Files in OUTPUT_DIR carry this name.
    if not name.isprintable() or ".." in name or any(character in name for character in "/\\"):
        raise UserError(
            f"dataset name {ascii(name)[:80]}: it becomes part of file names, so it must have no '/', '\\' or '..' "
            "and no control character"
        )
    if name in _builtin() or _registered.get(name, files) != files:
        raise UserError(f"a dataset named {name} already exists; register yours under another name")
    _registered[name] = files


def get_dataset(name: str, *, keep_truth: bool = False) -> Dataset:
    """Read the dataset of that name; shapes_train and shapes_val are generated on first use.

    Args:
        keep_truth: see `resnest_det.data.coco.load_coco_instances`.

    Raises:
        UserError: the name is unknown, files are absent (the message says which, and how to get them), or see
            `resnest_det.data.coco.load_coco_instances`, `resnest_det.data.panoptic.load_coco_panoptic` and
            `resnest_det.data.semantic.load_semantic`.
    """
    if name in _registered:
        return load_files(name, _registered[name], keep_truth=keep_truth)
    builtin = _builtin()
    if name in builtin:
        files, hint = builtin[name]()
        return load_files(name, files, hint, keep_truth=keep_truth)
    near = nearest(name, dataset_names(), cutoff=0.4) or dataset_names()
    raise UserError(
        f"unknown dataset {name!r}; nearest known names: {', '.join(near)}; "
        f"labels of your own are made known by --register {name}=FILE_OR_FOLDER, in COCO's format also by "
        f"--register {name}=ANNOTATIONS.json,IMAGE_DIR, a panoptic dataset "
        f"by --register-panoptic {name}=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR, one with label PNG files by "
        f"--register-semantic {name}=LABEL_DIR,IMAGE_DIR,CLASSES"
    )


def known_files(name: str) -> DatasetFiles:
    """Where the dataset of a name in `dataset_names` lives; shapes are generated on first use."""
    return _registered[name] if name in _registered else _builtin()[name]()[0]


def _builtin() -> dict[str, Callable[[], tuple[DatasetFiles, str]]]:
    """Of each dataset known by name a function that gives its files and a hint at how to get them."""
    known: dict[str, Callable] = {name: partial(_known_coco, name) for name in _COCO}
    for prefix in _COCO_PANOPTIC:
        known[f"{prefix}_separated"] = partial(_known_coco_panoptic, prefix, stuff_only=False)
        known[f"{prefix}_stuffonly"] = partial(_known_coco_panoptic, prefix, stuff_only=True)
    for split in shapes.SPLITS:
        known[f"shapes_{split}"] = partial(_shapes, split)
        known[f"shapes_{split}_panoptic"] = partial(_shapes_panoptic, split)
        known[f"shapes_{split}_sem_seg"] = partial(_shapes_semantic, split)
    known |= {f"ade20k_sem_seg_{split}": partial(_ade20k, split) for split in _ADE20K_FOLDERS}
    known |= {f"cityscapes_fine_sem_seg_{split}": partial(_cityscapes, split) for split in _CITYSCAPES_SPLITS}
    known |= {f"pascal_context_59_sem_seg_{phase}": partial(_pascal_context, phase) for phase in PHASES}
    return known


def _known_coco(name: str) -> tuple[CocoFiles, str]:
    image_root, json_file, archive = _COCO[name]
    root, year = datasets_root(), archive[-4:]
    hint = (
        f"; unpack http://images.cocodataset.org/zips/{archive}.zip and "
        f"http://images.cocodataset.org/annotations/annotations_trainval{year}.zip into {root / 'coco'}, or set "
        f"DETECTRON2_DATASETS to the folder that holds coco/, or use the generated shapes_train and shapes_val"
    )
    return CocoFiles(str(root / json_file), str(root / image_root)), hint


def _known_coco_panoptic(prefix: str, stuff_only: bool) -> tuple[PanopticFiles, str]:
    panoptic_root, panoptic_json, instances_name = _COCO_PANOPTIC[prefix]
    image_root, instances_json, archive = _COCO[instances_name]
    root = datasets_root()
    hint = (
        f"; unpack http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip, the archives in it and "
        f"http://images.cocodataset.org/zips/{archive}.zip into {root / 'coco'}, or set DETECTRON2_DATASETS to the folder "
        f"that holds coco/, or use the generated shapes_train_panoptic and shapes_val_panoptic"
    )
    instances = None if stuff_only else str(root / instances_json)
    return PanopticFiles(
        str(root / panoptic_json), str(root / panoptic_root), str(root / image_root), instances, stuff_only
    ), hint


def _shapes(split: str) -> tuple[CocoFiles, str]:
    folder = shapes.ensure_shapes(datasets_root())
    return CocoFiles(str(folder / shapes.instances_json(split)), str(folder / split)), ""


def _shapes_panoptic(split: str) -> tuple[PanopticFiles, str]:
    folder = shapes.ensure_shapes(datasets_root())
    return PanopticFiles(
        str(folder / shapes.panoptic_json(split)),
        str(folder / f"panoptic_{split}"),
        str(folder / split),
        str(folder / shapes.instances_json(split)),
    ), ""


def _shapes_semantic(split: str) -> tuple[SemanticFiles, str]:
    folder = shapes.ensure_shapes(datasets_root())
    return SemanticFiles(str(shapes.ensure_labels(folder, split)), str(folder / split), shapes.THINGS + shapes.STUFF), ""


def _ade20k(split: str) -> tuple[SemanticFiles, str]:
    root, part = datasets_root() / "ADEChallengeData2016", _ADE20K_FOLDERS[split]
    hint = (
        f"; unpack http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (1 GB) into {root.parent}, so that "
        f"{root} has images/{part} and annotations/{part}, or set DETECTRON2_DATASETS to the folder that holds "
        f"ADEChallengeData2016/"
    )
    converted = root / "annotations_detectron2" / part
    if converted.is_dir() and not (root / "annotations" / part).is_dir():
        return _benchmark_files(converted, root / "images" / part, Benchmark(ADE20K.names, ADE20K.colors)), hint
    return _benchmark_files(root / "annotations" / part, root / "images" / part, ADE20K), hint


def _cityscapes(split: str) -> tuple[SemanticFiles, str]:
    root = datasets_root() / "cityscapes"
    labels, images = root / "gtFine" / split, root / "leftImg8bit" / split
    hint = (
        f"; unpack gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip of https://www.cityscapes-dataset.com/downloads "
        f"(with an account) into {root}, or set DETECTRON2_DATASETS to the folder that holds cityscapes/"
    )
    suffixes = {"label_suffix": "_gtFine_labelIds", "image_suffix": "_leftImg8bit"}
    if any(labels.glob("*/*_gtFine_labelIds.png")) or not labels.is_dir():
        return _benchmark_files(labels, images, CITYSCAPES, **suffixes), hint
    if any(labels.glob("*/*_gtFine_labelTrainIds.png")):
        suffixes["label_suffix"] = "_gtFine_labelTrainIds"
        return _benchmark_files(labels, images, Benchmark(CITYSCAPES.names, CITYSCAPES.colors), **suffixes), hint
    raise UserError(
        f"{labels.absolute()} has no folder of a city with files *_gtFine_labelIds.png or *_gtFine_labelTrainIds.png; unpack "
        f"gtFine_trainvaltest.zip again, or make them of its *_gtFine_polygons.json: pip install cityscapesscripts, then "
        f"CITYSCAPES_DATASET={root.absolute()} csCreateTrainIdLabelImgs"
    )


def _benchmark_files(labels: Path, images: Path, benchmark: Benchmark, **suffixes: str) -> SemanticFiles:
    return SemanticFiles(str(labels), str(images), benchmark.classes, values=benchmark.values, **suffixes)


def _pascal_context(phase: str) -> tuple[PascalContextFiles, str]:
    root = datasets_root() / "VOCdevkit" / "VOC2010"
    hint = (
        f"; unpack http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar into {root.parents[1]}, and put "
        f"https://codalabuser.blob.core.windows.net/public/trainval_merged.json into {root}, or set DETECTRON2_DATASETS to the "
        f"folder that holds VOCdevkit/"
    )
    return PascalContextFiles(str(root / "trainval_merged.json"), str(root / "JPEGImages"), phase), hint


def load_files(name: str, files: DatasetFiles, hint: str = "", *, keep_truth: bool = False) -> Dataset:
    """Read the dataset in files, whether or not they are registered.

    Args:
        name: for messages.
        hint: at how to get files that are absent.
        keep_truth: see `get_dataset`.

    Raises:
        UserError: see `get_dataset`.
    """
    if isinstance(files, LabelFiles):
        return _load_labels(name, files, keep_truth)
    if isinstance(files, CocoFiles):
        _check_files_exist(name, [files.json_file], {"images": files.image_root}, hint)
        return load_coco_instances(name, files.json_file, files.image_root, keep_truth=keep_truth)
    if isinstance(files, SemanticFiles):
        annotations = [files.instances_json] if files.instances_json is not None else []
        _check_files_exist(name, annotations, {"label PNG files": files.label_root, "images": files.image_root}, hint)
        return load_semantic(name, files, keep_truth=keep_truth)
    if isinstance(files, PascalContextFiles):
        _check_files_exist(name, [files.merged_json], {"images": files.image_root}, hint)
        return load_pascal_context(name, files)
    annotations = [file for file in (files.panoptic_json, files.instances_json) if file is not None]
    _check_files_exist(name, annotations, {"panoptic PNG files": files.panoptic_root, "images": files.image_root}, hint)
    return load_coco_panoptic(
        name,
        files.panoptic_json,
        files.panoptic_root,
        files.image_root,
        files.instances_json,
        stuff_only=files.stuff_only,
        keep_truth=keep_truth,
    )


def _load_labels(name: str, files: LabelFiles, keep_truth: bool) -> Dataset:
    if files.kind == "panoptic":
        panoptic_root = panoptic_root_of(files.path)
        return load_coco_panoptic(name, files.path, panoptic_root, files.image_root, keep_truth=keep_truth)
    instances, notes = packed_labels(files)
    for line in notes:
        logger.warning("dataset %s: %s", name, line)
    dataset = dataset_of(name, instances, files.image_root, keep_truth)
    return replace(dataset, metadata=LabelsMetadata(**vars(dataset.metadata)))


def _check_files_exist(name: str, files: list[str], folders: dict[str, str], hint: str) -> None:
    for file in files:
        if not os.path.isfile(file):
            raise UserError(f"dataset {name}: expected its annotations at {os.path.abspath(file)}, which does not exist{hint}")
    for what, folder in folders.items():
        if not os.path.isdir(folder):
            raise UserError(f"dataset {name}: expected its {what} in {os.path.abspath(folder)}, which is not a folder{hint}")
