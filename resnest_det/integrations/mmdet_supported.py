"""Which configurations of this package can be translated to MMDetection; all others are refused."""

from fvcore.common.config import CfgNode

from resnest_det.configuration.model import resnest_arguments
from resnest_det.configuration.tables import BACKBONES, tasks_of
from resnest_det.errors import UserError

_LEVELS = ("p2", "p3", "p4", "p5", "p6")
_NORMS = ("", "BN", "SyncBN", "GN")
_PYRAMID_LEVELS = tuple([*_LEVELS[:count]] for count in (4, 3, 2, 1))

# Values MMDetection supports. Keys missing here take any value the built-in detector accepts, or are checked below.
_CHOICES = {
    # A new architecture or backbone is added here once it is translated.
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "PanopticFPN"),
    "MODEL.BACKBONE.NAME": ("build_resnest_fpn_backbone", "build_resnet_fpn_backbone"),
    "MODEL.RESNETS.OUT_FEATURES": (["res2", "res3", "res4", "res5"],),
    "MODEL.FPN.IN_FEATURES": (["res2", "res3", "res4", "res5"],),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.RPN.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RPN.IN_FEATURES": ([*_LEVELS], [*_LEVELS[:4]]),
    "MODEL.ROI_HEADS.IOU_LABELS": ([0, 1],),
    "MODEL.ROI_HEADS.IN_FEATURES": _PYRAMID_LEVELS,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (False,),
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.RESIZE_LIBRARY_TRAIN": ("pillow",),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "SOLVER.RESCALE_INTERVAL": (False,),
    "TEST.AP_MAX_DETECTIONS": (100,),
    "TEST.BEST_METRIC": ("",),
    "TEST.PATIENCE": (0,),
    "SOLVER.EMA.ENABLED": (False,),
    # How many iterations an epoch has is not known before the data is read; config.yaml of a run has both.
    "SOLVER.MAX_EPOCHS": (0.0,),
    "SOLVER.STEPS_EPOCHS": ((), []),
    "SOLVER.WARMUP_EPOCHS": (0.0,),
    "SOLVER.CHECKPOINT_EPOCHS": (0.0,),
    "TEST.EVAL_EPOCHS": (0.0,),
}
_SEMANTIC_CHOICES = {
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": _PYRAMID_LEVELS,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (4,),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": (255,),
    "MODEL.SEM_SEG_HEAD.NORM": _NORMS,
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": (True,),
}
# Without these the network lies between a ResNet and a ResNeSt; MMDetection has only the two.
_RESNEST_CHOICES = {"MODEL.RESNETS.DEEP_STEM": (True,), "MODEL.RESNETS.AVG_DOWN": (True,)}
# MMDetection's ResNet, whose deformable convolutions name their parameters differently.
_RESNET_CHOICES = {
    "MODEL.RESNETS.DEPTH": (50, 101, 152),
    "MODEL.RESNETS.NUM_GROUPS": (1,),
    "MODEL.RESNETS.NORM": ("BN", "SyncBN", "FrozenBN"),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False, False, False, False],),
}


def check_translatable(cfg: CfgNode) -> None:
    """Refuse every value of MODEL and INPUT that MMDetection has no equal for.

    Raises:
        UserError: naming the key, its value and what is supported.
    """
    # In this order: the table of backbones and the tasks are looked up by names that _CHOICES has checked.
    _check_choices(cfg, _CHOICES)
    _check_choices(cfg, _RESNEST_CHOICES if is_resnest(cfg) else _RESNET_CHOICES)
    if tasks_of(cfg).pixels:
        _check_choices(cfg, _SEMANTIC_CHOICES)
    rpn, resnets = cfg.MODEL.RPN, cfg.MODEL.RESNETS
    if len({rpn.CONV_DIMS[0] if size == -1 and i else size for i, size in enumerate(rpn.CONV_DIMS)}) != 1:
        raise untranslatable("MODEL.RPN.CONV_DIMS", rpn.CONV_DIMS, "all its convolutions have the same number of channels")
    if (resnets.RES4_DILATION, resnets.RES5_DILATION) != (1, 1):
        raise untranslatable("MODEL.RESNETS.RES5_DILATION", resnets.RES5_DILATION, "a pyramid needs 1")
    width = group_width(cfg)
    if resnets.RES2_OUT_CHANNELS % 4 or (resnets.NUM_GROUPS == 1 and resnets.RES2_OUT_CHANNELS != 4 * width):
        raise untranslatable(
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            resnets.RES2_OUT_CHANNELS,
            f"it is four times the bottleneck's {width} channels (WIDTH_PER_GROUP)",
        )


def _check_choices(cfg: CfgNode, choices: dict[str, tuple]) -> None:
    for key, allowed in choices.items():
        value = cfg
        for name in key.split("."):
            value = value[name]
        if value not in allowed:
            raise untranslatable(key, value, "supported: " + ", ".join(repr(choice) for choice in allowed))


def untranslatable(key: str, value: object, why: str) -> UserError:
    """The error for a key that cannot be translated; `why` says what MMDetection does or supports."""
    return UserError(f"{key} {value!r} cannot be translated to MMDetection; {why}")


def is_resnest(cfg: CfgNode) -> bool:
    """Whether the backbone has split attention, and so becomes `ResNeStDet` rather than MMDetection's `ResNet`."""
    return BACKBONES[cfg.MODEL.BACKBONE.NAME].split_attention


def group_width(cfg: CfgNode) -> int:
    """Channels of one group between the 1x1 convolutions of res2."""
    arguments = resnest_arguments(cfg)
    return int(arguments["bottleneck_channels"] * arguments["bottleneck_width"] / 64)
