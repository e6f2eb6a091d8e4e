"""Figures of a host's model by this project's evaluation, so that models of all hosts stand in one table."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from resnest_det.data.coco import Dataset
from resnest_det.data.loader import InferenceBatches
from resnest_det.data.mapper import inference_sample
from resnest_det.errors import UserError
from resnest_det.evaluation.coco import COCOEvaluator
from resnest_det.evaluation.loop import EvaluationSet, Evaluator
from resnest_det.evaluation.panoptic import PanopticEvaluator
from resnest_det.evaluation.semantic import SemSegEvaluator
from resnest_det.inference.evaluating import evaluate

TASKS = ("bbox", "segm", "sem_seg", "panoptic_seg")


def evaluate_host(predictor: nn.Module, dataset: Dataset, tasks: Sequence[str], *, num_workers: int = 0) -> dict:
    """Predict every image of a dataset and compute the figures.

    Args:
        predictor: takes a list of samples with `image` (3, H, W) uint8 RGB of the file's size, `height`, `width`, `image_id`, and
            returns what the evaluators of `tasks` take.
        dataset: read with its truth kept.
        tasks: of `TASKS`.

    Returns:
        task to figures, in percent.

    Raises:
        UserError: an unknown task, or truth that the dataset has not.
    """
    unknown = set(tasks) - set(TASKS)
    if unknown or not tasks:
        raise UserError(f"tasks {list(tasks)} are not supported; supported: some of {', '.join(TASKS)}")
    of_objects = tuple(task for task in tasks if task in ("bbox", "segm"))
    evaluators: list[Evaluator] = [COCOEvaluator(dataset, of_objects)] if of_objects else []
    for task, evaluator, attribute, what in (
        ("sem_seg", SemSegEvaluator, "stuff_classes", "labels of pixels"),
        ("panoptic_seg", PanopticEvaluator, "panoptic_root", "panoptic truth"),
    ):
        if task in tasks:
            if not hasattr(dataset.metadata, attribute):
                raise UserError(f"dataset {dataset.name} has no {what} to evaluate {task} by")
            evaluators.append(evaluator(dataset))
    read = partial(inference_sample, short_side=0, max_side=0, image_format="RGB")
    batches = InferenceBatches(dataset.records, read, num_workers)
    return evaluate(predictor, [EvaluationSet(dataset.name, batches, evaluators)])
