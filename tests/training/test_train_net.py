"""The command train_net: bad input, killed runs, several processes."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch

from resnest_det.commands.train_net import main
from resnest_det.errors import UserError
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.commands import start_training
from tests.helpers.tiny_run import losses_of, read_metrics, write_tiny_run

NO_EVALUATION = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]


@pytest.mark.parametrize(
    "flags, keys, message",
    [
        ([], ["SOLVER.MAX_ITER", "4", "--resume"], "--resume stands among the config keys; flags come before"),
        ([], ["SOLVER.MAX_ITERS", "4"], "unknown config key SOLVER.MAX_ITERS; nearest known key: SOLVER.MAX_ITER"),
        (["--num-gpus", "99"], [], "--num-gpus 99: this machine has"),
        (["--num-gpus", "2", "--num-processes", "2"], [], "exclude each other"),
        (["--num-processes", "2"], ["MODEL.DEVICE", "cuda"], "--num-processes runs on cpu, but MODEL.DEVICE is 'cuda'"),
        (["--num-processes", "0"], [], "number of processes is 0"),
        # Told before a thousand processes start.
        (["--num-processes", "1000"], [], "SOLVER.IMS_PER_BATCH is 4; it must be a multiple of the number of processes, 1000"),
        (
            [],
            ["SOLVER.IMS_PER_BATCH", "1"],
            "batch norm inside split attention .* one image .*IMS_PER_BATCH 2 or more.*FrozenBN.*GN",
        ),
        (["--eval-only"], [], "--eval-only needs MODEL.WEIGHTS, or --resume"),
        ([], ["MODEL.WEIGHTS", "absent.pth"], "absent.pth"),
        ([], ["DATASETS.TEST", "('absent_val',)"], "absent_val"),
        ([], ["SOLVER.STEPS", "(4, 2)"], "SOLVER.STEPS"),
        ([], ["SOLVER.BASE_LR", "1e12", *NO_EVALUATION], r"iteration \d: .*not finite.*images of this step: .*/images/\d.png"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tiny, flags, keys, message):
    with pytest.raises(UserError, match=message) as error:
        main([*tiny, *flags, *keys])
    assert "\n" not in str(error.value)


def test_output_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR .*file/out cannot be written"):
        main([*tiny, "OUTPUT_DIR", str(tmp_path / "file" / "out")])


def test_missing_image_is_named_and_checkpoints_stay(tiny, tmp_path):
    main([*tiny, *NO_EVALUATION, "SOLVER.MAX_ITER", "2"])
    before = (tmp_path / "out" / "model_final.pth").read_bytes()
    (tmp_path / "images" / "3.png").unlink()
    with pytest.raises(UserError, match="images/3.png"):
        main([*tiny[:2], "--resume", *NO_EVALUATION, "SOLVER.MAX_ITER", "20"])
    assert (tmp_path / "out" / "model_final.pth").read_bytes() == before


def test_checkpoint_of_another_model_is_not_resumed_from(tiny, tmp_path):
    main([*tiny, *NO_EVALUATION, "SOLVER.MAX_ITER", "1"])
    with pytest.raises(UserError, match=r"model_final.pth is of another model: .* missing \(roi_heads.mask_head"):
        main([*tiny[:2], "--resume", *NO_EVALUATION, "MODEL.ROI_MASK_HEAD.NUM_CONV", "2"])


def test_backbone_alone_cannot_be_evaluated(tiny, tmp_path):
    main([*tiny, *NO_EVALUATION, "SOLVER.MAX_ITER", "1"])
    model = read_checkpoint(tmp_path / "out" / "model_final.pth")["model"]
    backbone = {name: value for name, value in model.items() if name.startswith("backbone.bottom_up.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="backbone.pth has nothing for .* parameters of the model .*only a backbone"):
        main([*tiny[:2], "--eval-only", "MODEL.WEIGHTS", str(tmp_path / "backbone.pth")])
    # It is what a training starts from.
    main([*tiny[:2], *NO_EVALUATION, "MODEL.WEIGHTS", str(tmp_path / "backbone.pth"), "SOLVER.MAX_ITER", "1"])


def _wait_for_iterations(process, folder, count):
    """Wait until `count` iterations are in metrics.json, or the process has ended."""
    while process.poll() is None:
        try:
            if len(losses_of(folder)) >= count:
                return
        except (OSError, ValueError):  # not there yet, or being written
            pass
        time.sleep(0.02)
    raise AssertionError(f"ended with status {process.returncode}:\n{process.stdout.read()}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Arguments of a run, and the losses of that run when nothing interrupts it."""
    folder = tmp_path_factory.mktemp("reference")
    keys = ["DATALOADER.NUM_WORKERS", "1", "SOLVER.MAX_ITER", "12", "SOLVER.STEPS", "(9,)", "SOLVER.CHECKPOINT_PERIOD", "3"]
    arguments = [*write_tiny_run(folder), *NO_EVALUATION, *keys]
    main(arguments)
    return arguments, losses_of(folder / "out")


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_gives_the_same_losses(reference, tmp_path):
    arguments, expected = reference
    output = ["OUTPUT_DIR", str(tmp_path / "out")]
    for resume, iterations in ((), 2), (["--resume"], 10):
        process = start_training(*arguments[:4], *resume, *arguments[4:], *output)
        _wait_for_iterations(process, tmp_path / "out", iterations)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    main([*arguments[:2], "--resume", *arguments[4:], *output])
    assert losses_of(tmp_path / "out") == expected
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.slow
def test_terminated_and_resumed_gives_the_same_losses_and_nobody_else_enters_meanwhile(reference, tmp_path):
    arguments, expected = reference
    output = ["OUTPUT_DIR", str(tmp_path / "out")]
    process = start_training(*arguments, *output, "SOLVER.CHECKPOINT_PERIOD", "100")
    _wait_for_iterations(process, tmp_path / "out", 2)
    process.send_signal(signal.SIGSTOP)  # or it might be at its end before the others are refused
    for flags in [], ["--eval-only", "--resume"]:
        with pytest.raises(UserError, match=rf"another run is going on in OUTPUT_DIR .*held by pid {process.pid} on .* since 2"):
            main([*arguments[:2], *flags, *output])
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in text and text.splitlines()[-1] == "terminated"
    assert not list((tmp_path / "out").glob("*.lock"))
    done = len(losses_of(tmp_path / "out"))
    assert (tmp_path / "out" / "last_checkpoint").read_text() == f"model_{done - 1:07d}.pth"
    main([*arguments[:2], "--resume", *arguments[4:], *output])
    assert losses_of(tmp_path / "out") == expected


