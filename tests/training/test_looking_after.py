"""A run that looks after itself: the best checkpoint, stopping in time, averages, what is kept, and who is told."""

import shutil
import sys

import pytest
import torch

from resnest_det.commands.train_net import main
from resnest_det.configuration.reading import load_config
from resnest_det.detector.rcnn import GeneralizedRCNN
from resnest_det.errors import UserError
from resnest_det.training import evaluation, steps
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.tiny_run import losses_of, read_metrics, write_tiny_run

AVERAGED = [
    "SOLVER.EMA.ENABLED",
    "True",
    "SOLVER.EMA.DECAY",
    "0.5",
    "SOLVER.CHECKPOINTS_KEPT",
    "2",
    "SOLVER.CHECKPOINT_PERIOD",
    "1",
]
NO_EVALUATION = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A finished run with an average: its arguments and its folder, not to be changed."""
    folder = tmp_path_factory.mktemp("averaged")
    arguments = write_tiny_run(folder)
    main([*arguments, *AVERAGED, "TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC", "bbox/AP50"])
    return arguments, folder / "out"


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _figures(folder):
    return [
        {key: value for key, value in line.items() if "/" in key or key == "iteration"}
        for line in read_metrics(folder)
        if "bbox/AP" in line
    ]


def test_what_such_a_run_leaves(averaged):
    _, folder = averaged
    assert sorted(path.name for path in folder.glob("*.pth")) == [
        "model_0000004.pth",
        "model_0000005.pth",
        "model_best.pth",
        "model_final.pth",
    ]
    best, final = (read_checkpoint(folder / f"model_{name}.pth") for name in ("best", "final"))
    figures = {line["iteration"]: line["bbox/AP50"] for line in _figures(folder)}
    assert list(figures) == [1, 3, 6]
    assert best["best"] == {"metric": "bbox/AP50", "value": max(figures.values()), "iteration": max(figures, key=figures.get)}
    assert best["trained_on"] == final["trained_on"] and "optimizer" not in best
    # The average is another model than the one that is trained.
    average = {name.removeprefix("module."): value for name, value in final["model_ema"].items() if name != "n_averaged"}
    assert average.keys() == final["model"].keys() and final["model_ema"]["n_averaged"] == 6
    assert not torch.equal(
        average["roi_heads.box_predictor.cls_score.weight"], final["model"]["roi_heads.box_predictor.cls_score.weight"]
    )


def test_the_average_is_what_is_evaluated(averaged, tmp_path):
    arguments, folder = averaged
    last = _figures(folder)[-1]
    expected = f"[['bbox', 'AP50', {last['bbox/AP50']}, 1e-9], ['segm', 'AP', {last['segm/AP']}, 1e-9]]"
    keys = ["TEST.EXPECTED_RESULTS", expected]
    main([*arguments[:2], "--eval-only", *keys, "MODEL.WEIGHTS", str(folder / "model_final.pth"), "OUTPUT_DIR", str(tmp_path)])
    shutil.copytree(folder, tmp_path / "copy")
    main([*arguments[:2], "--eval-only", "--resume", *keys, "OUTPUT_DIR", str(tmp_path / "copy")])


@pytest.mark.parametrize("killed_in_the_evaluation", [False, True])
def test_resumed_it_is_as_if_it_had_never_stopped(averaged, tmp_path, killed_in_the_evaluation):
    arguments, folder = averaged
    other = tmp_path / "out"
    keys = [*AVERAGED, "TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC", "bbox/AP50", "OUTPUT_DIR", str(other)]
    # As it was when killed after iteration 3, of which there is a checkpoint, before or after the end of its evaluation.
    stopped_at = 3
    with pytest.MonkeyPatch.context() as patch:

        def stop(run, iteration, **more):
            if iteration == stopped_at and killed_in_the_evaluation:
                raise KeyboardInterrupt
            return evaluate(run, iteration, **more)

        def after(run, iteration, batch):
            ended = due(run, iteration, batch)
            if iteration == stopped_at:
                raise KeyboardInterrupt
            return ended

        evaluate, due = steps.Run.evaluate, steps.Run._evaluate_if_due
        patch.setattr(steps.Run, "evaluate", stop)
        patch.setattr(steps.Run, "_evaluate_if_due", after)
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, *keys])
    assert [line["iteration"] for line in _figures(other)] == ([1] if killed_in_the_evaluation else [1, 3])
    main([*arguments[:2], "--resume", *keys])
    assert losses_of(other) == losses_of(folder) and _figures(other) == _figures(folder)
    for name in ("best", "final"):
        resumed, expected = (read_checkpoint(each / f"model_{name}.pth") for each in (other, folder))
        assert _same(resumed["model"], expected["model"]) and resumed.get("best") == expected.get("best")
        assert name == "best" or _same(resumed["model_ema"], expected["model_ema"])
    assert sorted(path.name for path in other.glob("*.pth")) == sorted(path.name for path in folder.glob("*.pth"))


def test_training_ends_when_nothing_gets_better(tiny, tmp_path):
    keys = ["TEST.PATIENCE", "2", "TEST.EVAL_PERIOD", "1", "SOLVER.MAX_ITER", "9", "TEST.PRECISE_BN.ENABLED", "False"]
    with pytest.MonkeyPatch.context() as patch:
        figures = iter([10.0, 30.0, 30.0, 20.0, 20.0, 20.0])
        patch.setattr(evaluation.Evaluation, "run", lambda self, model, **more: {"segm": {"AP": next(figures)}})
        main([*tiny, *keys])
        assert [line["segm/AP"] for line in read_metrics(tmp_path / "out") if "segm/AP" in line] == [10, 30, 30, 20, 20]
        assert list(losses_of(tmp_path / "out")) == [0, 1, 2, 3]
        assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"
        assert read_checkpoint(tmp_path / "out" / "model_final.pth")["iteration"] == 3
        assert read_checkpoint(tmp_path / "out" / "model_best.pth")["best"] == {
            "metric": "segm/AP",
            "value": 30.0,
            "iteration": 1,
        }
        text = (tmp_path / "out" / "log.txt").read_text()
        assert "no evaluation of the last 2 has a better segm/AP than 30.000, that of iteration 1" in text
        # Resumed, it stays as it is.
        main([*tiny[:2], "--resume", *keys])
        assert list(losses_of(tmp_path / "out")) == [0, 1, 2, 3]


@pytest.mark.slow
def test_two_processes_choose_the_best_average_and_stop_together(tmp_path):
    arguments = write_tiny_run(tmp_path)
    keys = [*AVERAGED, "TEST.EVAL_PERIOD", "1", "TEST.PATIENCE", "2", "TEST.BEST_METRIC", "bbox/AP50", "SOLVER.MAX_ITER", "40"]
    main([*arguments[:4], "--num-processes", "2", *keys])
    out = tmp_path / "out"
    # The last line is of the evaluation at the end, of the same parameters as the one before.
    *figures, last = [line["bbox/AP50"] for line in _figures(out)]
    best = max(figures)
    assert len(figures) == figures.index(best) + 3 < 40 and last == figures[-1]
    assert list(losses_of(out)) == list(range(len(figures)))
    saved = read_checkpoint(out / "model_best.pth")
    assert saved["best"] == {"metric": "bbox/AP50", "value": best, "iteration": figures.index(best)}
    assert read_checkpoint(out / "model_final.pth")["model_ema"]["n_averaged"] == len(figures)
    # What two processes have evaluated is what is in the file.
    keys = ["TEST.EXPECTED_RESULTS", f"[['bbox', 'AP50', {best}, 1e-9]]", "OUTPUT_DIR", str(tmp_path / "one")]
    main([*arguments, "--eval-only", "MODEL.WEIGHTS", str(out / "model_best.pth"), *keys])


@pytest.mark.parametrize(
    "keys, message",
    [
        (["TEST.BEST_METRIC", "segm/AP51"], "TEST.BEST_METRIC 'segm/AP51' is not a figure of this model; supported: bbox/AP, "),
        (["TEST.BEST_METRIC", "sem_seg/mIoU"], "TEST.BEST_METRIC 'sem_seg/mIoU' is not a figure"),
        (["TEST.BEST_METRIC", "bbox/AP-red", "TEST.PATIENCE", "2", "TEST.EVAL_PERIOD", "0"], "TEST.PATIENCE 2 needs evaluations"),
        (["SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "1.5"], "SOLVER.EMA.DECAY is 1.5; it must be from 0 to below 1"),
        (["SOLVER.CHECKPOINTS_KEPT", "-1"], "SOLVER.CHECKPOINTS_KEPT -1 is too small"),
    ],
)
def test_settings_that_mean_nothing(tiny, keys, message):
    with pytest.raises(UserError, match=message):
        load_config(tiny[1], keys)


def test_out_of_memory_names_what_fits(tiny, tmp_path, monkeypatch):
    forward = GeneralizedRCNN.forward

    def tight(self, batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch)

    monkeypatch.setattr(GeneralizedRCNN, "forward", tight)
    with pytest.raises(
        UserError,
        match="SOLVER.IMS_PER_BATCH 4 at iteration 0: out of memory in a step of 4 images: CUDA out of memory. .*; 2 of the "
        "same images fit: set SOLVER.IMS_PER_BATCH 2 and SOLVER.BASE_LR 0.01, or SOLVER.ACCUMULATE 2, a smaller",
    ):
        main([*tiny, *NO_EVALUATION])


def test_callbacks_of_ones_own_and_a_leap_of_the_loss(tiny, tmp_path, monkeypatch):
    (tmp_path / "mine_of_this_test.py").write_text(
        "from resnest_det.engine.callbacks import Callback\n"
        "class Mine(Callback):\n"
        "    told = []\n"
        "    def iteration(self, iteration, losses, *, lr, time, data_time): self.told.append((iteration, sorted(losses)[0]))\n"
        "    def results(self, iteration, results): self.told.append((iteration, results['bbox/AP'] >= 0))\n"
        "    def close(self): self.told.append('closed')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resnest_det.engine.spikes._LEAST", 1)
    monkeypatch.setattr("resnest_det.engine.spikes.FACTOR", 0.01)
    main([*tiny, "--callback", "mine_of_this_test:Mine", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0"])
    assert sys.modules["mine_of_this_test"].Mine.told == [(0, "loss_box_reg"), (1, "loss_box_reg"), (2, True), "closed"]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "iteration 1: the loss leapt to" in log and "images of this step: " in log.split("leapt")[1]
    for text, message in (
        ("Mine", "--callback: 'Mine' is not of the form MODULE:NAME"),
        ("absent:X", "--callback: absent:X: the module cannot"),
    ):
        with pytest.raises(UserError, match=message):
            main([*tiny, "--callback", text])


def test_services_that_are_not_there(tiny, monkeypatch):
    with pytest.raises(UserError, match="--track: 'wandbb' is none of wandb, mlflow, clearml, comet; did you mean wandb?"):
        main([*tiny, "--track", "wandbb"])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match='--track: mlflow needs the package mlflow, which is not installed: pip install "mlflow"'):
        main([*tiny, "--track", "mlflow"])


def test_anchors_that_fit_nothing_are_told(tiny, tmp_path):
    sizes = "[[64], [128], [256], [512], [1024]]"
    main([*tiny, *NO_EVALUATION, "SOLVER.MAX_ITER", "1", "MODEL.ANCHOR_GENERATOR.SIZES", sizes])
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "no anchor fits any object of red, blue to an IoU of 0.5 (between MODEL.RPN.IOU_THRESHOLDS)" in log
    assert "100% of the objects" in log and "smaller than half of the smallest anchor, 64 pixels" in log
    main([*tiny[:2], *NO_EVALUATION, "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path / "well")])
    assert "no anchor fits" not in (tmp_path / "well" / "log.txt").read_text()
