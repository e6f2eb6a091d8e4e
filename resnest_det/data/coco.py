"""Reading COCO instance annotations into records; every fault of the file is named."""

import json
import logging
import math
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

from resnest_det.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metadata:
    """What is known of a dataset besides its images: its files and the names of its classes.

    `thing_classes[i]` names class i; `thing_dataset_id_to_contiguous_id` maps the file's category ids to 0..K-1.
    """

    name: str
    json_file: str | None
    image_root: str
    thing_classes: list[str]
    thing_dataset_id_to_contiguous_id: dict[int, int]


@dataclass(frozen=True)
class Dataset:
    """A dataset read into memory (images stay on disk).

    A record is one image: {"file_name", "height", "width", "image_id", "annotations"}; an annotation is
    {"id", "bbox" (x, y, width, height in pixels), "category_id" (contiguous), "iscrowd", "segmentation"}, where the
    segmentation is a list of polygons [x0, y0, x1, y1, ...] or a compressed run-length dict, and may be absent.
    `truth` and `panoptic_truth` are the content of the instance and of the panoptic file where it was kept to evaluate against.
    """

    name: str
    records: list[dict]
    metadata: Metadata
    truth: dict | None = None
    panoptic_truth: dict | None = None


def load_coco_instances(name: str, json_file: str, image_root: str, *, keep_truth: bool = False) -> Dataset:
    """Read a COCO instance JSON file (https://cocodataset.org/#format-data).

    Records are sorted by image id; category ids become contiguous in the order of the ids. Left out, and counted in one
    log line: boxes with no area inside their image, objects none of whose polygons has three points, and annotations of
    images that the file does not list.

    Args:
        keep_truth: keep the file's content as `Dataset.truth`; AP also counts what is left out here.

    Raises:
        UserError: the file cannot be read, is not JSON, lacks a key, repeats an id, refers to a category it does not
            list, or has a box or run-length mask that cannot belong to its image. The message names file and entry.
    """
    content = read_json(json_file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f'{json_file}: no list "{key}"; is it a COCO instance annotation file?')

    categories = by_id(content["categories"], "category", json_file)
    if not categories:
        raise UserError(f'{json_file}: the list "categories" is empty')
    names = {i: category_name(categories[i], f"{json_file}: category {i}") for i in sorted(categories)}
    contiguous = {category_id: index for index, category_id in enumerate(names)}

    records = {}
    for image_id, image in sorted(by_id(content["images"], "image", json_file).items()):
        where = f"{json_file}: image {image_id}"
        records[image_id] = image_entry(image, image_root, where) | {"annotations": []}

    dropped: Counter[str] = Counter()
    for annotation_id, annotation in by_id(content["annotations"], "annotation", json_file).items():
        where = f"{json_file}: annotation {annotation_id}"
        record = records.get(require(annotation, "image_id", where))
        entry = _read_annotation(annotation, record, contiguous, where)
        if isinstance(entry, str):
            dropped[entry] += 1
        else:
            record["annotations"].append(entry)
    if dropped:
        logger.warning("%s: left out %s", json_file, ", ".join(f"{count} {what}" for what, count in dropped.items()))

    metadata = Metadata(name, str(json_file), str(image_root), list(names.values()), contiguous)
    return Dataset(name, list(records.values()), metadata, truth=content if keep_truth else None)


