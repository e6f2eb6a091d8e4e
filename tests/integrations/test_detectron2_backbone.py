"""The backbone inside Detectron2: its interface, norms, freezing, scripting, tracing, weights, and the authors' wrapper."""

import os
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import LazyCall, get_cfg, instantiate  # noqa: E402
from detectron2.export import TracingAdapter, scripting_with_instances  # noqa: E402
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_model  # noqa: E402
from detectron2.structures import Boxes, Instances, Keypoints  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from fvcore.nn.precise_bn import get_bn_modules  # noqa: E402

from resnest_det.backbone.classifier import create_model  # noqa: E402
from resnest_det.backbone.loading import load_weights  # noqa: E402
from resnest_det.configuration.model import assemble_model  # noqa: E402
from resnest_det.configuration.reading import load_config  # noqa: E402
from resnest_det.errors import UserError  # noqa: E402
from resnest_det.files import packaged  # noqa: E402
from resnest_det.integrations import detectron2_weights  # noqa: E402
from resnest_det.integrations.detectron2 import ResNeStBackbone, add_resnest_config  # noqa: E402
from tests.helpers.configs import HERE, narrow, typed  # noqa: E402
from tests.helpers.fill import fill  # noqa: E402

STAGES = ["res2", "res3", "res4", "res5"]
SMALL = HERE | narrow(32, 32)
SMALL |= {
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 14,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (32,),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
}


def small_config(recipe: str = "mask_rcnn_ResNeSt50_FPN", *overrides):
    """A recipe as an existing Detectron2 project reads it, made small."""
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_file(str(next(packaged("configs").rglob(f"{recipe}.yaml"))))
    cfg.merge_from_list([*typed(SMALL), *overrides])
    return cfg


def build_backbone(cfg) -> Backbone:
    return BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3))


def image(height: int = 65, width: int = 71) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN", "GN", "LN", "naiveSyncBN", "nnSyncBN"])
def test_every_norm_of_detectron2(norm):
    # With radix 8 the attention's hidden layer has two channels for each of group norm's groups; one cannot be normalised.
    cfg = small_config(
        "mask_rcnn_ResNeSt50_FPN",
        "MODEL.RESNETS.NORM",
        norm,
        "MODEL.BACKBONE.NAME",
        "build_resnest_backbone",
        "MODEL.BACKBONE.FREEZE_AT",
        0,
        "MODEL.RESNETS.RADIX",
        8,
    )
    backbone = build_backbone(cfg).eval()
    block = backbone.res3[0]
    for layer in (backbone.stem.conv1_1.norm, block.conv1.norm, block.conv2.bn0, block.conv2.bn1, block.shortcut.norm):
        assert type(layer) is type(get_norm(norm, 32))
    features = backbone(image())
    assert isinstance(backbone, Backbone) and backbone.size_divisibility == 32 and backbone.padding_constraints == {}
    assert list(features) == list(backbone.output_shape()) == STAGES
    for name, shape in backbone.output_shape().items():
        height, width = (-(-side // shape.stride) for side in (65, 71))
        assert features[name].shape == (1, shape.channels, height, width)
    assert bool(get_bn_modules(backbone.train())) == (norm not in ("FrozenBN", "GN", "LN"))


@pytest.mark.parametrize("norm", ["BN", "naiveSyncBN"])
def test_frozen_parts_have_fixed_norms_and_the_names_of_the_built_in_detector(norm):
    arguments = dict(blocks=(1, 1, 1, 1), stem_width=8, bottleneck_channels=8, res2_out_channels=16)
    backbone = ResNeStBackbone(**arguments, norm=norm, freeze_at=2)
    for name, part in backbone.named_children():
        frozen = name in ("stem", "res2")
        assert all(parameter.requires_grad != frozen for parameter in part.parameters())
        assert any(isinstance(module, FrozenBatchNorm2d) for module in part.modules()) == frozen
        assert bool(get_bn_modules(part.train())) != frozen
    from resnest_det.backbone.resnest import ResNeSt

    assert backbone.state_dict().keys() == ResNeSt(**arguments, freeze_at=2).state_dict().keys()


def test_lazy_config_builds_it_from_plain_arguments():
    lazy = LazyCall(FPN)(
        bottom_up=LazyCall(ResNeStBackbone)(
            blocks=[1, 1, 1, 1],
            stem_width=8,
            bottleneck_channels=8,
            res2_out_channels=16,
            norm="naiveSyncBN",
            out_features=["res3", "res5"],
            freeze_at=1,
        ),
        in_features=["res3"],
        out_channels=8,
    )
    lazy.bottom_up.radix = 4
    backbone = instantiate(lazy).eval()
    assert backbone(image(64, 64))["p3"].shape == (1, 8, 8, 8) and backbone.bottom_up.res2[0].conv2.radix == 4


# As everywhere, nn.SyncBatchNorm itself cannot be scripted; BN has the same parameters.
NO_SYNC = ["MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.ROI_BOX_HEAD.NORM", "BN", "MODEL.ROI_MASK_HEAD.NORM", "BN"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["MODEL.RESNETS.RADIX", 1, "MODEL.RESNETS.AVD_FIRST", True],
        ["MODEL.RESNETS.RADIX", 0, "MODEL.RESNETS.NORM", "LN"],
        ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True], "MODEL.RESNETS.DEFORM_MODULATED", True],
        ["MODEL.RESNETS.CHECKPOINT_STAGES", ["res2"]],
    ],
    ids=["radix 2", "radix 1", "radix 0", "deformable", "checkpointed"],
)
def test_scripted_backbone_gives_the_same(overrides):
    backbone = build_backbone(small_config("mask_rcnn_ResNeSt50_FPN", *NO_SYNC, *overrides)).eval()
    fill(backbone)
    expected, actual = backbone(image(64, 96)), torch.jit.script(backbone)(image(64, 96))
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)


