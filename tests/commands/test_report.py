"""The commands report and compare, and what a report advises."""

import json

import numpy as np
import pytest

from resnest_det.commands import compare, report
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.standalone import with_datasets
from resnest_det.data.catalog import CocoFiles, register
from resnest_det.data.statistics import Statistics
from resnest_det.engine.metrics import Metrics
from resnest_det.errors import UserError
from resnest_det.evaluation.bootstrap import Estimate
from resnest_det.inference.advice import advice
from tests.helpers.browser import DESKTOP, PHONE, opened_tab, overflow
from tests.helpers.datasets import write_coco


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Twelve images with an object each, registered as "compared"."""
    folder = tmp_path_factory.mktemp("data")
    box = {"bbox": [20, 20, 60, 50], "area": 3000}
    files = CocoFiles(*write_coco(folder, [(i, 100, 120) for i in range(1, 13)], [box | {"image_id": i} for i in range(1, 13)]))
    register("compared", files)
    return files


def write_run(folder, files, found):
    """A run that has found the objects of the images `found`."""
    (folder / "inference").mkdir(parents=True)
    cfg = load_config("mask_rcnn_ResNeSt14_FPN_shapes", ["DATASETS.TEST", "('compared',)", "DATASETS.TRAIN", "()"])
    (folder / "config.yaml").write_text(with_datasets(cfg, {"compared": files}).dump())
    results = [
        {"image_id": i, "category_id": 1, "bbox": [20, 20, 60, 50], "score": 0.9}
        if i in found
        else {"image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.8}
        for i in range(1, 13)
    ]
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
    return str(folder)


def test_the_better_run_is_found_and_equal_ones_are_not_told_apart(tmp_path, dataset, capsys):
    good = write_run(tmp_path / "good", dataset, range(1, 12))
    bad = write_run(tmp_path / "bad", dataset, range(1, 4))
    compare.main([good, bad, "--draws", "50"])
    assert "A is better: by " in capsys.readouterr().out
    compare.main([bad, good, "--draws", "50"])
    assert "B is better: by " in capsys.readouterr().out
    compare.main([good, good, "--draws", "50"])
    assert "Undecided" in capsys.readouterr().out


@pytest.mark.extras
def test_a_report_stands_alone(tmp_path, dataset, capsys):
    pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "<run>", dataset, range(1, 9))
    report.main([run])
    page = (tmp_path / "<run>" / "report.html").read_text()
    assert "<h1>Run &lt;run&gt;</h1>" in page and "<script" not in page
    assert page.count('src="data:image/') == page.count("<img ") >= 7 and "http" not in page.split("Configuration")[0]
    assert "best threshold" in page and ">1.png: 1 missed" not in page and "12.png: 1 missed, 1 false" in page


@pytest.mark.extras
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_report_fits_a_window_and_its_pictures_stay_readable(tmp_path, dataset, size):
    pytest.importorskip("matplotlib")
    report.main([write_run(tmp_path / "a_run_with_a_long_name", dataset, range(1, 9))])
    with opened_tab(size) as tab:
        tab.goto((tmp_path / "a_run_with_a_long_name" / "report.html").as_uri())
        assert overflow(tab) <= 0
        images = tab.locator("img").evaluate_all("all => all.map(each => [each.width, each.naturalWidth])")
        pairs = tab.locator(".wide img").evaluate_all("all => all.map(each => each.width)")
    assert len(images) >= 7 and all(shown and natural for shown, natural in images)
    # Two pictures side by side have the width of a phone each, or more.
    assert len(pairs) >= 6 and min(pairs) >= 600


def test_folders_that_are_no_runs_are_named(tmp_path, dataset):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        report.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="has no config.yaml"):
        report.main([str(tmp_path)])
    run = write_run(tmp_path / "run", dataset, [1])
    (tmp_path / "run" / "inference" / "coco_instances_results.json").unlink()
    with pytest.raises(UserError, match="has no detections, expected at .*--eval-only"):
        compare.main([run, run])
    with pytest.raises(UserError, match="--draws is 3"):
        compare.main([run, run, "--draws", "3"])


def test_advice_follows_from_the_figures():
    def data(objects):
        sides = np.full((objects, 2), 100.0)
        return Statistics("made", ["cat"], np.full((50, 2), 200.0), sides, np.zeros(objects, int), np.arange(objects) % 50)

    figures = {"AP": 50.0, "APs": float("nan"), "APl": 50.0}
    sure, unsure = Estimate(50.0, 49.0, 51.0, 1.0), Estimate(50.0, 40.0, 60.0, 1.0)
    nothing = advice(figures, sure, {"Cls": 0.0, "Miss": 0.01}, 0.01, data(500), data(500), None)
    assert len(nothing) == 1 and nothing[0].startswith("Nothing stands out")
    falling = Metrics(
        "run", {"total_loss": (list(range(100)), np.linspace(3, 1, 100).tolist()), "bbox/AP": ([1, 2, 3], [5.0, 9.0, 6.0])}
    )
    said = advice(figures, unsure, {"Cls": 0.0, "Miss": 0.1}, 0.3, data(9), data(20), falling)
    begin = [
        "The loss still falls",
        "bbox/AP was best at iteration 2",
        "Most AP50 is lost (10.0",
        "Label more objects of cat (20)",
        "AP is known to 10.0",
        "The AP of cat (9)",
        "Scores differ",
    ]
    assert [line[: len(text)] for line, text in zip(said, begin, strict=True)] == begin
