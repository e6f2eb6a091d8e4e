"""The evaluation of a run, during its training and at its end."""

from collections.abc import Sequence
from functools import partial

from fvcore.common.config import CfgNode
from torch import nn

from resnest_det.configuration.evaluation import build_evaluation_sets
from resnest_det.configuration.model import build_test_time_augmentation
from resnest_det.data.coco import Dataset
from resnest_det.inference.evaluating import evaluate, evaluate_augmented, ready_for_inference
from resnest_det.inference.exported import ExportedDetector


class Evaluation:
    """The evaluation of a configuration, built before training begins so that its errors show at once."""

    def __init__(self, cfg: CfgNode, datasets: Sequence[Dataset]):
        self.sets = build_evaluation_sets(cfg, datasets)
        self.augmented_sets = build_evaluation_sets(cfg, datasets, augmented=True) if cfg.TEST.AUG.ENABLED else []
        self.augment = partial(build_test_time_augmentation, cfg)
        self.fold_norms = cfg.TEST.FOLD_NORMS

    def run(self, model: nn.Module | ExportedDetector, *, last: bool, pictures: str = "") -> dict:
        """Evaluate `model`, and the `last` time also with test-time augmentation; see `evaluate`."""
        if self.fold_norms and isinstance(model, nn.Module):
            model = ready_for_inference(model)
        results = evaluate(model, self.sets, pictures)
        if last and self.augmented_sets:
            results |= evaluate_augmented(model, self.augment, self.augmented_sets)
        return results
