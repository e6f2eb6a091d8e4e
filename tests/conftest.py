"""What all tests share."""

import logging
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import hypothesis
import pytest

from resnest_det import commands

# On tensors as small as here a second compute thread costs more than it gives, most of all on a busy machine. Read when torch
# is first imported: nothing that imports it comes before this line. Inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# What is tried is the same in every run.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """`pytest -m mmdet` fails where MMDetection cannot be used: tests that import it would be skipped, and all seem well."""
    if re.search(r"(?<!not )\bmmdet\b", config.option.markexpr):
        from resnest_det.errors import UserError
        from resnest_det.integrations.mmdet_version import check_mmdet

        try:
            check_mmdet()
        except UserError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process waits for another's at the end.

    Older code than torch's warns much and anywhere: where a host runs, warnings are no errors.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker("detectron2") or item.get_closest_marker("mmdet"):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session", autouse=True)
def builtin_engine():
    """Runs are of the built-in detector unless a test says otherwise, where Detectron2 is installed too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnest_det.commands.train_net.is_installed", lambda name: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def operators_stay():
    """No operator of torch's is freed: `torch.jit` knows them by address alone, so that whatever is created at the address of one
    that was replaced (importing `torch.compile`'s compiler replaces two) is taken for it when a model is scripted."""
    from torch.jit import _builtins

    register, kept = _builtins._register_builtin, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_builtins, "_register_builtin", lambda operator, name: (kept.append(operator), register(operator, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNEST_DET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_root():
    """The folder of datasets that one test's configuration names is no other test's."""
    # Not `monkeypatch`: what tests patch with it would stay so while their folders are removed.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnest_det.data.catalog._root", "")
        yield


@pytest.fixture(autouse=True)
def own_log_level():
    """How much a command that one test runs shows is not what the tests after it see."""
    log = logging.getLogger("resnest_det")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture
def exact_products():
    """A GPU without TensorFloat-32, which has 10 bits."""
    import torch

    parts = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = False
    yield
    for part, allowed in zip(parts, before):
        part.allow_tf32 = allowed


@pytest.fixture
def own_registry(monkeypatch):
    """Datasets that are registered in this test only."""
    monkeypatch.setattr("resnest_det.data.catalog._registered", {})


@pytest.fixture
def write_coco(tmp_path):
    """write_coco(images=[(id, height, width)], annotations=[...], categories=[...], name=...) -> (json file, image folder)."""
    from tests.helpers.datasets import write_coco

    return partial(write_coco, tmp_path)


@pytest.fixture
def tiny(tmp_path):
    """Arguments of train_net for a tiny run in `tmp_path`, its output folder `tmp_path`/out."""
    from tests.helpers.tiny_run import write_tiny_run

    return write_tiny_run(tmp_path)


class Done(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def ended(capfd, monkeypatch):
    """ended(program, arguments) -> `Done`; `program()` reads `arguments`, its own name first, as those of its process.

    That saves a process for each command that is typed: torch takes seconds to load.
    """
    # A setting of the whole process, which here runs other tests.
    monkeypatch.setattr(commands, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(commands, "end", sys.exit)

    def run(program: Callable[[], object], arguments: list[str]) -> Done:
        monkeypatch.setattr(sys, "argv", arguments)
        capfd.readouterr()
        try:
            program()
            status = 0
        except SystemExit as end:
            status = end.code
        return Done(status, *capfd.readouterr())

    return run


@pytest.fixture
def resnest_det_command(ended):
    """resnest_det_command(*words) -> `Done` of `resnest-det WORDS`."""
    return lambda *words: ended(commands.main, ["resnest-det", *map(str, words)])
