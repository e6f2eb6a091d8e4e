"""ResNeSt inside Detectron2: importing this module registers the backbones and the addresses of their weights.

    from resnest_det.integrations.detectron2 import add_resnest_config
    cfg = detectron2.config.get_cfg()
    add_resnest_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnest_fpn_backbone"

MODEL.BACKBONE.NAME can be `build_resnest_backbone`, `build_resnest_fpn_backbone`, for one-stage detectors
`build_retinanet_resnest_fpn_backbone` or, dilated for the heads of Detectron2's project DeepLab,
`build_resnest_deeplab_backbone`. Parameters have the same names as in the built-in detector, so checkpoints serve both.
MODEL.WEIGHTS also takes `resnest://resnest50` and `hf://timm/resnest50d.in1k`, see `resolve_weights`.
"""

from functools import partial

from resnest_det.integrations.detectron2_version import check_detectron2

check_detectron2()

from detectron2.config import CfgNode  # noqa: E402
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone  # noqa: E402
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7  # noqa: E402
from detectron2.utils.file_io import PathManager  # noqa: E402
from torch import nn  # noqa: E402

from resnest_det.backbone.layers import Norm  # noqa: E402
from resnest_det.backbone.resnest import BLOCKS_PER_STAGE, ResNeSt  # noqa: E402
from resnest_det.configuration.defaults import RESNEST_KEYS, add_resnest_config  # noqa: E402
from resnest_det.configuration.model import resnest_arguments  # noqa: E402
from resnest_det.errors import UserError  # noqa: E402
from resnest_det.integrations.detectron2_weights import WeightsHandler  # noqa: E402

__all__ = [
    "ResNeStBackbone",
    "add_resnest_config",
    "build_resnest_backbone",
    "build_resnest_deeplab_backbone",
    "build_resnest_fpn_backbone",
    "build_retinanet_resnest_fpn_backbone",
]

PathManager.register_handler(WeightsHandler(), allow_override=True)


class ResNeStBackbone(ResNeSt, Backbone):
    """`ResNeSt` with Detectron2's `Backbone` interface; a LazyConfig builds it from the same plain arguments.

    Args:
        norm: any that Detectron2's `get_norm` knows (BN, SyncBN, FrozenBN, GN, LN, naiveSyncBN, nnSyncBN, ...), or a function
            that makes a module for a number of channels.

    Raises:
        UserError: an argument that makes no such network.
    """

    def __init__(self, *args, norm: Norm = "BN", **kwargs):
        super().__init__(*args, norm=partial(_detectron2_norm, norm), **kwargs)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return {
            name: ShapeSpec(channels=self.out_feature_channels[name], stride=self.out_feature_strides[name])
            for name in self.out_features
        }

    def freeze(self, freeze_at: int = 0) -> "ResNeStBackbone":
        """Stop training the first `freeze_at` of (stem, res2, ..., res5); their batch norms become Detectron2's FrozenBN."""
        for name in self.parts[:freeze_at]:
            part = getattr(self, name).requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(part)
            for module in part.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.num_batches_tracked = None  # or it would be saved; the built-in detector has none
        return self


def _detectron2_norm(norm: Norm, channels: int) -> nn.Module | None:
    try:
        return get_norm(norm, channels)
    except KeyError:
        raise UserError(f"Detectron2 has no norm {norm!r}; it has BN, SyncBN, FrozenBN, GN, LN, naiveSyncBN, nnSyncBN") from None
    except ValueError as error:
        raise UserError(f"norm {norm!r} is not possible with {channels} channels: {error}") from None


@BACKBONE_REGISTRY.register()
def build_resnest_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network alone, with the features of MODEL.RESNETS.OUT_FEATURES.

    Raises:
        UserError: `add_resnest_config` was not called, or a value makes no such network; the message names the key.
    """
    resnets = cfg.MODEL.RESNETS
    missing = [key for key in RESNEST_KEYS if key not in resnets]
    if missing:
        raise UserError(
            f"MODEL.RESNETS has no {', '.join(missing)}: call add_resnest_config(cfg) of "
            "resnest_det.integrations.detectron2 before merging any file"
        )
    if resnets.DEPTH not in BLOCKS_PER_STAGE:
        supported = ", ".join(map(str, BLOCKS_PER_STAGE))
        raise UserError(f"MODEL.RESNETS.DEPTH {resnets.DEPTH} is not supported; supported: {supported}")
    try:
        return ResNeStBackbone(**resnest_arguments(cfg) | {"in_channels": input_shape.channels})
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("MODEL.") else f"MODEL.RESNETS: {error}") from None


@BACKBONE_REGISTRY.register()
def build_resnest_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """`build_resnest_backbone` with the multi-grid of MODEL.RESNETS.RES5_MULTI_GRID in a dilated res5."""
    return build_resnest_backbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network with a pyramid p2 ... p5, and p6 subsampled from p5, for the R-CNN family."""
    return _with_pyramid(cfg, build_resnest_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network with a pyramid p3 ... p5, and p6 and p7 convolved from res5, for one-stage detectors."""
    bottom_up = build_resnest_backbone(cfg, input_shape)
    if "res5" not in bottom_up.out_feature_channels:
        raise UserError(f"MODEL.RESNETS.OUT_FEATURES {list(bottom_up.out_features)} lacks res5, from which p6 and p7 are made")
    return _with_pyramid(cfg, bottom_up, LastLevelP6P7(bottom_up.out_feature_channels["res5"], cfg.MODEL.FPN.OUT_CHANNELS))


def _with_pyramid(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> Backbone:
    fpn = cfg.MODEL.FPN
    unknown = [name for name in fpn.IN_FEATURES if name not in bottom_up.out_features]
    if unknown or not fpn.IN_FEATURES:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES {list(fpn.IN_FEATURES)} is not supported; supported: some of "
            f"MODEL.RESNETS.OUT_FEATURES, {', '.join(bottom_up.out_features)}"
        )
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, norm=fpn.NORM, top_block=top_block, fuse_type=fpn.FUSE_TYPE)
