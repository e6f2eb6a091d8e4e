"""The command `train_net`: training and evaluating a detector from a configuration file."""

import argparse
import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode

from resnest_det.data.catalog import register_from_argument, register_panoptic_from_argument
from resnest_det.distributed import get_rank, is_main_process, synchronize
from resnest_det.engine.build_data import check_batch_size
from resnest_det.engine.build_model import build_model, resolve_device
from resnest_det.engine.build_solver import scale_to_world_size
from resnest_det.engine.checkpoint import DetectionCheckpointer
from resnest_det.engine.config import load_config
from resnest_det.engine.environment import environment_summary
from resnest_det.engine.evaluate import Evaluation, verify_results
from resnest_det.engine.events import setup_logging
from resnest_det.engine.launch import claim_gpu, join_process_group, launch, share_cpu_threads
from resnest_det.engine.train import load_initial_weights, train
from resnest_det.errors import UserError
from resnest_det.files import atomic_write, prepare_output_dir
from resnest_det.integrations.detectron2_version import check_detectron2
from resnest_det.integrations.installed import is_installed

logger = logging.getLogger(__name__)

EXAMPLES = """
examples:
  train_net.py --config-file mask_rcnn_ResNeSt50_FPN
  train_net.py --config-file mask_rcnn_ResNeSt50_FPN --resume
  train_net.py --config-file cfg.yaml --num-gpus 8 SOLVER.BASE_LR 0.01 OUTPUT_DIR ./run1
  train_net.py --config-file cfg.yaml --eval-only MODEL.WEIGHTS run1/model_final.pth
  train_net.py --config-file cfg.yaml --register mine=mine.json,images DATASETS.TRAIN "('mine',)"
  train_net.py --config-file cfg.yaml --engine builtin
  on two machines: --num-gpus 8 --num-machines 2 --machine-rank 0 (and 1) --dist-url tcp://HOST_OF_0:29500
"""


def argument_parser() -> argparse.ArgumentParser:
    """The flags of Detectron2's tool, and this project's own."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate a detector.", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a YAML file, or the name of one that comes along")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS (with --resume the last checkpoint)")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="GPUs of each machine, a process each; 0 for the CPU")
    parser.add_argument("--num-processes", type=int, metavar="N", help="processes of each machine, on the CPU")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines in all")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="which of them this is, from 0")
    parser.add_argument("--dist-url", default="auto", metavar="tcp://HOST:PORT", help="where machine 0 can be reached")
    parser.add_argument("--engine", choices=("auto", "detectron2", "builtin"), default="auto",
                        help="whose detector and trainer; auto is Detectron2's where it is installed")
    parser.add_argument(
        "--register", action="append", default=[], metavar="NAME=ANNOTATIONS.json,IMAGE_DIR", help="a data set in COCO's format"
    )
    parser.add_argument(
        "--register-panoptic", action="append", default=[], metavar="NAME=PANOPTIC.json,PANOPTIC_DIR,IMAGE_DIR[,INSTANCES.json]",
        help="a data set in COCO's panoptic format"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to set, after all flags")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments` and run, on as many processes as they say.

    Raises:
        UserError: bad input of any kind.
    """
    args = argument_parser().parse_args(arguments)
    flags = [word for word in args.opts if word.startswith("--")]
    if flags:
        raise UserError(f"{flags[0]} stands among the config keys; flags come before KEY VALUE")
    num_processes = _processes(args)
    # Read here too, so that a wrong key is told before any process starts.
    args.engine = choose_engine(args.engine)
    cfg = _configure(args)
    if not args.eval_only:
        world_size = max(num_processes * args.num_machines, 1)  # less than one is for `launch` to refuse
        check_batch_size(scale_to_world_size(cfg, world_size), world_size)
    if args.engine == "detectron2" and num_processes * args.num_machines > 1 and cfg.MODEL.DEVICE == "cpu":
        raise UserError("Detectron2 trains with several processes on GPUs only; on the CPU use one, or --engine builtin")
    launch(
        run, args, num_processes=num_processes, num_machines=args.num_machines, machine_rank=args.machine_rank, dist_url=args.dist_url
    )


def choose_engine(wanted: str) -> str:
    """`wanted`, or for "auto" Detectron2 where it is installed and the built-in detector otherwise."""
    if wanted != "auto":
        return wanted
    return "detectron2" if is_installed("detectron2") else "builtin"


