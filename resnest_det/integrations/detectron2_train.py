"""Training and evaluating with Detectron2's own trainer and evaluators: `train_net --engine detectron2`."""

import copy
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.engine import DefaultTrainer, default_setup, hooks
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, PanopticFPN
from detectron2.projects import deeplab
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnest_det.configuration.classes import CLASS_COUNTS as OWN_CLASS_COUNTS
from resnest_det.configuration.defaults import DEFAULTS, default_config
from resnest_det.configuration.model import check_batch_norm
from resnest_det.configuration.nodes import leaves, with_values
from resnest_det.configuration.reading import find_config_file, load_config_text, merge_file
from resnest_det.configuration.solver import build_optimizer, in_iterations
from resnest_det.configuration.standalone import datasets_of, whole_configuration
from resnest_det.configuration.tables import ARCHITECTURES, BACKBONES, Architecture
from resnest_det.configuration.weights import load_initial_weights
from resnest_det.engine.checkpoint import newest_checkpoint
from resnest_det.engine.precise_bn import update_batch_norm_statistics
from resnest_det.errors import UserError, shown
from resnest_det.evaluation.panoptic import PanopticEvaluator
from resnest_det.inference.evaluating import verify_results
from resnest_det.inference.prepared import prepare_for_inference
from resnest_det.integrations.detectron2 import add_resnest_config
from resnest_det.integrations.detectron2_data import have_run_length_masks, kept_in_checkpoints, register_datasets
from resnest_det.stopping import allowed, deferred, raise_if_requested, stop_requested, stop_too
from resnest_det.training.process import RunOptions
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.class_layers import other_counts

logger = logging.getLogger(__name__)

# See `resnest_det.configuration.classes.CLASS_COUNTS`.
CLASS_COUNTS = OWN_CLASS_COUNTS | {"MODEL.RETINANET.NUM_CLASSES": "thing_classes"}


def load_config(config_file: str, overrides: list[str]) -> CfgNode:
    """Detectron2's configuration with the keys of ResNeSt, then a YAML file, then `KEY VALUE` overrides; frozen.

    MODEL.DEVICE is "auto" unless set. MODEL.WEIGHTS_ALLOW_MISMATCH, TEST.AP_MAX_DETECTIONS, keys in epochs and the datasets and
    classes of DATASETS exist as in the built-in detector, and so do TEST.FOLD_NORMS, PRECISION and COMPILE. TEST.PICTURES has no
    effect: Detectron2 draws none.

    Raises:
        UserError: see `resnest_det.configuration.reading.merge_file`; or a key is set that only the built-in detector reads.
    """
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.MODEL.DEVICE = "auto"
    merge_file(cfg, config_file, overrides)
    _check_own_keys(cfg)
    cfg.freeze()
    return cfg


# Keys that make an optimizer other than Detectron2's own, and what they are for that one.
_OPTIMIZERS = {"OPTIMIZER": "SGD", "HEAD_LR_FACTOR": 1.0, "RPN_LR_FACTOR": 1.0}
# Keys of this project that mean the same here, or nothing.
_OWN_KEYS_READ = (
    "MODEL.RESNETS.",
    "MODEL.WEIGHTS_ALLOW_MISMATCH",
    *(f"MODEL.SEM_SEG_HEAD.{key}" for key in ("LOSS_TYPE", "PROJECT_", "ASPP_", "USE_DEPTHWISE_SEPARABLE_CONV")),
    *(f"SOLVER.{key}" for key in _OPTIMIZERS),
    "SOLVER.POLY_LR_",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
    "TEST.AP_MAX_DETECTIONS",
    "TEST.FOLD_NORMS",
    "TEST.PRECISION",
    "TEST.COMPILE",
    "TEST.REPORT",
    "TEST.PICTURES.",
    # Of test-time augmentation that is refused below where it is enabled.
    *(f"TEST.AUG.{key}" for key in ("SCALES", "LONG_SIDE", "WINDOW", "COMBINE")),
    "DATASETS.",
    "SOLVER.MAX_EPOCHS",
    "SOLVER.STEPS_EPOCHS",
    "SOLVER.WARMUP_EPOCHS",
    "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_EPOCHS",
    "VIS_EPOCHS",
)


