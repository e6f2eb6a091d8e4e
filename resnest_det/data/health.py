"""What is suspicious in a COCO annotation file, by image and annotation.

Reading a dataset (`resnest_det.data.coco`) stops at the first entry that cannot be used. Here a file is looked at as a whole, and
nothing is refused that has the types of the format.
"""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import hotcoco
import numpy as np
import pycocotools.mask as mask_util

from resnest_det.data.annotation_files import Annotation, Image, InstanceFile
from resnest_det.data.image import upright_size
from resnest_det.data.image_files import plain
from resnest_det.data.outlines import compressed, slack_of
from resnest_det.errors import UserError

# A box and the extent of its mask are the same if no side differs by more than this, in pixels, or if they overlap this much.
_SAME_SIDE, _SAME_BOX = 3.0, 0.75

# Of hotcoco's check: what its findings of annotations are called here. What it says of whole files is not of interest.
_OF_ANNOTATIONS = {
    "orphan_image_id": "of an image that the file does not list",
    "orphan_category_id": "of a category that the file does not list",
    "extreme_aspect_ratio": "a very long and thin box",
    "near_duplicate": "nearly the same box as another of its class",
}


@dataclass(frozen=True)
class Finding:
    """Something suspicious: `what` it is, the image's `file`, the annotation's id (None if it is not of one), and the values."""

    what: str
    file: str = ""
    annotation: int | None = None
    detail: str = ""


def check_annotations(content: InstanceFile) -> list[Finding]:
    """Everything suspicious in the entries of a file, as `resnest_det.data.annotation_files.read_annotation_file` reads it."""
    annotations, images = content.annotations or [], {image.id: image for image in content.images}
    found = [
        *_repeated_ids("image", [image.id for image in content.images]),
        *_repeated_ids("category", [category.id for category in content.categories]),
        *_repeated_names(content),
    ]
    twice = {each for each, count in Counter(annotation.id for annotation in annotations).items() if count > 1}
    files = Counter(str(image.file_name) for image in content.images)
    found += [Finding("a file that is listed more than once", file) for file, count in files.items() if count > 1]

    def add(annotation: Annotation, what: str, detail: str = "") -> None:
        image = images.get(annotation.image_id)
        found.append(Finding(what, str(image.file_name) if image else "", annotation.id, detail))

    for annotation in annotations:
        if annotation.id in twice:
            add(annotation, "an id that another annotation has, too")
        image = images.get(annotation.image_id)
        fault = _fault_of_box(annotation, image) or _fault_of_mask(annotation, image)
        if fault is not None:
            add(annotation, *fault)
    for what, position in _of_hotcoco(content):
        add(annotations[position], what, f"box {_listed(annotations[position].bbox)}")
    return sorted(found, key=lambda finding: (finding.what, finding.file, finding.annotation or 0))


def _repeated_ids(kind: str, ids: list[int]) -> Iterator[Finding]:
    for each, count in Counter(ids).items():
        if count > 1:
            yield Finding(f"an id that another {kind} has, too", detail=f"{kind} id {each}")


def _repeated_names(content: InstanceFile) -> Iterator[Finding]:
    alike = defaultdict(list)
    for category in content.categories:
        alike[plain(str(category.name))].append(str(category.name))
    for names in alike.values():
        if len(names) > 1:
            yield Finding(
                "categories whose names differ in case, Unicode form or spaces at most", detail=", ".join(map(repr, names))
            )


def _fault_of_box(annotation: Annotation, image: Image | None) -> tuple[str, str] | None:
    box = annotation.bbox
    if not all(map(math.isfinite, box)):
        return "a box that is not finite", _listed(box)
    if min(box[2:]) < 0:
        return "a flipped box, of negative width or height", _listed(box)
    if min(box[2:]) == 0:
        return "an empty box", _listed(box)
    if image is None:
        return None
    sides = np.array([image.width, image.height])
    if box[0] >= sides[0] or box[1] >= sides[1] or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return "a box outside of its image", f"{_listed(box)} in {image.width} x {image.height}"
    over = np.concatenate([-np.array(box[:2]), np.add(box[:2], box[2:]) - sides]).max()
    if over > slack_of(sides).min():
        return "a box that leaves its image", f"{_listed(box)} in {image.width} x {image.height}"
    return None


