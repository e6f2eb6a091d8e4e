"""The border between configuration and detector: a configuration becomes the plain arguments of the model's parts."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resnest_det.backbone.layers import normed_alone
from resnest_det.backbone.resnest import BLOCKS_PER_STAGE, STEM_WIDTH, ResNeSt
from resnest_det.backbone.split_attention import Deformable, SplitAttentionConv2d
from resnest_det.configuration.semantic import build_auxiliary_head, build_sem_seg_head, size_divisibility
from resnest_det.configuration.tables import BACKBONES, tasks_of
from resnest_det.detector.anchors import AnchorGenerator
from resnest_det.detector.box_head import BoxPredictor, FastRCNNConvFCHead
from resnest_det.detector.boxes import BoxLoss
from resnest_det.detector.cascade import CascadeROIHeads
from resnest_det.detector.fpn import FPN
from resnest_det.detector.mask_head import MaskRCNNConvUpsampleHead
from resnest_det.detector.panoptic import FusionLimits, PanopticFPN
from resnest_det.detector.pooler import RegionPooler
from resnest_det.detector.pooling_pyramid import PooledConv
from resnest_det.detector.rcnn import GeneralizedRCNN
from resnest_det.detector.roi_heads import RegionSampler, StandardROIHeads
from resnest_det.detector.rpn import RPN, RPNHead
from resnest_det.detector.semantic_augmentation import PixelViews, SemanticSegmentorWithTTA
from resnest_det.detector.semantic_segmentor import SemanticSegmentor
from resnest_det.detector.test_time_augmentation import GeneralizedRCNNWithTTA
from resnest_det.distributed import get_world_size
from resnest_det.errors import UserError, naming, shown

MODELS = {"GeneralizedRCNN": GeneralizedRCNN, "PanopticFPN": PanopticFPN, "SemanticSegmentor": SemanticSegmentor}

# (MODEL.RESNETS.RES4_DILATION, RES5_DILATION) to the stride of res5
OUTPUT_STRIDES = {(1, 1): 32, (1, 2): 16, (2, 4): 8}


def build_model(cfg: CfgNode) -> nn.Module:
    """The detector of a configuration, freshly initialised, in training mode and on MODEL.DEVICE.

    Raises:
        UserError: values that do not fit together, named by their keys.
    """
    return assemble_model(cfg).to(resolve_device(cfg.MODEL.DEVICE))


class _Unfilled(TorchFunctionMode):
    """Tensors are not given their first values."""

    FILLING = {
        *(Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_),
        *(nn.init.normal_, nn.init.uniform_, nn.init.constant_, nn.init.kaiming_uniform_),
    }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.FILLING:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """What is built inside is on the meta device: shapes without values, in no memory and little time.

    `torch.device("meta")` alone takes twice as long, most of it for random values that nothing will hold.
    """
    with torch.device("meta"), _Unfilled():
        yield


def assemble_model(cfg: CfgNode) -> nn.Module:
    """`build_model` wherever torch builds at the moment, see also `shapes_only`."""
    tasks, backbone = tasks_of(cfg), build_backbone(cfg)
    parts = dict(backbone=backbone, pixel_mean=cfg.MODEL.PIXEL_MEAN, pixel_std=cfg.MODEL.PIXEL_STD)
    if tasks.objects:
        parts |= dict(proposal_generator=build_rpn(cfg, backbone), roi_heads=build_roi_heads(cfg, backbone))
    if tasks.pixels:
        parts |= dict(sem_seg_head=build_sem_seg_head(cfg, backbone))
    if tasks.pixels and not tasks.objects:
        parts |= dict(auxiliary_head=build_auxiliary_head(cfg, backbone), size_divisibility=size_divisibility(cfg, backbone))
    if tasks.objects and tasks.pixels:
        panoptic = cfg.MODEL.PANOPTIC_FPN
        combine = panoptic.COMBINE
        limits = FusionLimits(combine.OVERLAP_THRESH, combine.STUFF_AREA_LIMIT, combine.INSTANCES_CONFIDENCE_THRESH)
        parts |= dict(instance_loss_weight=panoptic.INSTANCE_LOSS_WEIGHT, fusion=limits if tasks.panoptic else None)
    with naming({"pixel_mean": "MODEL.PIXEL_MEAN"}):
        return MODELS[cfg.MODEL.META_ARCHITECTURE](**parts)


def build_test_time_augmentation(
    cfg: CfgNode, model: GeneralizedRCNN | SemanticSegmentor
) -> GeneralizedRCNNWithTTA | SemanticSegmentorWithTTA:
    """`model` looking at each image in the sizes of TEST.AUG."""
    augmentation = cfg.TEST.AUG
    if not tasks_of(cfg).objects:
        return SemanticSegmentorWithTTA(model, build_pixel_views(cfg))
    return GeneralizedRCNNWithTTA(
        model, short_sides=augmentation.MIN_SIZES, max_side=augmentation.MAX_SIZE, flip=augmentation.FLIP
    )


def build_pixel_views(cfg: CfgNode) -> PixelViews:
    """What TEST.AUG says of a model of pixels.

    Raises:
        UserError: an impossible value; the message names the key.
    """
    aug = cfg.TEST.AUG
    with naming({name: f"TEST.AUG.{name.upper()}" for name in ("scales", "window", "combine")}):
        return PixelViews(tuple(aug.SCALES), aug.LONG_SIDE, aug.FLIP, tuple(aug.WINDOW), aug.COMBINE)


def resolve_device(name: str) -> torch.device:
    """The device that MODEL.DEVICE means: "auto" is this process's GPU where there is one and the CPU otherwise.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"MODEL.DEVICE {name!r}: this machine has no GPU that torch can use; use 'cpu' or 'auto'")
    return torch.device(name)


