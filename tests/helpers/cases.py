"""The configurations and inputs of the golden files; both hosts read them from here."""

import numpy as np
import pycocotools.mask as mask_util
import torch

# Small enough for seconds on a CPU; sampling takes everything, so that losses do not depend on what is drawn.
BASE = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_resnest_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.PIXEL_MEAN": [123.68, 116.779, 103.939],
    "MODEL.PIXEL_STD": [58.393, 57.12, 57.375],
    "MODEL.RESNETS.DEPTH": 14,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [96], [128]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 150,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 120,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 60,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 20000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 6,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 600,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.2,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}

# Detectron2's project DeepLab. Dropout would draw from the global generator.
_DEEPLAB = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.BACKBONE.NAME": "build_resnest_deeplab_backbone",
    "MODEL.RESNETS.DEPTH": 26,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 32,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [1, 2, 4],
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": 0.0,
}

# Batch norm stands in pyramid and heads only: in split attention it would be over the two descriptors of two images, whose
# gradient magnifies rounding ten thousand times.
CASES = {
    "faster_frozenbn": {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.BACKBONE.FREEZE_AT": 2},
    "mask_bn": {
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.FPN.NORM": "BN",
        "MODEL.ROI_BOX_HEAD.NORM": "BN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_MASK_HEAD.NORM": "BN",
    },
    "mask_gn_radix1_agnostic_giou": {
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.RESNETS.RADIX": 1,
        "MODEL.FPN.NORM": "GN",
        "MODEL.FPN.FUSE_TYPE": "avg",
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 2.0,
        "MODEL.ROI_BOX_HEAD.NORM": "GN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 3.0,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
        "INPUT.MASK_FORMAT": "bitmask",
    },
    "mask_radix4_predicted_boxes": {
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.RESNETS.RADIX": 4,
        "MODEL.RESNETS.AVD_FIRST": True,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 24], [32, 48], [64, 80], [96, 112], [128, 160]],
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 4,
        "MODEL.RPN.CONV_DIMS": [24, -1],
        "MODEL.RPN.BOUNDARY_THRESH": 8,
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "diou",
        "MODEL.RPN.LOSS_WEIGHT": 0.5,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.3, 0.4],
        "MODEL.ROI_HEADS.IOU_LABELS": [0, -1, 1],
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.7,
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
        "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True,
        "INPUT.MASK_FORMAT": "bitmask",
    },
    "cascade_mask_gn_ciou": {
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.NORM": "GN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "ciou",
    },
    "mask_plain_resnet": {
        "MODEL.MASK_ON": True,
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 1,
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.RPN.SMOOTH_L1_BETA": 0.1,
    },
    "panoptic_gn": {
        "MODEL.META_ARCHITECTURE": "PanopticFPN",
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5,
        "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": 0.7,
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 300,
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.4,
    },
    "panoptic_cascade_bn": {
        "MODEL.META_ARCHITECTURE": "PanopticFPN",
        "MODEL.MASK_ON": True,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
        "MODEL.SEM_SEG_HEAD.NORM": "BN",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p3", "p4", "p5"],
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8,
        "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": 0.2,
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 50,
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.3,
    },
    "semantic_fpn_bn": {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.FPN.NORM": "BN",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "MODEL.SEM_SEG_HEAD.NORM": "BN",
    },
    "semantic_output_stride_8": {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "MODEL.BACKBONE.NAME": "build_resnest_backbone",
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.RESNETS.RES4_DILATION": 2,
        "MODEL.RESNETS.RES5_DILATION": 4,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
        "MODEL.SEM_SEG_HEAD.NORM": "",
    },
    "semantic_deeplab_v3": {
        **_DEEPLAB,
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3Head",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 16,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.NORM": "BN",
    },
    "semantic_deeplab_v3_plus": {
        **_DEEPLAB,
        "MODEL.RESNETS.RES4_DILATION": 2,
        "MODEL.RESNETS.RES5_DILATION": 4,
        "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3PlusHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res5"],
        "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": ["res2", "res3"],
        "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [12, 20],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 24,
        "MODEL.SEM_SEG_HEAD.NORM": "BN",
        "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "cross_entropy",
        "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5,
    },
    "semantic_deeplab_v3_plus_separable": {
        **_DEEPLAB,
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3PlusHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5", "res2"],
        "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [16],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 24,
        "MODEL.SEM_SEG_HEAD.NORM": "",
        "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": True,
        "INPUT.CROP.ENABLED": True,  # the pooled branch has windows of this size
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": [64, 144],
    },
}

IMAGE_SIZES = ((97, 131), (128, 90))  # (height, width): odd, and different within the batch
RESCALES = ((150, 203), (64, 45))  # the sizes of the images themselves: one was made smaller, the other larger
# With these images no overlap, score or activation that matters lies within rounding of a threshold (tried with scalar, AVX2 and
# AVX-512 kernels), so that the answers do not depend on the processor.
FIRST_SEED = 140


def make_samples(case: str) -> list[dict]:
    """Two images with targets. In the cascade case the second has no object."""
    bitmasks = CASES[case].get("INPUT.MASK_FORMAT") == "bitmask"
    samples = []
    for index, ((height, width), (full_height, full_width)) in enumerate(zip(IMAGE_SIZES, RESCALES)):
        random = np.random.RandomState(FIRST_SEED + index)
        coarse = random.uniform(0, 255, (3, -(-height // 16), -(-width // 16)))
        image = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width] * 0.7 + random.uniform(0, 75, (3, height, width))
        count = 0 if case.startswith("cascade") and index == 1 else 5
        boxes, polygons = [], []
        for _ in range(count):
            center = random.uniform(0.25, 0.75, 2) * (width, height)
            radius = random.uniform(8, 22, 2)
            corners = 5 + random.randint(4)
            angles = np.sort(random.uniform(0, 2 * np.pi, corners))
            polygon = center + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
            polygon = polygon.clip(0, (width, height))
            boxes.append([*polygon.min(axis=0), *polygon.max(axis=0)])
            polygons.append([polygon.ravel()])
        if count:
            polygons[0].append(polygons[1][0])  # an object of two parts
        target = {
            "boxes": torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            "labels": torch.from_numpy(random.randint(0, BASE["MODEL.ROI_HEADS.NUM_CLASSES"], count)).long(),
        }
        if CASES[case].get("MODEL.MASK_ON"):
            target["masks"] = fill_polygons(polygons, height, width) if bitmasks else polygons
        semantic_classes = CASES[case].get("MODEL.SEM_SEG_HEAD.NUM_CLASSES")
        if semantic_classes:
            labels = random.randint(-1, semantic_classes, (-(-height // 24), -(-width // 24)))
            labels = labels.repeat(24, axis=0).repeat(24, axis=1)
            target["sem_seg"] = torch.from_numpy(np.where(labels < 0, 255, labels)[:height, :width].astype(np.uint8))
        samples.append(
            {"image": torch.from_numpy(image.astype(np.uint8)), "height": full_height, "width": full_width, "target": target}
        )
    return samples


def fill_polygons(polygons: list[list[np.ndarray]], height: int, width: int) -> torch.Tensor:
    """(N, height, width) bool masks."""
    masks = [mask_util.decode(mask_util.merge(mask_util.frPyObjects(parts, height, width))) for parts in polygons]
    return torch.from_numpy(np.stack(masks).astype(bool))


def overrides(case: str) -> list:
    """KEY, VALUE, ... for `merge_from_list` of either host's configuration."""
    return [item for pair in (BASE | CASES[case]).items() for item in pair]
