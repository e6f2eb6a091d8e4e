"""Checkpoints in Detectron2's format: written whole or not at all, and read without executing anything in them."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer
from torch import nn

from resnest_det.errors import UserError
from resnest_det.files import atomic_write
from resnest_det.weights.checkpoint_files import read_checkpoint, with_digests
from resnest_det.weights.class_layers import other_counts
from resnest_det.weights.weights import check_numbers, errors_naming, other_kind

logger = logging.getLogger(__name__)

NAMES_SHOWN = 4
BEST_CHECKPOINT = "model_best.pth"  # of a run, by its evaluations
_MOST_ITERATIONS = 1 << 50


class DetectionCheckpointer(Checkpointer):
    """Saves and reads the model and everything needed to resume exactly.

    A file has the keys `model`, those of the checkpointables (`optimizer`, `grad_scaler`),
    `iteration` (the last one done), `seed`, `trained_on` (what the classes are called) and `config` (the text of the run's
    configuration), and digests of all of it that are compared when it is read. The text file `last_checkpoint` names the newest.
    """

    def __init__(self, model: nn.Module, save_dir: str, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.logger = logger
        self.last_saved: int | None = None  # iteration

    def save(self, name: str, **extra: Any) -> None:
        """Write `name`.pth and point `last_checkpoint` at it.

        Raises:
            UserError: the file cannot be written, for instance because the disk is full; earlier ones are intact.
        """
        content = {"model": self.model.state_dict()}
        content.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        with self._telling(name) as path:
            _write(path, content | extra)
            self.tag_last_checkpoint(path.name)
            self.last_saved = extra.get("iteration")

    def save_to_use(self, name: str, model: nn.Module, **extra: Any) -> None:
        """Write `name`.pth with the parameters of `model` and `extra`, to be used and not to be resumed from.

        Raises:
            UserError: see `save`.
        """
        with self._telling(name) as path:
            _write(path, {"model": model.state_dict()} | extra)

    @contextmanager
    def _telling(self, name: str) -> Iterator[Path]:
        path = Path(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        try:
            yield path
        # torch's archive writer hides the system's error in a RuntimeError.
        except (OSError, RuntimeError) as error:
            try:
                earlier = self.get_checkpoint_file()
            except UserError:
                earlier = ""
            kept = f"the earlier checkpoint {earlier} is intact" if earlier else "no earlier checkpoint was there"
            raise UserError(f"checkpoint {path} cannot be written: {_system_reason(error)}; {kept}") from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point `last_checkpoint` at a file of the same folder."""
        with atomic_write(Path(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """See `newest_checkpoint`."""
        return newest_checkpoint(self.save_dir)

    def resume(self) -> dict[str, Any]:
        """Load the model from the folder's newest checkpoint, and return everything else in the file.

        Raises:
            UserError: the file is absent, damaged or of another model, or was not made to be resumed from.
        """
        path = self.get_checkpoint_file()
        checkpoint = self.load(path, checkpointables=[])
        missing = [key for key in ("optimizer", "iteration") if key not in checkpoint]
        if missing:
            raise UserError(
                f"checkpoint {path} has no {' and no '.join(missing)}, so training cannot go on from it; "
                "a new training can start from its weights, without resuming"
            )
        iteration, seed = checkpoint["iteration"], checkpoint.get("seed")
        if type(iteration) is not int or not -1 <= iteration < _MOST_ITERATIONS:  # -1: none is done
            raise UserError(f"checkpoint {path}: 'iteration' is {repr(iteration)[:80]}, expected a number of iterations")
        if seed is not None and not _is_count(seed, 1 << 128):
            raise UserError(f"checkpoint {path}: 'seed' is {repr(seed)[:80]}, expected a number that is not negative")
        if problem := _scaler_problem(checkpoint.get("grad_scaler")):
            raise UserError(f"checkpoint {path}: 'grad_scaler' {problem}")
        return checkpoint

    def _load_file(self, f: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(f)
        if not isinstance(checkpoint.get("model"), dict):
            raise UserError(f"checkpoint {f} has no 'model', so it is not a checkpoint of this training")
        with errors_naming(f):
            _check_model(checkpoint["model"], self.model.state_dict())
        self._loaded_from = f
        return checkpoint

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        problems = describe_incompatible(incompatible.missing_keys, incompatible.unexpected_keys, incompatible.incorrect_shapes)
        if problems:
            in_file, in_model = ({each[0]: each[place] for each in incompatible.incorrect_shapes} for place in (1, 2))
            counts = other_counts(in_file, in_model)
            raise UserError(f"checkpoint {self._loaded_from} is of another model: {problems}" + (f"; {counts}" if counts else ""))


def _write(path: Path, content: dict) -> None:
    with atomic_write(path, "wb") as file:
        torch.save(with_digests(content), file)


def newest_checkpoint(folder: str | os.PathLike) -> str:
    """The checkpoint in `folder` that its file `last_checkpoint` names, "" where there is no such file.

    Raises:
        UserError: what it names cannot be a file of the folder, or does not exist.
    """
    marker = Path(folder, "last_checkpoint")
    try:
        with marker.open("rb") as file:
            content = file.read(1000)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{marker} cannot be read: {error.strerror or error}") from None
    name = content.decode("utf-8", "replace").strip()
    if not name or not name.isprintable() or "/" in name or name in (".", "..") or len(content) > 255:
        shown = repr(content[:40])[1:]
        raise UserError(f"{marker} is damaged: it holds {shown}, expected the name of the newest checkpoint in the folder")
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise UserError(f"{marker} names {path}, which does not exist; write the name of a checkpoint in the folder into it")
    return path


def _check_model(saved: dict, wanted: dict[str, torch.Tensor]) -> None:
    """Raises `UserError` for what is no parameter, or has numbers of another kind than the model's."""
    for name, value in saved.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{str(name)[:80]} is a {type(value).__name__}, expected a tensor")
        if name in wanted and (problem := other_kind(value, wanted[name])):
            raise UserError(f"{name} is {problem}")
    check_numbers(saved)


def _is_count(value, below: int) -> bool:
    return type(value) is int and 0 <= value < below


def _scaler_problem(state) -> str:
    """What keeps a GradScaler from going on with `state`; one that is not in use saves nothing."""
    if not state:
        return ""
    if not isinstance(state, dict):
        return f"is a {type(state).__name__}, expected a dictionary"
    for name in ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"):
        value = state.get(name)
        least = 0 if name == "_growth_tracker" else 1e-300
        if type(value) not in (int, float) or not least <= value < math.inf:
            return f"has {repr(value)[:80]} for {name}"
    return ""


def _system_reason(error: Exception) -> str:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.strerror:
            return chain.strerror
        chain = chain.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def describe_incompatible(missing: list[str], unexpected: list[str], mismatched: list[tuple[str, tuple, tuple]]) -> str:
    """One line on the parameters that do not fit; "" if all do.

    Args:
        missing: names only in the model.
        unexpected: names only in the file.
        mismatched: name, shape in the file, shape in the model.
    """
    parts = []
    if mismatched:
        shapes = [f"{name} is {tuple(found)} in the file, {tuple(wanted)} in the model" for name, found, wanted in mismatched]
        parts.append(f"{len(mismatched)} of other shapes ({_some(shapes)})")
    if missing:
        parts.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
    return "; ".join(parts)


def _some(items: list[str]) -> str:
    return ", ".join(items[:NAMES_SHOWN]) + (", …" if len(items) > NAMES_SHOWN else "")


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Give `optimizer` the momentum of `saved`, keeping learning rates, decay and momentum factor of the configuration.

    Raises:
        UserError: the parameters were grouped differently when it was saved, it is another optimizer's, or `saved` is not what an
            optimizer saves.
    """
    groups = optimizer.state_dict()["param_groups"]
    try:
        state = dict(saved["state"].items())
        sizes, saved_sizes = ([len(group["params"]) for group in each] for each in (groups, saved["param_groups"]))
    except (KeyError, TypeError, AttributeError):
        raise UserError("cannot resume: the checkpoint's 'optimizer' is not what an optimizer saves") from None
    if sizes != saved_sizes:
        raise UserError(
            f"cannot resume: the optimizer has parameter groups of {sizes} parameters, the checkpoint of {saved_sizes}; "
            "freezing, norms, weight decay and the learning rate of biases must stay as they were"
        )
    # Settings that AdamW has, and SGD, and Muon neither; newer versions of torch add others.
    own, their = ({"betas", "nesterov"} & set(each[0]) for each in (groups, saved["param_groups"]))
    if own != their:
        raise UserError("cannot resume: the checkpoint was written with another optimizer; it must stay as it was")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        if not (_is_count(index, len(parameters)) and isinstance(values, dict)):
            raise UserError(
                f"cannot resume: the optimizer's state of parameter {repr(index)[:80]} is not what an optimizer saves"
            )
        for name, value in values.items():
            if problem := _optimizer_problem(value, parameters[index]):
                raise UserError(f"cannot resume: the optimizer's {str(name)[:80]} of parameter {index} {problem}")
    # Copied, since the tensors may lie in a map of the file, which can be overwritten while the run goes on.
    copies = {
        index: {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        for index, values in state.items()
    }
    optimizer.load_state_dict({"state": copies, "param_groups": groups})


def _optimizer_problem(value, parameter: torch.Tensor) -> str:
    if value is None or type(value) in (int, float, bool):
        return ""
    if not isinstance(value, torch.Tensor):
        return f"is a {type(value).__name__}, expected a tensor"
    if value.shape not in (parameter.shape, ()):
        return f"is {tuple(value.shape)} in the file, the parameter {tuple(parameter.shape)} in the model"
    try:
        check_numbers({"": value})
    except UserError as error:
        return str(error).strip()
    return "" if value.ndim == 0 else other_kind(value, parameter)


def periodic_checkpointer(checkpointer: DetectionCheckpointer, period: int, max_iter: int, kept: int = 0) -> PeriodicCheckpointer:
    """Saves `model_0000999.pth` every `period` iterations (0: never) and `model_final.pth` after the last.

    Args:
        kept: of the periodic ones only this many last ones stay, those of the run that is resumed among them; 0 keeps all.
    """
    periodic = PeriodicCheckpointer(checkpointer, period if period > 0 else max_iter + 1, max_iter, max_to_keep=kept or None)
    if kept:
        periodic.recent_checkpoints = sorted(map(str, Path(checkpointer.save_dir).glob(f"model_{'[0-9]' * 7}.pth")))
    return periodic
