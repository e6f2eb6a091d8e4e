"""What to try next, by rule, from the figures of an evaluation and the curves of its run."""

from collections.abc import Mapping, Sequence

import numpy as np

from resnest_det.data.statistics import RARE, Statistics
from resnest_det.engine.metrics import Metrics
from resnest_det.evaluation.bootstrap import Estimate

_FEW = 50  # objects of a class, below which more of them help most
_ERRORS = {
    "Cls": "objects are found and taken for another class. Look at the confusion matrix: are two classes labelled alike?",
    "Loc": "objects are found, but boxes do not fit well. Train longer, or use a cascade (`cascade_…` recipes).",
    "Both": "boxes neither fit nor have the right class: the model is far from trained, or labels are inconsistent.",
    "Dupe": "objects are found twice. Lower MODEL.ROI_HEADS.NMS_THRESH_TEST.",
    "Bkg": "things are found where nothing is labelled. Look whether labels are missing; if not, add images without objects, "
    "with DATALOADER.FILTER_EMPTY_ANNOTATIONS False.",
    "Miss": "objects are not found at all. Are they smaller than the smallest anchor, or hidden? Larger INPUT.MIN_SIZE_TRAIN and "
    "INPUT.MIN_SIZE_TEST, or smaller MODEL.ANCHOR_GENERATOR.SIZES, help small ones.",
}


def advice(
    figures: Mapping[str, float],
    ends: Estimate,
    error_kinds: Mapping[str, float],
    calibration_error: float,
    data: Statistics,
    trained_on: Statistics | None,
    metrics: Metrics | None,
) -> list[str]:
    """Sentences, the most important first.

    Args:
        figures: of boxes, see `resnest_det.evaluation.average_precision.figures_of_tasks`.
        ends: AP with its confidence interval, in percent.
        error_kinds: TIDE's loss of AP50 by kind, 0 to 1.
        calibration_error: mean difference of score and precision, 0 to 1.
        data, trained_on: the evaluated and the training images.
        metrics: of the run.
    """
    said = _of_curves(metrics) if metrics is not None else []
    if error_kinds and max(error_kinds.values()) >= 0.02:
        kind = max(error_kinds, key=error_kinds.get)
        said.append(f"Most AP50 is lost ({100 * error_kinds[kind]:.1f} points) because {_ERRORS[kind]}")
    small, large = figures["APs"], figures["APl"]
    if large - small > 20 and np.mean(data.sizes < 32) > 0.1:
        share = 100 * np.mean(data.sizes < 32)
        said.append(
            f"Small objects, {share:.0f} % of all, have an AP of {small:.1f}, large ones of {large:.1f}: train and predict on "
            "larger images (INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TEST), or predict in tiles."
        )
    few = [(name, count) for name, count in (trained_on.objects_of.items() if trained_on else ()) if count < _FEW]
    if few:
        few.sort(key=lambda pair: pair[1])
        said.append(f"Label more objects of {_named(few)}: fewer than {_FEW} were trained on.")
    if ends.high - ends.low > 6:
        said.append(
            f"AP is known to {(ends.high - ends.low) / 2:.1f} points at best: evaluate on more than {len(data.image_sizes)} "
            "images before you choose between models that differ by less."
        )
    rare = [(name, count) for name, count in data.objects_of.items() if 0 < count < RARE]
    if rare:
        said.append(f"The AP of {_named(rare)} says little, with so few objects to evaluate on.")
    if calibration_error > 0.15:
        said.append(
            f"Scores differ from precision by {100 * calibration_error:.0f} points on average: do not take them for "
            "probabilities, and use the best threshold of each class from the table."
        )
    return said or ["Nothing stands out: more images, a longer schedule or a larger backbone are what is left."]


def _of_curves(metrics: Metrics) -> list[str]:
    said = []
    iterations, loss = metrics.scalars.get("total_loss", ([], []))
    if len(loss) >= 50:
        part = len(loss) // 5
        before, after = np.median(loss[-2 * part : -part]), np.median(loss[-part:])
        if after < 0.93 * before:
            said.append(
                f"The loss still falls, by {100 * (1 - after / before):.0f} % over the last fifth of the run: train longer."
            )
    for name in ("segm/AP", "bbox/AP"):
        steps, values = metrics.scalars.get(name, ([], []))
        if len(values) >= 3 and max(values) - values[-1] > 1:
            best = steps[int(np.argmax(values))]
            said.append(
                f"{name} was best at iteration {best} ({max(values):.1f}) and is {values[-1]:.1f} at the end: the model "
                "over-fits. Take the checkpoint from there, train for less, or add images and augmentation."
            )
            break
    return said


def _named(counts: Sequence[tuple[str, int]], most: int = 8) -> str:
    text = ", ".join(f"{name} ({count})" for name, count in counts[:most])
    return text + (f" and {len(counts) - most} more classes" if len(counts) > most else "")
