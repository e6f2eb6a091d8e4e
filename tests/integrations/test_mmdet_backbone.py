"""The backbone inside MMDetection, beside MMDetection's own `ResNeSt` with the same weights."""

import copy

import pytest
import torch

pytestmark = pytest.mark.mmdet
pytest.importorskip("mmdet")

from mmdet.models.backbones import ResNeSt as MMDetResNeSt  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from mmengine.runner.checkpoint import get_state_dict, load_state_dict  # noqa: E402
from torch import nn  # noqa: E402

from resnest_det.backbone.classifier import create_model  # noqa: E402
from resnest_det.backbone.loading import load_weights  # noqa: E402
from resnest_det.backbone.resnest import BLOCKS_PER_STAGE  # noqa: E402
from resnest_det.backbone.variants import VARIANTS  # noqa: E402
from resnest_det.errors import UserError  # noqa: E402
from resnest_det.integrations.mmdet import ResNeStDet  # noqa: E402
from tests.helpers.fill import fill  # noqa: E402

register_all_modules()
SMALL = dict(depth=14, base_channels=16, stem_channels=16, norm_eval=False)
DCN_STAGES = (False, True, True, True)


def filled(backbone: nn.Module) -> nn.Module:
    fill(backbone)
    with torch.no_grad():
        for name, value in get_state_dict(backbone).items():
            if name.endswith(("bn3.weight", "gn3.weight")):
                value.mul_(0.1)  # or gradients would grow block by block, and errors with them
    return backbone


def both(arguments: dict) -> tuple[nn.Module, nn.Module]:
    """MMDetection's backbone with filled weights, and this one with the same, in double precision.

    In single precision a value next to zero may fall on the other side of a ReLU, which moves gradients by percents; and of two
    images alone batch norm inside split attention would multiply differences.
    """
    theirs = filled(MMDetResNeSt(**copy.deepcopy(arguments))).double()
    ours = MODELS.build(dict(type="ResNeStDet", **arguments)).double()
    load_state_dict(ours, get_state_dict(theirs), strict=True)
    return theirs, ours


def image(batch: int = 2, height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def outputs_and_gradients(backbone: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    backbone.zero_grad()
    x = x.clone().requires_grad_()
    maps = backbone(x)
    sum((each * torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view_as(each)).sum() for each in maps).backward()
    gradients = {name: value.grad for name, value in backbone.state_dict(keep_vars=True).items() if value.requires_grad}
    return {"image": x.grad, **{f"map {index}": each for index, each in enumerate(maps)}, **gradients}


DEPTHS = [
    dict(depth=50, stem_channels=64),
    dict(depth=101, stem_channels=128),
    dict(depth=152, stem_channels=128, base_channels=32),
    dict(depth=200, stem_channels=128, base_channels=32),
]
DEEP_DCN = dict(dcn=dict(type="DCNv2", deform_groups=1), stage_with_dcn=(False, False, False, True), base_channels=16)
OTHERS = [
    dict(depth=50, dcn=dict(type="DCN", deform_groups=1, fallback_on_stride=False), stage_with_dcn=DCN_STAGES, base_channels=32),
    dict(depth=50, dcn=dict(type="DCNv2", deform_groups=1), stage_with_dcn=DCN_STAGES, base_channels=32),
    *(dict(depth=depth, **DEEP_DCN) for depth in (101, 152, 200)),
    dict(depth=50, radix=1, base_channels=32),
    dict(depth=50, radix=4, groups=2, base_width=40),
    dict(depth=50, reduction_factor=2, avg_down_stride=False, base_channels=32),
    dict(depth=50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), base_channels=32),
    dict(depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), base_channels=32, out_indices=(3,)),
    dict(depth=50, style="caffe", base_channels=32, in_channels=3, stem_channels=None),
    dict(depth=50, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 2), base_channels=32),
]


@pytest.mark.parametrize("arguments", DEPTHS + OTHERS, ids=str)
def test_equals_mmdetections_own(arguments):
    """1e-5 of the largest value: in double precision the rest is the order of sums."""
    theirs, ours = both(arguments | dict(norm_eval=False))
    assert list(ours.state_dict()) == list(get_state_dict(ours)) and set(ours.state_dict()) == set(theirs.state_dict())
    # mmcv's operator wants maps of at least 3x3. It rounds positions to single precision, of doubles too, and reads beyond a map
    # whose border is nearer than that: with more of them in deep networks that happens here and there.
    x = image(4, 96, 96) if "dcn" in arguments else image(4, 32, 32)
    for training in (True, False):
        expected, found = (outputs_and_gradients(backbone.train(training) or backbone, x) for backbone in (theirs, ours))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # A bias before a norm has no gradient but rounding errors of the size of those of its layer's weight.
            scale = max(each.abs().max() for each in (value, expected.get(name.replace("bias", "weight"), value)))
            assert (found[name] - value).abs().max() <= 1e-5 * scale, name
    # What training left in the running statistics, too.
    torch.testing.assert_close({name: ours.state_dict()[name] for name in theirs.state_dict()}, dict(theirs.state_dict()))


