"""A detector trained here as torchvision's `FasterRCNN` or `MaskRCNN`, with the same boxes and scores.

What cannot be the same:

| | in torchvision | here and in Detectron2 |
|---|---|---|
| order of proposals | by probability, which is the same number for different large logits | by logit |
| proposals thinner than 0.001 and boxes thinner than 0.01 pixel | dropped | kept if they are not empty |
| labels | from 1 on, 0 is the background | from 0 on, the background comes last |
| masks | probabilities at the image's size; 0.5 and more belong to the object | bool |
| training it further | torchvision's losses and sampling, one box for every class | the configuration's |
"""

import re
from functools import partial

from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from resnest_det.backbone.layers import get_norm
from resnest_det.backbone.loading import load_into
from resnest_det.configuration.model import assemble_model, resnest_arguments
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.tables import BACKBONES, tasks_of
from resnest_det.errors import UserError
from resnest_det.integrations.torchvision import NamedFeatures, ResNeStWithFPN
from resnest_det.integrations.torchvision_parts import AlignedRoIAlign, FixedAnchors, PixelTransform
from resnest_det.weights.downloads import resolve_weights
from resnest_det.weights.weights import read_weights

SMALLEST_PROPOSAL = 1e-3  # pixels, torchvision's own

# (here, there); `_name_there` has those whose numbers differ.
_NAMES = (
    (r"backbone\.bottom_up\.(.+)", r"backbone.body.\1"),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.(\w+)", r"rpn.head.conv.\1.0.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", r"roi_heads.mask_predictor.conv5_mask.\1"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    (r"(roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.\w+)", r"\1"),
)


def to_torchvision(config: str | CfgNode, checkpoint: str, overrides: list[str] | None = None) -> FasterRCNN:
    """The detector of a configuration and its checkpoint as torchvision's class, in evaluation mode.

    It takes what torchvision's detectors take: a list of RGB images (3, H, W) in 0 ... 1 of any size. `torch.jit.script` makes a
    file of it that needs nothing of this package. `classes` has the names of its labels, background first.

    Args:
        config: a configuration file or recipe, or a configuration that was read.
        checkpoint: what MODEL.WEIGHTS takes.
        overrides: KEY VALUE pairs, where `config` is a name.

    Raises:
        UserError: the configuration has a part that torchvision lacks, or the checkpoint does not hold the whole detector.
    """
    cfg = _read(config, overrides)
    weights = read_weights(resolve_weights(checkpoint))
    ours = assemble_model(cfg)
    load_into(ours, weights).require_whole("only a whole detector can be converted")
    model = _build(cfg, ours, weights.class_names.get("thing_classes"))
    model.load_state_dict(_translated(ours, bgr=cfg.INPUT.FORMAT == "BGR"))
    return model.eval()


def build_torchvision(config: str | CfgNode, overrides: list[str] | None = None) -> FasterRCNN:
    """The same, freshly initialised and in training mode: to train it as torchvision does.

    Raises:
        UserError: the configuration has a part that torchvision lacks.
    """
    cfg = _read(config, overrides)
    return _build(cfg, assemble_model(cfg), None)


def _read(config: str | CfgNode, overrides: list[str] | None) -> CfgNode:
    cfg = config if isinstance(config, CfgNode) else load_config(config, overrides or [])
    _check_convertible(cfg)
    return cfg


