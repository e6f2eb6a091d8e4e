"""The page: what it shows, through its programming interface and in a browser."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_det import Predictor
from resnest_det.commands.train_net import main as train
from resnest_det.errors import UserError
from tests.helpers.page_client import collect_leftovers, free_port, look, opened
from tests.helpers.tiny_run import write_tiny_run

# Gradio's own imports warn of what they use themselves.
pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("gradio")

QUICK = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module", autouse=True)
def leftovers():
    yield
    collect_leftovers()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    train([*write_tiny_run(folder), *QUICK])
    return folder / "out"


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run, device="cpu", score_threshold=0)


@pytest.fixture(scope="module")
def page(predictor, tmp_path_factory):
    """The address of the page."""
    from resnest_det.inference.demo_page import make_page, open_page

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")  # is put back afterwards
        page = make_page(predictor, 0.0, 10_000, str(tmp_path_factory.mktemp("page")))
        yield open_page(page, "127.0.0.1", free_port(), 100_000)
        page.close(verbose=False)


@pytest.fixture
def client(page, tmp_path):
    from gradio_client import Client

    client = Client(page, verbose=False, download_files=str(tmp_path), analytics_enabled=False)
    yield client
    client.close()


def image(run, number=1):
    return str(run.parent / "images" / f"{number}.png")


def test_what_is_found_is_drawn_counted_listed_and_given_as_json(run, predictor, client):
    expected = predictor(image(run))
    picture, sentence, rows, found = look(client, image(run))
    with Image.open(picture) as drawn:
        difference = [
            np.abs(np.asarray(drawn.convert("L"), dtype=float) - np.asarray(picture.convert("L"))).mean()
            for picture in (expected.draw(), Image.open(image(run)))
        ]
        assert drawn.size == (80, 64) and difference[0] < 8 and difference[1] > 3 * difference[0], difference  # it is a JPEG
    assert found == expected.to_json() | {"file_name": "1.png"}
    assert [row[0] for row in rows] == expected.names and "in 80 x 64 pixels; 0." in sentence
    assert f"{expected.names.count('red')} red" in sentence


def test_the_threshold_and_the_classes_need_no_model(run, predictor, client, monkeypatch):
    expected = predictor(image(run))
    look(client, image(run))
    middle = float(expected.scores[len(expected) // 2])
    monkeypatch.setattr(predictor, "backend", replace(predictor.backend, detect=None))
    for threshold, classes in ((middle, []), (0.0, ["blue"]), (1.0, [])):
        kept = expected.scores >= threshold
        kept &= torch.tensor([name in (classes or ("red", "blue")) for name in expected.names])
        _, sentence, rows, found = opened(client.predict(threshold, classes, api_name="/show"))
        assert len(rows) == len(found["detections"]) == int(kept.sum())
        assert threshold < 1 or sentence.startswith("nothing in 80 x 64")


def test_what_cannot_be_used_is_said_and_the_page_goes_on(run, client, tmp_path):
    text, large, heavy = tmp_path / "text.png", tmp_path / "large.png", tmp_path / "heavy.png"
    text.write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    Image.new("L", (101, 100)).save(large)
    heavy.write_bytes(bytes(100_001))
    for path, said in ((text, "image text.png cannot be read"), (large, "image large.png is 101 x 100 pixels; at most 10000")):
        picture, sentence, rows, found = look(client, str(path))
        assert sentence.startswith(said) and picture is None and rows == [] and found is None
    with pytest.raises(Exception, match=r"(?i)413|exceed|size"):
        look(client, str(heavy))
    assert look(client, image(run, 2))[3]["height"] == 80


def test_segments_that_are_not_chosen_leave_the_map(run, predictor):
    from resnest_det.inference.demo_page import chosen

    result = predictor(image(run))
    segments = [
        {"id": 1, "name": "red", "isthing": True, "score": 0.9},
        {"id": 2, "name": "blue", "isthing": True, "score": 0.4},
        {"id": 3, "name": "sky", "isthing": False},
    ]
    panoptic = replace(result, segments=segments, segment_map=torch.tensor([[1, 2], [3, 0]], dtype=torch.int32))
    for threshold, classes, ids in ((0.5, [], [1, 3]), (0.0, ["blue"], [2, 3]), (0.0, [], [1, 2, 3])):
        found = chosen(panoptic, threshold, classes)
        assert [each["id"] for each in found.segments] == ids
        assert sorted(found.segment_map.unique().tolist()) == [0, *ids] and found.segment_map.dtype == torch.int32


def test_a_port_in_use_is_one_line(predictor, tmp_path, monkeypatch):
    from resnest_det.inference.demo_page import make_page, open_page

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    page = make_page(predictor, 0.5, 10_000, str(tmp_path))
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(
            UserError, match=r"127.0.0.1 port \d+ cannot be listened at \(it is in use\): give another --host or --port"
        ),
    ):
        open_page(page, "127.0.0.1", taken.getsockname()[1], 100_000)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_in_a_browser_and_nothing_comes_from_elsewhere(run, predictor, page):
    playwright = pytest.importorskip("playwright.sync_api")
    expected = predictor(image(run))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab, asked = browser.new_page(), []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page)
        tab.wait_for_selector("#picture input[type=file]", state="attached")
        tab.set_input_files("#picture input[type=file]", image(run))
        tab.wait_for_function("document.querySelector('#sentence')?.innerText.includes('80 x 64 pixels')")
        with tab.expect_download() as download:
            tab.click("#download")
        assert json.loads(Path(download.value.path()).read_text()) == expected.to_json() | {"file_name": "1.png"}
        tab.fill("#threshold input[type=number]", "1")
        tab.press("#threshold input[type=number]", "Tab")
        tab.wait_for_function("document.querySelector('#sentence').innerText.startsWith('nothing')")
        browser.close()
    assert asked and [url for url in asked if not url.startswith((page, "data:", "blob:"))] == []
