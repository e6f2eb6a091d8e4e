"""`Predictor`: what it takes, and what it gives."""

import http.server
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_det import Predictor
from resnest_det.commands.train_net import main
from resnest_det.configuration.reading import load_config
from resnest_det.data.benchmarks import benchmark_classes
from resnest_det.data.coco_classes import coco_classes
from resnest_det.detector.postprocess import CompactMasks
from resnest_det.errors import UserError
from resnest_det.inference.classes import classes_of
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.tiny_run import write_tiny_run

QUICK = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a tiny run, evaluated at its end; images are in `../images`."""
    folder = tmp_path_factory.mktemp("predicted")
    main([*write_tiny_run(folder), *QUICK])
    return folder / "out"


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run / "model_final.pth", device="cpu", score_threshold=0)


def image(run, number=1):
    return str(run.parent / "images" / f"{number}.png")


def test_the_numbers_are_those_of_eval_only(run, predictor):
    expected = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    found = [entry for number in range(1, 7) for entry in predictor(image(run, number)).to_coco()]
    assert json.loads(json.dumps(found)) == expected and len(expected) > 6


def test_everything_that_an_image_comes_as(run, predictor):
    path = image(run)
    pixels = np.asarray(Image.open(path))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    expected = predictor(path).to_coco(0)
    for source in (pixels, Path(path).read_bytes(), Image.open(path), tensor, tensor / 255, Image.open(path).convert("RGBA")):
        assert predictor(source).to_coco(0) == expected
    assert predictor(pixels[None], batch=1)[0].to_coco(0) == expected
    gray = predictor(pixels[:, :, 0])
    assert gray.file_name == "image 0" and (gray.height, gray.width) == pixels.shape[:2]


def test_a_list_of_mixed_sizes_is_one_batch(run, predictor, monkeypatch):
    sizes = []
    detect = predictor.backend.detect
    counting = replace(predictor.backend, detect=lambda samples: sizes.append(len(samples)) or detect(samples))
    monkeypatch.setattr(predictor, "backend", counting)
    paths = [image(run, number) for number in range(1, 6)]
    results = predictor(paths, batch=2)
    assert sizes == [2, 2, 1] and [result.file_name for result in results] == paths
    assert {(result.height, result.width) for result in results} == {(64, 80), (80, 64)}
    alone = predictor(paths[1])
    # Padding differs, and with it the last digits.
    assert torch.allclose(results[1].scores[:1], alone.scores[:1], atol=0.05)


def test_what_a_result_says(run, predictor):
    result = predictor(image(run))
    assert len(result) == len(result.boxes) == len(result.scores) == len(result.names) > 1
    assert result.names == [("red", "blue")[index] for index in result.class_ids.tolist()]
    assert result.category_ids.tolist() == [index + 1 for index in result.class_ids.tolist()]
    assert isinstance(result.masks, CompactMasks) and result.masks.probabilities.shape[1:] == (28, 28)
    assert result.pred_masks.shape == (len(result), 64, 80) and torch.equal(result.masks[1], result.pred_masks[1])
    assert torch.equal(torch.stack(list(result.masks)), result.pred_masks)
    assert (result.scores.diff() <= 0).all()
    assert not result.boxes.is_inference()
    as_torchvision = result.to_torchvision()
    assert as_torchvision["labels"].min() >= 1 and as_torchvision["masks"].shape == (len(result), 1, 64, 80)
    assert result.chosen(result.class_ids == 0).names == ["red"] * int((result.class_ids == 0).sum())


def test_thresholds_and_classes(run, predictor):
    everything = predictor(image(run))
    middle = float(everything.scores[len(everything) // 2])
    found = Predictor(run, score_threshold=middle, classes=["2"])(image(run))
    kept = (everything.scores >= middle) & (everything.class_ids == 1)
    assert torch.equal(found.boxes, everything.boxes[kept]) and set(found.names) <= {"blue"}
    empty = Predictor(run, score_threshold=1)(image(run))
    assert len(empty) == 0 and empty.to_coco() == [] and empty.pred_masks.shape == (0, 64, 80) and empty.draw().size == (80, 64)


def test_saving_and_drawing(run, predictor, tmp_path):
    result = predictor(image(run))
    before = result.rgb().copy()
    picture = result.draw()
    assert picture.size == (80, 64) and not np.array_equal(np.asarray(picture), before)
    result.save(tmp_path / "a.png")
    result.save(tmp_path / "a.json")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.size == (80, 64)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["width"] == 80 and [each["name"] for each in content["detections"]] == result.names
    with pytest.raises(UserError, match=r"a.txt: results are saved as .jpg, .*json"):
        result.save(tmp_path / "a.txt")
    with pytest.raises(UserError, match="absent/a.png cannot be written"):
        result.save(tmp_path / "absent" / "a.png")


@pytest.mark.extras
def test_what_other_libraries_take(run, predictor):
    supervision, pandas = pytest.importorskip("supervision"), pytest.importorskip("pandas")
    result = predictor(image(run))
    own, theirs = result.to_supervision(), supervision.Detections.from_detectron2(result)
    for name in ("xyxy", "confidence", "class_id", "mask"):
        assert np.array_equal(getattr(own, name), getattr(theirs, name)), name
    assert own["class_name"].tolist() == result.names
    table = result.to_pandas()
    assert isinstance(table, pandas.DataFrame) and table["name"].tolist() == result.names and len(table.columns) == 9


def test_ways_to_name_a_model(run, tmp_path, monkeypatch):
    expected = Predictor(run)(image(run)).to_coco()
    assert Predictor(run / "config.yaml")(image(run)).to_coco() == expected
    checkpoint = read_checkpoint(run / "model_final.pth")
    torch.save({"model": checkpoint["model"]}, tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match="weights.pth has no configuration in it .*: give the YAML file or the name of the recipe"
    ):
        Predictor(tmp_path / "weights.pth")
    # The configuration of the run says what the classes are called, too.
    named = Predictor(run / "config.yaml", tmp_path / "weights.pth")
    assert named.classes.things.names == ("red", "blue") and named(image(run)).to_coco() == expected


def test_classes_that_nobody_names_are_numbers(run, tmp_path, caplog):
    torch.save({"model": read_checkpoint(run / "model_final.pth")["model"]}, tmp_path / "weights.pth")
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {run.parent / 'tiny.yaml'}\n")
    classes = Predictor(tmp_path / "mine.yaml", tmp_path / "weights.pth").classes.things
    assert classes.names == ("thing 0", "thing 1") and classes.ids == (0, 1)
    assert "nothing says what its classes are called" in caplog.text


def test_published_detectors_have_the_classes_of_coco():
    classes = classes_of(load_config("panoptic_cascade_ResNeSt200_FPN_3x"), coco_classes(), "published")
    assert (len(classes.things.names), len(classes.stuff.names), classes.stuff.names[0]) == (80, 54, "things")
    # Of COCO's panoptic_coco_categories.json; in its order, from 1 on, Detectron2 counts them.
    named = dict(zip(classes.stuff.names, classes.stuff.ids, strict=True))
    assert named["banner"] == 92 and named["sky-other-merged"] == 187 and classes.stuff.names[-1] == "rug-merged"
    assert list(classes.stuff.ids) == sorted(set(classes.stuff.ids)) and classes.things.ids[-1] == 90
    objects = classes_of(load_config("mask_rcnn_ResNeSt50_FPN"), coco_classes(), "published")
    assert objects.things == classes.things and not objects.stuff.names


@pytest.mark.parametrize(
    "recipe, count, first, last",
    [
        ("deeplabv3_ResNeSt50_ade20k", 150, "wall", "flag"),
        ("fcn_ResNeSt50_pascal_context", 59, None, None),
        ("deeplabv3plus_ResNeSt50_cityscapes", 19, "road", "bicycle"),
    ],
)
def test_published_semantic_models_have_the_classes_of_their_benchmark(recipe, count, first, last):
    cfg = load_config(recipe)
    classes = classes_of(cfg, benchmark_classes(cfg.DATASETS.TEST[0]), "published")
    assert len(classes.stuff.names) == len(set(classes.stuff.names)) == count and not classes.things.names
    if first:
        assert classes.stuff.names[0].startswith(first) and classes.stuff.names[-1] == last
    assert benchmark_classes("coco_2017_val") == {}


@pytest.mark.parametrize(
    "trained_on, message",
    [
        ({"thing_classes": ["red"]}, r"thing_classes \['red'\] are not the names of 2 classes"),
        ({"thing_classes": "red"}, "thing_classes 'red' are not the names"),
        ({"thing_classes": ["red", "a\nb"]}, "thing_classes: .* has a control character"),
        ({"thing_classes": ["red", "blue"], "thing_ids": [1]}, r"thing_ids \[1\] are not the ids of 2 classes"),
        ({"thing_classes": ["red", "blue"], "thing_colors": [[1, 2, 3], [1, 2, 999]]}, "color must be three whole numbers"),
    ],
)
def test_what_a_checkpoint_says_of_its_classes_is_checked(run, tmp_path, trained_on, message):
    checkpoint = read_checkpoint(run / "model_final.pth") | {"trained_on": trained_on}
    torch.save(checkpoint, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message) as error:
        Predictor(tmp_path / "a.pth")
    assert "a.pth" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["absent.pth"], "absent.pth: there is no such file or folder, and no recipe"),
        (["mask_rcnn_ResNeSt50"], "mask_rcnn_ResNeSt50 is no checkpoint, run folder or configuration here, and no recipe"),
        (["{images}"], "images is not the folder of a run with a checkpoint"),
        (["{run}", None, "gpu"], "device 'gpu' is not supported; supported: 'auto', 'cpu', 'cuda'"),
        (["{run}", None, "auto", 2], "score_threshold is 2, expected a number from 0 to 1"),
        (["{run}", None, "auto", 0.5, ["rad"]], "the model has no class 'rad'; nearest: red"),
        (["mask_rcnn_ResNeSt50_FPN", "{run}/model_final.pth"], "model_final.pth"),
        (["{images}/1.png"], "1.png is not a checkpoint"),
    ],
)
def test_models_that_cannot_be_used(run, arguments, message):
    arguments = [each.format(run=run, images=run.parent / "images") if isinstance(each, str) else each for each in arguments]
    with pytest.raises(UserError, match=message) as error:
        Predictor(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source, message",
    [
        ("absent.jpg", "image absent.jpg does not exist"),
        (np.zeros((4, 4, 3)), "image 0 is an array of shape .* float64, expected"),
        (np.zeros((0, 4, 3), np.uint8), "image 0 is an array of shape"),
        (torch.full((3, 4, 4), 2.0), "a tensor of floats has values from 0 to 1"),
        ([{}], "image 0 is a dict, expected a path"),
        (b"abc", "image image 0 cannot be read, it is damaged or not an image"),
        ("http://127.0.0.1:9/a.jpg", "image http://127.0.0.1:9/a.jpg cannot be fetched: "),
    ],
)
def test_images_that_cannot_be_used(predictor, source, message):
    with pytest.raises(UserError, match=message):
        predictor(source)


def test_an_address(run, predictor):
    content = Path(image(run)).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if "absent" in self.path else 200)
            self.end_headers()
            self.wfile.write(b"<html>" if "page" in self.path else content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert predictor(f"{address}/1.png").to_coco() == predictor(image(run)).to_coco()
        with pytest.raises(UserError, match="absent.png cannot be fetched: HTTP 404"):
            predictor(f"{address}/absent.png")
        with pytest.raises(UserError, match=f"image {address}/page.png is a web page, not the file itself"):
            predictor(f"{address}/page.png")
    finally:
        server.shutdown()
        server.server_close()