def test_detector_can_be_scripted_and_traced():
    model = build_model(small_config("mask_rcnn_ResNeSt50_FPN", *NO_SYNC)).eval()
    fill(model)
    sample = {"image": image(64, 96)[0] * 50 + 100}
    with torch.no_grad():
        expected = model.inference([sample], do_postprocess=False)[0]
        assert len(expected) > 0
        fields = {
            "proposal_boxes": Boxes,
            "objectness_logits": torch.Tensor,
            "pred_boxes": Boxes,
            "scores": torch.Tensor,
            "pred_classes": torch.Tensor,
            "pred_masks": torch.Tensor,
        }
        scripted = scripting_with_instances(model, fields).inference([sample], do_postprocess=False)[0]
        torch.testing.assert_close(scripted.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(scripted.pred_masks, expected.pred_masks)

        adapter = TracingAdapter(model, [sample], lambda model, inputs: model.inference(inputs, do_postprocess=False))
        traced = torch.jit.trace(adapter, (sample["image"],), check_trace=False)
        other = {"image": image(96, 64)[0] * 50 + 100}  # a size it was not traced with
        expected = model.inference([other], do_postprocess=False)[0]
        result = adapter.outputs_schema(traced(other["image"]))[0]
        torch.testing.assert_close(result.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_retinanet_trains_and_predicts():
    cfg = small_config("retinanet_ResNeSt50_FPN", "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    model = build_model(cfg)
    strides = {name: shape.stride for name, shape in model.backbone.output_shape().items()}
    assert strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    truth = Instances((64, 96), gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 48.0, 48.0]])), gt_classes=torch.tensor([3]))
    sample = {"image": image(64, 96)[0], "instances": truth, "height": 64, "width": 96}
    with EventStorage():
        losses = model([sample, sample])
    sum(losses.values()).backward()
    assert set(losses) == {"loss_cls", "loss_box_reg"} and all(torch.isfinite(loss) for loss in losses.values())
    assert model.backbone.bottom_up.res5[0].conv2.conv.weight.grad.abs().sum() > 0
    assert model.backbone.top_block.p7.weight.grad is not None
    with torch.no_grad():
        assert len(model.eval()([sample])[0]["instances"]) == cfg.TEST.DETECTIONS_PER_IMAGE


def test_keypoints_train_and_are_predicted():
    model = build_model(small_config("keypoint_rcnn_ResNeSt50_FPN"))
    keypoints = torch.tensor([[[20.0, 20.0, 2.0]] * 17])
    truth = Instances(
        (64, 96),
        gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 48.0, 48.0]])),
        gt_classes=torch.tensor([0]),
        gt_keypoints=Keypoints(keypoints),
    )
    sample = {"image": image(64, 96)[0], "instances": truth, "height": 64, "width": 96}
    with EventStorage():
        losses = model([sample, sample])
    assert "loss_keypoint" in losses and all(torch.isfinite(loss) for loss in losses.values())
    with torch.no_grad():
        found = model.eval()([sample])[0]["instances"]
    assert len(found) > 0 and found.pred_keypoints.shape == (len(found), 17, 3)


DETECTORS = sorted(path for path in packaged("configs").rglob("*.yaml") if path.parent.name != "imagenet")


@pytest.mark.parametrize("path", DETECTORS, ids=lambda path: path.stem)
def test_every_shipped_config_merges_into_a_detectron2_config(path):
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.BACKBONE.NAME in BACKBONE_REGISTRY


def _authors_wrapper():
    """The authors' package beside ours: both register under the same names, so ours step aside meanwhile."""
    wrapper = None
    ours = {name: BACKBONE_REGISTRY._obj_map.pop(name) for name in ("build_resnest_backbone", "build_resnest_fpn_backbone")}
    try:
        wrapper = pytest.importorskip("resnest.d2", reason="the authors' wrapper is not importable")
    finally:
        BACKBONE_REGISTRY._obj_map.update(ours)
    return wrapper


