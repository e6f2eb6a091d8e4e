"""The built-in detector beside Detectron2 itself, in one process."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from tests.helpers.cases import CASES, make_samples  # noqa: E402
from tests.helpers.detectron2_reference import build_detectron2, observe_detectron2, to_detectron2  # noqa: E402
from tests.helpers.observe import SAME_PROCESS, build_builtin, differences, observe_builtin  # noqa: E402


@pytest.mark.parametrize("case", CASES)
def test_same_answers(case):
    worst = differences(observe_builtin(case), observe_detectron2(case))
    assert {kind for kind, ratio in worst.items() if not ratio <= SAME_PROCESS} == set(), f"fractions of the tolerances: {worst}"


@pytest.mark.parametrize("case", CASES)
def test_same_parameters_in_the_same_shapes(case):
    ours, theirs = build_builtin(case).state_dict(), build_detectron2(case).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {name: tuple(t.shape) for name, t in theirs.items()}


@pytest.mark.parametrize("case", ["mask_bn", "cascade_mask_gn_ciou"])
def test_same_draws_from_the_global_generator(case):
    """With little sampled, the losses are equal only if the same anchors and proposals are drawn."""
    from detectron2.utils.events import EventStorage

    ours, theirs = build_builtin(case), build_detectron2(case)
    for rpn in (ours.proposal_generator, theirs.proposal_generator):
        rpn.batch_size_per_image = 32
    for sampler in (ours.roi_heads.sampler, theirs.roi_heads):
        sampler.batch_size_per_image, sampler.positive_fraction = 16, 0.25
    torch.manual_seed(3)
    losses = ours(make_samples(case))
    torch.manual_seed(3)
    with EventStorage():
        expected = theirs([to_detectron2(sample) for sample in make_samples(case)])
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("case", ["semantic_deeplab_v3", "semantic_deeplab_v3_plus"])
def test_dropout_of_deeplab_draws_the_same(case):
    ours, theirs = build_builtin(case).train(), build_detectron2(case).train()
    for pyramid in [module for module in ours.modules() if type(module).__name__ == "ASPP"]:
        pyramid.dropout.p = 0.3
    for pyramid in [module for module in theirs.modules() if type(module).__name__ == "ASPP"]:
        pyramid.dropout = 0.3
    samples = make_samples(case)
    torch.manual_seed(3)
    losses = ours(samples)
    torch.manual_seed(3)
    expected = theirs([to_detectron2(sample) for sample in samples])
    torch.testing.assert_close(losses["loss_sem_seg"], expected["loss_sem_seg"], rtol=1e-4, atol=1e-7)


def test_initialisation_has_the_same_spread():
    """Freshly built, every parameter has the same mean and standard deviation, up to chance."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model as build_theirs

    from resnest_det.configuration.defaults import default_config
    from resnest_det.configuration.model import build_model
    from resnest_det.integrations.detectron2 import add_resnest_config
    from tests.helpers.cases import overrides

    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_list(overrides("mask_plain_resnet"))
    theirs = dict(build_theirs(cfg).named_parameters())
    cfg = default_config()
    cfg.merge_from_list(overrides("mask_plain_resnet"))
    for name, parameter in build_model(cfg).named_parameters():
        expected = theirs[name]
        assert parameter.requires_grad == expected.requires_grad, name
        chance = 6 / np.sqrt(parameter.numel())
        if expected.numel() == 1 or expected.std() == 0:
            assert torch.equal(parameter, expected), name
        else:
            assert abs(parameter.std() / expected.std() - 1) < chance, name
            assert abs(parameter.mean() - expected.mean()) < chance * expected.std(), name


def test_masks_are_pasted_alike():
    from detectron2.layers.mask_ops import paste_masks_in_image

    from resnest_det.detector.postprocess import paste_masks

    generator = torch.Generator().manual_seed(0)
    height, width = 211, 307
    corners = torch.rand(200, 2, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat((corners.amin(dim=1), corners.amax(dim=1)), dim=1)
    boxes[:20] = torch.tensor([0.0, 0.0, width, height])
    coarse = torch.rand(200, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, size=28, mode="bilinear")[:, 0]
    expected = paste_masks_in_image(masks, boxes, (height, width))
    actual = paste_masks(masks, boxes, (height, width))
    # Another order of rounding may decide for another side of the threshold in a handful of 13 million pixels.
    assert (actual != expected).sum() <= 5
