"""Numbers of the small network whose files are in this folder: they repeat themselves, so that files of them are small."""

import math

import numpy as np

# resnest14 of a sixteenth of the width inside the blocks.
NETWORK = dict(blocks=(1, 2, 1, 1), stem_width=4, radix=2, groups=1, bottleneck_width=4, classes=5)
IMAGE_SHAPE = (1, 3, 64, 64)
_PERIOD = 61  # rows begin at another of them each


def values(kind, shape):
    """float32 of `shape` for what a name ends in, in either library; all of them are float16's too."""
    wave = np.sin(np.arange(_PERIOD) * 2.4 + 1)
    if kind in ("gamma", "running_var"):
        wave = 1 + 0.3 * wave
    elif kind == "weight":
        wave = wave * math.sqrt(2 / np.prod(shape[1:]))
    return np.resize(wave, shape).astype(np.float16).astype(np.float32)
