"""The server: answers, batches, limits, clients that hang up, and the end."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_det import Predictor
from resnest_det.commands.train_net import main as train
from resnest_det.errors import UserError
from resnest_det.inference.batching import Batcher
from tests.helpers.commands import ROOT
from tests.helpers.http_load import as_form, ask, ask_all, running
from tests.helpers.tiny_run import write_tiny_run

pytestmark = pytest.mark.extras
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")
server_module = pytest.importorskip("resnest_det.inference.server")

QUICK = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]
LIMITS = server_module.Limits(upload=200_000, pixels=1_000_000, seconds=30, waiting=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    train([*write_tiny_run(folder), *QUICK])
    return folder / "out"


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run, device="cpu", score_threshold=0)


@pytest.fixture(scope="module")
def images(run):
    return [(run.parent / "images" / f"{number}.png").read_bytes() for number in range(1, 7)]


def start(predictor, limits=LIMITS, **options):
    app = server_module.make_app(predictor, limits, **options)
    return running(server_module.make_server(app, limits), server_module.listen("127.0.0.1", 0))


@pytest.fixture(scope="module")
def port(predictor):
    with start(predictor) as port:
        yield port


class Slow:
    """A predictor whose model waits until it is told to go on."""

    def __init__(self, predictor, monkeypatch):
        self.go, self.batches = threading.Event(), []
        detect = predictor.backend.detect

        def waiting(samples):
            self.batches.append(len(samples))
            assert self.go.wait(60)
            return detect(samples)

        monkeypatch.setattr(predictor, "backend", replace(predictor.backend, detect=waiting))


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def metric(port, name):
    status, text = ask(port, "/metrics")
    assert status == 200
    found = re.search(rf"^resnest_det_{re.escape(name)} (\S+)$", text.decode(), re.MULTILINE)
    return float(found[1]) if found else 0


def detail(answer):
    """The one line of an error."""
    line = json.loads(answer[1])["detail"]
    assert "\n" not in line and len(line) < 600
    return answer[0], line


def test_an_image_alone_has_the_numbers_of_predict(run, predictor, images, port):
    for number in (1, 2):
        path = str(run.parent / "images" / f"{number}.png")
        expected = predictor(path).to_json() | {"file_name": f"{number}.png"}
        body, headers = as_form(images[number - 1], f"C:/photos/{number}.png")
        status, answer = ask(port, "/predict", body, headers)
        assert status == 200 and json.loads(answer) == expected and len(expected["detections"]) > 1
        status, answer = ask(port, "/predict", images[number - 1], {"Content-Type": "application/x-www-form-urlencoded"})
        of_body = json.loads(answer)
        assert status == 200 and [each["bbox"] for each in of_body["detections"]] == [
            each["bbox"] for each in expected["detections"]
        ]


def test_what_waits_together_is_one_batch_of_images_of_one_shape(predictor, images, monkeypatch):
    slow = Slow(predictor, monkeypatch)
    with start(predictor, batch=4) as port:
        first = threading.Thread(target=ask, args=(port, "/predict", images[0]))
        first.start()
        until(lambda: slow.batches)
        answers = []
        others = threading.Thread(target=lambda: answers.extend(ask_all(port, images, 6)))
        others.start()
        until(lambda: metric(port, "images_waiting") == 6)
        slow.go.set()
        first.join()
        others.join()
        assert sorted(slow.batches) == [1, 3, 3]  # three lie and three stand
        assert [json.loads(body)["height"] for _, body in answers] == [64, 80] * 3
        assert metric(port, "images_total") == 7 and metric(port, "batches_total") == 3


def test_many_at_once_good_and_bad_each_get_their_own_answer(predictor, images, port):
    half = images[0][: len(images[0]) // 2]
    kinds = [(images[0], 200, 64), (images[1], 200, 80), (b"no image", 400, None), (half, 400, None), (bytes(300_000), 413, None)]
    asked = [kinds[index % len(kinds)] for index in range(100)]
    before = metric(port, 'requests_total{status="200"}')
    answers = ask_all(port, [body for body, _, _ in asked], 25)
    for (_, expected, height), (status, body) in zip(asked, answers, strict=True):
        assert status == expected and (height is None or json.loads(body)["height"] == height)
    assert metric(port, 'requests_total{status="200"}') == before + 40 and metric(port, "requests_open") == 0
    assert metric(port, "request_seconds_count") >= 100


def png(width, height):
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_bad_requests_are_one_line(images, port):
    unreadable = (400, "image upload cannot be read, it is damaged or not an image: ")
    for body, (expected, line) in (
        (b"no image at all", unreadable),
        (images[0][:900], unreadable),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", unreadable),  # Pillow would run Ghostscript
        (b"", (400, "there is no image in the request")),
        (bytes(200_001), (413, "the image's file is larger than 200000 bytes")),
        (png(1001, 1000), (413, "image upload is 1001 x 1000 pixels; at most 1000000 are taken")),
        (png(20_000, 20_000), (400, "upload has too many pixels")),
    ):
        status, said = detail(ask(port, "/predict", body))
        assert status == expected and said.startswith(line), said
    for (body, headers), line in (
        (as_form(images[0], "a.png", field="image"), "the form has no file in its field `file`"),
        (as_form(b"text", "a\x1b[31m.png"), r"image a\x1b[31m.png cannot be read"),
        ((images[0], {"Content-Type": "multipart/form-data"}), "the form cannot be read: "),
        ((images[0], {"Content-Type": "multipart/form-data; boundary=x"}), "the form cannot be read: "),
    ):
        status, said = detail(ask(port, "/predict", body, headers))
        assert status == 400 and said.startswith(line), said
    assert detail(ask(port, "/predict", *as_form(bytes(300_000), "a.png")))[0] == 413
    parts = (bytes(50_000) for _ in range(6))  # of a length that nobody says
    assert detail(ask(port, "/predict", parts))[0] == 413
    assert ask(port, "/predict")[0] == 405 and ask(port, "/docs")[0] == 404
    assert ask(port, "/predict", images[0])[0] == 200


def test_who_hangs_up_costs_nothing(predictor, images, monkeypatch):
    slow = Slow(predictor, monkeypatch)
    with start(predictor, batch=1) as port:
        first = threading.Thread(target=ask, args=(port, "/predict", images[0]))
        first.start()
        until(lambda: slow.batches)
        head = f"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: {len(images[0])}\r\n\r\n".encode()
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        for each in waiting:
            each.sendall(head + images[0])
        until(lambda: metric(port, "images_waiting") == 4)
        half = socket.create_connection(("127.0.0.1", port))
        half.sendall(head + images[0][:100])
        for each in (*waiting, half):
            each.close()
        until(lambda: metric(port, 'requests_total{status="499"}') == 5)
        slow.go.set()
        first.join()
        assert ask(port, "/predict", images[1])[0] == 200
        assert slow.batches == [1, 1] and metric(port, "images_total") == 2


def test_too_many_and_too_long(predictor, images, monkeypatch):
    slow = Slow(predictor, monkeypatch)
    with start(predictor, replace(LIMITS, seconds=0.5, waiting=1)) as port:
        answers = []
        first = threading.Thread(target=lambda: answers.append(detail(ask(port, "/predict", images[0]))))
        first.start()
        until(lambda: metric(port, "requests_open") == 1)
        assert detail(ask(port, "/predict", images[0])) == (503, "1 requests are being answered: try again")
        first.join()
        assert answers == [(503, "no answer within 0.5 s: try again")]
        slow.go.set()
        with socket.create_connection(("127.0.0.1", port)) as dawdling:
            dawdling.sendall(b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\n")
            assert dawdling.recv(100).startswith(b"HTTP/1.1 408")


def test_a_model_that_fails_fails_one_image_alone(predictor, images, monkeypatch):
    detect = predictor.backend.detect

    def failing(samples):
        if len(samples) > 1 or samples[0]["height"] == 80:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return detect(samples)

    monkeypatch.setattr(predictor, "backend", replace(predictor.backend, detect=failing))
    with start(predictor, window=0.2) as port:
        answers = ask_all(port, images, 6)
        assert [status for status, _ in answers] == [200, 503] * 3
        assert "memory ran out" in detail(answers[1])[1]
        status, body = ask(port, "/health")
        assert status == 200 and json.loads(body)["classes"] == ["red", "blue"]


def test_maps_are_png_files(predictor, images):
    result = predictor(images[0])
    kind = replace(result.classes.things, names=("sky", "road"))
    ids = torch.zeros(64, 80, dtype=torch.int32)
    ids[:, :9] = 7
    found = replace(result, segment_map=ids, segments=[{"id": 7, "name": "sky", "isthing": False}])
    answer = json.loads(server_module._json(found))
    with Image.open(io.BytesIO(base64.b64decode(answer["panoptic_png"]))) as picture:
        assert answer["segments"][0]["id"] == 7 and np.array_equal(np.asarray(picture)[:, :, 0], ids.numpy())
    labels = replace(result, classes=replace(result.classes, stuff=kind), label_map=(ids > 0).long())
    with Image.open(io.BytesIO(base64.b64decode(json.loads(server_module._json(labels))["label_png"]))) as picture:
        assert np.array_equal(np.asarray(picture), labels.label_map.numpy())


def test_a_batcher_that_closes_looks_at_what_waits(predictor, images):
    batcher = Batcher(predictor, window=5)
    futures = [batcher.submit(*batcher.prepared(content, "x")) for content in images]
    batcher.close()
    assert [future.result(0).height for future in futures] == [64, 80] * 3 and not batcher.works
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(*batcher.prepared(images[0], "x"))


def test_a_port_in_use_is_one_line():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=r"port \d+ cannot be listened at \(Address already in use\): give another"),
    ):
        server_module.listen("127.0.0.1", taken.getsockname()[1])


def test_sigterm_answers_what_was_asked_and_ends(run, images):
    command = [sys.executable, str(ROOT / "tools" / "serve.py"), str(run), "--port", "0", "--window", "1000", "--device", "cpu"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    try:
        port = int(re.search(r"http://127.0.0.1:(\d+)/predict", process.stdout.readline())[1])
        answers = []
        client = threading.Thread(target=lambda: answers.append(ask(port, "/predict", images[0])))
        client.start()
        until(lambda: metric(port, "images_waiting") == 1)
        process.send_signal(signal.SIGTERM)
        client.join()
        assert process.wait(30) == 128 + signal.SIGTERM and process.stderr.read() == "terminated\n"
        assert answers[0][0] == 200
        with pytest.raises(OSError):
            ask(port, "/health")
    finally:
        process.kill()
        process.communicate()
