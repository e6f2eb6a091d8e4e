"""Predicting files: read ahead in threads, written behind in others, and gone on with after an interruption."""

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from resnest_det.errors import UserError, shown
from resnest_det.files import atomic_write, remove_unfinished, write_bytes
from resnest_det.inference.images import is_address
from resnest_det.inference.inputs import Input
from resnest_det.inference.kept_frames import kept_frames
from resnest_det.inference.predictor import Predictor
from resnest_det.inference.results import Result, write_picture
from resnest_det.inference.tiles import predict_tiled
from resnest_det.inference.video import VideoSource, drawn, follow, is_camera, make_tracker, video_writer

MARKER = "predict.json"
COCO_RESULTS = "coco_instances_results.json"
_NOT_IN_NAMES = re.compile(r"[^\w-]")
_READERS, _WRITERS = 2, 2
_WAITING = 6  # images that wait to be written


@dataclass(frozen=True)
class Output:
    """What is written about each image, and where.

    Attributes:
        folder: of it all.
        save_json: a JSON file of each image, and one in COCO's result format of all.
        save_masks: the masks of each object, the segment map or the label map as PNG files.
        tile: (height, width) of the tiles that images are looked at in; None looks at them whole.
        overlap: fraction of a tile that its neighbour sees, too.
        batch: images, or tiles of one, that go through the network together.
    """

    folder: str
    save_json: bool = False
    save_masks: bool = False
    tile: tuple[int, int] | None = None
    overlap: float = 0.2
    batch: int = 1

    def picture(self, item: Input) -> str:
        suffix = ".png" if item.source.lower().endswith(".png") and not is_address(item.source) else ".jpg"
        return os.path.join(self.folder, item.name + suffix)

    def json(self, item: Input) -> str:
        return os.path.join(self.folder, f"{item.name}.json")

    def is_done(self, item: Input) -> bool:
        """Whether an image's files are there; the picture is written last."""
        return os.path.exists(self.picture(item)) and (not self.save_json or os.path.exists(self.json(item)))


@dataclass
class Done:
    """How it went: images looked at, left as an earlier run wrote them, and skipped; seconds, and those within the model."""

    images: int = 0
    earlier: int = 0
    skipped: int = 0
    seconds: float = 0.0
    in_model: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.images} images in {self.seconds:.1f} s"]
        if self.images and self.seconds:
            parts[0] += (
                f", {self.images / self.seconds:.2f} a second, {100 * self.in_model / self.seconds:.1f} % of it in the model"
            )
        if self.earlier:
            parts.append(f"{self.earlier} were there already")
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        return "; ".join(parts)


