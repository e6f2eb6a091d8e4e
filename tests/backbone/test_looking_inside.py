"""What tools that look into models rely on: hooks, attribution rules on ReLUs, torch.fx, scripting; equal to timm's."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.models.feature_extraction import create_feature_extractor

from resnest_det import UserError, create_model
from resnest_det.backbone.folding import fold_norms
from resnest_det.backbone.layers import freeze
from resnest_det.backbone.variants import VARIANTS
from tests.helpers.networks import small_backbone
from tests.helpers.timm_reference import images, randomise, timm_model, with_weights_of

# A feature extractor returns a list, which torch says it has no backward hook for; the hooks of the modules inside are tested.
pytestmark = pytest.mark.filterwarnings("ignore:For backward hooks to be called, module output:UserWarning")

QUICK = ("resnest14", "resnest26")  # scripting takes seconds for each
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in VARIANTS]


def pair(name):
    """A variant and timm's network with the same weights, in double precision."""
    reference = timm_model(name, num_classes=10).eval()
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    return with_weights_of(model, reference).eval().double(), reference.double()


def guided(inputs, grad_input, grad_output, outputs):
    return grad_input.clamp(min=0)


def deconvolution(inputs, grad_input, grad_output, outputs):
    return grad_output.clamp(min=0)


def deep_lift(inputs, grad_input, grad_output, outputs):
    """The rescale rule: the second half of the batch is the reference."""
    delta_in = torch.cat([inputs.chunk(2)[0] - inputs.chunk(2)[1]] * 2)
    delta_out = torch.cat([outputs.chunk(2)[0] - outputs.chunk(2)[1]] * 2)
    return torch.where(delta_in.abs() < 1e-10, grad_input, grad_output * delta_out / delta_in)


