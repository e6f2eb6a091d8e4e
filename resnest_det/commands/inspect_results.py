"""Results of a detector beside the truth: figures, curves, the confusion matrix, and the worst images."""

from pathlib import Path

from resnest_det.data.coco import Dataset
from resnest_det.drawing.plots import plot_calibration, plot_confusion, plot_error_kinds, plot_precision_recall, plot_sizes
from resnest_det.drawing.results import detections_by_image, draw_result
from resnest_det.drawing.sheets import save_picture
from resnest_det.errors import printable
from resnest_det.evaluation.average_precision import counted, figures_of_tasks
from resnest_det.evaluation.results import errors_by_image, ground_truth_of, names_by_id
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
    names = names_by_id(truth)
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
