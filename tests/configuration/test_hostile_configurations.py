"""Configurations that nobody means well with: one line, soon, and without the memory that they ask for."""

import subprocess
import sys
import time

import pytest

from resnest_det.configuration.reading import find_config_file, load_config
from resnest_det.errors import UserError

RECIPE = "mask_rcnn_ResNeSt14_FPN_shapes"
CASCADE = "cascade_mask_rcnn_ResNeSt14_FPN_dcn_shapes"


def refused(config_file, overrides=()) -> str:
    """The message about a configuration that is refused in one line of bounded length, within 15 s."""
    start = time.perf_counter()
    with pytest.raises(UserError) as raised:
        load_config(str(config_file), overrides)
    message = str(raised.value)
    assert time.perf_counter() - start < 15 and len(message) < 1000 and message.isprintable()
    return message


TENS = "".join(f", &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]" for i in range(9))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("MODEL: &m {RPN: *m}", "within itself"),
        ("SEED: &a [*a]", "within itself"),
        (f"MODEL: {{MASK_ON: [&a [x,x,x,x,x,x,x,x,x,x]{TENS}]}}", "more than 10000 values"),
        ("x0: &x0 {SEED: 1}\n" + "".join(f"x{i + 1}: &x{i + 1} {{a: *x{i}, b: *x{i}}}\n" for i in range(40)), "more than 10000"),
        ("SEED: " + "[" * 60 + "]" * 60, "50 levels"),
        ("SEED: " + "[" * 90_000 + "]" * 90_000, "50 levels"),
        ("SEED: " + "9" * 5000, "not valid YAML"),
        ("SEED: 0x" + "f" * 100_000, "SEED"),
        ("SEED: 2001-99-99", "month"),
        ("SEED: 2001-01-01", "SEED takes a int"),
        ("SEED: !!int abc", "not valid YAML"),
        ("OUTPUT_DIR: " + "A" * 1_000_000, "larger than 200000 bytes"),
        ("A" * 1000 + ": 1", "unknown config key AAA"),
        ("A" * 100_000 + ": 1", "not valid YAML"),
        ("_BASE_: 5", "must be a path"),
        ("_BASE_: [[]]", "must be a path"),
        ("_BASE_: /dev/zero", "does not exist"),
        ("_BASE_: http://127.0.0.1:1/a.yaml", "does not exist"),
        ('_BASE_: "a\\0b"', "does not exist"),
        ("MODEL: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_files(tmp_path, text, expected):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert expected in refused(path)


def test_bases_that_multiply(tmp_path):
    for index in range(24):
        (tmp_path / f"{index}.yaml").write_text(f"_BASE_: [{index + 1}.yaml, {index + 1}.yaml]\n")
    (tmp_path / "24.yaml").write_text("SEED: 1\n")
    assert "leads to more than 50 files" in refused(tmp_path / "0.yaml")
    for index in range(60):
        (tmp_path / f"{index}.yaml").write_text(f"_BASE_: {index + 1}.yaml\n")
    assert "a chain of more than 50 files" in refused(tmp_path / "0.yaml")


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.MAX_ITER", "None"),
        ("OUTPUT_DIR", "None"),
        ("DATASETS.TRAIN", "None"),
        ("DATASETS.TRAIN", "(1,)"),
        ("DATASETS.TRAIN", "shapes"),
        ("MODEL.RPN.IN_FEATURES", "[['p2']]"),
        ("MODEL.RPN.IN_FEATURES", "[{}]"),
        ("MODEL.PIXEL_MEAN", "['a', 'b', 'c']"),
        ("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"),
        ("TEST.EXPECTED_RESULTS", "[[[], 1, 2, 3]]"),
        ("SEED", "{[]: 1}"),
        ("SEED", "9" * 5000),
        ("SEED", "-" * 9000 + "1"),
        ("SEED", "(" * 100_000),
        ("SEED", str(2**63)),
        ("SOLVER.BASE_LR", "1e999"),
        ("SOLVER.BASE_LR", "9" * 400),
        ("OUTPUT_DIR", "'\\ud800'"),
        ("OUTPUT_DIR", "'a\\x00b'"),
        ("MODEL.DEVICE", "cuda:" + "9" * 500),
        ("MODEL.FPN.OUT_CHANNELS", str(2**40)),
        ("MODEL.ROI_BOX_HEAD.NUM_CONV", str(2**40)),
        ("MODEL.ROI_HEADS.NUM_CLASSES", str(2**40)),
        ("MODEL.RPN.CONV_DIMS", f"[{2**40}]"),
        ("MODEL.RPN.CONV_DIMS", "[0]"),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", "65536"),
        ("MODEL.RESNETS.NUM_GROUPS", "3"),
        ("MODEL.RESNETS.BOTTLENECK_WIDTH", "1"),
        ("MODEL.RPN.IN_FEATURES", str(["res4"] * 300)),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", str((1.0,) * 1200)),
        ("MODEL.RPN.IOU_LABELS", "[7]"),
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[-1]]"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0]]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", str([[1] * 1001])),
        ("INPUT.MIN_SIZE_TRAIN", f"({2**40},)"),
    ],
)
def test_overrides(key, value):
    message = refused(CASCADE, [key, value])
    assert key in message or "MODEL cannot be built" in message or "parameters" in message or "MODEL.RESNETS" in message


def test_model_without_room():
    wide = ["MODEL.RESNETS.WIDTH_PER_GROUP", "32768", "MODEL.RESNETS.RES2_OUT_CHANNELS", "65536"]
    assert "the model would have" in refused(RECIPE, wide)


def test_a_damped_gradient_may_have_any_norm():
    cfg = load_config(RECIPE, ["SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1e999"])
    assert cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE == float("inf")


def test_a_type_is_the_defaults_and_not_that_of_the_base(tmp_path):
    """Whole numbers in a base leave room for others, and null goes back to None."""
    text = (
        "MODEL: {PIXEL_MEAN: [103, 116, 123]}\nSOLVER: {WEIGHT_DECAY_BIAS: 0.1}\nTEST: {EXPECTED_RESULTS: [[bbox, AP, 1, 2]]}\n"
    )
    (tmp_path / "base.yaml").write_text(f"_BASE_: {find_config_file(RECIPE)}\n" + text)
    (tmp_path / "a.yaml").write_text(
        "_BASE_: base.yaml\nMODEL: {PIXEL_MEAN: [103.5, 116, 123]}\nSOLVER: {WEIGHT_DECAY_BIAS: null}\n"
    )
    cfg = load_config(str(tmp_path / "a.yaml"), ["TEST.EXPECTED_RESULTS", "[['segm', 'AP', 1.5, 2]]"])
    assert cfg.MODEL.PIXEL_MEAN == [103.5, 116, 123] and cfg.SOLVER.WEIGHT_DECAY_BIAS is None
    assert cfg.TEST.EXPECTED_RESULTS == [["segm", "AP", 1.5, 2]]


def test_random_changes_within_limits_of_memory():
    """In a process of its own, whose memory can be limited; see `tests/fuzz/configurations.py`."""
    command = [sys.executable, "-m", "tests.fuzz.configurations", "--count", "25", "--seed", "3"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("0 of 50 "), ran.stdout + ran.stderr