def _check_own_keys(cfg: CfgNode) -> None:
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        raise UserError(
            "TEST.AUG.ENABLED True is not supported: Detectron2 has no test-time augmentation of a SemanticSegmentor; supported: "
            "False, or --engine builtin"
        )
    detectron2s, values = dict(leaves(get_cfg())), dict(leaves(cfg))
    for key, default in leaves(DEFAULTS):
        if key not in detectron2s and not key.startswith(_OWN_KEYS_READ) and values[key] != default:
            raise UserError(
                f"{key} {shown(values[key])} is not supported: Detectron2's trainer does not read this key; "
                f"supported: {default!r}, its default, or --engine builtin"
            )


def run(cfg: CfgNode, options: RunOptions) -> dict:
    """Train, or only evaluate, on the processes that have been started.

    Returns:
        on the main process, the results of the evaluation: task to figures.

    Raises:
        UserError: bad input of any kind.
    """
    if comm.get_world_size() > 1:
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="resnest_det", abbrev_name="resnest_det")
    config_file, overrides = str(find_config_file(options.config_file)), list(options.overrides)
    # Detectron2's tools pass their parsed command line here.
    default_setup(
        cfg, SimpleNamespace(config_file=config_file, opts=overrides, eval_only=options.eval_only, resume=options.resume)
    )
    logger.info("Detectron2 on %s; config %s; overrides %s", cfg.MODEL.DEVICE, config_file, " ".join(overrides) or "none")
    cfg = register_datasets(cfg, list(datasets_of(cfg)), only_test=options.eval_only, counted=options.counted)
    if options.eval_only:
        return _evaluate(cfg, options.resume)
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon" and have_run_length_masks(cfg.DATASETS.TRAIN):
        logger.info(
            "INPUT.MASK_FORMAT is set to 'bitmask': DATASETS.TRAIN has run-length masks, which Detectron2 cannot read as polygons"
        )
        cfg = with_values(cfg, {"INPUT.MASK_FORMAT": "bitmask"})
    images = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    return _train(in_iterations(cfg, len(images)), options.resume)


def _evaluate(cfg: CfgNode, last_checkpoint: bool) -> dict:
    with _as_user_error():
        model = Trainer.build_model(cfg)
    weights = (newest_checkpoint(cfg.OUTPUT_DIR) if last_checkpoint else "") or cfg.MODEL.WEIGHTS
    if not weights:
        raise UserError("--eval-only needs MODEL.WEIGHTS, or --resume with a checkpoint in OUTPUT_DIR")
    _load(cfg, model, weights, whole=True)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg.TEST.EXPECTED_RESULTS, results)
    return results


