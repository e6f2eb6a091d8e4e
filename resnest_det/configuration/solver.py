"""From SOLVER.* keys to an optimizer, a learning-rate schedule and gradient clipping."""

import logging
import math
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resnest_det.configuration.nodes import with_values
from resnest_det.engine import solver
from resnest_det.engine.averaging import averaged_model
from resnest_det.engine.muon import Muon
from resnest_det.errors import UserError, naming, shown

logger = logging.getLogger(__name__)

MOST_ITERATIONS = 10**9
# Numbers of iterations that are the fewer the larger the batch is.
RATE_KEYS = ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over the trainable parameters of `model`, as the SOLVER.* keys say."""
    factors = {part: cfg.SOLVER.HEAD_LR_FACTOR for part, _ in model.named_children() if part != "backbone"}
    factors["proposal_generator"] = cfg.SOLVER.HEAD_LR_FACTOR * cfg.SOLVER.RPN_LR_FACTOR
    groups = solver.parameter_groups(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        lr_factors=factors,
    )
    if not groups:
        raise UserError("the model has no trainable parameter: MODEL.BACKBONE.FREEZE_AT and other settings freeze all of them")
    try:
        fused = all(each.device.type in ("cpu", "cuda") for group in groups for each in group["params"])
        how = dict(lr=cfg.SOLVER.BASE_LR, fused=fused, foreach=not fused)
        if cfg.SOLVER.OPTIMIZER == "ADAMW":
            return torch.optim.AdamW(groups, betas=(cfg.SOLVER.MOMENTUM, 0.999), **how)
        if cfg.SOLVER.OPTIMIZER == "MUON":
            return Muon(groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM)
        return torch.optim.SGD(groups, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV, **how)
    except ValueError as error:
        raise UserError(
            f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER}, BASE_LR {cfg.SOLVER.BASE_LR}, MOMENTUM {cfg.SOLVER.MOMENTUM}, "
            f"NESTEROV {cfg.SOLVER.NESTEROV}, WEIGHT_DECAY {cfg.SOLVER.WEIGHT_DECAY}: {error}"
        ) from None


def build_autocast(cfg: CfgNode, device: torch.device) -> torch.autocast:
    """The precision of SOLVER.AMP for the forward pass; disabled for full precision.

    Raises:
        UserError: float16 on a device that trains in bfloat16 only, or bfloat16 on one without it.
    """
    given = cfg.SOLVER.AMP
    precision = given.PRECISION or ("fp16" if device.type == "cuda" else "bf16")
    if given.ENABLED and precision == "fp16" and device.type != "cuda":
        raise UserError(f"SOLVER.AMP.PRECISION 'fp16' is not supported on {device.type}; supported: 'bf16'")
    if given.ENABLED and precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("SOLVER.AMP.PRECISION 'bf16' is not supported by this GPU; supported: 'fp16'")
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16, enabled=given.ENABLED)


def build_scaler(cfg: CfgNode, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of losses that float16 needs; disabled for all else."""
    return torch.amp.GradScaler(
        device.type, enabled=cfg.SOLVER.AMP.ENABLED and build_autocast(cfg, device).fast_dtype == torch.float16
    )


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer, start_iteration: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of SOLVER.LR_SCHEDULER_NAME, with warm-up, standing at `start_iteration`."""
    max_iter, steps = cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and any(step > max_iter for step in steps):
        logger.warning("SOLVER.STEPS %s holds values beyond SOLVER.MAX_ITER %d, which are ignored", tuple(steps), max_iter)
    return solver.lr_scheduler(optimizer, build_schedule(cfg), max_iter, start_iteration)


def build_schedule(cfg: CfgNode) -> ParamScheduler:
    """The factor of the learning rate over the run, by SOLVER.LR_SCHEDULER_NAME and the warm-up.

    Raises:
        UserError: naming the key.
    """
    given, max_iter = cfg.SOLVER, cfg.SOLVER.MAX_ITER
    if max_iter < 1:
        raise UserError(f"SOLVER.MAX_ITER is {max_iter}; at least 1 iteration is needed")
    if given.LR_SCHEDULER_NAME == "WarmupPolyLR":
        return _build_poly_schedule(cfg)
    schedules = {
        "WarmupMultiStepLR": lambda: solver.multi_step_schedule(given.STEPS, given.GAMMA, max_iter),
        "WarmupCosineLR": lambda: solver.cosine_schedule(given.BASE_LR, given.BASE_LR_END),
        "WarmupStepWithFixedGammaLR": lambda: solver.fixed_gamma_schedule(given.GAMMA, given.NUM_DECAYS, max_iter),
    }
    if given.LR_SCHEDULER_NAME not in schedules:
        supported = ", ".join(map(repr, (*schedules, "WarmupPolyLR")))
        raise UserError(f"SOLVER.LR_SCHEDULER_NAME {given.LR_SCHEDULER_NAME!r} is not supported; supported: {supported}")
    keys = {
        "steps": "SOLVER.STEPS",
        "gamma": "SOLVER.GAMMA",
        "num_decays": "SOLVER.NUM_DECAYS",
        "base_lr": "SOLVER.BASE_LR",
        "end_lr": "SOLVER.BASE_LR_END",
        "method": "SOLVER.WARMUP_METHOD",
        "factor": "SOLVER.WARMUP_FACTOR",
        "length": "SOLVER.WARMUP_ITERS over MAX_ITER",
    }
    with naming(keys):
        return solver.with_warmup(
            schedules[given.LR_SCHEDULER_NAME](),
            factor=given.WARMUP_FACTOR,
            length=min(given.WARMUP_ITERS / max_iter, 1.0),
            method=given.WARMUP_METHOD,
            rescale_interval=given.RESCALE_INTERVAL,
        )


def _build_poly_schedule(cfg: CfgNode) -> ParamScheduler:
    given = cfg.SOLVER
    if given.RESCALE_INTERVAL:
        raise UserError("SOLVER.RESCALE_INTERVAL True is not supported with LR_SCHEDULER_NAME 'WarmupPolyLR'; supported: False")
    keys = {
        "power": "SOLVER.POLY_LR_POWER",
        "constant_ending": "SOLVER.POLY_LR_CONSTANT_ENDING",
        "method": "SOLVER.WARMUP_METHOD",
    }
    with naming(keys):
        return solver.WarmupPoly(
            given.MAX_ITER,
            power=given.POLY_LR_POWER,
            constant_ending=given.POLY_LR_CONSTANT_ENDING,
            warmup_factor=given.WARMUP_FACTOR,
            warmup_iters=given.WARMUP_ITERS,
            method=given.WARMUP_METHOD,
        )


def build_average(cfg: CfgNode, model: nn.Module) -> AveragedModel | None:
    """The moving average of SOLVER.EMA, which is as `model` is until it is first updated; None when it is off.

    Raises:
        UserError: SOLVER.EMA.DECAY is none.
    """
    with naming({"decay": "SOLVER.EMA.DECAY"}):
        return averaged_model(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None


def build_gradient_clipper(cfg: CfgNode) -> Callable | None:
    """The clipping function of SOLVER.CLIP_GRADIENTS; None when it is off."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    names = {"clip_type": "CLIP_TYPE", "clip_value": "CLIP_VALUE", "norm_type": "NORM_TYPE"}
    with naming({argument: f"SOLVER.CLIP_GRADIENTS.{key}" for argument, key in names.items()}):
        return solver.gradient_clipper(clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE) if clip.ENABLED else None


