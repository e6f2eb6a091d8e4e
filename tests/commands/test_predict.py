"""The command `predict`: inputs, outputs, going on after an interruption, and bad input."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from resnest_det.commands.predict import main
from resnest_det.commands.train_net import main as train
from resnest_det.errors import UserError
from resnest_det.inference import files
from resnest_det.inference.video import VideoWriter
from tests.helpers.tiny_run import write_tiny_run

QUICK = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]
LOW = ["--confidence-threshold", "0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commanded")
    train([*write_tiny_run(folder), *QUICK])
    return folder / "out"


@pytest.fixture
def photos(run, tmp_path):
    """A folder with six images, two of them below."""
    shutil.copytree(run.parent / "images", tmp_path / "photos")
    (tmp_path / "photos" / "more").mkdir()
    for name in ("5.png", "6.png"):
        (tmp_path / "photos" / name).rename(tmp_path / "photos" / "more" / name)
    return tmp_path / "photos"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_has_the_results_of_the_evaluation(run, photos, tmp_path, capsys):
    out = tmp_path / "found"
    main([str(run), str(photos), "--output", str(out), "--save-json", "--save-masks", *LOW])
    assert "6 images in" in capsys.readouterr().out
    expected = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    assert json.loads((out / "coco_instances_results.json").read_text()) == expected
    one = json.loads((out / "1.json").read_text())
    assert {key: one[key] for key in ("file_name", "height", "width")} == {
        "file_name": str(photos / "1.png"),
        "height": 64,
        "width": 80,
    }
    assert all(each["name"] == ("red", "blue")[each["category_id"] - 1] for each in one["detections"])
    masks = sorted((out / "masks" / "1").iterdir())
    assert len(masks) == len(one["detections"]) and masks[0].name.startswith("000_")
    for path, size in ((out / "1.png", (80, 64)), (masks[0], (80, 64))):
        with Image.open(path) as picture:
            assert picture.size == size


def test_what_is_missing_is_done_and_nothing_else(run, photos, tmp_path, capsys, monkeypatch):
    arguments = [str(run), "--input", str(photos), "--output", str(tmp_path / "found"), "--save-json", *LOW]
    main(arguments)
    whole = contents(tmp_path / "found")
    (tmp_path / "found" / "3.png").unlink()  # as a run leaves it that was killed: pictures are written last
    (tmp_path / "found" / "5.json").unlink()
    (tmp_path / "found" / ".4.png.abc.unfinished").write_bytes(b"half")
    capsys.readouterr()
    main(arguments)
    assert "2 images in" in (text := capsys.readouterr().out) and "4 were there already" in text
    assert contents(tmp_path / "found") == whole

    with pytest.raises(UserError, match=r"found has results of other settings \(confidence_threshold was 0.0, is 0.5\)"):
        main(arguments[:-2])
    with pytest.raises(UserError, match=r"--output .*photos has other files in it: give a new or an empty folder"):
        main([str(run), "--input", str(photos), "--output", str(photos)])
    (tmp_path / "found" / "predict.json").write_text("[")
    with pytest.raises(UserError, match="predict.json is damaged"):
        main(arguments)


def test_an_interrupted_run_leaves_whole_files(run, photos, tmp_path, monkeypatch):
    arguments = [str(run), str(photos), "--output", str(tmp_path / "found"), "--save-json", *LOW]
    calls, predict = [], files._predict

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(*given)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_predict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
    main(arguments)
    with Image.open(tmp_path / "found" / "6.png") as picture:
        picture.load()
    expected = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    assert json.loads((tmp_path / "found" / "coco_instances_results.json").read_text()) == expected


def test_unreadable_files_are_named_skipped_and_counted(run, photos, tmp_path, capsys):
    (photos / "text.jpg").write_text("no image")
    (photos / "empty.png").touch()
    whole = (photos / "2.png").read_bytes()
    (photos / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit) as stop:
        main([str(run), str(photos), str(tmp_path / "absent.jpg"), "--output", str(tmp_path / "found"), "--batch", "2"])
    said = capsys.readouterr()
    assert stop.value.code == 1 and "6 images in" in said.out and "3 skipped" in said.out
    for part in ("text.jpg cannot be read", "empty.png cannot be read", "half.png cannot be read", "absent.jpg does not exist"):
        assert f"{part}" in said.err
    assert "4 of the inputs could not be used" in said.err
    assert len(list((tmp_path / "found").glob("?.png"))) == 6
    with pytest.raises(UserError, match="none of the 1 images could be used"):
        main([str(run), str(photos / "text.jpg"), "--output", str(tmp_path / "none")])


def test_lists_patterns_and_images_of_one_name(run, photos, tmp_path, monkeypatch):
    shutil.copy(photos / "2.png", photos / "more" / "1.png")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos}/1.png\n\n{photos}/more/*.png\n{photos}/1.png\n"))
    main(["--weights", str(run / "model_final.pth"), "--input", "-", "--output", str(tmp_path / "found"), "--save-json", *LOW])
    names = sorted(path.stem for path in (tmp_path / "found").glob("*.png"))
    assert len(names) == 4 and names[2:] == ["5", "6"] and all(name.startswith("1-") for name in names[:2])
    ids = {entry["image_id"] for entry in json.loads((tmp_path / "found" / "coco_instances_results.json").read_text())}
    assert ids == {*names[:2], 5, 6}


def test_one_file_as_output(run, photos, tmp_path):
    out = tmp_path / "one.jpg"
    main(["--config-file", str(run / "config.yaml"), "--input", str(photos / "1.png"), "--output", str(out), "--save-json", *LOW])
    assert json.loads((tmp_path / "one.json").read_text())["detections"]
    with Image.open(out) as picture:
        assert picture.format == "JPEG" and picture.size == (80, 64)
    with pytest.raises(UserError, match="one.jpg exists: remove it"):
        main([str(run), str(photos / "1.png"), "--output", str(out)])
    with pytest.raises(UserError, match="two.jpg is one file, but there are 6 inputs"):
        main([str(run), str(photos), "--output", str(tmp_path / "two.jpg")])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "say which model"),
        (["{run}"], "there is nothing to look at: no input was given"),
        (["{run}", "{photos}/absent*.png"], "nothing is called .*absent"),
        (["{run}", "{photos}", "--tile", "800"], "--tile 800: expected HEIGHTxWIDTH"),
        (["{run}", "{photos}", "--tile", "8x8"], "--tile 8x8: expected HEIGHTxWIDTH"),
        (["{run}", "{photos}", "--overlap", "1"], "--overlap 1.0: expected a fraction"),
        (["{run}", "{photos}", "--batch", "0"], "--batch 0: expected at least 1"),
        (["{run}", "{photos}", "--classes", "red,green"], "the model has no class 'green'"),
        (["{run}", "{photos}", "--confidence-threshold", "7"], "score_threshold is 7"),
        (["{run}", "{photos}/1.png", "--output", "{photos}/none/a.jpg"], "there is no folder .*none"),
        (["{run}", "{photos}/1.png", "--output", "{photos}/a.mp4"], "a.mp4 is a video, the input is not"),
        (["{photos}/1.png", "{photos}/2.png"], "1.png is not a checkpoint"),
    ],
)
def test_bad_input_is_one_line(run, photos, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        main([each.format(run=run, photos=photos) for each in arguments])
    assert "\n" not in str(error.value)


def test_tiles(run, photos, tmp_path):
    main([str(run), str(photos / "1.png"), "--output", str(tmp_path / "whole"), "--save-json", "--tile", "64x80", *LOW])
    main([str(run), str(photos / "1.png"), "--output", str(tmp_path / "tiled"), "--save-json", "--tile", "40x40", "--batch", "4"])
    expected = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    whole = json.loads((tmp_path / "whole" / "coco_instances_results.json").read_text())
    assert whole[0] == expected[0], "a tile as large as the image is the image"
    assert (tmp_path / "tiled" / "1.png").exists()


def write_video(path, frames, size=(64, 80)):
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.height, stream.width = size
        for _ in range(frames):
            pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.extras
def test_a_video_keeps_its_size_and_rate(run, tmp_path, capsys):
    av = pytest.importorskip("av")
    write_video(tmp_path / "film.mp4", 7)
    out = tmp_path / "found.mp4"
    main([str(run), "--input", str(tmp_path / "film.mp4"), "--output", str(out), "--save-json", *LOW])
    assert "7 images in" in capsys.readouterr().out
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
        assert (stream.height, stream.width, stream.average_rate) == (64, 80, 12)
    assert times == pytest.approx([number / 12 for number in range(7)])
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(7)) and lines[6]["time"] == pytest.approx(0.5)
    with pytest.raises(UserError, match="found.mp4 exists"):
        main([str(run), "--input", str(tmp_path / "film.mp4"), "--output", str(out)])


@pytest.mark.extras
def test_a_video_goes_on_where_the_command_was_ended(run, tmp_path, capsys, monkeypatch):
    av = pytest.importorskip("av")
    write_video(tmp_path / "film.mp4", 9)
    arguments = [str(run), "--input", str(tmp_path / "film.mp4"), "--save-json", *LOW, "--output"]
    # x264 makes different files of the same frames, so what it is given is compared.
    write, written = VideoWriter.write, []
    monkeypatch.setattr(
        VideoWriter, "write", lambda self, pts, picture: (written.append((pts, picture)), write(self, pts, picture))
    )
    main([*arguments, str(tmp_path / "whole.mp4")])
    lines, frames = (tmp_path / "whole.jsonl").read_bytes(), written.copy()
    assert len(frames) == 9
    predict, left = files._predict, []

    def ended(*given):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return predict(*given)

    monkeypatch.setattr(files, "_predict", ended)
    left[:] = [0] * 5
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, str(tmp_path / "found.mp4")])
    assert "found.mp4: stopped after 5 frames; the same command goes on from there" in capsys.readouterr().err
    kept = tmp_path / ".found.mp4.frames"
    assert not (tmp_path / "found.mp4").exists() and not (tmp_path / "found.jsonl").exists()
    records = kept.read_bytes()
    for content, missing in (
        (records, 4),
        (records[:-1], 5),  # torn when the process was killed
        (records + b"\xff" * 40, 4),
        (b"", 9),
        (b"no frames of ours, but a file of this name", 9),
    ):
        kept.write_bytes(content)
        (tmp_path / ".found.jsonl.abc.unfinished").touch()  # as a killed process leaves it
        left[:] = [0] * missing
        written.clear()
        main([*arguments, str(tmp_path / "found.mp4")])
        assert left == []
        counted = f"{missing} images in" if missing == 9 else f"; {9 - missing} were there already"
        assert counted in capsys.readouterr().out
        assert (tmp_path / "found.jsonl").read_bytes() == lines
        assert len(written) == 9
        for (pts, picture), (expected_pts, expected) in zip(written, frames):
            assert pts == expected_pts and np.array_equal(picture, expected)
        with av.open(str(tmp_path / "found.mp4")) as container:
            assert len(list(container.decode(video=0))) == 9
        for suffix in (".jsonl", ".mp4"):
            (tmp_path / f"found{suffix}").unlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "whole.jsonl", "whole.mp4"]
    kept.write_bytes(records)
    left[:] = [0] * 9
    arguments[arguments.index("0")] = "0.1"  # other settings
    main([*arguments, str(tmp_path / "found.mp4")])
    assert left == []


@pytest.mark.extras
@pytest.mark.parametrize("turn", [90, -90, 180])
def test_a_phones_video_is_turned_upright(run, tmp_path, turn):
    """A phone writes frames as its sensor lies, and in the file by how much they are to be turned, counterclockwise."""
    av = pytest.importorskip("av")
    upright = np.zeros((80, 64, 3), dtype=np.uint8)
    upright[:20, :, 0] = upright[:, :16, 1] = 200  # other colors at the top and at the left
    lying = np.ascontiguousarray(np.rot90(upright, -turn // 90))
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "10"})
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no rotation")
        stream.height, stream.width = lying.shape[:2]
        stream.set_display_rotation(turn)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(lying, format="rgb24")))
        container.mux(stream.encode(None))
    out = tmp_path / "found.mp4"
    main([str(run), "--input", str(tmp_path / "phone.mp4"), "--output", str(out), "--confidence-threshold", "1"])
    with av.open(str(out)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 3 and frames[0].rotation == 0
    pixels = frames[0].to_ndarray(format="rgb24").astype(int)
    assert pixels.shape == upright.shape and np.abs(pixels - upright).mean() < 8


@pytest.mark.extras
def test_videos_and_cameras_that_cannot_be_read(run, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(UserError, match="video .*bad.mp4 cannot be read: "):
        main([str(run), "--input", str(tmp_path / "bad.mp4"), "--output", str(tmp_path / "a.mp4")])
    with pytest.raises(UserError, match="there is no camera 93 here, or another program has it"):
        main([str(run), "--input", "93", "--output", str(tmp_path / "a.mp4")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mp4"]


def test_without_pyav_one_line_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "film.mp4").touch()
    with pytest.raises(UserError, match=r'videos need PyAV: pip install "resnest_det\[video\]"'):
        main([str(run), "--input", str(tmp_path / "film.mp4"), "--output", str(tmp_path / "a.mp4")])
