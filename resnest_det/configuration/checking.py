"""Which values of a configuration the built-in detector honours; all others are refused."""

from collections.abc import Iterable

from fvcore.common.config import CfgNode

from resnest_det.backbone.layers import NORMS
from resnest_det.backbone.resnest import BLOCKS_PER_STAGE, DILATION_STYLES, STAGES
from resnest_det.configuration.data import build_augmentation
from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.model import assemble_model, build_pixel_views, shapes_only
from resnest_det.configuration.nodes import leaves
from resnest_det.configuration.semantic import HARDEST, HEAD_STYLES, HEADS, SOME_READ
from resnest_det.configuration.solver import (
    MOST_ITERATIONS,
    build_average,
    build_gradient_clipper,
    build_optimizer,
    build_schedule,
)
from resnest_det.configuration.tables import ARCHITECTURES, BACKBONES, FIGURES, best_metric, tasks_of
from resnest_det.errors import UserError, shown

# Keys with a closed set of values in the built-in detector.
CHOICES = {
    "VERSION": (2,),
    "FLOAT32_PRECISION": ("", "highest", "high", "medium"),
    "SOLVER.OPTIMIZER": ("SGD", "ADAMW", "MUON"),
    "SOLVER.AMP.PRECISION": ("", "bf16", "fp16"),
    "TEST.PRECISION": ("auto", "fp32", "bf16", "fp16"),
    "MODEL.META_ARCHITECTURE": tuple(ARCHITECTURES),
    "MODEL.BACKBONE.NAME": tuple(BACKBONES),
    "MODEL.RESNETS.DEPTH": tuple(BLOCKS_PER_STAGE),
    "MODEL.RESNETS.NORM": NORMS,
    "MODEL.RESNETS.DILATION_STYLE": tuple(DILATION_STYLES),
    "MODEL.FPN.NORM": NORMS,
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "CascadeROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_BOX_HEAD.NORM": NORMS,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.NORM": NORMS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.SEM_SEG_HEAD.NAME": tuple(HEADS),
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": tuple(HARDEST),
    "MODEL.SEM_SEG_HEAD.STYLE": tuple(HEAD_STYLES),
    "MODEL.SEM_SEG_HEAD.NORM": NORMS,
    "INPUT.FORMAT": ("BGR", "RGB", "L"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RESIZE_LIBRARY_TRAIN": ("pillow", "torch"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
}

# Keys of parts that the built-in detector does not have: any other value than the default would do nothing.
NOT_READ = (
    "GLOBAL.",
    "MODEL.KEYPOINT_ON",
    "MODEL.LOAD_PROPOSALS",
    "MODEL.ROI_KEYPOINT_HEAD.",
    "MODEL.RETINANET.",
    "MODEL.RESNETS.STEM_TYPE",
    "MODEL.ANCHOR_GENERATOR.ANGLES",
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_",
    "DATASETS.PROPOSAL_FILES_",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_",
    "TEST.KEYPOINT_OKS_SIGMAS",
)

# What a model that only labels pixels has no part for. It may be set all the same: such a configuration shares its base with
# those of detectors.
INSTANCE_KEYS = ("MODEL.PROPOSAL_GENERATOR.", "MODEL.ANCHOR_GENERATOR.", "MODEL.RPN.", "MODEL.ROI_")

AT_LEAST = {
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.MAX_ITER": 0,
    "SOLVER.MAX_EPOCHS": 0,
    "SOLVER.WARMUP_EPOCHS": 0,
    "SOLVER.CHECKPOINT_EPOCHS": 0,
    "TEST.EVAL_EPOCHS": 0,
    "TEST.PATIENCE": 0,
    "SOLVER.CHECKPOINTS_KEPT": 0,
    "VIS_EPOCHS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.HEAD_LR_FACTOR": 0,
    "SOLVER.RPN_LR_FACTOR": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.DETECTIONS_PER_IMAGE": 1,
    "TEST.AP_MAX_DETECTIONS": 10,
    "TEST.PICTURES.COUNT": 0,
    "TEST.PICTURES.SCORE_THRESH": 0.0,
    "TEST.PRECISE_BN.NUM_ITER": 1,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.RADIX": 0,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1,
    "MODEL.RESNETS.BOTTLENECK_WIDTH": 1,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.FPN.OUT_CHANNELS": 1,
    "INPUT.MIN_SIZE_TEST": 0,
    "INPUT.MAX_SIZE_TEST": 1,
    "INPUT.MAX_SIZE_TRAIN": 1,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 1,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 1,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 1,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 1,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 1,
    "MODEL.SEM_SEG_HEAD.AUX_HEAD.CONVS_DIM": 1,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 0,
    "VIS_PERIOD": 0,
    "TEST.AUG.MAX_SIZE": 1,
    "TEST.AUG.LONG_SIDE": 0,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 2,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 1,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 1,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 1,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SEED": -1,
}

# For numbers far beyond every use, whose memory or time nobody waits for.
AT_MOST = {
    "SOLVER.MAX_ITER": MOST_ITERATIONS,
    "SOLVER.MAX_EPOCHS": 10**6,
    "SOLVER.IMS_PER_BATCH": 10**6,
    "SOLVER.ACCUMULATE": 10**6,
    "SOLVER.NUM_DECAYS": 10**4,
    "DATALOADER.NUM_WORKERS": 10**4,
    "INPUT.MIN_SIZE_TEST": 10**6,
    "INPUT.MAX_SIZE_TEST": 10**6,
    "INPUT.MAX_SIZE_TRAIN": 10**6,
    "TEST.AUG.MAX_SIZE": 10**6,
    "TEST.AUG.LONG_SIDE": 10**6,
    "TEST.DETECTIONS_PER_IMAGE": 10**6,
    "TEST.AP_MAX_DETECTIONS": 10**6,
    "TEST.PICTURES.COUNT": 10**4,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 10**6,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 10**6,
    "MODEL.ROI_HEADS.NUM_CLASSES": 10**6,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 10**6,
    "MODEL.RESNETS.RADIX": 64,
    "MODEL.RESNETS.NUM_GROUPS": 2**16,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 2**16,
    "MODEL.RESNETS.BOTTLENECK_WIDTH": 2**16,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 2**16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 2**16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2**16,
    "MODEL.FPN.OUT_CHANNELS": 2**16,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 100,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 100,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 2**16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 2**16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 2**10,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 100,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 2**16,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 2**10,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 2**16,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 2**16,
    "MODEL.SEM_SEG_HEAD.AUX_HEAD.CONVS_DIM": 2**16,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 1000,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 1000,
    "MODEL.ANCHOR_GENERATOR.OFFSET": 1,
}
MOST_PIXELS = 10**6  # of a side
MOST_PARAMETERS = 10**10  # 40 GB; a hundred times the largest recipe


def check_supported(cfg: CfgNode) -> None:
    """Refuse every value that the built-in detector would ignore or could not honour.

    Raises:
        UserError: naming the key, its value and what is supported.
    """
    values, defaults = dict(leaves(cfg)), dict(leaves(default_config()))
    if cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        raise _not_among("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, ARCHITECTURES)
    architecture, name = ARCHITECTURES[cfg.MODEL.META_ARCHITECTURE], cfg.MODEL.META_ARCHITECTURE
    skipped = () if architecture.objects else INSTANCE_KEYS
    for key, choices in CHOICES.items():
        if values[key] not in choices and not key.startswith(skipped):
            raise _not_among(key, values[key], choices)
    not_read_by = {NOT_READ: "the built-in detector", architecture.not_read: f"a {name}"}
    if architecture.pixels:
        head = cfg.MODEL.SEM_SEG_HEAD.NAME
        unread = [key for key in SOME_READ if key not in HEADS[head]]
        not_read_by[tuple(f"MODEL.SEM_SEG_HEAD.{key}" for key in unread)] = f"a {head}"
    if cfg.MODEL.BACKBONE.NAME != "build_resnest_deeplab_backbone":
        not_read_by[("MODEL.RESNETS.RES5_MULTI_GRID",)] = cfg.MODEL.BACKBONE.NAME
    for not_read, reader in not_read_by.items():
        for key, value in values.items():
            if key.startswith(not_read) and value != defaults[key]:
                raise UserError(
                    f"{key} {shown(value)} is not supported: {reader} does not read this key; "
                    f"supported: {defaults[key]!r}, its default"
                )
    for key, least in AT_LEAST.items():
        if values[key] < least:
            raise UserError(f"{key} {shown(values[key])} is too small; supported: {least} and more")
    for key, most in AT_MOST.items():
        if values[key] > most:
            raise UserError(f"{key} {shown(values[key])} is too large; supported: up to {most}")
    for key in ("PRECISION", "COMPILE"):
        if not cfg.TEST.FOLD_NORMS and values[f"TEST.{key}"] != defaults[f"TEST.{key}"]:
            raise UserError(f"TEST.{key} {shown(cfg.TEST[key])} is of the copy that TEST.FOLD_NORMS False does not make")
    if name == "PanopticFPN" and cfg.MODEL.SEM_SEG_HEAD.NAME != "SemSegFPNHead":
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.NAME {cfg.MODEL.SEM_SEG_HEAD.NAME!r} is not supported with MODEL.META_ARCHITECTURE PanopticFPN; "
            "supported: 'SemSegFPNHead'"
        )
    if name == "PanopticFPN" and not cfg.MODEL.MASK_ON:
        raise UserError(
            "MODEL.MASK_ON False is not supported with MODEL.META_ARCHITECTURE PanopticFPN, which fuses masks; supported: True"
        )
    if architecture.objects and not BACKBONES[cfg.MODEL.BACKBONE.NAME].pyramid:
        with_pyramid = ", ".join(repr(each) for each, row in BACKBONES.items() if row.pyramid)
        raise UserError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r} is not supported: a {name} needs a pyramid; "
            f"supported: {with_pyramid}"
        )
    if cfg.TEST.AUG.ENABLED and architecture.objects:
        sizes = cfg.TEST.AUG.MIN_SIZES
        if not sizes or not all(isinstance(size, int) and 1 <= size <= MOST_PIXELS for size in sizes):
            raise UserError(f"TEST.AUG.MIN_SIZES is {shown(tuple(sizes))}; it must be one or more whole numbers of pixels")
    if architecture.pixels and not architecture.objects:
        build_pixel_views(cfg)
    _check_expected_results(cfg)
    _check_best_metric(cfg)
    _check_features(cfg)
    if architecture.objects:
        _check_objects(cfg)