def resnest_arguments(cfg: CfgNode) -> dict:
    """Arguments of `ResNeSt` for MODEL.RESNETS: a ResNeSt, or the plain ResNet of `build_resnet_fpn_backbone` and its like.

    The plain ResNet leaves out everything that ResNeSt adds, whatever the keys for that say, as Detectron2's own does.
    """
    resnets = cfg.MODEL.RESNETS
    plain = _is_plain_resnet(cfg)
    dilations = (resnets.RES4_DILATION, resnets.RES5_DILATION)
    if dilations not in OUTPUT_STRIDES:
        raise UserError(
            f"MODEL.RESNETS.RES4_DILATION {dilations[0]} with RES5_DILATION {dilations[1]}: "
            "supported are 1 with 1, 1 with 2, 2 with 4"
        )
    # With a plain ResNet, and in the wrapper with a shallow stem, STEM_OUT_CHANNELS counts; a deep stem has its depth's width.
    deep_stem = resnets.DEEP_STEM and not plain
    stem_width = STEM_WIDTH[resnets.DEPTH] if deep_stem else resnets.STEM_OUT_CHANNELS // 2
    return dict(
        blocks=BLOCKS_PER_STAGE[resnets.DEPTH],
        stem_width=stem_width,
        in_channels=len(cfg.MODEL.PIXEL_MEAN),
        radix=0 if plain else resnets.RADIX,
        groups=resnets.NUM_GROUPS,
        bottleneck_width=64 if plain else resnets.BOTTLENECK_WIDTH,
        bottleneck_channels=resnets.WIDTH_PER_GROUP,
        res2_out_channels=resnets.RES2_OUT_CHANNELS,
        deep_stem=deep_stem,
        avd=resnets.AVD and not plain,
        avd_first=resnets.AVD_FIRST and not plain,
        avg_down=resnets.AVG_DOWN and not plain,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        norm=resnets.NORM,
        output_stride=OUTPUT_STRIDES[dilations],
        dilation_style=resnets.DILATION_STYLE,
        multi_grid=tuple(resnets.RES5_MULTI_GRID) if cfg.MODEL.BACKBONE.NAME == "build_resnest_deeplab_backbone" else (),
        deform_on_per_stage=tuple(resnets.DEFORM_ON_PER_STAGE),
        deformable=Deformable(resnets.DEFORM_MODULATED, resnets.DEFORM_NUM_GROUPS),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        checkpoint_stages=tuple(resnets.CHECKPOINT_STAGES),
        out_features=tuple(resnets.OUT_FEATURES),
    )


