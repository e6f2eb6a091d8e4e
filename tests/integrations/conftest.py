"""Makes the helpers of other folders importable."""

import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "engine")]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Several threads only get in each other's way on such small maps."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
