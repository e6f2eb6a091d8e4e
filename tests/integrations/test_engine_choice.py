"""Which detector runs, and what is said where Detectron2 is wanted and cannot be had."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
from fvcore.common.config import CfgNode

import resnest_det
from resnest_det.commands import train_net
from resnest_det.configuration.defaults import RESNEST_KEYS
from resnest_det.errors import UserError

CONFIG = ["--config-file", "mask_rcnn_ResNeSt50_FPN", "--engine", "detectron2"]


@pytest.fixture
def fake_detectron2(monkeypatch):
    """A Detectron2 with an empty `Backbone`, as release 0.6 has it."""
    package, modeling = ModuleType("detectron2"), ModuleType("detectron2.modeling")
    package.__version__, package.__path__, modeling.Backbone = "0.6", ["/site-packages/detectron2"], type("Backbone", (), {})
    monkeypatch.setitem(sys.modules, "detectron2", package)
    monkeypatch.setitem(sys.modules, "detectron2.modeling", modeling)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin="__init__.py"))
    return modeling


def test_auto_takes_detectron2_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(train_net, "is_installed", lambda name: True)
    assert list(map(train_net.choose_engine, ("auto", "builtin", "detectron2"))) == ["detectron2", "builtin", "detectron2"]
    monkeypatch.setattr(train_net, "is_installed", lambda name: False)
    assert list(map(train_net.choose_engine, ("auto", "builtin", "detectron2"))) == ["builtin", "builtin", "detectron2"]


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["absent", "a folder of that name"])
def test_without_detectron2_the_error_says_how_to_get_it(monkeypatch, spec):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="Detectron2 is not installed; .*install.html.*--engine builtin") as error:
        train_net.main(CONFIG)
    assert "\n" not in str(error.value)


def test_too_old_a_detectron2_is_named(fake_detectron2):
    with pytest.raises(UserError, match="Detectron2 0.6 in /site-packages/detectron2 is too old.*--engine builtin"):
        train_net.main(CONFIG)


def test_detectron2_that_cannot_be_imported(fake_detectron2):
    del fake_detectron2.Backbone
    with pytest.raises(UserError, match="cannot be imported: .*Backbone.*--engine builtin"):
        train_net.main(CONFIG)


def test_keys_are_added_without_detectron2():
    cfg = CfgNode({"MODEL": {"RESNETS": {"DEPTH": 50, "STRIDE_IN_1X1": True}}})
    resnest_det.add_resnest_config(cfg)
    assert dict(cfg.MODEL.RESNETS) | RESNEST_KEYS == dict(cfg.MODEL.RESNETS)
    assert cfg.MODEL.RESNETS.DEPTH == 50 and cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    cfg.MODEL.RESNETS.CHECKPOINT_STAGES.append("res2")
    assert RESNEST_KEYS["CHECKPOINT_STAGES"] == []
