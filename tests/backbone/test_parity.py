"""The family against timm: the same weights and images give the same maps, logits, gradients and running statistics."""

import dataclasses

import pytest
import timm
import torch

from resnest_det import create_model
from resnest_det.backbone.variants import VARIANTS
from resnest_det.weights.names import from_own_names
from resnest_det.weights.published import ALIASES
from tests.helpers.timm_reference import images, timm_model, with_weights_of

BIG = ("resnest200", "resnest269")
ALL = [pytest.param(name, marks=pytest.mark.slow if name in BIG else ()) for name in VARIANTS]
# timm's five maps: the activation after the stem, then the four stages.
TIMM_MAPS = ("act1", "layer1", "layer2", "layer3", "layer4")


def ours(name, reference, **arguments):
    with torch.device("meta"):
        model = create_model(name, **arguments)
    return with_weights_of(model, reference)


def timm_maps(reference, x):
    maps = []
    handles = [
        getattr(reference, name).register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
        for name in TIMM_MAPS
    ]
    logits = reference(x)
    for handle in handles:
        handle.remove()
    return logits, maps


def relative(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", ALL)
def test_logits_and_feature_maps_equal_timm(name):
    reference = timm_model(name).eval()
    x = images(1)
    with torch.no_grad():
        logits, maps = timm_maps(reference, x)
        torch.testing.assert_close(ours(name, reference).eval()(x), logits, rtol=1e-5, atol=1e-5)
        extracted = ours(name, reference, features_only=True).eval()(x)
    assert len(extracted) == len(maps) == 5
    for stride, value, expected in zip((2, 4, 8, 16, 32), extracted, maps):
        assert value.shape[-1] == 64 // stride
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.1 and all(each.std() > 0.1 for each in maps), "weights under which nothing would be seen"


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnest26", "resnest50_fast_4s2x40d", "resnest50_fast_1s4x24d"])
def test_dilated_equals_timm(name, output_stride):
    reference = timm_model(name, output_stride).eval()
    x = images(1)
    with torch.no_grad():
        logits, maps = timm_maps(reference, x)
        torch.testing.assert_close(ours(name, reference, output_stride=output_stride).eval()(x), logits, rtol=1e-5, atol=1e-5)
        extracted = ours(name, reference, output_stride=output_stride, features_only=True).eval()(x)
    assert extracted[-1].shape[-1] == 64 // output_stride
    for value, expected in zip(extracted, maps):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, output_stride",
    [*(pytest.param(*each.values, 32, marks=each.marks) for each in ALL), ("resnest26", 8), ("resnest50_fast_2s2x40d", 16)],
)
def test_training_equals_timm(name, output_stride, monkeypatch):
    variant = VARIANTS[name]
    if sum(variant.blocks) > 16:  # what depth does is seen in the logits above; both networks are made of this
        monkeypatch.setitem(VARIANTS, name, dataclasses.replace(variant, blocks=(3, 3, 3, 3)))
    # In float64: in float32 one rounding on the other side of a ReLU moves some gradients of timm itself by 1e-2 from
    # what they are in float64, so that a tolerance would measure luck.
    reference = timm_model(name, output_stride, num_classes=10).double().train()
    model = ours(name, reference, num_classes=10, output_stride=output_stride).double().train()
    x, labels = images(2).double(), torch.arange(2)
    outputs = []
    for network in (model, reference):
        logits = network(x)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        outputs.append(logits.detach())
    assert relative(*outputs) < 1e-6

    state = from_own_names(model.state_dict(), "timm")
    gradients = from_own_names({name: p.grad for name, p in model.named_parameters()}, "timm")
    expected_gradients = {name: p.grad for name, p in reference.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    largest = max(each.norm() for each in expected_gradients.values())
    for key, expected in expected_gradients.items():
        # A bias before a norm has gradient zero but for rounding: nothing to be relative to.
        assert (gradients[key] - expected).norm() < 1e-6 * max(expected.norm(), 1e-4 * largest), key
    for key, expected in reference.state_dict().items():
        if "running" in key:
            assert relative(state[key], expected) < 1e-6, key


def test_a_training_step_in_float32_equals_timm():
    reference = timm_model("resnest26", num_classes=10).train()
    model = ours("resnest26", reference, num_classes=10).train()
    x, labels = images(8), torch.arange(8)
    gradients = []
    for network in (model, reference):
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    gradients[0] = from_own_names(gradients[0], "timm")
    joined = [torch.cat([each[key].flatten() for key in gradients[1]]) for each in gradients]
    assert relative(*joined) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "resnest14d",
        "resnest26d",
        "resnest50d",
        "resnest50d_4s2x40d",
        "resnest50d_1s4x24d",
        "resnest101e",
        "resnest200e",
        "resnest269e",
    ],
)
def test_the_reference_is_what_timm_calls_so(name):
    # The parity tests build timm's networks from its parts; here they are the ones timm has names for.
    with torch.device("meta"):
        named = timm.create_model(name)
    built = timm_model(ALIASES[name])
    assert {key: tuple(value.shape) for key, value in named.state_dict().items()} == {
        key: tuple(value.shape) for key, value in built.state_dict().items()
    }
    assert [str(module) for module in named.modules()] == [str(module) for module in built.modules()]
