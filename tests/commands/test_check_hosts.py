"""The command check_hosts: what it says of hosts that can be used, and of those that cannot."""

import sys
from importlib.metadata import version
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torchvision

from resnest_det.commands.check_hosts import main
from resnest_det.integrations import detectron2_version, mmdet_version, torchvision_version, transformers_version


def hosts(capsys) -> dict[str, list[str]]:
    """What was printed under each host's name, line by line."""
    main([])
    said = {}
    for line in capsys.readouterr().out.splitlines()[1:]:  # the first is Python's version
        if not line.startswith(" "):
            name, line = line.split(": ", 1)
            said[name] = []
        said[name].append(line.strip())
    return said


def test_hosts_that_are_absent_come_with_the_lines_that_install_them(monkeypatch, capsys):
    monkeypatch.setattr(detectron2_version, "is_installed", lambda name: False)
    monkeypatch.setattr(mmdet_version, "is_installed", lambda name: name == "mmengine")
    monkeypatch.setattr(transformers_version, "is_installed", lambda name: False)
    said = hosts(capsys)
    assert list(said) == ["built-in detector", "Detectron2", "MMDetection", "torchvision", "transformers"]
    assert said["Detectron2"][0].startswith("not usable: Detectron2 is not installed")
    assert "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git" in said["Detectron2"]
    assert said["MMDetection"][0].startswith("not usable: MMDetection needs mmcv and mmdet, not installed")
    assert said["MMDetection"][2].startswith("pip install") and said["MMDetection"][-1].endswith("-e '.[mmdet]'")
    assert said["transformers"][0].startswith("not usable: transformers is not installed; transformers 5.")
    assert said["transformers"][-1] == "pip install -e '.[transformers]'"


def test_built_in_detector_and_the_versions_it_runs_on(capsys):
    (line,) = hosts(capsys)["built-in detector"]
    assert line.startswith(f"usable: torch {torch.__version__}, torchvision {torchvision.__version__}, built for ")
    assert f"CUDA {torch.version.cuda}" in line if torch.version.cuda else "the CPU" in line


def test_torchvision_of_another_torch(monkeypatch, capsys):
    def nms(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    assert hosts(capsys)["built-in detector"] == [
        "not usable: operator torchvision::nms does not exist",
        "what to do, in this project's folder and best in a new environment:",
        "pip install --upgrade torch torchvision",
        "pip install -e .",
    ]


@pytest.mark.parametrize(("has_cuda", "operators"), [(True, "CUDA 12.8"), (False, "the CPU")])
def test_detectron2_and_what_its_operators_run_on(monkeypatch, capsys, has_cuda, operators):
    package, modeling = ModuleType("detectron2"), ModuleType("detectron2.modeling")
    package.__version__, package.__path__, modeling.Backbone = (
        "0.6",
        ["/packages/detectron2"],
        SimpleNamespace(padding_constraints={}),
    )
    package._C = SimpleNamespace(has_cuda=lambda: has_cuda, get_cuda_version=lambda: "12.8")
    monkeypatch.setattr(detectron2_version, "is_installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "detectron2", package)
    monkeypatch.setitem(sys.modules, "detectron2.modeling", modeling)
    assert hosts(capsys)["Detectron2"] == [f"usable: detectron2 0.6 in /packages/detectron2, operators for {operators}"]


def test_torchvision_and_how_many_of_its_models_have_the_backbone(monkeypatch, capsys):
    assert hosts(capsys)["torchvision"] == [
        f"usable: torchvision {torchvision.__version__}, 29 models for torchvision.models.get_model"
    ]
    monkeypatch.setattr(torchvision_version, "OLDEST", "99.0")
    assert hosts(capsys)["torchvision"][0].startswith(f"not usable: torchvision {torchvision.__version__} is too old")


@pytest.mark.extras
def test_transformers_and_its_version(monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    assert hosts(capsys)["transformers"][0].startswith(f"usable: transformers {transformers.__version__}, accelerate ")
    monkeypatch.setattr("resnest_det.commands.check_hosts.is_installed", lambda name: False)
    assert hosts(capsys)["transformers"][0].endswith("no training without accelerate and scipy")


@pytest.mark.mmdet
def test_mmdetection_and_its_versions(capsys):
    (line,) = hosts(capsys)["MMDetection"]
    names = ("onedl-mmcv", "onedl-mmengine", "onedl-mmdetection") if "mmdet 3.5" in line else ("mmcv", "mmengine", "mmdet")
    assert line.startswith("usable: mmcv {}, mmengine {}, mmdet {} in ".format(*map(version, names)))
    assert line.endswith(("operators for the CPU", "operators for CUDA " + str(torch.version.cuda)))
