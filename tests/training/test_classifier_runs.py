"""A classifier is trained, interrupted, resumed, evaluated and used; one process is as two."""

import functools
import logging
import shutil

import numpy as np
import pytest
import torch

from resnest_det import create_model
from resnest_det.backbone.image_classifier import ImageClassifier
from resnest_det.commands.train_classifier import main
from resnest_det.errors import UserError
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.class_data import tiny_classifier, write_class_folders
from tests.helpers.tiny_run import losses_of, read_metrics

EXTRAS = ["DATA.MIXUP", "0.2", "DATA.LABEL_SMOOTHING", "0.1", "TRAINING.EMA", "0.9", "MODEL.FINAL_DROP", "0.2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An uninterrupted run's configuration and folder."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_classifier(folder)
    main(["--config-file", config, *EXTRAS])
    return config, folder / "out"


def test_a_killed_run_goes_on_with_the_same_losses_and_the_same_end(run, tmp_path):
    config, whole = run
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "last_checkpoint").write_text("model_0000003.pth")  # as it was some time after that was saved
    for name in ("model_final.pth", "model_0000005.pth", "model_best.pth"):
        (out / name).unlink()
    main(["--config-file", config, "--resume", "OUTPUT_DIR", str(out), *EXTRAS])
    assert losses_of(out) == losses_of(whole) and len(losses_of(whole)) == 6
    results = [[line for line in read_metrics(each) if "classification/top1" in line] for each in (out, whole)]
    assert results[0] == results[1]
    ends = [read_checkpoint(each / "model_final.pth") for each in (out, whole)]
    for key in ("model", "model_ema"):
        assert all(torch.equal(ends[0][key][name], value) for name, value in ends[1][key].items())


def test_what_a_run_writes(run):
    _, out = run
    lines = read_metrics(out)
    evaluations = [line for line in lines if "classification/top1" in line]
    assert [line["iteration"] for line in evaluations] == [2, 6]
    assert evaluations[-1]["classification/images"] == 8 and "classification/top1-red" in evaluations[-1]
    rows = (out / "inference" / "per_class.csv").read_text().splitlines()
    assert rows[0].startswith("class,images,right") and [row.split(",")[:2] for row in rows[1:]] == [["green", "4"], ["red", "4"]]
    assert (out / "model_best.pth").exists() and (out / "config.yaml").exists()


def test_the_result_is_a_classifier_of_the_right_classes(run):
    _, out = run
    model = create_model("resnest14", num_classes=2, width=0.125, checkpoint_path=out / "model_best.pth").eval()
    saved = read_checkpoint(out / "model_best.pth")
    assert saved["trained_on"]["classes"] == ["green", "red"]
    assert torch.equal(model.linear.weight, saved["model"]["linear.weight"])
    with pytest.raises(UserError, match="a head of 2 classes|2 in the file|linear.weight"):
        create_model("resnest14", width=0.125, checkpoint_path=out / "model_best.pth")


def test_evaluating_alone_gives_the_figures_of_the_training(run, tmp_path, capsys):
    _, out = run
    last = [line for line in read_metrics(out) if "classification/top1" in line][-1]
    main(["--config-file", str(out / "config.yaml"), "--eval-only", "OUTPUT_DIR", str(tmp_path)])
    figure = f"top1 {last['classification/top1']:.2f} %"
    assert figure in (tmp_path / "log.txt").read_text()


def test_two_processes_have_the_losses_of_one(tmp_path):
    config = tiny_classifier(tmp_path)
    keys = ["MODEL.NORM", "SyncBN", "OPTIMIZER.LR", "0.02", "TRAINING.EVAL_EPOCHS", "0"]
    main(["--config-file", config, *keys, "OUTPUT_DIR", str(tmp_path / "one")])
    two = ["TRAINING.BATCH_SIZE", "4", "OUTPUT_DIR", str(tmp_path / "two")]
    main(["--config-file", config, "--num-processes", "2", *keys, *two])
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    for iteration in range(5):
        assert two[iteration]["total_loss"] == pytest.approx(one[iteration]["total_loss"], abs=1e-4)
        assert two[iteration]["lr"] == one[iteration]["lr"]


def test_accumulated_parts_have_the_gradients_of_the_whole(tmp_path):
    config = tiny_classifier(tmp_path)
    # Group norm: of parts, batch norm would see other statistics.
    keys = ["--config-file", config, "MODEL.NAME", "resnest26", "MODEL.WIDTH", "1.0", "MODEL.NORM", "GN", "TRAINING.EPOCHS", "1"]
    main([*keys, "OUTPUT_DIR", str(tmp_path / "whole")])
    main([*keys, "TRAINING.ACCUMULATE", "2", "MODEL.CHECKPOINTING", "True", "OUTPUT_DIR", str(tmp_path / "parts")])
    whole, parts = losses_of(tmp_path / "whole"), losses_of(tmp_path / "parts")
    assert len(whole) == 3
    np.testing.assert_allclose(
        [line["total_loss"] for line in parts.values()], [line["total_loss"] for line in whole.values()], atol=2e-4
    )


