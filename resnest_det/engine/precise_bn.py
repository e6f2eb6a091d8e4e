"""Exact batch-norm statistics: Wu and Johnson, Rethinking "Batch" in BatchNorm (arXiv:2105.07576), section 3."""

from collections.abc import Iterable
from itertools import islice

import torch
import torch.distributed as dist
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn

from resnest_det.distributed import get_world_size


@torch.no_grad()
def update_batch_norm_statistics(model: nn.Module, batches: Iterable, count: int) -> None:
    """Give every batch norm in training mode the mean and variance of everything it sees in `count` batches.

    They cover the batches of all processes together, so every process gets the same. (fvcore's function uses the batch size
    of one process where SyncBN has normalised over all. Inside split attention, with one value per image, that yields half
    of the variance or less.)

    Args:
        batches: inputs of `model`, at least `count` of them.
    """
    moments = {
        norm: torch.zeros(3, norm.num_features, dtype=torch.float64, device=norm.running_mean.device)
        for norm in get_bn_modules(model)
    }

    def add(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float()  # sums of half-precision maps overflow
        variance, mean = torch.var_mean(x, (0, *range(2, x.dim())), correction=0)
        variance, mean, number = variance.double(), mean.double(), x.numel() // x.shape[1]
        moments[norm] += number * torch.stack([torch.ones_like(mean), mean, variance + mean.square()])

    hooks = [norm.register_forward_pre_hook(add) for norm in moments]
    try:
        for batch in islice(batches, count):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, each in moments.items():
        if get_world_size() > 1:
            dist.all_reduce(each)
        number, total, squares = each
        if number[0] > 0:
            mean = total / number
            norm.running_mean.copy_(mean)
            norm.running_var.copy_((squares / number - mean.square()).clamp(min=0))
