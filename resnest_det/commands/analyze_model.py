"""Count the parameters, multiply-adds and activations of a model, part by part, as a table and as JSON.

analyze_model.py --model resnest50 --size 224
analyze_model.py --config-file mask_rcnn_ResNeSt50_FPN --size 800x1216
analyze_model.py --all
"""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from resnest_det.backbone.analysis import Counts, count_classifier, total
from resnest_det.backbone.classifier import create_model
from resnest_det.backbone.folding import fold_norms
from resnest_det.backbone.variants import list_models
from resnest_det.errors import UserError

DETECTOR_SIZE = (800, 1216)  # a 2:3 photograph resized to a short side of 800 pixels, padded to a multiple of 32
REGIONS = {
    "num_proposals": "regions in each stage of the box head (MODEL.RPN.POST_NMS_TOPK_TEST, the maximum)",
    "num_detections": "regions in the mask head (TEST.DETECTIONS_PER_IMAGE, the maximum)",
}
HEADINGS = ("part", "parameters", "GMACs", "GMACs with norms", "activations (M)")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="GMACs are fvcore's multiply-adds of convolutions and linear layers; GMACs with norms add what fvcore counts for "
        "norms, as timm's model cards do. Activations are the outputs of convolutions and linear layers.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="a classifier; see resnest_det.list_models()")
    what.add_argument("--config-file", help="a detector: a YAML file, or the name of a bundled recipe")
    what.add_argument("--all", action="store_true", help="all variants, each at the image size of its weights")
    parser.add_argument(
        "--size",
        type=image_size,
        help="pixels: 224 for a square, or HEIGHTxWIDTH (default: the image size of the model's weights; 800x1216 for a "
        "detector)",
    )
    parser.add_argument("--fold-norms", action="store_true", help="fold batch norms into convolutions first")
    parser.add_argument("--json", metavar="FILE", help="also write the exact counts to FILE")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="with --config-file: overrides of config keys")
    return parser.parse_args(arguments)


def image_size(text: str) -> tuple[int, int]:
    """(height, width) from "224" or "800x1216"."""
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: use 224 or 800x1216 (height x width)")
    return int(match[1]), int(match[2] or match[1])


def analyze_classifier(name: str, size: tuple[int, int] | None, fold: bool) -> dict:
    model = prepare(create_model(name), fold)
    size = size or model.pretrained_cfg["input_size"][1:]
    return report(name, size, fold, count_classifier(model, torch.zeros(1, 3, *size)))


def analyze_detector(config_file: str, overrides: list[str], size: tuple[int, int] | None, fold: bool) -> dict:
    # Imported only here: counting a classifier needs nothing of the detector.
    from resnest_det.configuration.model import build_model
    from resnest_det.configuration.reading import load_config
    from resnest_det.detector.analysis import count_detector

    cfg = load_config(config_file, [*overrides, "MODEL.DEVICE", "cpu"])
    proposals, detections = cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
    model = prepare(build_model(cfg), fold)
    size = size or DETECTOR_SIZE
    multiple = max(model.backbone.size_divisibility, 1)
    if any(side % multiple for side in size):
        raise UserError(f"--size {size[0]}x{size[1]}: the detector pads images to multiples of {multiple}; choose such a size")
    counts = count_detector(model, size, proposals, detections)
    regions = {"box head": {"num_proposals": proposals}, "mask head": {"num_detections": detections}}
    result = report(config_file, size, fold, counts)
    for part, number in regions.items():
        if part in counts:
            result |= number
    return result


def prepare(model: nn.Module, fold: bool) -> nn.Module:
    return fold_norms(model) if fold else model.eval()


def report(name: str, size: tuple[int, int], fold: bool, counts: dict[str, Counts]) -> dict:
    return {
        "model": name,
        "size": list(size),
        "norms_folded": fold,
        "parts": {part: asdict(part_counts) for part, part_counts in counts.items()},
        "total": asdict(total(counts)),
    }


def row(name: str, counts: dict) -> tuple[str, ...]:
    with_norms = counts["multiply_adds"] + counts["norm_operations"]
    return (
        name,
        f"{counts['parameters']:,}",
        f"{counts['multiply_adds'] / 1e9:.4f}",
        f"{with_norms / 1e9:.4f}",
        f"{counts['activations'] / 1e6:.2f}",
    )


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    for cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))
        print("  ".join((cells[0].ljust(widths[0]), *numbers)))


def main(arguments: list[str]) -> None:
    args = parse_arguments(arguments)
    if args.opts and not args.config_file:
        raise UserError(f"{' '.join(args.opts)}: overrides of config keys need --config-file")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise UserError(f"--json {args.json}: the folder does not exist")

    if args.all:
        if args.size:
            raise UserError("--size: --all counts each variant at its own size")
        result = [analyze_classifier(name, None, args.fold_norms) for name in list_models()]
        print_table(
            [("model", "size", *HEADINGS[1:])]
            + [(variant["model"], str(variant["size"][0]), *row("", variant["total"])[1:]) for variant in result]
        )
    else:
        if args.model:
            result = analyze_classifier(args.model, args.size, args.fold_norms)
        else:
            result = analyze_detector(args.config_file, args.opts, args.size, args.fold_norms)
        folded = ", norms folded into convolutions" if args.fold_norms else ""
        print(f"{result['model']}, one image of {result['size'][0]}x{result['size'][1]}{folded}")
        print_table([HEADINGS, *(row(part, counts) for part, counts in result["parts"].items()), row("total", result["total"])])
        for key, text in REGIONS.items():
            if key in result:
                print(f"counted with {result[key]} {text}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
