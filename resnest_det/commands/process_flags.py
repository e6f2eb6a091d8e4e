"""What `train` and `train-classifier` have in common: the processes of a run, its device, and who listens to it."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from fvcore.common.config import CfgNode

from resnest_det.configuration.model import resolve_device
from resnest_det.configuration.nodes import with_values
from resnest_det.engine.callbacks import callback_named
from resnest_det.engine.launch import launch
from resnest_det.engine.writers import SERVICES, check_services
from resnest_det.errors import UserError, naming


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """How a run begins, and on how many processes, and where."""
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR, if there is one")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or with --resume the last checkpoint")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="GPUs to use on each machine, one process each; 0 for the CPU")
    parser.add_argument("--num-processes", type=int, metavar="N", help="processes on each machine, on the CPU")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="N", help="index of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", metavar="tcp://HOST:PORT", help="address of machine 0")


def add_last_flags(parser: argparse.ArgumentParser) -> None:
    """Services and code of one's own that a run's figures go to, and config keys behind all flags."""
    parser.add_argument(
        "--track", action="append", default=[], metavar="SERVICE", help=f"send the curves there too: {', '.join(SERVICES)}"
    )
    parser.add_argument(
        "--callback",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a subclass of resnest_det.engine.callbacks.Callback of your own, made without arguments",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to set, after all flags")


def processes_of(args: argparse.Namespace) -> int:
    """Processes on this machine.

    Raises:
        UserError: flags that exclude each other, or more GPUs than there are.
    """
    if args.num_gpus is not None and args.num_processes is not None:
        raise UserError("--num-gpus and --num-processes exclude each other: one is for GPUs, the other for the CPU")
    if args.num_processes is not None:
        return args.num_processes
    if args.num_gpus and args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()}; --num-processes N runs N on the CPU"
        )
    return args.num_gpus or 1


def with_device(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """`cfg` with MODEL.DEVICE resolved together with the flags.

    Raises:
        UserError: they contradict each other, or there is no such device.
    """
    wanted = None
    if args.num_processes is not None or args.num_gpus == 0:
        wanted, flag = "cpu", "--num-processes" if args.num_gpus is None else "--num-gpus 0"
    elif args.num_gpus:
        wanted, flag = "cuda", "--num-gpus"
    if wanted and cfg.MODEL.DEVICE != "auto" and not cfg.MODEL.DEVICE.startswith(wanted):
        raise UserError(f"{flag} runs on {wanted}, but MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; leave it at 'auto'")
    device = resolve_device(wanted if wanted and cfg.MODEL.DEVICE == "auto" else cfg.MODEL.DEVICE)
    return with_values(cfg, {"MODEL.DEVICE": str(device)})


def checked_services(args: argparse.Namespace) -> tuple[str, ...]:
    """The services of --track, when they and what --callback names are there.

    Raises:
        UserError: one is not; the message names the flag.
    """
    services = tuple(name for each in args.track for name in each.split(","))
    with _flag("--track"):
        check_services(services)
    with _flag("--callback"):
        for text in args.callback:
            callback_named(text)
    return services


def check_overrides(words: Sequence[str]) -> None:
    """Raises `UserError` for a flag among KEY VALUE."""
    for word in words:
        if word.startswith("--"):
            raise UserError(f"{word} stands among the config keys; flags come before KEY VALUE")


def launch_by_flags(function: Callable, *arguments: object, args: argparse.Namespace) -> None:
    """`launch` on the processes and machines of `add_run_flags`."""
    with naming({name: f"--{name.replace('_', '-')}" for name in ("num_machines", "machine_rank", "dist_url")}):
        launch(
            function,
            *arguments,
            num_processes=processes_of(args),
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
        )


@contextmanager
def _flag(name: str) -> Iterator[None]:
    """Name the flag in errors about its value."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
