"""What `resnest-det benchmark` measures around the networks: training samples, annotation files, average precision."""

import contextlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from fvcore.common.config import CfgNode
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnest_det.commands.benchmark_measuring import Task
from resnest_det.configuration.data import build_training_mapper
from resnest_det.data.coco import load_coco_instances
from resnest_det.evaluation.average_precision import FIGURES, figures_of_tasks

OURS = "resnest_det"
_HEIGHT, _WIDTH, _CATEGORIES, _OBJECTS = 480, 640, 80, 7
_TASKS = ("bbox", "segm")
_FRESH_SECONDS = 60  # a file as young as some seconds may still be being written, and is not taken from a cache


def generated_truth(images: int) -> dict:
    """COCO annotations of `_OBJECTS` ellipses an image, as polygons of 17 points."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 17, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    annotations = []
    for image_id in range(1, images + 1):
        radii = np.exp(rng.uniform(np.log(6), np.log(120), (_OBJECTS, 2)))
        centers = rng.uniform(radii, np.array([_WIDTH, _HEIGHT]) - radii)
        for center, radius, category in zip(centers, radii, rng.integers(1, _CATEGORIES + 1, _OBJECTS).tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [*(center - radius).round(2).tolist(), *(2 * radius).round(2).tolist()],
                    "area": float(np.pi * radius.prod()),
                    "iscrowd": 0,
                    "segmentation": [(center + radius * circle).round(2).ravel().tolist()],
                }
            )
    return {
        "images": [{"id": i, "height": _HEIGHT, "width": _WIDTH, "file_name": f"{i:012d}.jpg"} for i in range(1, images + 1)],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, _CATEGORIES + 1)],
        "annotations": annotations,
    }


def generated_detections(truth: dict, count: int) -> list[dict]:
    """COCO results near the objects of `truth`, `count` an image."""
    rng, found = np.random.default_rng(1), []
    by_image: dict[int, list[dict]] = {}
    for each in truth["annotations"]:
        by_image.setdefault(each["image_id"], []).append(each)
    for image_id, objects in by_image.items():
        for each in rng.choice(objects, count):
            points = np.reshape(each["segmentation"][0], (-1, 2)) + rng.normal(0, 3, 2)
            encoded = mask_util.frPyObjects([points.ravel().tolist()], _HEIGHT, _WIDTH)[0]
            found.append(
                {
                    "image_id": image_id,
                    "category_id": each["category_id"],
                    "bbox": [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()],
                    "score": float(rng.random().__round__(3)),
                    "segmentation": {"size": [_HEIGHT, _WIDTH], "counts": encoded["counts"].decode()},
                }
            )
    return found


def of_data(cfg: CfgNode, folder: Path, images: int) -> Task:
    """Training samples from JPEG files of COCO's size, in one process."""
    path = folder / f"{images}.json"
    truth = generated_truth(images)
    path.write_text(json.dumps(truth))
    rng = np.random.default_rng(0)
    for image in truth["images"]:
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        coarse.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC).save(folder / image["file_name"], quality=90)
    records = list(load_coco_instances("benchmark_data", str(path), str(folder)).records)
    ours = build_training_mapper(cfg)
    runs: dict[str, Callable[[], Any]] = {OURS: lambda: [ours(each, np.random.default_rng(0))["image"].shape for each in records]}
    skipped = []
    try:
        from detectron2.data import DatasetMapper
        from detectron2.structures import BoxMode
    except ImportError:
        skipped.append("Detectron2 is not installed: skipped")
    else:
        theirs = DatasetMapper(_detectron2_config(cfg), is_train=True)
        dicts = [
            {key: record[key] for key in ("file_name", "height", "width", "image_id")}
            | {"annotations": [{"bbox_mode": BoxMode.XYWH_ABS, **_as_theirs(each)} for each in record["annotations"]]}
            for record in records
        ]
        runs["detectron2"] = lambda: [tuple(theirs(each)["image"].shape) for each in dicts]
    # Sizes are drawn at random: only the number of samples can be compared.
    return Task(
        f"training samples, {images} images",
        runs,
        OURS,
        lambda found, expected: abs(len(found) - len(expected)),
        0,
        skipped,
        images,
    )


def _as_theirs(annotation: Any) -> dict:
    return {key: annotation[key] for key in ("bbox", "category_id", "iscrowd", "segmentation")}


def _detectron2_config(cfg: CfgNode):
    from detectron2.config import get_cfg

    theirs = get_cfg()
    for section in ("INPUT", "MODEL"):
        for key in theirs[section]:
            if not isinstance(theirs[section][key], dict) and key in cfg[section]:
                theirs[section][key] = cfg[section][key]
    return theirs


def of_reading(folder: Path, images: int) -> Task:
    """An annotation file, read the first time and again."""
    path, cache = folder / f"read_{images}.json", folder / "cache"
    path.write_text(json.dumps(generated_truth(images)))
    past = time.time() - _FRESH_SECONDS
    os.utime(path, (past, past))

    def ours(again: bool) -> int:
        before = os.environ.get("RESNEST_DET_CACHE")
        os.environ["RESNEST_DET_CACHE"] = str(cache)
        try:
            if not again:
                for each in cache.glob("**/*"):
                    if each.is_file():
                        each.unlink()
            return len(load_coco_instances("benchmark_read", str(path), str(folder), keep_truth=True).records)
        finally:
            if before is None:
                del os.environ["RESNEST_DET_CACHE"]
            else:
                os.environ["RESNEST_DET_CACHE"] = before

    def theirs() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return len(COCO(str(path)).imgs)

    runs = {"pycocotools": theirs, f"{OURS}, first": lambda: ours(False), f"{OURS}, again": lambda: ours(True)}
    megabytes = path.stat().st_size / 1e6
    title = f"reading annotations, {images} images, {megabytes:.0f} MB"
    return Task(title, runs, "pycocotools", lambda found, expected: abs(found - expected), items=images)


def by_this_package(truth: dict, found: list[dict]) -> list[float]:
    """The twelve figures of boxes and the twelve of masks, of the truth as a dict and of COCO results."""
    figures = figures_of_tasks(truth, found, _TASKS)
    return [figures[task][name] for task in _TASKS for name in FIGURES]


def by_pycocotools(truth: dict, found: list[dict]) -> list[float]:
    """The same by pycocotools."""
    stats = []
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = truth
        index.createIndex()
        for task in _TASKS:
            # With a box in the results, pycocotools takes the area of it for masks as well.
            results = found if task == "bbox" else [{k: v for k, v in each.items() if k != "bbox"} for each in found]
            counting = COCOeval(index, index.loadRes(results), task)
            counting.evaluate()
            counting.accumulate()
            counting.summarize()
            stats += [100 * value for value in counting.stats.tolist()]
    return stats


def of_evaluation(images: int, detections: int) -> Task:
    """The twelve figures of boxes and of masks."""
    truth = generated_truth(images)
    found = generated_detections(truth, detections)

    def far(values: list[float], expected: list[float]) -> float:
        return float(np.max(np.abs(np.subtract(values, expected)), initial=0, where=~np.isnan(values)))

    title = f"AP of boxes and masks, {images} images, {detections} detections in each"
    runs = {"pycocotools": lambda: by_pycocotools(truth, found), OURS: lambda: by_this_package(truth, found)}
    return Task(title, runs, "pycocotools", far, items=images)