def _not_among(key: str, value: object, choices: Iterable) -> UserError:
    return UserError(
        f"{key} {shown(value)} is not supported by the built-in detector; supported: "
        + ", ".join(repr(choice) for choice in choices)
    )


def _check_expected_results(cfg: CfgNode) -> None:
    """That TEST.EXPECTED_RESULTS asks for nothing that the evaluation would not give, after days of training."""
    tasks = list(tasks_of(cfg).evaluated)
    if cfg.TEST.AUG.ENABLED:
        tasks += [f"{task}_TTA" for task in tasks_of(cfg).augmented]
    for expected in cfg.TEST.EXPECTED_RESULTS:
        kinds = (str, str, (int, float), (int, float))
        if not isinstance(expected, (list, tuple)) or len(expected) != 4 or not all(map(isinstance, expected, kinds)):
            raise UserError(f"TEST.EXPECTED_RESULTS has {shown(expected)}; each entry is [task, metric, value, tolerance]")
        if expected[0] not in tasks:
            raise UserError(
                f"TEST.EXPECTED_RESULTS asks for {expected[0][:80]}, which this configuration (MODEL.META_ARCHITECTURE, "
                f"MODEL.MASK_ON, TEST.AUG.ENABLED) does not evaluate; it evaluates {', '.join(tasks)}"
            )


