"""Write a whole detector, from pixels to final results, as an ONNX, OpenVINO, TorchScript or torch.export file.

    resnest-det export --config-file run/config.yaml --weights run/model_final.pth --format onnx --out detector.onnx
    resnest-det export --config-file run/config.yaml --weights run/model_final.pth --format openvino --out detector.xml
    resnest-det export ... --format openvino --out small.xml --precision int8 --images photos/*.jpg --evaluate

The file takes a batch of images of one size, any size. After writing it is run on pictures and compared with PyTorch; a file that
differs is not kept. See docs/export.md.
"""

import argparse
import glob
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fvcore.common.config import CfgNode

from resnest_det.commands.register import add_register_flags, registered_datasets
from resnest_det.configuration.model import build_model
from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.standalone import in_run_folder, register_datasets_of, with_datasets
from resnest_det.configuration.weights import load_initial_weights
from resnest_det.data.image import read_image
from resnest_det.data.records import Sample
from resnest_det.errors import UserError
from resnest_det.inference.checking_images import generated_images, sample_of
from resnest_det.inference.detector_export import OPSETS, PRECISIONS, check_precision, export_detector
from resnest_det.inference.evaluating import flatten_results
from resnest_det.inference.export import FORMATS, check_path, require_back_end
from resnest_det.training.run import evaluate_only, prepare
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.downloads import resolve_weights

MOST_CHECKED = 8  # of the images given with --images; int8 takes all of them for its ranges
MOST_CALIBRATED = 300
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="resnest-det export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument(
        "--weights", help="a checkpoint (default: the newest of the run whose config.yaml is given, else MODEL.WEIGHTS)"
    )
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write; for openvino its name ends in .xml")
    parser.add_argument("--opset", type=int, help=f"version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]}")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="for openvino: weights in fp16, arithmetic in bf16, or both in int8, calibrated on the images of --images",
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="FILE", help="pictures or folders to try the file on, beside generated ones"
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="print the figures on DATASETS.TEST, of the model and of the file"
    )
    add_register_flags(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to set, after all flags")
    args = parser.parse_args(arguments)
    # `--images` takes as many names as there are, and so the keys that follow them.
    first = next((i for i, text in enumerate(args.images) if _KEY.fullmatch(text)), len(args.images))
    args.images, args.opts = args.images[:first], args.images[first:] + args.opts
    return args


def main(arguments: Sequence[str]) -> None:
    """Export a detector.

    Raises:
        UserError: bad input of any kind, a model that the format cannot express, or a file that differs from the model.
    """
    args = parse_arguments(arguments)
    # Checked before weights are fetched.
    require_back_end(args.format)
    check_path(Path(args.out), args.format)
    check_precision(args.precision, args.format)
    pictures = picture_files(args.images)
    if args.precision == "int8" and not pictures:
        raise UserError("--precision int8 needs --images: pictures like those that the detector will see")
    registered = registered_datasets(args)
    cfg = with_values(load_config(args.config_file, args.opts), {"MODEL.DEVICE": "cpu"})
    cfg = in_run_folder(cfg, args.config_file, tuple(args.opts), use=True)
    register_datasets_of(with_datasets(cfg, registered))
    if args.weights:
        cfg = with_values(cfg, {"MODEL.WEIGHTS": args.weights})
    if not cfg.MODEL.WEIGHTS:
        raise UserError("export needs a trained detector: give --weights, MODEL.WEIGHTS is empty")
    model = build_model(cfg).eval()
    load_initial_weights(cfg, model, whole=True)
    trained_on = read_checkpoint(resolve_weights(cfg.MODEL.WEIGHTS)).get("trained_on")

    read = partial(_sample_of_file, cfg)
    samples = [
        sample_of(*image, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) for image in generated_images(cfg.INPUT.FORMAT)
    ]
    samples += [read(file) for file in pictures[:MOST_CHECKED]]
    lines = export_detector(
        model,
        args.out,
        args.format,
        settings_of(cfg, trained_on),
        samples,
        opset=args.opset,
        precision=args.precision,
        calibration=lambda: [read(file) for file in pictures[:MOST_CALIBRATED]],
    )
    print(f"wrote {args.out}; beside PyTorch:")
    for line in lines:
        print(f"  {line}")
    if args.evaluate:
        print_figures(cfg, args.out)


def print_figures(cfg: CfgNode, exported: str) -> None:
    """The figures on DATASETS.TEST of MODEL.WEIGHTS and of the file."""
    figures = []
    for weights in (cfg.MODEL.WEIGHTS, exported):
        with tempfile.TemporaryDirectory() as folder:
            evaluated, data = prepare(with_values(cfg, {"MODEL.WEIGHTS": weights, "OUTPUT_DIR": folder}), train=False)
            figures.append(flatten_results(evaluate_only(evaluated, data)))
    before, after = figures
    main_ones = [name for name in before if name.rsplit("/", 1)[-1] in ("AP", "AP50", "PQ", "mIoU")]
    for name in main_ones:
        print(f"{name} on {', '.join(cfg.DATASETS.TEST)}: {before[name]:.2f} of PyTorch, {after[name]:.2f} of the file")


def settings_of(cfg: CfgNode, trained_on: Mapping | None) -> dict:
    """What travels in the file: how images are made ready, what the classes are called, and the whole configuration."""
    known = {key: value for key, value in (trained_on or {}).items() if isinstance(value, (str, list))}
    # Where files lie on this machine is nobody's business.
    here = {"MODEL.WEIGHTS": "", "OUTPUT_DIR": "./output"}
    return {
        "version": 1,
        "architecture": cfg.MODEL.META_ARCHITECTURE,
        "input_format": cfg.INPUT.FORMAT,
        "short_side": cfg.INPUT.MIN_SIZE_TEST,
        "max_side": cfg.INPUT.MAX_SIZE_TEST,
        "trained_on": known,
        "config": with_values(cfg, here).dump(),
    }


def picture_files(given: Sequence[str]) -> list[str]:
    """The files of `--images`; of a folder all that lie in it.

    Raises:
        UserError: there is none of that name.
    """
    files = []
    for text in given:
        found = sorted(str(file) for file in Path(text).iterdir() if file.is_file()) if Path(text).is_dir() else glob.glob(text)
        if not found:
            raise UserError(f"--images {text}: there is no such file")
        files += sorted(found)
    return files


def _sample_of_file(cfg: CfgNode, file: str) -> Sample:
    pixels = read_image(file, cfg.INPUT.FORMAT)
    return sample_of(file, pixels, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
