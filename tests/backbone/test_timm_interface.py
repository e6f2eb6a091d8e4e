"""What users of timm expect of a model is there and gives what timm gives."""

from collections import Counter

import pytest
import timm
import torch
from timm.layers import DropPath

from resnest_det import UserError, create_model, list_models
from resnest_det.backbone.bottleneck import Bottleneck
from resnest_det.backbone.classifier import POOL_TYPES
from resnest_det.backbone.resnest import STAGES
from resnest_det.backbone.variants import find_variant
from tests.helpers.timm_reference import images, randomise, with_weights_of


@pytest.fixture(scope="module")
def reference():
    return randomise(timm.create_model("resnest14d")).eval()


def ours(reference, **arguments):
    with torch.device("meta"):
        model = create_model("resnest14", **arguments)
    return with_weights_of(model, reference).eval()


def same(value, expected):
    assert value.shape == expected.shape
    assert (value - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("indices", [None, 1, 3, (0, 2), (-1,), (1, -2)])
@pytest.mark.parametrize("stop_early", [False, True])
@torch.no_grad()
def test_forward_intermediates(reference, indices, stop_early):
    model, x = ours(reference), images(2)
    result = model.forward_intermediates(x, indices, stop_early=stop_early)
    expected = reference.forward_intermediates(x, indices, stop_early=stop_early)
    same(result[0], expected[0])
    alone = model.forward_intermediates(x, indices, stop_early=stop_early, intermediates_only=True)
    assert len(result[1]) == len(expected[1]) == len(alone)
    for value, wanted, again in zip(result[1], expected[1], alone):
        same(value, wanted)
        assert torch.equal(value, again)


@torch.no_grad()
def test_forward_intermediates_stop_at_the_stem(reference):
    model, x = ours(reference), images(1)
    model.res2.register_forward_hook(lambda *_: pytest.fail("computed a stage that nobody asked for"))
    result, expected = (network.forward_intermediates(x, [0], stop_early=True) for network in (model, reference))
    same(result[0], expected[0])
    same(result[1][0], expected[1][0])


@pytest.mark.parametrize("output_stride", [8, 32])
def test_feature_info(output_stride):
    reference = timm.create_model("resnest14d", output_stride=output_stride)
    model = create_model("resnest14", output_stride=output_stride)
    for key in ("num_chs", "reduction"):
        assert [each[key] for each in model.feature_info] == [each[key] for each in reference.feature_info]
    modules = dict(model.named_modules())
    assert all(each["module"] in modules for each in model.feature_info)

    for out_indices in (3, (1, 2), (0, -1)):
        arguments = dict(features_only=True, out_indices=out_indices, output_stride=output_stride)
        info, expected = (
            create_model("resnest14", **arguments).feature_info,
            timm.create_model("resnest14d", **arguments).feature_info,
        )
        assert info.channels() == expected.channels() and info.reduction() == expected.reduction()
        assert info.channels(1) == expected.channels(1) and info.reduction([0, 1]) == expected.reduction([0, 1])
        assert len(info.module_name()) == len(expected.module_name())


@pytest.mark.parametrize("out_indices", [1, 2, 5])
@torch.no_grad()
def test_out_indices_as_a_number_are_the_last_maps(reference, out_indices):
    x = images(1)
    expected = timm.create_model("resnest14d", features_only=True, out_indices=out_indices)
    expected.load_state_dict(reference.state_dict(), strict=False)
    maps = ours(reference, features_only=True, out_indices=out_indices)(x)
    assert len(maps) == out_indices
    for value, wanted in zip(maps, expected.eval()(x), strict=True):
        same(value, wanted)


@pytest.mark.parametrize("pool", POOL_TYPES)
@torch.no_grad()
def test_global_pool(reference, pool):
    x = images(2)
    expected = timm.create_model("resnest14d", num_classes=0, global_pool=pool)
    expected.load_state_dict(reference.state_dict(), strict=False)
    model = ours(reference, num_classes=0, global_pool=pool)
    same(model(x), expected.eval()(x))
    assert model.head_hidden_size == expected.head_hidden_size and model.num_features == expected.num_features == 2048
    assert model.global_pool.pool_type == pool
    if pool:
        assert create_model("resnest14", num_classes=3, global_pool=pool).linear.in_features == expected.head_hidden_size


def test_classifier_can_be_got_and_replaced():
    model = create_model("resnest14", num_classes=4).double()
    assert model.get_classifier() is model.linear and model.get_classifier(name_only=True) == "linear"
    backbone = model.res5[0].conv3.weight
    model.reset_classifier(7)
    assert model.num_classes == 7 and model.linear.weight.shape == (7, 2048) and model.linear.weight.dtype == torch.float64
    assert 0.005 < model.linear.weight.std() < 0.02 and model.res5[0].conv3.weight is backbone
    assert model(images(2).double()).shape == (2, 7)
    model.reset_classifier(5, "catavgmax")
    assert model.linear.weight.shape == (5, 4096) and model(images(2).double()).shape == (2, 5)
    model.reset_classifier(0, "")
    assert model.num_classes == 0 and model(images(2).double()).shape == (2, 2048, 2, 2)
    with pytest.raises(UserError, match="num_classes 3 cannot be made from"):
        model.reset_classifier(3)
    with pytest.raises(UserError, match="global_pool is 'mean'; supported: 'avg', 'max'"):
        model.reset_classifier(3, "mean")
    with pytest.raises(UserError, match="num_classes is '3'"):
        model.reset_classifier("3")
    with pytest.raises(UserError, match="num_classes 3 cannot be made from"):
        create_model("resnest14", num_classes=3, global_pool="")


@pytest.mark.parametrize("features_only", [False, True])
def test_gradient_checkpointing_changes_what_is_kept_and_no_number(features_only):
    model = randomise(create_model("resnest14", features_only=features_only)).train()
    x, results = images(2), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert model.checkpoint_stages == (STAGES if enable else ())
        kept = Counter()

        def count(tensor, kept=kept):
            kept["values"] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            outputs = model(x)
        (outputs[-1] if features_only else outputs).square().mean().backward()
        results.append((kept["values"], model.stem.conv1_1.weight.grad.clone()))
        model.zero_grad()
    assert results[1][0] < 0.5 * results[0][0]
    torch.testing.assert_close(results[1][1], results[0][1])


def test_stochastic_depth_grows_as_timms():
    model, reference = create_model("resnest26", drop_path_rate=0.3), timm.create_model("resnest26d", drop_path_rate=0.3)
    rates = [block.drop_path.p if block.drop_path else 0.0 for block in model.modules() if isinstance(block, Bottleneck)]
    expected = [
        block.drop_path.drop_prob if block.drop_path else 0.0
        for stage in range(1, 5)
        for block in getattr(reference, f"layer{stage}")
    ]
    assert rates == pytest.approx(expected) and rates[0] == 0 and rates[-1] == pytest.approx(0.3)
    assert create_model("resnest14", drop_path_rate=0.3).state_dict().keys() == create_model("resnest14").state_dict().keys()


def test_stochastic_depth_leaves_out_what_a_block_adds():
    # timm's ResNestBottleneck drops from the shortcut; its other residual networks drop, as the paper does, what a block adds.
    block = randomise(Bottleneck(64, 64, 16, drop_path_rate=0.5)).train()
    x = images(16, 8, channels=64).relu()
    torch.manual_seed(0)
    outputs = block(x)
    skipped = [torch.equal(output, image) for output, image in zip(outputs, x)]
    assert 3 < sum(skipped) < 13
    torch.manual_seed(0)
    branch = block.conv3(block.conv2(block.conv1(x)))
    torch.testing.assert_close(outputs, (x + DropPath(0.5).train()(branch)).relu())
    block.eval()
    torch.testing.assert_close(block(x), (x + block.conv3(block.conv2(block.conv1(x)))).relu())


def test_default_cfg_is_what_timm_reads():
    model, reference = create_model("resnest14"), timm.create_model("resnest14d")
    assert model.default_cfg is model.pretrained_cfg
    assert timm.data.resolve_model_data_config(model) == timm.data.resolve_model_data_config(reference)
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()


@pytest.mark.parametrize(
    "name",
    ["timm/resnest50d.in1k", "hf-hub:timm/resnest50d.in1k", "hf_hub:timm/resnest50d.in1k", "timm/resnest50d", "resnest50d"],
)
def test_names_on_the_hub(name):
    assert find_variant(name).name == "resnest50"


@pytest.mark.parametrize(
    "name, reason",
    [
        ("hf-hub:someone/leaves", "on the hub only timm's ResNeSts .* checkpoint_path='hf://owner/name@revision'"),
        ("hf-hub:timm/resnest50d.in1k@abc", "@abc'.*checkpoint_path"),
        ("timm/resnet50.a1_in1k", "unknown model 'resnet50.a1_in1k'"),
        (None, "name is None, expected the name of a model"),
        (50, "name is 50, expected the name"),
    ],
)
def test_names_that_are_none(name, reason):
    with pytest.raises(UserError, match=reason):
        create_model(name)


def test_filters_of_names():
    assert list_models("*50*", exclude_filters="*fast*") == ["resnest50"]
    assert list_models(exclude_filters=["*50*", "*2?9*"]) == ["resnest14", "resnest26", "resnest101", "resnest200"]
    assert list_models(["*14*", "*26d"]) == ["resnest14", "resnest26"]
    assert list_models("resnest*", exclude_filters="") == list_models()
    timms = {find_variant(name).name for name in timm.list_models("resnest50*", exclude_filters="*1s*")}
    assert set(list_models("resnest50d*", exclude_filters="*1s*")) == timms
    for arguments in (dict(filter=50), dict(exclude_filters=[50]), dict(filter=None)):
        with pytest.raises(UserError, match=f"{next(iter(arguments))} is .*expected a shell pattern"):
            list_models(**arguments)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (dict(num_classes="10"), "num_classes is '10', expected a whole number of at least 0"),
        (dict(num_classes=2.0), "num_classes is 2.0"),
        (dict(num_classes=True), "num_classes is True"),
        (dict(in_chans="3"), "in_chans is '3'"),
        (dict(in_chans=None), "in_chans is None"),
        (dict(drop_rate="0.1"), "drop_rate is '0.1', expected a number"),
        (dict(drop_rate=None), "drop_rate is None"),
        (dict(drop_path_rate=1.0), "drop_path_rate is 1.0"),
        (dict(drop_path_rate=[0.1]), r"drop_path_rate is \[0.1\]"),
        (dict(output_stride="32"), "output stride '32' is not possible"),
        (dict(output_stride=None), "output stride None is not possible"),
        (dict(pretrained="yes"), "pretrained is 'yes', expected True or False"),
        (dict(features_only=1), "features_only is 1, expected True or False"),
        (dict(use_ema=None), "use_ema is None, expected True or False"),
        (dict(new_head="yes"), "new_head is 'yes', expected True, False or None"),
        (dict(checkpoint_path=3), "checkpoint_path is a int, expected a path or an address"),
        (dict(global_pool="mean"), "global_pool is 'mean'; supported"),
        (dict(global_pool=None), "global_pool is None; supported"),
        (dict(norm=None), "unknown norm None"),
        (dict(norm=3), "unknown norm 3"),
        (dict(features_only=True, out_indices=0), "out_indices is 0, expected a list of indices, or the number of the last maps"),
        (dict(features_only=True, out_indices=6), "out_indices is 6"),
        (dict(features_only=True, out_indices=True), "out_indices is True"),
        (dict(features_only=True, out_indices=None), "out_indices is None, expected a list"),
        (dict(features_only=True, out_indices="01"), "out_indices is '01', expected a list"),
        (dict(features_only=True, out_indices=(0, 1.5)), r"out_indices is \(0, 1.5\), expected a list"),
    ],
)
def test_arguments_of_wrong_types(arguments, reason):
    with torch.device("meta"), pytest.raises(UserError, match=reason) as error:
        create_model("resnest14", **arguments)
    assert "\n" not in str(error.value)
