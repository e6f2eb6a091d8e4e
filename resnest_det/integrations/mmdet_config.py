"""A configuration of this package as one of MMDetection, whole in one Python file.

The same weights give the same detections there: anchors, box coding, sampling of regions, thresholds, images and data sets are
the same. `DIFFERENCES` says what is not, and why.
"""

import ast
import keyword
import math
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from resnest_det.configuration.model import resnest_arguments
from resnest_det.data.coco import Metadata
from resnest_det.detector.pooler import CANONICAL_LEVEL, CANONICAL_SIZE
from resnest_det.errors import UserError
from resnest_det.integrations.mmdet_schedule import data_config, is_panoptic, runtime_config, schedule_config

DIFFERENCES = """\
what is not the same in MMDetection, and why:
  - Proposals are ranked by the probability of an object rather than by its logit: where that rounds to the same number, their
    order may be another.
  - A box may shrink by at most a factor of 62.5 in one step there, here by any; neither grows by more.
  - Boxes without area at the border of an image are detections there, and dropped here.
  - An image of greyscale and alpha (PNG mode LA) is laid on grey there, here its alpha is ignored.
  - A panoptic model gives only the panoptic map there, neither boxes nor masks, so that box AP is not evaluated. Counting PQ, and
    training, want the package panopticapi, which is no dependency of MMDetection.
  - A cascade is the head Detectron2CascadeRoIHead of this package: MMDetection's own averages logits over the stages rather than
    probabilities, which gives other scores, and has a mask head for each stage.
training, where the losses follow other paths:
  - No precise batch norm after training (TEST.PRECISE_BN): MMDetection has no such thing.
  - No test-time augmentation (TEST.AUG), no pictures of training (VIS_PERIOD), no check of TEST.EXPECTED_RESULTS.
  - Mask targets are cut from bitmaps, also where INPUT.MASK_FORMAT is polygon: MMDetection leaves out every object with a
    run-length mask if it reads polygons.
  - Of panoptic models, images are resized by OpenCV, without antialiasing, since MMDetection cannot resize labels of pixels with
    Pillow; the semantic loss is taken at a quarter of the image's size, against every fourth label.
  - Objects narrower or lower than a pixel train nothing, and things of a panoptic data set are the segments of its PNG files.
  - While WarmupCosineLR warms up, the rate is the product of the warm-up and the cosine; with SOLVER.BASE_LR_END above 0 it
    stays a trace higher afterwards.
"""

_HEADER = "# {title}, written by tools/to_mmdet.py. Nothing is below it; paths are those of the machine it was written on.\n"
_LEVELS = ("p2", "p3", "p4", "p5", "p6")

# Values that MMDetection can do; of keys that are not here every one that the built-in detector takes, or it is looked at below.
_CHOICES = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "PanopticFPN"),
    "MODEL.BACKBONE.NAME": ("build_resnest_fpn_backbone", "build_resnet_fpn_backbone"),
    "MODEL.RESNETS.OUT_FEATURES": (["res2", "res3", "res4", "res5"],),
    "MODEL.FPN.IN_FEATURES": (["res2", "res3", "res4", "res5"],),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.FPN.NORM": ("", "BN", "SyncBN", "GN"),
    "MODEL.RPN.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RPN.IN_FEATURES": ([*_LEVELS], [*_LEVELS[:4]]),
    "MODEL.ROI_HEADS.IOU_LABELS": ([0, 1],),
    "MODEL.ROI_HEADS.IN_FEATURES": tuple([*_LEVELS[:count]] for count in (4, 3, 2, 1)),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (False,),
    "MODEL.ROI_BOX_HEAD.NORM": ("", "BN", "SyncBN", "GN"),
    "MODEL.ROI_MASK_HEAD.NORM": ("", "BN", "SyncBN", "GN"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "SOLVER.RESCALE_INTERVAL": (False,),
    "SOLVER.BIAS_LR_FACTOR": (1.0,),
    "SOLVER.WEIGHT_DECAY_BIAS": (None,),
    "TEST.AP_MAX_DETECTIONS": (100,),
}
_SEMANTIC_CHOICES = {
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": tuple([*_LEVELS[:count]] for count in (4, 3, 2, 1)),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (4,),
    "MODEL.SEM_SEG_HEAD.NORM": ("", "BN", "SyncBN", "GN"),
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": (True,),
}
# What makes a ResNeSt rather than one of the many networks in between.
_RESNEST_CHOICES = {"MODEL.RESNETS.DEEP_STEM": (True,), "MODEL.RESNETS.AVG_DOWN": (True,)}
# MMDetection's ResNet, whose deformable convolutions have parameters of other names.
_RESNET_CHOICES = {
    "MODEL.RESNETS.DEPTH": (50, 101, 152),
    "MODEL.RESNETS.NUM_GROUPS": (1,),
    "MODEL.RESNETS.NORM": ("BN", "SyncBN", "FrozenBN"),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False, False, False, False],),
}
_IOU_LOSSES = {"giou": "GIoULoss", "diou": "DIoULoss", "ciou": "CIoULoss"}


