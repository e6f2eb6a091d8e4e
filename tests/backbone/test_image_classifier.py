"""What is around a classifier in training: the loss, mixing, lighting, DropBlock; and a step of timm's train.py."""

import pytest
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision.ops import DropBlock2d
from torchvision.transforms import v2

from resnest_det import create_model
from resnest_det.backbone.image_classifier import ImageClassifier
from resnest_det.configuration.classifier import load_classifier_config
from resnest_det.configuration.classifier_parts import build_classifier_optimizer
from resnest_det.data.class_samples import LabelledImages
from resnest_det.engine.loop import seed_everything
from resnest_det.errors import UserError
from resnest_det.weights.names import from_own_names
from tests.helpers.timm_reference import timm_model, with_weights_of

CLASSES = 7


def batch_of(count: int, side: int = 32) -> LabelledImages:
    generator = torch.Generator().manual_seed(1)
    return LabelledImages(
        torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8),
        torch.randint(0, CLASSES, (count,), generator=generator),
        0.05 * torch.randn(count, 3, generator=generator),
        [f"{index}.jpg" for index in range(count)],
    )


class Fixed(nn.Module):
    """In the place of a network: logits that are a linear function of the mean pixel."""

    num_classes = CLASSES
    pretrained_cfg = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def __init__(self):
        super().__init__()
        self.stem = nn.Module()
        self.stem.conv1_1 = nn.Conv2d(3, CLASSES, 1)

    def forward(self, images):
        return self.stem.conv1_1(images).mean((2, 3))


def authors_loss(logits, mixed_labels, smoothing):
    """As the paper's code defines it: (1 - s) * cross entropy with the mixed labels + s * the mean over classes."""
    log_probabilities = logits.log_softmax(1)
    hit, mean = -(log_probabilities * mixed_labels).sum(1), -log_probabilities.mean(1)
    return ((1 - smoothing) * hit + smoothing * mean).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixup", [0.0, 0.2, 1.0])
def test_the_loss_is_the_authors_formula(mixup, smoothing):
    network, batch = Fixed().double(), batch_of(8)
    learner = ImageClassifier(network, mixup=mixup, label_smoothing=smoothing).train()
    learner.normalised, images = (lambda batch: images), learner.normalised(batch).double()
    seed_everything(5)
    loss = learner(batch)["loss_cls"]
    seed_everything(5)
    share = float(torch.distributions.Beta(torch.tensor([mixup]), torch.tensor([mixup])).sample(())) if mixup else 1.0
    labels = F.one_hot(batch.labels, CLASSES).double()
    mixed = share * images + (1 - share) * images.roll(1, 0)
    expected = authors_loss(network(mixed), share * labels + (1 - share) * labels.roll(1, 0), smoothing)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    # Gluon's form smooths the labels before it mixes them.
    smooth = labels * (1 - smoothing) + smoothing / CLASSES
    soft = share * smooth + (1 - share) * smooth.roll(1, 0)
    assert loss.item() == pytest.approx(-(network(mixed).log_softmax(1) * soft).sum(1).mean().item(), abs=1e-6)


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_mixing_draws_what_the_library_draws(kind):
    batch = batch_of(6)
    learner = ImageClassifier(Fixed(), **{"mixup" if kind is v2.MixUp else "cutmix": 1.0}).train()
    seed_everything(2)
    loss = learner(batch)["loss_cls"]
    seed_everything(2)
    images, labels = kind(alpha=1.0, num_classes=CLASSES)(learner.normalised(batch), batch.labels)
    assert loss.item() == F.cross_entropy(learner.classifier(images), labels).item()


