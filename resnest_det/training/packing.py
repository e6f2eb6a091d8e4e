"""A trained detector in one file that needs nothing beside it: parameters, classes and configuration."""

import os
from pathlib import Path

import torch

from resnest_det.backbone.loading import load_into
from resnest_det.configuration.model import assemble_model
from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.standalone import configuration_of
from resnest_det.errors import UserError
from resnest_det.files import atomic_write
from resnest_det.inference.backend import checkpoint_in
from resnest_det.weights.checkpoint_files import read_checkpoint, with_digests
from resnest_det.weights.weights import read_weights

# What a run knows of the machine that it ran on, and where it started from.
_OF_THE_RUN = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "auto",
    "OUTPUT_DIR": "./output",
    "DATASETS.REGISTERED": [],
    "DATASETS.ROOT": "",
}
_KEPT = ("trained_on", "iteration", "best")


def pack(run: str | os.PathLike, out: str | os.PathLike) -> str:
    """Write a trained detector to `out`: to be used and fine-tuned where there is neither its run nor a network.

    The parameters are those that evaluations were of, averaged ones where there are any; what only resuming needs is left out.

    Args:
        run: a checkpoint, or the folder of a run, of which it is model_best.pth, or the newest.

    Returns:
        the checkpoint that was packed.

    Raises:
        UserError: there is none, it has no configuration in it, its parameters do not fill the model, or `out` cannot be written.
    """
    path = _checkpoint_of(Path(run))
    checkpoint = read_checkpoint(path)
    cfg = configuration_of(checkpoint, path)
    weights = read_weights(path)
    model = assemble_model(cfg)
    load_into(model, weights).require_whole("only a whole detector can be packed")
    content = {"model": model.state_dict(), "config": with_values(cfg, _OF_THE_RUN).dump()}
    content |= {key: checkpoint[key] for key in _KEPT if key in checkpoint}
    try:
        with atomic_write(out, "wb") as file:
            torch.save(with_digests(content), file)
    except (OSError, RuntimeError) as error:  # torch's archive writer hides the system's error
        raise UserError(f"{out} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return path


def _checkpoint_of(run: Path) -> str:
    if not run.exists():
        raise UserError(f"{run} does not exist; give the OUTPUT_DIR of a run, or a checkpoint")
    if not run.is_dir():
        return str(run)
    return checkpoint_in(str(run))
