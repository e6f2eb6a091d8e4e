"""Labels written for other tools: COCO's JSON, YOLO's and Pascal VOC's folders."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from xml.sax.saxutils import escape

import msgspec
import numpy as np
import pycocotools.mask as mask_util
import yaml

from resnest_det.data.annotation_files import InstanceFile
from resnest_det.data.coco import Dataset
from resnest_det.data.formats.labels import LabelFiles, Notes, counts_by_name
from resnest_det.data.formats.masks import connected
from resnest_det.data.formats.reading import read_labels
from resnest_det.data.formats.yolo import outline_of_parts
from resnest_det.data.polygons import clip_polygon, outline
from resnest_det.errors import UserError
from resnest_det.files import write_bytes

FORMATS = ("coco", "yolo", "voc")
IMAGES = ("link", "copy", "none")


def write_labels(dataset: Dataset, out: str, to: str, *, images: str = "link") -> Notes:
    """Write a dataset that was read with its truth as `to`, one of `FORMATS`, and read it back: the counts must be the same.

    Args:
        out: a JSON file for COCO, otherwise a folder that is not there yet, which gets a folder of images as well.
        images: of `IMAGES`, what is put into that: links to the image files, copies or nothing.

    Returns:
        What the format has no place for.

    Raises:
        UserError: `out` cannot be written, two images would have one label file, or what was written does not read as it was.
    """
    notes = Notes()
    root, unfinished = dataset.metadata.image_root, f"{os.path.normpath(out)}.unfinished"
    _remove(unfinished)
    try:
        if to == "coco":
            write_coco(dataset.truth, root, unfinished)
            _check_counts(LabelFiles(unfinished, "coco", root), dataset, counts_by_name(dataset.truth))
        else:
            counts = _WRITERS[to](dataset, unfinished, os.path.abspath(out), images, notes)
            labels, pictures = (os.path.join(unfinished, folder) for folder in _FOLDERS[to])
            _check_counts(LabelFiles(labels, to, root), dataset, counts)
            _put_images(dataset, pictures, images)
            if os.path.isdir(out):
                os.replace(out, f"{unfinished}.old")  # a folder is not replaced by another in one step
        os.replace(unfinished, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        _remove(unfinished)
    _remove(f"{unfinished}.old")
    return notes


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def write_coco(content: InstanceFile, image_root: str, out: str) -> None:
    """Write a document as COCO's JSON, with where the images are seen from it, so that its path alone is enough to register it.

    Raises:
        UserError: it cannot be written.
    """
    sizes = {image.id: (image.height, image.width) for image in content.images}
    annotations = []
    for annotation in content.annotations or ():
        x, y, width, height = annotation.bbox
        entry = {
            "id": annotation.id,
            "image_id": annotation.image_id,
            "category_id": annotation.category_id,
            "bbox": [x, y, width, height],
            "area": annotation.area,
            "iscrowd": int(annotation.iscrowd or 0),
            "segmentation": annotation.segmentation or [],
        }
        if annotation.segmentation and annotation.area is None:
            entry["area"] = float(np.sum(mask_util.area(_encoded(annotation.segmentation, sizes[annotation.image_id]))))
        elif annotation.area is None:
            entry["area"] = width * height
        if isinstance(annotation.segmentation, dict):
            entry["segmentation"] = annotation.segmentation | {"counts": annotation.segmentation["counts"].decode()}
        annotations.append(entry)
    written = {
        "images": content.images,
        "annotations": annotations,
        "categories": content.categories,
        "resnest_det": {"images": os.path.relpath(image_root, os.path.dirname(os.path.abspath(out)))},
    }
    write_bytes(out, msgspec.json.encode(written))


def _encoded(segmentation: list[list[float]] | dict, size: tuple[int, int]) -> dict:
    if isinstance(segmentation, dict):
        return segmentation
    return mask_util.merge(mask_util.frPyObjects(segmentation, *size))


def _names(dataset: Dataset) -> Iterator[tuple[dict, str]]:
    """Records and the names of their files from the folder of the images, without suffix; no two have the same.

    Raises:
        UserError: two have, or one is outside of the folder.
    """
    seen: dict[str, str] = {}
    for record in dataset.records:
        name = os.path.relpath(record["file_name"], dataset.metadata.image_root).replace(os.sep, "/")
        stem = os.path.splitext(name)[0]
        if name.startswith("../"):
            raise UserError(
                f"image {record['file_name']} is outside of {dataset.metadata.image_root}, so its labels have no place"
            )
        if seen.setdefault(stem.casefold(), name) != name:
            raise UserError(f"images {seen[stem.casefold()]} and {name} would have the same label file; rename one of them")
        yield record, name


def _write_yolo(dataset: Dataset, folder: str, out: str, images: str, notes: Notes) -> Counter:
    """Label files and data.yaml; objects by class, as they are written."""
    names, counts = dataset.metadata.thing_classes, Counter()
    objects = [annotation for record in dataset.records for annotation in record["annotations"] if not annotation["iscrowd"]]
    with_masks = any("segmentation" in annotation for annotation in objects)
    for record, name in _names(dataset):
        width, height = record["width"], record["height"]
        lines = []
        for annotation in record["annotations"]:
            if annotation["iscrowd"]:
                notes.add("left out: crowds, which YOLO has no place for", f"annotation {annotation['id']}")
                continue
            x0, y0, x1, y1 = _corners(annotation, record)
            numbers = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
            if with_masks:
                polygons = _polygons(annotation, record, notes)
                if not polygons:
                    if "segmentation" not in annotation:
                        notes.add(
                            "told: boxes among polygons, written as polygons of their corners", f"annotation {annotation['id']}"
                        )
                    polygons = [[x0, y0, x1, y0, x1, y1, x0, y1]]
                numbers = [value / (height if index % 2 else width) for index, value in enumerate(outline_of_parts(polygons))]
            lines.append(" ".join([str(annotation["category_id"]), *(_short(number, 9) for number in numbers)]))
            counts[names[annotation["category_id"]]] += 1
        text = "".join(f"{line}\n" for line in dict.fromkeys(lines))
        write_bytes(os.path.join(folder, "labels", f"{os.path.splitext(name)[0]}.txt"), text.encode())
    where = os.path.abspath(dataset.metadata.image_root) if images == "none" else "images"
    content = {"path": out, "train": where, "val": where, "names": dict(enumerate(names))}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_bytes(os.path.join(folder, "data.yaml"), text.encode())
    return counts


def _write_voc(dataset: Dataset, folder: str, out: str, images: str, notes: Notes) -> Counter:
    """XML files; objects by class. VOC counts pixels from 1, and the corners are the first and the last pixel of the box."""
    names, counts = dataset.metadata.thing_classes, Counter()
    for record, name in _names(dataset):
        parts = [
            f"<annotation>\n  <folder>{_FOLDERS['voc'][1]}</folder>\n  <filename>{escape(name)}</filename>\n"
            f"  <source><database>Pascal VOC</database></source>\n  <size><width>{record['width']}</width>"
            f"<height>{record['height']}</height><depth>3</depth></size>\n  <segmented>0</segmented>\n"
        ]
        for annotation in record["annotations"]:
            label = names[annotation["category_id"]]
            crowd = int(annotation["iscrowd"])
            if crowd:
                notes.add("told: crowds, written as difficult objects", f"annotation {annotation['id']}")
            x0, y0, x1, y1 = _corners(annotation, record)
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1))
            parts.append(
                f"  <object>\n    <name>{escape(label)}</name>\n    <pose>Unspecified</pose>\n    <truncated>0</truncated>\n"
                f"    <difficult>{crowd}</difficult>\n    <bndbox>"
                f"{''.join(f'<{corner}>{_short(value, 3)}</{corner}>' for corner, value in corners)}</bndbox>\n"
            )
            for polygon in _polygons(annotation, record, notes) if not crowd else ():
                points = zip(polygon[::2], polygon[1::2])
                text = "".join(
                    f"<x{index}>{_short(x, 4)}</x{index}><y{index}>{_short(y, 4)}</y{index}>"
                    for index, (x, y) in enumerate(points, start=1)
                )
                parts.append(f"    <polygon>{text}</polygon>\n")
            parts.append("  </object>\n")
            counts[label] += 1
        parts.append("</annotation>\n")
        path = os.path.join(folder, "Annotations", f"{os.path.splitext(name)[0]}.xml")
        write_bytes(path, "".join(parts).encode())
    return counts


# Of each format the folder of the labels and that of the images.
_FOLDERS = {"yolo": ("labels", "images"), "voc": ("Annotations", "JPEGImages")}
_WRITERS: dict[str, Callable[[Dataset, str, str, str, Notes], Counter]] = {"yolo": _write_yolo, "voc": _write_voc}


def _corners(annotation: dict, record: dict) -> tuple[float, float, float, float]:
    """The box x0, y0, x1, y1 inside its image."""
    x, y, width, height = annotation["bbox"]
    return max(x, 0.0), max(y, 0.0), min(x + width, float(record["width"])), min(y + height, float(record["height"]))


def _polygons(annotation: dict, record: dict, notes: Notes) -> list[list[float]]:
    """An object's mask as polygons inside its image; none where it has no mask."""
    segmentation, size = annotation.get("segmentation"), (record["height"], record["width"])
    if not segmentation:
        return []
    if isinstance(segmentation, list):
        pieces = [piece for polygon in segmentation for piece in clip_polygon(np.array(polygon).reshape(-1, 2), size)]
        return [piece.reshape(-1).tolist() for piece in pieces]
    notes.add("told: masks of pixels, written as polygons around them, without holes", f"annotation {annotation['id']}")
    parts = connected(mask_util.decode(segmentation).astype(bool), corners=False)
    around = [outline(_filled(part)) for part in parts]
    return [polygon.reshape(-1).tolist() for polygon in around if polygon is not None]