def attribution(model, x, rule):
    """The input's gradient with `rule` in the place of every ReLU's, put there as attribution libraries do."""

    def watch(module):
        seen = {}

        def before(module, inputs):
            assert "outputs" not in seen, "a ReLU is used twice"
            seen["inputs"] = inputs[0].detach().clone()
            inputs[0].register_hook(lambda grad: rule(seen["inputs"], grad, seen["grad_output"], seen["outputs"]))
            return inputs[0].clone()

        def after(module, inputs, output):
            seen["outputs"] = output.detach().clone()
            output.register_hook(lambda grad: seen.update(grad_output=grad))

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            watch(module)
    x = x.clone().requires_grad_()
    model(x)[: len(x) // 2 or 1, 7].sum().backward()
    return x.grad


@pytest.mark.parametrize("rule", [guided, deconvolution, deep_lift])
@pytest.mark.parametrize("name", ["resnest14", "resnest50_fast_1s2x40d"])
def test_attributions_equal_timms(name, rule):
    model, reference = pair(name)
    x = images(2).double()
    x[1] *= 0.1
    result, expected = (attribution(network, x, rule) for network in (model, reference))
    plain = attribution(reference, x, lambda inputs, grad_input, *_: grad_input)
    assert (expected - plain).abs().max() > 0.1 * plain.abs().max(), "a rule that changes nothing"
    assert (result - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_relus_and_pooling_are_as_many_modules_as_in_timm():
    model, reference = pair("resnest26")
    for kind in (nn.ReLU, nn.MaxPool2d):
        counts = [sum(isinstance(module, kind) for module in network.modules()) for network in (model, reference)]
        assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("arguments", [{}, {"features_only": True}, {"output_stride": 8}])
def test_nothing_overwrites_what_a_hook_keeps(arguments):
    model, kept = randomise(create_model("resnest14", **arguments)).eval(), []
    for module in model.modules():
        module.register_forward_hook(
            lambda module, inputs, output: kept.append((output, output.clone())) if torch.is_tensor(output) else None
        )
    with torch.no_grad():
        model(images(1))
    assert len(kept) > 60 and all(torch.equal(output, copied) for output, copied in kept)


@pytest.mark.parametrize("name", ["resnest14", "resnest26"])
@pytest.mark.parametrize("features_only", [False, True])
def test_full_backward_hooks_work_on_every_module(name, features_only):
    model = randomise(create_model(name, features_only=features_only)).eval()
    model.requires_grad_(False)
    x = images(1).requires_grad_()

    def gradient():
        outputs = model(x)
        (outputs if torch.is_tensor(outputs) else outputs[-1]).square().mean().backward()
        grad, x.grad = x.grad, None
        return grad

    expected, called = gradient(), set()
    for module_name, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, module_name=module_name: called.add(module_name))
    assert torch.equal(gradient(), expected)
    assert {"stem.conv1_1", "stem.conv1_1.norm", "res5.0.conv3", "res5.0.conv3.norm", "res4.0.conv2.bn0", "res5.0.relu"} <= called


def test_a_folded_copy_overwrites_and_gives_the_same():
    model = randomise(create_model("resnest14")).eval()
    folded = fold_norms(model)
    relus = [module for module in folded.modules() if isinstance(module, nn.ReLU)]
    assert relus and all(module.inplace for module in relus)
    assert not any(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
    with torch.no_grad():
        assert_same_outputs(folded(images(1)), model(images(1)))


def assert_same_outputs(outputs, expected):
    for value, wanted in zip(*(each if isinstance(each, list) else [each] for each in (outputs, expected)), strict=True):
        assert value.shape == wanted.shape
        if value.device.type != "meta":
            assert (value - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_variant_is_traced_scripted_and_hooked(name, features_only, monkeypatch):
    if name not in QUICK:  # more depth is more of the same blocks, which take minutes to script
        monkeypatch.setitem(VARIANTS, name, dataclasses.replace(VARIANTS[name], blocks=(2, 1, 1, 1)))
    with torch.device("meta"):  # shapes only
        model, x = create_model(name, features_only=features_only).eval(), torch.empty(1, 3, 64, 64)
        expected = model(x)
        assert_same_outputs(torch.fx.symbolic_trace(model)(x), expected)
        maps = create_feature_extractor(model, {"res3": "c3", "res5": "c5"})(x)
        assert {key: tuple(value.shape[1:]) for key, value in maps.items()} == {"c3": (512, 8, 8), "c5": (2048, 2, 2)}
        assert_same_outputs(torch.jit.script(model)(x), expected)
        for module in model.modules():
            module.register_full_backward_hook(lambda *_: None)
        outputs = model(x.requires_grad_())
        (outputs[-1] if features_only else outputs).sum().backward()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"features_only": True},
        {"features_only": True, "out_indices": (1, 3)},
        {"output_stride": 8},
        {"norm": "GN"},
        {"num_classes": 0, "global_pool": "catavgmax"},
        {"drop_rate": 0.1, "drop_path_rate": 0.1},
    ],
)
def test_traced_and_scripted_models_give_the_numbers(arguments):
    model = randomise(create_model("resnest14", **arguments)).eval()
    x = images(2)
    with torch.no_grad():
        expected = model(x)
        assert_same_outputs(torch.fx.symbolic_trace(model)(x), expected)
        for network in (model, fold_norms(model)):
            assert_same_outputs(torch.jit.script(network)(x), expected)
            assert_same_outputs(torch.jit.script(network)(x), expected)  # a class is scripted more than once in a process