def _fault_of_mask(annotation: Annotation, image: Image | None) -> tuple[str, str] | None:
    mask = annotation.segmentation
    if not mask or image is None:
        return None
    if isinstance(mask, list):
        polygons = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not polygons:
            return "a mask none of whose polygons has three points", ""
        points = np.array(list(chain.from_iterable(polygons))).reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
    else:
        try:
            x, y, width, height = mask_util.toBbox(compressed(mask, image.id, image.height, image.width, "run lengths"))
        except UserError as error:
            return "a mask that cannot be read", str(error)
        if not width * height:
            return "an empty mask", ""
        low, high = np.array([x, y]), np.array([x + width, y + height])
    start, end = np.array(annotation.bbox[:2]), np.add(annotation.bbox[:2], annotation.bbox[2:])
    if max(np.abs(low - start).max(), np.abs(high - end).max()) <= _SAME_SIDE:
        return None
    both = np.prod(np.maximum(np.minimum(end, high) - np.maximum(start, low), 0))
    either = np.prod(end - start) + np.prod(high - low) - both
    if both >= _SAME_BOX * either:
        return None
    return "a mask that does not match its box", f"box {_listed(annotation.bbox)}, mask {_listed((*low, *(high - low)))}"


def _listed(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def _of_hotcoco(content: InstanceFile) -> Iterator[tuple[str, int]]:
    """What it finds, and the position of the annotation."""
    # Positions in the place of ids tell annotations apart that share one.
    entries = [
        {
            "id": position,
            "image_id": each.image_id,
            "category_id": each.category_id,
            "bbox": each.bbox,
            "iscrowd": int(each.iscrowd or 0),
        }
        for position, each in enumerate(content.annotations or [])
        if all(map(math.isfinite, each.bbox))
    ]
    images = {
        image.id: {"id": image.id, "file_name": "", "width": image.width, "height": image.height} for image in content.images
    }
    categories = {category.id: {"id": category.id, "name": str(category.id)} for category in content.categories}
    lists = {"images": list(images.values()), "annotations": entries, "categories": list(categories.values())}
    try:
        said = hotcoco.COCO(lists).healthcheck()
    except (ValueError, OverflowError, TypeError):
        return  # numbers beyond 64 bits, say, for which there are findings of this module
    for problem in (*said["errors"], *said["warnings"]):
        if problem["code"] in _OF_ANNOTATIONS:
            for position in problem["affected_ids"]:
                yield _OF_ANNOTATIONS[problem["code"]], position


def check_image_headers(records: Iterable[dict]) -> list[Finding]:
    """Images that are not there, cannot be read, or are of another size than the annotations say; only headers are read."""
    with ThreadPoolExecutor() as pool:
        return [finding for finding in pool.map(_check_header, records) if finding is not None]


def _check_header(record: dict) -> Finding | None:
    try:
        height, width = upright_size(record["file_name"])
    except UserError as error:
        return Finding("an image that cannot be read", record["file_name"], detail=str(error))
    if (height, width) == (record["height"], record["width"]):
        return None
    said = f"{record['width']} x {record['height']}"
    return Finding("an image of another size than annotated", record["file_name"], detail=f"{width} x {height}, not {said}")


def shared_images(first: Sequence[dict], second: Sequence[dict]) -> list[Finding]:
    """Images of two datasets, given by their records, that are one file, or two files of the same content."""
    files = {record["file_name"] for record in first}
    found = [
        Finding("an image in both datasets", record["file_name"], detail="the same file")
        for record in second
        if record["file_name"] in files
    ]
    # Of equal content are only such as have an equal size in bytes.
    by_size = [_by(_size_of, records) for records in (first, second)]
    for size in by_size[0].keys() & by_size[1].keys() - {None}:
        by_content = [_by(_digest_of, each[size]) for each in by_size]
        for digest in by_content[0].keys() & by_content[1].keys() - {None}:
            other = by_content[0][digest][0]["file_name"]
            for record in by_content[1][digest]:
                if record["file_name"] not in files:
                    found.append(Finding("an image in both datasets", record["file_name"], detail=f"the content of {other}"))
    return found


def _by(function, records: Iterable[dict]) -> dict:
    grouped = defaultdict(list)
    for record in records:
        grouped[function(record["file_name"])].append(record)
    return grouped


def _size_of(file_name: str) -> int | None:
    try:
        return os.path.getsize(file_name)
    except OSError:
        return None


def _digest_of(file_name: str) -> bytes | None:
    try:
        with open(file_name, "rb") as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return None
