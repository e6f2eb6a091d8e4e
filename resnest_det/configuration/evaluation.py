"""The evaluators and picture writers of a configured model, and where they write."""

import os
from collections.abc import Iterable

from fvcore.common.config import CfgNode

from resnest_det.configuration.data import build_test_loader
from resnest_det.configuration.tables import tasks_of
from resnest_det.data.coco import Dataset
from resnest_det.data.panoptic import PanopticMetadata
from resnest_det.drawing.writers import ObjectWriter, PanopticWriter, Pictures, SemanticWriter
from resnest_det.errors import UserError
from resnest_det.evaluation.coco import COCOEvaluator
from resnest_det.evaluation.label_files import LabelWriter
from resnest_det.evaluation.loop import EvaluationSet, Evaluator, PictureWriter
from resnest_det.evaluation.panoptic import PanopticEvaluator
from resnest_det.evaluation.semantic import SemSegEvaluator


def build_evaluation_sets(cfg: CfgNode, datasets: Iterable[Dataset], *, augmented: bool = False) -> list[EvaluationSet]:
    """One set for each dataset, for `resnest_det.inference.evaluating.evaluate`.

    Files go to OUTPUT_DIR/inference; several datasets of DATASETS.TEST get a folder each inside it.

    Args:
        augmented: for a model with test-time augmentation, which only finds objects, if it does; files go to
            OUTPUT_DIR/inference_TTA.

    Raises:
        UserError: a dataset has nothing to evaluate against.
    """
    sets = []
    for dataset in datasets:
        # In one folder, the predictions of several datasets would overwrite each other.
        own_folder = (dataset.name,) if len(cfg.DATASETS.TEST) > 1 else ()
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA" if augmented else "inference", *own_folder)
        evaluators, writers = _of_objects(cfg, dataset, folder)
        if not (augmented and evaluators):
            for added, to in zip(_of_pixels(cfg, dataset, folder), (evaluators, writers)):
                to += added
        sets.append(EvaluationSet(dataset.name, build_test_loader(cfg, dataset), evaluators, writers))
    return sets


def _of_objects(cfg: CfgNode, dataset: Dataset, folder: str) -> tuple[list[Evaluator], list[PictureWriter]]:
    tasks = tasks_of(cfg).of_objects
    if not tasks:
        return [], []
    return (
        [COCOEvaluator(dataset, tasks, folder, max_detections=cfg.TEST.AP_MAX_DETECTIONS)],
        [ObjectWriter(dataset, folder, _pictures(cfg))],
    )


def _of_pixels(cfg: CfgNode, dataset: Dataset, folder: str) -> tuple[list[Evaluator], list[PictureWriter]]:
    tasks = tasks_of(cfg)
    if not tasks.pixels:
        return [], []
    labels = [LabelWriter(dataset, folder)] if cfg.TEST.WRITE_LABELS else []
    if not tasks.panoptic:
        return [SemSegEvaluator(dataset)], [SemanticWriter(dataset, folder, _pictures(cfg)), *labels]
    if not isinstance(dataset.metadata, PanopticMetadata):
        raise UserError(
            f"dataset {dataset.name} has no panoptic truth to evaluate by; set MODEL.PANOPTIC_FPN.COMBINE.ENABLED False, or "
            f"register a panoptic dataset by --register-panoptic"
        )
    evaluators = [SemSegEvaluator(dataset), PanopticEvaluator(dataset, folder)]
    return evaluators, [PanopticWriter(dataset, folder, _pictures(cfg)), *labels]


def _pictures(cfg: CfgNode) -> Pictures:
    keys = cfg.TEST.PICTURES
    return Pictures(keys.COUNT, keys.SCORE_THRESH, keys.WORST)
