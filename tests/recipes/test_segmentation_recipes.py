"""The recipes for pixels: published settings, and a few steps and an evaluation on folders of the benchmarks' layout."""

import json

import numpy as np
import pytest
from PIL import Image

from resnest_det.commands.train_net import main
from resnest_det.configuration.checking import check_buildable
from resnest_det.configuration.data import build_augmentation
from resnest_det.configuration.reading import load_config
from resnest_det.data.transforms import PadTo, RandomCrop, RandomFlip, ResizeLongestEdge
from resnest_det.errors import UserError
from resnest_det.model_zoo import TRAINED_DETECTORS, get_config
from tests.helpers.configs import HERE, narrow, typed
from tests.recipes.test_recipes import ALL

RECIPES = [recipe for recipe in ALL if recipe.startswith(("fcn", "deeplab"))]
EPOCHS = {"50_ade20k": 120, "101_ade20k": 180, "200_ade20k": 180, "269_ade20k": 120}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_the_published_settings(recipe):
    cfg = load_config(recipe)
    check_buildable(cfg)
    head, of = cfg.MODEL.SEM_SEG_HEAD, recipe.split("_ResNeSt")[1]
    assert cfg.MODEL.RESNETS.DEPTH == int(of.split("_")[0]) and cfg.MODEL.WEIGHTS == f"resnest://resnest{of.split('_')[0]}"
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([255 * value for value in (0.485, 0.456, 0.406)])
    assert cfg.MODEL.PIXEL_STD == pytest.approx([255 * value for value in (0.229, 0.224, 0.225)])
    assert (cfg.INPUT.FORMAT, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.LR_SCHEDULER_NAME) == ("RGB", 16, "WarmupPolyLR")
    assert head.NUM_CLASSES == {"ade20k": 150, "context": 59, "cityscapes": 19}[recipe.rsplit("_", 1)[1]]
    if recipe.startswith("deeplabv3plus"):
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, head.LOSS_TYPE) == (90000, 0.01, "hard_pixel_mining")
        return
    assert cfg.SOLVER.MAX_EPOCHS == EPOCHS.get(of, 80) and cfg.SOLVER.BASE_LR == (0.01 if "ade20k" in recipe else 0.001)
    assert (cfg.SOLVER.HEAD_LR_FACTOR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM) == (10, 1e-4, 1e-4)
    assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.POLY_LR_POWER, cfg.SOLVER.WARMUP_ITERS) == (0.9, 0.9, 0)
    expected = (ResizeLongestEdge((260, 1040)), PadTo((480, 480)), RandomCrop("absolute", (480, 480)), RandomFlip())
    assert build_augmentation(cfg).steps == expected
    assert (head.AUX_HEAD.ENABLED, head.AUX_HEAD.LOSS_WEIGHT, head.ALIGN_CORNERS) == (True, 0.2, True)
    assert recipe in TRAINED_DETECTORS and get_config(recipe, trained=True).MODEL.WEIGHTS.startswith("resnest://")


