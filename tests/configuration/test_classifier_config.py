"""Configurations of classifiers: the recipes, the authors' own keys, scaling of the rate, and what is refused."""

import math

import pytest
import yaml

from resnest_det import list_models
from resnest_det.configuration.classifier import load_classifier_config, load_classifier_text
from resnest_det.configuration.classifier_parts import drop_block_rate, run_keys
from resnest_det.configuration.nodes import leaves
from resnest_det.configuration.reading import find_config_file
from resnest_det.configuration.solver import build_schedule
from resnest_det.errors import UserError
from resnest_det.files import packaged

RECIPES = sorted(path.stem for path in (packaged("configs") / "imagenet").glob("*.yaml"))
IMAGENET = 1_281_167

# The authors' configuration with its defaults, as resnest/torch/config.py has it.
AUTHORS = """
SEED: 1
DATA:
  {DATASET: ImageNet, ROOT: /data/ILSVRC2012, BASE_SIZE: null, CROP_SIZE: 224, LABEL_SMOOTHING: 0.0, MIXUP: 0.0, RAND_AUG: false}
MODEL: {NAME: resnest50, FINAL_DROP: false}
TRAINING: {BATCH_SIZE: 64, TEST_BATCH_SIZE: 256, LAST_GAMMA: false, EPOCHS: 120, START_EPOCHS: 0, WORKERS: 4}
OPTIMIZER: {LR: 0.025, LR_SCHEDULER: cos, MOMENTUM: 0.9, WEIGHT_DECAY: 0.0001, DISABLE_BN_WD: false, WARMUP_EPOCHS: 0}
"""


def processes(monkeypatch, count):
    monkeypatch.setattr("resnest_det.configuration.classifier_parts.get_world_size", lambda: count)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_found_and_loads(name):
    assert find_config_file(f"imagenet/{name}") == packaged("configs") / "imagenet" / f"{name}.yaml"
    cfg = load_classifier_config(name)
    again = load_classifier_text(cfg.dump(), "text")
    assert dict(leaves(again)) == dict(leaves(cfg))


def test_there_is_a_recipe_for_every_variant():
    assert set(list_models()) <= set(RECIPES)
    for name in list_models():
        assert load_classifier_config(name).MODEL.NAME == name


# total batch, rate, training crop, testing crop, dropout: the commands of the authors' logs.
@pytest.mark.parametrize(
    "name, gpus, batch, rate, train, test, drop",
    [
        ("resnest14", 8, 1024, 0.4, 224, 224, 0.0),
        ("resnest50", 64, 8192, 3.2, 224, 224, 0.0),
        ("resnest101", 64, 4096, 1.6, 224, 256, 0.0),
        ("resnest200", 64, 2048, 0.8, 256, 320, 0.2),
        ("resnest269", 64, 2048, 0.8, 320, 416, 0.2),
    ],
)
def test_gluons_recipe(monkeypatch, name, gpus, batch, rate, train, test, drop):
    processes(monkeypatch, gpus)
    cfg = load_classifier_config(name)
    run = run_keys(cfg, IMAGENET)
    assert run.SOLVER.IMS_PER_BATCH == batch and run.SOLVER.BASE_LR == pytest.approx(rate)
    assert (cfg.DATA.CROP_SIZE, cfg.DATA.TEST_CROP_SIZE or cfg.DATA.CROP_SIZE, cfg.MODEL.FINAL_DROP) == (train, test, drop)
    assert cfg.DATA.CROP == ("efficientnet" if train >= 320 else "resized")
    assert (cfg.DATA.TEST_INTERPOLATION or cfg.DATA.INTERPOLATION) == ("bicubic" if test >= 320 else "bilinear")
    assert (cfg.DATA.MIXUP, cfg.DATA.LABEL_SMOOTHING, cfg.DATA.AUTO_AUGMENT, cfg.DATA.COLOR_JITTER) == (0.2, 0.1, "imagenet", 0.4)
    assert cfg.MODEL.DROP_BLOCK == (0.0 if name == "resnest14" else 0.1) and cfg.MODEL.DROP_BLOCK_SIZE == 3
    assert (cfg.DATA.LIGHTING, cfg.TRAINING.EPOCHS) == (0.1, 270)
    optimizer = cfg.OPTIMIZER
    assert (optimizer.NESTEROV, optimizer.MOMENTUM, optimizer.WEIGHT_DECAY, optimizer.DISABLE_BN_WD) == (True, 0.9, 1e-4, True)
    assert cfg.TRAINING.LAST_GAMMA and optimizer.WARMUP_EPOCHS == 5