def mmdet_config(cfg: CfgNode, *, test: Metadata, train: Sequence[Metadata], num_processes: int, checkpoint: str) -> dict:
    """MMDetection's configuration of the same model, data and training.

    Args:
        cfg: a configuration that `resnest_det.configuration.reading.load_config` has checked.
        test: the data set of DATASETS.TEST.
        train: those of DATASETS.TRAIN; with none, the configuration can be evaluated only.
        num_processes: that the training will run on, each with its share of SOLVER.IMS_PER_BATCH.
        checkpoint: path of the translated weights, which everything starts from.

    Raises:
        UserError: a value that MMDetection cannot do the same with; the message names its key.
    """
    _check(cfg)
    imports = ["resnest_det.integrations.mmdet"]
    if cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads":
        imports.append("resnest_det.integrations.mmdet_cascade")
    config = dict(custom_imports=dict(imports=imports, allow_failed_imports=False), default_scope="mmdet", model=_model(cfg))
    config |= data_config(cfg, test, train, num_processes)
    if train:
        config |= schedule_config(cfg)
    return config | runtime_config(cfg, checkpoint)


def config_text(config: dict, title: str) -> str:
    """The configuration as the Python file that MMEngine reads, which holds nothing but literals.

    MMEngine runs that file, and names of classes come from data: the text is parsed again and has to give `config`.

    Raises:
        UserError: a value that cannot be written as a literal, or that MMEngine would replace before it reads the file.
    """
    title = "".join(character if character.isprintable() else "?" for character in title)
    lines = [_HEADER.format(title=title)]
    lines += [f"{_identifier(name)} = {_literal(value, '')}\n" for name, value in config.items()]
    text = "".join(lines)
    if "{{" in text:
        raise UserError(f"{title}: a name or path holds '{{{{', which MMEngine replaces before it reads the file; choose another")
    if _read_back(text) != config:
        raise UserError(f"{title}: what was written for MMDetection does not read as the same configuration")
    return text