def _is_plain_resnet(cfg: CfgNode) -> bool:
    # Backbones that a host has registered beside these are ResNeSts under another pyramid.
    row = BACKBONES.get(cfg.MODEL.BACKBONE.NAME)
    return row is not None and not row.split_attention


def build_backbone(cfg: CfgNode) -> FPN | ResNeSt:
    """The bottom-up network, with the pyramid over it unless MODEL.BACKBONE.NAME is one without."""
    fpn, arguments = cfg.MODEL.FPN, resnest_arguments(cfg)
    try:
        bottom_up = ResNeSt(**arguments)
    except UserError as error:
        raise UserError(f"MODEL.RESNETS: {error}") from None
    if not BACKBONES[cfg.MODEL.BACKBONE.NAME].pyramid:
        return bottom_up
    with naming({"in_features": "MODEL.FPN.IN_FEATURES", "fuse_type": "MODEL.FPN.FUSE_TYPE"}):
        return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, norm=fpn.NORM, fuse_type=fpn.FUSE_TYPE)


def build_rpn(cfg: CfgNode, backbone: FPN) -> RPN:
    """The proposal network over the levels in MODEL.RPN.IN_FEATURES."""
    rpn, anchors = cfg.MODEL.RPN, cfg.MODEL.ANCHOR_GENERATOR
    strides = _strides(backbone, rpn.IN_FEATURES, "MODEL.RPN.IN_FEATURES")
    with naming({"sizes": "MODEL.ANCHOR_GENERATOR.SIZES", "aspect_ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"}):
        anchor_generator = AnchorGenerator(anchors.SIZES, anchors.ASPECT_RATIOS, strides, anchors.OFFSET)
    return RPN(
        in_features=rpn.IN_FEATURES,
        head=RPNHead(cfg.MODEL.FPN.OUT_CHANNELS, anchor_generator.anchors_per_position, rpn.CONV_DIMS),
        anchor_generator=anchor_generator,
        iou_thresholds=rpn.IOU_THRESHOLDS,
        iou_labels=rpn.IOU_LABELS,
        boundary_threshold=rpn.BOUNDARY_THRESH,
        batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        pre_nms_topk=(rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        post_nms_topk=(rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        nms_threshold=rpn.NMS_THRESH,
        min_box_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        box_loss=_box_loss(rpn, "MODEL.RPN", rpn.BBOX_REG_WEIGHTS, rpn.LOSS_WEIGHT),
        cls_loss_weight=rpn.LOSS_WEIGHT,
    )


def _box_loss(section: CfgNode, name: str, weights: Sequence[float], factor: float = 1.0) -> BoxLoss:
    keys = {"kind": "BBOX_REG_LOSS_TYPE", "beta": "SMOOTH_L1_BETA", "weights": "BBOX_REG_WEIGHTS"}
    with naming({argument: f"{name}.{key}" for argument, key in keys.items()}):
        return BoxLoss(section.BBOX_REG_LOSS_TYPE, section.SMOOTH_L1_BETA, tuple(weights), section.BBOX_REG_LOSS_WEIGHT * factor)


def build_roi_heads(cfg: CfgNode, backbone: FPN) -> StandardROIHeads:
    """Box head or cascade of box heads and, where MODEL.MASK_ON, the mask head."""
    heads, box, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    strides = _strides(backbone, heads.IN_FEATURES, "MODEL.ROI_HEADS.IN_FEATURES")
    with naming({"strides": "MODEL.ROI_HEADS.IN_FEATURES: strides"}):
        box_pooler = RegionPooler(box.POOLER_RESOLUTION, strides, box.POOLER_SAMPLING_RATIO)
    arguments = dict(
        in_features=heads.IN_FEATURES,
        sampler=RegionSampler(
            heads.NUM_CLASSES,
            heads.IOU_THRESHOLDS,
            heads.IOU_LABELS,
            heads.BATCH_SIZE_PER_IMAGE,
            heads.POSITIVE_FRACTION,
            heads.PROPOSAL_APPEND_GT,
        ),
        box_pooler=box_pooler,
        train_on_predicted_boxes=box.TRAIN_ON_PRED_BOXES,
    )
    if tasks_of(cfg).masks:
        num_masks = 1 if mask.CLS_AGNOSTIC_MASK else heads.NUM_CLASSES
        arguments["mask_pooler"] = RegionPooler(mask.POOLER_RESOLUTION, strides, mask.POOLER_SAMPLING_RATIO)
        arguments["mask_head"] = MaskRCNNConvUpsampleHead(channels, num_masks, mask.NUM_CONV, mask.CONV_DIM, mask.NORM)
    if heads.NAME == "StandardROIHeads":
        head, predictor = _build_stage(cfg, box.BBOX_REG_WEIGHTS)
        return StandardROIHeads(box_head=head, box_predictor=predictor, **arguments)

    cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
    stages = [_build_stage(cfg, weights) for weights in cascade.BBOX_REG_WEIGHTS]
    keys = {"iou_thresholds": "MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "class_agnostic": "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"}
    with naming(keys):
        return CascadeROIHeads(
            box_heads=[head for head, _ in stages],
            box_predictors=[predictor for _, predictor in stages],
            iou_thresholds=cascade.IOUS,
            **arguments,
        )


def _build_stage(cfg: CfgNode, box_weights: Sequence[float]) -> tuple[FastRCNNConvFCHead, BoxPredictor]:
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    convs, fcs = [box.CONV_DIM] * box.NUM_CONV, [box.FC_DIM] * box.NUM_FC
    with naming({"conv_dims": "MODEL.ROI_BOX_HEAD.NUM_CONV and NUM_FC are both 0:"}):
        head = FastRCNNConvFCHead(cfg.MODEL.FPN.OUT_CHANNELS, box.POOLER_RESOLUTION, convs, fcs, box.NORM)
    predictor = BoxPredictor(
        head.out_channels,
        heads.NUM_CLASSES,
        class_agnostic=box.CLS_AGNOSTIC_BBOX_REG,
        box_loss=_box_loss(box, "MODEL.ROI_BOX_HEAD", box_weights),
        score_threshold=heads.SCORE_THRESH_TEST,
        nms_threshold=heads.NMS_THRESH_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    return head, predictor


def _strides(backbone: FPN, names: Sequence[str], key: str) -> list[int]:
    unknown = [name for name in names if name not in backbone.out_feature_strides]
    if unknown or not names:
        raise UserError(
            f"{key} {shown(list(names))} is not supported; supported: some of {', '.join(backbone.out_feature_strides)}"
        )
    return [backbone.out_feature_strides[name] for name in names]


def check_batch_norm(model: nn.Module, images: int, parts: int = 1) -> None:
    """See that norms of whole images can be trained with this batch.

    The second norm of split attention and that after the pooling of an image see one value a channel and image, so that batch
    norm over one image is undefined.

    Args:
        images: that go through the network together, in each process.
        parts: of a process's images, see SOLVER.ACCUMULATE.

    Raises:
        UserError: with the settings that would work.
    """
    if images > 1:
        return
    for module in model.modules():
        if isinstance(module, SplitAttentionConv2d):
            norm, where, key, others = (
                module.bn1,
                "inside split attention",
                "RESNETS",
                "'FrozenBN' (with pretrained weights) or 'GN'",
            )
        elif isinstance(module, PooledConv):
            norm, where, key, others = module[1].norm, "after the pooling of an image", "SEM_SEG_HEAD", "'GN'"
        else:
            continue
        if not normed_alone(norm):
            continue
        world_size = get_world_size()
        part, fewer = (" and part", ", a smaller SOLVER.ACCUMULATE") if parts > 1 else ("", "")
        sync = f", MODEL.{key}.NORM 'SyncBN'" if world_size > 1 else ""
        raise UserError(
            f"batch norm {where} cannot be trained on one image a process{part}: use SOLVER.IMS_PER_BATCH "
            f"{2 * world_size * parts} or more{fewer}{sync}, or MODEL.{key}.NORM {others}"
        )