def test_lighting_is_added_to_pixels_before_they_are_normalised():
    batch = batch_of(2)
    mean, std = (torch.tensor(Fixed.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    expected = (batch.images / 255 + batch.lighting[:, :, None, None] - mean) / std
    torch.testing.assert_close(ImageClassifier(Fixed()).normalised(batch), expected, atol=1e-5, rtol=0)


def test_one_step_of_resnest50_is_that_of_timms_train_py():
    """SGD with Nesterov's momentum, no decay of norms and biases, and smoothed, mixed labels, on the same batch."""
    reference = timm_model("resnest50", num_classes=CLASSES).train()
    with torch.device("meta"):
        model = create_model("resnest50", num_classes=CLASSES)
    # In single precision the two orders of summation differ by more than the step's figure allows.
    model, reference = with_weights_of(model, reference).train().double(), reference.double()
    batch, rate, smoothing = batch_of(4, 64), 0.05, 0.1
    cfg = load_classifier_config("", ["OPTIMIZER.NESTEROV", "True", "OPTIMIZER.DISABLE_BN_WD", "True"])
    ours = build_classifier_optimizer(cfg, model, rate)
    theirs = create_optimizer_v2(reference, opt="sgd", lr=rate, weight_decay=1e-4, momentum=0.9)
    assert sorted((group["weight_decay"], len(group["params"])) for group in ours.param_groups) == sorted(
        (group["weight_decay"], len(group["params"])) for group in theirs.param_groups
    )
    learner = ImageClassifier(model, label_smoothing=smoothing)
    labels = F.one_hot(batch.labels, CLASSES) * (1 - smoothing) + smoothing / CLASSES
    learner.normalised, images = (lambda batch: images), learner.normalised(batch).double()
    loss = learner(batch)["loss_cls"]
    expected = SoftTargetCrossEntropy()(reference(images), labels)
    for optimizer, each in ((ours, loss), (theirs, expected)):
        each.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    state = from_own_names(model.state_dict(), "timm")
    differences = {name: (state[name] - value).abs().max().item() for name, value in reference.named_parameters()}
    assert max(differences.values()) < 1e-5, max(differences.items(), key=lambda pair: pair[1])


def test_drop_block_is_in_the_last_two_stages_and_only_in_training():
    model = create_model("resnest14", num_classes=0, width=0.125, drop_block_size=3).eval()
    where = {name.split(".")[0] for name, module in model.named_modules() if isinstance(module, DropBlock2d)}
    assert where == {"res4", "res5"}
    images = torch.rand(2, 3, 96, 96)
    plain = create_model("resnest14", num_classes=0, width=0.125).eval()
    plain.load_state_dict(model.state_dict())
    model.set_drop_block(0.5)
    assert torch.equal(model(images), plain(images))
    model.train(), plain.train()
    assert not torch.equal(model(images), plain(images))
    model.set_drop_block(0.0)
    assert torch.equal(model(images), plain(images))


def test_the_last_norms_begin_at_zero():
    model = create_model("resnest26", num_classes=3, width=0.125)
    model.zero_last_norms()
    zeros = [name for name, value in model.named_parameters() if name.endswith("norm.weight") and not value.any()]
    assert zeros == [f"res{stage}.{block}.conv3.norm.weight" for stage in (2, 3, 4, 5) for block in (0, 1)]


def test_rates_fall_from_layer_to_layer():
    cfg = load_classifier_config("", ["OPTIMIZER.LAYER_DECAY", "0.5"])
    model = create_model("resnest14", num_classes=3, width=0.125)
    optimizer = build_classifier_optimizer(cfg, model, 0.32)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for part, rate in {"linear": 0.32, "res5": 0.16, "res4": 0.08, "res3": 0.04, "res2": 0.02, "stem": 0.01}.items():
        assert [rates[id(parameter)] for parameter in getattr(model, part).parameters()] == pytest.approx(
            [rate] * len(list(getattr(model, part).parameters()))
        )


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_other_optimizers(name):
    cfg = load_classifier_config("", ["OPTIMIZER.NAME", name, "OPTIMIZER.DISABLE_BN_WD", "True"])
    model = create_model("resnest14", num_classes=3, width=0.125)
    optimizer = build_classifier_optimizer(cfg, model, 0.01)
    before = model.linear.weight.clone()
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert type(optimizer).__name__.lower() == name and not torch.equal(before, model.linear.weight)


@pytest.mark.parametrize(
    "arguments, told",
    [({"mixup": -1.0}, "mixup"), ({"cutmix": float("nan")}, "cutmix"), ({"label_smoothing": 1.0}, "label_smoothing")],
)
def test_impossible_values(arguments, told):
    with pytest.raises(UserError, match=told):
        ImageClassifier(Fixed(), **arguments)


@pytest.mark.parametrize("width", [0, -1, float("nan"), "wide", 9])
def test_impossible_widths(width):
    with pytest.raises(UserError, match="width"):
        create_model("resnest14", width=width)
