"""Pictures of some images of an evaluation: predictions beside the truth."""

import heapq
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from resnest_det.data.coco import Dataset
from resnest_det.data.image import read_record_image
from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.panoptic import read_record_segments, read_semantic_labels, with_truth
from resnest_det.data.records import Record
from resnest_det.distributed import all_gather_objects
from resnest_det.drawing.comparison import best_first, draw_comparison, first, match_image, truth_of_record
from resnest_det.drawing.objects import class_colors
from resnest_det.drawing.panoptic import draw_labels, draw_panoptic
from resnest_det.drawing.sheets import save_picture, side_by_side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """Which images of an evaluation are drawn, and what of them.

    Attributes:
        count: how many images.
        score_threshold: detections below it are not drawn.
        worst: those with the most errors, worst first; otherwise images spread evenly over the dataset, the same every time.
    """

    count: int = 4
    score_threshold: float = 0.5
    worst: bool = False


class ComparisonWriter(ABC):
    """Takes part in an evaluation and draws some of its images.

    Files are `<image file><suffix>.png`; of the worst images `01_<image file><suffix>.png` and so on.

    Args:
        records: the images to choose from.
        output_dir: where pictures go, or into a folder of it that `begin` names.
    """

    what: str
    suffix = ""

    def __init__(self, records: Sequence[Record], output_dir: str, pictures: Pictures = Pictures()):
        self.pictures = pictures
        self.output_dir = output_dir
        chosen = records if pictures.worst else spread_records(records, pictures.count)
        self.records = {record["image_id"]: record for record in chosen}
        self.begin()

    def begin(self, subfolder: str = "") -> None:
        """Begin an evaluation whose pictures go to that folder inside the output folder."""
        self.folder = os.path.join(self.output_dir, subfolder)
        self.worst: list[tuple[float, int, Image.Image]] = []  # a heap with the least bad of the worst images on top

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Draw those images of the batch that are chosen, or are among the worst so far."""
        for sample, output in zip(batch, outputs, strict=True):
            record = self.records.get(sample["image_id"])
            if record is None:
                continue
            if not self.pictures.worst:
                self._save(self._picture(record, output), record)
            elif errors := self.errors(record, output):
                # Of equally bad images the first is taken.
                rank = (errors, -sample["image_id"])
                if len(self.worst) < self.pictures.count:
                    heapq.heappush(self.worst, (*rank, self._picture(record, output)))
                elif self.worst and rank > self.worst[0][:2]:
                    heapq.heapreplace(self.worst, (*rank, self._picture(record, output)))

    def report(self) -> None:
        """Write what is not written yet, and log where the pictures are."""
        if self.pictures.worst:
            own = [each[:2] for each in self.worst]
            ranks = sorted((rank for part in all_gather_objects(own) for rank in part), reverse=True)[: self.pictures.count]
            for errors, image, picture in self.worst:
                if (errors, image) in ranks:
                    self._save(picture, self.records[-image], f"{ranks.index((errors, image)) + 1:02d}_")
            logger.info("%s beside the truth: the %d images with the most errors in %s", self.what, len(ranks), self.folder)
        else:
            logger.info("%s beside the truth: %d pictures in %s", self.what, len(self.records), self.folder)

    def _picture(self, record: Record, output: dict) -> Image.Image:
        return self.draw(record, Image.fromarray(read_record_image(record, "RGB")), output)

    def _save(self, picture: Image.Image, record: Record, prefix: str = "") -> None:
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        save_picture(picture, os.path.join(self.folder, f"{prefix}{stem}{self.suffix}.png"))

    @abstractmethod
    def draw(self, record: Record, image: Image.Image, output: dict) -> Image.Image:
        """The truth of an image (RGB) and a model's output side by side."""

    @abstractmethod
    def errors(self, record: Record, output: dict) -> float:
        """How bad an output is: 0 is faultless."""


def spread_records(records: Sequence[Record], count: int) -> list[Record]:
    """Up to `count` evenly spread records."""
    step = max(1, len(records) / max(1, count))
    return [records[int(i * step)] for i in range(min(count, len(records)))]


