"""Evaluating a trained model, and comparing its figures with expected ones."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from resnest_det.distributed import is_main_process
from resnest_det.errors import UserError
from resnest_det.evaluation.loop import EvaluationSet, inference_on_dataset
from resnest_det.evaluation.tables import copypaste_lines, format_results

logger = logging.getLogger(__name__)


def evaluate(model: nn.Module, sets: Sequence[EvaluationSet], pictures: str = "") -> dict:
    """Predict, compute the figures and log them as tables.

    Args:
        model: as it is, or what `prepare_for_inference` makes of it.
        pictures: see `inference_on_dataset`.

    Returns:
        on the main process, task to figures, by dataset if there are several; empty on the others.
    """
    results = {}
    for each in sets:
        figures = inference_on_dataset(model, each.batches, each.evaluators, each.writers, pictures)
        if is_main_process():
            results[each.name] = figures
            logger.info("Evaluation results for %s:\n%s", each.name, format_results(figures))
            for line in copypaste_lines(figures):
                logger.info(line)
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_augmented(model: nn.Module, augment: Callable[[nn.Module], nn.Module], sets: Sequence[EvaluationSet]) -> dict:
    """`evaluate` for `augment(model)`, the model with test-time augmentation; task names end in "_TTA"."""
    logger.info("Evaluating with test-time augmentation")
    return {f"{name}_TTA": figures for name, figures in evaluate(augment(model), sets).items()}


def flatten_results(results: Mapping, prefix: str = "") -> dict[str, float]:
    """{"bbox": {"AP": 1.0}} as {"bbox/AP": 1.0}."""
    flat = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update(flatten_results(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = float(value)
    return flat


def verify_results(expected: Sequence[Sequence], results: Mapping[str, Mapping[str, float]]) -> None:
    """Compare results with those that were expected.

    Args:
        expected: lists of task, metric, value and allowed difference.
        results: task to figures.

    Raises:
        UserError: a figure is missing, not finite or too far off.
    """
    wrong = []
    for task, metric, value, tolerance in expected:
        actual = results.get(task, {}).get(metric, math.nan)
        if not abs(actual - value) <= tolerance:
            wrong.append(f"{task} {metric} is {actual:.4f}, expected {value} within {tolerance}")
    if wrong:
        raise UserError(f"results differ from the expected ones: {'; '.join(wrong)}")
    if expected:
        logger.info("results agree with the expected ones")
