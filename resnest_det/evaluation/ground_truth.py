"""COCO ground truth for average precision: from an instance file, or from the segments of a panoptic dataset."""

import logging

import pycocotools.mask as mask_codec

from resnest_det.data.coco import read_json
from resnest_det.data.panoptic import with_truth
from resnest_det.errors import UserError
from resnest_det.evaluation.masks import segmentation_to_run_lengths

logger = logging.getLogger(__name__)


def checked_ground_truth(content: dict | None, json_file: str, tasks) -> dict:
    """`content` of a COCO instance file (None reads it), with the `iscrowd` and `area` that some datasets leave out filled in.

    An absent `iscrowd` is 0. An absent `area` is that of the segmentation, or of the box where there is none.

    Raises:
        UserError: the file is absent, has no annotations, or has a malformed one, which the message names.
    """
    content = content or read_json(json_file)
    for key in ("images", "categories", "annotations"):
        if not content.get(key):
            raise UserError(f"{json_file} has no {key}: there is nothing to evaluate against")
    images = {image["id"]: image for image in content["images"]}
    seen = set()
    annotations = []
    for annotation in content["annotations"]:
        where = f"{json_file}: annotation {annotation.get('id')}"
        missing = {"id", "image_id", "category_id", "bbox"} - set(annotation)
        if missing:
            raise UserError(f"{where} has no {min(missing)}")
        if annotation["id"] in seen:
            raise UserError(f"{where} occurs twice")
        seen.add(annotation["id"])
        if "segm" in tasks and not annotation.get("segmentation"):
            raise UserError(f"{where} has no segmentation, which mask AP needs (MODEL.MASK_ON False evaluates only boxes)")
        annotation = {"iscrowd": 0, **annotation}
        if "area" not in annotation:
            annotation["area"] = _area(annotation, images.get(annotation["image_id"]), json_file)
        annotations.append(annotation)
    if 0 in seen:
        logger.warning("%s: annotation id 0 never counts as matched in COCO AP; number ids from 1", json_file)
    return {**content, "annotations": annotations}


def ground_truth_of_segments(dataset) -> dict:
    """The thing segments of a panoptic dataset in the form of a COCO instance file, each with its visible mask and box.

    Raises:
        UserError: see `resnest_det.data.panoptic.read_record_segments`.
    """
    metadata = dataset.metadata
    category_ids = {contiguous: category for category, contiguous in metadata.thing_dataset_id_to_contiguous_id.items()}
    annotations = []
    for record in dataset.records:
        for annotation in with_truth(record)[0]["annotations"]:
            # Segment ids are unique in an image, annotation ids in the whole dataset.
            annotations.append(
                {
                    **annotation,
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": category_ids[annotation["category_id"]],
                    "area": float(mask_codec.area(annotation["segmentation"])),
                }
            )
    images = [{"id": record["image_id"], "height": record["height"], "width": record["width"]} for record in dataset.records]
    categories = [{"id": category_ids[i], "name": name} for i, name in enumerate(metadata.thing_classes)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _area(annotation: dict, image: dict | None, json_file: str) -> float:
    if annotation.get("segmentation") and image is not None:
        return float(mask_codec.area(_run_lengths(annotation, image, json_file)))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def with_run_lengths(content: dict, json_file: str) -> list[dict]:
    """The annotations, each with its segmentation (polygons, run lengths) as compressed run lengths of the whole image."""
    images = {image["id"]: image for image in content["images"]}
    return [
        {**annotation, "segmentation": _run_lengths(annotation, images[annotation["image_id"]], json_file)}
        for annotation in content["annotations"]
        if annotation["image_id"] in images
    ]


def _run_lengths(annotation: dict, image: dict, json_file: str) -> dict:
    try:
        return segmentation_to_run_lengths(annotation["segmentation"], image["height"], image["width"])
    except Exception as error:
        raise UserError(f"{json_file}: the segmentation of annotation {annotation['id']} cannot be read: {error!r}") from error
