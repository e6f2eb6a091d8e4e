"""Rules of a first schedule: from numbers about data and machine to settings."""

import numpy as np
import pytest

from resnest_det.configuration.checking import check_buildable, check_supported
from resnest_det.configuration.nodes import value_of, with_values
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.recipe import Machine, Plan, Pretrained, by_data, by_machine, images_shown
from resnest_det.data.statistics import Statistics

GPU, CPU = Machine("cuda", 1, 16), Machine("cpu", 1, 2)
LR, BATCH, NORM = "SOLVER.BASE_LR", "SOLVER.IMS_PER_BATCH", "MODEL.RESNETS.NORM"


def data(images=1000, size=60, image=(480, 640), masks=True, ratio=1.0, labels=None, classes=("cat", "dog")):
    """Images with one object each, `size` pixels in area's root and `ratio` as high as wide."""
    labels = np.arange(images) % 2 if labels is None else np.asarray(labels)
    box = np.array([size / ratio**0.5, size * ratio**0.5])
    count = len(labels)
    return Statistics(
        "mine",
        list(classes),
        np.tile(np.array(image, dtype=float), (images, 1)),
        np.tile(box, (count, 1)),
        labels,
        np.arange(count) % images,
        count if masks else count - 1,
    )


def plan(statistics, machine=GPU, fits=16, given=None, detector="", model="mask_rcnn_ResNeSt50_FPN", pretrained=None):
    given = given or {}
    cfg = with_values(load_config(model), given)
    made = Plan(cfg, given)
    by_data(made, statistics, machine, detector)
    norms = Pretrained("BN", "BN") if detector else Pretrained("BN") if made.cfg.MODEL.WEIGHTS else Pretrained()
    by_machine(made, statistics, machine, fits, pretrained or norms)
    check_supported(made.cfg)
    check_buildable(made.cfg)
    return made


def chosen(made):
    return {choice.key: choice.value for choice in made.choices}


def test_what_is_as_published_stays_so():
    """Objects like COCO's, 118,000 images, room for 16: the published recipe, but for its heads, norms in memory and schedule."""
    made = chosen(plan(data(images=118_000, size=14)))
    assert made[BATCH] == 16 and made[LR] == 0.02 and made["SOLVER.MAX_ITER"] == 88_500
    assert made["INPUT.MIN_SIZE_TRAIN"] == (640, 672, 704, 736, 768, 800) and made["MODEL.ROI_HEADS.NUM_CLASSES"] == 2
    assert NORM not in made and made["MODEL.BACKBONE.FREEZE_AT"] == 2 and made["SOLVER.WARMUP_ITERS"] == 1000


@pytest.mark.parametrize(
    "size, image, machine, side, longer",
    [
        (14, (480, 640), GPU, 800, 1067),  # would be 823
        (14, (480, 640), CPU, 480, 640),
        (26, (480, 640), GPU, 480, 640),
        (200, (3000, 4000), GPU, 384, 512),  # huge images of huge objects
        (600, (3000, 4000), GPU, 224, 299),  # and of larger ones
        (20, (3000, 9000), GPU, 800, 1333),  # tiny ones
        (3, (96, 96), GPU, 480, 480),  # five times is enough
        (40, (96, 96), GPU, 96, 96),  # small images stay as they are
    ],
)
def test_size_of_images(size, image, machine, side, longer):
    made = chosen(plan(data(size=size, image=image), machine))
    assert max(made["INPUT.MIN_SIZE_TRAIN"]) == side and made["INPUT.MIN_SIZE_TEST"] == side
    assert made["INPUT.MAX_SIZE_TRAIN"] == made["INPUT.MAX_SIZE_TEST"] == longer


@pytest.mark.parametrize("size, first", [(8, 8), (16, 16), (25, 24), (33, 32), (64, 64), (1000, 64)])
def test_anchors_are_those_that_overlap_the_objects_best(size, first):
    keys = {"INPUT.MIN_SIZE_TRAIN": (480,), "INPUT.MAX_SIZE_TRAIN": 1000}
    made = plan(data(size=size, image=(480, 480)), given=keys)
    sizes = made.cfg.MODEL.ANCHOR_GENERATOR.SIZES
    assert sizes in ([[first * 2**level] for level in range(5)], [[32 * 2**level] for level in range(5)])
    assert any(abs(level[0] / size - 1) < 0.07 for level in sizes)
    assert "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS" not in chosen(made)


