"""Evaluating a model on the data sets of a configuration, and comparing the figures with expected ones."""

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import nn

from resnest_det.backbone.folding import fold_norms
from resnest_det.data.catalog import get_dataset
from resnest_det.data.coco import Dataset
from resnest_det.distributed import is_main_process
from resnest_det.engine.build_data import build_test_loader, check_classes
from resnest_det.engine.build_model import build_test_time_augmentation
from resnest_det.engine.config import INSTANCE_ARCHITECTURES, SEMANTIC_ARCHITECTURES
from resnest_det.errors import UserError
from resnest_det.evaluation.coco import COCOEvaluator
from resnest_det.evaluation.loop import inference_on_dataset
from resnest_det.evaluation.panoptic import PanopticEvaluator
from resnest_det.evaluation.semantic import SemSegEvaluator
from resnest_det.evaluation.tables import copypaste_lines, format_results
from resnest_det.evaluation.visualize import ComparisonWriter
from resnest_det.evaluation.visualize_panoptic import PanopticComparisonWriter

logger = logging.getLogger(__name__)


class Evaluation:
    """What it takes to evaluate on every data set of DATASETS.TEST, read once.

    Made before training begins, so that a data set that is absent or broken is found then and not after days.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg
        self.evaluators = OrderedDict()
        self.augmented_evaluators = OrderedDict()
        for name in cfg.DATASETS.TEST:
            # The predictions of several data sets would overwrite each other in one folder.
            own_folder = (name,) if len(cfg.DATASETS.TEST) > 1 else ()
            dataset = get_dataset(name)
            check_classes([dataset], cfg)
            self.evaluators[name] = build_evaluators(cfg, dataset, os.path.join(cfg.OUTPUT_DIR, "inference", *own_folder))
            if cfg.TEST.AUG.ENABLED:
                self.augmented_evaluators[name] = instance_evaluators(
                    cfg, dataset, os.path.join(cfg.OUTPUT_DIR, "inference_TTA", *own_folder))

    def __call__(self, model: nn.Module) -> dict:
        """Predict, count and log the tables; task to figures, by data set if there are several. Empty off the main process."""
        return self._evaluate(ready_for_inference(model), self.evaluators)

    def final(self, model: nn.Module) -> dict:
        """Evaluate a model that is trained: as ever and, where TEST.AUG.ENABLED, with test-time augmentation too.

        The figures of the latter, of objects only, have names that end in "_TTA".
        """
        results = self(model)
        if self.augmented_evaluators:
            logger.info("Evaluating with test-time augmentation")
            augmented_model = build_test_time_augmentation(self.cfg, ready_for_inference(model))
            augmented = self._evaluate(augmented_model, self.augmented_evaluators)
            results.update((f"{name}_TTA", figures) for name, figures in augmented.items())
        return results

    def _evaluate(self, model: nn.Module, evaluators_of: Mapping[str, list]) -> dict:
        results = OrderedDict()
        for name, evaluators in evaluators_of.items():
            figures = inference_on_dataset(model, build_test_loader(self.cfg, name), evaluators)
            if is_main_process():
                results[name] = figures
                logger.info("Evaluation results for %s:\n%s", name, format_results(figures))
                for line in copypaste_lines(figures):
                    logger.info(line)
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def class_names(dataset: str) -> list[str]:
        """Names of a data set's classes."""
        return get_dataset(dataset).metadata.thing_classes


def ready_for_inference(model: nn.Module) -> nn.Module:
    """A copy of `model` that computes the same faster: norms folded into convolutions and, on a CPU, channels last."""
    folded = fold_norms(model)
    if next(model.parameters()).device.type == "cpu":
        folded = folded.to(memory_format=torch.channels_last)
    return folded


def build_evaluators(cfg: CfgNode, dataset: Dataset, folder: str) -> list:
    """What counts and draws what the model predicts: objects, labels of pixels, or both and the panoptic map made of them."""
    evaluators = instance_evaluators(cfg, dataset, folder) if cfg.MODEL.META_ARCHITECTURE in INSTANCE_ARCHITECTURES else []
    if cfg.MODEL.META_ARCHITECTURE in SEMANTIC_ARCHITECTURES:
        evaluators.append(SemSegEvaluator(dataset))
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED:
        evaluators.append(PanopticEvaluator(dataset, folder))
        evaluators.append(PanopticComparisonWriter(dataset, folder))
    return evaluators


def instance_evaluators(cfg: CfgNode, dataset: Dataset, folder: str) -> list:
    """What counts and draws objects."""
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    return [
        COCOEvaluator(dataset, tasks, folder, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE),
        ComparisonWriter(dataset, folder),
    ]


def flatten_results(results: Mapping, prefix: str = "") -> dict[str, float]:
    """{"bbox": {"AP": 1.0}} as {"bbox/AP": 1.0}."""
    flat = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update(flatten_results(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = float(value)
    return flat


def verify_results(expected: Sequence[Sequence], results: Mapping[str, Mapping[str, float]]) -> None:
    """Compare results with TEST.EXPECTED_RESULTS.

    Args:
        expected: lists of task, metric, value and the difference from it that is allowed.
        results: task to figures.

    Raises:
        UserError: a figure is missing, not finite or too far away.
    """
    wrong = []
    for task, metric, value, tolerance in expected:
        actual = results.get(task, {}).get(metric, math.nan)
        if not abs(actual - value) <= tolerance:
            wrong.append(f"{task} {metric} is {actual:.4f}, expected {value} within {tolerance}")
    if wrong:
        raise UserError(f"results are not those of TEST.EXPECTED_RESULTS: {'; '.join(wrong)}")
    if expected:
        logger.info("results are those of TEST.EXPECTED_RESULTS")