def _check_best_metric(cfg: CfgNode) -> None:
    """That TEST.BEST_METRIC and TEST.PATIENCE are of evaluations that there will be."""
    metric = best_metric(cfg)
    if len(cfg.DATASETS.TEST) > 1:  # results are then by dataset
        metric = metric.removeprefix(next((f"{name}/" for name in cfg.DATASETS.TEST if metric.startswith(f"{name}/")), ""))
    task, _, figure = metric.partition("/")
    overall, of_a_class = FIGURES.get(task, ((), ()))
    if task not in tasks_of(cfg).evaluated or not (figure in overall or figure.startswith(of_a_class)):
        offered = [f"{task}/{figure}" for task in tasks_of(cfg).evaluated for figure in (*FIGURES[task][0], *FIGURES[task][1])]
        raise UserError(
            f"TEST.BEST_METRIC {shown(cfg.TEST.BEST_METRIC)} is not a figure of this model; supported: {', '.join(offered)}, "
            "and before it the name of one of several datasets in DATASETS.TEST"
        )
    if cfg.TEST.PATIENCE and not (cfg.DATASETS.TEST and (cfg.TEST.EVAL_PERIOD or cfg.TEST.EVAL_EPOCHS)):
        raise UserError(
            f"TEST.PATIENCE {cfg.TEST.PATIENCE} needs evaluations during the training: set DATASETS.TEST, and TEST.EVAL_PERIOD "
            "or TEST.EVAL_EPOCHS"
        )


