"""Panoptic FPN beyond what the golden files show: the rules of the fusion, its limits, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.detector.panoptic import FusionLimits, fuse
from resnest_det.errors import UserError
from tests.helpers.cases import make_samples
from tests.helpers.observe import build_builtin


def detections(*objects: tuple[float, int, tuple[int, int]], size=(4, 10)) -> dict[str, torch.Tensor]:
    """From (score, class, (first column, end column)) of objects that span all rows."""
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for mask, (_, _, (start, end)) in zip(masks, objects):
        mask[:, start:end] = True
    return {"scores": torch.tensor([o[0] for o in objects]), "classes": torch.tensor([o[1] for o in objects]), "masks": masks}


def test_better_instances_lie_on_top_and_stuff_fills_the_rest():
    labels = torch.ones(4, 10, dtype=torch.int64)
    labels[:, 8:] = 2
    # In another order than that of the scores, which decides.
    found = detections((0.6, 3, (2, 6)), (0.9, 1, (0, 4)))
    panoptic, segments = fuse(found, labels, FusionLimits(overlap=0.5, stuff_area=8, score=0.5))
    assert panoptic[0].tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert panoptic.dtype == torch.int32
    assert segments == [
        {"id": 1, "isthing": True, "score": pytest.approx(0.9), "category_id": 1, "instance_id": 1},
        {"id": 2, "isthing": True, "score": pytest.approx(0.6), "category_id": 3, "instance_id": 0},
        {"id": 3, "isthing": False, "category_id": 1, "area": 8},
        {"id": 4, "isthing": False, "category_id": 2, "area": 8},
    ]


@pytest.mark.parametrize(
    "limits, expected",
    [
        (FusionLimits(overlap=0.5, stuff_area=1, score=0.5), [1, 1, 1, 1, 2, 2, 3, 3, 3, 3]),
        (FusionLimits(overlap=0.49, stuff_area=1, score=0.5), [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]),  # half of the second is taken
        (FusionLimits(overlap=0.5, stuff_area=1, score=0.7), [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]),  # its score is too low
        (FusionLimits(overlap=0.5, stuff_area=17, score=0.5), [1, 1, 1, 1, 2, 2, 0, 0, 0, 0]),  # 16 pixels of stuff
        (FusionLimits(overlap=0.5, stuff_area=16, score=0.5), [1, 1, 1, 1, 2, 2, 3, 3, 3, 3]),
    ],
)
def test_limits(limits, expected):
    found = detections((0.9, 1, (0, 4)), (0.6, 3, (2, 6)))
    panoptic, _ = fuse(found, torch.ones(4, 10, dtype=torch.int64), limits)
    assert panoptic[0].tolist() == expected


def test_what_lies_wholly_under_others_is_no_segment():
    """Also where every overlap is allowed: a segment without pixels would make the prediction one that no evaluation accepts."""
    found = detections((0.9, 1, (0, 4)), (0.8, 2, (1, 3)))
    panoptic, segments = fuse(found, torch.ones(4, 10, dtype=torch.int64), FusionLimits(overlap=1.0, stuff_area=0))
    assert panoptic[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [segment["category_id"] for segment in segments] == [1, 1]
    _, segments = fuse(detections((0.9, 1, (0, 10))), torch.ones(4, 10, dtype=torch.int64), FusionLimits(stuff_area=0))
    assert [segment["isthing"] for segment in segments] == [True]


def test_pixels_labelled_as_things_without_an_instance_belong_to_nothing():
    labels = torch.zeros(4, 10, dtype=torch.int64)
    panoptic, segments = fuse(detections(), labels, FusionLimits(stuff_area=0))
    assert segments == [] and not panoptic.any()


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(0, 60), st.floats(0, 1))
def test_map_and_list_name_the_same_segments(seed, overlap, stuff_area, score):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(0, 6, (), generator=generator))
    found = {
        "scores": torch.rand(count, generator=generator),
        "classes": torch.randint(0, 3, (count,), generator=generator),
        "masks": torch.rand(count, 8, 9, generator=generator) < 0.3,
    }
    labels = torch.randint(0, 4, (8, 9), generator=generator)
    panoptic, segments = fuse(found, labels, FusionLimits(overlap, stuff_area, score))
    assert sorted(s["id"] for s in segments) == sorted(set(panoptic.flatten().tolist()) - {0})
    for segment in segments:
        pixels = panoptic == segment["id"]
        if segment["isthing"]:
            assert found["masks"][segment["instance_id"]][pixels].all()
            assert segment["score"] >= score
        else:
            assert (labels[pixels] == segment["category_id"]).all() and int(pixels.sum()) == segment["area"] >= stuff_area


def test_without_fusion_the_branches_results_stay_apart():
    model = build_builtin("panoptic_gn").eval()
    with torch.no_grad():
        fused = model(make_samples("panoptic_gn"))
        model.fusion = None
        apart = model(make_samples("panoptic_gn"))
    assert set(fused[0]) - set(apart[0]) == {"panoptic_seg"}
    for name in apart[0]:
        assert torch.equal(fused[0][name], apart[0][name])


def test_combine_enabled_decides_over_fusion():
    config = "quick_schedules/panoptic_ResNeSt14_FPN_shapes.yaml"
    limits = ["MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", "0.3", "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", "0.6"]
    limits += ["MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "256"]
    assert build_model(load_config(config, limits)).fusion == FusionLimits(overlap=0.3, stuff_area=256, score=0.6)
    assert build_model(load_config(config, ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", "False"])).fusion is None


def test_training_without_labels_of_pixels_names_the_image():
    model = build_builtin("panoptic_gn")
    samples = make_samples("panoptic_gn")
    samples[1] |= {"file_name": "second.jpg"}
    del samples[1]["target"]["sem_seg"]
    with pytest.raises(UserError, match="second.jpg: no semantic labels"):
        model(samples)


def test_labels_of_another_size_are_refused():
    model = build_builtin("panoptic_gn")
    samples = make_samples("panoptic_gn")
    samples[0]["target"]["sem_seg"] = samples[0]["target"]["sem_seg"][1:]
    with pytest.raises(UserError, match=r"image 0 of the batch: labels of \(96, 131\) pixels, image of \(97, 131\)"):
        model(samples)


def test_an_image_without_objects_trains():
    model = build_builtin("panoptic_gn")
    sample = make_samples("panoptic_gn")[0]
    sample["target"] |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": []}
    losses = model([sample])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values()) and losses["loss_mask"] == 0 and losses["loss_sem_seg"] > 0


@pytest.mark.parametrize(
    "config, overrides, message",
    [
        ("panoptic_ResNeSt50_FPN", ["MODEL.MASK_ON", "False"], "MODEL.MASK_ON False is not supported"),
        ("panoptic_ResNeSt50_FPN", ["MODEL.BACKBONE.NAME", "build_resnest_backbone"], "needs a pyramid"),
        ("panoptic_ResNeSt50_FPN", ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2','p7']"], "MODEL.SEM_SEG_HEAD.IN_FEATURES"),
        ("panoptic_ResNeSt50_FPN", ["MODEL.SEM_SEG_HEAD.NAME", "Other"], "MODEL.SEM_SEG_HEAD.NAME 'Other'"),
        ("mask_rcnn_ResNeSt50_FPN", ["MODEL.SEM_SEG_HEAD.NORM", "BN"], "a GeneralizedRCNN does not read this key"),
        ("mask_rcnn_ResNeSt50_FPN", ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", "False"], "a GeneralizedRCNN does not read this key"),
        ("semantic_ResNeSt50_FPN", ["MODEL.MASK_ON", "True"], "a SemanticSegmentor does not read this key"),
    ],
)
def test_keys_without_effect_are_refused(config, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(config, overrides)


def test_published_recipe():
    cfg = load_config("panoptic_cascade_ResNeSt200_FPN_3x")
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME) == ("PanopticFPN", "CascadeROIHeads")
    assert cfg.MODEL.RESNETS.DEPTH == 200
    assert cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG and cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 2000
    assert (cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT, cfg.MODEL.SEM_SEG_HEAD.NORM) == (0.5, "SyncBN")
    assert (tuple(cfg.SOLVER.STEPS), cfg.SOLVER.MAX_ITER) == ((240000, 255000), 270000)
    assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN) == ((400, 1000), 1440)
    assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    assert cfg.DATASETS.TRAIN == ("coco_2017_train_panoptic_separated",)
