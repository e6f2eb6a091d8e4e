"""Writes the golden files, wherever Detectron2 is installed; in the folder of the checkout:

    python -m tests.golden.make_golden [CASE ...]

Names of cases write these alone.
"""

import sys
from pathlib import Path

import numpy as np

from tests.helpers.cases import CASES
from tests.helpers.detectron2_reference import observe_detectron2

FOLDER = Path(__file__).parent


def shrink(name: str, values: np.ndarray) -> np.ndarray:
    """float32 is enough for everything but integers."""
    return values.astype(np.float32) if values.dtype == np.float64 else values


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        observed = {name: shrink(name, values) for name, values in observe_detectron2(case).items()}
        np.savez_compressed(FOLDER / f"{case}.npz", **observed)
        counts = {name: len(values) for name, values in observed.items() if name.endswith(("/scores", "/segments"))}
        losses = {name.split("/")[1]: round(float(values), 4) for name, values in observed.items() if name.startswith("losses/")}
        print(case, counts, losses, f"{(FOLDER / f'{case}.npz').stat().st_size / 1000:.0f} kB")
