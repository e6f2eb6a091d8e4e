"""From SOLVER.* keys to an optimizer, a learning-rate schedule and gradient clipping."""

import logging
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import nn

from resnest_det.configuration.reading import with_values
from resnest_det.engine import solver
from resnest_det.errors import UserError

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.SGD:
    """SGD over the trainable parameters of `model`, as the SOLVER.* keys say."""
    groups = solver.parameter_groups(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
    )
    if not groups:
        raise UserError("the model has no trainable parameter: MODEL.BACKBONE.FREEZE_AT and other settings freeze all of them")
    try:
        return torch.optim.SGD(
            groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV, foreach=True
        )
    except ValueError as error:
        raise UserError(
            f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR}, MOMENTUM {cfg.SOLVER.MOMENTUM}, NESTEROV {cfg.SOLVER.NESTEROV}, "
            f"WEIGHT_DECAY {cfg.SOLVER.WEIGHT_DECAY}: {error}"
        ) from None


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer, start_iteration: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of SOLVER.LR_SCHEDULER_NAME with its warm-up, starting at `start_iteration`."""
    name, max_iter = cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.MAX_ITER
    if max_iter < 1:
        raise UserError(f"SOLVER.MAX_ITER is {max_iter}; at least 1 iteration is needed")
    if name == "WarmupMultiStepLR":
        schedule = solver.multi_step_schedule(cfg.SOLVER.STEPS, cfg.SOLVER.GAMMA, max_iter)
    elif name == "WarmupCosineLR":
        if not cfg.SOLVER.BASE_LR > 0:
            raise UserError(f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR}; WarmupCosineLR needs it above 0")
        schedule = solver.cosine_schedule(cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR)
    elif name == "WarmupStepWithFixedGammaLR":
        schedule = solver.fixed_gamma_schedule(cfg.SOLVER.GAMMA, cfg.SOLVER.NUM_DECAYS, max_iter)
    else:
        raise UserError(
            f"SOLVER.LR_SCHEDULER_NAME is {name!r}; supported are WarmupMultiStepLR, WarmupCosineLR and "
            "WarmupStepWithFixedGammaLR"
        )
    if cfg.SOLVER.WARMUP_ITERS < 0:
        raise UserError(f"SOLVER.WARMUP_ITERS is {cfg.SOLVER.WARMUP_ITERS}; it must be 0 or more")
    schedule = solver.with_warmup(
        schedule,
        factor=cfg.SOLVER.WARMUP_FACTOR,
        length=min(cfg.SOLVER.WARMUP_ITERS / max_iter, 1.0),
        method=cfg.SOLVER.WARMUP_METHOD,
        rescale_interval=cfg.SOLVER.RESCALE_INTERVAL,
    )
    return solver.lr_scheduler(optimizer, schedule, max_iter, start_iteration)


def build_gradient_clipper(cfg: CfgNode) -> Callable | None:
    """The clipping function of SOLVER.CLIP_GRADIENTS; None when it is off."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return solver.gradient_clipper(clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE) if clip.ENABLED else None


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
            **{f"SOLVER.{key}": round(given[key] / scale) for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD")},
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
