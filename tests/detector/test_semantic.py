"""The semantic head and models that only label pixels, beyond what the golden files show."""

import pytest
import torch
import torch.nn.functional as F

from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.detector.pixel_loss import PixelLoss, rescale_logits
from resnest_det.detector.semantic_head import SemSegFPNHead
from resnest_det.detector.semantic_segmentor import SemanticSegmentor
from resnest_det.errors import UserError

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}


def head(in_features=("p2", "p3", "p4", "p5"), strides=STRIDES, **arguments) -> SemSegFPNHead:
    arguments = dict(num_classes=3, conv_dim=32, common_stride=4) | arguments
    return SemSegFPNHead(in_features, strides, dict.fromkeys(strides, 8), **arguments)


def test_parameter_names_are_detectron2s():
    names = set(head().state_dict())
    convs = {"p2.0", "p3.0", "p4.0", "p4.2", "p5.0", "p5.2", "p5.4"}
    norms = {f"{conv}.norm.{name}" for conv in convs for name in ("weight", "bias")}
    assert names == {f"{conv}.weight" for conv in convs} | norms | {"predictor.weight", "predictor.bias"}
    assert {"p2.0.weight", "p2.0.bias"} <= set(head(norm="").state_dict())


def test_order_of_the_features_in_the_configuration_does_not_matter():
    assert head(("p5", "p2")).in_features == ("p2", "p5")


@pytest.mark.parametrize("common_stride", [4, 8])
def test_logits_have_the_size_of_the_images(common_stride):
    names = [name for name in ("p2", "p3", "p4", "p5") if STRIDES[name] >= common_stride]
    features = {name: torch.rand(2, 8, 64 // STRIDES[name], 96 // STRIDES[name]) for name in names}
    assert head(names, common_stride=common_stride)(features).shape == (2, 3, 64, 96)


@pytest.mark.parametrize(
    "in_features, strides, common_stride, message",
    [
        (("p2",), STRIDES, 8, "common_stride 8 is not supported: the stride of p2, 4,"),
        (("p2",), {"p2": 12}, 4, "the stride of p2, 12,"),
        (("p2", "p9"), STRIDES, 4, "supported: some of p2, p3"),
        ((), STRIDES, 4, "in_features"),
    ],
)
def test_what_cannot_be_brought_to_one_stride_is_refused(in_features, strides, common_stride, message):
    with pytest.raises(UserError, match=message):
        head(in_features, strides, common_stride=common_stride)


def test_loss_is_the_mean_over_labelled_pixels():
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    targets[0, :5] = 255
    expected = F.cross_entropy(logits, targets.long(), ignore_index=255)
    torch.testing.assert_close(head(loss=PixelLoss(weight=0.5)).losses(logits, targets)["loss_sem_seg"], 0.5 * expected)


@pytest.mark.parametrize("ignore_value", [-1, 0, 1, 200])
def test_pixels_of_the_ignore_value_and_the_padding_are_not_learned(ignore_value):
    """Also where the value is a class, as Detectron2 has it, and where a byte does not hold it."""
    own = head(("p2",), loss=PixelLoss(ignore_value=ignore_value))
    backbone = torch.nn.Identity()
    backbone.size_divisibility = 16
    model = SemanticSegmentor(backbone=backbone, sem_seg_head=own, pixel_mean=[0], pixel_std=[1])
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 3, size, generator=generator).to(torch.uint8) for size in ((20, 30), (25, 18))]
    batch = [{"image": each[None], "target": {"sem_seg": each}} for each in labels]
    targets = model.semantic_targets(batch, ignore_value)
    assert targets.shape == (2, 32, 32) and (targets[0, 20:] == ignore_value).all()
    assert (targets[1, :, 18:] == ignore_value).all() and torch.equal(targets[0, :20, :30], labels[0].long())
    logits = torch.randn(2, 3, 32, 32, generator=generator)
    learned = targets != ignore_value
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[learned], targets[learned])
    torch.testing.assert_close(own.losses(logits, targets)["loss_sem_seg"], expected)


