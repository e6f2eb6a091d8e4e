"""From the keys of a classifier's training to plain arguments: data, model, optimizer, and the keys of the run that is shared."""

import importlib
import logging
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.transforms import v2

from resnest_det.backbone.classifier import Classifier, create_model
from resnest_det.backbone.image_classifier import ImageClassifier
from resnest_det.backbone.resnest import STAGES
from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.solver import in_iterations
from resnest_det.data import samplers
from resnest_det.data.class_folders import ClassImages
from resnest_det.data.class_samples import LabelledImages, collate, evaluation_image, training_image
from resnest_det.data.class_transforms import evaluation_transform, training_transform
from resnest_det.data.jpeg_decoders import jpeg_decoder
from resnest_det.data.loader import InferenceBatches, training_batches
from resnest_det.distributed import get_rank, get_world_size
from resnest_det.engine import solver
from resnest_det.errors import UserError, naming
from resnest_det.evaluation.classification import TASK

logger = logging.getLogger(__name__)

_TRANSFORM_KEYS = {
    "crop_size": "DATA.CROP_SIZE",
    "crop": "DATA.CROP",
    "area": "DATA.AREA",
    "interpolation": "DATA.INTERPOLATION",
    "auto_augment": "DATA.AUTO_AUGMENT",
    "rand_augment": "DATA.RAND_AUG_OPS, RAND_AUG_MAGNITUDE",
    "color_jitter": "DATA.COLOR_JITTER",
    "decoder": "DATA.DECODER",
    "share": "DATA.TEST_SHARE",
}
_LEAST_AREA = {"efficientnet": 0.1, "resized": 0.08}


def run_keys(cfg: CfgNode, images: int) -> CfgNode:
    """The keys that a run of any model reads (SOLVER, TEST, OUTPUT_DIR ...), for a classifier's configuration.

    The learning rate is scaled to the batch: OPTIMIZER.LR is that of OPTIMIZER.LR_BATCH images.

    Args:
        images: to train on.

    Raises:
        UserError: there are fewer than a step needs.
    """
    training, optimizer, world_size = cfg.TRAINING, cfg.OPTIMIZER, get_world_size()
    batch = training.BATCH_SIZE * world_size
    if batch > images:
        raise UserError(
            f"a step has {batch} images (TRAINING.BATCH_SIZE {training.BATCH_SIZE} on {world_size} processes), but there are "
            f"only {images} to train on; use a smaller TRAINING.BATCH_SIZE"
        )
    # The norm of split attention has one value for each channel and image, SyncBN those of all processes.
    part = math.ceil(training.BATCH_SIZE / training.ACCUMULATE) * (world_size if cfg.MODEL.NORM == "SyncBN" else 1)
    smallest = training.BATCH_SIZE % math.ceil(training.BATCH_SIZE / training.ACCUMULATE) or part
    if cfg.MODEL.NORM in ("BN", "SyncBN") and min(part, smallest) < 2:
        raise UserError(
            f"TRAINING.BATCH_SIZE {training.BATCH_SIZE} in TRAINING.ACCUMULATE {training.ACCUMULATE} parts has a part of one "
            "image, which cannot train the batch norm of split attention; use parts of two at least, or MODEL.NORM GN"
        )
    reference = optimizer.LR_BATCH or training.BATCH_SIZE
    rate = optimizer.LR * batch / reference
    logger.info(
        "Learning rate %g: OPTIMIZER.LR %g of %d images, for steps of %d (%d on each of %d processes)",
        rate,
        optimizer.LR,
        reference,
        batch,
        training.BATCH_SIZE,
        world_size,
    )
    values: dict[str, object] = {
        "OUTPUT_DIR": cfg.OUTPUT_DIR,
        "SEED": cfg.SEED,
        "CUDNN_BENCHMARK": cfg.CUDNN_BENCHMARK,
        "MODEL.DEVICE": cfg.MODEL.DEVICE,
        "DATASETS.TEST": ("val",),
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": rate,
        "SOLVER.BASE_LR_END": rate * optimizer.LR_END,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.WARMUP_FACTOR": 0.0,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.WARMUP_EPOCHS": optimizer.WARMUP_EPOCHS,
        "SOLVER.RESCALE_INTERVAL": True,
        "SOLVER.MAX_EPOCHS": float(training.EPOCHS),
        "SOLVER.CHECKPOINT_EPOCHS": training.CHECKPOINT_EPOCHS,
        "SOLVER.CHECKPOINTS_KEPT": training.CHECKPOINTS_KEPT,
        "SOLVER.AMP.ENABLED": training.AMP,
        "SOLVER.EMA.ENABLED": training.EMA > 0,
        "SOLVER.EMA.DECAY": training.EMA,
        "SOLVER.CLIP_GRADIENTS.ENABLED": optimizer.CLIP_NORM > 0,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": optimizer.CLIP_NORM or 1.0,
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
        "TEST.EVAL_PERIOD": 0,
        "TEST.EVAL_EPOCHS": training.EVAL_EPOCHS,
        "TEST.BEST_METRIC": f"{TASK}/top1",
        "TEST.PATIENCE": training.PATIENCE,
        "VIS_PERIOD": 0,
    }
    return in_iterations(with_values(default_config(), values), images)


