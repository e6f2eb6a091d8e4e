"""The named models: sizes, heads, feature maps, input transforms, pretrained weights, and arguments that cannot be."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import resnest_det
from resnest_det import UserError, create_model, list_models, transforms_for
from resnest_det.backbone import classifier
from resnest_det.backbone.resnest import ResNeSt
from resnest_det.backbone.variants import VARIANTS
from resnest_det.weights.names import from_own_names
from resnest_det.weights.published import ALIASES
from tests.helpers.timm_reference import images, randomise, timm_model, with_weights_of

PARAMETERS = {
    "resnest14": 10_611_688,
    "resnest26": 17_069_448,
    "resnest50": 27_483_240,
    "resnest101": 48_275_016,
    "resnest200": 70_201_544,
    "resnest269": 110_929_480,
    "resnest50_fast_1s1x64d": 26_217_896,
    "resnest50_fast_2s1x64d": 27_483_240,
    "resnest50_fast_4s1x64d": 31_912_712,
    "resnest50_fast_1s2x40d": 25_946_680,
    "resnest50_fast_2s2x40d": 26_943_792,
    "resnest50_fast_4s2x40d": 30_417_592,
    "resnest50_fast_1s4x24d": 25_677_000,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_list_models():
    assert list_models() == list(PARAMETERS)
    assert list_models(pretrained=True) == list(PARAMETERS)
    assert list_models("*101*") == ["resnest101"]
    assert list_models("resnest50d*") == ["resnest50", "resnest50_fast_4s2x40d", "resnest50_fast_1s4x24d"]  # by timm's names
    assert list_models("vit*") == []


@pytest.mark.parametrize("alias", ALIASES)
def test_timm_names_resolve(alias):
    with torch.device("meta"):
        model = create_model(alias)
    assert model.pretrained_cfg["architecture"] == ALIASES[alias]


def test_feature_maps_of_the_model_card():
    with torch.device("meta"):
        model = create_model("resnest101e", features_only=True).eval()
        maps = model(torch.empty(1, 3, 256, 256))
    assert [tuple(each.shape) for each in maps] == [
        (1, 128, 128, 128),
        (1, 256, 64, 64),
        (1, 512, 32, 32),
        (1, 1024, 16, 16),
        (1, 2048, 8, 8),
    ]
    assert list(model.out_feature_strides.values()) == [2, 4, 8, 16, 32]
    assert list(model.out_feature_channels.values()) == [128, 256, 512, 1024, 2048]


def test_out_indices():
    x = images(1)
    everything = randomise(create_model("resnest14", features_only=True)).eval()
    some = create_model("resnest14", features_only=True, out_indices=(3, -4)).eval()
    some.load_state_dict(everything.state_dict(), strict=False)
    assert not hasattr(some, "res5")
    with torch.no_grad():
        maps, expected = some(x), everything(x)
    assert len(maps) == 2 and torch.equal(maps[0], expected[1]) and torch.equal(maps[1], expected[3])


def test_embedding_features_and_head():
    model = randomise(create_model("resnest14", num_classes=7)).eval()
    embedder = create_model("resnest14", num_classes=0).eval()
    embedder.load_state_dict(model.state_dict(), strict=False)
    x = images(2)
    with torch.no_grad():
        features = model.forward_features(x)
        embedding = model.forward_head(features, pre_logits=True)
        assert features.shape == (2, 2048, 2, 2) and embedding.shape == (2, model.num_features) == (2, 2048)
        torch.testing.assert_close(embedding, features.mean((2, 3)))
        assert torch.equal(embedder(x), embedding)
        assert model(x).shape == (2, 7)
        assert torch.equal(model.forward_head(features), model(x))


def test_dropout_only_in_training():
    model = create_model("resnest14", num_classes=0, drop_rate=0.5)
    features = torch.ones(4, 2048, 1, 1)
    torch.manual_seed(0)
    dropped = model.train().forward_head(features)
    assert dropped.unique().tolist() == [0.0, 2.0] and 0.4 < (dropped == 0).float().mean() < 0.6
    assert torch.equal(model.eval().forward_head(features), torch.ones(4, 2048))


@pytest.mark.parametrize("norm, kind", [("GN", torch.nn.GroupNorm), ("FrozenBN", None)])
def test_norms(norm, kind):
    with torch.device("meta"):
        model = create_model("resnest14", norm=norm)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    if kind:
        assert isinstance(model.stem.conv1_1.norm, kind)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (dict(blocks=(1, 1, 1)), "blocks is .1, 1, 1.; it must have a number for each of res2, res3, res4, res5"),
        (dict(blocks=(1, 0, 1, 1)), "blocks is 0; it must be a whole number, at least 1"),
        (dict(in_channels="3"), "in_channels is .3.; it must be a whole number, at least 1"),
        (dict(freeze_at="2"), "freeze_at is .2.; it must be a whole number"),
        (dict(radix=True), "radix is True; it must be a whole number"),
        (dict(drop_path_rate=2.0), "drop_path_rate is 2.0; it must be from 0 to 1"),
    ],
)
def test_shapes_that_no_network_has(arguments, reason):
    with torch.device("meta"), pytest.raises(UserError, match=reason):
        ResNeSt(**arguments)


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (dict(name="resnest51"), "unknown model 'resnest51'; nearest: resnest50, "),
        (dict(name="vit"), "known: resnest14, resnest26"),
        (dict(output_stride=4), "output stride 4 is not possible; supported: 8, 16, 32"),
        (
            dict(features_only=True, out_indices=(0, 5)),
            r"out_indices \[0, 5\] are not possible: there are 5 feature maps, 0 to 4",
        ),
        (dict(features_only=True, out_indices=()), "out_indices"),
        (dict(features_only=True, out_indices=(1, -4)), "name a feature map twice"),
        (dict(features_only=True, out_indices=6), "out_indices is 6, expected a list"),
        (dict(in_chans=0), "in_chans is 0"),
        (dict(num_classes=-1), "num_classes is -1"),
        (dict(drop_rate=1.0), "drop_rate is 1.0"),
        (dict(norm="LN"), "unknown norm 'LN'"),
        (dict(pretrained=True, checkpoint_path="x.pth"), "choose one"),
        (dict(checkpoint_path="none.pth"), "none.pth: no such file"),
    ],
)
def test_arguments_that_cannot_be(arguments, reason):
    with torch.device("meta"), pytest.raises(UserError, match=reason):
        create_model(**{"name": "resnest14", **arguments})


@pytest.fixture
def published(tmp_path, monkeypatch):
    """timm's file of resnest14, found where the published one would be."""
    reference = timm_model("resnest14")
    torch.save(reference.state_dict(), tmp_path / "published.pth")
    monkeypatch.setattr(classifier, "resolve_weights", {"resnest://resnest14": str(tmp_path / "published.pth")}.__getitem__)
    return reference.eval()


