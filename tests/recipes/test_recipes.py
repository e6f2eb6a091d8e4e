"""The recipes that come along: published facts, the authors' parameters, and one step and one evaluation of each."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from resnest_det import model_zoo
from resnest_det.commands.train_net import main
from resnest_det.configuration.model import assemble_model
from resnest_det.configuration.reading import load_config
from resnest_det.errors import UserError
from resnest_det.files import packaged
from resnest_det.model_zoo import TRAINED_DETECTORS
from resnest_det.weights.downloads import resolve_weights
from tests.helpers.configs import HERE, narrow, typed
from tests.helpers.datasets import write_panoptic_shapes

ALL = sorted(path.stem for path in packaged("configs").glob("*.yaml") if not path.stem.startswith("Base-"))
# Those for pixels on a dilated network have a file of their own, tests/recipes/test_segmentation_recipes.py.
RECIPES = [recipe for recipe in ALL if not recipe.startswith(("fcn", "deeplab"))]
BIG = ("101", "200", "269")
PARAMETERS = json.loads(gzip.decompress(Path(__file__).with_name("wrapper_parameters.json.gz").read_bytes()))


def parameters(cfg) -> set[str]:
    with torch.device("meta"):
        state = assemble_model(cfg).state_dict()
    return {f"{name} {tuple(value.shape)}" for name, value in state.items() if not name.endswith("num_batches_tracked")}


def authors_parameters(recipe: str) -> set[str]:
    number = str(PARAMETERS["recipes"].index(recipe))
    return {name for recipes, names in PARAMETERS["parameters"].items() if number in recipes.split() for name in names}


@pytest.mark.parametrize("recipe", RECIPES)
def test_parameters_are_those_of_the_authors_wrapper(recipe):
    ours, theirs = parameters(load_config(recipe)), authors_parameters(recipe)
    assert len(theirs) > 300
    assert ours - theirs == set() and theirs - ours == set()


def test_there_is_a_recipe_for_every_published_detector():
    assert set(TRAINED_DETECTORS) < set(ALL)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_the_published_settings(recipe):
    cfg = load_config(recipe)
    plain, cascade, mask = "ResNet" in recipe, "cascade" in recipe, "mask" in recipe or "panoptic" in recipe
    three_times, panoptic, dcn = recipe.endswith("_3x"), "panoptic" in recipe, "dcn" in recipe
    depth = int("".join(character for character in recipe.split("_FPN")[0] if character.isdigit()))

    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.MASK_ON) == (depth, mask)
    assert cfg.MODEL.BACKBONE.NAME == ("build_resnet_fpn_backbone" if plain else "build_resnest_fpn_backbone")
    assert cfg.INPUT.FORMAT == ("BGR" if plain else "RGB")
    assert cfg.MODEL.PIXEL_MEAN == ([103.53, 116.28, 123.675] if plain else [123.68, 116.779, 103.939])
    assert cfg.MODEL.PIXEL_STD == ([1.0, 1.0, 1.0] if plain else [58.393, 57.12, 57.375])
    weights = f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl" if plain else f"resnest://resnest{depth}"
    assert cfg.MODEL.WEIGHTS == weights
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.FPN.NORM == cfg.MODEL.ROI_BOX_HEAD.NORM == "SyncBN"
    assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC) == (4, 1)
    rpn = cfg.MODEL.RPN
    assert (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST) == (2000, 1000, 1000)
    assert cfg.MODEL.ROI_HEADS.NAME == ("CascadeROIHeads" if cascade else "StandardROIHeads")
    assert cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG == cascade
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == (2000 if cascade else 1000)
    deformable = cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE, cfg.MODEL.RESNETS.DEFORM_MODULATED, cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS
    assert deformable == (([False, True, True, True], True, 2) if dcn else ([False] * 4, False, 1))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.TEST.PRECISE_BN.ENABLED) == (16, 0.02, True)
    schedule = ((240000, 255000), 270000) if three_times else ((60000, 80000), 90000)
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == schedule

    sides = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
    if panoptic and three_times:
        assert sides == ("range", (400, 1000), 1440) and cfg.TEST.AUG.ENABLED and cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT == 0.5
    elif three_times:
        assert sides == ("range", (640, 864), 1440) and cfg.INPUT.CROP.ENABLED and cfg.MODEL.ROI_MASK_HEAD.NUM_CONV == 8
    elif recipe.startswith(("faster", "cascade_rcnn")):
        assert sides == ("range", (640, 800), 1333)
    else:
        assert sides == ("choice", (640, 672, 704, 736, 768, 800), 1333)


AUTHORS_BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RPN:
    IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"]
    PRE_NMS_TOPK_TRAIN: 2000
    PRE_NMS_TOPK_TEST: 1000
    POST_NMS_TOPK_TRAIN: 1000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 4, POOLER_RESOLUTION: 14}
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  STEPS: (60000, 80000)
  MAX_ITER: 90000
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
VERSION: 2
"""
AUTHORS_DCN = """
_BASE_: "../ResNeSt-Base.yaml"
MODEL:
  WEIGHTS: "https://s3.us-west-1.wasabisys.com/resnest/detectron/resnest50_detectron-255b5649.pth"
  MASK_ON: False
  RESNETS:
    DEPTH: 50
    STRIDE_IN_1X1: False
    RADIX: 2
    DEFORM_ON_PER_STAGE: [False, True, True, True] # on Res3,Res4,Res5
    DEFORM_MODULATED: True
    DEFORM_NUM_GROUPS: 2
    NORM: "SyncBN"
  FPN:
    NORM: "SyncBN"
  ROI_BOX_HEAD:
    NAME: "FastRCNNConvFCHead"
    NUM_CONV: 4
    NUM_FC: 1
    NORM: "SyncBN"
  PIXEL_MEAN: [123.68, 116.779, 103.939]
  PIXEL_STD: [58.393, 57.12, 57.375]
INPUT:
  MIN_SIZE_TRAIN: (640, 800)
  MIN_SIZE_TRAIN_SAMPLING: "range"
  MAX_SIZE_TRAIN: 1333
  FORMAT: "RGB"
TEST:
  PRECISE_BN:
    ENABLED: True
"""