@pytest.mark.parametrize("variant", list(VARIANTS.values()), ids=lambda variant: variant.name)
def test_whole_family(variant):
    """Also those that MMDetection's own has not: the same as the built-in model of that name."""
    depth = next(depth for depth, blocks in BLOCKS_PER_STAGE.items() if blocks == tuple(variant.blocks))
    ours = MODELS.build(
        dict(
            type="ResNeStDet",
            depth=depth,
            stem_channels=2 * variant.stem_width,
            radix=variant.radix,
            groups=variant.groups,
            base_width=variant.bottleneck_width,
            avd_first=variant.avd_first,
        )
    )
    model = create_model(variant.name, features_only=True, out_indices=(1, 2, 3, 4))
    assert {name: value.shape for name, value in ours.network.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    if depth <= 50:
        ours.network.load_state_dict(model.state_dict())
        x = image().float()
        with torch.no_grad():
            for own, expected in zip(ours.eval()(x), model.eval()(x), strict=True):
                torch.testing.assert_close(own, expected, rtol=0, atol=0)


@pytest.mark.parametrize("norm_cfg", [dict(type="GN", num_groups=8), dict(type="SyncBN", requires_grad=False)], ids=str)
def test_norms_of_mmcv(norm_cfg):
    theirs = filled(MMDetResNeSt(depth=50, base_channels=32, norm_cfg=norm_cfg))
    ours = ResNeStDet(depth=50, base_channels=32, norm_cfg=norm_cfg)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    learned = [
        {name for name, value in backbone.state_dict(keep_vars=True).items() if value.requires_grad}
        for backbone in (theirs, ours)
    ]
    assert learned[0] == learned[1]
    if norm_cfg["type"] == "SyncBN":
        theirs, ours = (revert_sync_batchnorm(backbone) for backbone in (theirs, ours))
        theirs.eval(), ours.eval()
        for expected, own in zip(theirs(image().float()), ours(image().float())):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_frozen_stages_and_norm_eval_as_mmdetection_has_them():
    for arguments in (
        dict(frozen_stages=-1),
        dict(frozen_stages=0),
        dict(frozen_stages=2),
        dict(frozen_stages=4, norm_eval=True),
    ):
        arguments = dict(depth=50, base_channels=32, norm_eval=False) | arguments
        theirs, ours = MMDetResNeSt(**arguments).double(), ResNeStDet(**arguments).double()
        for backbone in (theirs, ours):
            backbone.train()
        trained = [
            {name for name, value in backbone.state_dict(keep_vars=True).items() if value.requires_grad}
            for backbone in (theirs, ours)
        ]
        assert trained[0] == trained[1]
        if arguments["frozen_stages"] < 4:
            ours.load_state_dict(filled(theirs).state_dict())
            theirs(image()), ours(image())
            torch.testing.assert_close(ours.state_dict(), dict(theirs.state_dict()), check_stride=False)


def test_recomputed_stages_have_the_same_gradients():
    plain, recomputed = (ResNeStDet(**SMALL, with_cp=with_cp).double() for with_cp in (False, True))
    recomputed.load_state_dict(filled(plain).state_dict())
    gradients = []
    for backbone in (plain, recomputed):
        sum(each.square().mean() for each in backbone.train()(image())).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for expected, own in zip(*gradients):
        torch.testing.assert_close(own, expected)
    assert not plain.network.checkpoint_stages and recomputed.network.checkpoint_stages


def test_initialisation():
    torch.manual_seed(0)
    ours = ResNeStDet(**SMALL)
    ours.init_weights()
    last_norms = [value for name, value in ours.state_dict().items() if name.endswith("bn3.weight")]
    assert len(last_norms) == 4 and not torch.cat(last_norms).any()
    kept = ResNeStDet(**SMALL, zero_init_residual=False)
    kept.init_weights()
    assert all(value.all() for name, value in kept.state_dict().items() if name.endswith("bn3.weight"))
    constant = ResNeStDet(**SMALL, init_cfg=dict(type="Constant", layer="Conv2d", val=0.5))
    constant.init_weights()
    assert (constant.state_dict()["stem.0.weight"] == 0.5).all()


@pytest.mark.parametrize("layout", ["mmdet", "own", "timm"])
def test_pretrained_weights_of_any_layout(layout, tmp_path):
    from resnest_det.weights.names import from_own_names

    path = tmp_path / "weights.pth"
    model = create_model("resnest14")
    torch.save(from_own_names(model.state_dict(), {"own": "detectron2"}.get(layout, layout)), path)
    detector = nn.ModuleDict(dict(backbone=ResNeStDet(depth=14, init_cfg=dict(type="Pretrained", checkpoint=str(path)))))
    detector["backbone"].init_weights()
    for name, value in detector["backbone"].network.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=0)