class ObjectWriter(ComparisonWriter):
    """Pictures of objects; their errors are objects missed and detections false, at the threshold.

    Args:
        dataset: `records`, of which those with objects are drawn, and `metadata` with the names of the classes.
    """

    what = "predictions"

    def __init__(self, dataset: Dataset, output_dir: str, pictures: Pictures = Pictures()):
        self.class_names = dataset.metadata.thing_classes
        self.colors = thing_colors(dataset)
        # In an image without objects a detector can still find some that are not there.
        records = [record for record in dataset.records if pictures.worst or record.get("annotations")]
        super().__init__(records, output_dir, pictures)

    def draw(self, record: Record, image: Image.Image, output: dict) -> Image.Image:
        truth = truth_of_record(with_objects(record))
        return draw_comparison(image, truth, output, self.class_names, self.pictures.score_threshold, self.colors)

    def errors(self, record: Record, output: dict) -> float:
        found = best_first({key: value for key, value in output.items() if key != "masks"})
        sure = first(found, int((found["scores"] >= self.pictures.score_threshold).sum()))
        record = with_objects(record)
        without_masks = [{key: value for key, value in each.items() if key != "segmentation"} for each in record["annotations"]]
        truth = truth_of_record(record | {"annotations": without_masks})
        return match_image(truth, sure, (record["width"], record["height"])).errors


def thing_colors(dataset: Dataset) -> list[tuple[int, int, int]]:
    """The color of each class of objects: the dataset's own, or those of `class_colors`."""
    return getattr(dataset.metadata, "thing_colors", None) or class_colors(len(dataset.metadata.thing_classes))


def with_objects(record: Record) -> Record:
    """The record with its objects, where a panoptic PNG has them."""
    return with_truth(record)[0] if record.get("objects_in_png") else record


class PanopticWriter(ComparisonWriter):
    """Pictures of panoptic maps; their errors are pixels of another class than in the truth.

    Args:
        dataset: panoptic; `records` and `metadata` with names and colors of things and stuff.
    """

    what, suffix = "panoptic maps", "_panoptic"

    def __init__(self, dataset: Dataset, output_dir: str, pictures: Pictures = Pictures()):
        metadata = dataset.metadata
        self.classes = {
            True: list(zip(metadata.thing_classes, metadata.thing_colors)),
            False: list(zip(metadata.stuff_classes, metadata.stuff_colors)),
        }
        super().__init__(dataset.records, output_dir, pictures)

    def draw(self, record: Record, image: Image.Image, output: dict) -> Image.Image:
        predicted, segments = output["panoptic_seg"]
        truth = draw_panoptic(image, read_record_segments(record), self._named(record["segments_info"]))
        prediction = draw_panoptic(image, predicted.cpu().numpy(), self._named(segments))
        captions = f"truth, segments: {len(record['segments_info'])}", f"predicted, segments: {len(segments)}"
        return side_by_side(list(zip(captions, (truth, prediction))))

    def errors(self, record: Record, output: dict) -> float:
        predicted, segments = output["panoptic_seg"]
        truth = _classes_of_pixels(read_record_segments(record), record["segments_info"])
        return _share_of_errors(truth, _classes_of_pixels(predicted.cpu().numpy(), segments), truth != 0)

    def _named(self, segments: list[dict]) -> list[dict]:
        named = []
        for segment in segments:
            label, color = self.classes[bool(segment["isthing"])][segment["category_id"]]
            if "score" in segment:
                label += f" {100 * segment['score']:.0f}%"
            named.append({"id": segment["id"], "label": label, "color": color})
        return named


def _classes_of_pixels(ids: np.ndarray, segments: list[dict]) -> np.ndarray:
    """0 for void; positive for the classes of things, negative for those of stuff."""
    classes = np.zeros(ids.shape, dtype=np.int32)
    for segment in segments:
        number = segment["category_id"] + 1
        classes[ids == segment["id"]] = number if segment["isthing"] else -number
    return classes


def _share_of_errors(truth: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> float:
    return float((truth != predicted)[labelled].mean()) if labelled.any() else 0.0


class SemanticWriter(ComparisonWriter):
    """Pictures of the classes of pixels; their errors are pixels of another class than in the truth.

    Args:
        dataset: `records` whose pixels have labels, and `metadata` with names and colors of their classes.
    """

    what, suffix = "classes of pixels", "_semantic"

    def __init__(self, dataset: Dataset, output_dir: str, pictures: Pictures = Pictures()):
        self.classes = list(zip(dataset.metadata.stuff_classes, dataset.metadata.stuff_colors))
        super().__init__(dataset.records, output_dir, pictures)

    def draw(self, record: Record, image: Image.Image, output: dict) -> Image.Image:
        panels = ("truth", read_semantic_labels(record)), ("predicted", _most_probable(output))
        return side_by_side([(caption, draw_labels(image, labels, self.classes)) for caption, labels in panels])

    def errors(self, record: Record, output: dict) -> float:
        truth = read_semantic_labels(record)
        return _share_of_errors(truth, _most_probable(output), truth != UNLABELLED)


def _most_probable(output: dict) -> np.ndarray:
    return output["sem_seg"].argmax(dim=0).cpu().numpy()
