"""The command `train_net`: training and evaluating a detector from a configuration file."""

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType

from fvcore.common.config import CfgNode

from resnest_det.commands.own_data import add_data_flags, settings_of
from resnest_det.commands.process_flags import (
    add_last_flags,
    add_run_flags,
    check_overrides,
    checked_services,
    launch_by_flags,
    processes_of,
    with_device,
)
from resnest_det.commands.register import add_register_flags, registered_datasets
from resnest_det.configuration.classes import CLASS_COUNTS
from resnest_det.configuration.data import check_training_data
from resnest_det.configuration.reading import load_config, named_keys
from resnest_det.configuration.solver import scale_to_world_size
from resnest_det.configuration.standalone import in_run_folder, with_datasets
from resnest_det.errors import UserError
from resnest_det.integrations.detectron2_version import check_detectron2
from resnest_det.integrations.installed import is_installed
from resnest_det.training.process import RunOptions, run_builtin, run_process

EXAMPLES = """
examples:
  train_net.py --data photos --model mask_rcnn_ResNeSt50_FPN
  train_net.py --config-file mask_rcnn_ResNeSt50_FPN
  train_net.py --config-file mask_rcnn_ResNeSt50_FPN --resume
  train_net.py --config-file cfg.yaml --num-gpus 8 SOLVER.BASE_LR 0.01 OUTPUT_DIR ./run1
  train_net.py --config-file cfg.yaml --eval-only MODEL.WEIGHTS run1/model_final.pth
  train_net.py --config-file run1/config.yaml --eval-only
  train_net.py --config-file cfg.yaml --register mine=mine.json,images DATASETS.TRAIN "('mine',)"
  train_net.py --config-file cfg.yaml --engine builtin
  on two machines: --num-gpus 8 --num-machines 2 --machine-rank 0 (and 1) --dist-url tcp://HOST_OF_0:29500
"""


def argument_parser() -> argparse.ArgumentParser:
    """The flags of Detectron2's tool, and those of this project."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate a detector.", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE", help="a YAML file, or the name of a bundled recipe")
    add_data_flags(parser)
    add_run_flags(parser)
    parser.add_argument(
        "--engine",
        choices=("auto", "detectron2", "builtin"),
        default="auto",
        help="detector and trainer to use; auto uses Detectron2 if it is installed",
    )
    add_register_flags(parser)
    add_last_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments` and run on as many processes as they say.

    Raises:
        UserError: bad input of any kind.
    """
    args = argument_parser().parse_args(arguments)
    check_overrides(args.opts)
    num_processes = processes_of(args)
    engine = choose_engine("builtin" if args.model and args.engine == "auto" else args.engine)
    if engine == "detectron2" and (args.model or args.auto_batch):
        raise UserError("--model and --auto-batch choose settings for the built-in trainer; use --engine builtin")
    # Read before any process starts, so that a wrong key is reported at once, and only once.
    services = checked_services(args)
    if engine == "detectron2" and (services or args.callback):
        raise UserError("--track and --callback are of the built-in trainer: Detectron2's has hooks; use --engine builtin")
    load, work, class_counts = load_config, run_builtin, CLASS_COUNTS
    if engine == "detectron2":
        host = _detectron2_train()
        load, work, class_counts = host.load_config, host.run, host.CLASS_COUNTS

    def loaded(config_file: str, overrides: list) -> CfgNode:
        return with_device(load(config_file, overrides), args)

    registered = registered_datasets(args)
    settings = settings_of(args, loaded, registered, num_processes)
    keys = tuple(settings.overrides)
    cfg = in_run_folder(load(settings.config_file, keys), settings.config_file, keys, use=args.eval_only)
    cfg = with_datasets(with_device(cfg, args), registered | settings.datasets)
    if not args.eval_only:
        world_size = max(num_processes * args.num_machines, 1)  # less than one is for `launch` to refuse
        check_training_data(scale_to_world_size(cfg, world_size), world_size)
    if engine == "detectron2" and num_processes * args.num_machines > 1 and cfg.MODEL.DEVICE == "cpu":
        raise UserError("Detectron2 runs several processes only on GPUs; on the CPU use one, or --engine builtin")
    named = named_keys(settings.config_file, settings.overrides)
    options = RunOptions(
        args.resume,
        args.eval_only,
        settings.config_file,
        tuple(map(str, keys)),
        services,
        tuple(args.callback),
        settings.lines,
        {key: kind for key, kind in class_counts.items() if key not in named},
    )
    launch_by_flags(run_process, cfg, options, work, args=args)


def choose_engine(wanted: str) -> str:
    """`wanted`; for "auto", Detectron2 if it is installed and the built-in detector otherwise."""
    if wanted != "auto":
        return wanted
    return "detectron2" if is_installed("detectron2") else "builtin"


def _detectron2_train() -> ModuleType:
    # Imported only when wanted: it needs Detectron2 and takes seconds.
    check_detectron2()
    return importlib.import_module("resnest_det.integrations.detectron2_train")
