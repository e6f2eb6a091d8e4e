"""This package's samples as the models of transformers take them, and what these find as this package's evaluators take it."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from resnest_det.data.coco import Dataset
from resnest_det.data.instance_records import with_objects_only
from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.mapper import training_sample
from resnest_det.data.records import Record, Sample
from resnest_det.data.transforms import Augmentation, RandomFlip
from resnest_det.errors import UserError
from resnest_det.integrations.host_evaluation import evaluate_host

# task: (the targets that `training_sample` is asked for, what is evaluated)
TASKS = {
    "detection": (dict(mask_format=None), ("bbox",)),
    "instance": (dict(mask_format="bitmask"), ("bbox", "segm")),
    "panoptic": (dict(mask_format="bitmask", semantic=True), ("panoptic_seg",)),
    "semantic": (dict(mask_format=None, semantic=True), ("sem_seg",)),
}
MOST_DETECTIONS = 100  # of an image, as many as COCO counts


def label_names(dataset: Dataset, task: str) -> list[str]:
    """The labels of a model, in order: objects, or the classes of pixels; of panoptic ones things first, and then stuff.

    Raises:
        UserError: the dataset has no such truth.
    """
    metadata = dataset.metadata
    stuff = getattr(metadata, "stuff_classes", [])
    if task in ("detection", "instance") and metadata.thing_classes:
        return list(metadata.thing_classes)
    if task == "semantic" and stuff:
        return list(stuff)
    if task == "panoptic" and hasattr(metadata, "panoptic_root"):
        return [*metadata.thing_classes, *stuff[1:]]  # the first of stuff is all things together
    raise UserError(f"dataset {dataset.name} has no truth for the task {task}")


class TrainingSamples(torch.utils.data.Dataset):
    """A dataset's images, each mirrored half of the time, with targets; images without an object only where pixels are learned.

    Args:
        task: of `TASKS`.
    """

    def __init__(self, dataset: Dataset, task: str):
        pixels = task in ("panoptic", "semantic")
        self.records: Sequence[Record] = dataset.records if pixels else with_objects_only(dataset.records)
        if not len(self.records):
            raise UserError(f"dataset {dataset.name}: none of its {len(dataset.records)} images has an object to learn from")
        augmentation = Augmentation((RandomFlip("horizontal"),))
        self.make_sample = partial(training_sample, augmentation=augmentation, image_format="RGB", **TASKS[task][0])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        # torch's generator is what the Trainer seeds, in its workers too.
        return self.make_sample(self.records[index], np.random.default_rng(int(torch.randint(2**62, ()))))


def collate(samples: Sequence[Sample], *, processor: Callable, task: str, universal: bool, things: int = 0) -> dict:
    """A batch as a model takes it.

    Args:
        processor: the model's.
        universal: the model learns masks with labels (Mask2Former), rather than boxes or a map of classes.
        things: number of the labels that are things, before those of stuff.
    """
    images = [sample["image"] for sample in samples]
    if universal:
        maps, labels = zip(*(segments_of(sample["target"], task, things) for sample in samples))
        batch = processor(
            images, segmentation_maps=list(maps), instance_id_to_semantic_id=list(labels), ignore_index=0, return_tensors="pt"
        )
    elif task == "semantic":
        batch = processor(images, segmentation_maps=[sample["target"]["sem_seg"] for sample in samples], return_tensors="pt")
        batch["labels"] = batch["labels"].long()
    else:
        batch = processor(images, annotations=[_coco_annotations(sample) for sample in samples], return_tensors="pt")
    return dict(batch)


def segments_of(target: dict, task: str, things: int) -> tuple[Tensor, dict[int, int]]:
    """A map (H, W) int32 of segment ids, 0 where there is none, and the label of each id.

    Args:
        target: of a training sample.
        task, things: see `collate`.
    """
    semantic = target.get("sem_seg")
    masks = target.get("masks", []) if task != "semantic" else []
    ids = torch.zeros(semantic.shape if semantic is not None else masks.shape[1:], dtype=torch.int32)
    labels = {}
    if semantic is not None:
        # Class 0 of a panoptic dataset is all things together.
        first, offset = (1, things - 1) if task == "panoptic" else (0, 0)
        for number in semantic.unique().tolist():
            if number >= first and number != UNLABELLED:
                ids[semantic == number] = number + 1
                labels[number + 1] = number + offset
    for index, mask in enumerate(masks):
        ids[mask] = UNLABELLED + 2 + index  # above those of stuff
        labels[UNLABELLED + 2 + index] = int(target["labels"][index])
    return ids, {number: labels[number] for number in ids.unique().tolist() if number}


def _coco_annotations(sample: Sample) -> dict:
    boxes = sample["target"]["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(boxes.tolist(), sample["target"]["labels"].tolist())
    entries = [{"bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0} for box, label in columns]
    return {"image_id": sample["image_id"], "annotations": entries}


def evaluate_transformers(model: nn.Module, processor: Callable, dataset: Dataset, task: str, *, num_workers: int = 0) -> dict:
    """Figures of a model on a dataset that was read with its truth kept: of boxes, masks, panoptic maps or classes of pixels.

    Args:
        task: of `TASKS`.

    Raises:
        UserError: the model's labels are not the dataset's.
    """
    names = label_names(dataset, task)
    if model.config.num_labels != len(names):
        raise UserError(f"the model has {model.config.num_labels} labels, dataset {dataset.name} has {len(names)} for {task}")
    predictor = _Predictor(model, processor, task, len(dataset.metadata.thing_classes))
    return evaluate_host(predictor, dataset, TASKS[task][1], num_workers=num_workers)


class _Predictor(nn.Module):
    """`model` with its processor as the loop of evaluation calls it."""

    def __init__(self, model: nn.Module, processor: Callable, task: str, things: int):
        super().__init__()
        self.model, self.processor = model, processor
        self.results = {"detection": self._boxes, "instance": self._masks, "panoptic": self._panoptic, "semantic": self._classes}[
            task
        ]
        self.things = things

    def forward(self, batch: Sequence[Sample]) -> list[dict]:
        inputs = self.processor([sample["image"] for sample in batch], return_tensors="pt").to(self.model.device)
        sizes = [(sample["height"], sample["width"]) for sample in batch]
        return self.results(self.model(**inputs), sizes)

    def _boxes(self, outputs, sizes: list[tuple[int, int]]) -> list[dict]:
        results = []
        for found in self.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=torch.tensor(sizes)):
            best = found["scores"].topk(min(MOST_DETECTIONS, len(found["scores"]))).indices
            results.append({"boxes": found["boxes"][best], "scores": found["scores"][best], "classes": found["labels"][best]})
        return results

    def _masks(self, outputs, sizes: list[tuple[int, int]]) -> list[dict]:
        results = []
        for found, size in zip(
            self.processor.post_process_instance_segmentation(
                outputs, threshold=0.0, target_sizes=sizes, return_binary_maps=True
            ),
            sizes,
        ):
            segments = found["segments_info"]
            masks = found["segmentation"].bool() if segments else torch.zeros(0, *size, dtype=torch.bool)
            boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])  # they end behind their last pixel
            scores = torch.tensor([segment["score"] for segment in segments])
            best = scores.argsort(descending=True)[:MOST_DETECTIONS]
            classes = torch.tensor([segment["label_id"] for segment in segments], dtype=torch.int64)
            results.append({"boxes": boxes[best], "scores": scores[best], "classes": classes[best], "masks": masks[best]})
        return results

    def _panoptic(self, outputs, sizes: list[tuple[int, int]]) -> list[dict]:
        stuff = set(range(self.things, self.model.config.num_labels))
        results = []
        for found in self.processor.post_process_panoptic_segmentation(outputs, target_sizes=sizes, label_ids_to_fuse=stuff):
            segments = []
            for segment in found["segments_info"]:
                thing = segment["label_id"] < self.things
                category = segment["label_id"] if thing else segment["label_id"] - self.things + 1
                segments.append({"id": segment["id"], "isthing": thing, "category_id": category, "score": segment["score"]})
            results.append({"panoptic_seg": (found["segmentation"].clamp(min=0).int(), segments)})
        return results

    def _classes(self, outputs, sizes: list[tuple[int, int]]) -> list[dict]:
        maps = self.processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
        return [{"sem_seg": F.one_hot(each.long(), self.model.config.num_labels).permute(2, 0, 1)} for each in maps]
