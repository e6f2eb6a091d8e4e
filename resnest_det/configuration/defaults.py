"""Every configuration key with its default: Detectron2's, the ResNeSt wrapper's, and this project's own.

Names and defaults are those of `detectron2.config.defaults` (version 2), which documents them; comments here mark what
differs. `resnest_det.configuration.checking` says which values the built-in detector honours.
"""

import copy

from fvcore.common.config import CfgNode

# Under MODEL.RESNETS, as in the authors' Detectron2 wrapper.
RESNEST_KEYS = dict(
    STRIDE_IN_1X1=False,
    DEEP_STEM=True,
    AVD=True,  # an average pool beside the 3x3 convolution takes its stride
    AVG_DOWN=True,
    RADIX=2,  # 1: one split with a sigmoid; 0: a plain convolution
    BOTTLENECK_WIDTH=64,
    # This project's own:
    AVD_FIRST=False,  # that pool comes before the convolution, as in the "fast" variants, not after
    RES4_DILATION=1,
    DILATION_STYLE="detectron2",  # whose dilation RES4_DILATION and RES5_DILATION are
    CHECKPOINT_STAGES=[],  # stages recomputed in the backward pass, to save memory
)

_BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

DEFAULTS = dict(
    VERSION=2,
    OUTPUT_DIR="./output",
    SEED=-1,
    CUDNN_BENCHMARK=False,
    FLOAT32_PRECISION="",
    VIS_PERIOD=0,
    VIS_EPOCHS=0.0,  # this project's own, as all keys in epochs: above 0 it takes the place of the number of iterations
    GLOBAL=dict(HACK=1.0),
    MODEL=dict(
        META_ARCHITECTURE="GeneralizedRCNN",
        DEVICE="auto",  # Detectron2: "cuda". "auto" takes a GPU if there is one.
        WEIGHTS="",
        WEIGHTS_ALLOW_MISMATCH=False,  # this project's own: True leaves parameters that do not fit untrained
        MASK_ON=False,
        KEYPOINT_ON=False,
        LOAD_PROPOSALS=False,
        PIXEL_MEAN=[103.530, 116.280, 123.675],
        PIXEL_STD=[1.0, 1.0, 1.0],
        BACKBONE=dict(NAME="build_resnet_backbone", FREEZE_AT=2),
        RESNETS=dict(
            DEPTH=50,
            OUT_FEATURES=["res4"],
            NUM_GROUPS=1,
            NORM="FrozenBN",
            WIDTH_PER_GROUP=64,
            RES5_DILATION=1,
            RES2_OUT_CHANNELS=256,
            STEM_OUT_CHANNELS=64,
            DEFORM_ON_PER_STAGE=[False, False, False, False],
            DEFORM_MODULATED=False,
            DEFORM_NUM_GROUPS=1,
            # Of Detectron2's project DeepLab, as are the keys marked so below.
            RES5_MULTI_GRID=[1, 2, 4],  # read by build_resnest_deeplab_backbone
            STEM_TYPE="deeplab",
            **RESNEST_KEYS,
        ),
        FPN=dict(IN_FEATURES=[], OUT_CHANNELS=256, NORM="", FUSE_TYPE="sum"),
        PROPOSAL_GENERATOR=dict(NAME="RPN", MIN_SIZE=0),
        ANCHOR_GENERATOR=dict(
            NAME="DefaultAnchorGenerator",
            SIZES=[[32, 64, 128, 256, 512]],
            ASPECT_RATIOS=[[0.5, 1.0, 2.0]],
            ANGLES=[[-90, 0, 90]],
            OFFSET=0.0,
        ),
        RPN=dict(
            HEAD_NAME="StandardRPNHead",
            IN_FEATURES=["res4"],
            CONV_DIMS=[-1],
            BOUNDARY_THRESH=-1,
            IOU_THRESHOLDS=[0.3, 0.7],
            IOU_LABELS=[0, -1, 1],
            BATCH_SIZE_PER_IMAGE=256,
            POSITIVE_FRACTION=0.5,
            BBOX_REG_LOSS_TYPE="smooth_l1",
            BBOX_REG_LOSS_WEIGHT=1.0,
            BBOX_REG_WEIGHTS=(1.0, 1.0, 1.0, 1.0),
            SMOOTH_L1_BETA=0.0,
            LOSS_WEIGHT=1.0,
            PRE_NMS_TOPK_TRAIN=12000,
            PRE_NMS_TOPK_TEST=6000,
            POST_NMS_TOPK_TRAIN=2000,
            POST_NMS_TOPK_TEST=1000,
            NMS_THRESH=0.7,
        ),
        ROI_HEADS=dict(
            NAME="Res5ROIHeads",
            NUM_CLASSES=80,
            IN_FEATURES=["res4"],
            IOU_THRESHOLDS=[0.5],
            IOU_LABELS=[0, 1],
            BATCH_SIZE_PER_IMAGE=512,
            POSITIVE_FRACTION=0.25,
            PROPOSAL_APPEND_GT=True,
            SCORE_THRESH_TEST=0.05,
            NMS_THRESH_TEST=0.5,
        ),
        ROI_BOX_HEAD=dict(
            NAME="",
            NUM_CONV=0,
            CONV_DIM=256,
            NUM_FC=0,
            FC_DIM=1024,
            NORM="",
            POOLER_TYPE="ROIAlignV2",
            POOLER_RESOLUTION=14,
            POOLER_SAMPLING_RATIO=0,
            CLS_AGNOSTIC_BBOX_REG=False,
            BBOX_REG_LOSS_TYPE="smooth_l1",
            BBOX_REG_LOSS_WEIGHT=1.0,
            BBOX_REG_WEIGHTS=_BOX_WEIGHTS[0],
            SMOOTH_L1_BETA=0.0,
            TRAIN_ON_PRED_BOXES=False,
            USE_FED_LOSS=False,
            USE_SIGMOID_CE=False,
            FED_LOSS_FREQ_WEIGHT_POWER=0.5,
            FED_LOSS_NUM_CLASSES=50,
        ),
        ROI_BOX_CASCADE_HEAD=dict(BBOX_REG_WEIGHTS=_BOX_WEIGHTS, IOUS=(0.5, 0.6, 0.7)),
        ROI_MASK_HEAD=dict(
            NAME="MaskRCNNConvUpsampleHead",
            NUM_CONV=0,
            CONV_DIM=256,
            NORM="",
            POOLER_TYPE="ROIAlignV2",
            POOLER_RESOLUTION=14,
            POOLER_SAMPLING_RATIO=0,
            CLS_AGNOSTIC_MASK=False,
        ),
        ROI_KEYPOINT_HEAD=dict(
            NAME="KRCNNConvDeconvUpsampleHead",
            POOLER_RESOLUTION=14,
            POOLER_SAMPLING_RATIO=0,
            POOLER_TYPE="ROIAlignV2",
            CONV_DIMS=(512,) * 8,
            NUM_KEYPOINTS=17,
            MIN_KEYPOINTS_PER_IMAGE=1,
            NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS=True,
            LOSS_WEIGHT=1.0,
        ),
        SEM_SEG_HEAD=dict(
            NAME="SemSegFPNHead",
            IN_FEATURES=["p2", "p3", "p4", "p5"],
            IGNORE_VALUE=255,  # what datasets have for pixels without a label becomes this
            NUM_CLASSES=54,
            CONVS_DIM=128,
            COMMON_STRIDE=4,
            NORM="GN",
            LOSS_WEIGHT=1.0,
            # DeepLab's:
            LOSS_TYPE="hard_pixel_mining",
            PROJECT_FEATURES=["res2"],
            PROJECT_CHANNELS=[48],
            ASPP_CHANNELS=256,
            ASPP_DILATIONS=[6, 12, 18],
            ASPP_DROPOUT=0.1,
            USE_DEPTHWISE_SEPARABLE_CONV=False,
            # This project's own:
            STYLE="detectron2",  # whose details the heads on a dilated network have
            ALIGN_CORNERS=False,
            DROPOUT=0.0,
            CLASS_WEIGHTS=[],
            AUX_HEAD=dict(ENABLED=False, IN_FEATURE="res4", CONVS_DIM=256, LOSS_WEIGHT=0.4),
        ),
        PANOPTIC_FPN=dict(
            INSTANCE_LOSS_WEIGHT=1.0,
            COMBINE=dict(ENABLED=True, OVERLAP_THRESH=0.5, STUFF_AREA_LIMIT=4096, INSTANCES_CONFIDENCE_THRESH=0.5),
        ),
        RETINANET=dict(
            NUM_CLASSES=80,
            IN_FEATURES=["p3", "p4", "p5", "p6", "p7"],
            NUM_CONVS=4,
            IOU_THRESHOLDS=[0.4, 0.5],
            IOU_LABELS=[0, -1, 1],
            PRIOR_PROB=0.01,
            SCORE_THRESH_TEST=0.05,
            TOPK_CANDIDATES_TEST=1000,
            NMS_THRESH_TEST=0.5,
            BBOX_REG_WEIGHTS=(1.0, 1.0, 1.0, 1.0),
            FOCAL_LOSS_GAMMA=2.0,
            FOCAL_LOSS_ALPHA=0.25,
            SMOOTH_L1_LOSS_BETA=0.1,
            BBOX_REG_LOSS_TYPE="smooth_l1",
            NORM="",
        ),
    ),
    INPUT=dict(
        FORMAT="BGR",
        MASK_FORMAT="polygon",
        MIN_SIZE_TRAIN=(800,),
        MIN_SIZE_TRAIN_SAMPLING="choice",
        MAX_SIZE_TRAIN=1333,
        RESIZE_LIBRARY_TRAIN="pillow",  # this project's own: "pillow", whose pixels are Detectron2's, or "torch"
        MIN_SIZE_TEST=800,
        MAX_SIZE_TEST=1333,
        RANDOM_FLIP="horizontal",
        LONG_SIDE_TRAIN=(),  # this project's own: two ends of a range, in the place of MIN_SIZE_TRAIN
        COLOR_AUG_SSD=False,  # of Detectron2's project PointRend
        CROP=dict(
            ENABLED=False,
            TYPE="relative_range",
            SIZE=[0.9, 0.9],
            SINGLE_CATEGORY_MAX_AREA=1.0,  # DeepLab's
            PAD=False,  # this project's own
        ),
    ),
    DATASETS=dict(
        TRAIN=(),
        TEST=(),
        PROPOSAL_FILES_TRAIN=(),
        PROPOSAL_FILES_TEST=(),
        PRECOMPUTED_PROPOSAL_TOPK_TRAIN=2000,
        PRECOMPUTED_PROPOSAL_TOPK_TEST=1000,
        # This project's own. Datasets beside those known by name: {"name"} and the files as in `resnest_det.data.catalog`.
        REGISTERED=[],
        ROOT="",  # the folder of datasets known by name, where DETECTRON2_DATASETS is not set
        # A run writes down what the classes of its model are called, and their ids in the data. Whoever uses the model goes by
        # them where its weights do not say.
        THING_CLASSES=[],
        THING_IDS=[],
        STUFF_CLASSES=[],
        STUFF_IDS=[],
    ),
    DATALOADER=dict(
        NUM_WORKERS=4,
        ASPECT_RATIO_GROUPING=True,
        SAMPLER_TRAIN="TrainingSampler",
        REPEAT_THRESHOLD=0.0,
        REPEAT_SQRT=True,
        FILTER_EMPTY_ANNOTATIONS=True,
    ),
    SOLVER=dict(
        IMS_PER_BATCH=16,
        MAX_ITER=40000,
        MAX_EPOCHS=0.0,
        OPTIMIZER="SGD",  # as in Detectron2's project Mask2Former
        BASE_LR=0.001,
        BASE_LR_END=0.0,
        BIAS_LR_FACTOR=1.0,
        HEAD_LR_FACTOR=1.0,  # this project's own: of everything outside the backbone
        RPN_LR_FACTOR=1.0,  # this project's own
        MOMENTUM=0.9,
        NESTEROV=False,
        WEIGHT_DECAY=0.0001,
        WEIGHT_DECAY_NORM=0.0,
        WEIGHT_DECAY_BIAS=None,
        LR_SCHEDULER_NAME="WarmupMultiStepLR",
        STEPS=(30000,),
        STEPS_EPOCHS=(),
        GAMMA=0.1,
        NUM_DECAYS=3,
        POLY_LR_POWER=0.9,  # DeepLab's
        POLY_LR_CONSTANT_ENDING=0.0,
        RESCALE_INTERVAL=False,
        WARMUP_FACTOR=1.0 / 1000,
        WARMUP_ITERS=1000,
        WARMUP_EPOCHS=0.0,
        WARMUP_METHOD="linear",
        CHECKPOINT_PERIOD=5000,
        CHECKPOINT_EPOCHS=0.0,
        CHECKPOINTS_KEPT=0,  # this project's own: of those saved every CHECKPOINT_PERIOD, the last ones; 0 keeps all
        EMA=dict(ENABLED=False, DECAY=0.999),  # this project's own: evaluate and save a moving average of the parameters too
        REFERENCE_WORLD_SIZE=0,
        CLIP_GRADIENTS=dict(ENABLED=False, CLIP_TYPE="value", CLIP_VALUE=1.0, NORM_TYPE=2.0),
        AMP=dict(ENABLED=False, PRECISION=""),  # PRECISION is this project's own; "": fp16 on GPUs, bf16 on CPUs
        ACCUMULATE=1,  # this project's own: parts that a batch goes through the network in, one after the other
    ),
    TEST=dict(
        EVAL_PERIOD=0,
        EVAL_EPOCHS=0.0,
        BEST_METRIC="",  # this project's own: the figure by which model_best.pth is chosen, such as "segm/AP"; "": by the model
        PATIENCE=0,  # this project's own: evaluations without a better figure after which training stops; 0: it does not
        EXPECTED_RESULTS=[],
        KEYPOINT_OKS_SIGMAS=[],
        DETECTIONS_PER_IMAGE=100,
        AP_MAX_DETECTIONS=100,  # this project's own: detections of an image and class that AP counts, 100 by COCO's definition
        FOLD_NORMS=True,  # this project's own: evaluate a faster copy, norms in convolutions; False: the model as it is
        PRECISION="fp32",  # this project's own, with FOLD_NORMS: "auto" is the fastest that the device has
        COMPILE=False,  # this project's own, with FOLD_NORMS: torch.compile
        REPORT=True,  # this project's own: write report.html at the end of a training
        # This project's own: how many images of each dataset are drawn beside their truth, detections from which score on, and
        # whether they are the worst ones, not such as are spread evenly over the dataset.
        PICTURES=dict(COUNT=4, SCORE_THRESH=0.5, WORST=False),
        WRITE_LABELS=False,  # this project's own: the classes of the pixels of each image, as the dataset's own label PNG files
        AUG=dict(
            ENABLED=False,
            MIN_SIZES=(400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
            MAX_SIZE=4000,
            FLIP=True,
            # This project's own, of a SemanticSegmentor:
            SCALES=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
            LONG_SIDE=0,
            WINDOW=(),
            COMBINE="probabilities",
        ),
        PRECISE_BN=dict(ENABLED=False, NUM_ITER=200),
    ),
)


def add_resnest_config(cfg: CfgNode) -> None:
    """Add the keys of ResNeSt, with their defaults, to a configuration that has MODEL.RESNETS, such as Detectron2's.

    Every other key that this project has and `cfg` lacks is added too, so that the `config.yaml` of a run can be merged into it.
    """
    _add_missing(cfg, DEFAULTS)
    for key, value in RESNEST_KEYS.items():
        cfg.MODEL.RESNETS[key] = copy.copy(value)


def _add_missing(cfg: CfgNode, defaults: dict) -> None:
    for key, value in defaults.items():
        if key not in cfg:
            # Detectron2's own class, which takes no other in its place.
            cfg[key] = type(cfg)(value) if isinstance(value, dict) else copy.copy(value)
        elif isinstance(value, dict):
            _add_missing(cfg[key], value)


def default_config() -> CfgNode:
    """A new configuration with every key at its default."""
    return CfgNode(DEFAULTS)