def test_scripted_model_trains():
    model = torch.jit.script(create_model("resnest14", num_classes=2, drop_path_rate=0.1).train())
    model(images(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_freezing_before_and_after_a_cast_is_the_same(dtype):
    model = randomise(create_model("resnest14", num_classes=3)).eval()
    first, then = copy.deepcopy(model), copy.deepcopy(model)
    first.freeze(2)
    first.to(dtype)
    then.to(dtype)
    then.freeze(2)
    assert then.state_dict().keys() == first.state_dict().keys()
    for name, value in then.state_dict().items():
        assert value.dtype == first.state_dict()[name].dtype and torch.equal(value, first.state_dict()[name]), name
    if dtype != torch.float16:
        with torch.no_grad():
            assert then(images(1).to(dtype)).dtype == dtype
    assert freeze(nn.BatchNorm2d(3).to(dtype)).weight.dtype == dtype


@pytest.mark.parametrize("arguments", [{}, {"features_only": True}, {"features_only": True, "out_indices": (1,)}])
def test_a_batch_of_one_in_training_is_explained(arguments):
    model = create_model("resnest14", **arguments)
    with pytest.raises(UserError, match=r"a batch of one image .*drop_last=True.*FrozenBN.*model\.eval\(\)") as error:
        model(images(1))
    assert "\n" not in str(error.value)
    model(images(2))
    model.eval()(images(1))


@pytest.mark.parametrize("prepare", ["FrozenBN", "GN", "frozen", "norms in evaluation mode"])
def test_a_batch_of_one_trains_where_no_batch_norm_does(prepare):
    model = create_model("resnest14", num_classes=3, norm=prepare if prepare in ("FrozenBN", "GN") else "BN")
    if prepare == "frozen":
        model.freeze(5)
    if prepare.startswith("norms"):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    model(images(1)).sum().backward()
    assert model.linear.weight.grad is not None


def with_other_activations(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model


def test_activations_are_exchanged_as_in_timm():
    model, reference = map(with_other_activations, pair("resnest14"))
    x = images(2, 64).double()
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), rtol=0, atol=1e-8)


def test_what_a_hook_returns_takes_the_place_of_an_output():
    model = create_model("resnest14", num_classes=4).eval()
    handle = model.res5[-1].register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    with torch.no_grad():
        before = model.linear.bias.normal_().clone()
        assert torch.equal(model(images(2, 64)), before.expand(2, 4))
        handle.remove()
        assert not torch.equal(model(images(2, 64)), before.expand(2, 4))


def test_gradients_of_a_functional_call_are_those_of_autograd():
    model = create_model("resnest14", num_classes=3).eval()
    x, parameters = images(1, 64), dict(model.named_parameters())
    gradients = torch.func.grad(lambda values: torch.func.functional_call(model, values, (x,)).square().sum())(parameters)
    model(x).square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def test_parametrised_and_pruned_layers_are_used():
    model = create_model("resnest14", num_classes=3).eval()
    x = images(1, 64)
    with torch.no_grad():
        expected = model(x)
        nn.utils.parametrizations.weight_norm(model.res3[0].conv2.conv)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
        prune.l1_unstructured(model.res3[0].conv1, "weight", 0.5)
        assert int((model.res3[0].conv1.weight == 0).sum()) == model.res3[0].conv1.weight.numel() // 2
        assert not torch.allclose(model(x), expected)


@pytest.mark.parametrize("deep_stem", [True, False])
def test_the_stem_before_its_pooling_is_a_feature(deep_stem):
    network = small_backbone(out_features=("res1", "stem", "res2"), deep_stem=deep_stem).eval()
    assert network.out_feature_strides == {"res1": 2, "stem": 4, "res2": 4} and not hasattr(network, "res3")
    assert network.out_feature_channels == {"res1": 16, "stem": 16, "res2": 32}
    x = images(2, 64)
    with torch.no_grad():
        found = network(x)
        assert list(found) == ["res1", "stem", "res2"] and found["res1"].shape == (2, 16, 32, 32)
        assert torch.equal(network.stem.pool(found["res1"]), found["stem"])
        assert torch.equal(network.res2(found["stem"]), found["res2"])
        scripted = torch.jit.script(network)(x)
    assert all(torch.equal(scripted[name], found[name]) for name in found)
    alone = small_backbone(out_features=("res1",), deep_stem=deep_stem)
    assert [name for name, _ in alone.named_children()] == ["stem"] and alone.size_divisibility == 2
    with pytest.raises(UserError, match="no feature 'res1'; it has stem, res2"):
        small_backbone(checkpoint_stages=("res1",))


def test_a_copy_has_hooks_and_parameters_of_its_own():
    model = create_model("resnest14", num_classes=3).eval()
    seen = []
    model.res2[0].conv2.register_forward_hook(lambda *_: seen.append(1))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.linear.bias.add_(1)
        torch.testing.assert_close(copied(images(1, 64)), model(images(1, 64)) + 1)
    assert len(seen) == 2


def test_norms_over_processes_take_one_image_each(monkeypatch):
    model = create_model("resnest14", num_classes=3)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    monkeypatch.setattr("resnest_det.backbone.layers.get_world_size", lambda: 2)
    synced.check_batch(images(1))
    with pytest.raises(UserError, match="a batch of one image"):
        model.check_batch(images(1))
