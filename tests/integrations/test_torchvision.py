"""ResNeSt in torchvision's detectors and segmentation models: what torchvision's own tests ask of any backbone, and bad input."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from resnest_det.backbone.classifier import create_model
from resnest_det.errors import UserError
from resnest_det.integrations import torchvision as host
from resnest_det.integrations import torchvision_version
from tests.helpers.networks import randomise_norms

TWO_STAGE = ("fasterrcnn", "maskrcnn", "keypointrcnn")
ONE_STAGE = ("retinanet", "fcos")
SMALL = dict(weights_backbone=None, min_size=64, max_size=96)


def detector(kind: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return get_model(f"{kind}_resnest14_fpn", **SMALL, **arguments)


@pytest.fixture(scope="module")
def resnest14_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnest14.pth"
    torch.manual_seed(1)
    model = create_model("resnest14")
    randomise_norms(model)
    torch.save(model.state_dict(), path)
    return str(path)


def test_every_detector_is_found_by_name():
    expected = {f"{kind}_resnest{depth}_fpn" for kind in TWO_STAGE + ONE_STAGE for depth in (14, 50, 101, 200, 269)}
    expected |= {f"{kind}_resnest{depth}" for kind in ("deeplabv3", "fcn") for depth in (50, 101)}
    assert {name for name in list_models() if "resnest" in name} == expected
    assert host.maskrcnn_resnest50_fpn is torchvision.models.get_model_builder("maskrcnn_resnest50_fpn")


@pytest.mark.filterwarnings("ignore:.* always returns a .Losses, Detections. tuple in scripting")
@pytest.mark.parametrize("kind", TWO_STAGE + ONE_STAGE)
def test_detections_have_torchvisions_shapes_and_survive_scripting(kind):
    model = detector(kind, num_classes=2 if kind == "keypointrcnn" else 5).eval()
    if kind in ONE_STAGE:
        model.score_thresh = 0.0
        model.detections_per_img = 5
    else:
        model.roi_heads.detections_per_img = 5
    images = [torch.rand(3, 64, 80), torch.rand(3, 90, 60)]
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        found, (_, scripted) = model(images), torch.jit.script(model)(images)
    assert len(found) == 2
    for image, each in zip(images, found):
        count = len(each["boxes"])
        assert count and each["boxes"].shape == (count, 4) and each["scores"].shape == each["labels"].shape == (count,)
        if kind == "maskrcnn":
            assert each["masks"].shape == (count, 1, *image.shape[1:])
        if kind == "keypointrcnn":
            assert each["keypoints"].shape == (count, 17, 3) and each["keypoints_scores"].shape == (count, 17)
    for each, other in zip(found, scripted):
        assert all(torch.allclose(each[key], other[key], atol=1e-4) for key in each)


@pytest.mark.parametrize("kind", TWO_STAGE + ONE_STAGE)
def test_images_without_objects_train_no_boxes(kind):
    model = detector(kind, num_classes=2)
    targets = [
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
            "keypoints": torch.zeros(0, 17, 3),
        }
        for _ in range(2)
    ]
    losses = model([torch.rand(3, 64, 64) for _ in targets], targets)
    zero = {
        "fasterrcnn": {"loss_box_reg", "loss_rpn_box_reg"},
        "maskrcnn": {"loss_box_reg", "loss_rpn_box_reg", "loss_mask"},
        "keypointrcnn": {"loss_box_reg", "loss_rpn_box_reg", "loss_keypoint"},
        "retinanet": {"bbox_regression"},
        "fcos": {"bbox_regression", "bbox_ctrness"},
    }[kind]
    assert {name for name, loss in losses.items() if loss == 0} == zero
    sum(losses.values()).backward()
    assert model.backbone.body.stem.conv1_1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", TWO_STAGE + ONE_STAGE)
def test_targets_that_cannot_be_trained_on_are_refused(kind):
    """None at all, boxes that are no tensor or of another shape, and boxes without width: as torchvision refuses them."""
    model, images = detector(kind, num_classes=3), [torch.rand(3, 64, 64)] * 2
    without_width = torch.tensor([[1.0, 3, 1, 4], [2, 4, 3, 4]])
    for boxes in (None, 0.0, torch.rand(4), torch.rand(1, 5), without_width):
        targets = None if boxes is None else [{"boxes": boxes, "labels": torch.ones(2, dtype=torch.int64)}] * 2
        with pytest.raises(AssertionError, match="(?i)targets|boxes"):
            model(images, targets)


@pytest.mark.parametrize("name", sorted(host.BUILDERS))
def test_each_builder_has_the_backbone_of_its_name(name):
    with torch.device("meta"):
        model = get_model(name, weights_backbone=None)
        plain = create_model(name.split("_")[1], features_only=True)
    body = getattr(model.backbone, "body", model.backbone)
    assert {key: value.shape for key, value in body.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert type(model).__name__.lower().startswith(name.split("_")[0])


@pytest.mark.parametrize("layers", range(6))
def test_only_the_layers_asked_for_are_trained(layers, resnest14_file):
    model = get_model("fasterrcnn_resnest14_fpn", weights_backbone=resnest14_file, trainable_backbone_layers=layers)
    trained = {name.split(".")[2] for name, value in model.named_parameters() if value.requires_grad and ".body." in name}
    assert trained == set(("stem", "res2", "res3", "res4", "res5")[5 - layers :])
    assert all(value.requires_grad for name, value in model.named_parameters() if ".body." not in name)


def test_norms_are_frozen_with_weights_and_trained_without(resnest14_file):
    kinds = [
        {type(module).__name__ for module in model.modules() if "BatchNorm" in type(module).__name__}
        for model in (detector("fasterrcnn"), get_model("fasterrcnn_resnest14_fpn", weights_backbone=resnest14_file))
    ]
    assert kinds == [{"BatchNorm2d"}, {"FrozenBatchNorm2d"}]


def test_trainable_layers_without_weights_are_all():
    with pytest.warns(UserWarning, match="all layers are trained"):
        model = detector("fasterrcnn", trainable_backbone_layers=2)
    assert all(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize(
    ("layers", "extra", "levels"),
    [
        (None, None, {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}),
        ([2, 3, 4], LastLevelP6P7(256, 256), {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128}),
        ([3], None, {"0": 16, "pool": 32}),
    ],
)
def test_levels_are_torchvisions(layers, extra, levels):
    backbone = host.resnest_fpn_backbone("resnest14", returned_layers=layers, extra_blocks=extra).eval()
    maps = backbone(torch.rand(1, 3, 128, 256))
    assert {name: 128 // feature.shape[2] for name, feature in maps.items()} == levels
    assert {feature.shape[1] for feature in maps.values()} == {256}


def test_features_are_the_plain_backbones_to_the_bit(resnest14_file):
    images = torch.randn(2, 3, 64, 96)
    plain = create_model(
        "resnest14", features_only=True, out_indices=(1, 2, 3, 4), checkpoint_path=resnest14_file, norm="FrozenBN"
    )
    body = host.resnest_fpn_backbone("resnest14d", weights=resnest14_file).body.eval()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(body(images).values(), plain.eval()(images), strict=True))


@pytest.mark.parametrize("kind", ["deeplabv3", "fcn"])
def test_segmentation_models_are_dilated(kind):
    model = get_model(f"{kind}_resnest50", weights_backbone=None, num_classes=3, aux_loss=True).eval()
    assert model.backbone.out_feature_strides == {"res4": 8, "res5": 8}
    scores = model(torch.rand(1, 3, 48, 64))
    assert {name: tuple(each.shape) for name, each in scores.items()} == {"out": (1, 3, 48, 64), "aux": (1, 3, 48, 64)}
    assert "aux" not in get_model(f"{kind}_resnest50", weights_backbone=None).backbone.names.values()


def test_a_trained_detector_is_loaded(tmp_path):
    model = detector("retinanet", num_classes=3)
    torch.save({"model": model.state_dict(), "epoch": 1}, tmp_path / "checkpoint.pth")
    torch.manual_seed(2)
    again = get_model("retinanet_resnest14_fpn", weights=str(tmp_path / "checkpoint.pth"), num_classes=3)
    name = "head.classification_head.cls_logits.weight"
    assert torch.equal(again.state_dict()[name], model.state_dict()[name])
    with pytest.raises(UserError, match=r"checkpoint.pth: \d+ parameters do not fit the model, as .* in the file, "):
        get_model("retinanet_resnest14_fpn", weights=str(tmp_path / "checkpoint.pth"), num_classes=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="resnest51"), "unknown model 'resnest51'; nearest: resnest50"),
        (dict(trainable_layers=6), r"trainable_layers is 6, expected a whole number from 0 \(all frozen\) to 5"),
        (dict(trainable_layers=-1), "trainable_layers is -1"),
        (dict(returned_layers=[0, 1]), "returned_layers is .0, 1., expected some of 1, 2, 3, 4"),
        (dict(returned_layers=[4, 5]), "returned_layers is .4, 5."),
        (dict(returned_layers=[]), "returned_layers"),
        (dict(returned_layers=[2, 1]), "in this order"),
        (dict(returned_layers=3), "returned_layers is 3, expected some of 1, 2, 3, 4"),
        (dict(returned_layers=[2, "3"]), "returned_layers is .2, '3'., expected"),
        (dict(returned_layers=[2.0, 3.0]), "returned_layers is .2.0, 3.0., expected"),
        (dict(trainable_layers=3.0), "trainable_layers is 3.0, expected a whole number"),
        (
            dict(weights=torchvision.models.ResNet50_Weights.DEFAULT),
            "weights ResNet50_Weights.IMAGENET1K_V2: expected a path or an",
        ),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        host.resnest_fpn_backbone(**{"name": "resnest14", **arguments})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "fasterrcnn_resnest14_fpn",
            dict(trainable_backbone_layers=9),
            "trainable_backbone_layers is 9, expected a whole number",
        ),
        ("maskrcnn_resnest14_fpn", dict(min_szie=300), "the model has no argument 'min_szie'; nearest: min_size"),
        ("fcos_resnest14_fpn", dict(classes=5), "the model has no argument 'classes'; nearest: num_classes"),
        ("retinanet_resnest14_fpn", dict(num_classes="5"), "num_classes is '5', expected a whole number from 1 on"),
        ("deeplabv3_resnest50", dict(num_classes=0), "num_classes is 0, expected"),
        ("fcn_resnest50", dict(aux=True), "the model has no argument 'aux'"),
        ("fcn_resnest50", dict(weights="DEFAULT"), "weights DEFAULT: nobody has published a whole model; give a file"),
    ],
)
def test_impossible_arguments_of_a_model_are_named(name, arguments, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        get_model(name, **{"weights_backbone": None, **arguments})


def test_torchvisions_own_arguments_are_taken():
    model = detector("maskrcnn", progress=False, box_score_thresh=0.3, image_mean=[0.5] * 3, size_divisible=64, _skip_resize=True)
    assert (model.roi_heads.score_thresh, model.transform.size_divisible, model.transform._skip_resize) == (0.3, 64, True)


def test_weights_of_another_depth_are_refused(resnest14_file):
    with pytest.raises(UserError, match="looks like resnest14, the model like resnest26"):
        host.resnest_fpn_backbone("resnest26", weights=resnest14_file)
    with pytest.raises(UserError, match="trainable_backbone_layers is 7"):
        get_model("fcos_resnest14_fpn", weights_backbone=resnest14_file, trainable_backbone_layers=7)


def test_one_image_cannot_train_batch_norm_and_says_so():
    model = detector("fasterrcnn", num_classes=2)
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}
    with pytest.raises(UserError, match="a batch of one image cannot train the batch norm of split attention"):
        model([torch.rand(3, 64, 64)], [target])


def test_other_versions_of_torchvision(monkeypatch):
    torchvision_version.check_torchvision()
    monkeypatch.setattr(torchvision, "__version__", "0.15.2+cpu")
    with pytest.raises(UserError, match=r"torchvision 0.15.2\+cpu is too old; torchvision 0.21 to 0.29 work: pip install"):
        torchvision_version.check_torchvision()
    monkeypatch.setattr(torchvision, "__version__", "1.4.0")
    monkeypatch.delattr(torchvision.models._api, "register_model")
    with pytest.raises(UserError, match="torchvision 1.4.0 does not fit: .*register_model.*; torchvision 0.21 to"):
        torchvision_version.check_torchvision()
