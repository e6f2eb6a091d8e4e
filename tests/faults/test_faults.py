"""A short run of the faults; the long ones are `python -m tests.faults`."""

import pytest

from tests.faults.faults import faults
from tests.faults.kills import kills
from tests.faults.runs import Training


@pytest.mark.slow
def test_a_few(tmp_path):
    training = Training(tmp_path / "training")
    kills(training, tmp_path, 1, seed=1)
    faults(training, tmp_path, ["failing_write"], 1)