def _read_back(text: str) -> dict:
    """What the text assigns, without running it: literals, dict(name=literal) and list(range(literal, literal))."""

    def value(node: ast.expr):
        match node:
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
                return {each.arg: value(each.value) for each in keywords}
            case ast.Call(
                func=ast.Name(id="list"), args=[ast.Call(func=ast.Name(id="range"), args=ends, keywords=[])], keywords=[]
            ):
                return range(*map(value, ends))
            case ast.List(elts=items):
                return [value(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(value(item) for item in items)
        return ast.literal_eval(node)

    return {statement.targets[0].id: value(statement.value) for statement in ast.parse(text).body}


def _identifier(name) -> str:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{ascii(name)} cannot be the name of a setting in MMDetection's configuration")
    return name


def _literal(value, indent: str) -> str:
    """Python for dictionaries, lists and plain values, wrapped where it would be too long."""
    if isinstance(value, range):
        return f"list({value!r})"
    if isinstance(value, dict):
        items = [f"{_identifier(key)}={_literal(item, indent + '    ')}" for key, item in value.items()]
        open_, close = "dict(", ")"
    elif isinstance(value, (list, tuple)):
        items, open_, close = [_literal(item, indent + "    ") for item in value], *("[]" if isinstance(value, list) else "()")
        if isinstance(value, tuple) and len(items) == 1:
            close = ",)"
    elif value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return repr(value)
    else:
        raise UserError(f"{ascii(value)[:80]} cannot be written into MMDetection's configuration: it is no plain, finite value")
    short = open_ + ", ".join(items) + close
    if "\n" not in short and len(indent) + len(short) <= 100:
        return short
    return open_ + "\n" + "".join(f"{indent}    {item},\n" for item in items) + indent + close.lstrip(",")


def _check(cfg: CfgNode) -> None:
    choices = dict(_CHOICES)
    choices |= _RESNEST_CHOICES if cfg.MODEL.BACKBONE.NAME == "build_resnest_fpn_backbone" else _RESNET_CHOICES
    if is_panoptic(cfg):
        choices |= _SEMANTIC_CHOICES
    for key, allowed in choices.items():
        value = cfg
        for name in key.split("."):
            value = value[name]
        if value not in allowed:
            raise _untranslatable(key, value, "supported: " + ", ".join(repr(choice) for choice in allowed))
    rpn, resnets = cfg.MODEL.RPN, cfg.MODEL.RESNETS
    if len({rpn.CONV_DIMS[0] if size == -1 and i else size for i, size in enumerate(rpn.CONV_DIMS)}) != 1:
        raise _untranslatable("MODEL.RPN.CONV_DIMS", rpn.CONV_DIMS, "its convolutions have all the same number of channels")
    if (resnets.RES4_DILATION, resnets.RES5_DILATION) != (1, 1):
        raise _untranslatable("MODEL.RESNETS.RES5_DILATION", resnets.RES5_DILATION, "a pyramid needs 1")
    width = _group_width(cfg)
    if resnets.RES2_OUT_CHANNELS % 4 or (resnets.NUM_GROUPS == 1 and resnets.RES2_OUT_CHANNELS != 4 * width):
        raise _untranslatable(
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            resnets.RES2_OUT_CHANNELS,
            f"of a bottleneck of {width} channels (WIDTH_PER_GROUP) it is four times as many",
        )


def _untranslatable(key: str, value, why: str) -> UserError:
    return UserError(f"{key} {value!r} cannot be translated to MMDetection; {why}")


def _is_resnest(cfg: CfgNode) -> bool:
    return cfg.MODEL.BACKBONE.NAME == "build_resnest_fpn_backbone"


def _group_width(cfg: CfgNode) -> int:
    """Channels between the 1x1 convolutions of res2, of one group."""
    arguments = resnest_arguments(cfg)
    return int(arguments["bottleneck_channels"] * arguments["bottleneck_width"] / 64)


def _model(cfg: CfgNode) -> dict:
    panoptic, cascade = is_panoptic(cfg), cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"
    kind = "PanopticFPN" if panoptic else "CascadeRCNN" if cascade else "MaskRCNN" if cfg.MODEL.MASK_ON else "FasterRCNN"
    roi_head, rcnn_training = _cascade_roi_head(cfg) if cascade else _standard_roi_head(cfg)
    model = dict(
        type=kind,
        data_preprocessor=_preprocessor(cfg),
        backbone=_backbone(cfg),
        neck=dict(
            type="FPN",
            in_channels=[cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 2**stage for stage in range(4)],
            out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
            num_outs=len(cfg.MODEL.RPN.IN_FEATURES),
            norm_cfg=norm_config(cfg.MODEL.FPN.NORM),
        ),
        rpn_head=_rpn_head(cfg),
        roi_head=roi_head,
        train_cfg=dict(rpn=_rpn_training(cfg), rpn_proposal=_proposals(cfg, "TRAIN"), rcnn=rcnn_training),
        test_cfg=dict(rpn=_proposals(cfg, "TEST"), rcnn=_detections(cfg)),
    )
    if panoptic:
        head, combine = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PANOPTIC_FPN.COMBINE
        classes = dict(num_things_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES, num_stuff_classes=head.NUM_CLASSES - 1)
        model["semantic_head"] = dict(
            type="PanopticFPNHead",
            **classes,
            in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
            inner_channels=head.CONVS_DIM,
            start_level=0,
            end_level=len(head.IN_FEATURES),
            norm_cfg=norm_config(head.NORM),
            loss_seg=dict(
                type="CrossEntropyLoss", ignore_index=head.IGNORE_VALUE, avg_non_ignore=True, loss_weight=head.LOSS_WEIGHT
            ),
        )
        model["panoptic_fusion_head"] = dict(type="HeuristicFusionHead", **classes)
        model["test_cfg"]["panoptic"] = dict(mask_overlap=combine.OVERLAP_THRESH, stuff_area_limit=combine.STUFF_AREA_LIMIT)
    return model


def _preprocessor(cfg: CfgNode) -> dict:
    panoptic = is_panoptic(cfg)
    return dict(
        type="DetDataPreprocessor",
        mean=list(cfg.MODEL.PIXEL_MEAN),
        std=list(cfg.MODEL.PIXEL_STD),
        bgr_to_rgb=cfg.INPUT.FORMAT == "RGB",
        pad_size_divisor=32,
        pad_mask=cfg.MODEL.MASK_ON,
        **(dict(pad_seg=True, seg_pad_value=255) if panoptic else {}),
    )


def norm_config(name: str) -> dict | None:
    """`norm_cfg` for the name of a norm."""
    if name == "GN":
        return dict(type="GN", num_groups=32, requires_grad=True)
    if name == "FrozenBN":
        return dict(type="BN", requires_grad=False)
    return dict(type=name, requires_grad=True) if name else None


def _backbone(cfg: CfgNode) -> dict:
    resnets, arguments = cfg.MODEL.RESNETS, resnest_arguments(cfg)
    shared = dict(
        depth=resnets.DEPTH,
        base_channels=resnets.RES2_OUT_CHANNELS // 4,
        stem_channels=2 * arguments["stem_width"],
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        style="caffe" if resnets.STRIDE_IN_1X1 else "pytorch",
        frozen_stages=cfg.MODEL.BACKBONE.FREEZE_AT - 1,
        norm_cfg=norm_config(resnets.NORM),
        norm_eval=resnets.NORM == "FrozenBN",
        with_cp=bool(resnets.CHECKPOINT_STAGES),
    )
    if not _is_resnest(cfg):
        return dict(type="ResNet", **shared)
    backbone = dict(
        type="ResNeStDet",
        **shared,
        groups=resnets.NUM_GROUPS,
        base_width=_group_width(cfg),
        radix=resnets.RADIX,
        avg_down_stride=resnets.AVD,
        avd_first=resnets.AVD_FIRST,
    )
    if any(resnets.DEFORM_ON_PER_STAGE):
        backbone["dcn"] = dict(type="DCNv2" if resnets.DEFORM_MODULATED else "DCN", deform_groups=resnets.DEFORM_NUM_GROUPS)
        backbone["stage_with_dcn"] = tuple(resnets.DEFORM_ON_PER_STAGE)
    return backbone


def _rpn_head(cfg: CfgNode) -> dict:
    rpn = cfg.MODEL.RPN
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return dict(
        type="RPNHead",
        in_channels=channels,
        feat_channels=channels if rpn.CONV_DIMS[0] == -1 else rpn.CONV_DIMS[0],
        num_convs=len(rpn.CONV_DIMS),
        anchor_generator=_anchors(cfg),
        bbox_coder=_box_coder(rpn.BBOX_REG_WEIGHTS),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=rpn.LOSS_WEIGHT),
        **_box_loss(rpn, rpn.LOSS_WEIGHT),
    )


def _anchors(cfg: CfgNode) -> dict:
    anchors, levels = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.RPN.IN_FEATURES
    strides = [4 * 2**level for level in range(len(levels))]
    sizes = list(anchors.SIZES) * (len(levels) if len(anchors.SIZES) == 1 else 1)
    # There, sizes are the size of a level times scales that all levels have.
    base_sizes = [level_sizes[0] for level_sizes in sizes]
    scales = [size / sizes[0][0] for size in sizes[0]]
    for level_sizes in sizes:
        if [size / level_sizes[0] for size in level_sizes] != scales:
            raise _untranslatable("MODEL.ANCHOR_GENERATOR.SIZES", anchors.SIZES, "all sizes of a level grow by one factor")
    if any(list(ratios) != list(anchors.ASPECT_RATIOS[0]) for ratios in anchors.ASPECT_RATIOS):
        raise _untranslatable("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", anchors.ASPECT_RATIOS, "all levels have the same")
    return dict(
        type="AnchorGenerator",
        strides=strides,
        base_sizes=base_sizes,
        scales=scales,
        ratios=list(anchors.ASPECT_RATIOS[0]),
        scale_major=False,
        centers=[(anchors.OFFSET * stride,) * 2 for stride in strides],
    )


def _box_coder(weights: Sequence[float]) -> dict:
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1 / weight for weight in weights])


