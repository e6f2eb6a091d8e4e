"""Layers of detectors with outputs for each class: finding, comparing and reordering them."""

import pytest
import torch
from torch import nn

from resnest_det.detector.box_head import BoxPredictor
from resnest_det.weights.class_layers import class_counts, class_layers, fit_classes, other_counts


class Heads(nn.Module):
    """The last layers of a panoptic model, of one stage or, class-agnostic, of a cascade."""

    def __init__(self, things, pixels=5, stages=1, features=4):
        super().__init__()
        predictors = [BoxPredictor(features, things, class_agnostic=stages > 1) for _ in range(stages)]
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = predictors[0] if stages == 1 else nn.ModuleList(predictors)
        self.roi_heads.mask_head = nn.Module()
        self.roi_heads.mask_head.predictor = nn.Conv2d(8, things, 1)
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = nn.Conv2d(8, pixels, 1)
        self.anything = nn.Linear(3, 3)


BOXES = ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"]
MASKS = "roi_heads.mask_head.predictor"
PIXELS = "sem_seg_head.predictor"
SCORES = [f"roi_heads.box_predictor.{stage}.cls_score" for stage in range(3)]


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


def fresh(found, wanted, found_names=None, wanted_names=None):
    reordered, fresh = fit_classes(found.state_dict(), wanted.state_dict(), found_names or {}, wanted_names or {})
    assert not reordered
    return fresh


def test_layers_and_counts():
    one, cascade = shapes(Heads(7)), shapes(Heads(7, stages=3))
    assert class_counts(one) == class_counts(cascade) == {"thing_classes": 7, "stuff_classes": 5}
    assert list(class_layers(one)) == [*BOXES, MASKS, PIXELS]
    assert list(class_layers(cascade)) == [*SCORES, MASKS, PIXELS]
    assert class_layers(one)[BOXES[1]].outputs == 4
    assert class_counts({"linear.weight": (10, 4)}) == {}
    assert other_counts(one, cascade) == ""
    assert other_counts(shapes(Heads(7, 6)), one) == "6 classes of pixels in the file, 5 in the model"
    assert (
        other_counts(shapes(Heads(3, 6)), one)
        == "3 classes in the file, 7 in the model, 6 classes of pixels in the file, 5 in the model"
    )


@pytest.mark.parametrize("found, wanted", [(2, 3), (3, 2), (1, 3), (3, 1), (80, 1)])
def test_exactly_the_layers_of_other_counts_begin_anew(found, wanted):
    things = f"{found} classes in the file, {wanted} in the model"
    assert fresh(Heads(found), Heads(wanted)) == dict.fromkeys([*BOXES, MASKS], things)
    assert fresh(Heads(found, stages=3), Heads(wanted, stages=3)) == dict.fromkeys([*SCORES, MASKS], things)
    assert fresh(Heads(found, 5), Heads(found, 6)) == {PIXELS: "5 classes of pixels in the file, 6 in the model"}


def test_what_does_not_fit_in_another_way_is_no_other_class():
    assert fresh(Heads(2, features=4), Heads(3, features=6)).keys() == {MASKS}
    damaged = Heads(2)
    damaged.roi_heads.mask_head.predictor.bias = nn.Parameter(torch.zeros(3))
    assert fresh(damaged, Heads(3)).keys() == set(BOXES)
    del damaged.roi_heads.mask_head.predictor
    assert fresh(damaged, Heads(3)).keys() == set(BOXES)
    agnostic = Heads(2)
    agnostic.roi_heads.box_predictor = BoxPredictor(4, 2, class_agnostic=True)
    assert BOXES[1] not in fresh(agnostic, Heads(3)) and BOXES[1] not in fresh(Heads(3), agnostic)


def test_other_names_are_other_classes():
    names = {"thing_classes": ["a", "b"], "stuff_classes": list("uvwxy")}
    assert fresh(Heads(2), Heads(2), names, names) == fresh(Heads(2), Heads(2), names) == fresh(Heads(2), Heads(2)) == {}
    found = fresh(Heads(2), Heads(2), names, {"thing_classes": ["a", "c"]})
    assert found == dict.fromkeys([*BOXES, MASKS], "2 classes in the file, 2 in the model: a, b there, a, c here")
    # The box and the mask of a single class are those of whatever is found.
    assert list(fresh(Heads(1), Heads(1), {"thing_classes": ["cat"]}, {"thing_classes": ["dog"]})) == [BOXES[0]]


def test_classes_in_another_order():
    torch.manual_seed(0)
    model, x = Heads(3), torch.rand(6, 4)
    maps = torch.rand(1, 8, 2, 2)
    names, others = {"thing_classes": list("abc"), "stuff_classes": list("uvwxy")}, {"thing_classes": list("cab")}
    reordered, fresh = fit_classes(model.state_dict(), model.state_dict(), names, others)
    assert not fresh and sorted(reordered) == sorted(
        f"{layer}.{part}" for layer in [*BOXES, MASKS] for part in ("weight", "bias")
    )
    turned = Heads(3)
    turned.load_state_dict(model.state_dict() | reordered)
    order = [2, 0, 1]
    (logits, deltas), (theirs, their_deltas) = model.roi_heads.box_predictor(x), turned.roi_heads.box_predictor(x)
    torch.testing.assert_close(theirs, logits[:, [*order, 3]])
    torch.testing.assert_close(their_deltas.unflatten(1, (3, 4)), deltas.unflatten(1, (3, 4))[:, order])
    torch.testing.assert_close(turned.roi_heads.mask_head.predictor(maps), model.roi_heads.mask_head.predictor(maps)[:, order])
