"""A moving average of a model's parameters (EMA): smoother than the model itself, and usually better in the end."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from resnest_det.errors import ArgumentError, UserError

KEY = "model_ema"  # of a checkpoint


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of `model` that follows it: each `update_parameters(model)` keeps `decay` of what it was, buffers included.

    In the first updates it keeps less, (1 + n) / (10 + n) after n of them, or it would long remember the start of a short run.

    Raises:
        ArgumentError: `decay` is not from 0 to below 1.
    """
    if not 0 <= decay < 1:
        raise ArgumentError("decay", f"is {decay:g}; it must be from 0 to below 1")

    @torch.no_grad()
    def average(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
        kept = min(decay, (1 + int(updates)) / (10 + int(updates)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - kept)
        else:  # batches that a norm has counted
            torch._foreach_copy_(averages, values)

    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    averaged.module.requires_grad_(False)
    return averaged


def load_averaged(model: nn.Module, checkpoint: Mapping, path: str) -> bool:
    """Give `model`, or the average of one, what a checkpoint has of the average; whether it has any.

    Raises:
        UserError: it does not fit.
    """
    saved = checkpoint.get(KEY)
    if not saved:
        return False
    if not isinstance(model, AveragedModel):
        saved = {name.removeprefix("module."): value for name, value in saved.items() if name != "n_averaged"}
    try:
        model.load_state_dict(saved)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {path}: its {KEY!r} is of another model: {str(error).splitlines()[0]}") from None
    return True
