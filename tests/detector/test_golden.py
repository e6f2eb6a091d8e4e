"""The built-in detector against files that Detectron2 wrote: features, proposals, detections, losses, a training step."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.cases import CASES
from tests.helpers.observe import differences, observe_builtin

FOLDER = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("case", CASES)
def test_equals_detectron2(case):
    with np.load(FOLDER / f"{case}.npz") as expected:
        worst = differences(observe_builtin(case), dict(expected))
    assert {kind for kind, ratio in worst.items() if not ratio <= 1} == set(), f"fractions of the tolerances: {worst}"
    assert {"features", "losses", "step"} <= set(worst)
    if not case.startswith("semantic"):
        assert {"proposals/boxes", "detections/boxes"} <= set(worst)
    if case.startswith(("panoptic", "semantic")):
        assert "semantic/logits" in worst
    if case.startswith("panoptic"):
        assert {"panoptic/map", "panoptic/segments", "panoptic/areas"} <= set(worst)


def test_golden_files_stay_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 2e6