def _train(cfg: CfgNode, resume: bool) -> dict:
    with _as_user_error():
        trainer = Trainer(cfg)
    check_batch_norm(trainer.model, trainer.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
    if resume and trainer.checkpointer.has_checkpoint():
        path = newest_checkpoint(cfg.OUTPUT_DIR)
        checkpoint = read_checkpoint(path)
        if "trainer" not in checkpoint:
            raise UserError(
                f"checkpoint {path} was not made by Detectron2's trainer, which cannot resume from it; use --engine "
                "builtin if the built-in detector made it, or pass it as MODEL.WEIGHTS without --resume"
            )
        states = checkpoint.get("model", {}), trainer.model.state_dict()
        if counts := other_counts(*({name: value.shape for name, value in state.items()} for state in states)):
            raise UserError(f"checkpoint {path} is of another model: {counts}")
        trainer.resume_or_load(resume=True)
    else:
        # Not its "stuff_classes", for which Detectron2 has names of its own.
        names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
        _load(cfg, trainer.model, cfg.MODEL.WEIGHTS, classes={"thing_classes": list(names)})
    trainer.checkpointer.save = partial(trainer.checkpointer.save, **_facts(cfg))
    trainer.train()
    return getattr(trainer, "_last_eval_results", {})  # absent if nothing was left to train


def _facts(cfg: CfgNode) -> dict:
    """What makes a checkpoint stand alone, as one of the built-in detector does: what its classes are called, and `config`.

    The latter is left out where only Detectron2 can build the model.
    """
    trained_on = kept_in_checkpoints(cfg, cfg.DATASETS.TRAIN[0])
    defaults = get_cfg()
    add_resnest_config(defaults)
    own, detectron2s, values = default_config(), dict(leaves(defaults)), dict(leaves(cfg))
    # Of counts that came from the data those that this model has no layers for.
    architecture = ARCHITECTURES.get(cfg.MODEL.META_ARCHITECTURE)
    unread = {
        key for key in CLASS_COUNTS if key not in OWN_CLASS_COUNTS or (architecture and key.startswith(architecture.not_read))
    }
    shared = {key: values[key] for key, _ in leaves(own) if key in values and key not in unread}
    others = [key for key in values if key not in (shared.keys() | unread) and key.startswith(_OF_THE_MODEL)]
    if any(values[key] != detectron2s[key] for key in others):
        return {"trained_on": trained_on}
    try:
        text = whole_configuration(with_values(own, shared), trained_on)
        load_config_text(text, "configuration")
    except UserError as error:
        logger.info("Only Detectron2 can build this model: %s", error)
        return {"trained_on": trained_on}
    return {"trained_on": trained_on, "config": text}


# Beginnings of the keys by which a model's results change.
_OF_THE_MODEL = ("MODEL.", "INPUT.", "TEST.")


def _load(cfg: CfgNode, model: nn.Module, weights: str, **how: Any) -> None:
    """`load_initial_weights` where the backbone is of a kind that it knows."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    if cfg.MODEL.BACKBONE.NAME in (*BACKBONES, "build_retinanet_resnest_fpn_backbone", "build_retinanet_resnet_fpn_backbone"):
        load_initial_weights(with_values(cfg, {"MODEL.WEIGHTS": weights}), model, **how)
    else:  # Detectron2's other backbones
        DetectionCheckpointer(model).load(weights)


@contextmanager
def _as_user_error() -> Iterator[None]:
    """Turn Detectron2's errors in building a model into one line."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(f"Detectron2 cannot build this configuration: {error}") from error


class PreciseBN(hooks.PreciseBN):
    """Detectron2's hook with statistics that are exact with several processes too; see `update_batch_norm_statistics`."""

    def __init__(self, hook: hooks.PreciseBN):
        super().__init__(hook._period, hook._model, hook._data_loader, hook._num_iter)

    def update_stats(self) -> None:
        """Give every batch norm its statistics; called by the trainer."""
        self._data_iter = self._data_iter or iter(self._data_loader)
        logger.info("Running precise batch norm over %d batches", self._num_iter)
        with EventStorage():  # keeps what the heads count here out of the training's log
            update_batch_norm_statistics(self._model, self._data_iter, self._num_iter)


class Trainer(DefaultTrainer):
    """Detectron2's trainer with the evaluators of its own tool, and test-time augmentation at the end where TEST.AUG.ENABLED.

    Precise batch norm is this package's, and so is what a signal does: it takes effect after a step or within an evaluation.
    """

    def train(self) -> dict | None:
        """Do all steps and what is due between them.

        Raises:
            KeyboardInterrupt: a signal came; there is a checkpoint of the last iteration.
        """
        try:
            with deferred():
                return super().train()
        except KeyboardInterrupt:
            # Else the step may be half done, or it was the last, of which there is model_final.
            if stop_requested() and self.iter + 1 < self.max_iter and comm.is_main_process():
                if (self.iter + 1) % self.cfg.SOLVER.CHECKPOINT_PERIOD:
                    self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
                logger.info("Stopped after iteration %d, of which there is a checkpoint: --resume goes on from there", self.iter)
            raise

    def after_step(self) -> None:
        """What follows a step; stops there if a signal has come to any of the processes."""
        super().after_step()
        if any(comm.all_gather(stop_requested())):
            stop_too()
            raise_if_requested()

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, *args: Any, **kwargs: Any) -> dict:
        """Detectron2's evaluation of a copy of the model, see TEST.FOLD_NORMS; it need not be waited for."""
        model = model.module if isinstance(model, DistributedDataParallel) else model
        # A configuration of Detectron2 alone does not have these keys.
        if cfg.TEST.get("FOLD_NORMS", False):
            augmented = isinstance(model, GeneralizedRCNNWithTTA)  # calls parts of its model by themselves
            precision = "fp32" if augmented else cfg.TEST.PRECISION
            model = prepare_for_inference(model, precision, cfg.TEST.COMPILE and not augmented)
        with allowed():
            return super().test(cfg, model, *args, **kwargs)

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Hooks that run between the steps and after them."""
        all_hooks = [PreciseBN(hook) if isinstance(hook, hooks.PreciseBN) else hook for hook in super().build_hooks()]
        if self.cfg.TEST.AUG.ENABLED:
            # Before the writer, the main process's last hook, so that the figures reach metrics.json.
            position = len(all_hooks) - int(comm.is_main_process())
            all_hooks.insert(position, hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model)))
        return all_hooks

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's, or what keys ask for that a configuration of Detectron2 alone does not have."""
        if all(cfg.SOLVER.get(key, default) == default for key, default in _OPTIMIZERS.items()):
            return super().build_optimizer(cfg, model)
        return maybe_add_gradient_clipping(cfg, build_optimizer(cfg, model))

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        """Detectron2's schedules, and WarmupPolyLR of its project DeepLab."""
        return deeplab.build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Detectron2's; a semantic model's windows are cut out of resized images, as its project DeepLab does."""
        crop, sizes = cfg.INPUT.CROP, cfg.INPUT
        if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor" or not crop.ENABLED:
            return super().build_train_loader(cfg)
        window = T.RandomCrop_CategoryAreaConstraint(
            crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        )
        resize = T.ResizeShortestEdge(sizes.MIN_SIZE_TRAIN, sizes.MAX_SIZE_TRAIN, sizes.MIN_SIZE_TRAIN_SAMPLING)
        augmentations = [resize, window]
        if sizes.RANDOM_FLIP != "none":
            flip = dict(horizontal=sizes.RANDOM_FLIP == "horizontal", vertical=sizes.RANDOM_FLIP == "vertical")
            augmentations.append(T.RandomFlip(**flip))
        return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True, augmentations=augmentations))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None, only_objects: bool = False):
        """The evaluators for a dataset, by the `evaluator_type` of its metadata.

        Args:
            output_folder: OUTPUT_DIR/inference by default; several datasets get a folder each inside it.
            only_objects: evaluate only boxes and masks.
        """
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:  # or their predictions would overwrite each other
            folder = os.path.join(folder, dataset_name)
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        others = {
            "cityscapes_instance": CityscapesInstanceEvaluator,
            "cityscapes_sem_seg": CityscapesSemSegEvaluator,
            "pascal_voc": PascalVOCDetectionEvaluator,
        }
        if kind in others:
            return others[kind](dataset_name)
        if kind == "lvis":
            return LVISEvaluator(dataset_name, output_dir=folder)
        evaluators = []
        architecture = cfg.MODEL.META_ARCHITECTURE
        # Detectron2's other architectures all find objects.
        row = ARCHITECTURES.get(architecture, Architecture(objects=True, pixels=False))
        if kind in ("coco", "coco_sem_seg", "coco_panoptic_seg") and row.objects:
            # A configuration of Detectron2 alone does not have the key.
            limit = cfg.TEST.get("AP_MAX_DETECTIONS", 100)
            evaluators.append(COCOEvaluator(dataset_name, output_dir=folder, max_dets_per_image=None if limit == 100 else limit))
        if kind in ("sem_seg", "coco_sem_seg", "coco_panoptic_seg") and row.pixels and not only_objects:
            evaluators.append(SemSegEvaluator(dataset_name, distributed=True, output_dir=folder))
        fuses = row.objects and row.pixels and cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED
        if kind == "coco_panoptic_seg" and fuses and not only_objects:
            evaluators.append(_panoptic_evaluator(dataset_name, folder))
        if not evaluators:
            raise UserError(f"dataset {dataset_name} of type {kind} has nothing to evaluate a {architecture} on")
        return DatasetEvaluators(evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Boxes and masks with test-time augmentation; the tasks' names end in "_TTA"."""
        logger.info("Evaluating with test-time augmentation")
        model = model.module if isinstance(model, DistributedDataParallel) else model
        if isinstance(model, PanopticFPN):
            # Detectron2 augments only a GeneralizedRCNN; a Panoptic FPN has all its parts.
            model = GeneralizedRCNN(
                backbone=model.backbone,
                proposal_generator=model.proposal_generator,
                roi_heads=model.roi_heads,
                pixel_mean=model.pixel_mean.flatten().tolist(),
                pixel_std=model.pixel_std.flatten().tolist(),
                input_format=model.input_format,
            ).to(model.device)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder, only_objects=True) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{task}_TTA": figures for task, figures in results.items()}


def _panoptic_evaluator(dataset_name: str, folder: str):
    if importlib.util.find_spec("panopticapi"):
        return COCOPanopticEvaluator(dataset_name, folder)
    logger.info("panopticapi, which Detectron2 uses for panoptic quality, is not installed: this package computes it instead")
    metadata = copy.copy(MetadataCatalog.get(dataset_name).as_dict())
    stuff = metadata["stuff_dataset_id_to_contiguous_id"]
    metadata["stuff_dataset_id_to_contiguous_id"] = {key: value for key, value in stuff.items() if value != 0}
    return PanopticEvaluator(
        SimpleNamespace(name=dataset_name, metadata=SimpleNamespace(**metadata), panoptic_truth=None), folder
    )