def test_tall_objects_have_anchors_of_their_own():
    assert chosen(plan(data(ratio=4.0)))["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] == [[4.0, 4.0, 4.0]]


@pytest.mark.parametrize(
    "images, machine, fits, batch, rate",
    [
        (1000, GPU, 16, 16, 0.02),
        (1000, GPU, 5, 5, 0.00625),
        (1000, CPU, 16, 8, 0.01),
        (60, GPU, 16, 3, 0.0075),
        (10, GPU, 16, 2, 0.005),
        (1000, Machine("cuda", 4, 16), 16, 16, 0.02),
        (1000, Machine("cuda", 4, 16), 2, 8, 0.01),
        (1000, Machine("cuda", 32, 64), 4, 32, 0.04),
    ],
)
def test_batch_and_rate(images, machine, fits, batch, rate):
    made = plan(data(images=images), machine, fits).cfg.SOLVER
    assert made.IMS_PER_BATCH == batch and made.BASE_LR == pytest.approx(rate)


@pytest.mark.parametrize(
    "given, rate",
    [
        ({}, 0.04),
        ({"SOLVER.MAX_ITER": 1000}, 0.02),
        ({"SOLVER.OPTIMIZER": "ADAMW"}, None),  # the recipe's own
    ],
)
def test_short_runs_have_twice_the_rate(given, rate):
    made = chosen(plan(data(images=300), given=given))
    assert made[BATCH] == 15 and made.get(LR) == (rate and pytest.approx(rate * 15 / 16))


@pytest.mark.parametrize(
    "given, optimizer, momentum, rate",
    [
        ({}, "MUON", 0.95, 0.018),
        ({BATCH: 8}, "MUON", 0.95, 0.013),
        ({BATCH: 4}, "MUON", 0.95, 0.009),
        ({"SOLVER.OPTIMIZER": "SGD"}, "SGD", 0.9, 0.02),
        ({LR: 0.03}, "SGD", 0.9, 0.03),  # who names a rate has the named model's optimizer in mind
        ({"SOLVER.MOMENTUM": 0.8}, "MUON", 0.8, 0.018),
    ],
)
def test_what_is_not_pretrained_learns_by_muon(given, optimizer, momentum, rate):
    made = plan(data(), given={"MODEL.WEIGHTS": "", **given}).cfg.SOLVER
    assert (made.OPTIMIZER, made.MOMENTUM, made.BASE_LR) == (optimizer, momentum, pytest.approx(rate))
    assert (made.HEAD_LR_FACTOR, made.RPN_LR_FACTOR) == ((0.5, 0.5) if optimizer == "MUON" else (1, 1))
    if optimizer == "SGD":
        assert made.WEIGHT_DECAY == 0.0001


def test_a_model_without_a_proposal_network_has_no_rate_for_it():
    made = chosen(plan(data(), given={"MODEL.WEIGHTS": ""}, model="semantic_ResNeSt50_FPN"))
    assert made["SOLVER.OPTIMIZER"] == "MUON" and made["SOLVER.HEAD_LR_FACTOR"] == 0.5
    assert "SOLVER.RPN_LR_FACTOR" not in made


@pytest.mark.parametrize("steps, decay", [(537, 0.1), (100, 0.56), (90000, 0.00062)])
def test_muon_forgets_over_the_length_of_the_run(steps, decay):
    made = plan(data(), given={"MODEL.WEIGHTS": "", "SOLVER.MAX_ITER": steps}).cfg.SOLVER
    assert made.WEIGHT_DECAY == decay
    assert made.BASE_LR * made.WEIGHT_DECAY * steps == pytest.approx(1, rel=0.05)
    assert plan(data(), given={"MODEL.WEIGHTS": "", "SOLVER.WEIGHT_DECAY": 0.02}).cfg.SOLVER.WEIGHT_DECAY == 0.02


def test_a_run_without_a_step_has_a_plan():
    assert plan(data(), given={"MODEL.WEIGHTS": "", "SOLVER.MAX_ITER": 0}).cfg.SOLVER.WEIGHT_DECAY == 56


def test_a_length_in_epochs_is_what_the_rest_goes_by():
    made = plan(data(images=160), given={"MODEL.WEIGHTS": "", "SOLVER.MAX_EPOCHS": 2.5}).cfg
    assert made.SOLVER.IMS_PER_BATCH == 8 and made.SOLVER.MAX_ITER == 50 and made.SOLVER.WARMUP_ITERS == 5
    assert made.SOLVER.WEIGHT_DECAY == 1.5, "1 / (50 * 0.013) in two digits"
    short, long = (plan(data(images=320), given={"SOLVER.MAX_EPOCHS": epochs}).cfg.SOLVER for epochs in (10, 100))
    assert (short.BASE_LR, long.BASE_LR) == (pytest.approx(0.04), pytest.approx(0.02)), "200 and 2000 steps"


def test_what_is_pretrained_learns_by_sgd():
    made = plan(data(), model="mask_rcnn_ResNeSt14_FPN_shapes", pretrained=Pretrained("BN", "BN")).cfg.SOLVER
    assert (made.OPTIMIZER, made.MOMENTUM, made.BASE_LR) == ("SGD", 0.9, pytest.approx(0.02))


@pytest.mark.parametrize(
    "fits, weights, detector, norms, freeze",
    [
        (16, None, "", ("SyncBN", "SyncBN"), 2),  # left as they are
        (4, None, "", ("FrozenBN", "GN"), 2),
        (4, None, "resnest://mask_rcnn_ResNeSt_50_FPN_syncBN_1x", ("FrozenBN", "FrozenBN"), 2),
        (4, "", "", ("GN", "GN"), 0),
        (8, "", "", ("SyncBN", "SyncBN"), 0),
    ],
)
def test_norms_by_images_of_a_process(fits, weights, detector, norms, freeze):
    made = plan(data(), fits=fits, given={} if weights is None else {"MODEL.WEIGHTS": weights}, detector=detector).cfg.MODEL
    assert (made.RESNETS.NORM, made.FPN.NORM) == norms and made.ROI_BOX_HEAD.NORM == made.ROI_MASK_HEAD.NORM == norms[1]
    assert made.BACKBONE.FREEZE_AT == freeze


def test_weights_that_were_trained_with_group_norm_keep_it():
    made = plan(data(), fits=16, pretrained=Pretrained("GN", "GN")).cfg.MODEL
    assert made.RESNETS.NORM == made.FPN.NORM == made.ROI_BOX_HEAD.NORM == "GN"


def test_narrow_networks_keep_batch_norm_and_have_a_batch_for_it():
    made = plan(data(images=40), CPU, model="mask_rcnn_ResNeSt14_FPN_shapes")
    assert made.cfg.SOLVER.IMS_PER_BATCH == 4 and made.cfg.MODEL.RESNETS.NORM == "SyncBN", "16 channels cannot be 32 groups"
    made = plan(data(images=120), CPU, model="mask_rcnn_ResNeSt14_FPN_shapes")
    assert made.cfg.SOLVER.IMS_PER_BATCH == 6, "20 steps in an epoch"


def test_several_processes_count_together_where_their_norms_do():
    two, alone = (plan(data(), Machine("cuda", processes, 16), fits=4).cfg.MODEL.RESNETS.NORM for processes in (2, 1))
    assert (two, alone) == ("SyncBN", "FrozenBN")


def test_what_is_given_stays_and_what_depends_on_it_follows():
    given = {BATCH: 4, "SOLVER.MAX_ITER": 300, "INPUT.MIN_SIZE_TRAIN": (200,), "MODEL.MASK_ON": True}
    made = plan(data(masks=True), given=given)
    assert {key: value_of(made.cfg, key) for key in given} == given and not given.keys() & chosen(made).keys()
    assert made.cfg.SOLVER.BASE_LR == 0.01 and made.cfg.SOLVER.WARMUP_ITERS == 30 and made.cfg.INPUT.MIN_SIZE_TEST == 200
    assert made.cfg.TEST.EVAL_PERIOD == 250, "an epoch of 1000 images is longer than a tenth of the run"


def test_objects_without_masks_leave_the_mask_head_out():
    made = plan(data(masks=False))
    assert made.cfg.MODEL.MASK_ON is False and "Choice" not in str(made.choices[0])
    assert str(made.choices[0]) == "MODEL.MASK_ON False: 1 of 1000 objects have no mask"


def test_images_of_a_rare_class_are_shown_more_often():
    rare = np.zeros(1000, dtype=int)
    rare[:20] = 1
    made = chosen(plan(data(labels=rare)))
    assert made["DATALOADER.SAMPLER_TRAIN"] == "RepeatFactorTrainingSampler" and made["DATALOADER.REPEAT_THRESHOLD"] == 0.1
    assert "DATALOADER.SAMPLER_TRAIN" not in chosen(plan(data()))


def test_images_shown():
    assert [images_shown(images, True) for images in (50, 300, 3000, 118_000)] == [1692, 6488, 36_482, 1_416_000]
    assert images_shown(300, False) == pytest.approx(6 * images_shown(300, True), abs=2)