def test_a_file_in_the_authors_form_means_the_same(tmp_path):
    """Two bases deep, defaults of the wrapper left out, tuples and comments as they write them."""
    (tmp_path / "Base-RCNN-FPN.yaml").write_text(AUTHORS_BASE)
    (tmp_path / "ResNeSt-Base.yaml").write_text(
        '_BASE_: "Base-RCNN-FPN.yaml"\nMODEL:\n  BACKBONE:\n    NAME: "build_resnest_fpn_backbone"\n'
    )
    (tmp_path / "COCO-Detection").mkdir()
    (tmp_path / "COCO-Detection" / "theirs.yaml").write_text(AUTHORS_DCN)
    theirs = load_config(str(tmp_path / "COCO-Detection" / "theirs.yaml"))
    # What a box detector does not read.
    ours = load_config("faster_rcnn_ResNeSt50_FPN_dcn", ["MODEL.WEIGHTS", theirs.MODEL.WEIGHTS, "MODEL.ROI_MASK_HEAD.NORM", ""])
    assert theirs == ours
    assert parameters(theirs) == authors_parameters("faster_rcnn_ResNeSt50_FPN_dcn")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Flags that register a dataset for every task, and its name."""
    folder = tmp_path_factory.mktemp("recipes")
    return write_panoptic_shapes(folder, {"few": 2}), f"{folder.name}_few"


# As deep as published, but narrow.
TINY = HERE | narrow(8, 16)
TINY |= {
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 30,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 10,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "MODEL.ROI_HEADS.NUM_CLASSES": 4,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.STEPS": (1,),
    "TEST.PRECISE_BN.NUM_ITER": 1,
    "TEST.DETECTIONS_PER_IMAGE": 5,
    "SEED": 3,
}
OF_PANOPTIC = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16}


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=[pytest.mark.slow] if any(depth in recipe for depth in BIG) else []) for recipe in RECIPES],
)
def test_one_step_and_one_evaluation(recipe, shapes, tmp_path):
    register, name = shapes
    cfg = load_config(recipe)
    keys = TINY | {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,), "OUTPUT_DIR": tmp_path}
    keys["INPUT.MIN_SIZE_TRAIN"] = (64,) if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "choice" else (56, 64)
    if cfg.TEST.AUG.ENABLED:
        keys["TEST.AUG.MIN_SIZES"] = (48, 64)
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        keys |= OF_PANOPTIC
    main(["--config-file", recipe, *register, *typed(keys)])

    step, figures = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = {key for key in step if key.startswith("loss_")}
    expected, tasks = set(), set()
    if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor":
        stages = [f"_stage{stage}" for stage in range(3)] if "cascade" in recipe else [""]
        expected |= {"loss_rpn_cls", "loss_rpn_loc"}
        expected |= {f"{loss}{stage}" for loss in ("loss_cls", "loss_box_reg") for stage in stages}
        expected |= {"loss_mask"} if cfg.MODEL.MASK_ON else set()
        tasks |= {"bbox", "segm"} if cfg.MODEL.MASK_ON else {"bbox"}
        tasks |= {f"{task}_TTA" for task in tasks} if cfg.TEST.AUG.ENABLED else set()
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        expected |= {"loss_sem_seg"}
        tasks |= {"sem_seg"}
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        tasks |= {"panoptic_seg"}
    # The rpn may find nothing to learn boxes from in images this small; everything else does.
    assert losses == expected and all(0 < step[loss] < 100 for loss in losses - {"loss_rpn_loc"})
    assert {key.split("/")[0] for key in figures if "/" in key} == tasks
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_model_zoo_finds_recipes_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = model_zoo.get_config_file("mask_rcnn_ResNeSt50_FPN")
    assert Path(path).is_file() and path == model_zoo.get_config_file("mask_rcnn_ResNeSt50_FPN.yaml")
    in_mmdetection = Path(model_zoo.get_config_file("mask-rcnn_resnest50_fpn_1x_coco.py"))
    assert in_mmdetection == Path(path).parent / "mmdet" / "mask-rcnn_resnest50_fpn_1x_coco.py" and in_mmdetection.is_file()
    assert model_zoo.get_config("mask_rcnn_ResNeSt50_FPN").MODEL.WEIGHTS == "resnest://resnest50"
    trained = model_zoo.get_config("cascade_mask_rcnn_ResNeSt200_FPN_dcn_3x", trained=True)
    assert trained.MODEL.WEIGHTS == "resnest://mask_cascade_rcnn_ResNeSt_200_FPN_dcn_syncBN_all_tricks_3x"
    with pytest.raises(UserError, match="mask_rcnn_ResNeSt49_FPN.*nearest: mask_rcnn_ResNeSt50_FPN"):
        model_zoo.get_config_file("mask_rcnn_ResNeSt49_FPN")
    with pytest.raises(UserError, match="no trained detector is published for cascade_mask_rcnn_ResNeSt269_FPN_3x"):
        model_zoo.get_config("cascade_mask_rcnn_ResNeSt269_FPN_3x", trained=True)


def test_a_trained_model_has_the_weights_of_the_published_file(tmp_path, monkeypatch):
    """The file is found in the cache under its published name, as if it had been downloaded."""
    recipe, filename = "faster_rcnn_ResNeSt50_FPN_dcn", "faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x.pth"
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path))
    state = model_zoo.get(recipe, device="cpu").state_dict()
    state = {name: torch.full_like(value, 0.25) if value.is_floating_point() else value for name, value in state.items()}
    torch.save({"model": state}, tmp_path / filename)
    model = model_zoo.get(recipe, trained=True, device="cpu")
    assert all((value == 0.25).all() for value in model.parameters())


@pytest.mark.parametrize(
    "recipe, overrides, message",
    [
        ("faster_rcnn_ResNeSt50_FPN_dcn", ["MODEL.RESNETS.RADIX", "3"], "MODEL.RESNETS: .* 64 channels .* radix 3"),
        ("faster_rcnn_ResNeSt50_FPN_dcn", ["MODEL.RESNETS.DEFORM_NUM_GROUPS", "3"], "MODEL.RESNETS: .* 3 deformable groups"),
        ("cascade_rcnn_ResNeSt50_FPN", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"], "CLS_AGNOSTIC_BBOX_REG False"),
        (
            "cascade_rcnn_ResNeSt50_FPN",
            ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6)"],
            "IOUS has 2 values for 3 heads, 3 predictors",
        ),
        ("mask_rcnn_ResNeSt50_FPN", ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()"], "TEST.AUG.MIN_SIZES"),
        ("mask_rcnn_ResNeSt50_FPN", ["TEST.AUG.ENABLED", "True", "TEST.AUG.MAX_SIZE", "0"], "TEST.AUG.MAX_SIZE"),
        (
            "mask_rcnn_ResNeSt50_FPN",
            ["TEST.EXPECTED_RESULTS", "[['bbox_TTA', 'AP', 40, 1]]"],
            "asks for bbox_TTA.*TEST.AUG.ENABLED",
        ),
        (
            "faster_rcnn_ResNeSt50_FPN",
            ["TEST.AUG.ENABLED", "True", "TEST.EXPECTED_RESULTS", "[['segm_TTA', 'AP', 40, 1]]"],
            "asks for segm_TTA.*MODEL.MASK_ON.*evaluates bbox, bbox_TTA",
        ),
        ("mask_rcnn_ResNeSt50_FPN", ["TEST.EXPECTED_RESULTS", "[['bbox', 40]]"], "task, metric, value, tolerance"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(recipe, overrides, message):
    with pytest.raises(UserError, match=message) as raised, torch.device("meta"):
        assemble_model(load_config(recipe, overrides))
    assert "\n" not in str(raised.value)


def test_links_in_the_authors_files_are_known_files(tmp_path, monkeypatch):
    """What was put into the cache by hand is found, under the published name, when a link in a YAML file is dead."""
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path))
    (tmp_path / "faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x.pth").write_bytes(b"weights")
    link = "https://s3.us-west-1.wasabisys.com/resnest/detectron/faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x.pth"
    assert resolve_weights(link) == resolve_weights("resnest://faster_rcnn_ResNeSt_50_FPN_dcn_syncbn_range-scale_1x")
    (tmp_path / "resnest50_detectron-255b5649.pth").write_bytes(b"another file")
    with pytest.raises(UserError, match="published is 255b5649"):
        resolve_weights("https://s3.us-west-1.wasabisys.com/resnest/detectron/resnest50_detectron-255b5649.pth")
