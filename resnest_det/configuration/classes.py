"""Classes of the data and of the model: as many, and matched by name between data sets and the checkpoint."""

import logging
from collections.abc import Mapping, Sequence

from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.tables import tasks_of
from resnest_det.data.coco import Dataset
from resnest_det.data.image_files import plain
from resnest_det.data.panoptic import with_panoptic_classes
from resnest_det.data.semantic import SemanticMetadata, class_color
from resnest_det.errors import UserError

logger = logging.getLogger(__name__)

# Keys that are counted in the data where nobody has set them, and the classes that they count.
CLASS_COUNTS = {"MODEL.ROI_HEADS.NUM_CLASSES": "thing_classes", "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "stuff_classes"}


def class_names(cfg, dataset: Dataset) -> dict[str, list[str]]:
    """The classes of a dataset that a configured model tells apart, of "thing_classes" and "stuff_classes"."""
    tasks, metadata = tasks_of(cfg), dataset.metadata
    names = {"thing_classes": metadata.thing_classes} if tasks.objects else {}
    if tasks.pixels and isinstance(metadata, SemanticMetadata):
        names["stuff_classes"] = metadata.stuff_classes
    return names


def count_classes(cfg, names: Mapping[str, Sequence[str]], counted: Mapping[str, str]):
    """`cfg` with numbers of classes from the data.

    Args:
        names: "thing_classes" and "stuff_classes", if there are any.
        counted: keys to be the number of names of a kind, as in `CLASS_COUNTS`.
    """
    counts = {key: len(names[kind]) for key, kind in counted.items() if names.get(kind)}
    return with_values(cfg, counts) if counts else cfg


def check_classes(datasets: list[Dataset], cfg) -> None:
    """Check that datasets have the annotations the model needs, in as many classes as it has.

    Raises:
        UserError: they have not; the message names the dataset and the key.
    """
    if tasks_of(cfg).objects:
        for dataset in datasets:
            if not dataset.metadata.thing_classes:
                raise UserError(
                    f"dataset {dataset.name} has no objects, only labels of pixels; MODEL.META_ARCHITECTURE SemanticSegmentor "
                    f"can learn them, {cfg.MODEL.META_ARCHITECTURE} cannot"
                )
        names = {dataset.name: dataset.metadata.thing_classes for dataset in datasets}
        _check_names(names, "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    if tasks_of(cfg).pixels:
        for dataset in datasets:
            if not isinstance(dataset.metadata, SemanticMetadata):
                raise UserError(
                    f"dataset {dataset.name} has no labels of pixels, which MODEL.META_ARCHITECTURE "
                    f"{cfg.MODEL.META_ARCHITECTURE} needs; register a panoptic dataset by --register-panoptic, or one with label "
                    f"PNG files by --register-semantic"
                )
        names = {dataset.name: dataset.metadata.stuff_classes for dataset in datasets}
        _check_names(names, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)


def _check_names(names: dict[str, list[str]], key: str, num_classes: int) -> None:
    """Check that all datasets have the same class names, as many as the model has classes."""
    first, *others = names
    if len(names[first]) != num_classes:
        raise UserError(f"dataset {first} has {len(names[first])} classes, but {key} is {num_classes}")
    for other in others:
        if names[other] != names[first]:
            differing = set(names[first]) ^ set(names[other])
            what = f"only one has {', '.join(sorted(differing)[:5])}" if differing else "their order differs"
            raise UserError(f"DATASETS.TRAIN: the classes of {first} and {other} are not the same: {what}")


def match_classes(dataset: Dataset, like: Mapping[str, list[str]], whose: str) -> Dataset:
    """A dataset with its classes in the order of `like`; see `class_names`.

    Raises:
        UserError: it has other classes than `whose`, which are `like`.
    """
    check_same_names(dataset, like, whose)
    matched = with_panoptic_classes(dataset, like.get("thing_classes"), like.get("stuff_classes"))
    labels = getattr(matched.metadata, "stuff_classes", None)
    if "stuff_classes" in like and labels is not None and labels != like["stuff_classes"]:
        raise UserError(
            f"the classes of {whose} and {dataset.name} are the same in another order, which label PNG files cannot be read in: "
            f"{whose} has {_listed(like['stuff_classes'])}; {dataset.name} has {_listed(labels)}"
        )
    if matched is not dataset:
        logger.info("%s: its classes are counted in the order of %s", dataset.name, whose)
    return matched


def check_same_names(dataset: Dataset, like: Mapping[str, list[str]], whose: str) -> None:
    """That a dataset has the classes `like`, in any order.

    Raises:
        UserError: it has other classes than `whose`, which are `like`; both lists are shown.
    """
    for kind, names in like.items():
        own = getattr(dataset.metadata, kind, names)
        if sorted(own) != sorted(names):
            only = sorted(set(own) ^ set(names))
            theirs = {plain(name): name for name in set(names) - set(own)}
            alike = next(((theirs[plain(name)], name) for name in sorted(set(own) - set(names)) if plain(name) in theirs), None)
            hint = f" ({ascii(alike[0])} and {ascii(alike[1])} differ in case, Unicode form or spaces alone)" if alike else ""
            raise UserError(
                f"the classes of {whose} and {dataset.name} are not the same: only one has {', '.join(only[:5])}{hint}; "
                f"{whose} has {_listed(names)}; {dataset.name} has {_listed(own)}"
            )


def _listed(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def kept_of_classes(names: Mapping[str, Sequence[str]], metadata, input_format: str) -> dict:
    """What a checkpoint keeps under "trained_on", see `RunData`.

    Args:
        names: see `class_names`.
        metadata: of the dataset that they are of: where it has them, ids and colors of the classes.
        input_format: INPUT.FORMAT.
    """
    kept: dict = {"input_format": input_format}
    for name, labels in names.items():
        kind = name.removesuffix("_classes")
        contiguous = getattr(metadata, f"{kind}_dataset_id_to_contiguous_id", {})  # label PNG files have no ids
        kept[name] = list(labels)
        colors = getattr(metadata, f"{kind}_colors", None) or [class_color(None, index, name) for index in range(len(labels))]
        kept[f"{kind}_colors"] = [list(color) for color in colors]
        if contiguous:
            kept[f"{kind}_ids"] = [getattr(each, "text", each) for each in sorted(contiguous, key=contiguous.get)]
    return kept
