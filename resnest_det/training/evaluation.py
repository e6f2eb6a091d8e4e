"""The evaluation of a run, during its training and at its end."""

from collections.abc import Sequence
from functools import partial

from fvcore.common.config import CfgNode
from torch import nn

from resnest_det.configuration.evaluation import build_evaluation_sets
from resnest_det.configuration.model import build_test_time_augmentation
from resnest_det.data.coco import Dataset
from resnest_det.inference.evaluating import evaluate, evaluate_augmented
from resnest_det.inference.exported import ExportedDetector
from resnest_det.inference.prepared import prepare_for_inference


class Evaluation:
    """The evaluation of a configuration, built before training begins so that its errors show at once."""

    def __init__(self, cfg: CfgNode, datasets: Sequence[Dataset]):
        self.sets = build_evaluation_sets(cfg, datasets)
        self.augmented_sets = build_evaluation_sets(cfg, datasets, augmented=True) if cfg.TEST.AUG.ENABLED else []
        self.augment = partial(build_test_time_augmentation, cfg)
        self.prepares = cfg.TEST.FOLD_NORMS
        self.precision, self.compile = cfg.TEST.PRECISION, cfg.TEST.COMPILE

    def run(self, model: nn.Module | ExportedDetector, *, last: bool, pictures: str = "") -> dict:
        """Evaluate `model`, and the `last` time also with test-time augmentation; see `evaluate`."""
        prepares = self.prepares and isinstance(model, nn.Module)
        ready = prepare_for_inference(model, self.precision, self.compile) if prepares else model
        results = evaluate(ready, self.sets, pictures)
        if last and self.augmented_sets:
            if prepares:  # calls parts of the model by themselves, with images of all sizes
                model = prepare_for_inference(model, "fp32")
            results |= evaluate_augmented(model, self.augment, self.augmented_sets)
        return results
