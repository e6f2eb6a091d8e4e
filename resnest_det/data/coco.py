"""Reading COCO instance annotations into records and the truth of an evaluation, with every fault of the file named."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from resnest_det.data.annotation_files import (
    Annotation,
    Image,
    InstanceFile,
    PanopticFile,
    by_id,
    category_names,
    check_names_differ,
    check_size,
    check_text,
    must_be,
    no_list,
    read_annotation_file,
    without_collector,
)
from resnest_det.data.outlines import check_outlines, slack_of
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
class LabelsMetadata(Metadata):
    """What is known of labels in any format: `json_file` is their file or folder, which other libraries cannot read as COCO's."""


@dataclass(frozen=True)
class Dataset:
    """A dataset read into memory (images stay on disk).

    A record is one image: {"file_name", "height", "width", "image_id", "annotations"}; an annotation is
    {"id", "bbox" (x, y, width, height in pixels), "category_id" (contiguous), "iscrowd", "segmentation"}, where the
    segmentation is a list of polygons [x0, y0, x1, y1, ...] or a compressed run-length dict, and may be absent.
    `truth` and `panoptic_truth` are the checked content of the instance and of the panoptic file where it was kept to evaluate
    against; `truth.annotations` is None where the file only lists images. `left_out` has reasons to how many annotations were not
    taken for them.
    """

    name: str
    records: list[dict]
    metadata: Metadata
    truth: InstanceFile | None = None
    panoptic_truth: PanopticFile | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


@without_collector()
def load_coco_instances(name: str, json_file: str, image_root: str, *, keep_truth: bool = False) -> Dataset:
    """Read a COCO instance JSON file (https://cocodataset.org/#format-data); docs/data.md has the rules that it is held to.

    Records are sorted by image id; category ids become contiguous in the order of the ids. Left out, and counted in one
    log line: boxes with no area inside their image, objects none of whose polygons has three points, and annotations of
    images that the file does not list.

    Args:
        keep_truth: keep what the file says as `Dataset.truth`, to evaluate against; it may then be a file that only lists images.
            AP counts what is left out here, too, except annotations of images that the file does not list.

    Raises:
        UserError: the file cannot be read, is not JSON, lacks a key, repeats an id or a name, refers to a category it does not
            list, or has a box or mask that cannot belong to its image. The message names file and entry.
    """
    json_file = str(json_file)
    return instances_dataset(name, read_annotation_file(json_file, InstanceFile), json_file, image_root, keep_truth=keep_truth)


def instances_dataset(name: str, content: InstanceFile, json_file: str, image_root: str, *, keep_truth: bool = False) -> Dataset:
    """The dataset of a file's content, which is checked and changed on the way; see `load_coco_instances`.

    Args:
        json_file: what messages call the file; of labels in another format that file, or their folder.

    Raises:
        UserError: see `load_coco_instances`.
    """
    if content.annotations is None:
        if not keep_truth:
            raise no_list(json_file, "annotations", InstanceFile)
        logger.warning(
            "%s lists images without annotations: results are written, and there is nothing to count them by", json_file
        )
    categories = by_id(content.categories, "category", json_file)
    if not categories:
        raise UserError(f'{json_file}: the list "categories" is empty')
    names = category_names(categories, json_file)
    check_names_differ(names, json_file)
    contiguous = {category_id: index for index, category_id in enumerate(names)}

    images = by_id(content.images, "image", json_file)
    records = {
        image_id: image_entry(images[image_id], image_root, f"{json_file}: image {image_id}") | {"annotations": []}
        for image_id in sorted(images)
    }
    _tell_of_files_listed_twice(records.values(), json_file)
    left_out: dict[str, int] = {}
    if content.annotations is not None:
        content.annotations, left_out = _read_annotations(content.annotations, images, records, contiguous, json_file)
    metadata = Metadata(name, json_file, str(image_root), list(names.values()), contiguous)
    return Dataset(name, list(records.values()), metadata, truth=content if keep_truth else None, left_out=left_out)


def image_entry(image: Image, image_root: str, where: str) -> dict:
    """An image of an annotation file as a record has it: `file_name` below `image_root`, `height`, `width`, `image_id`.

    Raises:
        UserError: a side cannot be that of an image, or the file's name has control characters; the message begins with `where`.
    """
    check_size(image, where)
    check_text(str(image.file_name), f"{where}: file_name")
    path = os.path.join(image_root, str(image.file_name))
    return {"file_name": path, "height": image.height, "width": image.width, "image_id": image.id}


def with_classes(dataset: Dataset, names: list[str]) -> Dataset:
    """The dataset with its classes counted in the order of `names`, which are those it has."""
    metadata = dataset.metadata
    if metadata.thing_classes == names:
        return dataset
    moved = {old: names.index(name) for old, name in enumerate(metadata.thing_classes)}
    records = [
        record | {"annotations": [entry | {"category_id": moved[entry["category_id"]]} for entry in record["annotations"]]}
        for record in dataset.records
    ]
    ids = {category_id: moved[old] for category_id, old in metadata.thing_dataset_id_to_contiguous_id.items()}
    changed = {"thing_classes": list(names), "thing_dataset_id_to_contiguous_id": ids}
    return replace(dataset, records=records, metadata=replace(metadata, **changed))


