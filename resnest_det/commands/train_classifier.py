"""The command `train-classifier`: training and evaluating a classifier on folders of images."""

import argparse
from collections.abc import Sequence

from resnest_det.commands.process_flags import (
    add_last_flags,
    add_run_flags,
    check_overrides,
    checked_services,
    launch_by_flags,
    with_device,
)
from resnest_det.configuration.classifier import load_classifier_config
from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.standalone import run_folder
from resnest_det.engine.checkpoint import newest_checkpoint
from resnest_det.errors import UserError
from resnest_det.files import packaged
from resnest_det.training.classifier import run_classifier
from resnest_det.training.process import RunOptions

EXAMPLES = """
examples:
  train_classifier.py --config-file imagenet/resnest50 --train-on imagenet --num-gpus 8
  train_classifier.py --config-file imagenet/resnest50 --train-on imagenet --num-gpus 8 --resume
  train_classifier.py --model resnest50 --pretrained --train-on flowers OUTPUT_DIR flowers_run
  train_classifier.py --config-file output/config.yaml --eval-only
  train_classifier.py --config-file imagenet/resnest50 --train-on 'shards/train-{000..127}.tar' DATA.VAL shards/val-000.tar
  on two machines: --num-gpus 8 --num-machines 2 --machine-rank 0 (and 1) --dist-url tcp://HOST_OF_0:29500

DIR has DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, or Hugging Face's metadata.csv, or tar shards. Keys,
recipes and what a run costs: docs/imagenet.md.
"""
FINE_TUNING = "imagenet/finetune"  # where no recipe is named and there are weights to begin from


def argument_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate a classifier.", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE", help="a YAML file, or the name of a recipe of configs/imagenet")
    parser.add_argument("--train-on", "--data", metavar="DIR", help="a folder of class folders, or tar shards (DATA.ROOT)")
    parser.add_argument("--model", metavar="NAME", help="see resnest_det.list_models() (MODEL.NAME)")
    parser.add_argument(
        "--pretrained", action="store_true", help="begin from the published ImageNet weights; a head of other classes begins anew"
    )
    parser.add_argument("--strict", action="store_true", help="stop at an image that cannot be read (DATA.STRICT)")
    add_run_flags(parser)
    add_last_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments` and run on as many processes as they say.

    Raises:
        UserError: bad input of any kind.
    """
    args = argument_parser().parse_args(arguments)
    check_overrides(args.opts)
    services = checked_services(args)
    config_file = args.config_file or ""
    if not config_file and args.pretrained:
        config_file = str(packaged("configs") / f"{FINE_TUNING}.yaml")
    overrides = _overrides(args, config_file)
    cfg = load_classifier_config(config_file, overrides)
    if folder := run_folder(config_file):
        values = {"OUTPUT_DIR": folder} | ({"MODEL.WEIGHTS": newest_checkpoint(folder)} if args.eval_only else {})
        cfg = with_values(cfg, {key: value for key, value in values.items() if key not in overrides[::2]})
    if not cfg.DATA.ROOT:
        raise UserError("DATA.ROOT is empty: say which images to train on, with --train-on DIR")
    cfg = with_device(cfg, args)
    options = RunOptions(args.resume, args.eval_only, config_file, tuple(map(str, overrides)), services, tuple(args.callback))
    launch_by_flags(run_classifier, cfg, options, args=args)


def _overrides(args: argparse.Namespace, config_file: str) -> list[str]:
    """KEY, VALUE, ... of the flags, and after them those that were given as such."""
    given = list(args.opts)
    values: dict[str, str] = {}
    if args.model:
        values["MODEL.NAME"] = args.model
    if args.train_on:
        values["DATA.ROOT"] = args.train_on
    if args.strict:
        values["DATA.STRICT"] = "True"
    for key, flag in {"MODEL.NAME": "--model", "DATA.ROOT": "--train-on", "MODEL.WEIGHTS": "--pretrained"}.items():
        if key in given[::2] and (key in values or (key == "MODEL.WEIGHTS" and args.pretrained)):
            raise UserError(f"{flag} and {key} are both given: choose one")
    if args.pretrained:
        values["MODEL.WEIGHTS"] = f"resnest://{load_classifier_config(config_file, [*_pairs(values), *given]).MODEL.NAME}"
    return [*_pairs(values), *given]


def _pairs(values: dict[str, str]) -> list[str]:
    return [word for pair in values.items() for word in pair]
