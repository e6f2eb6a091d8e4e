"""Training and evaluating a classifier as its configuration describes it, in the loop that detectors are trained in."""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from resnest_det.backbone.classifier import load_classifier
from resnest_det.backbone.variants import find_variant
from resnest_det.configuration.classifier_parts import (
    build_classifier,
    build_classifier_batches,
    build_classifier_optimizer,
    build_evaluation_batches,
    drop_block_rate,
    image_classifier,
    run_keys,
)
from resnest_det.configuration.model import resolve_device
from resnest_det.configuration.nodes import leaves, with_values
from resnest_det.configuration.solver import build_average
from resnest_det.configuration.standalone import CONFIG_NAME
from resnest_det.configuration.weights import fetch_initial_weights
from resnest_det.data.catalog import datasets_root
from resnest_det.data.class_folders import ClassImages, check_same_classes, read_class_folders
from resnest_det.data.shapes import ensure_shape_classes
from resnest_det.data.shards import is_shards, read_shards
from resnest_det.distributed import gather_objects, get_rank, is_main_process, synchronize
from resnest_det.drawing.plots import plot_class_confusion
from resnest_det.engine.averaging import load_averaged
from resnest_det.engine.callbacks import callback_named
from resnest_det.engine.checkpoint import BEST_CHECKPOINT, DetectionCheckpointer
from resnest_det.engine.environment import environment_summary
from resnest_det.engine.events import setup_logging
from resnest_det.engine.loop import seed_everything
from resnest_det.engine.memory import OutOfMemory
from resnest_det.errors import UserError, naming
from resnest_det.evaluation.classification import TASK, ClassificationEvaluator
from resnest_det.evaluation.loop import EvaluationSet, inference_on_dataset
from resnest_det.files import atomic_write
from resnest_det.training.process import RunOptions, as_restarted, joined
from resnest_det.training.run import checkpointer_of, choose_seed, restore, resumed_seed, run_to_end
from resnest_det.training.steps import Task, Trained
from resnest_det.weights.downloads import resolve_weights

logger = logging.getLogger(__name__)

MOST_TOLD = 20  # images that cannot be read, one by one
GENERATED = "shapes"  # as DATA.ROOT: images that are drawn where there is no folder of this name
FIGURES = "inference"  # the folder of an evaluation's files, as for detectors


def run_classifier(cfg: CfgNode, options: RunOptions) -> dict:
    """What each process does: train a classifier, or only evaluate it; returns the figures on the main process."""
    with joined(cfg.MODEL.DEVICE, cfg.FLOAT32_PRECISION, cfg.OUTPUT_DIR), naming({"num_workers": "TRAINING.WORKERS"}):
        options = as_restarted(options)
        setup_logging(cfg.OUTPUT_DIR, get_rank())
        logger.info("Environment:\n%s", environment_summary())
        overrides = " ".join(options.overrides) or "none"
        logger.info("Classifier on %s; config %s; overrides %s", cfg.MODEL.DEVICE, options.config_file or "none", overrides)
        train, val = read_images(cfg)
        cfg = with_values(cfg, {"MODEL.NUM_CLASSES": _number_of_classes(cfg, train)})
        if is_main_process() and not options.eval_only:
            with atomic_write(Path(cfg.OUTPUT_DIR, CONFIG_NAME)) as file:
                file.write(whole_text(cfg))
        if options.eval_only:
            return evaluate_classifier(cfg, val, last_checkpoint=options.resume)
        callbacks = [callback_named(text)() for text in options.callbacks] if is_main_process() else []
        results = train_classifier(cfg, train, val, resume=options.resume, services=options.services, callbacks=callbacks)
        if is_main_process():
            out = Path(cfg.OUTPUT_DIR)
            weights = next(path for path in (out / BEST_CHECKPOINT, out / "model_final.pth") if path.exists())
            logger.info(
                "Done: the model is %s; figures of classes in %s. Next: create_model(%r, num_classes=%d, checkpoint_path=%r)",
                weights,
                out / FIGURES,
                cfg.MODEL.NAME,
                cfg.MODEL.NUM_CLASSES,
                str(weights),
            )
        return results


def read_images(cfg: CfgNode) -> tuple[ClassImages, ClassImages]:
    """The images to train on and those to evaluate on, of DATA.ROOT and DATA.VAL: class folders, or tar shards.

    Raises:
        UserError: see `read_class_folders` and `read_shards`.
    """
    root = cfg.DATA.ROOT
    if root == GENERATED and not os.path.exists(root):
        root = str(ensure_shape_classes(datasets_root()))
    read = read_shards if is_shards(root) else read_class_folders
    train, val = read(root, cfg.DATA.VAL, cfg.DATA.HELD_OUT)
    for images, what in ((train, "train"), (val, "evaluate")):
        logger.info("%d images of %d classes to %s on: %s", len(images), len(images.classes), what, images.name)
    return train, val


