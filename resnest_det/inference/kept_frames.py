"""What was found in the frames of a video, kept on the disk until the video is written: a command that was ended goes on with it.

The file is a header and a record for each frame, in order; each is its length (8 bytes) and what `torch.save` makes of plain
values and tensors, deflated. A process that was killed leaves a torn record at the end at most, which is cut off.
"""

import io
import os
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from resnest_det.detector.postprocess import CompactMasks
from resnest_det.errors import UserError
from resnest_det.inference.images import Picture
from resnest_det.inference.predictor import Predictor
from resnest_det.inference.results import Result

_TENSORS = ("boxes", "scores", "class_ids", "keypoints", "segment_map", "label_map")
_LENGTH = 8
_MOST_BYTES = 1 << 30  # of a record


class KeptFrames:
    """The frames of one video; see `kept_frames`."""

    def __init__(self, file: io.BufferedRandom, predictor: Predictor):
        self._file, self._predictor = file, predictor
        self._more = True

    def following(self, picture: Picture) -> Result | None:
        """What was found in the next frame, or None after the last that was kept: from there on frames are for `add`."""
        if not self._more:  # another thread may be adding
            return None
        begin = self._file.tell()
        try:
            found = _read(self._file)
            masks = found.pop("masks")
            if isinstance(masks, list):
                masks = CompactMasks(*masks, picture.pixels.shape[:2])
            return Result(picture.name, *picture.pixels.shape[:2], self._predictor.classes, **found, masks=masks, rgb=picture.rgb)
        except _NO_RECORD:
            self._more = False
            self._file.seek(begin)
            self._file.truncate()
            return None

    def add(self, result: Result) -> None:
        """Keep what was found in the frame after the last; without the ids of a tracker.

        Raises:
            OSError: it cannot be written.
        """
        found = {name: getattr(result, name) for name in _TENSORS} | {"segments": result.segments, "masks": result.masks}
        if isinstance(result.masks, CompactMasks):
            found["masks"] = [result.masks.probabilities, result.masks.boxes]
        _write(self._file, found)


@contextmanager
def kept_frames(path: str, source: str, settings: dict, predictor: Predictor) -> Iterator[KeptFrames]:
    """The frames of the video `source` that an earlier command kept for `path` with the same settings, of the same files.

    They are beside `path` in a hidden file, which is removed when the block ends without an error.

    Raises:
        UserError: the file cannot be written.
    """
    place = Path(path).with_name(f".{Path(path).name}.frames")
    header = settings | {"source": _identity(source), "weights": _identity(predictor.backend.source)}
    try:
        with open(place, "r+b" if place.exists() else "w+b") as file:
            try:
                same = _read(file) == header
            except _NO_RECORD:
                same = False
            if not same:
                file.seek(0)
                file.truncate()
                _write(file, header)
            yield KeptFrames(file, predictor)
        place.unlink()
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}") from error


# What torn and foreign records end in.
_NO_RECORD = (EOFError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, zlib.error, pickle.UnpicklingError)


def _read(file: io.BufferedRandom) -> dict:
    length = file.read(_LENGTH)
    size = int.from_bytes(length, "little")
    content = file.read(min(size, _MOST_BYTES))
    if len(length) < _LENGTH or len(content) < size:
        raise EOFError
    return torch.load(io.BytesIO(zlib.decompress(content)), weights_only=True)


def _write(file: io.BufferedRandom, values: dict) -> None:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    content = zlib.compress(buffer.getbuffer(), 1)
    file.write(len(content).to_bytes(_LENGTH, "little") + content)
    file.flush()


def _identity(name: str) -> list:
    """A file by its path, size and time; what is none by its name."""
    try:
        about = os.stat(name)
    except OSError:
        return [name]
    return [os.path.abspath(name), about.st_size, about.st_mtime_ns]
