"""The page: what it shows, through its programming interface and in a browser."""

import json
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_det import Predictor
from resnest_det.commands.train_net import main as train
from resnest_det.errors import UserError
from tests.helpers.browser import DESKTOP, PHONE, opened_tab, overflow
from tests.helpers.page_client import collect_leftovers, free_port, look, opened
from tests.helpers.tiny_run import write_tiny_run

# Gradio's own imports warn of what they use themselves.
pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("gradio")

QUICK = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]


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


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_in_a_browser_and_nothing_comes_from_elsewhere(run, predictor, page, size):
    """What a visitor does: a picture, the slider, a class, the JSON of what is left."""
    expected = predictor(image(run)).to_json() | {"file_name": "1.png"}
    scores, names = [each["score"] for each in expected["detections"]], [each["name"] for each in expected["detections"]]
    with opened_tab(size) as tab:
        asked = []
        tab.on("request", lambda request: asked.append(request.url))

        def says(text: str) -> None:
            tab.wait_for_function("text => document.querySelector('#sentence')?.innerText.includes(text)", arg=text)

        def downloaded() -> dict:
            with tab.expect_download() as download:
                tab.click("#download")
            return json.loads(Path(download.value.path()).read_text())

        tab.goto(page)
        tab.wait_for_selector("#picture input[type=file]", state="attached")
        tab.set_input_files("#picture input[type=file]", image(run))
        says("80 x 64 pixels")
        assert downloaded() == expected
        first = f"{names[0]} {round(scores[0], 3)}"
        tab.wait_for_function(
            "text => document.querySelector('#table').innerText.replace(/\\s+/g, ' ').includes(text)", arg=first
        )
        shown = tab.locator("#found img").evaluate("each => [each.naturalWidth, each.naturalHeight]")
        assert shown == [80, 64] and overflow(tab) <= 0

        middle = round(sorted(scores)[len(scores) // 2], 2)
        slider = tab.locator("#threshold input[type=range]")
        slider.focus()
        slider.press("End")
        says("nothing in 80 x 64")
        assert downloaded()["detections"] == []
        slider.press("Home")
        for _ in range(round(middle * 100)):
            slider.press("ArrowRight")
        left = [each for each in expected["detections"] if each["score"] >= middle]
        says(_counted(left))
        assert downloaded()["detections"] == left

        slider.press("Home")
        tab.click("#classes input")
        tab.get_by_role("option", name="blue").click()
        blue = [each for each in expected["detections"] if each["name"] == "blue"]
        says(_counted(blue) or "nothing")
        assert downloaded()["detections"] == blue and overflow(tab) <= 0
    assert asked and [url for url in asked if not url.startswith((page, "data:", "blob:"))] == []


def _counted(detections: list[dict]) -> str:
    """How the sentence begins."""
    return ", ".join(f"{count} {name}" for name, count in Counter(each["name"] for each in detections).most_common())