def _check_convertible(cfg: CfgNode) -> None:
    model = cfg.MODEL
    backbone = BACKBONES.get(model.BACKBONE.NAME)
    levels = [f"p{int(name[3:])}" for name in model.FPN.IN_FEATURES]
    allowed = {
        "MODEL.META_ARCHITECTURE": (model.META_ARCHITECTURE, "GeneralizedRCNN"),
        "MODEL.ROI_HEADS.NAME": (model.ROI_HEADS.NAME, "StandardROIHeads"),
        "MODEL.FPN.FUSE_TYPE": (model.FPN.FUSE_TYPE, "sum"),
        "MODEL.RPN.IN_FEATURES": (list(model.RPN.IN_FEATURES), [*levels, f"p{int(levels[-1][1:]) + 1}"]),
    }
    for key, (value, supported) in allowed.items():
        if value != supported:
            raise UserError(f"{key} {value!r} cannot be converted to torchvision; supported: {supported!r}")
    if backbone is None or not backbone.pyramid:
        raise UserError(f"MODEL.BACKBONE.NAME {model.BACKBONE.NAME!r} cannot be converted to torchvision: it has no pyramid")
    if set(model.RPN.CONV_DIMS) - {-1, model.FPN.OUT_CHANNELS}:
        raise UserError(
            f"MODEL.RPN.CONV_DIMS {list(model.RPN.CONV_DIMS)} cannot be converted to torchvision, where all of them have as many "
            f"channels as the pyramid, {model.FPN.OUT_CHANNELS}"
        )


def _build(cfg: CfgNode, ours: nn.Module, class_names: list[str] | None) -> FasterRCNN:
    """torchvision's model of the same shape as `ours`, freshly initialised."""
    rpn, heads, box, mask = cfg.MODEL.RPN, cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    channels, classes = cfg.MODEL.FPN.OUT_CHANNELS, heads.NUM_CLASSES + 1
    strides = ours.backbone.out_feature_strides
    numbers = {level: str(index) for index, level in enumerate(strides)}
    names = {feature: str(index) for index, feature in enumerate(cfg.MODEL.FPN.IN_FEATURES)}
    arguments = {name: value for name, value in resnest_arguments(cfg).items() if name != "out_features"}
    body = NamedFeatures(names=names, **arguments)
    backbone = ResNeStWithFPN(body, norm_layer=_norm_layer(cfg.MODEL.FPN.NORM), out_channels=channels)

    def pooler(head: CfgNode) -> AlignedRoIAlign:
        return AlignedRoIAlign(
            [numbers[level] for level in heads.IN_FEATURES],
            head.POOLER_RESOLUTION,
            head.POOLER_SAMPLING_RATIO,
            [strides[level] for level in heads.IN_FEATURES],
        )

    of_levels = [list(values) * (len(strides) if len(values) == 1 else 1) for values in _anchor_lists(cfg)]
    anchors = FixedAnchors(*of_levels, list(strides.values()), cfg.MODEL.ANCHOR_GENERATOR.OFFSET)
    sides = (box.POOLER_RESOLUTION,) * 2
    box_head = FastRCNNConvFCHead(
        (channels, *sides), [box.CONV_DIM] * box.NUM_CONV, [box.FC_DIM] * box.NUM_FC, _norm_layer(box.NORM)
    )
    parts = dict(
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, anchors.num_anchors_per_location()[0], len(rpn.CONV_DIMS)),
        rpn_pre_nms_top_n_train=rpn.PRE_NMS_TOPK_TRAIN,
        rpn_pre_nms_top_n_test=rpn.PRE_NMS_TOPK_TEST,
        rpn_post_nms_top_n_train=rpn.POST_NMS_TOPK_TRAIN,
        rpn_post_nms_top_n_test=rpn.POST_NMS_TOPK_TEST,
        rpn_nms_thresh=rpn.NMS_THRESH,
        rpn_bg_iou_thresh=rpn.IOU_THRESHOLDS[0],
        rpn_fg_iou_thresh=rpn.IOU_THRESHOLDS[-1],
        rpn_batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        rpn_positive_fraction=rpn.POSITIVE_FRACTION,
        box_roi_pool=pooler(box),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(ours.roi_heads.box_head.out_channels, classes),
        box_score_thresh=heads.SCORE_THRESH_TEST,
        box_nms_thresh=heads.NMS_THRESH_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        box_bg_iou_thresh=heads.IOU_THRESHOLDS[0],
        box_fg_iou_thresh=heads.IOU_THRESHOLDS[-1],
        box_batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
        box_positive_fraction=heads.POSITIVE_FRACTION,
        bbox_reg_weights=tuple(box.BBOX_REG_WEIGHTS),
    )
    if tasks_of(cfg).masks:
        layers = [mask.CONV_DIM] * mask.NUM_CONV
        model = MaskRCNN(
            backbone,
            mask_roi_pool=pooler(mask),
            mask_head=MaskRCNNHeads(channels, layers, 1, _norm_layer(mask.NORM)),
            mask_predictor=MaskRCNNPredictor(layers[-1] if layers else channels, mask.CONV_DIM, classes),
            **parts,
        )
    else:
        model = FasterRCNN(backbone, **parts)
    model.rpn.box_coder = BoxCoder(tuple(rpn.BBOX_REG_WEIGHTS))
    model.rpn.min_size = max(cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE, SMALLEST_PROPOSAL)
    order = -1 if cfg.INPUT.FORMAT == "BGR" else 1
    model.transform = PixelTransform(
        [cfg.INPUT.MIN_SIZE_TEST],
        cfg.INPUT.MAX_SIZE_TEST,
        cfg.MODEL.PIXEL_MEAN[::order],
        cfg.MODEL.PIXEL_STD[::order],
        ours.backbone.size_divisibility,
    )
    model.classes = ["__background__", *(class_names or [f"class {index}" for index in range(heads.NUM_CLASSES)])]
    return model


