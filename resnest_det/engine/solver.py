"""Optimizer parameter groups, gradient clipping and learning-rate schedules, with Detectron2's semantics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn

from resnest_det.errors import ArgumentError

NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None = None,
    weight_decay_bias: float | None = None,
    bias_lr_factor: float = 1.0,
    lr_factors: Mapping[str, float] = MappingProxyType({}),
) -> list[dict]:
    """The trainable parameters of `model`, in one group for each pair of learning rate and weight decay.

    A shared parameter counts once. Every parameter named `bias`, a norm layer's too, takes the bias settings; None means
    the same value as for other parameters.

    Args:
        lr_factors: of the rates of parameters whose names begin so, up to a point.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        part_lr = base_lr * lr_factors.get(path.partition(".")[0], 1.0)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr, decay = part_lr, weight_decay
            if isinstance(module, NORM_LAYERS) and weight_decay_norm is not None:
                decay = weight_decay_norm
            if name == "bias":
                lr = part_lr * bias_lr_factor
                decay = decay if weight_decay_bias is None else weight_decay_bias
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def gradient_clipper(clip_type: str, clip_value: float, norm_type: float = 2.0) -> Callable[[Iterable[nn.Parameter]], None]:
    """A function that clips the gradient of each parameter separately, by absolute value ("value") or norm ("norm")."""
    if clip_type not in ("value", "norm"):
        raise ArgumentError("clip_type", f"{clip_type!r} is not supported; supported: 'value', 'norm'")
    if not clip_value > 0:
        raise ArgumentError("clip_value", f"is {clip_value}; it must be above 0")

    def clip(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if clip_type == "value":
                nn.utils.clip_grad_value_(parameter, clip_value)
            else:
                nn.utils.clip_grad_norm_(parameter, clip_value, norm_type)

    return clip


def multi_step_schedule(steps: Sequence[int], gamma: float, max_iter: int) -> ParamScheduler:
    """Multiply by `gamma` at each iteration of `steps`; those beyond `max_iter` are ignored.

    Raises:
        ArgumentError: `steps` are not increasing numbers of iterations.
    """
    if list(steps) != sorted(set(steps)) or any(not isinstance(step, int) or step < 1 for step in steps):
        raise ArgumentError("steps", f"is {tuple(steps)}; it must be increasing iteration numbers from 1")
    kept = [step for step in steps if step < max_iter]
    return MultiStepParamScheduler([gamma**k for k in range(len(kept) + 1)], num_updates=max_iter, milestones=kept)


def cosine_schedule(base_lr: float, end_lr: float) -> ParamScheduler:
    """Half a cosine from 1 down to `end_lr / base_lr`.

    Raises:
        ArgumentError: `base_lr` is not above 0, or `end_lr` not from 0 to `base_lr`.
    """
    if not base_lr > 0:
        raise ArgumentError("base_lr", f"is {base_lr}; a cosine needs it above 0")
    if not 0 <= end_lr <= base_lr:
        raise ArgumentError("end_lr", f"is {end_lr:g}; it must be from 0 to the base learning rate, {base_lr:g}")
    return CosineParamScheduler(1, end_lr / base_lr)


def fixed_gamma_schedule(gamma: float, num_decays: int, max_iter: int) -> ParamScheduler:
    """`num_decays` equally spaced multiplications by `gamma`.

    Raises:
        ArgumentError: one of them is not above 0.
    """
    if num_decays < 1:
        raise ArgumentError("num_decays", f"is {num_decays}; it must be at least 1")
    if not gamma > 0:
        raise ArgumentError("gamma", f"is {gamma:g}; it must be above 0")
    return StepWithFixedGammaParamScheduler(base_value=1.0, num_decays=num_decays, gamma=gamma, num_updates=max_iter)


def with_warmup(
    schedule: ParamScheduler, *, factor: float, length: float, method: str = "linear", rescale_interval: bool = False
) -> ParamScheduler:
    """`schedule` with a warm-up in place of its first `length` (fraction of the run, 0 to 1).

    The warm-up starts at `factor` times the schedule's first value. It stays there ("constant"), or rises to
    the value at which the schedule takes over ("linear"). With `rescale_interval` the whole schedule is
    squeezed into what remains after the warm-up.
    """
    if not 0 <= length <= 1:
        raise ArgumentError("length", f"is {length:g}; it must be from 0 to 1")
    start = factor * schedule(0.0)
    if method == "linear":
        warmup = LinearParamScheduler(start, schedule(0.0) if rescale_interval else schedule(length))
    elif method == "constant":
        warmup = ConstantParamScheduler(start)
    else:
        raise ArgumentError("method", f"{method!r} is not supported; supported: 'linear', 'constant'")
    return CompositeParamScheduler(
        [warmup, schedule],
        lengths=[length, 1 - length],
        interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
    )


class WarmupPoly(ParamScheduler):
    """A power of what is left of the run, times a warm-up (arXiv:1606.00915, section 4.1; Detectron2's project DeepLab).

    Args:
        max_iter: iterations of the run.
        power: of the part of it that is left.
        constant_ending: after the warm-up the factor does not fall below this.
        warmup_factor, warmup_iters, method: see `with_warmup`; the warm-up multiplies the power.

    Raises:
        ArgumentError: an argument is out of its range.
    """

    def __init__(
        self,
        max_iter: int,
        *,
        power: float = 0.9,
        constant_ending: float = 0.0,
        warmup_factor: float = 0.001,
        warmup_iters: int = 0,
        method: str = "linear",
    ):
        if not power >= 0:
            raise ArgumentError("power", f"is {power:g}; it must be 0 or more")
        if not 0 <= constant_ending <= 1:
            raise ArgumentError("constant_ending", f"is {constant_ending:g}; it must be from 0 to 1")
        if method not in ("linear", "constant"):
            raise ArgumentError("method", f"{method!r} is not supported; supported: 'linear', 'constant'")
        self.max_iter, self.power, self.constant_ending = max_iter, power, constant_ending
        self.warmup_factor, self.warmup_iters, self.method = warmup_factor, warmup_iters, method

    def __call__(self, where: float) -> float:
        """The factor of the learning rate at a part of the run, 0 to 1."""
        iteration, left = where * self.max_iter, (1 - where) ** self.power
        if iteration >= self.warmup_iters:
            return max(left, self.constant_ending)
        done = iteration / self.warmup_iters if self.method == "linear" else 0.0
        return (self.warmup_factor * (1 - done) + done) * left


def lr_scheduler(
    optimizer: torch.optim.Optimizer, schedule: ParamScheduler, max_iter: int, start_iteration: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """A scheduler that gives each group of `optimizer` its base rate times `schedule`, from `start_iteration` on."""
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    # torch asks for a rate after the last iteration and never uses it; some schedules have none.
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: schedule(min(iteration, max_iter - 1) / max_iter), last_epoch=start_iteration - 1
    )
