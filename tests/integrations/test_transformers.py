"""ResNeSt in transformers: features, folders that are saved and loaded, Auto classes, the pipeline, and bad input."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore:::transformers")]
transformers = pytest.importorskip("transformers")

from resnest_det.backbone.classifier import create_model, transforms_for  # noqa: E402
from resnest_det.errors import UserError  # noqa: E402
from resnest_det.integrations import transformers as host  # noqa: E402
from resnest_det.integrations import transformers_version  # noqa: E402
from resnest_det.weights.names import from_own_names  # noqa: E402
from tests.helpers.networks import assert_same, randomise_norms  # noqa: E402

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    model = create_model("resnest14", num_classes=7)
    randomise_norms(model)
    return model.eval()


@pytest.fixture(scope="module", params=["own", "timm"])
def weights(request, plain, tmp_path_factory):
    state = plain.state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnest14.pth"
    torch.save(state if request.param == "own" else from_own_names(state, "timm"), path)
    return str(path)


def test_a_classifier_goes_through_a_folder(plain, weights, tmp_path):
    model = host.ResNeStForImageClassification.from_variant("resnest14d", weights, num_labels=7)
    expected = plain(IMAGES)
    assert torch.equal(model(IMAGES).logits, expected)
    assert torch.isclose(
        model(IMAGES, labels=torch.tensor([1, 2])).loss, torch.nn.functional.cross_entropy(expected, torch.tensor([1, 2]))
    )
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is host.ResNeStForImageClassification
    assert_same(again.state_dict(), model.state_dict())
    assert torch.allclose(again(IMAGES).logits, expected, atol=1e-5)  # where tensors lie in memory decides the last bits


def test_features_are_the_plain_backbones_to_the_bit(plain, weights, tmp_path):
    expected = plain.forward_intermediates(IMAGES, [2, 4], intermediates_only=True)
    backbone = host.ResNeStBackbone.from_variant("resnest14", weights, out_features=["stage2", "stage4"])
    assert backbone.channels == [512, 2048] and backbone.out_indices == [2, 4]
    backbone.save_pretrained(tmp_path)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(backbone(IMAGES).feature_maps, expected, strict=True))
    again = host.ResNeStBackbone.from_pretrained(tmp_path)
    assert_same(again.state_dict(), backbone.state_dict())
    assert (again.out_features, again.channels) == (backbone.out_features, backbone.channels)
    hidden = backbone(IMAGES, output_hidden_states=True).hidden_states
    assert [64 // each.shape[2] for each in hidden] == [4, 4, 8, 16, 32]
    (features,) = backbone(IMAGES, return_dict=False)
    assert torch.equal(features[1], expected[1])


def test_a_backbone_is_filled_by_a_classifiers_folder(weights, tmp_path):
    classifier = host.ResNeStForImageClassification.from_variant("resnest14", weights, num_labels=7)
    classifier.save_pretrained(tmp_path)
    backbone = host.ResNeStBackbone.from_pretrained(tmp_path, out_indices=[4])
    expected = classifier(IMAGES, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(backbone(IMAGES).feature_maps[0], expected, atol=1e-4)


def test_auto_classes_know_the_configuration(tmp_path):
    config = transformers.AutoConfig.for_model("resnest", depths=[1, 1, 1, 1], out_features=["stage1"], norm="FrozenBN")
    assert isinstance(transformers.AutoBackbone.from_config(config), host.ResNeStBackbone)
    config.save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (again.norm, again.out_features, again.network()) == ("FrozenBN", ["stage1"], config.network())


def test_the_variants_are_those_of_the_package():
    for name, frozen in (("resnest269", 0), ("resnest50_fast_4s2x40d", 2)):
        with torch.device("meta"):
            model = host.ResNeStBackbone(host.ResNeStConfig.from_variant(name, freeze_at=frozen))
            expected = create_model(name, num_classes=0)
        count = sum(parameter.numel() for parameter in expected.parameters())
        own = sum(parameter.numel() for parameter in model.parameters())
        assert own == count if not frozen else own < count
        trained = {name.split(".")[1] for name, value in model.named_parameters() if value.requires_grad}
        assert trained == set(("stem", "res2", "res3", "res4", "res5")[frozen:])


def test_the_pipeline_works_offline_on_a_folder(plain, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = dict(enumerate("abcdefg"))
    host.ResNeStForImageClassification.from_variant("resnest14", weights, id2label=names).save_pretrained(tmp_path)
    host.image_processor("resnest14").save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    found = transformers.pipeline("image-classification", model=str(tmp_path))(image, top_k=7)
    expected = plain(transforms_for(plain)(image)[None]).softmax(1)[0]
    assert {each["label"] for each in found} == set("abcdefg")
    for each in found:  # their processor resizes by another library, up to one level of a pixel
        assert each["score"] == pytest.approx(expected["abcdefg".index(each["label"])].item(), abs=0.01)


@pytest.mark.parametrize("name", ["resnest14", "resnest200", "resnest269"])
def test_the_processor_is_that_of_the_published_evaluation(name):
    with torch.device("meta"):
        model = create_model(name)
    transform = transforms_for(model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)).resize((560, 720))
    pixels = host.image_processor(name)(image, return_tensors="pt")["pixel_values"][0]
    expected = transform(image)
    assert pixels.shape == expected.shape and (pixels - expected).abs().max() < 2.5 / 255 / 0.224


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: host.ResNeStConfig.from_variant("resnest51"), "unknown model 'resnest51'; nearest: resnest50"),
        (lambda: host.image_processor("resnet50"), "unknown model 'resnet50'; nearest: resnest50"),
        (lambda: host.ResNeStConfig(out_features=["stage5"]), "stage5.*; supported: some of stem, stage1"),
        (lambda: host.ResNeStConfig(out_indices=[5]), "5.*; supported: .* 0 to 4"),
        (lambda: host.ResNeStConfig(norm="LN"), "norm is 'LN'; supported: '', 'BN'"),
        (lambda: host.ResNeStConfig(out_features="stage4"), "out_features is 'stage4', expected a list of names of stages"),
        (lambda: host.ResNeStConfig(out_indices=["1"]), "out_indices is .'1'., expected a list of whole numbers"),
        (lambda: host.ResNeStConfig(depths=3), "depths is 3, expected a list of whole numbers"),
        (
            lambda: host.ResNeStBackbone(host.ResNeStConfig(depths=[1, 1])),
            r"depths is \(1, 1\); it must have a number for each of",
        ),
        (
            lambda: host.ResNeStBackbone(host.ResNeStConfig(num_channels=0)),
            "num_channels is 0; it must be a whole number, at least 1",
        ),
        (
            lambda: host.ResNeStForImageClassification.from_variant("resnest14", num_labels=0),
            "num_labels is 0, expected at least 1",
        ),
        (lambda: host.ResNeStForImageClassification(host.ResNeStConfig(drop_rate=1.5)), "drop_rate is 1.5, expected 0 to 1"),
    ],
)
def test_impossible_arguments_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_weights_of_another_depth_are_refused(weights):
    with pytest.raises(UserError, match="looks like resnest14, the model like resnest26"):
        host.ResNeStBackbone.from_variant("resnest26", weights)


def test_other_versions_of_transformers(monkeypatch):
    transformers_version.check_transformers()
    monkeypatch.delattr("transformers.backbone_utils.BackboneMixin")
    with pytest.raises(UserError, match=r"transformers 5\S+ does not fit: .*BackboneMixin.*; transformers 5.* work: pip"):
        transformers_version.check_transformers()
    with monkeypatch.context() as patch:
        patch.setattr(transformers_version, "is_installed", lambda name: True)
        patch.setitem(sys.modules, "transformers", None)  # as where it refuses another library's version
        with pytest.raises(UserError, match=r"transformers 5\S+ cannot be imported: .*; transformers 5.* work: pip"):
            transformers_version.check_transformers()
    monkeypatch.setattr(transformers_version, "is_installed", lambda name: False)
    with pytest.raises(UserError, match=r'not installed; .* work: pip install "resnest_det\[transformers\]"'):
        transformers_version.check_transformers()
