"""The tables of architectures and backbones, and what a configured model does. A new architecture or backbone is a new row."""

from dataclasses import dataclass

from fvcore.common.config import CfgNode

from resnest_det.evaluation.average_precision import FIGURES as COCO_FIGURES


@dataclass(frozen=True)
class Architecture:
    """A MODEL.META_ARCHITECTURE.

    Attributes:
        objects: it finds objects, with a proposal network and heads over regions.
        pixels: it labels pixels, with a semantic head.
        not_read: beginnings of keys for parts it does not have; setting such a key is refused.
    """

    objects: bool
    pixels: bool
    not_read: tuple[str, ...] = ()


# Test-time augmentation of the classes of pixels.
_OF_PIXELS = tuple(f"TEST.AUG.{key}" for key in ("SCALES", "LONG_SIDE", "WINDOW", "COMBINE"))

ARCHITECTURES = {
    "GeneralizedRCNN": Architecture(
        objects=True, pixels=False, not_read=("MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN.", *_OF_PIXELS, "TEST.WRITE_LABELS")
    ),
    "PanopticFPN": Architecture(objects=True, pixels=True, not_read=_OF_PIXELS),
    "SemanticSegmentor": Architecture(
        objects=False,
        pixels=True,
        not_read=(
            "MODEL.PANOPTIC_FPN.",
            "MODEL.MASK_ON",
            "SOLVER.RPN_LR_FACTOR",
            "TEST.AUG.MIN_SIZES",
            "TEST.AUG.MAX_SIZE",
            "VIS_PERIOD",
        ),
    ),
}


@dataclass(frozen=True)
class Backbone:
    """A MODEL.BACKBONE.NAME: a ResNeSt (`split_attention`) or a plain ResNet, with a feature `pyramid` over it or without."""

    split_attention: bool
    pyramid: bool


BACKBONES = {
    "build_resnest_fpn_backbone": Backbone(split_attention=True, pyramid=True),
    "build_resnet_fpn_backbone": Backbone(split_attention=False, pyramid=True),
    "build_resnest_backbone": Backbone(split_attention=True, pyramid=False),
    "build_resnest_deeplab_backbone": Backbone(split_attention=True, pyramid=False),
    "build_resnet_backbone": Backbone(split_attention=False, pyramid=False),
}


@dataclass(frozen=True)
class Tasks:
    """What a model does: find `objects`, with `masks`, label `pixels`, and join both into `panoptic` maps."""

    objects: bool
    masks: bool
    pixels: bool
    panoptic: bool

    @property
    def of_objects(self) -> tuple[str, ...]:
        """COCO's names of the tasks evaluated on objects."""
        return ("bbox", "segm") if self.masks else ("bbox",) if self.objects else ()

    @property
    def augmented(self) -> tuple[str, ...]:
        """The tasks that are evaluated with test-time augmentation too: objects, or where there are none pixels."""
        return self.of_objects or (("sem_seg",) if self.pixels else ())

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The names of all evaluated tasks, as in results."""
        return (*self.of_objects, *(["sem_seg"] if self.pixels else []), *(["panoptic_seg"] if self.panoptic else []))


# The overall figures of each task, and how the names of those of a class begin. Higher is better for all of them.
FIGURES = {
    "bbox": (COCO_FIGURES, ("AP-",)),
    "segm": (COCO_FIGURES, ("AP-",)),
    "sem_seg": (("mIoU", "fwIoU", "mACC", "pACC"), ("IoU-", "ACC-")),
    "panoptic_seg": (("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"), ()),
}


def best_metric(cfg: CfgNode) -> str:
    """The figure by which the best checkpoint is chosen, as results are named: TEST.BEST_METRIC, or the first of the last task.

    Of several datasets in DATASETS.TEST it is the first one's.
    """
    task = tasks_of(cfg).evaluated[-1]
    metric = cfg.TEST.BEST_METRIC or f"{task}/{FIGURES[task][0][0]}"
    several = len(cfg.DATASETS.TEST) > 1 and metric.partition("/")[0] in FIGURES
    return f"{cfg.DATASETS.TEST[0]}/{metric}" if several else metric


# A host's own, RetinaNet for instance: only the host knows what it does.
_OF_A_HOST = Architecture(objects=False, pixels=False)


def tasks_of(cfg: CfgNode) -> Tasks:
    """What the model of a configuration does; nothing that is known here if its architecture is not in the table."""
    architecture = ARCHITECTURES.get(cfg.MODEL.META_ARCHITECTURE, _OF_A_HOST)
    return Tasks(
        objects=architecture.objects,
        masks=architecture.objects and cfg.MODEL.MASK_ON,
        pixels=architecture.pixels,
        panoptic=architecture.objects and architecture.pixels and cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED,
    )