def rate_factor(optimizer: str, batch_factor: float) -> float:
    """By what the learning rate of a SOLVER.OPTIMIZER changes with the batch.

    In proportion for SGD (arXiv:1706.02677), by the root for those whose steps do not grow with the gradient (arXiv:2205.10287).
    """
    return batch_factor if optimizer == "SGD" else batch_factor**0.5


def iterations_of(epochs: float, images: float, batch: int) -> int:
    """How many iterations show `images` so many times; at least one."""
    return max(1, math.ceil(round(epochs * images / batch, 6)))


def in_iterations(cfg: CfgNode, images: float) -> CfgNode:
    """`cfg` with the keys that are given in epochs of `images` as iterations; unchanged if there is none.

    With SOLVER.MAX_EPOCHS, SOLVER.STEPS keep their place in the run and the warm-up is a tenth of it at most, unless STEPS_EPOCHS
    and WARMUP_EPOCHS say otherwise.

    Raises:
        UserError: the epochs make a run of too many iterations, or STEPS_EPOCHS do not rise.
    """
    solver, values = cfg.SOLVER, {}

    def iterations(epochs: float) -> int:
        return iterations_of(epochs, images, solver.IMS_PER_BATCH)

    if solver.MAX_EPOCHS:
        most = iterations(solver.MAX_EPOCHS)
        if most > MOST_ITERATIONS:
            raise UserError(f"SOLVER.MAX_EPOCHS {solver.MAX_EPOCHS:g} are {most} iterations; supported: up to {MOST_ITERATIONS}")
        values |= {"SOLVER.MAX_ITER": most, "SOLVER.WARMUP_ITERS": min(solver.WARMUP_ITERS, max(1, most // 10))}
        if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
            kept = sorted({max(1, round(step * most / max(solver.MAX_ITER, 1))) for step in solver.STEPS})
            values["SOLVER.STEPS"] = tuple(kept)
    if solver.STEPS_EPOCHS:
        if list(solver.STEPS_EPOCHS) != sorted(set(solver.STEPS_EPOCHS)) or solver.STEPS_EPOCHS[0] <= 0:
            raise UserError(f"SOLVER.STEPS_EPOCHS {shown(tuple(solver.STEPS_EPOCHS))} must be rising numbers above 0")
        values["SOLVER.STEPS"] = tuple(dict.fromkeys(iterations(step) for step in solver.STEPS_EPOCHS))
    for key, own in {
        "SOLVER.WARMUP_ITERS": solver.WARMUP_EPOCHS,
        "SOLVER.CHECKPOINT_PERIOD": solver.CHECKPOINT_EPOCHS,
        "TEST.EVAL_PERIOD": cfg.TEST.EVAL_EPOCHS,
        "VIS_PERIOD": cfg.VIS_EPOCHS,
    }.items():
        if own:
            values[key] = iterations(own)
    if not values:
        return cfg
    told = ", ".join(f"{key} {value}" for key, value in values.items())
    logger.info("An epoch is %g images, %.1f iterations: %s", images, images / solver.IMS_PER_BATCH, told)
    return with_values(cfg, values)


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Scale `cfg`, written for SOLVER.REFERENCE_WORLD_SIZE processes, to `world_size`; unchanged if the key is 0.

    Each process keeps its number of images, so the batch and the learning rate grow with the number of processes
    (linear scaling, arXiv:1706.02677) and every count of iterations shrinks.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, world_size):
        return cfg
    if reference < 0 or cfg.SOLVER.IMS_PER_BATCH % reference:
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}; it must divide SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}"
        )
    scale = world_size / reference
    given = cfg.SOLVER
    cfg = with_values(
        cfg,
        {
            "SOLVER.IMS_PER_BATCH": round(given.IMS_PER_BATCH * scale),
            "SOLVER.BASE_LR": given.BASE_LR * scale,
            **{f"SOLVER.{key}": round(given[key] / scale) for key in RATE_KEYS},
            "SOLVER.STEPS": tuple(round(step / scale) for step in given.STEPS),
            "TEST.EVAL_PERIOD": round(cfg.TEST.EVAL_PERIOD / scale),
            "SOLVER.REFERENCE_WORLD_SIZE": world_size,
        },
    )
    logger.info(
        "Scaled from %d to %d processes: %d images a step, base learning rate %g, %d iterations, %d of warm-up",
        reference,
        world_size,
        cfg.SOLVER.IMS_PER_BATCH,
        cfg.SOLVER.BASE_LR,
        cfg.SOLVER.MAX_ITER,
        cfg.SOLVER.WARMUP_ITERS,
    )
    return cfg
