"""What was found in the frames of a video, kept on the disk until the video is written: a command that was ended goes on with it.

The file is a record of the settings and one for each frame, in order; a record is its length (8 bytes) and tensors as safetensors
keeps them, one of them JSON, deflated. A process that was killed leaves a torn record at the end at most, which is cut off.
"""

import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from resnest_det.detector.postprocess import CompactMasks
from resnest_det.errors import UserError
from resnest_det.files import open_unlinked
from resnest_det.inference.images import Picture
from resnest_det.inference.predictor import Predictor
from resnest_det.inference.results import Result

_TENSORS = ("boxes", "scores", "class_ids", "masks", "keypoints", "segment_map", "label_map")
_PLAIN = "plain values"
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
            size = picture.pixels.shape[:2]
            segments, found = _read(self._file)
            if "mask_boxes" in found:
                found["masks"] = CompactMasks(found.pop("mask_probabilities"), found.pop("mask_boxes"), size)
            return Result(picture.name, *size, self._predictor.classes, **found, segments=segments, rgb=picture.rgb)
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
        found = {name: getattr(result, name) for name in _TENSORS}
        if isinstance(result.masks, CompactMasks):
            found |= {"masks": None, "mask_probabilities": result.masks.probabilities, "mask_boxes": result.masks.boxes}
        _write(self._file, result.segments, {name: tensor for name, tensor in found.items() if tensor is not None})


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
        with open_unlinked(place, "a+b") as file:
            file.seek(0)
            try:
                same = _read(file)[0] == header
            except _NO_RECORD:
                same = False
            if not same:
                file.seek(0)
                file.truncate()
                _write(file, header, {})
            yield KeptFrames(file, predictor)
        place.unlink()
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}") from error


# What torn and foreign records end in.
_NO_RECORD = (EOFError, KeyError, TypeError, ValueError, SafetensorError, zlib.error)


def _read(file: io.BufferedRandom) -> tuple[dict | list, dict[str, Tensor]]:
    length = file.read(_LENGTH)
    size = int.from_bytes(length, "little")
    content = file.read(min(size, _MOST_BYTES))
    if len(length) < _LENGTH or len(content) < size:
        raise EOFError
    tensors = load(zlib.decompress(content))
    return json.loads(tensors.pop(_PLAIN).numpy().tobytes()), tensors


def _write(file: io.BufferedRandom, plain: dict | list, tensors: dict[str, Tensor]) -> None:
    text = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
    content = zlib.compress(save({name: tensor.contiguous() for name, tensor in tensors.items()} | {_PLAIN: text}), 1)
    file.write(len(content).to_bytes(_LENGTH, "little") + content)
    file.flush()


def _identity(name: str) -> list:
    """A file by its path, size and time; what is none by its name."""
    try:
        about = os.stat(name)
    except OSError:
        return [name]
    return [os.path.abspath(name), about.st_size, about.st_mtime_ns]
