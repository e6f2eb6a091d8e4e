"""The commands of `resnest-det` and of the scripts in `tools/`, one module each.

This file finds a command by its name and decides how it ends: bad input gives one line and status 2, a traceback only with
`--debug`. It imports nothing large, so `--help` is quick and the process is set up before torch is loaded.
"""

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType

from resnest_det import __version__
from resnest_det.errors import UserError, nearest, out_of_memory, printable
from resnest_det.stopping import end, end_interrupted, handle_signals, prepare_end

# name: (module of this folder with a `main(arguments)`, what it does)
COMMANDS = {
    "train": ("train_net", "train and evaluate a detector from a configuration file"),
    "train-classifier": ("train_classifier", "train and evaluate a classifier on folders of images"),
    "prepare-imagenet": ("prepare_imagenet", "unpack ImageNet's official archives into class folders"),
    "probe": ("probe", "measure a frozen network on new classes: nearest neighbours, and a linear layer"),
    "predict": ("predict", "find objects in images and videos with a trained detector"),
    "demo": ("demo", "open a local page to try a trained detector on pictures"),
    "serve": ("serve", "answer POST /predict over HTTP with what a trained detector finds"),
    "pack": ("pack", "write a trained detector, with all that it needs, into one file"),
    "classify": ("classify", "name what is in images: the most probable ImageNet classes"),
    "verify": ("verify_imagenet", "measure a classifier's accuracy on the validation images of ImageNet"),
    "convert": ("convert_weights", "translate a checkpoint into another library's parameter names"),
    "to-mmdet": ("to_mmdet", "translate a configuration and its checkpoint to MMDetection, or a checkpoint back"),
    "export": ("export_model", "write a detector or classifier for ONNX, OpenVINO, TorchScript or torch.export"),
    "analyze": ("analyze_model", "count parameters, multiply-adds and activations, part by part"),
    "benchmark": ("benchmark", "time networks, training steps, reading and AP beside other implementations"),
    "inspect": ("inspect_data", "show datasets, what is suspicious in them, and results beside the truth"),
    "plot": ("plot", "draw loss, learning rate and AP of runs"),
    "report": ("report", "write report.html of a run: is it good, and what to try next"),
    "compare": ("compare", "say whether one run is better than another, and how sure that is"),
    "check-hosts": ("check_hosts", "say which detectors can use the backbone here"),
    "convert-data": ("convert_data", "convert labels of any format to COCO's, YOLO's or Pascal VOC's"),
    "split-data": ("split_data", "split labels of any format into train.json and val.json"),
    "train-transformers": ("train_transformers", "train and evaluate a recipe of configs/transformers by transformers' Trainer"),
    "prepare-panoptic-fpn": ("prepare_panoptic_fpn", "write the semantic PNG files that Detectron2's Panoptic FPN reads"),
}

# Compute threads that spin long while waiting take cores from data workers and other processes: on a busy machine, steps get
# many times slower. Threads that never spin cost a tenth of a step on an idle machine. torch reads this when it is first
# imported, after this module, through which every command is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

# What glibc keeps of freed memory (below) it can hardly use again for blocks aligned as torch aligns them; aligned to pages, it
# can: a training step of two large images holds 3.5 GB, not 5.6. torch reads this when it is imported, too; it then asks for huge
# pages, and warns where the kernel has none.
if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# A process that the launcher starts imports the command first. Until it handles signals itself, in seconds, Ctrl-C ends it
# without a word: its launcher, which receives the signal as well, has the line.
if multiprocessing.parent_process() is not None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def keep_freed_memory() -> None:
    """Make glibc keep the large blocks that a process frees; with another C library, do nothing.

    Otherwise every activation map returns to the system and is fetched again page by page: a tenth of a training step on CPUs.
    """
    threshold_of_mmap, threshold_of_trim = -3, -1  # names of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(threshold_of_mmap, 2**30)
    mallopt(threshold_of_trim, 2**31 - 1)


def run_tool(main: Callable[[list[str]], object]) -> None:
    """Run `main(arguments)` and end the process with a status that says how it went.

    `UserError`, `OSError` (a full disk, a folder that cannot be written) and memory that ran out become one line `error: ...` on
    standard error and status 2; Ctrl-C and SIGTERM become one line and status 130 and 143. With `--debug`, which
    `main` does not see, the traceback is shown instead.
    """
    keep_freed_memory()
    handle_signals()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        main(arguments)
    except KeyboardInterrupt as stop:
        if debug:
            raise
        # Of the processes that torchrun has started, one speaks for all.
        end_interrupted(stop, say=os.environ.get("RANK", "0") == "0")
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        told = error if isinstance(error, (UserError, OSError)) else out_of_memory(error)
        if debug or told is None:
            raise
        print(f"error: {printable(' '.join(str(told).split()))}", file=sys.stderr)
        end(2)
    finally:
        prepare_end()


def main() -> None:
    """The installed command: `resnest-det COMMAND ...`, `--help` or `--version`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
    elif name == "--version":
        print(f"resnest-det {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"resnest-det {name}", *arguments]
        run(name)
    else:
        near = nearest(name, COMMANDS, count=1)
        meant = f", perhaps you mean {near[0]!r}" if near else ""
        print(f"error: there is no command {name!r}{meant}; `resnest-det --help` lists them", file=sys.stderr)
        sys.exit(2)


def help_text() -> str:
    """All commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: resnest-det COMMAND [...]",
            "",
            "commands:",
            *lines,
            "",
            "`resnest-det COMMAND --help` lists the flags of a command; `resnest-det --version` prints the version.",
        ]
    )


def run(name: str) -> None:
    """Run the command `name` on the arguments of this process, and end the process."""
    run_tool(lambda arguments: _imported(name).main(arguments))


def _imported(name: str) -> ModuleType:
    module, _ = COMMANDS[name]
    handle_signals(importing=True)
    try:
        return importlib.import_module(f"{__name__}.{module}")
    finally:
        handle_signals()
