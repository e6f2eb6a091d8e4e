"""The bundled recipes by name, with the functions of Detectron2's `model_zoo`.

>>> from resnest_det import model_zoo
>>> model = model_zoo.get("mask_rcnn_ResNeSt50_FPN", trained=True).eval()
"""

from dataclasses import dataclass

from fvcore.common.config import CfgNode
from torch import nn

from resnest_det.backbone.loading import load_weights
from resnest_det.configuration.model import build_model
from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.reading import find_config_file, load_config
from resnest_det.errors import UserError
from resnest_det.weights.downloads import resolve_weights


@dataclass(frozen=True)
class TrainedDetector:
    """A model that the authors trained: its weights (a name in `WEIGHT_FILES`) and published figures, in percent.

    AP and PQ are of COCO val2017; pixel accuracy and mean IoU of the recipe's DATASETS.TEST, with TEST.AUG.ENABLED.
    """

    weights: str
    box_ap: float | None = None
    mask_ap: float | None = None
    panoptic_quality: float | None = None
    pixel_accuracy: float | None = None
    mean_iou: float | None = None


# By recipe.
TRAINED_DETECTORS: dict[str, TrainedDetector] = {
    "faster_rcnn_ResNet50_FPN": TrainedDetector("faster_rcnn_R_50_FPN_syncbn_range-scale_1x", 39.25),
    "faster_rcnn_ResNet101_FPN": TrainedDetector("faster_rcnn_R_101_FPN_syncbn_range-scale_1x", 41.37),
    "faster_rcnn_ResNeSt50_FPN": TrainedDetector("faster_rcnn_ResNeSt_50_FPN_syncbn_range-scale_1x", 42.33),
    "faster_rcnn_ResNeSt50_FPN_dcn": TrainedDetector("faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x", 44.11),
    "faster_rcnn_ResNeSt101_FPN": TrainedDetector("faster_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x", 44.72),
    "cascade_rcnn_ResNet50_FPN": TrainedDetector("faster_cascade_rcnn_R_50_FPN_syncbn_range-scale_1x", 42.52),
    "cascade_rcnn_ResNet101_FPN": TrainedDetector("faster_cascade_rcnn_R_101_FPN_syncbn_range-scale_1x", 44.03),
    "cascade_rcnn_ResNeSt50_FPN": TrainedDetector("faster_cascade_rcnn_ResNeSt_50_FPN_syncbn_range-scale-1x", 45.41),
    "cascade_rcnn_ResNeSt101_FPN": TrainedDetector("faster_cascade_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x", 47.50),
    "cascade_rcnn_ResNeSt200_FPN": TrainedDetector("faster_cascade_rcnn_ResNeSt_200_FPN_syncbn_range-scale_1x", 49.03),
    "mask_rcnn_ResNet50_FPN": TrainedDetector("mask_rcnn_R_50_FPN_syncbn_1x", 39.97, 36.05),
    "mask_rcnn_ResNet101_FPN": TrainedDetector("mask_rcnn_R_101_FPN_syncbn_1x", 41.78, 37.51),
    "mask_rcnn_ResNeSt50_FPN": TrainedDetector("mask_rcnn_ResNeSt_50_FPN_syncBN_1x", 42.81, 38.14),
    "mask_rcnn_ResNeSt101_FPN": TrainedDetector("mask_rcnn_ResNeSt_101_FPN_syncBN_1x", 45.75, 40.65),
    "cascade_mask_rcnn_ResNet50_FPN": TrainedDetector("mask_cascade_rcnn_R_50_FPN_syncbn_1x", 43.06, 37.19),
    "cascade_mask_rcnn_ResNet101_FPN": TrainedDetector("mask_cascade_rcnn_R_101_FPN_syncbn_1x", 44.79, 38.52),
    "cascade_mask_rcnn_ResNeSt50_FPN": TrainedDetector("mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x", 46.19, 39.55),
    "cascade_mask_rcnn_ResNeSt101_FPN": TrainedDetector("mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x", 48.30, 41.56),
    "cascade_mask_rcnn_ResNeSt200_FPN_3x": TrainedDetector(
        "mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x", 50.54, 44.21
    ),
    "cascade_mask_rcnn_ResNeSt200_FPN_dcn_3x": TrainedDetector(
        "mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x", 50.91, 44.50
    ),
    "panoptic_cascade_ResNeSt200_FPN_3x": TrainedDetector("panoptic_ResNeSt_200_FPN_syncBN_tricks_3x", 51.00, 43.68, 47.90),
    **{
        recipe: TrainedDetector(weights, pixel_accuracy=pixel_accuracy, mean_iou=mean_iou)
        for recipe, weights, pixel_accuracy, mean_iou in (
            ("fcn_ResNeSt50_ade20k", "fcn_resnest50_ade", 80.18, 42.94),
            ("deeplabv3_ResNeSt50_ade20k", "deeplab_resnest50_ade", 81.17, 45.12),
            ("deeplabv3_ResNeSt101_ade20k", "deeplab_resnest101_ade", 82.07, 46.91),
            ("deeplabv3_ResNeSt200_ade20k", "deeplab_resnest200_ade", 82.45, 48.36),
            ("deeplabv3_ResNeSt269_ade20k", "deeplab_resnest269_ade", 82.62, 47.60),
            ("fcn_ResNeSt50_pascal_context", "fcn_resnest50_pcontext", 79.19, 51.98),
            ("deeplabv3_ResNeSt50_pascal_context", "deeplab_resnest50_pcontext", 80.41, 53.19),
            ("deeplabv3_ResNeSt101_pascal_context", "deeplab_resnest101_pcontext", 81.91, 56.49),
            ("deeplabv3_ResNeSt200_pascal_context", "deeplab_resnest200_pcontext", 82.50, 58.37),
            ("deeplabv3_ResNeSt269_pascal_context", "deeplab_resnest269_pcontext", 83.06, 58.92),
        )
    },
}


def get_config_file(name: str) -> str:
    """The path of a recipe's YAML file, or of a config for MMDetection if the name ends in `.py`.

    Raises:
        UserError: there is none of that name; the message names the nearest.
    """
    return str(find_config_file(name))


def get_config(name: str, trained: bool = False) -> CfgNode:
    """A recipe's configuration; with `trained`, MODEL.WEIGHTS is the published detector, not the weights training starts from.

    Raises:
        UserError: there is no such recipe, or no detector was published for it.
    """
    return load_config(name, ["MODEL.WEIGHTS", trained_weights(name)] if trained else [])


def trained_weights(name: str) -> str:
    """MODEL.WEIGHTS of the detector published for a recipe.

    Raises:
        UserError: there is none.
    """
    recipe = find_config_file(name).stem
    if recipe not in TRAINED_DETECTORS:
        raise UserError(f"no trained detector is published for {recipe}; there are some for {', '.join(TRAINED_DETECTORS)}")
    return f"resnest://{TRAINED_DETECTORS[recipe].weights}"


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A recipe's detector in training mode; if `trained`, with the published weights of the whole detector.

    Args:
        device: MODEL.DEVICE; None takes a GPU if there is one.

    Raises:
        UserError: see `get_config`; or the weights cannot be found or do not fit.
    """
    cfg = get_config(name, trained)
    cfg = with_values(cfg, {"MODEL.DEVICE": device or cfg.MODEL.DEVICE})
    model = build_model(cfg)
    if trained:
        load_weights(model, resolve_weights(cfg.MODEL.WEIGHTS))
    return model