def _box_loss(section: CfgNode, factor: float) -> dict:
    """Arguments for the loss of boxes by the BBOX_REG_LOSS_* keys of MODEL.RPN or MODEL.ROI_BOX_HEAD."""
    weight = section.BBOX_REG_LOSS_WEIGHT * factor
    if section.BBOX_REG_LOSS_TYPE in _IOU_LOSSES:
        return dict(reg_decoded_bbox=True, loss_bbox=dict(type=_IOU_LOSSES[section.BBOX_REG_LOSS_TYPE], loss_weight=weight))
    if section.SMOOTH_L1_BETA > 0:
        return dict(loss_bbox=dict(type="SmoothL1Loss", beta=section.SMOOTH_L1_BETA, loss_weight=weight))
    return dict(loss_bbox=dict(type="L1Loss", loss_weight=weight))


def _standard_roi_head(cfg: CfgNode) -> tuple[dict, dict]:
    """The heads on regions, and how they train."""
    box = cfg.MODEL.ROI_BOX_HEAD
    head = dict(type="StandardRoIHead", bbox_roi_extractor=_extractor(cfg, box), bbox_head=_box_head(cfg, box.BBOX_REG_WEIGHTS))
    heads = cfg.MODEL.ROI_HEADS
    training = _region_training(cfg, heads.IOU_THRESHOLDS[0], heads.POSITIVE_FRACTION, heads.PROPOSAL_APPEND_GT)
    return head | _mask_branch(cfg), training