@pytest.mark.parametrize(
    "overrides, ours_only",
    [
        ({}, {}),
        ({"NUM_GROUPS": 2, "BOTTLENECK_WIDTH": 40, "RADIX": 4}, {"WIDTH_PER_GROUP": 64}),  # the wrapper counts groups twice
        ({"RES5_DILATION": 2}, {}),
        ({"RADIX": 1}, {"RADIX": 0}),  # the wrapper's plain convolution
    ],
    ids=["radix 2", "radix 4, groups", "dilated", "plain"],
)
def test_same_features_and_gradients_as_the_authors_wrapper(overrides, ours_only):
    wrapper = _authors_wrapper()
    cfg = small_config(
        "mask_rcnn_ResNeSt50_FPN",
        "MODEL.RESNETS.DEPTH",
        50,
        "MODEL.RESNETS.NORM",
        "FrozenBN",
        "MODEL.BACKBONE.NAME",
        "build_resnest_backbone",
    )
    for key, value in overrides.items():
        cfg.MODEL.RESNETS[key] = value
    theirs = wrapper.build_resnest_backbone(cfg, ShapeSpec(channels=3))
    for key, value in ours_only.items():
        cfg.MODEL.RESNETS[key] = value
    ours = build_backbone(cfg)
    fill(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    expected, actual = theirs(image(64, 96)), ours(image(64, 96))
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)
        assert expected[name].std() > 0
    for features in (expected, actual):
        sum(feature.square().mean() for feature in features.values()).backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad == gradients[name].requires_grad, name
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_authors_yaml_files_build_in_both_hosts():
    folder = os.environ.get("RESNEST_AUTHORS_CONFIGS")
    if not folder:
        pytest.skip("RESNEST_AUTHORS_CONFIGS does not name the folder of the authors' YAML files")
    files = [path for path in sorted(Path(folder).rglob("*.yaml")) if "Base" not in path.name]
    assert files
    for path in files:
        cfg = get_cfg()
        add_resnest_config(cfg)
        cfg.merge_from_file(str(path))
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            shapes = [
                {name: value.shape for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
                for model in (build_model(cfg), assemble_model(load_config(str(path))))
            ]
        assert shapes[0] == shapes[1], path


def test_weights_of_other_layouts_by_address(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    classifier = timm.create_model("resnest14d")
    fill(classifier)
    file = tmp_path / "timm.pth"
    torch.save(classifier.state_dict(), file)
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(detectron2_weights, "resolve_weights", lambda spec: str(file))
    cfg = small_config("mask_rcnn_ResNeSt50_FPN", "MODEL.RESNETS.WIDTH_PER_GROUP", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
    model = build_model(cfg)
    DetectionCheckpointer(model).load("resnest://resnest14")
    expected = create_model("resnest14", features_only=True)
    load_weights(expected, file)
    loaded = model.backbone.bottom_up.state_dict()
    for name, value in expected.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], value), name
    assert len(list((tmp_path / "cache" / "detectron2").glob("timm-*.pth"))) == 1


def test_detector_by_address_keeps_its_heads(monkeypatch, tmp_path):
    source, model = build_model(small_config()), build_model(small_config())
    fill(source)
    torch.save({"model": source.state_dict(), "iteration": 3}, tmp_path / "detector.pth")
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(detectron2_weights, "resolve_weights", lambda spec: str(tmp_path / "detector.pth"))
    DetectionCheckpointer(model).load("hf://somebody/detector")
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["MODEL.RESNETS.DEPTH", 18], "MODEL.RESNETS.DEPTH 18 is not supported; supported: 14, 26, 50"),
        (["MODEL.RESNETS.RADIX", -1], "MODEL.RESNETS: radix -1"),
        (["MODEL.RESNETS.RADIX", 3], "MODEL.RESNETS: .* 32 channels cannot be divided into 1 groups x radix 3"),
        (
            ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res6"]],
            "MODEL.RESNETS: the backbone has no feature 'res6'; it has res1, stem, res2",
        ),
        (
            ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"]],
            "MODEL.FPN.IN_FEATURES .*res5.* some of MODEL.RESNETS.OUT_FEATURES, res2",
        ),
        (["MODEL.RESNETS.NORM", "BatchNorm"], "MODEL.RESNETS: Detectron2 has no norm 'BatchNorm'; it has BN"),
        (
            ["MODEL.RESNETS.WIDTH_PER_GROUP", 24, "MODEL.RESNETS.NORM", "GN"],
            "MODEL.RESNETS: norm 'GN' is not possible with 24 channels",
        ),
        (["MODEL.RESNETS.RES4_DILATION", 2], "MODEL.RESNETS.RES4_DILATION 2 with RES5_DILATION 1"),
        (["MODEL.BACKBONE.FREEZE_AT", 7], "MODEL.RESNETS: cannot freeze 7"),
        (
            ["MODEL.BACKBONE.NAME", "build_retinanet_resnest_fpn_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"]],
            "MODEL.RESNETS.OUT_FEATURES .* lacks res5",
        ),
    ],
)
def test_bad_input_is_one_line_that_names_the_key(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        build_backbone(small_config("mask_rcnn_ResNeSt50_FPN", *overrides))
    assert "\n" not in str(error.value)


def test_without_the_keys_the_error_says_what_to_call():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnest_fpn_backbone"
    with pytest.raises(UserError, match=r"MODEL.RESNETS has no DEEP_STEM, AVD, .*call add_resnest_config\(cfg\)"):
        build_backbone(cfg)