def _number_of_classes(cfg: CfgNode, images: ClassImages) -> int:
    if cfg.MODEL.NUM_CLASSES not in (0, len(images.classes)):
        raise UserError(f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {images.name} has {len(images.classes)} classes")
    return len(images.classes)


def whole_text(cfg: CfgNode) -> str:
    """The text of config.yaml, which means the same in any folder."""
    paths = {key: cfg.DATA[key] for key in ("ROOT", "VAL")}
    values = {f"DATA.{key}": os.path.abspath(os.path.expanduser(path)) for key, path in paths.items() if os.path.exists(path)}
    if os.path.isfile(cfg.MODEL.WEIGHTS):
        values["MODEL.WEIGHTS"] = os.path.abspath(cfg.MODEL.WEIGHTS)
    return with_values(cfg, values | {"OUTPUT_DIR": os.path.abspath(cfg.OUTPUT_DIR)}).dump()


def train_classifier(
    cfg: CfgNode, train: ClassImages, val: ClassImages, *, resume: bool = False, services: Sequence[str] = (), callbacks=()
) -> dict:
    """Train on this process's device, evaluate after epochs and at the end; returns the figures (main process).

    Args:
        cfg: see `resnest_det.configuration.classifier`, with MODEL.NUM_CLASSES.
        resume, services, callbacks: see `resnest_det.training.run.train`.

    Raises:
        UserError: see there.
    """
    run_cfg = run_keys(cfg, len(train))
    torch.backends.cudnn.benchmark = run_cfg.CUDNN_BENCHMARK
    seed = choose_seed(cfg.SEED)
    seed_everything(seed)
    device = resolve_device(cfg.MODEL.DEVICE)
    model = build_classifier(cfg, len(train.classes))
    if cfg.TRAINING.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    model.freeze(cfg.MODEL.FREEZE_AT)
    model = model.to(device)
    optimizer = build_classifier_optimizer(cfg, model, run_cfg.SOLVER.BASE_LR)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.TRAINING.AMP and device.type == "cuda")
    trained = Trained(model, build_average(run_cfg, model), optimizer, scaler)
    checkpointer = checkpointer_of(trained, cfg.OUTPUT_DIR)
    start = 0
    if resume and checkpointer.has_checkpoint():
        saved, path = checkpointer.resume(), checkpointer.get_checkpoint_file()
        check_trained_on(saved, train, path)
        start = restore(trained, saved, path)
        seed = resumed_seed(cfg.SEED, seed, saved.get("seed"))
    else:
        load_weights_to_begin(cfg, model)
    unreadable = Unreadable()
    judge = ClassifierJudge(cfg, val, unreadable)
    max_iter = run_cfg.SOLVER.MAX_ITER
    mixing_until = max_iter * (cfg.TRAINING.EPOCHS - cfg.DATA.MIX_OFF_EPOCHS) // cfg.TRAINING.EPOCHS

    def before_step(iteration: int, network: nn.Module) -> None:
        model.set_drop_block(drop_block_rate(cfg, iteration, max_iter))
        if iteration >= mixing_until:
            network.mixing = None

    def batches(**which):
        for batch in build_classifier_batches(cfg, train, **which):
            unreadable.tell(batch.unreadable)
            yield batch

    task = Task(
        batches=batches,
        judge=judge,
        names_of=lambda batch: list(batch.file_names),
        learner=partial(image_classifier, cfg),
        before_step=before_step,
        accumulate=cfg.TRAINING.ACCUMULATE,
        what_fits=partial(what_fits, cfg.TRAINING.BATCH_SIZE),
    )
    facts = {"seed": seed, "trained_on": {"classes": list(train.classes), "input_format": "RGB"}, "config": whole_text(cfg)}
    settings = dict(leaves(cfg))
    return run_to_end(
        run_cfg,
        trained,
        task,
        checkpointer,
        facts,
        start,
        resume=resume,
        services=services,
        callbacks=callbacks,
        settings=settings,
    )


