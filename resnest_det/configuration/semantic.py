"""MODEL.SEM_SEG_HEAD: the heads that label pixels, and whose details they have."""

from dataclasses import dataclass

from fvcore.common.config import CfgNode

from resnest_det.backbone.resnest import ResNeSt
from resnest_det.detector.dense_heads import DeepLabV3Head, DeepLabV3PlusHead, FCNHead, PSPHead
from resnest_det.detector.fpn import FPN
from resnest_det.detector.pixel_loss import PixelHead, PixelLoss
from resnest_det.detector.pooling_pyramid import AsppSettings
from resnest_det.detector.semantic_head import SemSegFPNHead
from resnest_det.errors import UserError, naming, shown

HARDEST = {"cross_entropy": 1.0, "hard_pixel_mining": 0.2}  # fractions of the pixels, by LOSS_TYPE


@dataclass(frozen=True)
class HeadStyle:
    """What MODEL.SEM_SEG_HEAD.STYLE decides of the heads on a dilated network.

    Attributes:
        pool_norm, project_kernel, drop_channels: of DeepLab's pyramid, see `AsppSettings`.
        convs_after_pyramid: of DeepLabV3.
        fcn_convs, concat_input: of FCN, see `FCNHead`.
        predictor_drops_channels: dropout before the classification is of whole channels.
        fuse_kernels: of DeepLabV3+, see `DeepLabV3PlusHead`.
        pads: images are padded to multiples of the stride, and DeepLab pools windows of the training crop's size.
    """

    pool_norm: bool = True
    project_kernel: int = 1
    drop_channels: bool = True
    convs_after_pyramid: int = 0
    fcn_convs: int = 1
    concat_input: bool = False
    predictor_drops_channels: bool = False
    fuse_kernels: tuple[int, ...] = (3, 3)
    pads: bool = False


HEAD_STYLES = {
    "detectron2": HeadStyle(pool_norm=False, drop_channels=False, fuse_kernels=(5,), pads=True),
    "authors": HeadStyle(convs_after_pyramid=1),
    "mmseg": HeadStyle(project_kernel=3, fcn_convs=2, concat_input=True, predictor_drops_channels=True),
}

_COMMON = ("LOSS_TYPE", "STYLE", "ALIGN_CORNERS", "DROPOUT", "AUX_HEAD.")
_DEEPLAB = (*_COMMON, "ASPP_", "USE_DEPTHWISE_SEPARABLE_CONV")
# The heads, and beginnings of keys under MODEL.SEM_SEG_HEAD that each reads beside those that all of them do.
HEADS = {
    "SemSegFPNHead": (),
    "FCNHead": _COMMON,
    "PSPHead": _COMMON,
    "DeepLabV3Head": _DEEPLAB,
    "DeepLabV3PlusHead": (*_DEEPLAB, "PROJECT_"),
}
SOME_READ = (*_DEEPLAB, "PROJECT_")

_KEYS = {
    "in_features": "IN_FEATURES",
    "common_stride": "COMMON_STRIDE",
    "class_weights": "CLASS_WEIGHTS",
    "dilations": "ASPP_DILATIONS",
    "project_channels": "PROJECT_CHANNELS",
    "dropout": "DROPOUT or ASPP_DROPOUT",
}


