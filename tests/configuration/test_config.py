"""Configurations: inheritance, overrides, and one clear line for everything that is wrong."""

import pytest

from resnest_det.configuration.reading import find_config_file, load_config
from resnest_det.errors import UserError
from resnest_det.files import packaged

RECIPE = "mask_rcnn_ResNeSt50_FPN"
DETECTORS = sorted(path for path in packaged("configs").rglob("*.yaml") if path.parent.name != "imagenet")


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_recipe_follows_the_published_figures():
    cfg = load_config(RECIPE)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == (
        16,
        0.02,
        (60000, 80000),
        90000,
    )
    assert cfg.MODEL.PIXEL_MEAN == [123.68, 116.779, 103.939] and cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.FPN.NORM == cfg.MODEL.ROI_BOX_HEAD.NORM == cfg.MODEL.ROI_MASK_HEAD.NORM == "SyncBN"
    assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.TEST.PRECISE_BN.ENABLED) == (4, 1, True)


@pytest.mark.parametrize("path", DETECTORS, ids=lambda path: path.stem)
def test_every_shipped_config_is_found_by_name_and_supported(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_config_file(path.stem) == path
    if path.parent.name == "detectron2":
        with pytest.raises(UserError, match="is not supported"):
            load_config(path.stem)
    else:
        load_config(path.stem)


def test_base_is_relative_and_the_nearer_file_wins(tmp_path):
    write(tmp_path, "base.yaml", "SOLVER: {MAX_ITER: 10, BASE_LR: 0.5}\n")
    (tmp_path / "sub").mkdir()
    recipe = find_config_file(RECIPE)
    write(tmp_path, "sub/middle.yaml", f"_BASE_: ['{recipe}', '../base.yaml']\n")
    top = write(tmp_path, "sub/top.yaml", "_BASE_: middle.yaml\nSOLVER: {MAX_ITER: 20}\n")
    cfg = load_config(top, ["SOLVER.GAMMA", "0.3"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA, cfg.MODEL.RESNETS.DEPTH) == (20, 0.5, 0.3, 50)


def test_override_values_in_the_forms_people_type():
    cfg = load_config(
        RECIPE,
        [
            "SOLVER.BASE_LR",
            "1",
            "INPUT.MIN_SIZE_TRAIN",
            "(320,)",
            "MODEL.WEIGHTS",
            "",
            "MODEL.MASK_ON",
            "False",
            "SOLVER.WEIGHT_DECAY_BIAS",
            "0.5",
            "MODEL.DEVICE",
            "cpu",
        ],
    )
    assert isinstance(cfg.SOLVER.BASE_LR, float) and cfg.INPUT.MIN_SIZE_TRAIN == (320,) and cfg.MODEL.WEIGHTS == ""
    assert cfg.MODEL.MASK_ON is False and cfg.SOLVER.WEIGHT_DECAY_BIAS == 0.5


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["SOLVER.LR", "1"], ["SOLVER.LR", "SOLVER.BASE_LR"]),
        (["MODEL.MASKON", "True"], ["MODEL.MASKON", "MODEL.MASK_ON"]),
        (["MODEL.ROI_HEAD.NUM_CLASSES", "3"], ["MODEL.ROI_HEAD.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"]),
        (["MODEL", "3"], ["MODEL", "section"]),
        (["MODEL.MASK_ON", "1"], ["MODEL.MASK_ON", "bool", "'1'"]),
        (["SOLVER.STEPS", "(1,"], ["SOLVER.STEPS", "tuple"]),
        (["MODEL.WEIGHTS"], ["MODEL.WEIGHTS", "no value"]),
        (["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"], ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "StandardROIHeads"]),
        (["MODEL.RETINANET.NUM_CLASSES", "3"], ["MODEL.RETINANET.NUM_CLASSES", "3", "80"]),
        (["MODEL.KEYPOINT_ON", "True"], ["MODEL.KEYPOINT_ON", "True", "False"]),
        (["SOLVER.IMS_PER_BATCH", "0"], ["SOLVER.IMS_PER_BATCH", "0", "1"]),
        (["MODEL.DEVICE", "tpu"], ["MODEL.DEVICE", "tpu", "cuda"]),
        (["MODEL.FPN.IN_FEATURES", "['res2','p3']"], ["MODEL.FPN.IN_FEATURES", "p3", "res5"]),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32],[64]]"], ["MODEL.ANCHOR_GENERATOR.SIZES", "2 lists", "5"]),
        (["INPUT.FORMAT", "L"], ["MODEL.PIXEL_MEAN", "INPUT.FORMAT"]),
    ],
)
def test_wrong_override_is_one_line_that_names_the_key(overrides, expected):
    with pytest.raises(UserError) as raised:
        load_config(RECIPE, overrides)
    assert "\n" not in str(raised.value)
    for word in expected:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "not a configuration"),
        ("- a\n- b\n", "not a configuration"),
        ("MODEL: {A: 1", "not valid YAML"),
        ("_BASE_: nope.yaml\n", "nope.yaml does not exist"),
        ("_BASE_: wrong.yaml\n", "leads back to itself"),
        ("MODEL: [1, 2]\n", "MODEL is a section"),
        ("MODEL: {WEIGHTS: !!python/object/apply:os.getcwd []}\n", "not valid YAML"),
        ("SOLVER: {MAX_ITERS: 3}\n", "SOLVER.MAX_ITER"),
    ],
)
def test_wrong_file_is_named(tmp_path, text, expected):
    path = write(tmp_path, "wrong.yaml", text)
    with pytest.raises(UserError, match="wrong.yaml") as raised:
        load_config(path)
    assert expected in str(raised.value)


