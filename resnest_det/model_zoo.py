"""The recipes that come with the package, by name, in Detectron2's `model_zoo` vocabulary.

>>> from resnest_det import model_zoo
>>> model = model_zoo.get("mask_rcnn_ResNeSt50_FPN", trained=True).eval()
"""

from fvcore.common.config import CfgNode
from torch import nn

from resnest_det.backbone.catalog import TRAINED_DETECTORS
from resnest_det.backbone.weights import load_weights, resolve_weights
from resnest_det.engine.build_model import build_model
from resnest_det.engine.config import find_config_file, load_config
from resnest_det.errors import UserError


def get_config_file(name: str) -> str:
    """The path of a recipe's YAML file, or of MMDetection's config where the name ends in `.py`.

    Raises:
        UserError: there is none of that name; the message names the nearest.
    """
    return str(find_config_file(name))


def get_config(name: str, trained: bool = False) -> CfgNode:
    """A recipe's configuration; with `trained`, MODEL.WEIGHTS is the published detector and not where training starts.

    Raises:
        UserError: no such recipe, or no detector of it was published.
    """
    return load_config(name, ["MODEL.WEIGHTS", trained_weights(name)] if trained else [])


def trained_weights(name: str) -> str:
    """MODEL.WEIGHTS of the detector that was published for a recipe.

    Raises:
        UserError: none was.
    """
    recipe = find_config_file(name).stem
    if recipe not in TRAINED_DETECTORS:
        raise UserError(f"no trained detector is published for {recipe}; there are some for {', '.join(TRAINED_DETECTORS)}")
    return f"resnest://{TRAINED_DETECTORS[recipe].weights}"


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A recipe's detector, in training mode and, if `trained`, with the published weights of the whole detector.

    Args:
        device: MODEL.DEVICE; None takes the GPU where there is one.

    Raises:
        UserError: as `get_config`; also where the weights cannot be had or do not fit.
    """
    cfg = get_config(name, trained).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    model = build_model(cfg)
    if trained:
        load_weights(model, resolve_weights(cfg.MODEL.WEIGHTS))
    return model