def build_classifier(cfg: CfgNode, num_classes: int) -> Classifier:
    """The model, freshly initialised, on the CPU."""
    model = create_model(
        cfg.MODEL.NAME,
        num_classes=num_classes,
        drop_rate=cfg.MODEL.FINAL_DROP,
        drop_path_rate=cfg.MODEL.DROP_PATH,
        norm=cfg.MODEL.NORM,
        width=cfg.MODEL.WIDTH,
        drop_block_size=cfg.MODEL.DROP_BLOCK_SIZE if cfg.MODEL.DROP_BLOCK else 0,
    )
    if cfg.TRAINING.LAST_GAMMA:
        model.zero_last_norms()
    model.set_grad_checkpointing(cfg.MODEL.CHECKPOINTING)
    return model


def image_classifier(cfg: CfgNode, model: nn.Module, *, mixing: bool = True) -> ImageClassifier:
    """What maps batches to losses, around `model`; without `mixing`, as in the last epochs."""
    names = {"mixup": "DATA.MIXUP", "cutmix": "DATA.CUTMIX", "label_smoothing": "DATA.LABEL_SMOOTHING"}
    with naming(names):
        return ImageClassifier(
            model,
            mixup=cfg.DATA.MIXUP if mixing else 0.0,
            cutmix=cfg.DATA.CUTMIX if mixing else 0.0,
            label_smoothing=cfg.DATA.LABEL_SMOOTHING,
            channels_last=cfg.TRAINING.CHANNELS_LAST,
            compiled=cfg.TRAINING.COMPILE,
        )


def build_classifier_optimizer(cfg: CfgNode, model: nn.Module, base_lr: float) -> torch.optim.Optimizer:
    """The optimizer of OPTIMIZER over the trainable parameters.

    Raises:
        UserError: everything is frozen, or the optimizer's library is not installed or refuses a value.
    """
    given = cfg.OPTIMIZER
    parts = ("stem", *STAGES, "linear")
    groups = solver.parameter_groups(
        model,
        base_lr=base_lr,
        weight_decay=given.WEIGHT_DECAY,
        weight_decay_norm=0.0 if given.DISABLE_BN_WD else None,
        weight_decay_bias=0.0 if given.DISABLE_BN_WD else None,
        lr_factors={part: given.LAYER_DECAY ** (len(parts) - 1 - index) for index, part in enumerate(parts)},
    )
    try:
        if given.NAME == "sgd":
            return torch.optim.SGD(groups, lr=base_lr, momentum=given.MOMENTUM, nesterov=given.NESTEROV, foreach=True)
        betas = (given.MOMENTUM, 0.999)
        if given.NAME == "adamw":
            return torch.optim.AdamW(groups, lr=base_lr, betas=betas, foreach=True)
        return importlib.import_module("timm.optim").Lamb(groups, lr=base_lr, betas=betas)
    except ImportError:
        raise UserError("OPTIMIZER.NAME 'lamb' is timm's, which is not installed: pip install timm") from None
    except ValueError as error:
        raise UserError(
            f"OPTIMIZER.NAME {given.NAME}, LR {given.LR:g}, MOMENTUM {given.MOMENTUM:g}, NESTEROV {given.NESTEROV}: {error}"
        ) from None


