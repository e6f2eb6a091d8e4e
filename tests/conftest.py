"""What all tests share."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def builtin_engine():
    """Runs are of the built-in detector unless a test says otherwise, where Detectron2 is installed too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnest_det.engine.train_net.detectron2_is_installed", lambda: False)
        yield
