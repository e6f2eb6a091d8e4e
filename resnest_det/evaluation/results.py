"""COCO results read from a file and held against the dataset that they are of, and the images on which they are worst."""

import math
from dataclasses import dataclass
from operator import itemgetter

import msgspec

from resnest_det.data.annotation_files import RunLengths
from resnest_det.data.coco import Dataset
from resnest_det.data.instance_records import images_of
from resnest_det.data.json_files import read_bytes
from resnest_det.data.outlines import compressed
from resnest_det.errors import UserError, shown
from resnest_det.evaluation.average_precision import counted
from resnest_det.evaluation.ground_truth import ground_truth_of_instances, ground_truth_of_segments
from resnest_det.evaluation.matches import OVERLAP


class Result(msgspec.Struct, gc=False):
    """An entry of a results file; box (x, y, width, height) in pixels."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float
    segmentation: RunLengths | None = None


def read_results(results_file: str, dataset: Dataset) -> list[dict]:
    """The detections in a file of COCO's results format (https://cocodataset.org/#format-results), best first in each image.

    Raises:
        UserError: the file cannot be read, is of another format, or is of another dataset: it has images or categories that
            `dataset` lacks, or masks of another size than its images; or the dataset has no annotations.
    """
    try:
        entries = msgspec.json.decode(read_bytes(results_file), type=list[Result])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{results_file} is not a file of COCO results, a list of objects with image_id, category_id, bbox and score: "
            f"{shown(str(error), 200)}"
        ) from None
    if dataset.truth is not None and dataset.truth.annotations is None:
        raise UserError(f"{dataset.name} lists images without annotations: there is nothing to hold {results_file} against")
    images = {record["image_id"]: record for record in images_of(dataset.records)}
    categories = dataset.metadata.thing_dataset_id_to_contiguous_id
    for name, known in (("image_id", images), ("category_id", categories)):
        unknown = [getattr(each, name) for each in entries if getattr(each, name) not in known]
        if unknown:
            raise UserError(
                f"{results_file} is of another dataset than {dataset.name}: {len(unknown)} of {len(entries)} detections have "
                f"{name}s that it lacks, the first {unknown[0]}"
            )
    detections = []
    for position, each in enumerate(entries):
        where = f"{results_file}: detection at position {position}"
        if not all(map(math.isfinite, (*each.bbox, each.score))):
            raise UserError(f"{where}: its box or score is not finite")
        detection = {"image_id": each.image_id, "category_id": each.category_id, "bbox": list(each.bbox), "score": each.score}
        if each.segmentation is not None:
            image = images[each.image_id]
            detection["segmentation"] = compressed(each.segmentation, each.image_id, image["height"], image["width"], where)
        detections.append(detection)
    return sorted(detections, key=lambda detection: -detection["score"])


def ground_truth_of(dataset: Dataset) -> dict:
    """The objects of a dataset, read with its truth kept, as `average_precision.counted` takes them."""
    return (ground_truth_of_segments if dataset.metadata.json_file is None else ground_truth_of_instances)(dataset)


def names_by_id(ground_truth: dict) -> list[str]:
    """Names of the classes in the order of their ids, in which they are counted."""
    return [category["name"] for category in sorted(ground_truth["categories"], key=itemgetter("id"))]


@dataclass(frozen=True)
class ImageErrors:
    """How many objects of an image are `missed`, detections `false`, and objects `found`."""

    image_id: int
    missed: int
    false: int
    found: int


def errors_by_image(ground_truth: dict, detections: list[dict], score_threshold: float) -> list[ImageErrors]:
    """The errors in each image that has objects or detections, most errors first.

    Args:
        ground_truth, detections: see `average_precision.figures_of_tasks`.
        score_threshold: detections below it are left out.
    """
    sure = [detection for detection in detections if detection["score"] >= score_threshold]
    counting = counted(ground_truth, sure, ("bbox",), max_detections=1000)["bbox"]
    ids = sorted({image["id"] for image in ground_truth["images"]})
    images = [
        ImageErrors(ids[number - 1], each["fn"], each["fp"], each["tp"])
        for number, each in counting.image_diagnostics(iou_thr=OVERLAP)["img_summary"].items()
    ]
    return sorted(images, key=lambda image: (-image.missed - image.false, image.image_id))
