"""Datasets whose pixels have classes, in label PNG files of the images' names; with or without objects of an instance file."""

import colorsys
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from resnest_det.data.coco import Dataset, Metadata, load_coco_instances
from resnest_det.data.image import READERS
from resnest_det.data.instance_records import images_of
from resnest_det.data.label_png import MAX_CLASSES, UNLABELLED, LabelPng, label_png_size
from resnest_det.data.records import Record
from resnest_det.errors import ArgumentError, UserError, shown

logger = logging.getLogger(__name__)

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif")


@dataclass(frozen=True)
class SemanticMetadata(Metadata):
    """What is known of a dataset whose pixels have classes: `stuff_classes[i]` names class i; colors are (R, G, B).

    `label_values[i]` is the value of class i in the dataset's own label files, where that is not i.
    """

    stuff_classes: list[str]
    stuff_colors: list[tuple[int, int, int]]
    label_values: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class SemanticFiles:
    """Where a dataset with label PNG files lives.

    An image `a/b.jpg` of `image_root` has its labels in `a/b.png` of `label_root`; with suffixes, `a/b<image_suffix>.jpg` has
    them in `a/b<label_suffix>.png`.

    Attributes:
        classes: names of the classes, the value of a pixel being the index of its class; or how many there are; or a file: a
            `.json` list of names or of {"name", "color"}, or text with one name a line.
        ignore_value: of pixels without a label.
        reduce_zero_label: value 0 is for pixels without a label too, and class i is value i + 1, as in ADE20K.
        values: see `LabelPng`; of datasets known by name.
        list_file: text with the name of one image a line, of those to take; all of them without it.
        instances_json: COCO instance annotations of the same images, which are then those to take. Class 0 stands for all
            objects together where a Panoptic FPN is to fuse both.

    Raises:
        ArgumentError: an `ignore_value` that no byte has, or a list of images beside an instance file, which is one.
    """

    label_root: str
    image_root: str
    classes: str | int | tuple[str | dict, ...]
    ignore_value: int = UNLABELLED
    list_file: str | None = None
    label_suffix: str = ""
    image_suffix: str = ""
    instances_json: str | None = None
    reduce_zero_label: bool = False
    values: tuple[int, ...] = ()

    def __post_init__(self):
        if not isinstance(self.ignore_value, int) or not 0 <= self.ignore_value <= 255:
            raise ArgumentError("ignore_value", f"is {self.ignore_value!r}; it must be the value of a byte, 0 to 255")
        if self.list_file is not None and self.instances_json is not None:
            raise ArgumentError("list_file", f"is {self.list_file}, but the images are those of {self.instances_json} already")


def load_semantic(name: str, files: SemanticFiles, *, keep_truth: bool = False) -> Dataset:
    """List the images and their label PNG files; of the latter only sizes are read.

    Records are sorted by file name and have `label_png`, see `resnest_det.data.records.Record`; without an instance file image
    ids count from 1.

    Args:
        keep_truth: keep what the instance file says as `Dataset.truth`.

    Raises:
        UserError: see `resnest_det.data.coco.load_coco_instances` and `label_png_size`; also where class names are unreadable,
            double or too many, there are no images, one is listed that is not there, two have one name, labels are absent or,
            with an instance file, of another size. The message names the file.
    """
    names, colors = _read_classes(files.classes, f"dataset {name}")
    labels = _files_below(files.label_root, files.label_suffix, (".png",))
    if files.instances_json is None:
        images = _images(files, leave_out=set(labels.values()))
        _check_images_of_labels(labels, images, files)
        label_pngs, sizes = _label_pngs(images, labels, files, len(names))
        records = [
            Record(file_name=path, height=height, width=width, image_id=number, annotations=[], label_png=label)
            for number, ((_, path), (height, width), label) in enumerate(zip(images, sizes, label_pngs), start=1)
        ]
        truth, things, categories, left_out = None, [], {}, {}
    else:
        instances = load_coco_instances(name, files.instances_json, files.image_root, keep_truth=keep_truth)
        paths = [record["file_name"] for record in images_of(instances.records)]
        images = [(_key(os.path.relpath(path, files.image_root), files.image_suffix), path) for path in paths]
        label_pngs, sizes = _label_pngs(images, labels, files, len(names))
        _check_sizes(images_of(instances.records), label_pngs, sizes)
        records = instances.records.with_more([{"label_png": label} for label in label_pngs])
        truth, left_out, things = instances.truth, instances.left_out, instances.metadata.thing_classes
        categories = instances.metadata.thing_dataset_id_to_contiguous_id
    if not records:
        raise UserError(f"dataset {name}: there are no images in {files.image_root}")
    values = _values(files, len(names))
    own = tuple(values.index(index) for index in range(len(names))) if values else ()
    metadata = SemanticMetadata(name, files.instances_json, files.image_root, things, categories, names, colors, label_values=own)
    return Dataset(name, records, metadata, truth, left_out=left_out)