def test_unknown_config_names_the_nearest():
    with pytest.raises(UserError, match="mask_rcnn_ResNeSt50_FPN"):
        load_config("mask_rcnn_ResNeSt50")


@pytest.mark.parametrize(
    "recipe, overrides, message",
    [
        ("mask_rcnn_ResNeSt50_FPN", ["SOLVER.STEPS", "(4, 2)"], r"SOLVER.STEPS is \(4, 2\)"),
        ("mask_rcnn_ResNeSt50_FPN", ["SOLVER.STEPS", "(1.5,)"], r"SOLVER.STEPS is \(1.5,\)"),
        ("mask_rcnn_ResNeSt50_FPN", ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[2.0, 3.0]"], "INPUT.CROP.SIZE"),
        ("mask_rcnn_ResNeSt50_FPN", ["INPUT.MIN_SIZE_TRAIN", "()"], "INPUT.MIN_SIZE_TRAIN"),
        ("cascade_rcnn_ResNeSt50_FPN", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"], "CLS_AGNOSTIC_BBOX_REG False"),
        ("cascade_rcnn_ResNeSt50_FPN", ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5,)"], "CASCADE_HEAD.IOUS has 1 values"),
        ("mask_rcnn_ResNeSt50_FPN", ["MODEL.RESNETS.RES4_DILATION", "2"], "MODEL.RESNETS.RES4_DILATION 2"),
        (
            "mask_rcnn_ResNeSt50_FPN",
            ["MODEL.RESNETS.RADIX", "3"],
            "MODEL.RESNETS: .*64 channels cannot be divided into 1 groups x radix 3",
        ),
        (
            "mask_rcnn_ResNeSt50_FPN",
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "-3.0"],
            "SOLVER.BASE_LR_END is -3",
        ),
        ("mask_rcnn_ResNeSt50_FPN", ["MODEL.ROI_BOX_HEAD.NUM_CONV", "0", "MODEL.ROI_BOX_HEAD.NUM_FC", "0"], "needs a layer"),
        ("mask_rcnn_ResNeSt50_FPN", ["MODEL.RPN.BBOX_REG_LOSS_TYPE", "l3"], "MODEL.RPN.BBOX_REG_LOSS_TYPE 'l3'"),
        ("mask_rcnn_ResNeSt50_FPN", ["MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", "-1.0"], "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA -1"),
        ("mask_rcnn_ResNeSt50_FPN", ["SOLVER.MOMENTUM", "-1.0"], "MOMENTUM -1"),
        ("mask_rcnn_ResNeSt50_FPN", ["MODEL.FPN.FUSE_TYPE", "max"], "MODEL.FPN.FUSE_TYPE 'max'"),
    ],
)
def test_everything_is_refused_when_it_is_loaded(recipe, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(recipe, overrides)
    assert "\n" not in str(error.value)
