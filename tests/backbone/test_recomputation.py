"""resnest_det.backbone.recomputation: the gradients that keeping everything gives, with half of what is kept."""

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from resnest_det.backbone import recomputation, resnest
from resnest_det.backbone.recomputation import normed, offer, recomputing
from resnest_det.backbone.split_attention import Deformable, SplitAttentionConv2d
from tests.helpers.networks import randomise_norms, small_backbone

pytestmark = pytest.mark.skipif(recomputation._top_hooks is None, reason="this torch does not tell which hooks are set")

NETWORKS = {
    "resnest": {},
    "three blocks a stage": {"blocks": (3, 1, 3, 1)},
    "group norm": {"norm": "GN", "bottleneck_channels": 32, "stem_width": 32, "bottleneck_width": 64},
    "frozen norm": {"norm": "FrozenBN"},
    "frozen stages": {"freeze_at": 2},
    "resnet": {"radix": 0, "avd": False, "deep_stem": False},
    "one split": {"radix": 1},
    "fast 4s2x": {"radix": 4, "groups": 2, "avd_first": True},
    "dilated as in timm": {"output_stride": 8, "dilation_style": "timm"},
    "deformable": {"deform_on_per_stage": (False, True, True, True), "deformable": Deformable(True)},
    "stochastic depth": {"drop_path_rate": 0.5, "blocks": (2, 2, 1, 1)},
}