def _values(files: SemanticFiles, num_classes: int) -> tuple[int, ...]:
    """See `LabelPng.values`."""
    return (UNLABELLED, *range(num_classes)) if files.reduce_zero_label else files.values


def class_color(color: object, number: int, where: str) -> tuple[int, int, int]:
    """The color that a file gives a class, or for None one that differs from those of other numbers.

    Raises:
        UserError: it is no color; the message begins with `where`.
    """
    if color is None:
        # Steps of the golden ratio keep hues apart however many there are; a million of them come to a whole number.
        hue, value = (0.618034 * (number % 1_000_000)) % 1.0, (1.0, 0.8, 0.9)[number % 3]
        return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.7, value))
    if not (isinstance(color, (list, tuple)) and len(color) == 3 and all(c in range(256) for c in color)):
        raise UserError(f"{where}: color must be three whole numbers from 0 to 255, not {shown(color)}")
    return tuple(color)


def _read_classes(classes: str | int | tuple[str, ...], source: str) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names and colors of the classes; messages begin with the file that they are in, or else with `source`."""
    entries = [str(i) for i in range(classes)] if isinstance(classes, int) else classes
    if isinstance(classes, str):
        source, text = classes, _read_text(classes)
        if classes.lower().endswith(".json"):
            try:
                entries = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(f"{classes}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
            if not isinstance(entries, list):
                raise UserError(
                    f'{classes}: must be a list of names, or of objects with a "name" and, if they have one, a "color"'
                )
        else:
            entries = [line.strip() for line in text.splitlines() if line.strip()]
    if not 2 <= len(entries) <= MAX_CLASSES:
        raise UserError(f"{source}: {len(entries)} classes; supported: 2 to {MAX_CLASSES}")
    names, colors = [], []
    for index, entry in enumerate(entries):
        where = f"{source}: class {index}"
        entry = entry if isinstance(entry, dict) else {"name": entry}
        # A file of COCO's categories, whose ids have gaps, would give nearly every pixel another name.
        if entry.get("id", index) != index:
            raise UserError(
                f"{where}: its id is {entry['id']!r}, but the value of a pixel is the place of its class in this list"
            )
        # Others break terminals, logs and the files that figures are written to.
        if not isinstance(entry.get("name"), str) or not entry["name"].strip() or not entry["name"].isprintable():
            raise UserError(f"{where}: the name must be printable text, not {ascii(entry.get('name'))[:80]}")
        names.append(entry["name"])
        colors.append(class_color(entry.get("color"), index, where))
    double = next((label for label in names if names.count(label) > 1), None)
    if double is not None:
        raise UserError(f"{source}: two classes are called {double!r}")
    return names, colors


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}") from error


def _key(path: str, suffix: str) -> str:
    """What the path of an image and that of its labels have in common."""
    return os.path.splitext(path)[0].removesuffix(suffix)


def _files_below(folder: str, suffix: str, extensions: Iterable[str], leave_out: Iterable[str] = ()) -> dict[str, str]:
    """Paths of the files in a folder and those inside it by `_key`, listed once."""
    found: dict[str, str] = {}
    for parent, _, file_names in os.walk(folder):
        for file_name in file_names:
            stem, extension = os.path.splitext(file_name)
            path = os.path.join(parent, file_name)
            if extension.lower() not in extensions or not stem.endswith(suffix) or path in leave_out:
                continue
            key = _key(os.path.relpath(path, folder), suffix)
            if found.setdefault(key, path) != path:
                raise UserError(f"{found[key]} and {path}: which of them has the labels of that name cannot be told")
    return found


def _images(files: SemanticFiles, leave_out: Iterable[str]) -> list[tuple[str, str]]:
    """`_key` and path of the images to take, sorted; a text file lists them with or without suffix and extension."""
    images = _files_below(files.image_root, files.image_suffix, _IMAGES, leave_out)
    if files.list_file is None:
        return sorted(images.items())
    keys = set()
    for number, line in enumerate(_read_text(files.list_file).splitlines(), start=1):
        image = line.strip()
        key = image if image in images else _key(image, files.image_suffix)
        if image and key not in images:
            raise UserError(f"{files.list_file}: line {number}: there is no image {image[:80]!r} in {files.image_root}")
        keys |= {key} if image else set()
    return sorted((key, images[key]) for key in keys)


def _label_pngs(
    images: list[tuple[str, str]], labels: dict[str, str], files: SemanticFiles, num_classes: int
) -> tuple[list[LabelPng], list[tuple[int, int]]]:
    """Where the labels of each image are, and their sizes (height, width)."""
    absent = [(key, path) for key, path in images if key not in labels]
    if absent:
        key, path = absent[0]
        expected = os.path.join(files.label_root, f"{key}{files.label_suffix}.png")
        raise UserError(
            f"label PNG {expected} of image {path} does not exist; {len(absent)} of {len(images)} are absent"
            + _other_layout(labels, files)
        )
    values = _values(files, num_classes)
    label_pngs = [LabelPng(labels[key], num_classes, files.ignore_value, values) for key, _ in images]
    with ThreadPoolExecutor(READERS) as pool:
        return label_pngs, list(pool.map(label_png_size, [label.file_name for label in label_pngs]))


def _other_layout(labels: Mapping[str, str], files: SemanticFiles) -> str:
    """What is wrong where no label at all has the name of an image, as the end of a message."""
    if any("_gtFine_" in key for key in labels) and not files.label_suffix:
        return (
            "; these are Cityscapes' files: train on cityscapes_fine_sem_seg_train, which knows their names and classes, with "
            "the folders gtFine and leftImg8bit in DETECTRON2_DATASETS/cityscapes"
        )
    if not labels and _files_below(files.image_root, files.label_suffix, (".png",)):
        return "; the folder of labels comes first, then that of images: are they exchanged?"
    return ""


def _check_images_of_labels(labels: Mapping[str, str], images: Sequence[tuple[str, str]], files: SemanticFiles) -> None:
    """Labels without an image are left out and told, where no list chooses images."""
    without = sorted(labels.keys() - {key for key, _ in images}) if files.list_file is None else []
    if without:
        told = f"{len(without)} of {len(labels)} label PNG files have no image in {files.image_root}"
        logger.warning("%s, the first %s; left out", told, labels[without[0]])


def _check_sizes(images: Sequence[Record], label_pngs: list[LabelPng], sizes: list[tuple[int, int]]) -> None:
    for record, label, (height, width) in zip(images, label_pngs, sizes):
        if (height, width) != (record["height"], record["width"]):
            raise UserError(
                f"label PNG {label.file_name} is {width} x {height} pixels (width x height), but image "
                f"{record['image_id']} is {record['width']} x {record['height']} by its annotations"
            )
