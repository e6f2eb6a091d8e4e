"""Measuring contenders in turns: seconds, memory, difference from a reference, share of the machine's matrix-product speed."""

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

PRODUCT = "matrix product"
_SIDE = 2048


@dataclass
class Task:
    """Something that several contenders do.

    Attributes:
        title: what it is.
        runs: functions by contender that do it once and return what came out.
        reference: the contender whose result others are compared with.
        far: how far a result is from the reference's, in numbers of its own.
        operations: floating point operations of a run; 0 where that says nothing.
        skipped: lines about contenders that are not here.
        items: what a run goes through, images or figures, where that is more than one.
    """

    title: str
    runs: dict[str, Callable[[], Any]]
    reference: str
    far: Callable[[Any, Any], float]
    operations: float = 0.0
    skipped: Sequence[str] = field(default_factory=list)
    items: int = 1


def measure(task: Task, count: int, device: torch.device) -> dict[str, Any]:
    """The figures of a task: of each contender `count` seconds and their minimum, median and maximum, MiB at its peak, its
    difference from the reference, and the share of what the machine does in a product of matrices, in the same rounds."""
    figures, results = {}, {}
    for name, run in task.runs.items():
        results[name] = run()  # also keeps one-time set-up out of the figures
        figures[name] = {"memory_mib": peak_memory(run, device), "seconds": []}
    product = _product(device) if task.operations else None
    speeds = []
    for _ in range(count):
        if product is not None:
            product()
            speeds.append(2 * _SIDE**3 / seconds_of(product, device))
        for name, run in task.runs.items():
            figures[name]["seconds"].append(seconds_of(run, device))
    for name, each in figures.items():
        seconds = each["seconds"]
        each |= {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}
        each["difference"] = None if name == task.reference else task.far(results[name], results[task.reference])
        if product is not None:
            each["share_of_product"] = task.operations / each["median"] / statistics.median(speeds)
    return {
        "contenders": figures,
        "reference": task.reference,
        "operations": task.operations,
        "product_flops": statistics.median(speeds) if speeds else None,
        "items": task.items,
        "skipped": list(task.skipped),
    }


def _product(device: torch.device) -> Callable[[], Any]:
    one, other = (torch.randn(_SIDE, _SIDE, device=device) for _ in range(2))
    return lambda: one @ other


def seconds_of(run: Callable, device: torch.device) -> float:
    """Of the clock on the wall, until the device is done."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(run: Callable, device: torch.device) -> float | None:
    """MiB that `run` takes at its peak, beyond what was held before it; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # return freed memory to the system, so that it does not count as held
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
        before = _resident("VmRSS")
        run()
        return (_resident("VmHWM") - before) / 1024
    except OSError:
        return None


def _resident(field_name: str) -> int:
    return int(re.search(rf"{field_name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
