"""Results of a detector beside the truth: figures, curves, the confusion matrix, and the worst images."""

from pathlib import Path

import pycocotools.mask as mask_util
import torch
from PIL import Image

from resnest_det.data.coco import Dataset
from resnest_det.data.image import read_record_image
from resnest_det.data.records import Record
from resnest_det.drawing.comparison import draw_comparison, truth_of_record
from resnest_det.drawing.plots import plot_calibration, plot_confusion, plot_error_kinds, plot_precision_recall, plot_sizes
from resnest_det.drawing.sheets import save_picture
from resnest_det.drawing.writers import thing_colors, with_objects
from resnest_det.errors import printable
from resnest_det.evaluation.average_precision import counted, figures_of_tasks
from resnest_det.evaluation.results import errors_by_image, ground_truth_of
from resnest_det.evaluation.tables import format_results


def inspect_results(dataset: Dataset, detections: list[dict], output: Path, count: int, score_threshold: float) -> None:
    """Print the figures of results on a dataset, and write plots and the pictures of the images with the most errors.

    Args:
        detections: see `resnest_det.evaluation.results.read_results`.

    Raises:
        UserError: matplotlib is not installed, or a file cannot be written.
    """
    truth = ground_truth_of(dataset)
    tasks = ["bbox"]
    if detections and all("segmentation" in each for each in (*detections, *truth["annotations"])):
        tasks.append("segm")
    figures = figures_of_tasks(truth, detections, tasks)
    print(printable(format_results(figures), lines=True))
    counting = counted(truth, detections, ("bbox",), 100)["bbox"]
    names = dataset.metadata.thing_classes
    plot_precision_recall(counting, names, output / "precision_recall.png")
    plot_sizes(figures, output / "ap_by_size.png")
    plot_confusion(counting, names, score_threshold, output / "confusion_matrix.png")
    plot_calibration(counting, output / "calibration.png")
    plot_error_kinds(counting, output / "errors.png")

    errors = errors_by_image(truth, detections, score_threshold)
    missed, false = sum(image.missed for image in errors), sum(image.false for image in errors)
    print(f"boxes at {100 * score_threshold:.0f}% or more: {missed} objects missed, {false} detections false")
    worst = [image for image in errors if image.missed + image.false][:count]
    records = {record["image_id"]: record for record in dataset.records}
    found = detections_by_image(detections)
    for rank, image in enumerate(worst, start=1):
        record = records[image.image_id]
        picture = draw_result(dataset, record, found.get(image.image_id, []), score_threshold)
        save_picture(picture, str(output / "worst" / f"{rank:03d}_{Path(record['file_name']).stem}.png"))
    print(f"plots: {output}; the {len(worst)} images with the most errors, beside the truth: {output / 'worst'}")


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
