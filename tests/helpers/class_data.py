"""Class folders of small images that a tiny network can tell apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (30, 40, 220), "green": (30, 210, 40), "red": (220, 40, 30), "white": (230, 230, 230)}


def write_class_folders(
    folder: Path, splits: Mapping[str, int], classes: Sequence[str] = ("green", "red"), side: int = 40
) -> Path:
    """`folder`/SPLIT/CLASS/N.png, so many of each class in a split: noise around the color of the class."""
    for number, (split, count) in enumerate(splits.items()):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            random = np.random.default_rng([number, label])
            for image in range(count):
                pixels = random.normal(COLORS[name], 60, (side, side + image % 3, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{image}.png")
    return folder


TINY = """
DATA: {{ROOT: {root}, CROP_SIZE: 32, CROP: resized, TEST_CROP: resize, LIGHTING: 0.1, COLOR_JITTER: 0.2}}
MODEL: {{NAME: resnest14, WIDTH: 0.125}}
TRAINING: {{EPOCHS: 2, BATCH_SIZE: 8, TEST_BATCH_SIZE: 5, WORKERS: 0, CHECKPOINT_EPOCHS: 0.5, CHECKPOINTS_KEPT: 0}}
OPTIMIZER: {{LR: 0.02, LR_BATCH: 8, NESTEROV: True, DISABLE_BN_WD: True, WARMUP_EPOCHS: 0.5}}
SEED: 3
OUTPUT_DIR: {output}
"""


def tiny_classifier(folder: Path, **splits: int) -> str:
    """The configuration file of a run of six steps in `folder`/out: 24 images, 8 a step, twice."""
    write_class_folders(folder / "images", splits or {"train": 12, "val": 4})
    config = folder / "tiny_classifier.yaml"
    config.write_text(TINY.format(root=folder / "images", output=folder / "out"))
    return str(config)