def read_json(json_file: str) -> dict:
    """The object in a file of annotations or results.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds something else.
    """
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{json_file}: malformed JSON at line {error.lineno}, column {error.colno} (character {error.pos}): {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{json_file}: malformed JSON, not UTF-8 text at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{json_file}: cannot be read: {error.strerror or error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{json_file}: not a COCO annotation file: holds a {type(content).__name__}, not an object")
    return content


def require(mapping: dict, key: str, where: str):
    """The value of a key; if it is missing, a UserError that begins with `where`."""
    if key not in mapping:
        raise UserError(f'{where}: the key "{key}" is missing')
    return mapping[key]


def by_id(entries: list, kind: str, json_file: str) -> dict[int, dict]:
    """Entries of a list ("image", "category", ...) of an annotation file by their ids.

    Raises:
        UserError: one is not an object, has no integer id, or has that of another.
    """
    result = {}
    for position, entry in enumerate(entries):
        where = f"{json_file}: {kind} at position {position}"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: not an object")
        entry_id = require(entry, "id", where)
        if not isinstance(entry_id, int):
            raise UserError(f"{where}: the id must be an integer, not {entry_id!r}")
        if entry_id in result:
            raise UserError(f"{json_file}: {kind} id {entry_id} occurs more than once")
        result[entry_id] = entry
    return result


def category_name(category: dict, where: str) -> str:
    """The name of a category: text, or a whole number, which becomes text.

    Raises:
        UserError: there is none, it is something else, or it has a control character, a line break or half a surrogate pair. Such
            names break terminals, logs and the files of other tools that they are written to. The message begins with `where`.
    """
    name = require(category, "name", where)
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where}: the name must be text, not {str(name)[:80]!r}")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise UserError(f"{where}: the name {ascii(name)[:80]} has a control character, a line break or broken Unicode")
    return name


def image_entry(image: dict, image_root: str, where: str) -> dict:
    """An image of an annotation file as a record has it: `file_name` below `image_root`, `height`, `width`, `image_id`.

    Raises:
        UserError: a key is missing, or a side is not a positive integer; the message begins with `where`.
    """
    sides = {key: require(image, key, where) for key in ("height", "width")}
    for key, side in sides.items():
        if not isinstance(side, int) or side <= 0:
            raise UserError(f"{where}: {key} must be a positive integer, not {side!r}")
    return {"file_name": os.path.join(image_root, str(require(image, "file_name", where))), **sides, "image_id": image["id"]}


def _read_annotation(annotation: dict, record: dict | None, contiguous: dict[int, int], where: str) -> dict | str:
    """The record's entry for one annotation, or the reason to leave it out."""
    category_id = require(annotation, "category_id", where)
    if category_id not in contiguous:
        raise UserError(f'{where}: category id {category_id!r} is not in the list "categories"')
    box = require(annotation, "bbox", where)
    try:
        x, y, width, height = box
        finite = math.isfinite(x + y + width + height)
    except (TypeError, ValueError):
        finite = False
    if not finite:
        raise UserError(f"{where}: bbox must be four finite numbers [x, y, width, height], not {str(box)[:80]}")
    if annotation.get("ignore", 0):
        raise UserError(f'{where}: "ignore" is not supported; mark regions to ignore with "iscrowd": 1')
    if record is None:
        return "annotations of images that are not listed"

    # Computed so that no rounding of x + width makes a thin box look empty.
    if min(width, height) <= 0 or x >= record["width"] or y >= record["height"] or width <= -x or height <= -y:
        return "boxes with no area inside their image"
    entry = {"id": annotation["id"], "bbox": list(box), "category_id": contiguous[category_id]}
    entry["iscrowd"] = int(bool(annotation.get("iscrowd", 0)))

    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        entry["segmentation"] = _compressed(segmentation, record, where)
    elif isinstance(segmentation, list) and segmentation:
        if not all(isinstance(polygon, list) for polygon in segmentation):
            raise UserError(f"{where}: segmentation must be a list of polygons [[x0, y0, x1, y1, ...], ...] or a run-length dict")
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not polygons:
            return "objects whose polygons have fewer than three points"
        entry["segmentation"] = polygons
    elif segmentation:
        raise UserError(f"{where}: segmentation must be polygons or a run-length dict, not {type(segmentation).__name__}")
    return entry


def _compressed(segmentation: dict, record: dict, where: str) -> dict:
    """Run lengths in either form, checked against the image and compressed."""
    size, counts = require(segmentation, "size", where), require(segmentation, "counts", where)
    if list(size) != [record["height"], record["width"]]:
        raise UserError(
            f"{where}: the mask is {size} (height, width), but image {record['image_id']} is "
            f"[{record['height']}, {record['width']}]"
        )
    if isinstance(counts, str):
        lengths = _run_lengths(counts)
    elif isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        lengths = np.array(counts, dtype=np.int64)
    else:
        lengths = None
    if lengths is None or (lengths < 0).any():
        raise UserError(f"{where}: run-length counts must be a string of COCO's encoding or a list of whole numbers")
    # pycocotools would fill missing pixels with whatever memory holds.
    if lengths.sum() != size[0] * size[1]:
        raise UserError(f"{where}: run-length counts sum to {lengths.sum()}, but the image has {size[0]} x {size[1]} pixels")
    if isinstance(counts, str):
        return {"size": list(size), "counts": counts.encode()}
    return mask_util.frPyObjects({"size": list(size), "counts": counts}, *size)


def _run_lengths(counts: str) -> np.ndarray | None:
    """Lengths of the runs in COCO's compressed string, (n,) int64, or None if it is no such string.

    The format is that of pycocotools' maskApi.c (rleToString): groups of five bits, the lowest first, as characters from 48;
    32 marks that another group follows, 16 in the last one a negative number; from the fourth number on, differences to
    the number two before.
    """
    codes = np.array([ord(character) for character in counts], dtype=np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 10:
        return None
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= ((codes[ends] & 16) >> 4) << (5 * (ends - starts + 1))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
