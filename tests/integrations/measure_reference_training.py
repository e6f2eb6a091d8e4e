"""torchvision's own reference script trains the quick start's detector on the shapes; `--help` says how. Not a test.

    python tests/integrations/measure_reference_training.py vision/references/detection WORK

It prints AP after each epoch, by pycocotools; docs/measurements.md has the last ones beside the built-in detector's.
"""

import argparse
import json
import runpy
import sys
from itertools import groupby
from pathlib import Path

import pycocotools.mask as mask_util
from torchvision.models._api import register_model

from resnest_det.data.shapes import SPLITS, instances_json, write_shapes
from resnest_det.integrations.torchvision_detector import build_torchvision

MODEL = "maskrcnn_resnest14_shapes"
CONFIG = "mask_rcnn_ResNeSt14_FPN_shapes"
SETTINGS = ["--opt", "sgd", "--lr", "0.04", "-b", "8", "--epochs", "8", "--lr-scheduler", "cosineannealinglr", "-j", "0"]


def build(*, weights=None, weights_backbone=None, num_classes=None, trainable_backbone_layers=None):
    """What the script calls; the detector knows its classes."""
    return build_torchvision(CONFIG)


def write_as_coco(folder: Path, counts: dict[str, int]) -> None:
    """The shapes in COCO's layout, with run lengths as plain numbers: the script reads no compressed ones."""
    write_shapes(folder / "shapes", counts)
    (folder / "annotations").mkdir()
    for split in counts:
        content = json.loads((folder / "shapes" / instances_json(split)).read_text())
        for annotation in content["annotations"]:
            if isinstance(annotation["segmentation"], dict):
                pixels = mask_util.decode(annotation["segmentation"]).flatten(order="F").tolist()
                runs = [len(list(run)) for _, run in groupby(pixels)]
                annotation["segmentation"]["counts"] = [0, *runs] if pixels[0] else runs
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        (folder / f"{split}2017").symlink_to(f"shapes/{split}")


def main() -> None:
    """Write the shapes and run the script on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", type=Path, help="references/detection of a checkout of torchvision")
    parser.add_argument("work", type=Path, help="a folder for data and checkpoints, which is made")
    parser.add_argument("--images", type=int, nargs=2, default=list(SPLITS.values()), metavar=("TRAIN", "VAL"))
    arguments, others = parser.parse_known_args()  # others are the script's, --epochs 1
    write_as_coco(arguments.work, dict(zip(SPLITS, arguments.images)))
    register_model(MODEL)(build)
    script = str(arguments.references.resolve())
    sys.path.insert(0, script)
    sys.argv = ["train.py", "--device", "cpu", "--model", MODEL, *SETTINGS, "--data-path", str(arguments.work)]
    sys.argv += ["--output-dir", str(arguments.work / "run"), *others]
    runpy.run_path(f"{script}/train.py", run_name="__main__")


if __name__ == "__main__":
    main()