def claim_folder(output: Output, predictor: Predictor) -> None:
    """Make the folder, or go on in one that the same settings made.

    Raises:
        UserError: it has other things in it, or results of other settings; or it cannot be written to.
    """
    settings = _settings(output, predictor)
    marker = Path(output.folder, MARKER)
    try:
        os.makedirs(output.folder, exist_ok=True)
        if marker.exists():
            earlier = json.loads(marker.read_text())
            if not isinstance(earlier, dict):
                raise ValueError
            other = [key for key in settings if settings[key] != earlier.get(key)]
            if other:
                raise UserError(
                    f"{output.folder} has results of other settings ({other[0]} was {shown(earlier.get(other[0]))}, is "
                    f"{shown(settings[other[0]])}): give another --output, or remove it"
                )
        elif os.listdir(output.folder):
            raise UserError(f"--output {output.folder} has other files in it: give a new or an empty folder")
        remove_unfinished(output.folder)
        write_bytes(str(marker), json.dumps(settings, indent=1).encode())
    except (json.JSONDecodeError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{marker} is damaged: remove the folder, or give another --output") from None
    except OSError as error:
        raise UserError(f"--output {output.folder} cannot be written: {error.strerror or error}") from None


def _settings(output: Output, predictor: Predictor) -> dict:
    """What results depend on, as JSON gives it back."""
    settings = {key: value for key, value in asdict(output).items() if key not in ("folder", "batch")}
    return settings | {
        "tile": list(output.tile) if output.tile else None,
        "weights": os.path.abspath(predictor.backend.source),
        "confidence_threshold": predictor.score_threshold,
        "classes": None if predictor.wanted is None else predictor.wanted.tolist(),
    }


def predict_images(predictor: Predictor, items: Sequence[Input], output: Output, tell: Callable[[str], None]) -> Done:
    """Look at images and write what was found.

    Args:
        tell: gets a line on each image that is skipped.

    Raises:
        UserError: something cannot be written.
    """
    done = Done()
    missing = [item for item in items if not output.is_done(item)]
    done.earlier = len(items) - len(missing)
    start = time.perf_counter()
    bar = tqdm(total=len(missing), unit="image", smoothing=0.05, disable=not sys.stderr.isatty() or not missing)
    with bar, _pool(_READERS) as readers, _pool(_WRITERS) as writers:
        written: deque[Future] = deque()
        ready = _ahead(readers, lambda item: _read(predictor, item, output), missing, 2 * _READERS + output.batch)
        while chunk := list(islice(ready, output.batch)):
            chunk = [(item, read) for item, read in chunk if _good(item, read, done, tell, bar)]
            for (item, _), result in zip(chunk, _predict(predictor, [read for _, read in chunk], output, done)):
                while len(written) >= _WAITING:
                    written.popleft().result()
                written.append(writers.submit(_write, result, item, output))
                done.images += 1
                bar.update()
        for future in written:
            future.result()
    done.seconds = time.perf_counter() - start
    if output.save_json:
        _write_coco_results(items, output)
    return done


def _read(predictor: Predictor, item: Input, output: Output):
    """(picture, sample), or the error: raised, it would end the others."""
    try:
        picture = predictor.read(item.source)
        return picture, None if output.tile else predictor.sample(picture)
    except UserError as error:
        return error


def _good(item: Input, read, done: Done, tell: Callable[[str], None], bar: tqdm) -> bool:
    if not isinstance(read, UserError):
        return True
    done.skipped += 1
    bar.update()
    with bar.external_write_mode(file=sys.stderr):
        tell(f"skipped: {read}")
    return False


def _predict(predictor: Predictor, read: list, output: Output, done: Done) -> list[Result]:
    if not read:
        return []
    start = time.perf_counter()
    if output.tile:
        found = [predict_tiled(predictor, picture, output.tile, output.overlap, output.batch) for picture, _ in read]
    else:
        found = predictor.predict_pictures([picture for picture, _ in read], [sample for _, sample in read])
    done.in_model += time.perf_counter() - start
    return found


def _ahead(pool: ThreadPoolExecutor, work: Callable, items: Iterable, count: int) -> Iterator[tuple]:
    """(item, `work(item)`) in order, `count` of them under way in other threads."""
    items, waiting = iter(items), deque()
    for item in islice(items, count):
        waiting.append((item, pool.submit(work, item)))
    while waiting:
        item, future = waiting.popleft()
        value = future.result()
        for following in islice(items, 1):
            waiting.append((following, pool.submit(work, following)))
        yield item, value


@contextmanager
def _pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are not waited for when something went wrong."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _write(result: Result, item: Input, output: Output) -> None:
    if output.save_json:
        write_bytes(output.json(item), json.dumps(result.to_json(_image_id(item))).encode())
    if output.save_masks:
        write_masks(result, output.folder, item.name)
    write_picture(output.picture(item), result.draw())


def _image_id(item: Input) -> int | str:
    return int(item.name) if re.fullmatch("[0-9]{1,18}", item.name) else item.name


def write_masks(result: Result, folder: str, name: str) -> None:
    """The masks of an image as PNG files: `masks/NAME/000_CLASS.png` of each object, black and white; of a panoptic model
    `panoptic/NAME.png` in COCO's format; of one that labels pixels `labels/NAME.png`, whose values are classes.

    Raises:
        UserError: one cannot be written.
    """
    if result.segment_map is not None:
        _write_png(os.path.join(folder, "panoptic", f"{name}.png"), result.panoptic_png())
    elif result.label_map is not None:
        kind = np.uint8 if len(result.classes.stuff.names) <= 256 else np.uint16
        _write_png(os.path.join(folder, "labels", f"{name}.png"), Image.fromarray(result.label_map.numpy().astype(kind)))
    for index, (label, mask) in enumerate(zip(result.names, result.masks or ())):
        file = f"{index:03}_{_NOT_IN_NAMES.sub('_', label)[:60]}.png"
        _write_png(os.path.join(folder, "masks", name, file), Image.fromarray(mask.numpy()))


def _write_png(path: str, picture: Image.Image | bytes) -> None:
    if isinstance(picture, bytes):
        write_bytes(path, picture)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_picture(path, picture)


def _write_coco_results(items: Sequence[Input], output: Output) -> None:
    """Join what is in the files of the images, one in memory at a time."""
    path = Path(output.folder, COCO_RESULTS)
    try:
        with atomic_write(path) as file:
            separator = "["
            for item in items:
                if not os.path.exists(output.json(item)):  # skipped
                    continue
                with open(output.json(item), encoding="utf-8") as source:
                    for entry in json.load(source)["detections"]:
                        file.write(separator + json.dumps({key: value for key, value in entry.items() if key != "name"}))
                        separator = ",\n"
            file.write("[]" if separator == "[" else "]")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def predict_video(predictor: Predictor, source: str, path: str, output: Output, tell: Callable[[str], None], name: str) -> Done:
    """Look at the frames of a video or of a camera, and write a video of the same size and times with what was found.

    A camera is looked at until Ctrl-C, a video until its end. With `save_json` there is a line of JSON for each frame beside it.
    What a command that was ended had found in a video is not looked for again.

    Raises:
        UserError: it cannot be read or decoded, there is no such camera, or something cannot be written.
    """
    done = Done()
    frames = VideoSource(source)
    try:
        tracker = make_tracker(frames.rate)
        bar = tqdm(total=frames.frames or None, unit="image", smoothing=0.05, disable=not sys.stderr.isatty())
        start = time.perf_counter()
        lines = Path(path).with_suffix(".jsonl")
        # Frames are kept until the video is where it belongs.
        kept = nullcontext() if is_camera(source) else kept_frames(path, source, _settings(output, predictor), predictor)
        with (
            kept as keep,
            bar,
            video_writer(path, frames) as video,
            _pool(1) as decoder,
            _pool(1) as encoder,
            _lines(output, lines) as log,
        ):
            written: deque[Future] = deque()
            stopped = None
            try:
                for number, (pts, frame, read) in enumerate(_decoded(decoder, predictor, iter(frames), name)):
                    result = keep and keep.following(read[0])
                    if result is None:
                        (result,) = _predict(predictor, [read], output, done)
                        if keep:
                            written.append(encoder.submit(keep.add, result))
                        done.images += 1
                    else:
                        done.earlier += 1
                    result = result if tracker is None else follow(tracker, result)
                    while len(written) >= _WAITING:
                        written.popleft().result()
                    time_stamp = None if pts is None or frames.time_base is None else float(pts * frames.time_base)
                    written.append(encoder.submit(_write_frame, video, log, result, frame, pts, number, time_stamp))
                    bar.update()
            except KeyboardInterrupt as stop:
                stopped = stop
            for future in written:
                future.result()
            if stopped and keep:
                tell(f"{path}: stopped after {done.images + done.earlier} frames; the same command goes on from there")
                raise stopped
            if stopped:
                tell(f"camera {source}: stopped after {done.images} pictures")
        done.seconds = time.perf_counter() - start
    finally:
        frames.close()
    return done


def _decoded(pool: ThreadPoolExecutor, predictor: Predictor, frames: Iterator, name: str) -> Iterator[tuple]:
    """(time stamp, frame, what `_predict` takes) of each frame; the next one is made meanwhile."""

    def following():
        for pts, frame in frames:
            picture = predictor.read(frame, name)
            return pts, frame, (picture, predictor.sample(picture))
        return None

    ahead = deque(pool.submit(following) for _ in range(3))
    while (ready := ahead.popleft().result()) is not None:
        ahead.append(pool.submit(following))
        yield ready


def _write_frame(video, log, result: Result, frame: np.ndarray, pts: int | None, number: int, time_stamp: float | None) -> None:
    if log is not None:
        log.write(json.dumps({"frame": number, "time": time_stamp} | result.to_json(number)) + "\n")
    video.write(pts, drawn(result, frame))


@contextmanager
def _lines(output: Output, path: Path) -> Iterator:
    if not output.save_json:
        yield None
        return
    remove_unfinished(path.parent, path.name)
    with atomic_write(path, sync=False) as file:
        yield file
