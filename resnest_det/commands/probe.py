"""How well a frozen network's embeddings tell new classes apart: the nearest neighbours, and a linear layer.

    probe.py --train-on flowers --model resnest50
    probe.py --train-on flowers --model resnest50 --checkpoint run/model_best.pth

Nothing is trained but the linear layer, so that 50 images a class and minutes on a CPU are enough. DIR is as for
`train-classifier`: DIR/train/CLASS and DIR/val/CLASS, DIR/CLASS, tar shards.
"""

import argparse
import os
import time

import torch

from resnest_det import create_model
from resnest_det.configuration.classifier import load_classifier_config
from resnest_det.configuration.classifier_parts import build_evaluation_batches
from resnest_det.data.class_folders import read_class_folders
from resnest_det.data.shards import is_shards, read_shards
from resnest_det.errors import UserError
from resnest_det.inference.probing import NEIGHBOURS, embeddings, probe


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-on", "--data", required=True, metavar="DIR", help="a folder of class folders, or tar shards")
    parser.add_argument("--val", default="", metavar="DIR", help="another folder to measure on")
    parser.add_argument("--model", default="resnest50", help="see resnest_det.list_models() (default: resnest50)")
    parser.add_argument("--checkpoint", help="weights to use instead of the published ones")
    parser.add_argument("--width", type=float, default=1.0, help="of the checkpoint's model (default: 1)")
    parser.add_argument("--size", type=int, default=224, help="side of the images (default: 224)")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="that vote (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.neighbours < 1:
        raise UserError(f"--neighbours {options.neighbours}: at least 1 is needed")
    keys = {
        "DATA.CROP_SIZE": options.size,
        "DATA.TEST_CROP": "resize",
        "DATA.INTERPOLATION": "bicubic",
        "TRAINING.TEST_BATCH_SIZE": options.batch_size,
        "TRAINING.WORKERS": options.workers,
    }
    cfg = load_classifier_config("", [str(word) for pair in keys.items() for word in pair])
    read = read_shards if is_shards(options.train_on) else read_class_folders
    splits = read(options.train_on, options.val)
    model = create_model(
        options.model, pretrained=not options.checkpoint, num_classes=0, checkpoint_path=options.checkpoint, width=options.width
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    start, found = time.perf_counter(), []
    for images in splits:
        vectors, labels, unreadable = embeddings(model, build_evaluation_batches(cfg, images))
        for error in unreadable:
            print(f"left out: {error}")
        if not len(labels):
            raise UserError(f"{images.name}: not one image could be read")
        found.append((vectors, labels))
    rate = sum(map(len, splits)) / (time.perf_counter() - start)
    print(
        f"{options.model}: embeddings of {len(found[0][1])} images to learn from and {len(found[1][1])} to measure on, of "
        f"{len(splits[0].classes)} classes, {rate:.1f} images/s"
    )
    for each in probe(*found, splits[0].classes, options.neighbours):
        top5 = f", top-5 {each.top5:.2f} %" if len(splits[0].classes) > 5 else ""
        print(f"{each.name}: top-1 {each.top1:.2f} %{top5} ({each.settings})")
