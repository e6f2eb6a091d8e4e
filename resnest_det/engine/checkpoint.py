"""Checkpoints in Detectron2's format: written whole or not at all, read without executing anything in them."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer
from torch import nn

from resnest_det.errors import UserError
from resnest_det.files import atomic_write
from resnest_det.weights.checkpoint_files import read_checkpoint

logger = logging.getLogger(__name__)

NAMES_SHOWN = 4


class DetectionCheckpointer(Checkpointer):
    """Saves the model and what else is needed to go on exactly, and reads it back.

    A file has the keys `model`, those of the checkpointables (`optimizer`, `scheduler`, `grad_scaler`),
    `iteration` (the last one done), `seed` and `trained_on` (classes and input format, see
    `resnest_det.configuration.data.RunData`). The text file `last_checkpoint` names the newest.
    """

    def __init__(self, model: nn.Module, save_dir: str, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.logger = logger

    def save(self, name: str, **extra: Any) -> None:
        """Write `name`.pth and point `last_checkpoint` at it.

        Raises:
            UserError: the file cannot be written, for instance because the disk is full; the earlier ones are intact.
        """
        content = {"model": self.model.state_dict()}
        content.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        content.update(extra)
        path = Path(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        try:
            with atomic_write(path, "wb") as file:
                torch.save(content, file)
            self.tag_last_checkpoint(path.name)
        # The archive writer hides the operating system's error in a RuntimeError of its own.
        except (OSError, RuntimeError) as error:
            earlier = self.get_checkpoint_file()
            kept = f"the earlier checkpoint {earlier} is intact" if earlier else "no earlier checkpoint was there"
            raise UserError(f"checkpoint {path} cannot be written: {_system_reason(error)}; {kept}") from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point `last_checkpoint` at a file of the same folder."""
        with atomic_write(Path(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def resume(self) -> dict[str, Any]:
        """Load the model from the newest checkpoint of the folder; everything else in the file is returned.

        Raises:
            UserError: the file is absent, damaged or of another model, or was not made to be resumed from.
        """
        path = self.get_checkpoint_file()
        if not os.path.isfile(path):
            raise UserError(f"{Path(self.save_dir, 'last_checkpoint')} names {path}, which does not exist")
        checkpoint = self.load(path, checkpointables=[])
        missing = [key for key in ("optimizer", "iteration") if key not in checkpoint]
        if missing:
            raise UserError(
                f"checkpoint {path} has no {' and no '.join(missing)}, so training cannot go on from it; "
                "to start a new training from its weights, give it as MODEL.WEIGHTS without --resume"
            )
        return checkpoint

    def _load_file(self, f: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(f)
        if not isinstance(checkpoint.get("model"), dict):
            raise UserError(f"checkpoint {f} has no 'model', so it is not a checkpoint of this training")
        self._loaded_from = f
        return checkpoint

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        problems = describe_incompatible(incompatible.missing_keys, incompatible.unexpected_keys, incompatible.incorrect_shapes)
        if problems:
            raise UserError(f"checkpoint {self._loaded_from} is of another model: {problems}")


def _system_reason(error: Exception) -> str:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.strerror:
            return chain.strerror
        chain = chain.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def describe_incompatible(missing: list[str], unexpected: list[str], mismatched: list[tuple[str, tuple, tuple]]) -> str:
    """One line on parameters that do not fit, "" when all do.

    Args:
        missing: names that the model has and the file has not.
        unexpected: names that the file has and the model has not.
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
        UserError: the parameters were grouped otherwise when it was saved.
    """
    groups = optimizer.state_dict()["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in each] for each in (groups, saved["param_groups"]))
    if sizes != saved_sizes:
        raise UserError(
            f"cannot resume: the optimizer has parameter groups of {sizes} parameters, the checkpoint of {saved_sizes}; "
            "freezing, norms and the SOLVER.WEIGHT_DECAY*, BIAS_LR_FACTOR keys must stay as they were"
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def periodic_checkpointer(checkpointer: DetectionCheckpointer, period: int, max_iter: int) -> PeriodicCheckpointer:
    """Saves `model_0000999.pth` every `period` iterations (0: never) and `model_final.pth` after the last."""
    return PeriodicCheckpointer(checkpointer, period if period > 0 else max_iter + 1, max_iter)
