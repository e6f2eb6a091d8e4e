"""`Predictor` with models that label pixels."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from resnest_det import Predictor
from resnest_det.commands.export_detector import main as export
from resnest_det.commands.predict import main as predict
from resnest_det.commands.train_net import main
from resnest_det.data.panoptic_png import read_segment_ids
from resnest_det.errors import UserError
from tests.helpers.configs import TINY_PANOPTIC, typed
from tests.helpers.datasets import write_panoptic_shapes
from tests.helpers.http_load import ask, running
from tests.helpers.page_client import collect_leftovers, free_port, look

LOW = "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", "0.0", "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "16"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a tiny panoptic run, and the images it was evaluated on."""
    folder = tmp_path_factory.mktemp("pixels")
    register = write_panoptic_shapes(folder, {"train": 4, "val": 2}, without_instances=["train"])
    keys = TINY_PANOPTIC | {"DATASETS.TRAIN": (f"{folder.name}_train",), "DATASETS.TEST": (f"{folder.name}_val",)}
    main(["--config-file", "panoptic_ResNeSt14_FPN_shapes", *register, *typed(keys | {"OUTPUT_DIR": folder / "out"}), *LOW])
    return folder / "out", sorted(folder.rglob("val/*.png"))


def test_panoptic_maps_are_those_of_the_evaluation(run, tmp_path):
    folder, images = run
    predictor = Predictor(folder, score_threshold=0)
    written = json.loads((folder / "inference" / "panoptic_predictions.json").read_text())["annotations"]
    found = 0
    for image in images:
        result = predictor(image)
        entry = next(each for each in written if each["image_id"] == int(image.stem))
        ids = read_segment_ids(str(folder / "inference" / "panoptic_predictions" / entry["file_name"]))
        assert np.array_equal(result.segment_map.numpy(), ids)
        assert {each["id"]: each["category_id"] for each in result.segments} == {
            each["id"]: each["category_id"] for each in entry["segments_info"]
        }
        assert all(each["area"] == (ids == each["id"]).sum() for each in result.segments)
        found += len(result.segments)
        assert result.draw().size == (result.width, result.height) and result["panoptic_seg"][1] is result.segments
        assert result.label_map.shape == (result.height, result.width)
        result.save(tmp_path / "a.json")
        assert json.loads((tmp_path / "a.json").read_text())["segments"] == result.segments
    assert found
    named = {each["name"] for each in result.segments}
    assert named <= {*predictor.classes.things.names, *predictor.classes.stuff.names[1:]}

    predict([str(folder), *map(str, images), "--output", str(tmp_path / "found"), "--save-masks"])
    ids = read_segment_ids(str(tmp_path / "found" / "panoptic" / f"{image.stem}.png"))
    assert np.array_equal(ids, result.segment_map.numpy())
    with pytest.raises(UserError, match="--tile joins objects, and this model labels pixels"):
        predict([str(folder), str(images[0]), "--output", str(tmp_path / "tiled"), "--tile", "64x64"])


@pytest.fixture(scope="module", params=["checkpoint", "exported"])
def panoptic(request, run, tmp_path_factory):
    """A predictor of the run's folder, or of the file that was exported from it."""
    folder = run[0]
    if request.param == "checkpoint":
        return Predictor(folder, device="cpu", score_threshold=0)
    file = str(tmp_path_factory.mktemp("exported") / "m.pt")
    model = ["--config-file", str(folder / "config.yaml"), "--weights", str(folder / "model_final.pth")]
    export([*model, "--format", "torchscript", "--out", file])
    return Predictor(file, score_threshold=0)


@pytest.mark.extras
def test_the_server_gives_maps(run, panoptic):
    for package in ("fastapi", "uvicorn", "python_multipart"):
        pytest.importorskip(package)
    from resnest_det.inference import server

    expected, limits = panoptic(run[1][0]), server.Limits()
    app = server.make_app(panoptic, limits)
    with running(server.make_server(app, limits), server.listen("127.0.0.1", 0)) as port:
        status, body = ask(port, "/predict", run[1][0].read_bytes())
    answer = json.loads(body)
    assert status == 200 and answer["segments"] == expected.segments and expected.segments
    with Image.open(io.BytesIO(base64.b64decode(answer["panoptic_png"]))) as picture:
        assert np.array_equal(np.asarray(picture) @ (1, 256, 65536), expected.segment_map.numpy())


@pytest.fixture
def leftovers():
    yield
    collect_leftovers()


@pytest.mark.extras
@pytest.mark.usefixtures("leftovers")
@pytest.mark.filterwarnings("ignore")  # gradio's own imports warn of what they use themselves
def test_the_page_shows_segments(run, panoptic, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    from gradio_client import Client

    from resnest_det.inference import demo_page

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # is put back afterwards
    expected = panoptic(run[1][0])
    page = demo_page.make_page(panoptic, 0.0, 10_000, str(tmp_path))
    client = Client(demo_page.open_page(page, "127.0.0.1", free_port(), 100_000), verbose=False, download_files=str(tmp_path))
    picture, sentence, rows, found = look(client, str(run[1][0]))
    client.close()
    page.close(verbose=False)
    assert found["segments"] == expected.segments and len(rows) == len(expected)
    assert all(each["name"] in sentence for each in expected.segments)
    with Image.open(picture) as drawn:
        difference = np.abs(np.asarray(drawn.convert("L"), dtype=float) - np.asarray(expected.draw().convert("L"))).mean()
        assert drawn.size == (expected.width, expected.height) and difference < 8  # it is a JPEG


def test_a_semantic_model_gives_label_maps(run, tmp_path):
    folder, images = run
    keys = TINY_PANOPTIC | {
        "DATASETS.TRAIN": (f"{folder.parent.name}_train",),
        "DATASETS.TEST": (),
        "OUTPUT_DIR": tmp_path / "out",
    }
    keys |= {"MODEL.RESNETS.DEPTH": 14, "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4, "MODEL.WEIGHTS": ""}
    main(["--config-file", "semantic_ResNeSt50_FPN", *typed(keys)])
    result = Predictor(tmp_path / "out")(images[0])
    assert result.label_map.shape == (result.height, result.width) and int(result.label_map.max()) < 4
    assert len(result) == 0 and result.to_coco() == [] and result.masks is None and result.segment_map is None
    assert not np.array_equal(np.asarray(result.draw()), result.rgb())
    predict([str(tmp_path / "out"), str(images[0]), "--output", str(tmp_path / "found"), "--save-masks", "--save-json"])
    with Image.open(tmp_path / "found" / "labels" / f"{images[0].stem}.png") as labels:
        assert np.array_equal(np.asarray(labels), result.label_map.numpy())
