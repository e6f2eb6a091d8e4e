"""A small ResNeSt on scikit-learn's digits, split as its own example splits them, beside what that example publishes.

    python -m tests.training.measure_digits [--out FOLDER]

https://scikit-learn.org/stable/auto_examples/classification/plot_digits_classification.html: a support vector machine, trained on
the first half of the 1,797 images and measured on the second, has an accuracy of 97 %.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn import svm
from sklearn.datasets import load_digits

from resnest_det.commands.train_classifier import main as train_classifier
from tests.helpers.tiny_run import read_metrics

KEYS = {
    "MODEL.NAME": "resnest14",
    "MODEL.WIDTH": 0.25,
    "DATA.CROP_SIZE": 32,
    "DATA.CROP": "resized",
    "DATA.AREA": "[0.7, 1.0]",
    "DATA.FLIP": 0.0,
    "DATA.TEST_CROP": "resize",
    "DATA.TEST_SHARE": 1.0,
    "DATA.COLOR_JITTER": 0.0,
    "DATA.LIGHTING": 0.0,
    "DATA.LABEL_SMOOTHING": 0.1,
    "TRAINING.EPOCHS": 20,
    "TRAINING.BATCH_SIZE": 32,
    "TRAINING.WORKERS": 0,
    "TRAINING.LAST_GAMMA": True,
    "TRAINING.EVAL_EPOCHS": 0.0,
    "OPTIMIZER.LR": 0.05,
    "OPTIMIZER.NESTEROV": True,
    "OPTIMIZER.DISABLE_BN_WD": True,
    "OPTIMIZER.WARMUP_EPOCHS": 1.0,
}


def write_digits(folder: Path) -> None:
    digits = load_digits()
    half = len(digits.target) // 2
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target)):
        path = folder / ("train" if index < half else "val") / str(label)
        path.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
        image.resize((32, 32), Image.Resampling.BILINEAR).save(path / f"{index:04d}.png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("keys", nargs="*")
    options = parser.parse_args()
    digits = load_digits()
    flat, half = digits.images.reshape(len(digits.images), -1), len(digits.target) // 2
    reference = svm.SVC(gamma=0.001).fit(flat[:half], digits.target[:half]).score(flat[half:], digits.target[half:])
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder, "out")
        write_digits(Path(folder, "digits"))
        keys = [str(word) for pair in KEYS.items() for word in pair]
        train_classifier(["--train-on", str(Path(folder, "digits")), "OUTPUT_DIR", str(out), *keys, *options.keys])
        figures = [line for line in read_metrics(out) if "classification/top1" in line][-1]
    print(f"scikit-learn's example, computed here: {100 * reference:.2f} %; published: 97 %")
    print(f"resnest14, quarter width: top-1 {figures['classification/top1']:.2f} %")


if __name__ == "__main__":
    main()
