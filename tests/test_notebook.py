"""The notebook runs from top to bottom, and the pages name commands and files that there are."""

import json
import re
from pathlib import Path

import pytest

from resnest_det.commands import COMMANDS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
@pytest.mark.extras
def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")  # the notebook sets it, and it is as before afterwards
    shown: dict = {"__name__": "__main__"}
    # As a kernel does it, in one process: no server has to be installed or started.
    for cell in json.loads((DOCS / "getting_started.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace("STEPS = 30", "STEPS = 4")
            exec(compile(source, cell["id"], "exec"), shown)
    assert (tmp_path / "run" / "model_final.pth").exists() and shown["result"] is not None


def test_the_page_names_commands_and_pages_that_there_are():
    page = (DOCS / "getting_started.md").read_text()
    assert set(re.findall(r"resnest-det ([\w-]+)", page)) <= set(COMMANDS)
    for name in re.findall(r"\]\((\w[\w.]*)\)", page):
        assert (DOCS / name).exists(), name