def _detectron2_train() -> ModuleType:
    # Imported only where it is wanted: that takes seconds, and Detectron2.
    check_detectron2()
    return importlib.import_module("resnest_det.integrations.detectron2_train")


def _processes(args: argparse.Namespace) -> int:
    if args.num_gpus is not None and args.num_processes is not None:
        raise UserError("--num-gpus and --num-processes exclude each other: processes on GPUs, or on the CPU")
    if args.num_processes is not None:
        return args.num_processes
    if args.num_gpus and args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()}; --num-processes N runs N on the CPU"
        )
    return args.num_gpus or 1


def _configure(args: argparse.Namespace) -> CfgNode:
    load = _detectron2_train().load_config if args.engine == "detectron2" else load_config
    cfg = load(args.config_file, args.opts)
    wanted = None
    if args.num_processes is not None or args.num_gpus == 0:
        wanted, flag = "cpu", "--num-processes" if args.num_gpus is None else "--num-gpus 0"
    elif args.num_gpus:
        wanted, flag = "cuda", "--num-gpus"
    if wanted and cfg.MODEL.DEVICE != "auto" and not cfg.MODEL.DEVICE.startswith(wanted):
        raise UserError(f"{flag} runs on {wanted}, but MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; leave it 'auto'")
    device = resolve_device(wanted if wanted and cfg.MODEL.DEVICE == "auto" else cfg.MODEL.DEVICE)
    cfg.defrost()
    cfg.MODEL.DEVICE = str(device)
    cfg.freeze()
    return cfg


def run(args: argparse.Namespace) -> dict:
    """What each process does: join the others, set up logging and devices, train or evaluate.

    Returns:
        results of the evaluation on the main process, task to figures; empty on the others.
    """
    cfg = _configure(args)
    for argument in args.register:
        register_from_argument(argument)
    for argument in args.register_panoptic:
        register_panoptic_from_argument(argument)
    device = resolve_device(cfg.MODEL.DEVICE)
    claim_gpu(device)
    share_cpu_threads()
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    join_process_group(device)
    if is_main_process():
        prepare_output_dir(cfg.OUTPUT_DIR)
    synchronize()
    # A process that the launcher started again after a failure goes on by itself.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    args.resume = args.resume or (restarted and not args.eval_only)
    try:
        return _detectron2_train().run(cfg, args) if args.engine == "detectron2" else _run_builtin(cfg, args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _run_builtin(cfg: CfgNode, args: argparse.Namespace) -> dict:
    setup_logging(cfg.OUTPUT_DIR, get_rank())
    logger.info("Environment:\n%s", environment_summary())
    overrides = " ".join(args.opts) or "none"
    logger.info("Built-in detector on %s; config %s; overrides %s", cfg.MODEL.DEVICE, args.config_file, overrides)
    if is_main_process():
        _write_config(cfg, keep=args.eval_only)
    return evaluate_only(cfg, last_checkpoint=args.resume) if args.eval_only else train(cfg, resume=args.resume)


def _write_config(cfg: CfgNode, keep: bool) -> None:
    path = Path(cfg.OUTPUT_DIR, "config.yaml")
    if not (keep and path.exists()):
        with atomic_write(path) as file:
            file.write(cfg.dump())
        logger.info("Full configuration: %s", path)


def evaluate_only(cfg: CfgNode, *, last_checkpoint: bool) -> dict:
    """Evaluate MODEL.WEIGHTS, or the last checkpoint in OUTPUT_DIR.

    Raises:
        UserError: there are no weights, or they do not fill the whole model.
    """
    evaluation = Evaluation(cfg)
    model = build_model(cfg)
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR)
    if last_checkpoint and checkpointer.has_checkpoint():
        checkpointer.load(checkpointer.get_checkpoint_file())
    elif cfg.MODEL.WEIGHTS:
        load_initial_weights(cfg, model, whole=True)
    else:
        raise UserError("--eval-only needs MODEL.WEIGHTS, or --resume with a checkpoint in OUTPUT_DIR")
    results = evaluation.final(model)
    if is_main_process():
        verify_results(cfg.TEST.EXPECTED_RESULTS, results)
    return results