def test_a_batch_without_labels_gives_a_loss_of_zero_with_gradients():
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    loss = head().losses(logits, torch.full((1, 8, 8), 255, dtype=torch.uint8))["loss_sem_seg"]
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_rescaling_cuts_off_the_padding():
    logits = torch.zeros(2, 32, 32)
    logits[0, :20, :10] = 1
    assert torch.equal(rescale_logits(logits, (20, 10), (40, 20))[0], torch.ones(40, 20))


@pytest.mark.parametrize("dilations, stride", [((1, 1), 32), ((1, 2), 16), ((2, 4), 8)])
def test_backbones_without_pyramid_feed_the_head(dilations, stride):
    """Images whose sides no stride divides train and come back at the size asked for."""
    cfg = load_config(
        "semantic_ResNeSt50_FPN",
        [
            "MODEL.BACKBONE.NAME",
            "build_resnest_backbone",
            "MODEL.RESNETS.DEPTH",
            "14",
            "MODEL.RESNETS.WIDTH_PER_GROUP",
            "16",
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            "32",
            "MODEL.RESNETS.RES4_DILATION",
            str(dilations[0]),
            "MODEL.RESNETS.RES5_DILATION",
            str(dilations[1]),
            "MODEL.SEM_SEG_HEAD.IN_FEATURES",
            "['res2', 'res3', 'res4', 'res5']",
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            "3",
            "MODEL.DEVICE",
            "cpu",
        ],
    )
    model = build_model(cfg)
    assert model.backbone.out_feature_strides["res5"] == stride
    sizes = ((37, 61), (50, 42))
    samples = [
        {
            "image": torch.zeros(3, *size, dtype=torch.uint8),
            "height": 2 * size[0],
            "width": 3 * size[1],
            "target": {"sem_seg": torch.ones(size, dtype=torch.uint8)},
        }
        for size in sizes
    ]
    losses = model(samples)
    losses["loss_sem_seg"].backward()
    assert set(losses) == {"loss_sem_seg"} and all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        outputs = model.eval()(samples)
    assert [tuple(output["sem_seg"].shape) for output in outputs] == [(3, 74, 183), (3, 100, 126)]


def test_a_pyramid_over_a_dilated_backbone_is_refused():
    with pytest.raises(UserError, match="do not double"):
        build_model(load_config("semantic_ResNeSt50_FPN", ["MODEL.RESNETS.RES5_DILATION", "2", "MODEL.DEVICE", "cpu"]))


def test_one_batch_can_be_learned_by_heart():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (4, 4), generator=generator).repeat_interleave(16, 0).repeat_interleave(16, 1).to(torch.uint8)
    image = (80 * labels + torch.randint(0, 40, labels.shape, generator=generator)).to(torch.uint8).expand(3, -1, -1)
    cfg = load_config(
        "semantic_ResNeSt50_FPN",
        [
            "MODEL.RESNETS.DEPTH",
            "14",
            "MODEL.RESNETS.WIDTH_PER_GROUP",
            "16",
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            "32",
            "MODEL.FPN.OUT_CHANNELS",
            "16",
            "MODEL.SEM_SEG_HEAD.CONVS_DIM",
            "16",
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            "3",
            "MODEL.BACKBONE.FREEZE_AT",
            "0",
            "MODEL.DEVICE",
            "cpu",
        ],
    )
    model = build_model(cfg)
    samples = [{"image": image, "target": {"sem_seg": labels}}, {"image": image.flip(2), "target": {"sem_seg": labels.flip(1)}}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        model(samples)["loss_sem_seg"].backward()
        optimizer.step()
    # In training mode, since the running statistics of so few steps are not those of the batch.
    logits = model.sem_seg_head(model.backbone(model.preprocess(samples)[0]))
    assert (logits[0].argmax(dim=0) == labels).float().mean() > 0.9
