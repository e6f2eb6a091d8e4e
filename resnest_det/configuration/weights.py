"""MODEL.WEIGHTS: loading them into a model, and the input they expect."""

import logging
from collections.abc import Mapping

from fvcore.common.config import CfgNode
from torch import nn

from resnest_det.backbone.loading import load_into
from resnest_det.distributed import get_rank, synchronize
from resnest_det.errors import UserError
from resnest_det.weights.downloads import resolve_weights
from resnest_det.weights.published import IMAGENET_MEAN, IMAGENET_STD
from resnest_det.weights.weights import read_weights

logger = logging.getLogger(__name__)


def load_initial_weights(
    cfg: CfgNode, model: nn.Module, *, whole: bool = False, classes: Mapping[str, list[str]] | None = None
) -> None:
    """Load MODEL.WEIGHTS into `model`.

    Args:
        whole: the model is not trained afterwards: refuse a file that leaves parts of it untrained.
        classes: "thing_classes" and "stuff_classes" that it is trained on, as far as they are known. A detector may be of others:
            its layers with outputs for each class then begin anew, and one line of the log says so.

    Raises:
        UserError: the weights cannot be found or read, or do not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        logger.info("MODEL.WEIGHTS is empty: the model starts from random parameters")
        if cfg.MODEL.BACKBONE.FREEZE_AT:
            logger.warning(
                "MODEL.BACKBONE.FREEZE_AT %d keeps the first parts of the backbone as random as they are; 0 trains them",
                cfg.MODEL.BACKBONE.FREEZE_AT,
            )
        return
    for warning in check_input_matches(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT, cfg.MODEL.WEIGHTS):
        logger.warning(warning)
    # The main process downloads; the others then find the file.
    if get_rank() != 0:
        synchronize()
    path = resolve_weights(cfg.MODEL.WEIGHTS) if whole else fetch_initial_weights(cfg.MODEL.WEIGHTS)
    if get_rank() == 0:
        synchronize()
    weights, allow_mismatch = read_weights(path), cfg.MODEL.WEIGHTS_ALLOW_MISMATCH
    report = load_into(model, weights, allow_mismatch=allow_mismatch, classes=None if whole else classes or {})
    if whole:
        report.require_whole("evaluating needs a checkpoint of a trained detector")
    logger.log(logging.WARNING if report.new_classes else logging.INFO, "Loaded %s", report)


def fetch_initial_weights(weights: str) -> str:
    """The local path of what a training starts from, downloaded if necessary.

    Raises:
        UserError: it cannot be had; the message says how to get it and how to do without.
    """
    try:
        return resolve_weights(weights)
    except UserError as error:
        raise UserError(f"{error}; to begin from random parameters without it, set MODEL.WEIGHTS \"''\"") from error


def check_input_matches(pixel_mean, pixel_std, input_format: str, weights: str = "") -> list[str]:
    """Warnings about input unlike that of the ImageNet weights: training runs all the same, but ends worse.

    Args:
        pixel_mean, pixel_std: MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, for pixels in 0 ... 255, in the order of `input_format`.
        input_format: INPUT.FORMAT, "RGB" or "BGR".
        weights: MODEL.WEIGHTS as given. Detectron2's model zoo is trained on BGR and not checked.

    Returns:
        One text for each key that does not fit, with the value these weights expect; empty if all fit.
    """
    if not weights or weights.startswith("detectron2://"):
        return []
    mean = [255 * value for value in IMAGENET_MEAN]
    std = [255 * value for value in IMAGENET_STD]
    warnings = []
    # A difference of 1 is harmless (the authors' detectors and classifiers differ by hundredths); a swapped channel is 20.
    for key, given, expected in (("MODEL.PIXEL_MEAN", pixel_mean, mean), ("MODEL.PIXEL_STD", pixel_std, std)):
        if len(given) != len(expected) or any(abs(a - b) > 1 for a, b in zip(given, expected)):
            values = ", ".join(f"{value:.3f}" for value in expected)
            warnings.append(f"{key} is {list(given)}, but ResNeSt weights expect [{values}] (RGB)")
    if input_format != "RGB":
        warnings.append(f"INPUT.FORMAT is {input_format}, but ResNeSt weights expect RGB")
    return warnings
