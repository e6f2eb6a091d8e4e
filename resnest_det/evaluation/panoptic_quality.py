"""Panoptic quality of PNG files in COCO's panoptic format; hotcoco counts.

Definition: Kirillov et al., Panoptic Segmentation (arXiv:1801.00868), section 4.1: a predicted and a true segment of one class
match where their IoU is over 0.5; PQ = sum of IoU / (TP + FP / 2 + FN / 2) = SQ * RQ. Void and crowd regions are treated as the
panoptic API of COCO (github.com/cocodataset/panopticapi) treats them, and the figures are the API's, but for the rounding of the
sums of IoU (1e-15): they are added up image by image here, segment by segment or process by process there.
"""

import math
import re
from typing import Any

from hotcoco.panoptic import PanopticEval

from resnest_det.data.annotation_files import PanopticFile
from resnest_det.errors import UserError

_NAMES = ("pq", "sq", "rq")


def panoptic_quality(
    truth: PanopticFile, truth_folder: str, predictions: dict[int, dict], prediction_folder: str
) -> dict[str, dict[str, Any]]:
    """Panoptic, segmentation and recognition quality of all images of the truth, whose categories are those of both.

    Like the panoptic API it takes the areas that the truth's file gives, and counts a true segment without a pixel as missed;
    `resnest_det.data.panoptic.read_record_segments` is what finds a truth whose PNG and JSON files disagree.

    Args:
        truth_folder, prediction_folder: of the PNG files.
        predictions: image id to {"file_name", "segments_info": list of {"id", "category_id"}}.

    Returns:
        "All", "Things" and "Stuff", each {"pq", "sq", "rq": means over the classes that occur, as fractions, nan if none does;
        "n": number of those classes}, and "per_class": category id to {"pq", "sq", "rq"}.

    Raises:
        UserError: an image has no prediction, a PNG file is missing or damaged, is not of the size of the other, or the predicted
            one disagrees with its segments; the message names the folder and the image.
    """
    image_ids = [annotation.image_id for annotation in truth.annotations]
    for image_id in image_ids:
        if image_id not in predictions:
            raise UserError(f"{prediction_folder} has no prediction for image {image_id}")
    # Numbered from 1: the library keeps ids as 64-bit integers.
    categories = {category.id: number for number, category in enumerate(truth.categories, start=1)}
    true, predicted = [], []
    for number, annotation in enumerate(truth.annotations, start=1):
        segments = []
        for segment in annotation.segments_info:
            area = {} if segment.area is None else {"area": int(segment.area)}
            own = {"id": segment.id, "category_id": categories[segment.category_id], "iscrowd": int(segment.iscrowd or 0)}
            segments.append(own | area)
        true.append({"image_id": number, "file_name": str(annotation.file_name), "segments_info": segments})
        found = predictions[annotation.image_id]
        segments = [{"id": info["id"], "category_id": categories[info["category_id"]]} for info in found["segments_info"]]
        predicted.append({"image_id": number, "file_name": found["file_name"], "segments_info": segments})
    content = {
        "images": [{"id": number} for number in range(1, len(true) + 1)],
        "categories": [
            {"id": number, "name": str(number), "isthing": category.isthing}
            for number, category in enumerate(truth.categories, start=1)
        ],
        "annotations": true,
    }
    counting = PanopticEval(content, content | {"annotations": predicted}, gt_folder=truth_folder, pred_folder=prediction_folder)
    try:
        counting.evaluate()
    except (OSError, ValueError) as error:
        number, problem = re.fullmatch(r"(?:image (\d+): )?(.*)", " ".join(str(error).split())).groups()
        image = f"image {image_ids[int(number) - 1]}: " if number else ""
        raise UserError(f"panoptic predictions {prediction_folder} of {truth_folder}: {image}{problem}") from error
    results = counting.results()
    quality: dict[str, dict] = {part: _of_classes(results[part]) for part in ("All", "Things", "Stuff")}
    # hotcoco writes -1 for a class that is neither in the truth nor predicted.
    quality["per_class"] = {
        category_id: {
            name: math.nan if results["per_class"][number]["pq"] < 0 else results["per_class"][number][name] for name in _NAMES
        }
        for category_id, number in categories.items()
    }
    return quality


def _of_classes(means: dict[str, Any]) -> dict[str, Any]:
    return {name: means[name] if means["n"] else math.nan for name in _NAMES} | {"n": means["n"]}
