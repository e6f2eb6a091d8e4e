"""What the package needs to know of the process group; with none, everything behaves as one process of one."""

import torch
import torch.distributed as dist


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Index of this process over all machines, 0 without a process group."""
    return dist.get_rank() if _initialized() else 0


def get_world_size() -> int:
    """Number of processes over all machines, 1 without a process group."""
    return dist.get_world_size() if _initialized() else 1


def is_main_process() -> bool:
    """Whether this process logs and writes files for all of them."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process has arrived here."""
    if get_world_size() > 1:
        dist.barrier()


def all_gather_objects(value) -> list:
    """Every process's `value` (any picklable object), by rank, on every process."""
    if get_world_size() == 1:
        return [value]
    gathered = [None] * get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_objects(value) -> list:
    """Every process's `value` by rank on the main process; an empty list on the others."""
    if get_world_size() == 1:
        return [value]
    gathered = [None] * get_world_size() if is_main_process() else None
    dist.gather_object(value, gathered)
    return gathered or []


def mean_count(count: int | torch.Tensor, device: torch.device) -> int | torch.Tensor:
    """What a sum over `count` items of this process is divided by to count in the mean over the items of all processes.

    This is the average of `count` over the processes: as losses and gradients are averaged over them too, the result is the
    mean over the whole batch, however its items are spread. Never zero, so that a sum over nothing stays zero.
    """
    if get_world_size() == 1:
        return torch.clamp(count, min=1) if isinstance(count, torch.Tensor) else max(count, 1)
    total = torch.as_tensor(count, dtype=torch.float32, device=device).clone()
    dist.all_reduce(total)
    return total.clamp(min=1) / get_world_size()
