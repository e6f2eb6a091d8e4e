"""Videos and cameras: frames in, and a video of the same size and frame rate out. By PyAV, which is an extra."""

import contextlib
import importlib.util
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from resnest_det.errors import UserError
from resnest_det.files import TEMPORARY_SUFFIX
from resnest_det.inference.results import Result

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")


def is_video(source: str) -> bool:
    """Whether it is a video by its suffix, or a camera by its number."""
    return is_camera(source) or source.lower().split("?")[0].endswith(SUFFIXES)


def is_camera(source: str) -> bool:
    """Whether it is the number of a camera, and no file of that name."""
    return source.isascii() and source.isdecimal() and not os.path.exists(source)


def _av():
    try:
        import av
    except ImportError:
        raise UserError('videos need PyAV: pip install "resnest_det[video]"') from None
    return av


class VideoSource:
    """The frames of a video file or of a camera, turned upright as the file says: phones write them as the sensor lies.

    Attributes:
        width, height: in pixels, of a frame that is upright. rate: frames a second. frames: how many, 0 where nobody knows.

    Raises:
        UserError: it cannot be opened or decoded, there is no such camera, or PyAV is not installed.
    """

    def __init__(self, source: str):
        av = _av()
        self.name, self._errors = source, (av.FFmpegError, OSError, ValueError)
        try:
            if is_camera(source):
                self._container = av.open(f"/dev/video{source}", format="v4l2")
            else:
                self._container = av.open(source, timeout=20)
            self._stream = self._container.streams.video[0]
        except IndexError:
            raise UserError(f"video {source} has no pictures in it") from None
        except self._errors as error:
            if is_camera(source):
                raise UserError(f"there is no camera {source} here, or another program has it: {_reason(error)}") from None
            raise UserError(f"video {source} cannot be read: {_reason(error)}") from None
        self._stream.thread_type = "AUTO"
        self._decoded = self._container.decode(self._stream)
        try:
            self._first = next(self._decoded)  # which way up is said with the frames
        except StopIteration:
            self.close()
            raise UserError(f"video {source} has no frame that can be decoded") from None
        except self._errors as error:
            self.close()
            raise UserError(f"video {source} cannot be decoded: {_reason(error)}") from None
        # In quarters, counterclockwise; older versions of PyAV do not say it.
        self._turns = round(getattr(self._first, "rotation", 0) / 90)
        self.height, self.width = self._upright(self._first).shape[:2]
        self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.time_base = self._stream.time_base
        self.frames = self._stream.frames

    def __iter__(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """(time stamp in units of `time_base`, (H, W, 3) uint8 RGB) of each frame; damage after the first ends it."""
        with contextlib.suppress(*self._errors):
            for frame in itertools.chain([self._first], self._decoded):
                yield frame.pts, self._upright(frame)

    def _upright(self, frame) -> np.ndarray:
        return np.rot90(frame.to_ndarray(format="rgb24"), self._turns)

    def close(self) -> None:
        """Give file or camera back."""
        self._container.close()


@contextlib.contextmanager
def video_writer(path: str, source: VideoSource) -> Iterator["VideoWriter"]:
    """A video beside `source`, of its size and times; it is at `path` when the block ends without an error.

    Raises:
        UserError: the suffix is of no format that can be written, or the file cannot be written.
    """
    temporary = Path(path).with_name(f".{Path(path).stem}{TEMPORARY_SUFFIX}{Path(path).suffix}")
    writer = VideoWriter(path, str(temporary), source)
    try:
        yield writer
        writer.close()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            writer.container.close()
        temporary.unlink(missing_ok=True)
        raise


class VideoWriter:
    """Encodes frames as H.264; see `video_writer`."""

    def __init__(self, path: str, temporary: str, source: VideoSource):
        av = _av()
        self.path, self._av, self._errors = path, av, (av.FFmpegError, OSError, ValueError)
        self._last = -1
        try:
            self.container = av.open(temporary, "w")
            self._stream = self.container.add_stream("libx264", rate=source.rate, options={"crf": "20", "preset": "veryfast"})
            self._stream.width, self._stream.height = source.width, source.height
            # Two pixels share a color unless a side is odd.
            self._stream.pix_fmt = "yuv420p" if source.width % 2 == source.height % 2 == 0 else "yuv444p"
            self._time_base = source.time_base or 1 / Fraction(source.rate)
            self._stream.codec_context.time_base = self._time_base
        except self._errors as error:
            raise UserError(f"video {path} cannot be written: {_reason(error)}") from None

    def write(self, pts: int | None, picture: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8 RGB at the source's time stamp.

        Raises:
            UserError: it cannot be written.
        """
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        # Encoders want rising times, which damaged files don't have.
        self._last = max(self._last + 1, pts if pts is not None else self._last + 1)
        frame.pts, frame.time_base = self._last, self._time_base
        self._encode(frame)

    def close(self) -> None:
        """Write what the encoder holds back, and the end of the file."""
        self._encode(None)
        self.container.close()

    def _encode(self, frame) -> None:
        try:
            for packet in self._stream.encode(frame):
                self.container.mux(packet)
        except self._errors as error:
            raise UserError(f"video {self.path} cannot be written: {_reason(error)}") from None


def make_tracker(rate: Fraction):
    """ByteTrack of the `trackers` package, or None where that or supervision is not installed."""
    if not (importlib.util.find_spec("trackers") and importlib.util.find_spec("supervision")):
        return None
    from trackers import ByteTrackTracker

    return ByteTrackTracker(frame_rate=float(rate))


def follow(tracker, result: Result) -> Result:
    """A frame's result with the tracker's ids."""
    import supervision

    detections = supervision.Detections(
        xyxy=result.boxes.numpy().reshape(-1, 4),
        confidence=result.scores.numpy(),
        class_id=result.class_ids.numpy(),
        data={"index": np.arange(len(result))},
    )
    tracked = tracker.update(detections)
    ids = torch.full((len(result),), -1, dtype=torch.int64)
    if tracked.tracker_id is not None and len(tracked):
        ids[torch.as_tensor(tracked.data["index"].astype(np.int64))] = torch.as_tensor(tracked.tracker_id.astype(np.int64))
    return replace(result, tracker_ids=ids)


def drawn(result: Result, frame: np.ndarray) -> np.ndarray:
    """The frame with its objects, of its own size."""
    picture: Image.Image = result.draw(frame)
    return np.asarray(picture)


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
