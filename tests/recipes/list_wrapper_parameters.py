"""Writes `wrapper_parameters.json.gz`: every recipe's parameters as the authors' Detectron2 wrapper has them.

    python list_wrapper_parameters.py AUTHORS_REPOSITORY

needs Detectron2 and a checkout of github.com/zhanghang1989/ResNeSt. A recipe that the authors published as a YAML file is built
from that file, any other from ours.
"""

import gzip
import json
import sys
from pathlib import Path

import torch

FILE = Path(__file__).with_name("wrapper_parameters.json.gz")
CONFIGS = Path(__file__).parents[2] / "configs"

# Recipe to the authors' file under d2/configs.
AUTHORS_FILES = {
    "faster_rcnn_ResNet50_FPN": "COCO-Detection/faster_rcnn_R_50_FPN_syncbn_range-scale_1x",
    "faster_rcnn_ResNet101_FPN": "COCO-Detection/faster_rcnn_R_101_FPN_syncbn_range-scale_1x",
    "faster_rcnn_ResNeSt50_FPN": "COCO-Detection/faster_rcnn_ResNeSt_50_FPN_syncbn_range-scale_1x",
    "faster_rcnn_ResNeSt50_FPN_dcn": "COCO-Detection/faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x",
    "faster_rcnn_ResNeSt101_FPN": "COCO-Detection/faster_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x",
    "cascade_rcnn_ResNet50_FPN": "COCO-Detection/faster_cascade_rcnn_R_50_FPN_syncbn_range-scale_1x",
    "cascade_rcnn_ResNet101_FPN": "COCO-Detection/faster_cascade_rcnn_R_101_FPN_syncbn_range-scale_1x",
    "cascade_rcnn_ResNeSt50_FPN": "COCO-Detection/faster_cascade_rcnn_ResNeSt_50_FPN_syncbn_range-scale-1x",
    "cascade_rcnn_ResNeSt101_FPN": "COCO-Detection/faster_cascade_rcnn_ResNeSt_101_FPN_syncbn_range-scale_1x",
    "cascade_rcnn_ResNeSt200_FPN": "COCO-Detection/faster_cascade_rcnn_ResNeSt_200_FPN_syncbn_range-scale_1x",
    "mask_rcnn_ResNet50_FPN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_syncbn_1x",
    "mask_rcnn_ResNet101_FPN": "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_syncbn_1x",
    "mask_rcnn_ResNeSt50_FPN": "COCO-InstanceSegmentation/mask_rcnn_ResNeSt_50_FPN_syncBN_1x",
    "mask_rcnn_ResNeSt101_FPN": "COCO-InstanceSegmentation/mask_rcnn_ResNeSt_101_FPN_syncBN_1x",
    "cascade_mask_rcnn_ResNet50_FPN": "COCO-InstanceSegmentation/mask_cascade_rcnn_R_50_FPN_syncbn_1x",
    "cascade_mask_rcnn_ResNet101_FPN": "COCO-InstanceSegmentation/mask_cascade_rcnn_R_101_FPN_syncbn_1x",
    "cascade_mask_rcnn_ResNeSt50_FPN": "COCO-InstanceSegmentation/mask_cascade_rcnn_ResNeSt_50_FPN_syncBN_1x",
    "cascade_mask_rcnn_ResNeSt101_FPN": "COCO-InstanceSegmentation/mask_cascade_rcnn_ResNeSt_101_FPN_syncBN_1x",
    "cascade_mask_rcnn_ResNeSt200_FPN_3x": "COCO-InstanceSegmentation/mask_cascade_rcnn_ResNeSt_200_FPN_syncBN_all_tricks_3x",
    "cascade_mask_rcnn_ResNeSt200_FPN_dcn_3x": (
        "COCO-InstanceSegmentation/mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x"
    ),
    "panoptic_cascade_ResNeSt200_FPN_3x": "COCO-PanopticSegmentation/panoptic_ResNeSt_200_FPN_syncBN_tricks_3x",
}


def wrapper_parameters(path: Path) -> list[str]:
    """ "name (shape)" of all parameters and buffers but the norms' counters of batches, without anything being computed."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from resnest.d2 import add_resnest_config

    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    return [
        f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")
    ]


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    authors = Path(sys.argv[1], "d2", "configs")
    recipes = sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("Base-"))
    recipes_with = {}  # parameter to the numbers of the recipes that have it: most have most in common
    for number, recipe in enumerate(recipes):
        own = CONFIGS / f"{recipe}.yaml"
        for parameter in wrapper_parameters(authors / f"{AUTHORS_FILES[recipe]}.yaml" if recipe in AUTHORS_FILES else own):
            recipes_with.setdefault(parameter, []).append(number)
        print(recipe, sum(number in having for having in recipes_with.values()))
    sets: dict[str, list[str]] = {}
    for parameter, having in sorted(recipes_with.items()):
        sets.setdefault(" ".join(map(str, having)), []).append(parameter)
    with gzip.GzipFile(FILE, "wb", mtime=0) as file:
        file.write(json.dumps({"recipes": recipes, "parameters": sets}).encode())


if __name__ == "__main__":
    main()
