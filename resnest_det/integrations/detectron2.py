"""ResNeSt inside Detectron2: importing this module registers the backbones.

    from resnest_det.integrations.detectron2 import add_resnest_config
    cfg = detectron2.config.get_cfg()
    add_resnest_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnest_fpn_backbone"

`build_resnest_backbone`, `build_resnest_fpn_backbone` and, for RetinaNet and FCOS, `build_retinanet_resnest_fpn_backbone` are
the names of MODEL.BACKBONE.NAME. Parameters have the names of the built-in detector, so that checkpoints serve both.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from resnest_det.backbone.resnest import ResNeSt
from resnest_det.engine.build_model import resnest_arguments
from resnest_det.engine.defaults import RESNEST_KEYS


def add_resnest_config(cfg: CfgNode) -> None:
    """Add the keys of ResNeSt, with their defaults, to a Detectron2 configuration."""
    for key, value in RESNEST_KEYS.items():
        cfg.MODEL.RESNETS[key] = value


class ResNeStBackbone(ResNeSt, Backbone):
    """`ResNeSt` with Detectron2's `Backbone` interface."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.out_feature_channels[name], stride=self.out_feature_strides[name])
            for name in self.out_features
        }


@BACKBONE_REGISTRY.register()
def build_resnest_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network alone, with the features of MODEL.RESNETS.OUT_FEATURES."""
    return ResNeStBackbone(**resnest_arguments(cfg) | {"in_channels": input_shape.channels})


@BACKBONE_REGISTRY.register()
def build_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """With a pyramid p2 ... p5 and p6 subsampled from p5, for the R-CNN family."""
    return _with_pyramid(cfg, build_resnest_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """With a pyramid p3 ... p5 and convolutions from res5 to p6 and p7, for one-stage detectors."""
    bottom_up = build_resnest_backbone(cfg, input_shape)
    return _with_pyramid(cfg, bottom_up, LastLevelP6P7(bottom_up.out_feature_channels["res5"], cfg.MODEL.FPN.OUT_CHANNELS))


def _with_pyramid(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> Backbone:
    fpn = cfg.MODEL.FPN
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, norm=fpn.NORM, top_block=top_block, fuse_type=fpn.FUSE_TYPE)
