"""What a run tells while it goes on, for whoever wants to listen: a log, a bar, a service, code of one's own."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from resnest_det.errors import UserError


class Callback:
    """Listens to a run on its main process; subclasses override what they need.

    Iterations count from 0. What a method raises ends the run; a checkpoint of the last period is there.
    """

    def iteration(self, iteration: int, losses: Mapping[str, float], *, lr: float, time: float, data_time: float) -> None:
        """An iteration is done: losses averaged over processes, learning rate, seconds in all and seconds of waiting for data."""

    def results(self, iteration: int, results: Mapping[str, float]) -> None:
        """The figures of an evaluation, such as {"bbox/AP": 37.5}, of the model after `iteration`."""

    def image(self, iteration: int, name: str, image: np.ndarray) -> None:
        """A picture, (H, W, 3) uint8 RGB."""

    def close(self) -> None:
        """The run has ended, well or not."""


class Callbacks(Callback):
    """Several as one, in their order."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = list(callbacks)

    def iteration(self, iteration: int, losses: Mapping[str, float], **times: float) -> None:
        for each in self.callbacks:
            each.iteration(iteration, losses, **times)

    def results(self, iteration: int, results: Mapping[str, float]) -> None:
        for each in self.callbacks:
            each.results(iteration, results)

    def image(self, iteration: int, name: str, image: np.ndarray) -> None:
        for each in self.callbacks:
            each.image(iteration, name, image)

    def close(self) -> None:
        # One that cannot close, because its server is gone for instance, must not keep the others open.
        errors = []
        for each in self.callbacks:
            try:
                each.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def callback_named(text: str) -> Callable[[], Callback]:
    """The class or function that "MODULE:NAME" names, looked for in the working directory too.

    Raises:
        UserError: there is none, or the module cannot be imported.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name.isidentifier():
        raise UserError(f"{text!r} is not of the form MODULE:NAME, such as mine:MyCallback")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{text}: the module cannot be imported: {error}") from error
    if not callable(getattr(module, name, None)):
        raise UserError(f"{text}: the module has no class or function {name}")
    return getattr(module, name)
