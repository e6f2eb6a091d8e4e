"""Fixtures of the engine's tests."""

import pytest
import torch
from tiny_run import write_tiny_run


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Several threads only get in each other's way on such small maps."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path):
    """Arguments of train_net for a tiny run in `tmp_path`, its output folder `tmp_path`/out."""
    return write_tiny_run(tmp_path)