def test_an_absent_dataset_says_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    arguments = ["--config-file", "deeplabv3_ResNeSt50_ade20k", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    with pytest.raises(UserError) as error:
        main([*arguments, "OUTPUT_DIR", str(tmp_path / "out")])
    message = str(error.value)
    assert message.startswith(f"dataset ade20k_sem_seg_train: expected its label PNG files in {tmp_path}/ADEChallengeData2016/")
    assert f"unpack http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (1 GB) into {tmp_path}" in message
    assert "images/training and annotations/training" in message and "\n" not in message


@pytest.fixture
def benchmarks(tmp_path, monkeypatch):
    """ADE20K and Cityscapes with a few small images, in the layout of their downloads."""
    rng = np.random.default_rng(0)
    for part, count in (("training", 6), ("validation", 2)):
        for number in range(1, count + 1):
            labels = rng.integers(0, 151, (7, 9)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            name = f"ADE_{part[:5] if part == 'training' else 'val'}_{number:08d}"
            for folder, pixels, ending in (("images", np.stack([labels] * 3, axis=2), "jpg"), ("annotations", labels, "png")):
                path = tmp_path / "data/ADEChallengeData2016" / folder / part / f"{name}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            labels = rng.integers(0, 34, (4, 8)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
            name = f"data/cityscapes/{{}}/{split}/ulm/ulm_{number:06d}_000019"
            for folder, pixels, ending in (
                ("leftImg8bit", np.stack([labels] * 3, axis=2), "leftImg8bit"),
                ("gtFine", labels, "gtFine_labelIds"),
            ):
                path = tmp_path / f"{name.format(folder)}_{ending}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path


TINY = HERE | narrow(8, 16) | {"MODEL.WEIGHTS": "", "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 4, "SEED": 3}
TINY |= {f"MODEL.SEM_SEG_HEAD.{key}": 16 for key in ("CONVS_DIM", "ASPP_CHANNELS", "AUX_HEAD.CONVS_DIM")}
TINY |= {"SOLVER.MAX_EPOCHS": 0, "SOLVER.CHECKPOINT_EPOCHS": 0, "TEST.WRITE_LABELS": True}
TINY |= {"MODEL.RESNETS.DEPTH": 14}
AUTHORS = {"INPUT.LONG_SIDE_TRAIN": (32, 128), "INPUT.CROP.SIZE": (64, 64), "TEST.AUG.ENABLED": True}
AUTHORS |= {"TEST.AUG.SCALES": (0.5, 1.5), "TEST.AUG.LONG_SIDE": 70, "TEST.AUG.WINDOW": (64, 64)}
OF_RECIPE = {
    "deeplabv3_ResNeSt50_ade20k": AUTHORS,
    "fcn_ResNeSt50_ade20k": AUTHORS,
    "deeplabv3plus_ResNeSt50_cityscapes": {
        "MODEL.RESNETS.RES5_MULTI_GRID": [1],
        "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [8],
        "INPUT.MIN_SIZE_TRAIN": (64, 96),
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.CROP.SIZE": (64, 64),
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.9,
        "INPUT.COLOR_AUG_SSD": True,
    },
}


@pytest.mark.parametrize("recipe", OF_RECIPE)
def test_four_steps_and_an_evaluation_on_a_folder_of_the_published_layout(recipe, benchmarks):
    keys = TINY | OF_RECIPE[recipe] | {"OUTPUT_DIR": benchmarks / "out"}
    if recipe.startswith("fcn"):
        keys.pop("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS")
    if recipe.startswith("deeplabv3plus"):
        keys.pop("MODEL.SEM_SEG_HEAD.AUX_HEAD.CONVS_DIM")
    main(["--config-file", recipe, *typed(keys)])
    *steps, figures = [json.loads(line) for line in (benchmarks / "out/metrics.json").read_text().splitlines()]
    losses = {"loss_sem_seg", "loss_sem_seg_aux"} if "plus" not in recipe else {"loss_sem_seg"}
    assert steps and all(set(step) >= losses and all(0 < step[loss] < 100 for loss in losses) for step in steps)
    assert 0 <= figures["sem_seg/mIoU"] <= 100 and ("sem_seg_TTA/mIoU" in figures) == ("plus" not in recipe)
    if "ade20k" in recipe:
        for folder in ("inference", "inference_TTA"):
            written = sorted((benchmarks / "out" / folder / "labels").iterdir())
            assert [path.name for path in written] == ["ADE_val_00000001.png", "ADE_val_00000002.png"]
            labels = np.asarray(Image.open(written[0]))
            assert labels.shape == (56, 72) and labels.min() >= 1 and labels.max() <= 150
        assert list((benchmarks / "out/inference").glob("*_semantic.png"))
    else:
        (labels, _) = sorted((benchmarks / "out/inference/labels/ulm").iterdir())
        assert labels.name == "ulm_000000_000019_leftImg8bit.png"
        assert set(np.unique(np.asarray(Image.open(labels)))) <= {7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33}


def test_the_auxiliary_head_is_checked_against_the_classes(benchmarks):
    """A dataset with other classes than the recipe says is refused before the first step."""
    keys = TINY | AUTHORS | {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19, "OUTPUT_DIR": benchmarks / "out"}
    with pytest.raises(UserError, match="NUM_CLASSES"):
        main(["--config-file", "deeplabv3_ResNeSt50_ade20k", *typed(keys)])
