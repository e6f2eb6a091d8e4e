"""Keys in epochs become iterations once the number of images is known."""

import pytest

from resnest_det.configuration.nodes import value_of, with_values
from resnest_det.configuration.reading import load_config, named_keys
from resnest_det.configuration.solver import in_iterations
from resnest_det.errors import UserError

BASE = {"SOLVER.IMS_PER_BATCH": 16, "SOLVER.MAX_ITER": 90000, "SOLVER.STEPS": (60000, 80000)}


@pytest.fixture(scope="module")
def cfg():
    return load_config("mask_rcnn_ResNeSt50_FPN")


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {}),
        # 12 epochs of 2000 images; the steps stay at two and eight ninths, the warm-up of 1000 becomes a tenth.
        (
            {"SOLVER.MAX_EPOCHS": 12},
            {"SOLVER.MAX_ITER": 1500, "SOLVER.STEPS": (1000, 1333), "SOLVER.WARMUP_ITERS": 150, "SOLVER.CHECKPOINT_PERIOD": 5000},
        ),
        ({"SOLVER.MAX_EPOCHS": 0.001}, {"SOLVER.MAX_ITER": 1, "SOLVER.WARMUP_ITERS": 1}),
        (
            {"SOLVER.MAX_EPOCHS": 4, "SOLVER.STEPS_EPOCHS": (2, 3.5), "SOLVER.WARMUP_EPOCHS": 0.1},
            {"SOLVER.MAX_ITER": 500, "SOLVER.STEPS": (250, 438), "SOLVER.WARMUP_ITERS": 13},
        ),
        (
            {"SOLVER.CHECKPOINT_EPOCHS": 1, "TEST.EVAL_EPOCHS": 2.0, "VIS_EPOCHS": 0.5},
            {"SOLVER.CHECKPOINT_PERIOD": 125, "TEST.EVAL_PERIOD": 250, "VIS_PERIOD": 63, "SOLVER.MAX_ITER": 90000},
        ),
    ],
)
def test_iterations(cfg, given, expected):
    made = in_iterations(with_values(cfg, BASE | given), 2000)
    assert {key: value_of(made, key) for key in expected} == expected
    assert in_iterations(made, 2000) == made, "what config.yaml has is the same again"


def test_steps_of_another_schedule_stay(cfg):
    cosine = with_values(cfg, BASE | {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER.MAX_EPOCHS": 1})
    assert in_iterations(cosine, 2000).SOLVER.STEPS == (60000, 80000)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"SOLVER.STEPS_EPOCHS": (3, 2)}, r"SOLVER.STEPS_EPOCHS \(3, 2\) must be rising"),
        ({"SOLVER.MAX_EPOCHS": 1e6, "SOLVER.IMS_PER_BATCH": 1}, "SOLVER.MAX_EPOCHS 1e[+]06 are 2000000000 iterations"),
    ],
)
def test_impossible_epochs(cfg, given, message):
    with pytest.raises(UserError, match=message):
        in_iterations(with_values(cfg, BASE | given), 2000)


def test_negative_epochs_are_refused_when_the_file_is_read():
    with pytest.raises(UserError, match="TEST.EVAL_EPOCHS -1.0 is too small"):
        load_config("mask_rcnn_ResNeSt50_FPN", ["TEST.EVAL_EPOCHS", "-1"])


def test_named_keys_are_those_of_files_bases_and_overrides():
    named = named_keys("mask_rcnn_ResNeSt50_FPN", ["SEED", "1"])
    assert {"MODEL.WEIGHTS", "SOLVER.IMS_PER_BATCH", "SEED"} <= named
    assert not named & {"MODEL.ROI_HEADS.NUM_CLASSES", "SOLVER.MOMENTUM"}
