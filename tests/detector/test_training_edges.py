"""What a user would notice at the edges of training and inference: empty images, divergence, wrong input, random draws."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.model import build_model
from resnest_det.detector import matching
from resnest_det.detector.boxes import decode_boxes, encode_boxes
from resnest_det.detector.mask_head import crop_masks
from resnest_det.detector.matching import match_boxes
from resnest_det.detector.postprocess import paste_masks
from resnest_det.errors import UserError
from tests.helpers.cases import make_samples, overrides
from tests.helpers.observe import build_builtin

MASK, CASCADE = "mask_bn", "cascade_mask_gn_ciou"
NO_OBJECTS = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": []}


def losses_of(case, samples):
    return {name: loss.item() for name, loss in build_builtin(case)(samples).items()}


@pytest.mark.parametrize("case", [MASK, CASCADE])
def test_batch_without_any_object_trains_on_background(case):
    model = build_builtin(case)
    losses = model([sample | {"target": NO_OBJECTS} for sample in make_samples(case)])
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert (loss > 0) if "cls" in name else (loss == 0), name
    # Processes of a distributed run wait for each other's gradients: every parameter needs one, if only zero.
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_image_where_nothing_is_proposed_gives_no_detection():
    model = build_builtin(MASK).eval()
    model.proposal_generator.min_box_size = 1e6
    for sample, detections in zip(make_samples(MASK), model(make_samples(MASK))):
        assert detections["boxes"].shape == (0, 4) and detections["scores"].shape == (0,)
        assert detections["masks"].shape == (0, sample["height"], sample["width"])


def test_divergence_names_the_image():
    model = build_builtin(MASK)
    with torch.no_grad():
        model.proposal_generator.rpn_head.anchor_deltas.bias.fill_(float("nan"))
    samples = [sample | {"file_name": f"street{i}.jpg"} for i, sample in enumerate(make_samples(MASK))]
    with pytest.raises(UserError, match=r"street0\.jpg: the predicted boxes .* not finite"):
        model(samples)


def test_image_with_other_channels_is_refused():
    sample = make_samples(MASK)[0]
    sample |= {"image": sample["image"][:1], "file_name": "gray.png"}
    with pytest.raises(UserError, match=r"gray\.png: 1 channels"):
        build_builtin(MASK).eval()([sample])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False}, "CLS_AGNOSTIC_BBOX_REG"),
        ({"MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.6)}, "IOUS has 2 values for 3 heads"),
        ({"MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.4, 0.6, 0.7)}, "IOUS starts with 0.4, but regions are sampled at 0.5"),
        ({"MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p4"]}, "twice"),
        ({"MODEL.RPN.IN_FEATURES": ["p2", "p7"]}, "MODEL.RPN.IN_FEATURES"),
        ({"MODEL.FPN.IN_FEATURES": ["res2", "res4"]}, "MODEL.FPN.IN_FEATURES"),
        ({"MODEL.RESNETS.RES5_DILATION": 2}, "MODEL.FPN.IN_FEATURES"),
        ({"MODEL.RESNETS.RES4_DILATION": 2}, "RES4_DILATION"),
        ({"MODEL.ROI_BOX_HEAD.NUM_CONV": 0, "MODEL.ROI_BOX_HEAD.NUM_FC": 0}, "NUM_CONV"),
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]}, "ANCHOR_GENERATOR.SIZES has 2 lists"),
    ],
)
def test_values_that_do_not_fit_are_named(values, message):
    cfg = default_config()
    cfg.merge_from_list(overrides(CASCADE) + [item for pair in values.items() for item in pair])
    with pytest.raises(UserError, match=message):
        build_model(cfg)


def draw(model, samples):
    """Losses with little sampled, so that they depend on what is drawn."""
    model.proposal_generator.batch_size_per_image = 16
    model.roi_heads.sampler.batch_size_per_image = 8
    return torch.stack([loss for _, loss in sorted(model(samples).items())])


def test_what_is_drawn_depends_on_the_seed_of_the_image_alone():
    model = build_builtin("faster_frozenbn")
    first, second = (sample | {"seed": seed} for sample, seed in zip(make_samples("faster_frozenbn"), (5, 6)))
    alone = draw(model, [first])
    torch.manual_seed(1)
    assert torch.equal(draw(model, [first]), alone)
    assert not torch.equal(draw(model, [first | {"seed": 7}]), alone)
    # In a batch every image keeps its draws: the losses are the mean of those alone, but for other padding of the smaller one.
    same_size = second | {"image": first["image"].flip(-1)}
    both, other = draw(model, [first, same_size]), draw(model, [same_size])
    torch.testing.assert_close(both, (alone + other) / 2, rtol=1e-4, atol=1e-6)


def test_matching_piece_by_piece_equals_matching_at_once(monkeypatch):
    random = np.random.RandomState(0)
    corners = random.uniform(0, 100, (2, 60, 2, 2))
    true_boxes, boxes = torch.tensor(np.concatenate((corners.min(axis=2), corners.max(axis=2)), axis=-1), dtype=torch.float32)
    true_boxes[30:] = true_boxes[:30]  # ties
    true_boxes[7] = torch.tensor([900.0, 900.0, 950.0, 950.0])  # overlaps nothing
    arguments = (true_boxes, boxes, (0.3, 0.7), (0, -1, 1), True)
    at_once = match_boxes(*arguments)
    monkeypatch.setattr(matching, "MAX_PAIRS", 7 * 60)
    for whole, pieces in zip(at_once, match_boxes(*arguments)):
        assert torch.equal(whole, pieces)
    iou = box_iou(true_boxes, boxes)
    best = iou.max(dim=0).values
    expected = (best >= 0.7) | ((iou == iou.max(dim=1, keepdim=True).values) & (iou > 0)).any(dim=0)
    assert torch.equal(at_once[1] == 1, expected)
    assert torch.equal(at_once[1] == 0, (best < 0.3) & ~expected)
    assert torch.equal(iou.gather(0, at_once[0][None])[0], best)


def test_overlap_at_a_threshold_belongs_above_it():
    true_box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.999]])
    assert match_boxes(true_box, boxes, (0.5,), (0, 1), False)[1].tolist() == [1, 0]


def test_score_threshold_decides_what_is_detected():
    model = build_builtin("faster_frozenbn").eval()
    predictor = model.roi_heads.box_predictor
    predictor.max_detections = 1000
    sample = make_samples("faster_frozenbn")[:1]
    everything = model(sample)[0]
    assert everything["scores"].min() > 0.2 and (everything["scores"] < 0.4).any()
    predictor.score_threshold = 0.4
    assert torch.equal(model(sample)[0]["scores"], everything["scores"][everything["scores"] > 0.4])


def test_cascade_leaves_out_boxes_that_leave_the_image():
    model = build_builtin(CASCADE)
    with torch.no_grad():
        model.roi_heads.box_predictor[0].bbox_pred.bias[0] = 1e4
    losses = model(make_samples(CASCADE))
    assert losses["loss_cls_stage0"] > 0 and losses["loss_cls_stage1"] == 0 and losses["loss_box_reg_stage2"] == 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_deltas_take_boxes_to_targets_and_growth_is_limited():
    boxes, targets = torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([[0.0, 25.0, 50.0, 35.0]])
    weights = (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, targets, weights), boxes, weights), targets)
    x0, y0, x1, y1 = decode_boxes(torch.tensor([[0.0, 0.0, 1e4, 1e4]]), boxes, weights)[0].tolist()
    assert (x1 - x0, y1 - y0) == pytest.approx((20 * 1000 / 16, 40 * 1000 / 16))


def test_polygon_and_bitmap_targets_agree():
    """A rectangle cropped by boxes that cut it at cell borders has the same cells either way."""
    polygon = np.array([8.0, 8.0, 40.0, 8.0, 40.0, 24.0, 8.0, 24.0])
    bitmap = torch.zeros(2, 64, 64, dtype=torch.bool)
    bitmap[1, 8:24, 8:40] = True
    boxes = torch.tensor([[8.0, 8.0, 40.0, 24.0], [0.0, 0.0, 56.0, 56.0], [24.0, 16.0, 52.0, 44.0]])
    objects = torch.ones(3, dtype=torch.int64)
    from_polygons = crop_masks([[], [polygon]], objects, boxes, 28)
    assert torch.equal(from_polygons, crop_masks(bitmap, objects, boxes, 28))
    assert from_polygons[0].all() and from_polygons[1].sum() == 16 * 8 and from_polygons[2].sum() == 16 * 8
    assert not crop_masks([[], [polygon]], torch.tensor([0]), boxes[:1], 28).any()
    thin = torch.tensor([[20.0, 8.0, 20.0, 24.0], [20.0, 8.0, 20.05, 24.0]])
    assert crop_masks([[], [polygon]], objects[:2], thin, 28).flatten(1).all(1).tolist() == [True, True]


def test_full_mask_fills_its_box():
    boxes = torch.tensor([[3.0, 5.0, 17.0, 11.0], [0.0, 0.0, 30.0, 20.0]])
    masks = paste_masks(torch.ones(2, 28, 28), boxes, (20, 30))
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[5:11, 3:17] = True
    assert torch.equal(masks[0], expected) and masks[1].all()


def test_mixed_precision_pools_the_same_regions():
    """Under autocast only features lose precision: coordinates rounded to bfloat16 would move a box by pixels."""
    pooler = build_builtin("faster_frozenbn").roi_heads.box_pooler
    ramp = ((torch.arange(1024) - 600) / 8).expand(1, 1, 4, 1024)  # stride 4
    boxes = [torch.tensor([[2403.7, 2.0, 2407.0, 5.0]])]
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooler([ramp[..., ::step].bfloat16() for step in (1, 2, 4, 8)], boxes)
    assert pooled.dtype == torch.bfloat16
    center = (2403.7 + 2407.0) / 2 / 4 - 0.5  # in cells, counted from the middle of the first
    torch.testing.assert_close(pooled.float().mean(), torch.tensor((center - 600) / 8), rtol=0.01, atol=0)


def test_training_step_under_autocast_is_close_to_full_precision():
    model, samples = build_builtin("faster_frozenbn"), make_samples("faster_frozenbn")
    exact = model(samples)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(samples)
    sum(losses.values()).backward()
    for name, loss in exact.items():
        torch.testing.assert_close(losses[name].float(), loss, rtol=0.25, atol=0.01, msg=name)
