"""Images that come one by one from several threads, through the network together."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from resnest_det.data.records import Sample
from resnest_det.inference.images import Picture
from resnest_det.inference.predictor import Predictor
from resnest_det.inference.results import Result

# What padding to one size may add to the pixels of a batch. A portrait beside a landscape would add a half.
_MOST_PADDING = 0.15


@dataclass(frozen=True)
class _Waiting:
    picture: Picture
    sample: Sample
    future: Future


class Batcher:
    """One thread that runs the model on whatever waits.

    Args:
        predictor: nobody else runs it meanwhile.
        most: images that go through the network together.
        window: seconds that an image waits for others to come while the model has nothing to do.

    Attributes:
        batches, images: how many were run. seconds: in the model.
    """

    def __init__(self, predictor: Predictor, most: int = 8, window: float = 0.005):
        self.predictor, self.most, self.window = predictor, most, window
        self.batches = self.images = 0
        self.seconds = 0.0
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Images that wait."""
        return len(self._waiting)

    @property
    def works(self) -> bool:
        """Whether somebody would answer."""
        return self._thread.is_alive() and not self._closed

    def prepared(self, content: bytes, name: str) -> tuple[Picture, Sample]:
        """Read an image for `submit`; may be called from several threads.

        Raises:
            UserError: it is damaged or not an image.
        """
        picture = self.predictor.read(content, name)
        sample = self.predictor.sample(picture)
        # A photograph's pixels are 36 MB and more, and the model takes the resized ones: only how many there were is needed.
        shape = picture.pixels.shape
        return replace(picture, pixels=np.broadcast_to(np.uint8(0), shape), rgb=None), sample

    def submit(self, picture: Picture, sample: Sample) -> "Future[Result]":
        """What will be found in an image; cancelled before it is its turn, it is not looked at."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            self._waiting.append(_Waiting(picture, sample, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Look at all that waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            batch = [each for each in batch if each.future.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

    def _next(self) -> list[_Waiting] | None:
        """The image that has waited longest, and others of much the same size; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            end = time.monotonic() + self.window
            while len(self._waiting) < self.most and not self._closed and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            chosen = _of_one_size([each.sample for each in self._waiting], self.most)
            batch = [self._waiting[index] for index in chosen]
            self._waiting = deque(each for index, each in enumerate(self._waiting) if index not in set(chosen))
            return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        start = time.perf_counter()
        try:
            results = self.predictor.predict_pictures([each.picture for each in batch], [each.sample for each in batch])
        except Exception as error:
            # One image alone may be the cause, or that so many together take more memory than there is.
            if len(batch) > 1:
                for each in batch:
                    self._answer([each])
            else:
                batch[0].future.set_exception(error)
            return
        self.seconds += time.perf_counter() - start
        self.batches += 1
        self.images += len(batch)
        for each, result in zip(batch, results, strict=True):
            each.future.set_result(result)


def _of_one_size(samples: Sequence[Sample], most: int) -> list[int]:
    """Indices of the first sample and of those after it, at most `most`, with which padding adds no more than `_MOST_PADDING`."""
    chosen, (height, width), pixels = [0], samples[0]["image"].shape[-2:], samples[0]["image"][0].numel()
    for index in range(1, len(samples)):
        if len(chosen) == most:
            break
        own_height, own_width = samples[index]["image"].shape[-2:]
        together = (max(height, own_height), max(width, own_width))
        if (len(chosen) + 1) * together[0] * together[1] <= (1 + _MOST_PADDING) * (pixels + own_height * own_width):
            chosen.append(index)
            (height, width), pixels = together, pixels + own_height * own_width
    return chosen