@pytest.fixture
def kept_whole(monkeypatch):
    """A function that runs another one with autograd keeping everything."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(resnest, "recomputing", lambda x: nullcontext())
            return function()

    return run


def network(name="resnest", dtype=torch.float64):
    model = small_backbone(**NETWORKS[name])
    randomise_norms(model)
    return model.to(dtype).train()


def gradients(model, x, **context):
    """Of the input and of all parameters."""
    torch.manual_seed(0)
    model.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=context.get("autocast", False)):
        maps = model(x)
        loss = sum((value.double() ** 2).mean() for value in maps.values())
    loss.backward()
    return {"input": x.grad} | {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def assert_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, value in expected.items():
        # Of a bias before a batch norm the gradient is zero but for rounding.
        scale = max(float(value.abs().max()), 1e-4 * largest)
        assert (actual[name] - value).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_keeping_everything(name, kept_whole):
    model, x = network(name), torch.rand(4, 3, 64, 96, dtype=torch.float64)
    other = copy.deepcopy(model)
    expected = kept_whole(lambda: gradients(other, x))
    assert_close(gradients(model, x), expected, 1e-8)  # float64, over twenty layers
    for (key, value), (_, wanted) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(value, wanted), key  # statistics count a batch once


def test_gradients_in_bfloat16(kept_whole):
    model, x = network(dtype=torch.float32), torch.rand(4, 3, 64, 64)
    model.requires_grad_(True)
    expected = kept_whole(lambda: gradients(model, x, autocast=True))
    result = gradients(model, x, autocast=True)
    # Elements are rounded to 8 bits: the mean over a parameter says whether they are the same but for that.
    for name, value in expected.items():
        assert (result[name] - value).norm() <= 0.05 * value.norm() + 1e-6, name


def kept_bytes(model, x):
    """Of maps that autograd keeps of a forward pass, each storage once."""
    maps, saved, create = {}, [], recomputation._Saved.__init__

    def note(self, tensor):
        create(self, tensor)
        saved.append(self)

    recomputation._Saved.__init__ = note
    try:
        outputs = model(x)
    finally:
        recomputation._Saved.__init__ = create
    for each in saved:
        if each.tensor is not None and each.tensor.dim() == 4 and not isinstance(each.tensor, nn.Parameter):
            maps[each.tensor.untyped_storage().data_ptr()] = each.tensor.untyped_storage().nbytes()
    del outputs
    return sum(maps.values())


def test_half_of_the_maps_is_kept():
    model, x = small_backbone(blocks=(3, 4, 6, 3)).train(), torch.rand(2, 3, 64, 64)
    maps = {}

    def note(tensor):
        if tensor.dim() == 4 and not isinstance(tensor, nn.Parameter):
            maps[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):  # which also turns the forgetting off
        outputs = model(x)
    del outputs
    assert kept_bytes(model, x) <= 0.6 * sum(maps.values())


def test_gradcheck_of_split_attention():
    torch.manual_seed(0)
    layer = SplitAttentionConv2d(2, 2, radix=2).double().train()
    parameters = {name: each for name, each in layer.named_parameters() if name.startswith(("conv", "bn0"))}

    def function(x, *values):
        with recomputing(x):
            return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,))

    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


def test_gradients_of_gradients(kept_whole):
    model, x = network(), torch.rand(4, 3, 32, 32, dtype=torch.float64)

    def second():
        image = x.clone().requires_grad_()
        loss = sum((value**2).mean() for value in model(image).values())
        (first,) = torch.autograd.grad(loss, image, create_graph=True)
        return torch.autograd.grad(first.square().sum() * 1e3, image)[0]

    expected = kept_whole(second)
    assert (second() - expected).abs().max() <= 1e-7 * expected.abs().max()


def test_a_graph_that_is_used_twice(kept_whole):
    model, x = network("three blocks a stage"), torch.rand(4, 3, 32, 32, dtype=torch.float64)
    loss = sum((value**2).mean() for value in model(x).values())
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, parameters)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("others", ["save_on_cpu", "checkpointed stages", "torch.func", "torch.jit.trace"])
def test_where_somebody_else_decides_what_is_kept_nothing_is_forgotten(others, kept_whole, monkeypatch):
    # A transform of torch.func allows no norm that notes its statistics.
    model, x = network("frozen norm" if others == "torch.func" else "resnest"), torch.rand(4, 3, 32, 32, dtype=torch.float64)
    expected = kept_whole(lambda: gradients(copy.deepcopy(model), x))
    monkeypatch.setattr(recomputation._Plan, "offer", lambda *arguments: pytest.fail("offered"))
    if others == "checkpointed stages":
        model.checkpoint_stages = ("stem", *resnest.STAGES)
        assert_close(gradients(model, x), expected, 1e-8)
    elif others == "save_on_cpu":
        with save_on_cpu():
            assert_close(gradients(model, x), expected, 1e-8)
    elif others == "torch.jit.trace":
        torch.jit.trace(model, x, strict=False, check_trace=False)
    else:
        parameters = dict(model.named_parameters())
        grads = torch.func.grad(lambda given: (torch.func.functional_call(model, given, (x,))["res5"] ** 2).mean())(parameters)
        assert grads.keys() == parameters.keys()


def test_maps_that_are_changed_afterwards_are_noticed_or_do_not_matter():
    model, x = network(), torch.rand(4, 3, 32, 32, dtype=torch.float64)

    def gradient(name, change):
        model.zero_grad()
        maps = model(x)
        with torch.no_grad():
            change(maps[name])
        sum((value**2).mean() for value in maps.values()).backward()
        return model.res5[0].conv1.weight.grad

    for name in ("res2", "res3", "res4"):  # which the next stage has kept
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradient(name, lambda value: value.mul_(2.0))
    expected = gradient("res5", lambda value: None)
    assert (gradient("res5", lambda value: value.mul_(2.0)) - 2 * expected).abs().max() <= 1e-10 * expected.abs().max()


def test_nothing_is_left_of_a_graph():
    model, x = network(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    seen = []
    model.res3[0].conv1.register_forward_hook(lambda module, inputs, output: seen.append(weakref.ref(output)))
    loss = sum((value**2).mean() for value in model(x).values())
    gc.disable()
    try:
        loss.backward()
        del loss
        assert seen[0]() is None
    finally:
        gc.enable()


def test_hooks_still_see_every_module():
    model, x, called = network(), torch.rand(2, 3, 32, 32, dtype=torch.float64), set()
    for name, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: called.add(name))
    with pytest.warns(UserWarning, match="module output"):  # a dict of maps has no hook
        sum((value**2).mean() for value in model(x).values()).backward()
    assert {"res2.0.conv2.bn0", "res2.0.conv2.relu0", "res5.0.conv3.norm", "res5.0.relu"} <= called


def test_a_view_of_an_offered_map_and_a_value_of_another_layout():
    torch.manual_seed(0)
    x = torch.rand(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def loss(forgotten):
        with recomputing(x) if forgotten else nullcontext():
            y = (x * 2).to(memory_format=torch.channels_last).relu()
            offer(y, lambda x: (x * 2).relu().contiguous(), x)
            return (y[:, 1:3] * y[:, :2]).sum()

    (expected,), (result,) = (torch.autograd.grad(loss(forgotten), x) for forgotten in (False, True))
    assert torch.equal(result, expected)


class Synced(torch.autograd.Function):
    """Keeps what the function of torch's SyncBatchNorm keeps."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse, torch.tensor([x.numel()]))
        return (x - mean[:, None, None]) * (inverse * weight)[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx, grad):
        x, weight, mean, inverse, _ = ctx.saved_tensors
        return torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, 1e-5, [True, True, True]
        ) + (None,)


def test_what_torchs_synchronised_norm_keeps_is_enough(monkeypatch):
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: Synced.apply(x, self.weight, self.bias, self.eps))
    norm, x = nn.SyncBatchNorm(3).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.uniform_(-1, 1)
    offers, offered = [], recomputation._Plan.offer
    monkeypatch.setattr(recomputation._Plan, "offer", lambda *given: (offers.append(given), offered(*given)))
    with recomputing(x):
        result = (normed(x * 1.0, norm, nn.ReLU()) ** 2).sum()
    expected = (nn.ReLU()(norm(x * 1.0)) ** 2).sum()
    assert len(offers) == 1
    for actual, wanted in zip(*(torch.autograd.grad(loss, [x, norm.weight, norm.bias]) for loss in (result, expected))):
        torch.testing.assert_close(actual, wanted)