@pytest.mark.parametrize("gpus, batch, name", [(32, 2048, "resnest50_pytorch"), (64, 2048, "resnest200_pytorch")])
def test_the_authors_pytorch_recipe(monkeypatch, gpus, batch, name):
    processes(monkeypatch, gpus)
    cfg = load_classifier_config(name)
    run = run_keys(cfg, IMAGENET)
    assert (run.SOLVER.IMS_PER_BATCH, run.SOLVER.BASE_LR) == (batch, pytest.approx(0.8)) and cfg.DATA.RAND_AUG
    assert (cfg.DATA.CROP, cfg.DATA.TEST_CROP, cfg.OPTIMIZER.NESTEROV) == ("efficientnet", "authors", False)


def test_the_rate_is_the_authors_formula(monkeypatch):
    processes(monkeypatch, 64)
    run = run_keys(load_classifier_config("resnest50"), IMAGENET)
    schedule, total = build_schedule(run), run.SOLVER.MAX_ITER
    warm = run.SOLVER.WARMUP_ITERS
    assert total == math.ceil(270 * IMAGENET / 8192) and warm == math.ceil(5 * IMAGENET / 8192)
    for step in (0, 1, warm // 2, warm - 1, warm, warm + 1, total // 2, total - 1):
        # As its LR_Scheduler: from 0 in proportion to the steps, then half a cosine over the rest.
        rising = step / warm
        falling = 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
        assert schedule(step / total) == pytest.approx(rising if step < warm else falling, abs=1e-9)


def test_the_rate_follows_the_batch_at_hand(monkeypatch, caplog):
    caplog.set_level("INFO")
    for count, batch, rate in ((1, 128, 0.05), (2, 256, 0.1), (2, 64, 0.025)):
        processes(monkeypatch, count)
        cfg = load_classifier_config("resnest50", ["TRAINING.BATCH_SIZE", str(batch // count)])
        assert run_keys(cfg, IMAGENET).SOLVER.BASE_LR == pytest.approx(rate)
        assert f"Learning rate {rate:g}: OPTIMIZER.LR 0.1 of 256 images, for steps of {batch}" in caplog.text
    processes(monkeypatch, 4)  # the authors' own: the rate of one process, times the processes
    assert run_keys(load_classifier_config("resnest50_pytorch"), IMAGENET).SOLVER.BASE_LR == pytest.approx(0.1)


def test_the_authors_own_file_loads_unchanged(tmp_path):
    (tmp_path / "authors.yaml").write_text(AUTHORS)
    cfg = load_classifier_config(str(tmp_path / "authors.yaml"))
    given = dict(leaves(yaml.safe_load(AUTHORS)))
    assert {key: value for key, value in leaves(cfg) if key in given} == given | {"MODEL.FINAL_DROP": 0.0}
    own = yaml.safe_load("MODEL: {NAME: resnet50}\nTRAINING: {EPOCHS: 120, BATCH_SIZE: 32}\nOPTIMIZER: {LR: 0.0125}")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(own))  # their only file, of a ResNet that is none of this family
    with pytest.raises(UserError, match="unknown model 'resnet50'; nearest: resnest50"):
        load_classifier_config(str(tmp_path / "base.yaml"))
    assert load_classifier_config(str(tmp_path / "base.yaml"), ["MODEL.NAME", "resnest50"]).OPTIMIZER.LR == 0.0125


def test_drop_block_grows_by_epochs():
    cfg = load_classifier_config("resnest50", ["TRAINING.EPOCHS", "10"])
    rates = [drop_block_rate(cfg, iteration, 50) for iteration in range(50)]
    assert rates[0] == pytest.approx(0.01) and rates[4] == rates[0] and rates[5] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("MODEL.NAME", "resnest51", "unknown model 'resnest51'"),
        ("MODEL.NAMES", "resnest50", "unknown config key MODEL.NAMES; nearest known key: MODEL.NAME"),
        ("TRAINING.EPOCHS", "many", "TRAINING.EPOCHS takes a int"),
        ("TRAINING.EPOCHS", "0", "TRAINING.EPOCHS is 0; it must be from 1"),
        ("TRAINING.START_EPOCHS", "3", "TRAINING.START_EPOCHS is 3; .*--resume"),
        ("TRAINING.BATCH_SIZE", "0", "TRAINING.BATCH_SIZE is 0"),
        ("OPTIMIZER.LR", "-1", "OPTIMIZER.LR is -1"),
        ("OPTIMIZER.LR", "nan", "OPTIMIZER.LR"),
        ("OPTIMIZER.NAME", "adam", "OPTIMIZER.NAME 'adam' is not supported; supported: 'sgd', 'adamw', 'lamb'"),
        ("OPTIMIZER.LR_SCHEDULER", "step", "OPTIMIZER.LR_SCHEDULER 'step' is not supported"),
        ("OPTIMIZER.WARMUP_EPOCHS", "500", "more than TRAINING.EPOCHS"),
        ("DATA.CROP", "square", "DATA.CROP 'square'"),
        ("DATA.AREA", "[0.5]", "DATA.AREA"),
        ("DATA.AREA", "[0.9, 0.1]", "DATA.AREA"),
        ("DATA.RAND_AUG", "True", "exclude each other"),
        ("DATA.CROP_SIZE", "64", "MODEL.DROP_BLOCK 0.1 with squares of 3 needs a DATA.CROP_SIZE of 96"),
        ("DATA.DECODER", "gif", "DATA.DECODER 'gif'"),
        ("MODEL.DROP_BLOCK_SIZE", "4", "MODEL.DROP_BLOCK_SIZE is 4; it must be odd"),
        ("MODEL.DEVICE", "tpu", "MODEL.DEVICE 'tpu'"),
        ("MODEL.FREEZE_AT", "6", "MODEL.FREEZE_AT is 6"),
    ],
)
def test_what_is_refused(key, value, told):
    with pytest.raises(UserError, match=told):
        load_classifier_config("resnest50", [key, value])


@pytest.mark.parametrize(
    "count, keys, told",
    [
        (1, ["TRAINING.BATCH_SIZE", "1"], "has a part of one image"),
        (1, ["TRAINING.BATCH_SIZE", "4", "TRAINING.ACCUMULATE", "4"], "has a part of one image"),
        (1, ["TRAINING.BATCH_SIZE", "5", "TRAINING.ACCUMULATE", "2", "OPTIMIZER.LR", "1"], None),
        (1, ["TRAINING.BATCH_SIZE", "7", "TRAINING.ACCUMULATE", "3"], "has a part of one image"),
        (2, ["TRAINING.BATCH_SIZE", "1", "MODEL.NORM", "SyncBN"], None),
        (2, ["TRAINING.BATCH_SIZE", "60"], "a step has 120 images .* only 100 to train on"),
    ],
)
def test_batches_that_cannot_be(monkeypatch, count, keys, told):
    processes(monkeypatch, count)
    cfg = load_classifier_config("resnest50", keys)
    if told is None:
        assert run_keys(cfg, 100).SOLVER.IMS_PER_BATCH == count * cfg.TRAINING.BATCH_SIZE
        return
    with pytest.raises(UserError, match=told):
        run_keys(cfg, 100)
