"""Reading configurations: YAML with `_BASE_` in Detectron2's vocabulary, overrides, and which values the detector honours."""

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from resnest_det.backbone.layers import NORMS
from resnest_det.backbone.resnest import BLOCKS_PER_STAGE, STAGES
from resnest_det.engine.defaults import default_config
from resnest_det.errors import UserError

BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")

# MODEL.META_ARCHITECTURE: what detects objects, and what labels pixels.
INSTANCE_ARCHITECTURES = ("GeneralizedRCNN", "PanopticFPN")
SEMANTIC_ARCHITECTURES = ("PanopticFPN", "SemanticSegmentor")
# Without a pyramid; only the semantic head can do with one stride twice, which a dilated backbone gives.
PLAIN_BACKBONES = ("build_resnest_backbone", "build_resnet_backbone")

# Keys with a closed set of values in the built-in detector.
CHOICES = {
    "VERSION": (2,),
    "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "PanopticFPN", "SemanticSegmentor"),
    "MODEL.BACKBONE.NAME": ("build_resnest_fpn_backbone", "build_resnet_fpn_backbone", *PLAIN_BACKBONES),
    "MODEL.RESNETS.DEPTH": tuple(BLOCKS_PER_STAGE),
    "MODEL.RESNETS.NORM": NORMS,
    "MODEL.RESNETS.RES4_DILATION": (1, 2),
    "MODEL.RESNETS.RES5_DILATION": (1, 2, 4),
    "MODEL.FPN.NORM": NORMS,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": BOX_LOSSES,
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "CascadeROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_BOX_HEAD.NORM": NORMS,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": BOX_LOSSES,
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.NORM": NORMS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.SEM_SEG_HEAD.NAME": ("SemSegFPNHead",),
    "MODEL.SEM_SEG_HEAD.NORM": NORMS,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": (255,),
    "INPUT.FORMAT": ("BGR", "RGB", "L"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
}

# Keys of parts that the built-in detector does not have: any other value than the default would do nothing.
NOT_READ = (
    "GLOBAL.", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "MODEL.ROI_KEYPOINT_HEAD.", "MODEL.RETINANET.",
    "MODEL.ANCHOR_GENERATOR.ANGLES", "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_", "DATASETS.PROPOSAL_FILES_", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_", "TEST.KEYPOINT_OKS_SIGMAS",
)

# The same for one MODEL.META_ARCHITECTURE.
NOT_READ_BY = {
    "GeneralizedRCNN": ("MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN."),
    "PanopticFPN": (),
    "SemanticSegmentor": ("MODEL.PANOPTIC_FPN.", "MODEL.MASK_ON", "TEST.AUG.", "VIS_PERIOD"),
}

# What a model that only labels pixels has no part for. It may be set all the same: such a configuration shares its base with
# those of detectors.
OF_INSTANCES = ("MODEL.PROPOSAL_GENERATOR.", "MODEL.ANCHOR_GENERATOR.", "MODEL.RPN.", "MODEL.ROI_")

AT_LEAST = {
    "SOLVER.IMS_PER_BATCH": 1, "SOLVER.MAX_ITER": 0, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.REFERENCE_WORLD_SIZE": 0, "DATALOADER.NUM_WORKERS": 0, "TEST.EVAL_PERIOD": 0, "TEST.DETECTIONS_PER_IMAGE": 1,
    "TEST.PRECISE_BN.NUM_ITER": 1, "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.RADIX": 0, "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1, "MODEL.RESNETS.BOTTLENECK_WIDTH": 1, "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.FPN.OUT_CHANNELS": 1, "INPUT.MIN_SIZE_TEST": 0, "INPUT.MAX_SIZE_TEST": 1, "INPUT.MAX_SIZE_TRAIN": 1,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 1, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 1, "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0, "MODEL.ROI_MASK_HEAD.NUM_CONV": 0, "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2, "MODEL.SEM_SEG_HEAD.CONVS_DIM": 1,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 1, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 0, "VIS_PERIOD": 0,
    "TEST.AUG.MAX_SIZE": 1,
}


def load_config(config_file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration of a YAML file with `KEY VALUE` overrides on top, checked and frozen.

    Args:
        config_file: a path, or the name of a configuration that comes with the package, see `find_config_file`.
        overrides: KEY1, VALUE1, KEY2, VALUE2, ... with values in YAML or Python notation.

    Raises:
        UserError: a file or key that does not exist, a value of the wrong type, or one that the detector cannot honour.
    """
    cfg = default_config()
    merge_file(cfg, config_file, overrides)
    check_supported(cfg)
    cfg.freeze()
    return cfg


def merge_file(cfg: CfgNode, config_file: str, overrides: Sequence[str] = ()) -> None:
    """Set in `cfg` what a YAML file says, with its bases, and what `overrides` say on top.

    Args:
        config_file, overrides: see `load_config`.

    Raises:
        UserError: a file or key that does not exist, or a value of the wrong type.
    """
    path = find_config_file(config_file)
    merge(cfg, _leaves(_read_yaml(path)), str(path))
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE; {overrides[-1]!r} has no value")
    merge(cfg, zip(overrides[::2], overrides[1::2]), "command line")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", cfg.MODEL.DEVICE):
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is not supported; supported: 'auto', 'cpu', 'cuda', 'cuda:N'")


def config_folder() -> Path:
    """The folder of the configurations that come with the package."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config_file(name: str) -> Path:
    """The path of a configuration: `name` itself where there is such a file, else one that comes with the package.

    `mask_rcnn_ResNeSt50_FPN`, with or without `.yaml` and folders before it, is found from any working directory. So are
    MMDetection's, which are not YAML and end in `.py`.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    suffix = ".py" if name.endswith(".py") else ".yaml"
    packaged = {path.stem: path for path in sorted(config_folder().rglob(f"*{suffix}"))}
    wanted = Path(name).name.removesuffix(suffix)
    if wanted in packaged:
        return packaged[wanted]
    nearest = difflib.get_close_matches(wanted, packaged, n=3, cutoff=0.3)
    raise UserError(f"no config file {name}, nor one of that name in the package; nearest: {', '.join(nearest) or 'none'}")


def merge(cfg: CfgNode, values: Iterable[tuple[str, object]], source: str) -> None:
    """Set `values` (full key, value) in `cfg`; `source` stands in front of error messages.

    Raises:
        UserError: a key that does not exist, with the nearest one that does, or a value of another type than the default.
    """
    known = dict(_leaves(cfg))
    for key, value in values:
        if key not in known:
            section = any(name.startswith(f"{key}.") for name in known)
            if section and value != {}:
                raise UserError(f"{source}: {key} is a section of keys and takes no value, got {value!r}")
            if not section:
                raise UserError(f"{source}: unknown config key {key}{_nearest(key, known)}")
            continue
        if isinstance(known[key], float) and re.fullmatch(r"[+-]?\d+", str(value)):
            value = float(value)
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, SyntaxError) as error:
            kind = type(known[key]).__name__
            raise UserError(f"{source}: {key} takes a value of type {kind} like {known[key]!r}, got {value!r}") from error


def check_supported(cfg: CfgNode) -> None:
    """Refuse every value that the built-in detector would ignore or could not honour.

    Raises:
        UserError: naming the key, its value and what is supported.
    """
    values, defaults = dict(_leaves(cfg)), dict(_leaves(default_config()))
    architecture = cfg.MODEL.META_ARCHITECTURE
    skipped = () if architecture in INSTANCE_ARCHITECTURES else OF_INSTANCES
    for key, choices in CHOICES.items():
        if values[key] not in choices and not key.startswith(skipped):
            raise UserError(f"{key} {values[key]!r} is not supported by the built-in detector; supported: "
                            + ", ".join(repr(choice) for choice in choices))
    for not_read, reader in ((NOT_READ, "the built-in detector"), (NOT_READ_BY[architecture], f"a {architecture}")):
        for key, value in values.items():
            if key.startswith(not_read) and value != defaults[key]:
                raise UserError(f"{key} {value!r} is not supported: {reader} does not read this key; "
                                f"supported: {defaults[key]!r}, its default")
    for key, least in AT_LEAST.items():
        if values[key] < least:
            raise UserError(f"{key} {values[key]!r} is too small; supported: {least} and more")
    if architecture == "PanopticFPN" and not cfg.MODEL.MASK_ON:
        raise UserError("MODEL.MASK_ON False is not supported with MODEL.META_ARCHITECTURE PanopticFPN, which fuses masks; "
                        "supported: True")
    if architecture in INSTANCE_ARCHITECTURES and cfg.MODEL.BACKBONE.NAME in PLAIN_BACKBONES:
        raise UserError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r} is not supported: a {architecture} needs a pyramid; "
                        "supported: 'build_resnest_fpn_backbone', 'build_resnet_fpn_backbone'")
    if cfg.TEST.AUG.ENABLED:
        sizes = cfg.TEST.AUG.MIN_SIZES
        if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise UserError(f"TEST.AUG.MIN_SIZES is {tuple(sizes)}; it must be one or more whole numbers of pixels")
    _check_expected_results(cfg)
    _check_features(cfg)


def _check_expected_results(cfg: CfgNode) -> None:
    """That TEST.EXPECTED_RESULTS asks for nothing that the evaluation would not give, after days of training."""
    objects = []
    if cfg.MODEL.META_ARCHITECTURE in INSTANCE_ARCHITECTURES:
        objects = ["bbox", "segm"] if cfg.MODEL.MASK_ON else ["bbox"]
    tasks = [*objects, *(f"{task}_TTA" for task in objects if cfg.TEST.AUG.ENABLED)]
    if cfg.MODEL.META_ARCHITECTURE in SEMANTIC_ARCHITECTURES:
        tasks.append("sem_seg")
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED:
        tasks.append("panoptic_seg")
    for expected in cfg.TEST.EXPECTED_RESULTS:
        if not isinstance(expected, (list, tuple)) or len(expected) != 4:
            raise UserError(f"TEST.EXPECTED_RESULTS has {expected!r}; each entry is [task, metric, value, tolerance]")
        if expected[0] not in tasks:
            raise UserError(f"TEST.EXPECTED_RESULTS asks for {expected[0]}, which this configuration (MODEL.META_ARCHITECTURE, "
                            f"MODEL.MASK_ON, TEST.AUG.ENABLED) does not evaluate; it evaluates {', '.join(tasks)}")


def _check_features(cfg: CfgNode) -> None:
    """The lists of feature names must fit each other and the network."""
    model = cfg.MODEL
    levels = [f"p{stage}" for stage in range(2, 6)]
    lists = [
        ("MODEL.RESNETS.OUT_FEATURES", model.RESNETS.OUT_FEATURES, STAGES),
        ("MODEL.RESNETS.CHECKPOINT_STAGES", model.RESNETS.CHECKPOINT_STAGES, ("stem", *STAGES)),
    ]
    features = model.RESNETS.OUT_FEATURES
    if model.BACKBONE.NAME not in PLAIN_BACKBONES:
        lists.append(("MODEL.FPN.IN_FEATURES", model.FPN.IN_FEATURES, features))
        features = levels
    if model.META_ARCHITECTURE in INSTANCE_ARCHITECTURES:
        lists.append(("MODEL.RPN.IN_FEATURES", model.RPN.IN_FEATURES, [*levels, "p6"]))
        lists.append(("MODEL.ROI_HEADS.IN_FEATURES", model.ROI_HEADS.IN_FEATURES, levels))
        _check_anchors(model)
    if model.META_ARCHITECTURE in SEMANTIC_ARCHITECTURES:
        lists.append(("MODEL.SEM_SEG_HEAD.IN_FEATURES", model.SEM_SEG_HEAD.IN_FEATURES, features))
    for key, names, known in lists:
        unknown = [name for name in names if name not in known]
        if unknown or not (names or key.endswith("CHECKPOINT_STAGES")):
            raise UserError(f"{key} {list(names)} is not supported; supported: some of {', '.join(known)}")
    if len(model.PIXEL_MEAN) != len(model.PIXEL_STD):
        raise UserError(f"MODEL.PIXEL_MEAN has {len(model.PIXEL_MEAN)} values and MODEL.PIXEL_STD {len(model.PIXEL_STD)}; "
                        "both need one for each channel of INPUT.FORMAT")
    if len(model.PIXEL_MEAN) != (1 if cfg.INPUT.FORMAT == "L" else 3):
        raise UserError(f"MODEL.PIXEL_MEAN has {len(model.PIXEL_MEAN)} values, which does not fit INPUT.FORMAT {cfg.INPUT.FORMAT!r}")
    if len(model.RESNETS.DEFORM_ON_PER_STAGE) != 4:
        raise UserError(f"MODEL.RESNETS.DEFORM_ON_PER_STAGE {model.RESNETS.DEFORM_ON_PER_STAGE} needs 4 values, for res2 to res5")


def _check_anchors(model: CfgNode) -> None:
    for name in ("SIZES", "ASPECT_RATIOS"):
        values = model.ANCHOR_GENERATOR[name]
        if len(values) not in (1, len(model.RPN.IN_FEATURES)):
            raise UserError(f"MODEL.ANCHOR_GENERATOR.{name} has {len(values)} lists; supported: 1 or one for each of "
                            f"MODEL.RPN.IN_FEATURES ({len(model.RPN.IN_FEATURES)})")


def _read_yaml(path: Path) -> dict:
    try:
        loaded = CfgNode.load_yaml_with_base(str(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: its _BASE_ {error.filename} does not exist") from error
    except RecursionError as error:
        raise UserError(f"{path}: its _BASE_ leads back to itself") from error
    except (AssertionError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a configuration, which is sections of keys in YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a configuration, which is sections of keys in YAML: found {type(loaded).__name__}")
    return loaded


def _leaves(section: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    """(full key, value) of everything in nested sections."""
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _nearest(key: str, known: Iterable[str]) -> str:
    """A hint at the key that was probably meant: close as a whole, or the same last name in another section."""
    last = key.rsplit(".", 1)[-1]
    nearest = [name for name in known if name.rsplit(".", 1)[-1] == last.upper()]
    nearest = difflib.get_close_matches(key, nearest or known, n=1, cutoff=0.3 if nearest else 0.5)
    return f"; nearest known key: {nearest[0]}" if nearest else ""
