"""How often a detector makes the host wait for a GPU, counted on a pretended one; and that its answers are the same there."""

from dataclasses import replace

import pytest
import torch

from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.model import build_model
from tests.helpers.cases import CASES, make_samples, overrides
from tests.helpers.fill import fill
from tests.helpers.pretended_device import DEVICE, MixedDevices, PretendedDevice

CASCADE = "cascade_mask_gn_ciou"
# Of a training forward pass, whatever the number of images. Two are for drawing anchors, four for proposals (are they finite,
# which are usable, suppression, how many of which image), two for drawing regions, one for pooling boxes, one for which of them
# are objects, one for pooling masks, one to draw their targets. A stage of a cascade needs its own four.
TRAINING_WAITS = {"faster_frozenbn": 10, "mask_bn": 12, "mask_plain_resnet": 12, CASCADE: 20, "panoptic_gn": 12}
# Of one image: usable proposals, suppression, pooling, candidates, suppression, are all boxes in the image. A stage of a cascade
# pools again, and a panoptic map is made in five.
INFERENCE_WAITS = {"faster_frozenbn": 6, "mask_bn": 6, CASCADE: 8, "panoptic_gn": 11}


def build(case):
    cfg = config_of(case)
    # Losses of overlaps are torchvision's, which ask which boxes meet.
    cfg.merge_from_list(["MODEL.RPN.BBOX_REG_LOSS_TYPE", "smooth_l1"])
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "smooth_l1"])
    # So few drawn that losses depend on which, and more proposals than are pooled without waiting.
    cfg.merge_from_list(["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 32, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 150])
    cfg.merge_from_list(["MODEL.RPN.PRE_NMS_TOPK_TEST", 500, "MODEL.RPN.POST_NMS_TOPK_TEST", 400])
    cfg.merge_from_list(["MODEL.RPN.PRE_NMS_TOPK_TRAIN", 500, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 400])
    return filled(cfg)


def config_of(case):
    cfg = default_config()
    cfg.merge_from_list(overrides(case))
    return cfg


def filled(cfg):
    model = build_model(cfg)
    fill(model)
    return model


def four_images(case):
    samples = make_samples(case)
    mirrored = [sample | {"image": sample["image"].flip(-1)} for sample in samples]
    return [sample | {"seed": seed} for seed, sample in enumerate(samples + mirrored)]


@pytest.mark.parametrize("case", TRAINING_WAITS)
def test_training_waits_a_few_times_whatever_the_number_of_images(case):
    samples, expected = four_images(case), build(case)
    losses = expected(samples)
    sum(losses.values()).backward()

    device = PretendedDevice()
    model = device.move(build(case))
    with device:
        found = model(samples)
        waits = sum(device.waits.values())
        assert waits <= TRAINING_WAITS[case], device.report()
        sum(found.values()).backward()
        assert sum(device.waits.values()) == waits, device.report()
    for name, loss in losses.items():
        torch.testing.assert_close(found[name].values, loss.detach(), rtol=1e-5, atol=1e-7, msg=name)
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters()):
        if other.requires_grad:
            torch.testing.assert_close(parameter.grad.values, other.grad, rtol=1e-4, atol=1e-5, msg=name)

    device.waits.clear()
    with device:
        model(samples[:2])
    # Masks of few objects are pooled without waiting.
    assert waits - 1 <= sum(device.waits.values()) <= waits, device.report()


@pytest.mark.parametrize("case", INFERENCE_WAITS)
def test_inference_waits_a_few_times(case):
    samples = four_images(case)[:3]
    device = PretendedDevice()
    expected, model = build(case).eval(), device.move(build(case)).eval()
    with torch.no_grad():
        answers = [expected(samples[:1]), expected(samples)]
        with device:
            found = [model(samples[:1])]
            waits = sum(device.waits.values())
            assert waits <= INFERENCE_WAITS[case], device.report()
            device.waits.clear()
            found.append(model(samples))
    # Of several images it also has to be known, twice, how many boxes belong to each. Panoptic maps are made one by one.
    per_image = INFERENCE_WAITS[case] - 6 if case.startswith("panoptic") else 0
    assert sum(device.waits.values()) <= INFERENCE_WAITS[case] + 2 + 2 * per_image, device.report()
    for image, other in zip(sum(found, []), sum(answers, [])):
        assert image.keys() == other.keys() and len(other["boxes"]) > 5
        for name in ("boxes", "scores", "classes"):
            torch.testing.assert_close(image[name].values, other[name], rtol=1e-5, atol=1e-4, msg=name)
        if "masks" in other:
            assert other["masks"].any() and (image["masks"].values != other["masks"]).float().mean() < 1e-5
        if "panoptic_seg" in other:
            assert torch.equal(image["panoptic_seg"][0].values, other["panoptic_seg"][0])
            assert [s["category_id"] for s in image["panoptic_seg"][1]] == [s["category_id"] for s in other["panoptic_seg"][1]]


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("semantic")])
@pytest.mark.parametrize("class_weights", [(), (1.0, 0.5, 2.0, 1.0, 0.0)])
def test_labelling_pixels_waits_for_nothing(case, class_weights):
    device = PretendedDevice()
    model = device.move(filled(config_of(case)))
    model.sem_seg_head.loss = replace(model.sem_seg_head.loss, class_weights=class_weights)
    with device:
        sum(model(make_samples(case)).values()).backward()
        with torch.no_grad():
            model.eval()(make_samples(case))
    assert device.report() == ""


@pytest.mark.parametrize(
    "what, compute",
    [
        ("item", lambda x: float(x[0])),
        ("item", lambda x: bool((x > 0).any())),
        ("copy to the host", lambda x: x.tolist()),
        ("copy to the host", lambda x: x.to("cpu", non_blocking=True)),
        ("copy to the host", lambda x: torch.zeros(4).copy_(x)),
        ("nonzero", lambda x: torch.where(x > 0)),
        ("index by bool", lambda x: x[x > 0]),
        ("nms", lambda x: torch.ops.torchvision.nms(x.repeat(3, 1), x[:3], 0.5)),
        ("unique", lambda x: x.unique()),
        ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
        ("copy from the host", lambda x: torch.tensor([1.0, 2.0], device=x.device)),
        ("copy from the host", lambda x: x.new_tensor([1.0, 2.0])),
        ("copy from the host", lambda x: torch.ones(4).to(x.device)),
        ("copy from the host", lambda x: x[torch.tensor([0, 2])]),
        (None, lambda x: torch.ones(4).to(x.device, non_blocking=True)),
        (None, lambda x: (x + 1).topk(2).values.split([1, 1])),
        (None, lambda x: torch.arange(4, device=x.device) + x.masked_fill(x > 2, 0)),
    ],
)
def test_the_pretended_device_counts_what_waits(what, compute):
    device = PretendedDevice()
    x = device.move(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.device == DEVICE
    with device:
        compute(x)
    assert [waited_for for waited_for, _ in device.waits.elements()] == ([what] if what else [])


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.cat((x, torch.ones(4))),
        lambda x: torch.ones(4)[x.long() - 1],
        lambda x: torch.randperm(4, generator=torch.Generator(), device=x.device),
    ],
)
def test_the_pretended_device_refuses_what_a_device_refuses(compute):
    device = PretendedDevice()
    x = device.move(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with device, pytest.raises(MixedDevices):
        compute(x)
    with device, pytest.raises(TypeError):
        x.numpy()
