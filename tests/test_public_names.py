"""Names that the README and the documents have or had stay where they are."""

import importlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("module, name", [
    *[("resnest_det", name) for name in (
        "__version__", "create_model", "list_models", "transforms_for", "load_weights", "resolve_weights", "add_resnest_config",
        "UserError", "model_zoo")],
    ("resnest_det.model_zoo", "get"), ("resnest_det.model_zoo", "get_config"), ("resnest_det.model_zoo", "get_config_file"),
    ("resnest_det.inference.export", "export_model"), ("resnest_det.backbone.export", "export_model"),
    ("resnest_det.engine.precise_bn", "update_batch_norm_statistics"), ("resnest_det.data.catalog", "register_semantic"),
])  # fmt: skip
def test_importable(module, name):
    if name == "model_zoo":
        importlib.import_module("resnest_det.model_zoo")
    assert getattr(importlib.import_module(module), name) is not None


def test_earlier_and_present_name_are_one():
    from resnest_det.backbone.export import export_model as earlier
    from resnest_det.inference.export import export_model

    assert earlier is export_model


def test_tools():
    named = {"analyze_model", "benchmark", "check_hosts", "classify", "convert_weights", "export_model", "prepare_panoptic_fpn"}
    named |= {"to_mmdet", "train_net", "verify_imagenet", "make_model_zoo"}
    assert named <= {name.removesuffix(".py") for name in os.listdir(ROOT / "tools")}