def _cascade_roi_head(cfg: CfgNode) -> tuple[dict, list[dict]]:
    cascade, heads = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_HEADS
    stages = len(cascade.IOUS)
    head = dict(
        type="Detectron2CascadeRoIHead",
        num_stages=stages,
        stage_loss_weights=[1.0] * stages,
        bbox_roi_extractor=_extractor(cfg, cfg.MODEL.ROI_BOX_HEAD),
        bbox_head=[_box_head(cfg, weights) for weights in cascade.BBOX_REG_WEIGHTS],
    )
    # After the first stage no region is left out, and none is added.
    first, *later = cascade.IOUS
    training = [_region_training(cfg, first, heads.POSITIVE_FRACTION, heads.PROPOSAL_APPEND_GT)]
    return head | _mask_branch(cfg), training + [_region_training(cfg, iou, 1.0, False) for iou in later]


def _extractor(cfg: CfgNode, section: CfgNode) -> dict:
    strides = [4 * 2**level for level in range(len(cfg.MODEL.ROI_HEADS.IN_FEATURES))]
    return dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=section.POOLER_RESOLUTION, sampling_ratio=section.POOLER_SAMPLING_RATIO),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        featmap_strides=strides,
        finest_scale=CANONICAL_SIZE // 2 ** (CANONICAL_LEVEL - 2),  # of p2
    )