def what_fits(batch_size: int, iteration: int, error: OutOfMemory, fits: int) -> str:
    """The message for a step that had no room; see `Task`."""
    most = fits or max(2, error.images // 2)
    told = f"{fits} of the same images fit" if fits else "half of them may fit"
    return (
        f"TRAINING.BATCH_SIZE {batch_size} at iteration {iteration}: {error}; {told}: set TRAINING.BATCH_SIZE {most}, or to keep "
        f"the batch TRAINING.ACCUMULATE {-(-batch_size // most)}; MODEL.CHECKPOINTING True and TRAINING.AMP True need less, too"
    )


def load_weights_to_begin(cfg: CfgNode, model: nn.Module) -> None:
    """Load MODEL.WEIGHTS, if there are any; a head of another number of classes begins anew.

    Raises:
        UserError: they cannot be had or do not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        logger.info("MODEL.WEIGHTS is empty: the model starts from random parameters")
        if cfg.MODEL.FREEZE_AT:
            logger.warning("MODEL.FREEZE_AT %d keeps the first parts of the model as random as they are", cfg.MODEL.FREEZE_AT)
        return
    # The main process downloads; the others then find the file.
    if get_rank() != 0:
        synchronize()
    path = fetch_initial_weights(cfg.MODEL.WEIGHTS)
    if get_rank() == 0:
        synchronize()
    load_classifier(model, find_variant(cfg.MODEL.NAME), path, new_head=True)


def check_trained_on(checkpoint: Mapping, images: ClassImages, path: str) -> None:
    """That a checkpoint has learned the classes of `images`, in their order.

    Raises:
        UserError: it has learned others.
    """
    trained_on = checkpoint.get("trained_on")
    classes = trained_on.get("classes") if isinstance(trained_on, Mapping) else None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return
    check_same_classes(classes, f"checkpoint {path}", images.classes, images.name)
    if tuple(classes) != images.classes:
        raise UserError(f"checkpoint {path} has the classes of {images.name} in another order")


class Unreadable:
    """Images that could not be read: each is told of once, and counted."""

    def __init__(self):
        self.known: set[str] = set()

    def tell(self, errors: Sequence[str]) -> None:
        for error in errors:
            if error in self.known:
                continue
            self.known.add(error)
            if len(self.known) <= MOST_TOLD:
                # On every process: each reads images of its own.
                logger.error("left out: %s", error)
            if len(self.known) == MOST_TOLD:
                logger.error("%d images could not be read; further ones are only counted", MOST_TOLD)


class ClassifierJudge:
    """Evaluates a classifier on its validation images."""

    def __init__(self, cfg: CfgNode, images: ClassImages, unreadable: Unreadable):
        self.cfg, self.unreadable = cfg, unreadable
        folder = Path(cfg.OUTPUT_DIR, FIGURES)
        self.evaluator = ClassificationEvaluator(images.classes, folder)
        self.picture = folder / "confusion.png"
        self.sets = [EvaluationSet("val", build_evaluation_batches(cfg, images), [self.evaluator])]

    def run(self, model: nn.Module, *, last: bool, pictures: str = "") -> dict:
        """The figures of `ClassificationEvaluator`, on the main process, and the picture of what was confused."""
        network = image_classifier(self.cfg, model)
        autocast = torch.autocast(
            network.mean.device.type,
            torch.float16 if network.mean.device.type == "cuda" else torch.bfloat16,
            enabled=self.cfg.TRAINING.AMP,
        )
        with autocast:
            results = inference_on_dataset(network, self.sets[0].batches, [self.evaluator])
        for others in gather_objects(self.unreadable.known):
            self.unreadable.known |= others
        if not is_main_process():
            return {}
        figures = results[TASK]
        self.unreadable.tell(self.evaluator.unreadable)
        shown = [f"{name} {figures[name]:.2f} %" for name in ("top1", "top5", "top1_mean") if name in figures]
        of_class = {name.removeprefix("top1-"): value for name, value in figures.items() if name.startswith("top1-")}
        worst = sorted((value, name) for name, value in of_class.items() if value == value)[:3]
        logger.info(
            "Evaluation of %d images: %s, loss %.4f%s%s",
            figures["images"],
            ", ".join(shown),
            figures["loss"],
            f"; {len(self.unreadable.known)} could not be read so far" if self.unreadable.known else "",
            f"; least right: {', '.join(f'{name} {value:.1f} %' for value, name in worst)}" if worst else "",
        )
        try:
            plot_class_confusion(self.evaluator.confusion, self.evaluator.classes, self.picture)
        except UserError as error:
            logger.info("no picture of what was confused: %s", error)
        return results


def evaluate_classifier(cfg: CfgNode, val: ClassImages, *, last_checkpoint: bool = False) -> dict:
    """Evaluate MODEL.WEIGHTS, or the last checkpoint in OUTPUT_DIR; returns the figures (main process).

    Raises:
        UserError: there are no weights, they do not fit, or they are of other classes.
    """
    model = build_classifier(cfg, len(val.classes))
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR)
    if last_checkpoint and checkpointer.has_checkpoint():
        path = checkpointer.get_checkpoint_file()
        model.freeze(cfg.MODEL.FREEZE_AT)
        saved = checkpointer.load(path)
        load_averaged(model, saved, path)
        check_trained_on(saved, val, path)
    elif cfg.MODEL.WEIGHTS:
        path = resolve_weights(cfg.MODEL.WEIGHTS)
        load_classifier(model, find_variant(cfg.MODEL.NAME), path, new_head=False)
    else:
        raise UserError("--eval-only needs MODEL.WEIGHTS, or --resume with a checkpoint in OUTPUT_DIR")
    model = model.to(resolve_device(cfg.MODEL.DEVICE))
    return ClassifierJudge(cfg, val, Unreadable()).run(model, last=True)
