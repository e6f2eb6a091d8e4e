"""How many images of a configuration's training fit into memory: measured with steps of the largest that there may be."""

import logging
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from fvcore.common.config import CfgNode

from resnest_det.configuration.model import build_model, resolve_device
from resnest_det.configuration.solver import build_autocast, build_optimizer
from resnest_det.configuration.tables import tasks_of
from resnest_det.data.statistics import Statistics
from resnest_det.engine.launch import share_cpu_threads
from resnest_det.engine.memory import OutOfMemory, memory_for_use, telling_of_memory
from resnest_det.errors import UserError

logger = logging.getLogger(__name__)

SHARE = 0.9  # of what is free: other sizes in another order leave holes
_CPU_SHARE = 0.6  # readers of images and everything else need the rest
_OBJECTS = 100  # in an image at most, when memory is measured


@dataclass(frozen=True)
class Fit:
    """What was measured: `images` that fit into a process at most, `text` how that is known, `seconds` of a step of one image."""

    images: int
    text: str
    seconds: float


def measure_fit(cfg: CfgNode, data: Statistics, most: int) -> Fit:
    """The images of a step that a process of this configuration has memory for, `most` at most.

    A process of its own trains on noise of the largest size that batches are padded to, with 2 images and with 4; from there
    memory grows with the images. On a GPU the result is tried, too.

    Raises:
        UserError: not even 2 images fit.
    """
    device = resolve_device(cfg.MODEL.DEVICE)
    share = SHARE if device.type == "cuda" else _CPU_SHARE
    budget = int(memory_for_use(device) * share)
    shape, objects = largest_shape(cfg, data), most_objects(data)
    with _trial(cfg, shape, objects) as step:
        two = step(2)
        if two is None:
            raise UserError(
                f"not even 2 images of {shape[1]} x {shape[0]} pixels fit into memory ({budget / 2**30:.1f} GiB can be used); a "
                "smaller INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN, or a smaller model, need less"
            )
        four = step(4) if most > 2 else None
        if four is None:
            images, each = 2, 0.0
        else:
            each = max((four[0] - two[0]) / 2, 1.0)
            images = max(2, min(most, int((budget - two[0]) // each) + 2))
        if device.type == "cuda":
            while images > 4 and step(images) is None:
                images = images * 9 // 10
    seconds = (four[1] / 4) if four else two[1] / 2
    text = (
        f"measured at {shape[1]} x {shape[0]} pixels: 2 images need {two[0] / 2**30:.1f} GiB, each more {each / 2**30:.2f}, of "
        f"{budget / 2**30:.1f} that can be used"
    )
    return Fit(images, text, seconds)


def largest_shape(cfg: CfgNode, data: Statistics) -> tuple[int, int]:
    """(height, width) that the largest batch is padded to."""
    short, longest = max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    sizes = data.image_sizes
    factors = short / sizes.min(axis=1) if short else 1
    shown = sizes * (factors * (longest / (sizes.max(axis=1) * factors)).clip(max=1))[:, None] if short else sizes
    # Grouped by shape, images of one batch lie all or stand all.
    height, width = shown.max(axis=0)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        height, width = max((shown[each].max(axis=0) for each in _groups(sizes) if each.any()), key=lambda pair: pair.prod())
    return int(height), int(width)


def _groups(sizes):
    lying = sizes[:, 1] > sizes[:, 0]
    return lying, ~lying


def most_objects(data: Statistics) -> int:
    """Objects in the fullest image, 1 at least."""
    counts = torch.bincount(torch.from_numpy(data.image_of)) if len(data.image_of) else torch.ones(1)
    return int(counts.max().clamp(1, _OBJECTS))


@contextmanager
def _trial(cfg: CfgNode, shape: tuple[int, int], objects: int) -> Iterator:
    """A function from a number of images to (bytes at most, seconds) of a step with them; None where there is no room."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, cfg, shape, objects), daemon=True)
    process.start()
    there.close()

    def step(images: int) -> tuple[int, float] | None:
        try:
            here.send(images)
            result = here.recv()
        except (EOFError, OSError):  # the system has killed it
            return None
        if isinstance(result, str):
            raise UserError(result)
        return result

    try:
        yield step
    finally:
        here.close()
        process.join(5)
        process.kill()


def _work(connection: Connection, cfg: CfgNode, shape: tuple[int, int], objects: int) -> None:
    share_cpu_threads()
    try:
        model = build_model(cfg)
        optimizer = build_optimizer(cfg, model)
        device = next(model.parameters()).device
        while True:
            images = connection.recv()
            try:
                with telling_of_memory(images):
                    result = _step(cfg, model, optimizer, device, [_sample(cfg, shape, objects) for _ in range(images)])
            except OutOfMemory:
                result = None
                if device.type == "cuda":
                    optimizer.zero_grad()
                    torch.cuda.empty_cache()
            connection.send(result)
    except (EOFError, OSError, KeyboardInterrupt):
        return
    except UserError as error:
        connection.send(str(error))


def _step(cfg, model, optimizer, device: torch.device, batch: list[dict]) -> tuple[int, float]:
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    # On a GPU the second step has the optimizer's momentum and all that was kept; on a CPU the peak is that of the process.
    for _ in range(2 if cuda else 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        with build_autocast(cfg, device):
            loss = sum(model(batch).values())
        loss.backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    if cuda:
        return torch.cuda.max_memory_reserved(device), seconds
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, seconds


def _sample(cfg: CfgNode, shape: tuple[int, int], objects: int) -> dict:
    height, width = shape
    tasks = tasks_of(cfg)
    starts = torch.rand(objects, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([starts, starts + torch.tensor([width / 4, height / 4])], dim=1)
    target: dict = {"boxes": boxes, "labels": torch.zeros(objects, dtype=torch.int64)}
    if tasks.masks:
        # Bit masks take memory of their own.
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
        outlines = [[corner] for corner in corners]
        filled = torch.ones(objects, height, width, dtype=torch.bool)
        target["masks"] = outlines if cfg.INPUT.MASK_FORMAT == "polygon" else filled
    if tasks.pixels:
        target["sem_seg"] = torch.zeros(height, width, dtype=torch.int64)
    image = torch.randint(0, 256, (len(cfg.MODEL.PIXEL_MEAN), height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "target": target, "seed": 0, "file_name": "noise", "image_id": 0}
