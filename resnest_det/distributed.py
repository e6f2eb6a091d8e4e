"""What the package needs of the process group; without one, this is process 0 of 1."""

import torch
import torch.distributed as dist


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Index of this process among those of all machines; 0 without a process group."""
    return dist.get_rank() if _initialized() else 0


def get_world_size() -> int:
    """Number of processes on all machines; 1 without a process group."""
    return dist.get_world_size() if _initialized() else 1


def is_main_process() -> bool:
    """Whether this is the process that logs and writes files for all."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait for every process to arrive here."""
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
    """The number to divide a sum over this process's `count` items by, so that losses average to the mean over all items.

    This is the average of `count` over the processes. Losses and gradients are averaged over them too, so the result is the
    mean over the whole batch, however its items are spread. Never zero, so that a sum over nothing stays zero.
    """
    if get_world_size() == 1:
        return torch.clamp(count, min=1) if isinstance(count, torch.Tensor) else max(count, 1)
    # A tensor made from a number that is copied to a GPU would make the host wait for it.
    of_tensor = isinstance(count, torch.Tensor)
    total = count.to(device, torch.float32, copy=True) if of_tensor else torch.full((), float(count), device=device)
    dist.all_reduce(total)
    return total.clamp(min=1) / get_world_size()
