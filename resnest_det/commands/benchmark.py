"""Time this package beside others, in one run: networks, training steps, training samples, annotation files, evaluation.

    resnest-det benchmark --what all
    resnest-det benchmark --what step --config-file mask_rcnn_ResNeSt50_FPN --size 800x1216 --runs 5 --json figures.json

What is installed is measured beside it: timm, Detectron2 with and without the authors' wrapper (package `resnest`); what is not
is skipped with a line. Contenders take turns, so that other load on the machine slows all of them. Beside each speed stands how
far the result is from the reference's, and of networks the share of the speed at which this machine multiplies two matrices of
2048 x 2048 in the same rounds. Images and weights are random. A training step has learning rate 0.
"""

import argparse
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from resnest_det.commands import benchmark_data
from resnest_det.commands.benchmark_measuring import Task, measure
from resnest_det.commands.benchmark_networks import make_samples, of_backbone, of_detector, of_step
from resnest_det.configuration.model import resolve_device
from resnest_det.configuration.reading import load_config
from resnest_det.drawing.plots import figure
from resnest_det.errors import UserError
from resnest_det.files import atomic_write
from resnest_det.inference.prepared import processor_instructions

WHAT = ("backbone", "detector", "step", "data", "read", "evaluate")
_TOLD = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "avx512_fp16",
    "asimd",
    "bf16",
    "sve",
)
_BACKBONE_SIZE = (640, 640)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="all", choices=(*WHAT, "all"), help="what to measure (default: %(default)s)")
    parser.add_argument(
        "--config-file",
        default="mask_rcnn_ResNeSt50_FPN",
        help="a YAML file, or the name of a bundled recipe (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--size", help="HEIGHTxWIDTH of images in pixels (default: 640x640 for the backbone, else 800x1216)")
    parser.add_argument("--batch", type=int, default=2, help="images in a training step (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each contender (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small images, files and sets, to see that all works")
    parser.add_argument("--json", metavar="FILE", help="also write the figures of every run to FILE")
    parser.add_argument("--plot", metavar="FILE", help="also draw them, as PNG or SVG")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse_arguments(arguments)
    given = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", args.size) if args.size is not None else None
    if args.size is not None and not given:
        raise UserError(f"--size {args.size}: expected HEIGHTxWIDTH such as 800x1216")
    if args.runs < 1 or args.batch < 1:
        raise UserError(f"--runs {args.runs} --batch {args.batch}: both must be at least 1")
    size = (int(given[1]), int(given[2])) if given else None
    device = resolve_device(args.device)
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", str(device)])
    results = {}
    print(_machine(args.config_file, device, args.runs))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _enter_event_storage(stack)
        for task in _tasks(args, cfg, size, device, folder):
            for line in task.skipped:
                print(line)
            results[task.title] = measure(task, args.runs, device)
            print(_table(task.title, results[task.title]), flush=True)
            task.runs.clear()  # before the next one's networks are built
    report = {"machine": _facts(device), "config": args.config_file, "runs": args.runs, "tasks": results}
    if args.json:
        with atomic_write(Path(args.json)) as file:
            file.write(json.dumps(report, indent=2) + "\n")
    if args.plot:
        plot(results, args.plot)


def _tasks(args: argparse.Namespace, cfg, size: tuple[int, int] | None, device: torch.device, folder: Path) -> Iterator[Task]:
    wanted = WHAT if args.what == "all" else (args.what,)
    quick = args.quick
    for_detector = size or ((256, 384) if quick else (800, 1216))
    if "backbone" in wanted:
        yield of_backbone(cfg, size or ((256, 256) if quick else _BACKBONE_SIZE), device)
    if "detector" in wanted:
        yield of_detector(cfg, make_samples(1, *for_detector, cfg), device)
    if "step" in wanted:
        yield of_step(cfg, make_samples(args.batch, *for_detector, cfg), device)
    if "data" in wanted:
        yield benchmark_data.of_data(cfg, folder, 8 if quick else 32)
    if "read" in wanted:
        yield benchmark_data.of_reading(folder, 200 if quick else 12000)
    if "evaluate" in wanted:
        yield benchmark_data.of_evaluation(20 if quick else 400, 20)


def _enter_event_storage(stack: ExitStack) -> None:
    """Detectron2's heads count in one, where it is installed."""
    try:
        from detectron2.utils.events import EventStorage
    except ImportError:
        return
    stack.enter_context(EventStorage())


def _facts(device: torch.device) -> dict:
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = platform.processor() or platform.machine()
        try:
            found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
            processor = found[1] if found else processor
        except OSError:
            pass
    return {
        "processor": processor,
        "instructions": sorted(processor_instructions() & set(_TOLD)),
        "used_by_torch": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _machine(config_file: str, device: torch.device, runs: int) -> str:
    facts = _facts(device)
    load = "" if facts["load"] is None else f", load {facts['load']:.1f}"
    return (
        f"{config_file}, {facts['processor']} ({' '.join(facts['instructions'])}; torch uses {facts['used_by_torch']}), "
        f"{facts['threads']} threads, torch {facts['torch']}{load}, {runs} runs in turns"
    )


def _table(title: str, task: dict) -> str:
    """The figures of a task in Markdown."""
    product = task["product_flops"]
    lines = [f"\n{title}" + (f"; a matrix product: {product / 1e9:.0f} GFLOP/s" if product else "")]
    head = ["", "min", "median", "max seconds", "of the reference", "MiB", "difference"] + (["of the product"] if product else [])
    lines += ["", _row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    reference = task["contenders"][task["reference"]]["median"]
    for name, each in task["contenders"].items():
        cells = [name, *(f"{each[key]:.4f}" for key in ("min", "median", "max")), f"{reference / each['median']:.2f}x"]
        cells.append("" if each["memory_mib"] is None else f"{each['memory_mib']:.0f}")
        cells.append("reference" if each["difference"] is None else f"{each['difference']:.1e}")
        if product:
            cells.append(f"{each['share_of_product']:.2f}")
        lines.append(_row(cells))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(results: dict, path: str) -> None:
    """Bars of the median seconds of each task's contenders, as a part of the reference's, with their smallest and largest."""
    names = [(title, name) for title, task in results.items() for name in task["contenders"]]
    with figure(path, 9, 1 + 0.32 * len(names)) as axes:
        for row, (title, name) in enumerate(names):
            task = results[title]
            each, reference = task["contenders"][name], task["contenders"][task["reference"]]["median"]
            middle = each["median"] / reference
            spread = [[middle - each["min"] / reference], [each["max"] / reference - middle]]
            colour = "#999999" if name == task["reference"] else "#1f77b4"
            axes.barh(row, middle, xerr=spread, color=colour, capsize=2)
        axes.set_yticks(range(len(names)), [f"{title}: {name}" for title, name in names], fontsize=7)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set_xlabel("time, as a part of the reference's (grey)")