def _tell_of_files_listed_twice(records: Iterable[dict], json_file: str) -> None:
    files = Counter(record["file_name"] for record in records)
    twice = [file for file, count in files.items() if count > 1]
    if twice:
        logger.warning("%s lists %d files under more than one image id, of which %s", json_file, len(twice), twice[0])


def _read_annotations(
    annotations: list[Annotation], images: dict[int, Image], records: dict[int, dict], contiguous: dict[int, int], json_file: str
) -> tuple[list[Annotation], dict[str, int]]:
    """Check annotations and put them into the records; those of listed images in the file's order, and what was left out."""
    by_id(annotations, "annotation", json_file)
    for annotation in annotations:
        _check_fields(annotation, contiguous, f"{json_file}: {annotation.called()}")
    listed = [annotation for annotation in annotations if annotation.image_id in images]
    its_image = [images[annotation.image_id] for annotation in listed]
    inside = _boxes_inside(listed, its_image, json_file)
    pointless = check_outlines(listed, its_image, inside, json_file)

    left_out: dict[str, list[Annotation]] = {}
    if len(listed) < len(annotations):
        left_out["annotations of images that are not listed"] = [a for a in annotations if a.image_id not in images]
    for annotation, is_inside, is_pointless in zip(listed, inside.tolist(), pointless.tolist()):
        if not is_inside:
            left_out.setdefault("boxes with no area inside their image", []).append(annotation)
        elif is_pointless:
            left_out.setdefault("objects whose polygons have fewer than three points", []).append(annotation)
        else:
            entry = {
                "id": annotation.id,
                "bbox": list(annotation.bbox),
                "category_id": contiguous[annotation.category_id],
                "iscrowd": int(annotation.iscrowd or 0),
            }
            if annotation.segmentation:
                entry["segmentation"] = annotation.segmentation
            records[annotation.image_id]["annotations"].append(entry)
    if left_out:
        parts = [f"{len(them)} {what} ({them[0].called()}{', ...' if len(them) > 1 else ''})" for what, them in left_out.items()]
        logger.warning("%s: left out %s", json_file, ", ".join(parts))
    return listed, {what: len(ids) for what, ids in left_out.items()}


def _check_fields(annotation: Annotation, contiguous: dict[int, int], where: str) -> None:
    if annotation.category_id not in contiguous:
        raise UserError(f'{where}: category id {annotation.category_id} is not in the list "categories"')
    if not math.isfinite(sum(annotation.bbox)):
        raise UserError(f"{where}: {must_be('bbox', list(annotation.bbox))}")
    if annotation.area is not None and not 0 <= annotation.area <= 1e10:
        raise UserError(f"{where}: {must_be('area', annotation.area)}")
    if annotation.iscrowd not in (None, 0, 1):
        raise UserError(f"{where}: {must_be('iscrowd', annotation.iscrowd)}")
    if annotation.ignore:
        raise UserError(f'{where}: "ignore" is not supported; mark regions to be ignored with "iscrowd": 1')


def _boxes_inside(annotations: list[Annotation], images: list[Image], json_file: str) -> np.ndarray:
    """Which boxes have an area inside their image, (N,) bool.

    Raises:
        UserError: so many do not lie where their image is that they must mean something else.
    """
    boxes = np.array([annotation.bbox for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    sides = np.array([(image.width, image.height) for image in images], dtype=np.float64).reshape(-1, 2)
    start, extent = boxes[:, :2], boxes[:, 2:]
    # Written so that no rounding of x + width can make a thin box look empty.
    inside = ((extent > 0) & (start < sides) & (extent > -start)).all(axis=1)

    borders = sides + slack_of(sides)
    leaving = (extent > 0).all(axis=1) & ((start < sides - borders) | (start + extent > borders)).any(axis=1)
    relative = (np.abs(boxes) <= 1).all(axis=1) & (sides > 2).all(axis=1) & (extent > 0).all(axis=1)
    for wrong, what in ((relative, "are of a pixel at most"), (leaving, "leave their image")):
        if 2 * wrong.sum() <= len(boxes):
            continue
        corners = leaving & (extent > start).all(axis=1) & (extent <= borders).all(axis=1)
        if wrong is relative:
            meant = "fractions of the image's sides; multiply them by width and height"
        elif corners.sum() == leaving.sum():
            meant = "corners x0, y0, x1, y1; write width and height in the place of x1 and y1"
        else:
            meant = "of images of another size, or width and height of the images are exchanged"
        first = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{json_file}: {wrong.sum()} of {len(boxes)} boxes [x, y, width, height] {what}, the first that of "
            f"{annotations[first].called()}, {list(annotations[first].bbox)} in an image of {images[first].width} x "
            f"{images[first].height} pixels (width x height); they may be {meant}"
        )
    return inside
