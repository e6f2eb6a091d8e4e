"""Parameters that need no checkpoint: each is filled by a seeded function of its name and shape, in any host."""

import zlib

import numpy as np
import torch
from torch import nn

# Predictors get scales that spread scores over (0, 1) and move boxes by a fraction of their size.
GAINS = {
    "objectness_logits.weight": 1.5,
    "anchor_deltas.weight": 0.3,
    "cls_score.weight": 4.0,
    "bbox_pred.weight": 2.0,
    "mask_head.predictor.weight": 3.0,
    "sem_seg_head.predictor.weight": 2.0,
    "conv3.norm.weight": 0.5,
}


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values in [-1, 1) that depend on name and shape only. `RandomState`'s streams are frozen by numpy's promise."""
    return np.random.RandomState(zlib.crc32(f"{name}{tuple(shape)}".encode())).uniform(-1, 1, shape).astype(np.float32)


def fill(model: nn.Module) -> None:
    """Overwrite every parameter and every persistent buffer of `model` in place."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            values = uniform(name, tensor.shape)
            if name.endswith("running_var"):
                values = 1 + 0.5 * values
            elif name.endswith("weight") and tensor.dim() == 1:  # a norm's
                values = 1 + 0.2 * values
            elif name.endswith("weight"):
                fan_in = tensor.shape[0] if ".deconv." in name else tensor[0].numel()
                # Without a mean over the inputs, what all regions have in common does not decide for one class everywhere.
                values = values.astype(np.float64)
                centred = values - values.mean(axis=tuple(range(1, values.ndim)), keepdims=True)
                values = centred * np.sqrt(3 * 1.5 / fan_in)
            else:
                values = 0.1 * values
            gain = next((gain for ending, gain in GAINS.items() if name.endswith(ending)), 1.0)
            tensor.copy_(torch.from_numpy(np.asarray(gain * values, dtype=np.float32)))
