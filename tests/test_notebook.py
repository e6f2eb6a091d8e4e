"""The notebook runs from top to bottom, so do the hosts' pages, and pages name commands and files that there are."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnest_det.backbone.classifier import create_model
from resnest_det.commands import COMMANDS
from resnest_det.commands.train_net import main as train
from resnest_det.data.shapes import write_shapes
from tests.helpers.tiny_run import write_tiny_run

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


def run_blocks(page: str, changes: dict[str, str], leave_out: int = 0) -> dict:
    """Run the blocks of Python of a page one after the other, with small things for large ones; the names they leave."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shown: dict = {"__name__": "__main__"}
    for number, block in enumerate(blocks[: len(blocks) - leave_out], start=1):
        for large, small in changes.items():
            block = block.replace(large, small)
        exec(compile(block, f"{page}, block {number}", "exec"), shown)
    return shown


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:::transformers")
def test_the_page_about_transformers_runs(tmp_path, monkeypatch, capsys):
    """But for its last block, which needs a training; `tests/integrations/test_transformers_recipes.py` does as much."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.save(create_model("resnest14").state_dict(), "file.pth")
    Image.new("RGB", (300, 280)).save("image.jpg")
    changes = {"resnest50": "resnest14", '"DEFAULT"': '"file.pth"', '"resnest://resnest14"': '"file.pth"'}
    shown = run_blocks("transformers.md", changes, leave_out=1)
    features = shown["backbone"](torch.randn(1, 3, 224, 224)).feature_maps
    assert [tuple(each.shape) for each in features] == [(1, 512, 28, 28), (1, 1024, 14, 14), (1, 2048, 7, 7)]  # as it says


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* always returns a .Losses, Detections. tuple in scripting")
def test_the_page_about_torchvision_runs(tmp_path, monkeypatch, capsys):
    quick = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]
    train([*write_tiny_run(tmp_path), *quick])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_shapes(tmp_path / "shapes", {"train": 8, "val": 2})
    capsys.readouterr()
    changes = {"resnest50": "resnest14", "output/": "out/", "image.png": "images/1.png", "score > 0.5": "score >= 0"}
    shown = run_blocks("torchvision.md", changes)
    printed = capsys.readouterr().out
    assert set(shown["losses"]) > {"loss_mask", "loss_objectness"} and re.search(r"^(red|blue) 0\.\d\d \[", printed, re.MULTILINE)


def test_the_page_names_commands_and_pages_that_there_are():
    page = (DOCS / "getting_started.md").read_text()
    assert set(re.findall(r"resnest-det ([\w-]+)", page)) <= set(COMMANDS)
    for name in re.findall(r"\]\((\w[\w.]*)\)", page):
        assert (DOCS / name).exists(), name