def build_classifier_batches(
    cfg: CfgNode, images: ClassImages, *, seed: int, start_iteration: int = 0, num_workers: int | None = None
) -> Iterator[LabelledImages]:
    """Endless batches of augmented images, TRAINING.BATCH_SIZE on each process; see `build_train_loader`."""
    given = cfg.DATA
    area = tuple(given.AREA) if any(given.AREA) else (_LEAST_AREA[given.CROP], 1.0)
    with naming(_TRANSFORM_KEYS):
        jpeg_decoder(given.DECODER)
        transform = training_transform(
            given.CROP_SIZE,
            crop=given.CROP,
            area=area,
            interpolation=given.INTERPOLATION,
            flip=given.FLIP,
            auto_augment=given.AUTO_AUGMENT,
            rand_augment=(given.RAND_AUG_OPS, given.RAND_AUG_MAGNITUDE) if given.RAND_AUG else None,
            color_jitter=given.COLOR_JITTER,
        )
    draws = (
        samplers.training_draws(np.ones(len(images)), seed)
        if images.shards is None
        else samplers.shard_draws(images.shards, seed)
    )
    return training_batches(
        images.records,
        partial(training_image, transform=transform, lighting=given.LIGHTING, decoder=given.DECODER),
        samplers.batches(draws, cfg.TRAINING.BATCH_SIZE * get_world_size(), None),
        seed=seed,
        start_iteration=start_iteration,
        rank=get_rank(),
        world_size=get_world_size(),
        num_workers=cfg.TRAINING.WORKERS if num_workers is None else num_workers,
        collate=partial(collate, strict=given.STRICT, fill=True),
    )


def build_evaluation_transform(cfg: CfgNode) -> v2.Compose:
    """From a Pillow image to what is evaluated, uint8."""
    given = cfg.DATA
    with naming(_TRANSFORM_KEYS | {"crop_size": "DATA.TEST_CROP_SIZE", "crop": "DATA.TEST_CROP"}):
        jpeg_decoder(given.DECODER)
        return evaluation_transform(
            given.TEST_CROP_SIZE or given.CROP_SIZE,
            crop=given.TEST_CROP,
            share=given.TEST_SHARE,
            interpolation=given.TEST_INTERPOLATION or given.INTERPOLATION,
        )


def build_evaluation_batches(cfg: CfgNode, images: ClassImages) -> InferenceBatches:
    """This process's share of some images, in batches of TRAINING.TEST_BATCH_SIZE at most."""
    return InferenceBatches(
        images.records,
        partial(evaluation_image, transform=build_evaluation_transform(cfg), decoder=cfg.DATA.DECODER),
        cfg.TRAINING.WORKERS,
        chosen=samplers.inference_indices(len(images), get_rank(), get_world_size()),
        batch_size=cfg.TRAINING.TEST_BATCH_SIZE,
        collate=partial(collate, strict=cfg.DATA.STRICT, fill=False),
    )


def drop_block_rate(cfg: CfgNode, iteration: int, max_iter: int) -> float:
    """MODEL.DROP_BLOCK, reached in equal steps of an epoch: the first has one, as in the authors' Gluon training."""
    epochs = cfg.TRAINING.EPOCHS
    return cfg.MODEL.DROP_BLOCK * (iteration * epochs // max_iter + 1) / epochs