def build_sem_seg_head(cfg: CfgNode, backbone: FPN | ResNeSt) -> PixelHead:
    """The head of MODEL.SEM_SEG_HEAD.NAME, over the maps in its IN_FEATURES.

    Raises:
        UserError: it cannot be built; the message names the key.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    keys = {argument: f"MODEL.SEM_SEG_HEAD.{key}" for argument, key in _KEYS.items()}
    with naming(keys):
        if head.NAME == "SemSegFPNHead":
            return SemSegFPNHead(
                head.IN_FEATURES,
                backbone.out_feature_strides,
                backbone.out_feature_channels,
                num_classes=head.NUM_CLASSES,
                conv_dim=head.CONVS_DIM,
                common_stride=head.COMMON_STRIDE,
                norm=head.NORM,
                loss=PixelLoss(head.LOSS_WEIGHT, head.IGNORE_VALUE, class_weights=tuple(head.CLASS_WEIGHTS)),
            )
        return _build_dense_head(cfg, backbone)


def _build_dense_head(cfg: CfgNode, backbone: FPN | ResNeSt) -> PixelHead:
    head, style = cfg.MODEL.SEM_SEG_HEAD, HEAD_STYLES[cfg.MODEL.SEM_SEG_HEAD.STYLE]
    strides, channels = backbone.out_feature_strides, backbone.out_feature_channels
    shared = _shared_arguments(cfg, head.LOSS_WEIGHT)
    if head.NAME == "DeepLabV3PlusHead":
        _check_projected(cfg, strides)
        plus = DeepLabV3PlusHead(
            head.IN_FEATURES,
            strides,
            channels,
            project_channels=head.PROJECT_CHANNELS,
            decoder_channels=head.CONVS_DIM,
            aspp=_aspp_settings(cfg, max(strides[name] for name in head.IN_FEATURES if name in strides)),
            fuse_kernels=style.fuse_kernels,
            **shared,
        )
        _check_stride(cfg, plus.in_features[0], strides)
        return plus
    (name,) = head.IN_FEATURES if len(head.IN_FEATURES) == 1 else [None]
    if name not in strides:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES {shown(list(head.IN_FEATURES))} is not supported by a {head.NAME}; supported: one "
            f"of {', '.join(strides)}"
        )
    _check_stride(cfg, name, strides)
    if head.NAME == "DeepLabV3Head":
        if head.CONVS_DIM != head.ASPP_CHANNELS:
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.CONVS_DIM {head.CONVS_DIM} with ASPP_CHANNELS {head.ASPP_CHANNELS} is not supported: what a "
                "DeepLabV3Head classifies has as many channels as its pyramid"
            )
        aspp = _aspp_settings(cfg, strides[name])
        return DeepLabV3Head(name, channels[name], aspp=aspp, num_convs=style.convs_after_pyramid, **shared)
    if head.NAME == "PSPHead":
        return PSPHead(name, channels[name], head.CONVS_DIM, **shared)
    convs = dict(num_convs=style.fcn_convs, concat_input=style.concat_input)
    return FCNHead(name, channels[name], head.CONVS_DIM, **convs, **shared)


def build_auxiliary_head(cfg: CfgNode, backbone: FPN | ResNeSt) -> FCNHead | None:
    """The head of MODEL.SEM_SEG_HEAD.AUX_HEAD; None where it is not enabled.

    Raises:
        UserError: it cannot be built; the message names the key.
    """
    auxiliary, channels = cfg.MODEL.SEM_SEG_HEAD.AUX_HEAD, backbone.out_feature_channels
    if not auxiliary.ENABLED:
        return None
    name = auxiliary.IN_FEATURE
    if name not in channels:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.AUX_HEAD.IN_FEATURE {name!r} is not supported; supported: one of {', '.join(channels)}, which "
            "MODEL.RESNETS.OUT_FEATURES names"
        )
    return FCNHead(name, channels[name], auxiliary.CONVS_DIM, **_shared_arguments(cfg, auxiliary.LOSS_WEIGHT))


def _shared_arguments(cfg: CfgNode, loss_weight: float) -> dict:
    """What all heads on a dilated network and the auxiliary one have."""
    head = cfg.MODEL.SEM_SEG_HEAD
    return dict(
        num_classes=head.NUM_CLASSES,
        norm=head.NORM,
        loss=PixelLoss(loss_weight, head.IGNORE_VALUE, HARDEST[head.LOSS_TYPE], tuple(head.CLASS_WEIGHTS)),
        align_corners=head.ALIGN_CORNERS,
        dropout=head.DROPOUT,
        drop_channels=HEAD_STYLES[head.STYLE].predictor_drops_channels,
    )


def size_divisibility(cfg: CfgNode, backbone: FPN | ResNeSt) -> int | None:
    """What a SemanticSegmentor pads images to a multiple of; None is what its backbone wants."""
    head = cfg.MODEL.SEM_SEG_HEAD
    pads = head.NAME == "SemSegFPNHead" or HEAD_STYLES[head.STYLE].pads or isinstance(backbone, FPN)
    return None if pads else 1


def _aspp_settings(cfg: CfgNode, stride: int) -> AsppSettings:
    head, crop, style = cfg.MODEL.SEM_SEG_HEAD, cfg.INPUT.CROP, HEAD_STYLES[cfg.MODEL.SEM_SEG_HEAD.STYLE]
    pool_size = None
    if crop.ENABLED and style.pads:
        if crop.TYPE != "absolute" or any(side % stride for side in crop.SIZE):
            raise UserError(
                f"INPUT.CROP.TYPE {crop.TYPE!r} with SIZE {shown(list(crop.SIZE))} is not supported by a {head.NAME} of STYLE "
                f"{head.STYLE!r}, which pools windows of the crop's size; supported: 'absolute', multiples of the stride {stride}"
            )
        pool_size = tuple(int(side) // stride for side in crop.SIZE)
    return AsppSettings(
        channels=head.ASPP_CHANNELS,
        dilations=tuple(head.ASPP_DILATIONS),
        dropout=head.ASPP_DROPOUT,
        drop_channels=style.drop_channels,
        depthwise_separable=head.USE_DEPTHWISE_SEPARABLE_CONV,
        pool_size=pool_size,
        pool_norm=style.pool_norm,
        project_kernel=style.project_kernel,
    )


def _check_stride(cfg: CfgNode, name: str, strides: dict[str, int]) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.COMMON_STRIDE != strides[name]:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {head.COMMON_STRIDE} is not supported: a {head.NAME} classifies a map of the "
            f"stride of {name}, {strides[name]}"
        )


def _check_projected(cfg: CfgNode, strides: dict[str, int]) -> None:
    """PROJECT_FEATURES, which Detectron2 does not read: the head takes all maps of IN_FEATURES but the coarsest."""
    head = cfg.MODEL.SEM_SEG_HEAD
    *finer, _ = sorted((name for name in strides if name in head.IN_FEATURES), key=strides.get) or [""]
    if list(head.PROJECT_FEATURES) not in (["res2"], finer):
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.PROJECT_FEATURES {shown(list(head.PROJECT_FEATURES))} is not supported with IN_FEATURES "
            f"{shown(list(head.IN_FEATURES))}; supported: {finer}"
        )
    if head.STYLE == "authors":
        raise UserError(
            "MODEL.SEM_SEG_HEAD.STYLE 'authors' is not supported by a DeepLabV3PlusHead; supported: 'detectron2', 'mmseg'"
        )