@pytest.mark.slow
def test_a_compiled_network_has_the_losses_of_a_plain_one(tmp_path, monkeypatch):
    """The compiler's graphs are run by torch: to make code of them takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    config = tiny_classifier(tmp_path)
    keys = ["MODEL.DROP_BLOCK", "0.1", "DATA.CROP_SIZE", "96", "TRAINING.EPOCHS", "1", "DATA.MIXUP", "0.2"]
    main(["--config-file", config, *keys, "OUTPUT_DIR", str(tmp_path / "plain")])
    main(["--config-file", config, *keys, "TRAINING.COMPILE", "True", "OUTPUT_DIR", str(tmp_path / "compiled")])
    plain, compiled = losses_of(tmp_path / "plain"), losses_of(tmp_path / "compiled")
    # Compiled dropping draws other numbers; the first step's loss is that of a network that hardly drops.
    assert len(compiled) == 3 and compiled[0]["total_loss"] == pytest.approx(plain[0]["total_loss"], abs=0.05)


def test_an_unreadable_image_is_named_counted_and_left_out(tmp_path, caplog):
    config = tiny_classifier(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "images" / split / "red" / "0.png").write_bytes(b"\x89PNG no more")
    with caplog.at_level(logging.ERROR):
        main(["--config-file", config])
    told = [record.message for record in caplog.records if "left out" in record.message]
    assert len(told) == 2 and "train/red/0.png" in told[0] and "val/red/0.png" in told[1]
    last = [line for line in read_metrics(tmp_path / "out") if "classification/top1" in line][-1]
    assert last["classification/images"] == 7 and last["classification/unreadable"] == 1
    with pytest.raises(UserError, match="red/0.png cannot be read"):
        main(["--config-file", config, "--strict", "OUTPUT_DIR", str(tmp_path / "strict")])


def test_a_diverging_loss_names_the_images(tmp_path):
    config = tiny_classifier(tmp_path)
    with pytest.raises(
        UserError, match=r"loss is not finite at iteration \d: .*images of this step: .*/train/(red|green)/\d+.png"
    ):
        main(["--config-file", config, "OPTIMIZER.LR", "1e6", "OPTIMIZER.WARMUP_EPOCHS", "0", "TRAINING.EPOCHS", "10"])


def test_a_step_without_room_says_what_would_have(tmp_path, monkeypatch):
    config, whole = tiny_classifier(tmp_path), ImageClassifier.forward

    def forward(self, batch):
        if self.training and len(batch) > 4:
            raise MemoryError("8 images are too many")
        return whole(self, batch)

    monkeypatch.setattr(ImageClassifier, "forward", forward)
    told = r"TRAINING.BATCH_SIZE 8 at iteration 0: .*4 of the same images fit: set TRAINING.BATCH_SIZE 4, or .*ACCUMULATE 2"
    with pytest.raises(UserError, match=told):
        main(["--config-file", config])
    main(["--config-file", config, "TRAINING.ACCUMULATE", "2", "TRAINING.EPOCHS", "1", "OUTPUT_DIR", str(tmp_path / "parts")])


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], "DATA.ROOT is empty: say which images to train on"),
        (["--train-on", "no/such/folder", "OUTPUT_DIR", "{out}"], "no/such/folder: no such folder of images"),
        (["--train-on", "a", "DATA.ROOT", "b"], "--train-on and DATA.ROOT are both given"),
        (["--pretrained", "--train-on", "a", "MODEL.WEIGHTS", "b"], "--pretrained and MODEL.WEIGHTS are both given"),
        (["--train-on", "a", "MODEL.NAME", "resnest50", "--resume"], "--resume stands among the config keys"),
        (["--config-file", "resnest51", "--train-on", "a"], "there is no config file resnest51"),
        (["--config-file", "mask_rcnn_ResNeSt50_FPN", "--train-on", "a"], "unknown config key"),
        (["--train-on", "a", "--track", "sheets"], "--track: 'sheets' is none of"),
        (["--train-on", "a", "--num-gpus", "64"], "--num-gpus 64: this machine has|this machine has no GPU"),
        (["--train-on", "a", "--num-processes", "2", "MODEL.DEVICE", "cuda"], "runs on cpu, but MODEL.DEVICE is 'cuda'"),
        (["--train-on", "a", "--num-machines", "2"], "--dist-url auto works on one machine only"),
        (["--train-on", "a", "OUTPUT_DIR"], "OUTPUT_DIR"),
    ],
)
def test_a_wrong_line_is_told_before_anything_begins(arguments, told, tmp_path):
    with pytest.raises(UserError, match=told):
        main([word.replace("{out}", str(tmp_path / "out")) for word in arguments])


def test_resuming_on_other_classes_is_refused(run, tmp_path):
    config, out = run
    other = tiny_classifier(tmp_path)
    (tmp_path / "images" / "train" / "red").rename(tmp_path / "images" / "train" / "blue")
    (tmp_path / "images" / "val" / "red").rename(tmp_path / "images" / "val" / "blue")
    with pytest.raises(UserError, match="are not the same: only .*checkpoint.* has red; only .* has blue"):
        main(["--config-file", other, "--resume", *EXTRAS, "OUTPUT_DIR", str(out)])


def test_a_checkpoint_of_another_number_of_classes_gets_a_new_head(run, tmp_path):
    _, out = run
    config = tiny_classifier(tmp_path)
    write_class_folders(tmp_path / "three", {"train": 8, "val": 2}, ("blue", "green", "red"))
    keys = ["MODEL.FREEZE_AT", "5", "MODEL.WEIGHTS", str(out / "model_final.pth"), "TRAINING.EPOCHS", "1"]
    keys += ["DATA.ROOT", str(tmp_path / "three")]
    main(["--config-file", config, *keys])
    before, after = (read_checkpoint(path / "model_final.pth") for path in (out, tmp_path / "out"))
    assert after["model"]["linear.weight"].shape[0] == 3
    name = "res5.0.conv3.weight"
    assert torch.equal(after["model"][name], before["model_ema"][f"module.{name}"])  # frozen, and the averaged ones
    with pytest.raises(UserError, match="2 classes|head|linear.weight"):
        main(["--config-file", config, "--eval-only", *keys])
