"""Detections of the built-in detector and of its translation in MMDetection, side by side."""

from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner.checkpoint import load_checkpoint

from resnest_det.configuration.data import build_test_loader
from resnest_det.configuration.model import build_model
from resnest_det.configuration.weights import load_initial_weights
from resnest_det.data.catalog import get_dataset
from resnest_det.evaluation.panoptic import PanopticEvaluator
from resnest_det.inference.prepared import prepare_for_inference

register_all_modules()


def work_in(folder: Path, config: Config) -> None:
    """Set where a run writes.

    MMEngine keeps what writes a run's figures by name, for the whole process: that of an earlier test would write elsewhere.
    """
    config.work_dir = config.visualizer.name = str(folder)


def own_results(cfg, images: int | None = None) -> list[dict]:
    """What the built-in detector gives for the first images of DATASETS.TEST, each with `sample` and `image` (C, H, W)."""
    model = build_model(cfg).eval()
    load_initial_weights(cfg, model, whole=True)
    model = prepare_for_inference(model, "fp32")
    results = []
    with torch.no_grad():
        for batch in build_test_loader(cfg, get_dataset(cfg.DATASETS.TEST[0])):
            results.append(model(batch)[0] | {"sample": batch[0]})
            if len(results) == images:
                break
    return results


def their_results(config_file: Path, checkpoint: Path, own: list[dict]) -> list[dict]:
    """What the translation gives for the images of `own`; of a panoptic model `panoptic_seg` too, in this package's form."""
    config = Config.fromfile(config_file)
    model = MODELS.build(config.model).eval()
    load_checkpoint(model, str(checkpoint), map_location="cpu", strict=True)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    index_of = {dataset.get_data_info(index)["img_id"]: index for index in range(len(dataset))}
    results = []
    with torch.no_grad():
        for image_id in (result["sample"]["image_id"] for result in own):
            data = dataset[index_of[image_id]]
            result = {"sample": {"image": data["inputs"], "image_id": data["data_samples"].img_id}}
            batch = model.data_preprocessor({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}, False)
            if config.model.type == "PanopticFPN":
                # The segmentor keeps only the map.
                features = model.extract_feat(batch["inputs"])
                proposals = model.rpn_head.predict(features, batch["data_samples"], rescale=False)
                found = model.roi_head.predict(features, proposals, batch["data_samples"], rescale=True)[0]
                predicted = model.predict(batch["inputs"], batch["data_samples"])[0].pred_panoptic_seg.sem_seg[0]
                result["panoptic_seg"] = segments(predicted, model.num_things_classes, model.num_classes)
            else:
                found = model.predict(batch["inputs"], batch["data_samples"])[0].pred_instances
            result |= {"boxes": found.bboxes, "scores": found.scores, "classes": found.labels}
            if "masks" in found:
                result["masks"] = found.masks
            results.append(result)
    return results


def segments(predicted: torch.Tensor, num_things: int, num_classes: int) -> tuple[torch.Tensor, list[dict]]:
    """MMDetection's map of class + 1000 * instance as a map of segment ids and a list of what these are."""
    ids, listed = torch.zeros_like(predicted, dtype=torch.int32), []
    for value in predicted.unique().tolist():
        label = value % 1000
        if label == num_classes:
            continue
        thing = label < num_things
        listed.append({"id": len(listed) + 1, "isthing": thing, "category_id": label if thing else label - num_things + 1})
        ids[predicted == value] = len(listed)
    return ids, listed


def matched(expected: list[dict], actual: list[dict], least_score: float = 0.3) -> tuple[int, int]:
    """How many boxes of `expected` above the score there are, and how many of them `actual` has: one of the same class with
    corners within 1 pixel and a score within 0.01 and, where there are masks, a mask of IoU above 0.95."""
    count = found = 0
    for own, their in zip(expected, actual, strict=True):
        for i in (own["scores"] > least_score).nonzero().flatten().tolist():
            near = ((own["boxes"][i] - their["boxes"]).abs().amax(dim=1) <= 1) & (own["classes"][i] == their["classes"])
            near &= (own["scores"][i] - their["scores"]).abs() <= 0.01
            if "masks" in own and near.any():
                mask, others = own["masks"][i], their["masks"][near]
                union = (mask | others).flatten(1).sum(1).clamp(min=1)
                near = ((mask & others).flatten(1).sum(1) / union > 0.95) | ~others.flatten(1).any(1) & ~mask.any()
            count, found = count + 1, found + bool(near.any())
    return count, found


def same_pixels(expected: list[dict], actual: list[dict], rgb: bool) -> float:
    """The largest difference of the images that the two models see."""
    differences = []
    for own, their in zip(expected, actual, strict=True):
        image = their["sample"]["image"].flip(0) if rgb else their["sample"]["image"]
        differences.append(np.abs(own["sample"]["image"].int().numpy() - image.int().numpy()).max())
    return float(max(differences))


def panoptic_figures(results: list[dict], dataset_name: str) -> dict[str, float]:
    """PQ and its like."""
    evaluator = PanopticEvaluator(get_dataset(dataset_name, keep_truth=True))
    for result in results:
        evaluator.process([result["sample"]], [result])
    return evaluator.evaluate()["panoptic_seg"]