def _filled(mask: np.ndarray) -> np.ndarray:
    """A mask without its holes."""
    outside = np.zeros_like(mask)
    for part in connected(~np.pad(mask, 1), corners=False)[:1]:  # the first has the upper left corner of the margin
        outside = part[1:-1, 1:-1]
    return ~outside


def _short(number: float, digits: int) -> str:
    """A number without the zeros at its end."""
    return f"{number:.{digits}f}".rstrip("0").rstrip(".")


def _put_images(dataset: Dataset, folder: str, how: str) -> None:
    for record, name in _names(dataset) if how != "none" else ():
        target = os.path.join(folder, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if how == "copy":
            shutil.copyfile(record["file_name"], target)
        else:
            os.symlink(os.path.abspath(record["file_name"]), target)


def _check_counts(written: LabelFiles, dataset: Dataset, by_class: Counter) -> None:
    """That the written files have as many images as the dataset, and objects of each class as were to be written.

    Raises:
        UserError: they have not.
    """
    images, names = len(dataset.records), None
    if written.kind == "yolo":  # every image that is there is one of YOLO's
        names = [name for _, name in _names(dataset)]
    if not images:
        return
    content = read_labels(written, need_images=False, names=names).content
    found = counts_by_name(content)
    if len(content.images) != images or found != by_class:
        wrong = [f"{name} {found[name]} for {by_class[name]}" for name in {*found, *by_class} if found[name] != by_class[name]]
        raise UserError(
            f"{written.path}: reads as {len(content.images)} images for {images}; objects: "
            f"{', '.join(sorted(wrong)[:5]) or 'equal'}; these labels cannot be written in this format without loss"
        )