def test_command_ends_with_one_line_and_status_2(tiny, resnest_det_command):
    done = resnest_det_command("train", *tiny, "SOLVER.IMS_PER_BATCH", "1")
    text = done.stdout + done.stderr
    assert done.status == 2 and "Traceback" not in text
    assert text.splitlines()[-1].startswith("error: batch norm inside split attention")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Arguments of a run, and the folder that two processes wrote."""
    folder = tmp_path_factory.mktemp("two_processes")
    # One size, because padding to the largest image of each process is a part of what batch norm sees.
    keys = ["SOLVER.MAX_ITER", "8", "TEST.EVAL_PERIOD", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "TEST.PRECISE_BN.ENABLED", "False"]
    arguments = [*write_tiny_run(folder), *keys]
    main([*arguments[:4], "--num-processes", "2", *arguments[4:]])
    return arguments, folder / "out"


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(two_processes, tmp_path):
    arguments, folder = two_processes
    main([*arguments, "OUTPUT_DIR", str(tmp_path / "one")])
    one, two = losses_of(tmp_path / "one"), losses_of(folder)
    assert list(one) == list(two) == list(range(8))
    # Rounding differs in the seventh digit; sooner or later that turns the order of two proposals round.
    for iteration in range(5):
        assert two[iteration] == pytest.approx(one[iteration], abs=1e-4)
    results = [read_metrics(each)[-1] for each in (tmp_path / "one", folder)]
    assert results[0].keys() == results[1].keys() and "segm/AP-blue" in results[0]
    detections = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    assert {each["image_id"] for each in detections} == set(range(1, 7))


@pytest.mark.slow
def test_torchrun_restarts_a_killed_process_from_the_last_checkpoint(two_processes, tmp_path):
    arguments, uninterrupted = two_processes
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    process = start_training(*arguments, "OUTPUT_DIR", str(tmp_path / "out"), launcher=torchrun)
    _wait_for_iterations(process, tmp_path / "out", 5)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "Training from iteration 4 to 8" in text or "Training from iteration 6 to 8" in text
    assert losses_of(tmp_path / "out") == losses_of(uninterrupted)
