"""What all tests share."""

import os

import pytest

# On tensors as small as here a second compute thread costs more than it gives, most of all on a busy machine. Read when torch
# is first imported, and inherited by the tools that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def builtin_engine():
    """Runs are of the built-in detector unless a test says otherwise, where Detectron2 is installed too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnest_det.engine.train_net.detectron2_is_installed", lambda: False)
        yield