def test_checkpoints_of_a_detector_and_of_the_built_in_one(tmp_path):
    detector = nn.ModuleDict(dict(backbone=filled(ResNeStDet(**SMALL))))
    state = get_state_dict(detector)
    assert {"backbone.stem.0.weight", "backbone.layer4.0.downsample.2.running_var"} <= set(state)
    assert not any("network" in name for name in state)
    again = nn.ModuleDict(dict(backbone=ResNeStDet(**SMALL)))
    load_state_dict(again, state, strict=True)
    torch.testing.assert_close(again.state_dict(), state)
    assert not detector.load_state_dict(copy.deepcopy(again).state_dict()).missing_keys

    torch.save({"state_dict": state, "meta": {}}, tmp_path / "epoch_1.pth")
    network = ResNeStDet(**SMALL).network
    assert load_weights(network, tmp_path / "epoch_1.pth").layout == "mmdet"
    torch.testing.assert_close(network.state_dict(), detector["backbone"].network.state_dict())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(depth=34), r"depth 34 is not supported; supported: 14, 26, 50, 101, 152, 200, 269"),
        (dict(norm_cfg=dict(type="SyncBNN")), r"norm_cfg .*SyncBNN"),
        (dict(norm_cfg=dict(type="GN", num_groups=7)), r"norm_cfg .*num_groups"),
        (dict(norm_cfg="BN"), r"norm_cfg BN"),
        (
            dict(dcn=dict(type="DCNv3"), stage_with_dcn=DCN_STAGES),
            r"dcn type 'DCNv3' is not supported; supported: 'DCN', 'DCNv2'",
        ),
        (dict(dcn=dict(type="DCN", deformable_groups=2), stage_with_dcn=DCN_STAGES), r"dcn .*deformable_groups"),
        (dict(dcn=dict(type="DCN"), stage_with_dcn=(True,)), r"stage_with_dcn \(True,\)"),
        (dict(strides=(1, 1, 1, 1)), r"strides \(1, 1, 1, 1\) with dilations .*supported: \(1, 2, 2, 2\) with"),
        (dict(out_indices=(4,)), r"out_indices \(4,\)"),
        (dict(frozen_stages=5), r"frozen_stages 5"),
        (dict(style="tensorflow"), r"style 'tensorflow'"),
        (dict(radix=3), r"divided into 1 groups x radix 3"),
        (dict(stem_channels=15), r"stem_channels 15"),
    ],
)
def test_arguments_that_make_no_network(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        MODELS.build(dict(type="ResNeStDet", **(SMALL | arguments)))
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(create_model("resnest26").state_dict(), path)
    with pytest.raises(UserError, match=r"weights .*weights\.pth: they do not fit.*looks like resnest26"):
        ResNeStDet(depth=50, init_cfg=dict(type="Pretrained", checkpoint=str(path))).init_weights()
    with pytest.raises(UserError, match=r"open-mmlab://resnest51; of ResNeSt it knows resnest50"):
        ResNeStDet(**SMALL, init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://resnest51")).init_weights()
    wide = nn.ModuleDict(dict(backbone=ResNeStDet(**(SMALL | dict(base_channels=32)))))
    with pytest.raises(
        UserError, match=r"checkpoint's backbone\.layer1\.0\..* \(128, 16, 1, 1\) does not fit .* \(64, 16, 1, 1\)"
    ):
        load_state_dict(nn.ModuleDict(dict(backbone=ResNeStDet(**SMALL))), wide.state_dict())


def test_one_image_cannot_train_batch_norm():
    backbone = ResNeStDet(**SMALL).train()
    with pytest.raises(UserError, match=r"train_dataloader\.batch_size to 2 or more, or the backbone's norm_eval to True"):
        backbone(image(1).float())
    ResNeStDet(**(SMALL | dict(norm_eval=True))).train()(image(1).float())
    backbone.eval()(image(1).float())
