"""What was found in one image, and the forms in which other programs take it."""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnest_det.data.panoptic_png import encode_segment_ids
from resnest_det.detector.postprocess import CompactMasks
from resnest_det.drawing.objects import draw_objects
from resnest_det.drawing.panoptic import draw_panoptic
from resnest_det.errors import UserError
from resnest_det.evaluation.coco import detections_to_coco
from resnest_det.files import one_of_many
from resnest_det.inference.classes import Classes

PICTURES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in one image, in its own pixels, on the CPU; objects come best first.

    Attributes:
        file_name: the path or the address; "image N" of one that has none.
        height, width: of the image.
        classes: what the classes are called.
        boxes: (N, 4) float32, XYXY.
        scores: (N,) float32.
        class_ids: (N,) int64, 0 and on in the order of the model's classes.
        masks: of a model with masks a sequence of N (height, width) bool, each made when it is asked for; `pred_masks` is all.
        keypoints: (N, K, 3), of a model that finds them.
        segment_map: of a panoptic model (height, width) int32, the id of each pixel's segment, 0 where there is none.
        segments: the table of the map: {"id", "category_id", "class_id", "isthing", "name", "area"}, and the "score" of things.
        label_map: of a model that labels pixels (height, width) int64, the class of each.
        tracker_ids: (N,) int64 of a video's objects, -1 for none yet; None where they are not followed.

    `result["instances"]` has the names that Detectron2's results have: `pred_boxes.tensor`, `scores`, `pred_classes`,
    `pred_masks`. So `supervision.Detections.from_detectron2(result)` takes it.
    """

    file_name: str
    height: int
    width: int
    classes: Classes
    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    masks: CompactMasks | Tensor | None = None
    keypoints: Tensor | None = None
    segment_map: Tensor | None = None
    segments: list[dict] = field(default_factory=list)
    label_map: Tensor | None = None
    tracker_ids: Tensor | None = None
    rgb: Callable[[], np.ndarray] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, key: str):
        if key == "instances" and self.classes.things.names:
            found = SimpleNamespace(
                pred_boxes=SimpleNamespace(tensor=self.boxes), scores=self.scores, pred_classes=self.class_ids
            )
            if self.masks is not None:
                found.pred_masks = self.pred_masks
            return found
        if key == "panoptic_seg" and self.segment_map is not None:
            return self.segment_map, self.segments
        raise KeyError(key)

    @cached_property
    def names(self) -> list[str]:
        """The name of each object's class."""
        return [self.classes.things.names[index] for index in self.class_ids.tolist()]

    @cached_property
    def category_ids(self) -> Tensor:
        """(N,) int64, of each object as in the data that the model learned from."""
        return torch.tensor([self.classes.things.ids[index] for index in self.class_ids.tolist()], dtype=torch.int64)

    @property
    def pred_masks(self) -> Tensor | None:
        """(N, height, width) bool: all masks as pixels. Three hundred of them on a photograph are gigabytes."""
        return self.masks.pixels() if isinstance(self.masks, CompactMasks) else self.masks

    def chosen(self, indices: Tensor) -> "Result":
        """The same with some of its objects, by their indices or by a bool for each."""
        masks = self.masks
        if masks is not None:
            masks = masks.chosen(indices) if isinstance(masks, CompactMasks) else masks[indices]
        return replace(
            self,
            boxes=self.boxes[indices],
            scores=self.scores[indices],
            class_ids=self.class_ids[indices],
            masks=masks,
            keypoints=None if self.keypoints is None else self.keypoints[indices],
            tracker_ids=None if self.tracker_ids is None else self.tracker_ids[indices],
        )

    def to_coco(self, image_id: int | str | None = None) -> list[dict]:
        """The objects in COCO's result format, which `json` takes: {"image_id", "category_id", "bbox", "score"}, of a model with
        masks also "segmentation" as compressed run lengths.

        Args:
            image_id: None takes the file's name without its suffix, as a number if it is one, as those of COCO's images are.
        """
        if image_id is None:
            stem = os.path.splitext(os.path.basename(self.file_name))[0]
            image_id = int(stem) if stem.isascii() and stem.isdecimal() and len(stem) < 19 else stem
        output = {"boxes": self.boxes, "scores": self.scores, "classes": self.class_ids, "masks": self.masks}
        entries = detections_to_coco(output, image_id, dict(enumerate(self.classes.things.ids)), self.masks is not None)
        if self.tracker_ids is not None:
            for entry, tracker_id in zip(entries, self.tracker_ids.tolist()):
                entry["tracker_id"] = tracker_id
        return entries

    def to_supervision(self):
        """A `supervision.Detections`, with the masks as pixels; `class_name` and `category_id` are in its `data`.

        Raises:
            UserError: supervision is not installed.
        """
        return _optional("supervision", "draw").Detections(
            xyxy=self.boxes.numpy().reshape(-1, 4),
            confidence=self.scores.numpy(),
            class_id=self.class_ids.numpy(),
            mask=None if self.masks is None else self.pred_masks.numpy(),
            tracker_id=None if self.tracker_ids is None else self.tracker_ids.numpy(),
            data={"class_name": np.array(self.names, dtype=np.str_), "category_id": self.category_ids.numpy()},
        )

    def to_torchvision(self) -> dict[str, Tensor]:
        """What torchvision's detectors give: `boxes`, `labels` (from 1: there 0 is the background), `scores`, and `masks`
        (N, 1, height, width), which are bool here."""
        found = {"boxes": self.boxes, "labels": self.class_ids + 1, "scores": self.scores}
        return found if self.masks is None else found | {"masks": self.pred_masks[:, None]}

    def to_pandas(self):
        """A `pandas.DataFrame` with a row for each object: file_name, x0, y0, x1, y1, score, class_id, category_id and name.

        Raises:
            UserError: pandas is not installed.
        """
        columns = {"file_name": [self.file_name] * len(self)}
        columns |= dict(zip(("x0", "y0", "x1", "y1"), self.boxes.T.numpy()))
        columns |= {"score": self.scores.numpy(), "class_id": self.class_ids.numpy(), "category_id": self.category_ids.numpy()}
        columns["name"] = self.names
        if self.tracker_ids is not None:
            columns["tracker_id"] = self.tracker_ids.numpy()
        return _optional("pandas", "pandas").DataFrame(columns)

    def to_json(self, image_id: int | str | None = None) -> dict:
        """Everything that JSON takes: file_name, height, width, `detections` of `to_coco` with their names, and `segments`."""
        detections = [entry | {"name": name} for entry, name in zip(self.to_coco(image_id), self.names)]
        found = {"file_name": self.file_name, "height": self.height, "width": self.width, "detections": detections}
        return found | ({"segments": self.segments} if self.segment_map is not None else {})

    def draw(self, image: np.ndarray | None = None) -> Image.Image:
        """The image with what was found on it: segments of a panoptic model, classes of pixels of a semantic one, else objects.

        Args:
            image: (height, width, 3) uint8 RGB; None takes the image itself.

        Raises:
            UserError: its file cannot be read any more.
        """
        if image is None:
            image = self.rgb()
        if self.segment_map is not None:
            segments = [{"id": each["id"], "label": each["name"], "color": self._color(each)} for each in self.segments]
            return _over(image, self.segment_map.numpy(), segments)
        if self.label_map is not None and not self.classes.things.names:
            labels, kind = self.label_map.numpy(), self.classes.stuff
            present = np.unique(labels).tolist()
            segments = [{"id": i + 1, "label": kind.names[i], "color": kind.colors[i]} for i in present]
            return _over(image, labels + 1, segments)
        labels = None
        if self.tracker_ids is not None:
            labels = [f"#{i} {name}" if i >= 0 else name for i, name in zip(self.tracker_ids.tolist(), self.names)]
            labels = [f"{label} {100 * score:.0f}%" for label, score in zip(labels, self.scores.tolist())]
        things = self.classes.things
        return Image.fromarray(
            draw_objects(
                image,
                self.boxes,
                self.class_ids,
                things.names,
                scores=self.scores,
                masks=self.masks,
                colors=things.colors,
                labels=labels,
            )
        )

    def _color(self, segment: dict) -> tuple[int, int, int]:
        kind = self.classes.things if segment["isthing"] else self.classes.stuff
        return kind.colors[segment["class_id"]]

    def save(self, path: str | os.PathLike) -> None:
        """Write a picture of `draw` (.jpg, .png, .webp) or the JSON of `to_json` (.json), whole or not at all.

        Raises:
            UserError: the suffix is none of these, or the file cannot be written.
        """
        path = os.fspath(path)
        suffix = os.path.splitext(path)[1].lower()
        if suffix == ".json":
            with one_of_many(path) as file:
                file.write(json.dumps(self.to_json()).encode())
        elif suffix in PICTURES:
            write_picture(path, self.draw())
        else:
            raise UserError(f"{path}: results are saved as {', '.join(PICTURES)} or .json")

    def panoptic_png(self) -> bytes:
        """The segment map as a PNG in COCO's panoptic format: the id is R + 256 G + 256² B."""
        return encode_segment_ids(self.segment_map.numpy(), self.file_name)


def write_picture(path: str, picture: Image.Image) -> None:
    """Write a picture in the format of its suffix, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with one_of_many(path) as file:
        picture.save(file, format=PICTURES[os.path.splitext(path)[1].lower()], quality=92)


def _over(image: np.ndarray, ids: np.ndarray, segments: list[dict]) -> Image.Image:
    picture = draw_panoptic(Image.fromarray(image), ids, segments)
    size = (image.shape[1], image.shape[0])
    return picture if picture.size == size else picture.resize(size)


def _optional(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f'{module} is not installed: pip install "resnest_det[{extra}]"') from None
