"""COCO ground truth for average precision: from an instance file, or from the segments of a panoptic dataset."""

import os
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from resnest_det.data.annotation_files import without_collector
from resnest_det.data.coco import Dataset, load_coco_instances
from resnest_det.data.panoptic import with_truth
from resnest_det.errors import UserError
from resnest_det.evaluation.masks import segmentation_to_run_lengths


def check_can_be_evaluated(dataset: Dataset, tasks: tuple[str, ...]) -> None:
    """That an instance file that was read has what `tasks` ("bbox", "segm") need; one that only lists images is fine.

    Raises:
        UserError: it was read without `keep_truth`, has no annotations or no images, or an annotation has no mask.
    """
    truth, json_file = dataset.truth, dataset.metadata.json_file
    if truth is None:
        raise UserError(f"dataset {dataset.name} was read without its truth; read it with get_dataset(name, keep_truth=True)")
    for name, count in (("images", len(truth.image_ids)), ("annotations", len(truth.column("image")))):
        if not count and (name == "images" or truth.annotations is not None):
            raise UserError(f"{json_file} has no {name}: there is nothing to evaluate against")
    without = np.flatnonzero(truth.column("bytes") == 0) if "segm" in tasks else ()
    if len(without):
        raise UserError(
            f"{json_file}: annotation {truth.ids_at(without[:1])[0]} has no segmentation, which mask AP needs; "
            "a model without masks is evaluated by its boxes alone"
        )


def read_ground_truth(json_file: str, tasks: tuple[str, ...] = ("bbox", "segm")) -> dict[str, Any]:
    """`ground_truth_of_instances` of a file, to count a results file against it by `average_precision.coco_figures`.

    Raises:
        UserError: see `resnest_det.data.coco.load_coco_instances` and `check_can_be_evaluated`; or it only lists images.
    """
    dataset = load_coco_instances(os.path.basename(json_file), json_file, "", keep_truth=True)
    if dataset.truth.annotations is None:
        raise UserError(f"{json_file} has no annotations: there is nothing to evaluate against")
    check_can_be_evaluated(dataset, tasks)
    return ground_truth_of_instances(dataset)


def with_run_lengths(ground_truth: dict[str, Any], json_file: str) -> list[dict]:
    """The annotations of `read_ground_truth` with masks as compressed run lengths, whatever they were."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    return [
        each | {"segmentation": segmentation_to_run_lengths(each["segmentation"], *sizes[each["image_id"]])}
        for each in ground_truth["annotations"]
    ]


@without_collector()
def ground_truth_of_instances(dataset: Dataset) -> dict[str, Any]:
    """The annotations of a dataset's instance file as `average_precision.coco_figures` takes them.

    An absent `iscrowd` is 0. An absent `area` is that of the segmentation, or of the box where there is none.
    """
    truth = dataset.truth
    image_ids, category_ids = truth.image_ids, [category.id for category in truth.categories]
    names = ("image", "label", "box", "area", "crowd")
    columns = zip(truth.annotation_ids, *(truth.column(name).tolist() for name in names), strict=True)
    annotations = []
    for position, (number, image, label, box, area, crowd) in enumerate(columns):
        segmentation = truth.segmentation(position)
        if area != area:  # nan
            width, height = truth.column("sides")[image].tolist()
            area = box[2] * box[3]
            if segmentation:
                area = float(mask_util.area(segmentation_to_run_lengths(segmentation, height, width)))
        annotations.append(
            {
                "id": number,
                "image_id": image_ids[image],
                "category_id": category_ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": crowd,
                "segmentation": segmentation,
            }
        )
    images = [{"id": image.id, "height": image.height, "width": image.width} for image in truth.images]
    return {"images": images, "categories": categories_of(dataset), "annotations": annotations}


def ground_truth_of_segments(dataset: Dataset) -> dict[str, Any]:
    """The thing segments of a panoptic dataset in the form of a COCO instance file, each with its visible mask and box.

    Raises:
        UserError: see `resnest_det.data.panoptic.read_record_segments`.
    """
    categories = categories_of(dataset)
    annotations = []
    for record in dataset.records:
        for annotation in with_truth(record)[0]["annotations"]:
            annotations.append(
                {
                    **annotation,
                    "image_id": record["image_id"],
                    "category_id": categories[annotation["category_id"]]["id"],
                    "area": float(mask_util.area(annotation["segmentation"])),
                }
            )
    images = [{"id": record["image_id"], "height": record["height"], "width": record["width"]} for record in dataset.records]
    return {"images": images, "categories": categories, "annotations": annotations}


def categories_of(dataset: Dataset) -> list[dict]:
    """Id and name of each class of objects, in the order of the classes."""
    ids = {index: category_id for category_id, index in dataset.metadata.thing_dataset_id_to_contiguous_id.items()}
    return [{"id": ids[index], "name": name} for index, name in enumerate(dataset.metadata.thing_classes)]