def _anchor_lists(cfg: CfgNode) -> tuple[list, list]:
    """Sizes and ratios as lists of lists: one for all levels or one for each."""
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    return tuple(
        values if isinstance(values[0], (list, tuple)) else [values] for values in (anchors.SIZES, anchors.ASPECT_RATIOS)
    )


def _norm_layer(name: str):
    return partial(get_norm, name) if name else None


def _translated(ours: nn.Module, *, bgr: bool) -> dict[str, Tensor]:
    """The parameters of a detector here under torchvision's names, in its order of classes."""
    heads = ours.roi_heads
    state = ours.state_dict()
    levels = {level: index for index, level in enumerate(ours.backbone.levels)}
    translated = {_name_there(name, levels, getattr(heads.box_head, "num_conv", 0)): value for name, value in state.items()}
    if bgr:
        first = next(name for name in translated if name.startswith("backbone.body.stem.") and name.endswith(".weight"))
        translated[first] = translated[first].flip(1)
    classes = heads.num_classes
    for name, value in translated.items():
        if name.startswith("roi_heads.box_predictor.cls_score."):
            translated[name] = value.roll(1, 0)  # the background comes first
        elif name.startswith("roi_heads.box_predictor.bbox_pred."):
            boxes = value.unflatten(0, (-1, 4))
            boxes = boxes.expand(classes, *boxes.shape[1:]) if len(boxes) == 1 else boxes
            translated[name] = _after_background(boxes).flatten(0, 1)
        elif name.startswith("roi_heads.mask_predictor.mask_fcn_logits."):
            translated[name] = _after_background(value.expand(classes, *value.shape[1:]) if len(value) == 1 else value)
    return translated


def _after_background(values: Tensor) -> Tensor:
    """(K, ...) as (K + 1, ...): the background's, which nothing reads, are zeros."""
    return nn.functional.pad(values, (0, 0) * (values.dim() - 1) + (1, 0))


def _name_there(name: str, levels: dict[int, int], box_convolutions: int) -> str:
    for pattern, there in _NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, there, name)
    found = re.fullmatch(r"(.+?)(\d+)(\.norm)?\.(\w+)", name)
    layer, number, norm, parameter = found.groups() if found else ("", "0", None, "")
    child, number = ("1" if norm else "0"), int(number)
    if layer in ("backbone.fpn_lateral", "backbone.fpn_output"):
        blocks = "inner_blocks" if layer.endswith("lateral") else "layer_blocks"
        return f"backbone.fpn.{blocks}.{levels[number]}.{child}.{parameter}"
    if layer == "roi_heads.box_head.fc":
        return f"roi_heads.box_head.{box_convolutions + 1 + 2 * (number - 1)}.{parameter}"
    if layer in ("roi_heads.box_head.conv", "roi_heads.mask_head.mask_fcn"):
        return f"{'.'.join(layer.split('.')[:2])}.{number - 1}.{child}.{parameter}"
    raise AssertionError(f"parameter {name} has no name in torchvision")
