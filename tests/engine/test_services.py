"""Curves in services that keep experiments, through their own packages, without any network."""

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from resnest_det.engine.writers import SERVICES, check_services, open_services
from resnest_det.errors import UserError

pytestmark = pytest.mark.extras
OFFLINE = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    "mlflow": {"MLFLOW_TRACKING_URI": ""},
    "clearml": {"CLEARML_OFFLINE_MODE": "1"},
    "comet": {"COMET_START_ONLINE": "0"},
}
# In a process of its own: each of these packages changes what happens at its end, and some other packages.
RUN = textwrap.dedent(
    """
    import sys
    import numpy as np
    from resnest_det.engine.writers import open_services
    name, folder, resumed = sys.argv[1], sys.argv[2], len(sys.argv) > 3
    (writer,) = open_services([name], folder, {"SOLVER.BASE_LR": 0.02, "DATASETS.TRAIN": ("a",)}, resumed=resumed)
    start = 40 if resumed else 0
    for iteration in (19 + start, 39 + start):
        writer.scalars({"total_loss": 100.0 / (iteration + 1), "bbox/AP": float("nan"), "bbox/AP-caf\\u00e9 (x)": 1.5}, iteration)
    writer.image("truth and prediction", np.zeros((8, 8, 3), np.uint8), 39)
    writer.close()
    """
)


def run(name, folder, *more):
    package = SERVICES[name].package
    pytest.importorskip(package)
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, **OFFLINE[name], "HOME": str(folder.parent), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", RUN, name, str(folder), *more], env=environment, capture_output=True, text=True, cwd=folder.parent
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "tracking.json").read_text())[name]


def test_wandb(tmp_path):
    first = run("wandb", tmp_path / "run")
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1 and b"total_loss" in files[0].read_bytes()
    assert run("wandb", tmp_path / "run", "resumed") == first


@pytest.mark.filterwarnings("ignore")  # of its own database
def test_mlflow(tmp_path):
    first = run("mlflow", tmp_path / "run")
    assert run("mlflow", tmp_path / "run", "resumed") == first
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    curve = client.get_metric_history(first, "total_loss")
    assert [(point.step, point.value) for point in curve] == [(19, 5.0), (39, 2.5), (59, 100 / 60), (79, 1.25)]
    assert client.get_run(first).data.params == {"SOLVER.BASE_LR": "0.02", "DATASETS.TRAIN": "('a',)"}
    assert client.get_run(first).data.metrics["bbox/AP-caf\u00e9 _x_"] == 1.5


def test_clearml(tmp_path):
    run("clearml", tmp_path / "run")
    archives = list(tmp_path.rglob("*.zip"))
    assert archives and "task.json" in zipfile.ZipFile(archives[0]).namelist()


def test_comet(tmp_path):
    run("comet", tmp_path / "run")
    (archive,) = (tmp_path / "run").glob("*.zip")
    assert b"total_loss" in zipfile.ZipFile(archive).read("messages.json")


def test_service_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    check_services(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://server")
    with pytest.raises(UserError, match="mlflow cannot be used: .*; without it, leave --track mlflow out"):
        open_services(["mlflow"], str(tmp_path), {}, resumed=False)