def _box_head(cfg: CfgNode, weights: Sequence[float]) -> dict:
    box = cfg.MODEL.ROI_BOX_HEAD
    panoptic = is_panoptic(cfg)
    return dict(
        type="ConvFCBBoxHead",
        in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        roi_feat_size=box.POOLER_RESOLUTION,
        num_shared_convs=box.NUM_CONV,
        num_shared_fcs=box.NUM_FC,
        conv_out_channels=box.CONV_DIM,
        fc_out_channels=box.FC_DIM,
        norm_cfg=norm_config(box.NORM),
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        bbox_coder=_box_coder(weights),
        reg_class_agnostic=box.CLS_AGNOSTIC_BBOX_REG,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        **_box_loss(box, cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT if panoptic else 1.0),
    )


def _mask_branch(cfg: CfgNode) -> dict:
    if not cfg.MODEL.MASK_ON:
        return {}
    mask, panoptic = cfg.MODEL.ROI_MASK_HEAD, is_panoptic(cfg)
    weight = cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT if panoptic else 1.0
    head = dict(
        type="FCNMaskHead",
        num_convs=mask.NUM_CONV,
        in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        conv_out_channels=mask.CONV_DIM,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        class_agnostic=mask.CLS_AGNOSTIC_MASK,
        norm_cfg=norm_config(mask.NORM),
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=weight),
    )
    return dict(mask_roi_extractor=_extractor(cfg, mask), mask_head=head)


def _rpn_training(cfg: CfgNode) -> dict:
    rpn = cfg.MODEL.RPN
    negative, positive = rpn.IOU_THRESHOLDS
    return dict(
        # With 0 an object that no anchor touches would have all anchors.
        assigner=_assigner(positive, negative, min_pos_iou=1e-6, match_low_quality=True),
        sampler=_sampler(rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, add_gt_as_proposals=False),
        allowed_border=rpn.BOUNDARY_THRESH,
        pos_weight=-1,
        debug=False,
    )


def _region_training(cfg: CfgNode, iou: float, fraction: float, add_true_boxes: bool) -> dict:
    return dict(
        assigner=_assigner(iou, iou, min_pos_iou=iou, match_low_quality=False),
        sampler=_sampler(cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, fraction, add_gt_as_proposals=add_true_boxes),
        mask_size=2 * cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION,
        pos_weight=-1,
        debug=False,
    )


def _assigner(positive: float, negative: float, *, min_pos_iou: float, match_low_quality: bool) -> dict:
    return dict(
        type="MaxIoUAssigner",
        pos_iou_thr=positive,
        neg_iou_thr=negative,
        min_pos_iou=min_pos_iou,
        match_low_quality=match_low_quality,
        ignore_iof_thr=-1,
    )


def _sampler(num: int, fraction: float, *, add_gt_as_proposals: bool) -> dict:
    return dict(type="RandomSampler", num=num, pos_fraction=fraction, neg_pos_ub=-1, add_gt_as_proposals=add_gt_as_proposals)


def _proposals(cfg: CfgNode, when: str) -> dict:
    rpn = cfg.MODEL.RPN
    return dict(
        nms_pre=rpn[f"PRE_NMS_TOPK_{when}"],
        max_per_img=rpn[f"POST_NMS_TOPK_{when}"],
        nms=dict(type="nms", iou_threshold=rpn.NMS_THRESH),
        min_bbox_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
    )


def _detections(cfg: CfgNode) -> dict:
    heads = cfg.MODEL.ROI_HEADS
    score = heads.SCORE_THRESH_TEST
    if is_panoptic(cfg):
        # No worse detection suppresses a better one: leaving them out before or after suppression is the same.
        score = max(score, cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH)
    rcnn = dict(
        score_thr=score, nms=dict(type="nms", iou_threshold=heads.NMS_THRESH_TEST), max_per_img=cfg.TEST.DETECTIONS_PER_IMAGE
    )
    return rcnn | (dict(mask_thr_binary=0.5) if cfg.MODEL.MASK_ON else {})