def _check_features(cfg: CfgNode) -> None:
    """What the network's parts cannot tell by themselves."""
    model = cfg.MODEL
    for key, names, known in (
        ("MODEL.RESNETS.OUT_FEATURES", model.RESNETS.OUT_FEATURES, ("res1", *STAGES)),
        ("MODEL.RESNETS.CHECKPOINT_STAGES", model.RESNETS.CHECKPOINT_STAGES, ("stem", *STAGES)),
    ):
        if not set(names) <= set(known) or not (names or key.endswith("CHECKPOINT_STAGES")):
            raise UserError(f"{key} {shown(list(names))} is not supported; supported: some of {', '.join(known)}")
    if len(model.PIXEL_MEAN) != (1 if cfg.INPUT.FORMAT == "L" else 3):
        raise UserError(
            f"MODEL.PIXEL_MEAN has {len(model.PIXEL_MEAN)} values, which does not fit INPUT.FORMAT {cfg.INPUT.FORMAT!r}"
        )
    if not all(value > 0 for value in model.PIXEL_STD):
        raise UserError(f"MODEL.PIXEL_STD {shown(model.PIXEL_STD)} must be above 0: images are divided by it")
    if max(cfg.INPUT.MIN_SIZE_TRAIN, default=0) > MOST_PIXELS:
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN {shown(cfg.INPUT.MIN_SIZE_TRAIN)} is too large; supported: up to {MOST_PIXELS} pixels"
        )
    if len(model.RESNETS.DEFORM_ON_PER_STAGE) != 4:
        raise UserError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE {shown(model.RESNETS.DEFORM_ON_PER_STAGE)} needs 4 values, for res2 to res5"
        )


def _check_objects(cfg: CfgNode) -> None:
    """What the parts that find objects take for granted."""
    dims = cfg.MODEL.RPN.CONV_DIMS
    if not 1 <= len(dims) <= 100 or not all(dim == -1 or 1 <= dim <= 2**16 for dim in dims):
        raise UserError(
            f"MODEL.RPN.CONV_DIMS {shown(dims)} is not supported; supported: 1 to 100 numbers of channels up to {2**16}, -1 for "
            "those of the pyramid"
        )
    for name in ("RPN", "ROI_HEADS"):
        thresholds, labels = cfg.MODEL[name].IOU_THRESHOLDS, cfg.MODEL[name].IOU_LABELS
        if not thresholds or list(thresholds) != sorted(thresholds) or thresholds[0] <= 0:
            raise UserError(
                f"MODEL.{name}.IOU_THRESHOLDS {shown(thresholds)} is not supported; supported: rising numbers above 0"
            )
        if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
            raise UserError(
                f"MODEL.{name}.IOU_LABELS {shown(labels)} is not supported; supported: {len(thresholds) + 1} of -1, 0, 1, one "
                "more than IOU_THRESHOLDS"
            )


def check_buildable(cfg: CfgNode) -> None:
    """Build everything that `cfg` describes where it costs nothing, so that what its parts refuse is told at once.

    Raises:
        UserError: a class refuses its arguments; the message names the key.
    """
    try:
        with shapes_only():
            model = assemble_model(cfg)
            build_optimizer(cfg, model)
            build_average(cfg, model)
    except UserError:
        raise
    except (ValueError, RuntimeError, OverflowError) as error:  # torch's own, of shapes that cannot be or cannot be counted
        raise UserError(f"MODEL cannot be built of these values: {' '.join(str(error).split())[:300]}") from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MOST_PARAMETERS:
        raise UserError(
            f"the model would have {parameters:.2g} parameters, of {4 * parameters / 1e9:.0f} GB; supported: up to "
            f"{MOST_PARAMETERS:.0e}. Too large are widths, classes or POOLER_RESOLUTION under MODEL"
        )
    if cfg.SOLVER.MAX_ITER > 0:
        build_schedule(cfg)
    build_gradient_clipper(cfg)
    build_augmentation(cfg)
