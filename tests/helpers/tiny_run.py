"""A run small enough for a test: a dataset of a few rectangles, a little network, and reading what a run wrote."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from resnest_det.files import packaged

TINY = """
_BASE_: {base}
MODEL:
  MASK_ON: True
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{DEPTH: 14, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 32}}
  FPN: {{OUT_CHANNELS: 32}}
  ANCHOR_GENERATOR: {{SIZES: [[8], [16], [32], [64], [128]]}}
  RPN: {{PRE_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TRAIN: 30, POST_NMS_TOPK_TEST: 10}}
  ROI_HEADS: {{NUM_CLASSES: 2, BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{NUM_CONV: 1, CONV_DIM: 32, FC_DIM: 32}}
  ROI_MASK_HEAD: {{NUM_CONV: 1, CONV_DIM: 32}}
DATASETS: {{TRAIN: [{name}], TEST: [{name}]}}
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{MIN_SIZE_TRAIN: [48, 64], MIN_SIZE_TEST: 64}}
SOLVER: {{IMS_PER_BATCH: 4, BASE_LR: 0.02, MAX_ITER: 6, STEPS: [5], WARMUP_ITERS: 2, CHECKPOINT_PERIOD: 2}}
TEST: {{PRECISE_BN: {{ENABLED: True, NUM_ITER: 2}}, EVAL_PERIOD: 3, REPORT: False}}
SEED: 5
OUTPUT_DIR: {output}
"""


def write_tiny_run(folder: Path) -> list[str]:
    """Arguments of train_net for a run in `folder`: config file, dataset, output folder `folder`/out."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(1, 7):
        height, width = (64, 80) if number % 2 else (80, 64)
        pixels = random.integers(0, 80, (height, width, 3), dtype=np.uint8)
        for category in (1, 2):
            x, y, w, h = (int(value) for value in random.integers((4, 4, 16, 16), (24, 24, 36, 36)))
            pixels[y : y + h, x : x + w] = (250, 40, 40) if category == 1 else (40, 40, 250)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    (folder / "tiny.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))

    name = f"tiny_{folder.name}"  # a name can be registered once in a process
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(base=packaged("configs") / "Base-RCNN-FPN.yaml", name=name, output=folder / "out"))
    return ["--config-file", str(config), "--register", f"{name}={folder / 'tiny.json'},{folder / 'images'}"]


def read_metrics(folder) -> list[dict]:
    """The lines of a run's metrics.json."""
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def losses_of(folder) -> dict[int, dict[str, float]]:
    """Iteration to its losses and learning rate, which do not depend on the clock."""
    lines = [line for line in read_metrics(folder) if "total_loss" in line]
    assert len({line["iteration"] for line in lines}) == len(lines)
    return {line["iteration"]: {key: value for key, value in line.items() if "loss" in key or key == "lr"} for line in lines}
