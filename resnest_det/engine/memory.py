"""Running out of memory, told as such; and how much of it there is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from resnest_det.errors import UserError, out_of_memory


class OutOfMemory(UserError):
    """There is no room for a step of `images` images on one device."""

    def __init__(self, images: int, reason: str):
        super().__init__(f"out of memory in a step of {images} images: {reason}")
        self.images = images


@contextmanager
def telling_of_memory(images: int) -> Iterator[None]:
    """Within, what torch raises where memory is out becomes `OutOfMemory`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if out_of_memory(error) is None:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
    else:
        return
    # Out of the handler, whose traceback holds the tensors of the step.
    raise OutOfMemory(images, reason)


def most_that_fit(step: Callable[[Sequence], None], batch: Sequence, least: int) -> int:
    """How many images of a batch `step` has room for, by trying halves of it; 0 if not even `least`."""
    count = len(batch)
    while count // 2 >= least:
        count //= 2
        try:
            with telling_of_memory(count):
                step(batch[:count])
            return count
        except OutOfMemory:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return 0


def memory_for_use(device: torch.device) -> int:
    """Bytes that a process can still get: of the GPU, or of this machine and the group of processes that this one belongs to."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    limits = [_available()]
    for most, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with suppress(OSError, ValueError):
            folder = Path("/sys/fs/cgroup")
            limits.append(int((folder / most).read_text()) - int((folder / used).read_text()))
    return max(0, min(limits))


def _available() -> int:
    with suppress(OSError, StopIteration, IndexError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    return 8 * 2**30  # not Linux
