"""`train --data DIR --model NAME`: a folder of labelled images and nothing else; packing what comes of it."""

import pytest
import torch

from resnest_det.commands import own_data
from resnest_det.commands.pack import main as pack
from resnest_det.commands.train_net import main
from resnest_det.configuration.reading import load_config
from resnest_det.errors import UserError
from resnest_det.training import first_schedule
from resnest_det.training.measuring import Fit, largest_shape, measure_fit
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.tiny_run import losses_of, read_metrics, write_tiny_run

pytestmark = pytest.mark.usefixtures("own_registry")
QUICK = ["SOLVER.MAX_ITER", "4", "TEST.PRECISE_BN.NUM_ITER", "2", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """(model, folder of labelled images): a small network, whose memory need not be measured."""
    monkeypatch.setattr(first_schedule, "measure_fit", lambda cfg, data, most: Fit(3, "as the test says", 0.1))
    arguments = write_tiny_run(tmp_path)
    text = (tmp_path / "tiny.yaml").read_text()
    model = tmp_path / "small.yaml"
    model.write_text(text[: text.index("DATASETS:")].replace("NUM_CLASSES: 2, ", "") + "SEED: 5\n")
    photos = tmp_path / "my photos"
    photos.mkdir()
    (tmp_path / "images").rename(photos / "images")
    (tmp_path / "tiny.json").rename(photos / "labels.json")
    assert arguments[0] == "--config-file"
    return str(model), str(photos)


def test_a_folder_becomes_a_detector(folder, tmp_path, capsys):
    model, photos = folder
    out = tmp_path / "out"
    main(["--data", photos, "--model", model, *QUICK, "OUTPUT_DIR", str(out)])
    written = load_config(out / "config.yaml")
    assert written.SOLVER.IMS_PER_BATCH == 3 and written.SOLVER.OPTIMIZER == "MUON" and written.SOLVER.BASE_LR == 0.0078
    assert written.MODEL.ROI_HEADS.NUM_CLASSES == 2 and written.SOLVER.MAX_ITER == 4, "what is given stays"
    assert written.DATASETS.TRAIN == ("my_photos_train",) and written.DATASETS.TEST == ("my_photos_val",)
    head = (out / "config.yaml").read_text().splitlines()[:30]
    assert head[0] == "# Memory as the test says" and "# Chosen SOLVER.IMS_PER_BATCH 3: 3 fit into the memory" in "\n".join(head)
    log = (out / "log.txt").read_text()
    assert "Chosen SOLVER.OPTIMIZER 'MUON': nothing is pretrained" in log and "my_photos_train: 5 images" in log
    assert "one set without splits" in capsys.readouterr().out
    assert (out / "model_best.pth").exists() == (written.TEST.EVAL_PERIOD < 4)

    # The folder stands alone, and resuming chooses nothing anew.
    final = losses_of(out)
    main(["--config-file", str(out / "config.yaml"), "--eval-only"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_data, "choose_schedule", None)
        main(["--data", photos, "--model", model, "--resume", "SOLVER.MAX_ITER", "6", "OUTPUT_DIR", str(out)])
    assert [losses_of(out)[iteration] for iteration in range(4)] == list(final.values())
    after = load_config(out / "config.yaml")
    assert after.SOLVER.MAX_ITER == 6 and after.SOLVER.IMS_PER_BATCH == 3

    pack([str(out), str(tmp_path / "packed.pth")])
    assert first_schedule.pretrained_with(str(tmp_path / "packed.pth")) == first_schedule.Pretrained("BN", "BN")
    packed = read_checkpoint(tmp_path / "packed.pth")
    assert "optimizer" not in packed and packed["trained_on"]["thing_classes"] == ["red", "blue"]
    assert str(tmp_path) not in packed["config"] and "my_photos" in packed["config"]
    last = read_metrics(out)[-1]
    expected = f"[['bbox', 'AP50', {last['bbox/AP50']}, 1e-9]]"
    keys = ["MODEL.WEIGHTS", str(tmp_path / "packed.pth"), "OUTPUT_DIR", str(tmp_path / "other")]
    if not (out / "model_best.pth").exists():
        keys += ["TEST.EXPECTED_RESULTS", expected]
    main(["--config-file", str(out / "config.yaml"), "--eval-only", *keys])


def test_what_the_data_and_the_flags_say_together(folder, tmp_path):
    model, photos = folder
    for flags, message in (
        ([], "give either --config-file FILE, or --data DIR and --model NAME"),
        (["--model", model], "--model .* needs --data DIR"),
        (["--model", model, "--data", str(tmp_path / "absent")], "absent does not exist"),
        (["--model", model, "--data", photos, "--num-machines", "2"], "--model chooses settings on one machine"),
        (["--model", model, "--data", photos, "--engine", "detectron2"], "use --engine builtin"),
        (["--model", "mask_rcnn_ResNeSt5_FPN", "--data", photos], "there is no config file"),
    ):
        with pytest.raises(UserError, match=message):
            main(flags)


def test_weights_that_cannot_be_had_are_one_line_and_random_ones_an_order(folder, tmp_path):
    model, photos = folder
    keys = [*QUICK, "OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(
        UserError, match="weights absent.pth: no such file; to begin from random parameters .* MODEL.WEIGHTS \"''\""
    ):
        main(["--data", photos, "--model", model, *keys, "MODEL.WEIGHTS", "absent.pth"])
    main(["--data", photos, "--model", model, *keys, "MODEL.WEIGHTS", "''", "DATASETS.TEST", "()"])
    assert "Chosen MODEL.BACKBONE.FREEZE_AT 0: nothing is pretrained" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize("optimizer, rate", [("SGD", 0.005), ("MUON", 0.01 * 0.5**0.5)])
def test_auto_batch_takes_what_fits_and_everything_in_proportion(folder, tmp_path, optimizer, rate):
    model, photos = folder
    keys = ["SOLVER.IMS_PER_BATCH", "6", "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "1"]
    keys += ["SOLVER.OPTIMIZER", optimizer, "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    keys += ["TEST.PRECISE_BN.ENABLED", "False", "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0", "SOLVER.STEPS", "(1,)"]
    main(["--data", photos, "--config-file", model, "--auto-batch", *keys, "OUTPUT_DIR", str(tmp_path / "out")])
    written = load_config(tmp_path / "out" / "config.yaml").SOLVER
    assert (written.IMS_PER_BATCH, written.BASE_LR, written.MAX_ITER, written.STEPS) == (3, rate, 4, (2,))
    assert "3 images fit into a process and not 6" in (tmp_path / "out" / "log.txt").read_text()


def test_packing_what_cannot_be_packed(tmp_path):
    with pytest.raises(UserError, match="absent does not exist; give the OUTPUT_DIR of a run, or a checkpoint"):
        pack([str(tmp_path / "absent"), str(tmp_path / "x.pth")])
    with pytest.raises(UserError, match="is not the folder of a run with a checkpoint"):
        pack([str(tmp_path), str(tmp_path / "x.pth")])
    torch.save({"model": {}}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="bare.pth has no configuration in it"):
        pack([str(tmp_path / "bare.pth"), str(tmp_path / "x.pth")])
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.slow
def test_memory_is_measured(tmp_path):
    arguments = write_tiny_run(tmp_path)
    name = arguments[3].split("=")[0]
    from resnest_det.data.catalog import register_coco

    register_coco(name, str(tmp_path / "tiny.json"), str(tmp_path / "images"))
    cfg = load_config(arguments[1], ["MODEL.DEVICE", "cpu"])
    data = first_schedule.training_statistics(cfg)
    assert largest_shape(cfg, data) == (64, 80), "lying images of 64 x 80 and standing ones are never in one batch"
    fit = measure_fit(cfg, data, 16)
    assert 2 <= fit.images <= 16 and fit.seconds > 0 and "measured at 80 x 64 pixels: 2 images need" in fit.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnest_det.training.measuring._trial", _nothing_fits)
        with pytest.raises(UserError, match="not even 2 images of 80 x 64 pixels fit into memory"):
            measure_fit(cfg, data, 16)


class _nothing_fits:
    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return lambda images: None

    def __exit__(self, *error):
        return False