def test_pretrained(published):
    x = images(1)
    with torch.no_grad():
        torch.testing.assert_close(create_model("resnest14", pretrained=True).eval()(x), published(x), rtol=1e-5, atol=1e-5)
        embedding = create_model("resnest14d", pretrained=True, num_classes=0).eval()(x)
        torch.testing.assert_close(embedding, published.forward_head(published.forward_features(x), pre_logits=True))
        maps = create_model("resnest14", pretrained=True, features_only=True, out_indices=(4,)).eval()(x)
        torch.testing.assert_close(maps[0], published.forward_features(x), rtol=1e-5, atol=1e-5)


def test_fine_tuning_starts_from_pretrained_features_and_a_fresh_head(published):
    model = create_model("resnest14", pretrained=True, num_classes=5)
    assert torch.equal(model.res5[0].conv3.weight, published.layer4[0].conv3.weight)
    assert model.linear.weight.shape == (5, 2048)
    assert 0.005 < model.linear.weight.std() < 0.02 and model.linear.bias.count_nonzero() == 0


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_adapt_the_first_convolution_as_timm_does(published, channels):
    from timm.models._manipulate import adapt_input_conv

    model = create_model("resnest14", pretrained=True, in_chans=channels)
    torch.testing.assert_close(model.stem.conv1_1.weight.data, adapt_input_conv(channels, published.conv1[0].weight.data))
    assert model.eval()(images(1, channels=channels)).shape == (1, 1000)


def test_checkpoint_path_takes_what_training_saved(tmp_path):
    source = randomise(create_model("resnest14", num_classes=5))
    torch.save({"state_dict": from_own_names(source.state_dict(), "timm"), "epoch": 1}, tmp_path / "x.pth")
    model = create_model("resnest14", num_classes=5, checkpoint_path=str(tmp_path / "x.pth"))
    assert torch.equal(model.linear.weight, source.linear.weight)
    with pytest.raises(UserError, match=r"x.pth: .*linear.weight \(5, 2048\) in the file, \(1000, 2048\) in the model"):
        create_model("resnest14", checkpoint_path=str(tmp_path / "x.pth"))


def test_published_file_of_a_variant_with_the_same_shapes_is_refused(tmp_path):
    path = tmp_path / "resnest50-528c19ca.pth"
    torch.save({}, path)
    with torch.device("meta"), pytest.raises(UserError, match="they are of resnest50, the model is resnest50_fast_2s1x64d"):
        create_model("resnest50_fast_2s1x64d", checkpoint_path=str(path))


