"""What `predict`, `demo` and `serve` have in common: the model, and of the latter two where it is to be found."""

import argparse

from resnest_det.errors import UserError
from resnest_det.inference.predictor import Predictor

MEGA = 1_000_000


def add_model_flags(parser: argparse.ArgumentParser, port: int, threshold: float) -> None:
    """The model, thresholds, address and limits.

    Args:
        port: unless another is asked for.
        threshold: likewise, of scores.
    """
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a run's folder, a checkpoint or a recipe, unless --config-file or --weights says",
    )
    add_weights_flags(parser, threshold)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=port, help=f"the port to listen at ({port})")
    parser.add_argument("--max-upload", type=float, default=20, metavar="MB", help="megabytes of an image's file (20)")
    parser.add_argument("--max-pixels", type=float, default=64, metavar="MILLIONS", help="millions of pixels of an image (64)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_weights_flags(parser: argparse.ArgumentParser, threshold: float) -> None:
    """What says the model without a name, its device, and the least score, `threshold` unless another is asked for."""
    parser.add_argument("--config-file", metavar="FILE", help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint; one of a run needs no --config-file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--confidence-threshold", type=float, default=threshold, metavar="SCORE", help=f"leave out lower scores ({threshold})"
    )


def add_classes_flag(parser: argparse.ArgumentParser) -> None:
    """Which classes count; `classes_in` has their names."""
    parser.add_argument("--classes", metavar="NAME,NAME", help="look for these classes only, by name or id")


def classes_in(args: argparse.Namespace) -> list[str] | None:
    """The names or ids in --classes; None for all."""
    return [name.strip() for name in args.classes.split(",")] if args.classes else None


def check_model_flags(args: argparse.Namespace) -> None:
    """That each value can be used; before a model is read.

    Raises:
        UserError: one cannot.
    """
    if args.model is not None and (args.config_file or args.weights):
        raise UserError(f"{args.model}: give a model, or --config-file and --weights")
    if not (args.model or args.config_file or args.weights):
        raise UserError("say which model: a run's folder, a checkpoint or a recipe, or --config-file, --weights")
    if not 0 <= args.confidence_threshold <= 1:
        raise UserError(f"--confidence-threshold {args.confidence_threshold}: expected a number from 0 to 1")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: expected a number from 0 to 65535")
    for flag, value in (("--max-upload", args.max_upload), ("--max-pixels", args.max_pixels)):
        if not 0.001 <= value <= 1000:
            raise UserError(f"{flag} {value}: expected a number from 0.001 to 1000")


def predictor_of(args: argparse.Namespace, **options) -> Predictor:
    """The model that the flags name.

    Raises:
        UserError: see `Predictor`.
    """
    model = args.model or args.config_file or args.weights
    return Predictor(model, args.weights if args.config_file else None, args.device, **options)
