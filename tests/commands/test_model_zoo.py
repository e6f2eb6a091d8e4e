"""MODEL_ZOO.md: generated, complete, and counted as everything else is."""

import json

import pytest

from resnest_det.backbone.analysis import total
from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.detector.analysis import count_detector
from tools import make_model_zoo as tool


def test_the_page_is_the_generated_one():
    page = tool.page(json.loads(tool.MEASUREMENTS.read_text()))
    assert page == tool.PAGE.read_text(), "run tools/make_model_zoo.py"
    assert all(page.count(f"| [{recipe}](configs/{recipe}.yaml)") == 1 for recipe in tool.recipes())


def test_measurements_are_of_recipes_and_in_known_columns():
    measured = json.loads(tool.MEASUREMENTS.read_text())["recipes"]
    assert set(measured) <= set(tool.recipes())
    for figures in measured.values():
        assert set(figures) <= set(tool.MEASURED) and all(value > 0 for value in figures.values())


def test_measured_figures_are_shown():
    table = tool.table(["mask_rcnn_ResNeSt50_FPN"], {"mask_rcnn_ResNeSt50_FPN": {"inference_seconds": 0.0456}})
    assert "| 42.81 | 38.14 | 0.0456 | not measured | not measured | `resnest://resnest50` |" in table


@pytest.mark.parametrize("config", ["cascade_mask_rcnn_ResNeSt14_FPN_dcn_shapes", "panoptic_ResNeSt14_FPN_shapes"])
def test_a_recipe_is_timed(config, monkeypatch):
    monkeypatch.setattr(tool, "SIZE", (64, 96))
    figures = tool.measure(config)
    assert set(figures) == set(tool.MEASURED) and all(figure > 0 for figure in figures.values())


@pytest.mark.parametrize("config", ["cascade_mask_rcnn_ResNeSt14_FPN_dcn_shapes", "panoptic_ResNeSt14_FPN_shapes"])
def test_counts_from_shapes_are_those_of_a_computed_pass(config):
    cfg = load_config(config, ["MODEL.DEVICE", "cpu"])
    counted = count_detector(build_model(cfg).eval(), (64, 96), cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)
    assert tool.count(cfg, (64, 96)) == (total(counted).parameters, total(counted).multiply_adds)
