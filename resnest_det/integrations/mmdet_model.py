"""The parts of a model in MMDetection's words, from the MODEL.* keys."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from resnest_det.configuration.model import resnest_arguments
from resnest_det.configuration.tables import tasks_of
from resnest_det.detector.pooler import CANONICAL_LEVEL, CANONICAL_SIZE
from resnest_det.integrations.mmdet_supported import group_width, is_resnest, untranslatable

_IOU_LOSSES = {"giou": "GIoULoss", "diou": "DIoULoss", "ciou": "CIoULoss"}


def is_cascade(cfg: CfgNode) -> bool:
    """Whether the regions go through a cascade of box heads."""
    return cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"


def model_config(cfg: CfgNode) -> dict:
    """`model` of MMDetection's configuration, for a `cfg` that `check_translatable` has accepted.

    Raises:
        UserError: anchors that MMDetection cannot have; the message names the key.
    """
    tasks, cascade = tasks_of(cfg), is_cascade(cfg)
    kind = "PanopticFPN" if tasks.panoptic else "CascadeRCNN" if cascade else "MaskRCNN" if tasks.masks else "FasterRCNN"
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
            norm_cfg=_norm_config(cfg.MODEL.FPN.NORM),
        ),
        rpn_head=_rpn_head(cfg),
        roi_head=roi_head,
        train_cfg=dict(rpn=_rpn_training(cfg), rpn_proposal=_proposals(cfg, "TRAIN"), rcnn=rcnn_training),
        test_cfg=dict(rpn=_proposals(cfg, "TEST"), rcnn=_detections(cfg)),
    )
    if tasks.panoptic:
        head, combine = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.PANOPTIC_FPN.COMBINE
        classes = dict(num_things_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES, num_stuff_classes=head.NUM_CLASSES - 1)
        model["semantic_head"] = dict(
            type="PanopticFPNHead",
            **classes,
            in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
            inner_channels=head.CONVS_DIM,
            start_level=0,
            end_level=len(head.IN_FEATURES),
            norm_cfg=_norm_config(head.NORM),
            loss_seg=dict(
                type="CrossEntropyLoss", ignore_index=head.IGNORE_VALUE, avg_non_ignore=True, loss_weight=head.LOSS_WEIGHT
            ),
        )
        model["panoptic_fusion_head"] = dict(type="HeuristicFusionHead", **classes)
        model["test_cfg"]["panoptic"] = dict(mask_overlap=combine.OVERLAP_THRESH, stuff_area_limit=combine.STUFF_AREA_LIMIT)
    return model


def _preprocessor(cfg: CfgNode) -> dict:
    tasks = tasks_of(cfg)
    return dict(
        type="DetDataPreprocessor",
        mean=list(cfg.MODEL.PIXEL_MEAN),
        std=list(cfg.MODEL.PIXEL_STD),
        bgr_to_rgb=cfg.INPUT.FORMAT == "RGB",
        pad_size_divisor=32,
        pad_mask=tasks.masks,
        **(dict(pad_seg=True, seg_pad_value=255) if tasks.panoptic else {}),
    )


def _norm_config(name: str) -> dict | None:
    """The `norm_cfg` of a norm's name."""
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
        norm_cfg=_norm_config(resnets.NORM),
        norm_eval=resnets.NORM == "FrozenBN",
        with_cp=bool(resnets.CHECKPOINT_STAGES),
    )
    if not is_resnest(cfg):
        return dict(type="ResNet", **shared)
    backbone = dict(
        type="ResNeStDet",
        **shared,
        groups=resnets.NUM_GROUPS,
        base_width=group_width(cfg),
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
    # MMDetection takes one size for each level, times scales that all levels share.
    base_sizes = [level_sizes[0] for level_sizes in sizes]
    scales = [size / sizes[0][0] for size in sizes[0]]
    for level_sizes in sizes:
        if [size / level_sizes[0] for size in level_sizes] != scales:
            raise untranslatable("MODEL.ANCHOR_GENERATOR.SIZES", anchors.SIZES, "the sizes of every level have the same ratios")
    if any(list(ratios) != list(anchors.ASPECT_RATIOS[0]) for ratios in anchors.ASPECT_RATIOS):
        raise untranslatable("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", anchors.ASPECT_RATIOS, "all levels share one list")
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
    """The box loss that the BBOX_REG_LOSS_* keys of MODEL.RPN or MODEL.ROI_BOX_HEAD ask for."""
    weight = section.BBOX_REG_LOSS_WEIGHT * factor
    if section.BBOX_REG_LOSS_TYPE in _IOU_LOSSES:
        return dict(reg_decoded_bbox=True, loss_bbox=dict(type=_IOU_LOSSES[section.BBOX_REG_LOSS_TYPE], loss_weight=weight))
    if section.SMOOTH_L1_BETA > 0:
        return dict(loss_bbox=dict(type="SmoothL1Loss", beta=section.SMOOTH_L1_BETA, loss_weight=weight))
    return dict(loss_bbox=dict(type="L1Loss", loss_weight=weight))


def _standard_roi_head(cfg: CfgNode) -> tuple[dict, dict]:
    """`roi_head`, and `train_cfg.rcnn`."""
    box = cfg.MODEL.ROI_BOX_HEAD
    head = dict(type="StandardRoIHead", bbox_roi_extractor=_extractor(cfg, box), bbox_head=_box_head(cfg, box.BBOX_REG_WEIGHTS))
    heads = cfg.MODEL.ROI_HEADS
    training = _region_training(cfg, heads.IOU_THRESHOLDS[0], heads.POSITIVE_FRACTION, heads.PROPOSAL_APPEND_GT)
    return head | _mask_branch(cfg), training


def _cascade_roi_head(cfg: CfgNode) -> tuple[dict, list[dict]]:
    """The same for a cascade: one `train_cfg.rcnn` for each stage."""
    cascade, heads = cfg.MODEL.ROI_BOX_CASCADE_HEAD, cfg.MODEL.ROI_HEADS
    stages = len(cascade.IOUS)
    head = dict(
        type="Detectron2CascadeRoIHead",
        num_stages=stages,
        stage_loss_weights=[1.0] * stages,
        bbox_roi_extractor=_extractor(cfg, cfg.MODEL.ROI_BOX_HEAD),
        bbox_head=[_box_head(cfg, weights) for weights in cascade.BBOX_REG_WEIGHTS],
    )
    # Later stages keep every region and add none.
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
    return dict(
        type="ConvFCBBoxHead",
        in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        roi_feat_size=box.POOLER_RESOLUTION,
        num_shared_convs=box.NUM_CONV,
        num_shared_fcs=box.NUM_FC,
        conv_out_channels=box.CONV_DIM,
        fc_out_channels=box.FC_DIM,
        norm_cfg=_norm_config(box.NORM),
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        bbox_coder=_box_coder(weights),
        reg_class_agnostic=box.CLS_AGNOSTIC_BBOX_REG,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        **_box_loss(box, _instance_loss_weight(cfg)),
    )


def _mask_branch(cfg: CfgNode) -> dict:
    if not tasks_of(cfg).masks:
        return {}
    mask = cfg.MODEL.ROI_MASK_HEAD
    head = dict(
        type="FCNMaskHead",
        num_convs=mask.NUM_CONV,
        in_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        conv_out_channels=mask.CONV_DIM,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        class_agnostic=mask.CLS_AGNOSTIC_MASK,
        norm_cfg=_norm_config(mask.NORM),
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=_instance_loss_weight(cfg)),
    )
    return dict(mask_roi_extractor=_extractor(cfg, mask), mask_head=head)


def _instance_loss_weight(cfg: CfgNode) -> float:
    return cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT if tasks_of(cfg).panoptic else 1.0


def _rpn_training(cfg: CfgNode) -> dict:
    rpn = cfg.MODEL.RPN
    negative, positive = rpn.IOU_THRESHOLDS
    return dict(
        # With 0, an object that no anchor touches would match every anchor.
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
    tasks, score = tasks_of(cfg), heads.SCORE_THRESH_TEST
    if tasks.panoptic:
        # A worse detection never suppresses a better one, so dropping it before suppression changes nothing.
        score = max(score, cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH)
    rcnn = dict(
        score_thr=score, nms=dict(type="nms", iou_threshold=heads.NMS_THRESH_TEST), max_per_img=cfg.TEST.DETECTIONS_PER_IMAGE
    )
    return rcnn | (dict(mask_thr_binary=0.5) if tasks.masks else {})
