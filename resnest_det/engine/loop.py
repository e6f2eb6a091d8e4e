"""The training loop: steps of stochastic gradient descent in which every number depends only on the seed and the iteration."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnest_det.distributed import all_gather_objects, get_rank, get_world_size
from resnest_det.engine.callbacks import Callback
from resnest_det.engine.memory import OutOfMemory, telling_of_memory
from resnest_det.errors import UserError
from resnest_det.stopping import deferred, raise_if_requested, stop_requested, stop_too

# Among the losses, a process's wish to stop: gathered together with them it costs no transfer of its own.
_STOP = "stop"


class Scheduler(Protocol):
    """The part of a learning-rate schedule that the loop uses."""

    def step(self) -> None: ...


def seed_everything(*numbers: int) -> None:
    """Seed the global generators of Python, NumPy and torch with a mix of `numbers` (0 or more)."""
    words = np.random.SeedSequence(numbers).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


def train_loop(
    model: nn.Module,
    batches: Iterator[Any],
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    *,
    start_iteration: int,
    max_iter: int,
    seed: int,
    scaler: torch.amp.GradScaler,
    autocast: torch.autocast,
    names_of: Callable[[Any], list[str]],
    clip_gradients: Callable | None = None,
    log: Callback | None = None,
    after_step: Sequence[Callable[[int, Any], object]] = (),
    before_step: Callable[[int], None] | None = None,
    accumulate: int = 1,
) -> None:
    """Train `model` from `start_iteration` until `max_iter` iterations are done.

    Every iteration seeds the global generators anew, so a resumed run draws what an uninterrupted one would have drawn.
    A signal to stop takes effect between iterations, in all processes after the same one, or where an action allows it.

    Args:
        model: called with a batch, returns a dict of named scalar losses whose sum is minimised.
        batches: this process's part of each global batch, from that of `start_iteration` on.
        scaler: for fp16; otherwise a disabled one.
        autocast: entered around the forward pass; a disabled one for full precision.
        names_of: what a batch is called in messages, the files of its images for instance.
        clip_gradients: called with the parameters before each update.
        log: receives every iteration; set on the main process only.
        after_step: called in order, with the iteration just done and its batch. If one returns True, in all processes alike, the
            training ends after this iteration.
        before_step: called with each iteration before its forward pass.
        accumulate: see `add_gradients`.

    Raises:
        KeyboardInterrupt: a signal came; the model is as the last call of the first action has seen it.
        OutOfMemory: there is no room for a batch.
        UserError: a loss is not finite, or the model cannot use a batch. The message names the iteration, the losses and
            the images; the model is not updated.
    """
    model.train()
    largest_group = max(optimizer.param_groups, key=lambda group: len(group["params"]))
    with deferred():
        for iteration in range(start_iteration, max_iter):
            seed_everything(seed, iteration, get_rank())
            start = time.perf_counter()
            batch = next(batches)
            data_time = time.perf_counter() - start
            optimizer.zero_grad()
            if before_step is not None:
                before_step(iteration)
            try:
                with telling_of_memory(-(-len(batch) // accumulate)):
                    losses = add_gradients(model, batch, accumulate, autocast, scaler)
            except OutOfMemory:
                raise
            except UserError as error:
                raise UserError(f"iteration {iteration}: {error}; images of this step: {', '.join(names_of(batch))}") from error
            losses[_STOP] = next(iter(losses.values())).new_full((), stop_requested())
            values, data_time = reduce_losses(losses, data_time)
            stop = values.pop(_STOP) > 0
            if stop:
                stop_too()
            check_finite(values, names_of(batch), iteration)
            scaler.unscale_(optimizer)
            if clip_gradients is not None:
                clip_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
            scaler.step(optimizer)
            scaler.update()
            lr = largest_group["lr"]
            scheduler.step()
            if log is not None:
                log.iteration(iteration, values, lr=lr, time=time.perf_counter() - start, data_time=data_time)
            ended = [action(iteration, batch) for action in after_step]
            # Several processes stop only if all of them know.
            if stop or get_world_size() == 1:
                raise_if_requested()
            if any(end is True for end in ended):
                return


def add_gradients(
    model: nn.Module, batch: Any, accumulate: int, autocast: torch.autocast, scaler: torch.amp.GradScaler
) -> dict[str, torch.Tensor]:
    """Add the gradients of a batch to those there are, and return its losses.

    Args:
        accumulate: parts that the batch is cut into and that go through the model one after the other, in the memory of one.
            Gradients and losses are their means, weighted by the number of images: those of the whole batch where a loss is a
            mean over images. Batch norm takes its statistics from each part by itself, and a loss that is a mean over what is
            found in a batch, as that of masks, weights the images of a part that has few of it more.
    """
    count, losses = len(batch), {}
    parts = min(accumulate, count)
    bounds = [count * index // parts for index in range(parts + 1)]
    for start, end in zip(bounds, bounds[1:]):
        # Gradients of several processes are added up once, behind the last part.
        waits = end < count and isinstance(model, DistributedDataParallel)
        with model.no_sync() if waits else nullcontext():
            with autocast:
                own = model(batch if parts == 1 else batch[start:end])
                total = sum(own.values())
            share = (end - start) / count
            scaler.scale(total if parts == 1 else total * share).backward()
        for name, loss in own.items():
            loss = loss.detach() if parts == 1 else loss.detach() * share
            losses[name] = losses[name] + loss if name in losses else loss
    return losses


def reduce_losses(losses: Mapping[str, torch.Tensor], data_time: float) -> tuple[dict[str, float], float]:
    """Each loss averaged over the processes, and their longest `data_time`; returned on every process."""
    # One transfer for all: on a GPU, each transfer waits for everything queued before it.
    values = torch.stack([loss.detach().double() for loss in losses.values()])
    values = torch.cat([values, values.new_tensor([data_time])])
    if get_world_size() > 1:
        gathered = [torch.empty_like(values) for _ in range(get_world_size())]
        dist.all_gather(gathered, values)
        stacked = torch.stack(gathered)
        values = torch.cat([stacked[:, :-1].mean(0), stacked[:, -1:].amax(0)])
    *means, longest = values.tolist()
    return dict(zip(losses, means, strict=True)), longest


def check_finite(losses: Mapping[str, float], names: list[str], iteration: int) -> None:
    """See that every loss (averaged over the processes) is a finite number.

    Raises:
        UserError: on every process, naming the losses and the images of all processes; `names` are this one's.
    """
    if np.isfinite(list(losses.values())).all():
        return
    images = [name for gathered in all_gather_objects(names) for name in gathered]
    wrong = ", ".join(f"{name} {value}" for name, value in losses.items() if not np.isfinite(value))
    raise UserError(
        f"loss is not finite at iteration {iteration}: {wrong}; images of this step: {', '.join(images)}; a lower "
        "learning rate, a longer warm-up or clipping of gradients usually helps"
    )