@pytest.mark.parametrize(
    "name",
    [
        "resnest14d",
        "resnest26d",
        "resnest50d",
        "resnest101e",
        "resnest200e",
        "resnest269e",
        "resnest50d_4s2x40d",
        "resnest50d_1s4x24d",
    ],
)
def test_input_transform_equals_timms(name):
    with torch.device("meta"):
        model, reference = create_model(name), timm.create_model(name)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 451, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = timm.data.create_transform(**timm.data.resolve_model_data_config(reference), is_training=False)(image)
    torch.testing.assert_close(transforms_for(model)(image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I;16B", "I", "F"])
def test_input_transform_takes_images_of_every_mode(mode):
    with torch.device("meta"):
        model = create_model("resnest14")
    transform = transforms_for(model)
    pixels = np.random.default_rng(0).integers(0, 256, (250, 300), dtype=np.uint8)
    pixels[0, 0] = 255
    deep = {"I;16": "<u2", "I;16B": ">u2", "I": "i4"}
    if mode in deep:
        image = Image.frombytes(mode, (300, 250), (pixels.astype(deep[mode]) * 257).tobytes())
    elif mode == "F":
        image = Image.fromarray(pixels.astype(np.float32) / 255)
    else:
        image = Image.fromarray(pixels).convert("RGB").convert(mode)
    gray = Image.fromarray(pixels) if mode in deep or mode == "F" else image
    assert image.mode == mode
    assert torch.equal(transform(image), transform(gray.convert("RGB")))


def test_input_transform_refuses_what_has_no_rule():
    with torch.device("meta"):
        model = create_model("resnest14")
    transform = transforms_for(model)
    with pytest.raises(UserError, match="float pixels go from 0 to 255, expected 0 for black to 1 for white"):
        transform(Image.fromarray(np.arange(256, dtype=np.float32).reshape(16, 16)))


def test_input_transform_only_for_named_models_of_rgb():
    with torch.device("meta"):
        gray = create_model("resnest14", in_chans=1)
    with pytest.raises(UserError, match="takes 1 channels"):
        transforms_for(gray)
    with pytest.raises(UserError, match="has no pretrained_cfg"):
        transforms_for(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="crop is 'center'; supported: 'resize', 'authors'"):
        transforms_for(create_model("resnest14"), "center")


@pytest.mark.parametrize("name, size", [("resnest14", 224), ("resnest101", 256), ("resnest269", 416)])
def test_the_authors_crop_is_theirs_to_the_pixel(name, size):
    # ECenterCrop of their scripts/torch/verify.py in numbers: 0.875 of the short side at 224, and so on, by Pillow's own crop.
    with torch.device("meta"):
        transform = transforms_for(create_model(name), "authors").transforms[1]
    generator = np.random.default_rng(0)
    for width, height in [
        (500, 375),
        (375, 500),
        (501, 333),
        (256, 256),
        (60, 41),
        (7, 9),
        *generator.integers(30, 700, (20, 2)),
    ]:
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        side = size / (size + 32) * min(width, height)
        left, top = round((width - side) / 2), round((height - side) / 2)
        expected = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(transform(image)), np.asarray(expected), f"{width}x{height}")


def test_pretrained_cfg():
    with torch.device("meta"):
        cfg = create_model("resnest200").pretrained_cfg
    assert cfg["input_size"] == (3, 320, 320) and cfg["crop_pct"] == 0.909 and cfg["interpolation"] == "bicubic"
    assert cfg["mean"] == (0.485, 0.456, 0.406) and cfg["std"] == (0.229, 0.224, 0.225)
    assert any("github.com/zhanghang1989" in address for address in cfg["source"])


def test_torch_hub_entries():
    repository = str(Path(__file__).parents[2])
    with torch.device("meta"):
        for name in VARIANTS:
            assert torch.hub.load(repository, name, source="local").pretrained_cfg["architecture"] == name
        for name in ("resnest50d", "resnest50d.in1k", "resnest50d_4s2x40d"):
            assert torch.hub.load(repository, name, source="local").pretrained_cfg["architecture"] == ALIASES[name]
        assert torch.hub.load(repository, "resnest14", source="local", num_classes=3).linear.out_features == 3
    specification = importlib.util.spec_from_file_location("hubconf", f"{repository}/hubconf.py")
    hubconf = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hubconf)
    entries = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert entries == {*VARIANTS, *ALIASES}  # what torch.hub.list shows
    assert "create_model" in hubconf.resnest50.__doc__


def test_importing_the_package_is_cheap():
    specification = importlib.util.find_spec("resnest_det")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert not set(module._LAZY) & set(vars(module))  # nothing heavy is loaded before it is asked for
    assert callable(module.create_model) and set(module._LAZY) <= set(dir(module))
    assert resnest_det.__version__ == module.__version__
    with pytest.raises(AttributeError):
        _ = module.nothing


def test_weights_are_used_by_every_variant_of_norm():
    reference = timm_model("resnest14").eval()
    with torch.device("meta"):
        model = create_model("resnest14", norm="FrozenBN")
    x = images(1)
    with torch.no_grad():
        torch.testing.assert_close(with_weights_of(model, reference)(x), reference(x), rtol=1e-5, atol=1e-5)
