"""A trained detector, put to use from Python.

>>> from resnest_det import Predictor
>>> predictor = Predictor("output/mine")  # a run's folder, a checkpoint, a configuration, or the name of a recipe
>>> result = predictor("photo.jpg")
>>> result.draw().show()
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnest_det.data.mapper import sample_of_pixels
from resnest_det.data.records import Sample
from resnest_det.detector.postprocess import CompactMasks
from resnest_det.errors import UserError
from resnest_det.inference.backend import Backend, open_backend
from resnest_det.inference.classes import Classes, indices_of
from resnest_det.inference.images import Picture, Source, read_picture
from resnest_det.inference.results import Result

_MOST_AT_ONCE = 8  # images of a list that are in memory together, unless the caller says otherwise


class Predictor:
    """Finds objects in images, or labels their pixels, as `--eval-only` does.

    Args:
        config_or_checkpoint: a checkpoint that training here wrote, which is enough alone; a run's folder, of which the best
            checkpoint is taken, else the newest; a configuration; the name of a recipe, whose published detector is taken; a
            checkpoint's address (https://, hf://); a file that `resnest-det export` wrote (.onnx, .xml, .pt, .pt2).
        weights: a checkpoint in the place of that, for instance one of another program, which does not say its configuration.
        device: "auto", "cpu", "cuda" or "cuda:N".
        score_threshold: objects with a lower score are left out. What the model leaves out itself (its configuration's
            SCORE_THRESH_TEST, 0.05) does not come back with a lower one.
        classes: names or ids in digits of the classes of objects to look for; None is all.

    Raises:
        UserError: something cannot be found, read or used; the message names it.
    """

    def __init__(
        self,
        config_or_checkpoint: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        device: str = "auto",
        score_threshold: float = 0.5,
        classes: Sequence[str] | None = None,
    ):
        if not 0 <= score_threshold <= 1:
            raise UserError(f"score_threshold is {score_threshold}, expected a number from 0 to 1")
        self.backend: Backend = open_backend(config_or_checkpoint, weights, device)
        self.score_threshold = score_threshold
        self.wanted = None if classes is None else torch.tensor(indices_of(classes, self.classes), dtype=torch.int64)

    @property
    def classes(self) -> Classes:
        """What the classes are called, with their ids and colors."""
        return self.backend.classes

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backend.device

    @overload
    def __call__(self, images: Source, batch: int | None = None) -> Result: ...

    @overload
    def __call__(self, images: Iterable[Source], batch: int | None = None) -> list[Result]: ...

    def __call__(self, images, batch=None):
        """What is found in an image, or in each of several.

        Args:
            images: paths, addresses, bytes of image files, arrays (H, W, 3) uint8 in RGB, PIL images or tensors (C, H, W),
                uint8 or float from 0 to 1; one, or any iterable of them. A tensor or an array with one more axis is a batch.
            batch: how many go through the network together, padded to one size; None is 8 at most. An image alone has
                the very numbers of `--eval-only`; beside others, its last digits depend on how far it is padded.

        Raises:
            UserError: one cannot be read; the message names it.
        """
        if isinstance(images, (str, bytes, os.PathLike, Image.Image)) or (
            isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim <= 3
        ):
            return self.predict_pictures([self.read(images)])[0]
        return list(self.stream(images, batch or _MOST_AT_ONCE))

    def stream(self, images: Iterable[Source], batch: int = 1) -> Iterator[Result]:
        """`__call__` for images without end: a result as soon as it is there, and nothing is kept.

        Raises:
            UserError: see `__call__`.
        """
        if batch < 1:
            raise UserError(f"batch is {batch}, expected at least 1")
        pictures = (self.read(image, f"image {number}") for number, image in enumerate(images))
        while chunk := list(islice(pictures, batch)):
            yield from self.predict_pictures(chunk)

    def read(self, image: Source, name: str = "image 0") -> Picture:
        """Read an image of any kind for `predict_pictures`; may be called from several threads.

        Raises:
            UserError: see `resnest_det.inference.images.read_picture`.
        """
        return read_picture(image, self.backend.image_format, name)

    def sample(self, picture: Picture) -> Sample:
        """An image as the model takes it, resized; may be called from several threads."""
        height, width = picture.pixels.shape[:2]
        record = {"height": height, "width": width, "image_id": 0, "file_name": picture.name}
        return sample_of_pixels(record, picture.pixels, short_side=self.backend.short_side, max_side=self.backend.max_side)

    def predict_pictures(self, pictures: Sequence[Picture], samples: Sequence[Sample] | None = None) -> list[Result]:
        """What is found in images that were read, all together in one batch.

        Args:
            samples: of `sample` for each, if they were made already.
        """
        samples = samples or [self.sample(picture) for picture in pictures]
        with torch.inference_mode():
            outputs = self.backend.detect(samples)
        return [self.result(picture, output) for picture, output in zip(pictures, outputs, strict=True)]

    def result(self, picture: Picture, output: dict) -> Result:
        """What the model says of an image, without what was not asked for."""
        height, width = picture.pixels.shape[:2]
        empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "classes": torch.zeros(0, dtype=torch.int64)}
        found = empty | {key: value for key, value in output.items() if key in (*empty, "masks", "keypoints")}
        label_map, (segment_map, segments) = output.get("labels"), output.get("panoptic_seg", (None, []))
        if "sem_seg" in output:
            label_map = output["sem_seg"].argmax(dim=0)
        result = Result(
            picture.name,
            height,
            width,
            self.classes,
            found["boxes"].cpu(),
            found["scores"].cpu(),
            found["classes"].cpu(),
            masks=_in_main_memory(found.get("masks")),
            keypoints=_in_main_memory(found.get("keypoints")),
            segment_map=_in_main_memory(segment_map),
            segments=[] if segment_map is None else _named(segments, segment_map, self.classes),
            label_map=_in_main_memory(label_map),
            rgb=picture.rgb,
        )
        keep = result.scores >= self.score_threshold
        if self.wanted is not None:
            keep &= torch.isin(result.class_ids, self.wanted)
        return result.chosen(keep)


def _in_main_memory(value: Tensor | CompactMasks | None) -> Tensor | CompactMasks | None:
    return None if value is None else value.cpu()


def _named(segments: Sequence[dict], segment_map: Tensor, classes: Classes) -> list[dict]:
    """The segments of `resnest_det.detector.panoptic.fuse` with the data's ids and names, and areas of all."""
    areas = torch.bincount(segment_map.flatten().long(), minlength=len(segments) + 1).tolist()
    named = []
    for segment in segments:
        index, kind = segment["category_id"], classes.things if segment["isthing"] else classes.stuff
        entry = {
            "id": segment["id"],
            "category_id": kind.ids[index],
            "class_id": index,
            "isthing": segment["isthing"],
            "name": kind.names[index],
            "area": areas[segment["id"]],
        }
        named.append(entry | ({"score": segment["score"]} if "score" in segment else {}))
    return named
