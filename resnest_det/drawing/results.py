"""Detections in COCO's results format beside the truth."""

import pycocotools.mask as mask_util
import torch
from PIL import Image

from resnest_det.data.coco import Dataset
from resnest_det.data.image import read_record_image
from resnest_det.data.records import Record
from resnest_det.drawing.comparison import draw_comparison, truth_of_record
from resnest_det.drawing.writers import thing_colors, with_objects


def detections_by_image(detections: list[dict]) -> dict[int, list[dict]]:
    """Detections of each image, in their order."""
    found: dict[int, list[dict]] = {}
    for detection in detections:
        found.setdefault(detection["image_id"], []).append(detection)
    return found


def draw_result(dataset: Dataset, record: Record, detections: list[dict], score_threshold: float) -> Image.Image:
    """Truth and detections, in COCO's results format, of an image side by side."""
    classes = dataset.metadata.thing_dataset_id_to_contiguous_id
    boxes = torch.tensor([each["bbox"] for each in detections], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    prediction = {
        "boxes": boxes,
        "scores": torch.tensor([each["score"] for each in detections], dtype=torch.float64),
        "classes": torch.tensor([classes[each["category_id"]] for each in detections], dtype=torch.int64),
    }
    if detections and all("segmentation" in each for each in detections):
        masks = [torch.from_numpy(mask_util.decode(each["segmentation"])).bool() for each in detections]
        prediction["masks"] = torch.stack(masks)
    image = Image.fromarray(read_record_image(record, "RGB"))
    truth = truth_of_record(with_objects(record))
    return draw_comparison(image, truth, prediction, dataset.metadata.thing_classes, score_threshold, thing_colors(dataset))
