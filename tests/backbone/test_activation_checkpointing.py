"""Stages computed again in the backward pass: the same numbers as without, with less kept."""

import copy

import pytest
import torch

from resnest_det.backbone.layers import GlooSyncBatchNorm2d
from resnest_det.backbone.resnest import ResNeSt, _fixed_statistics
from resnest_det.backbone.split_attention import Deformable
from resnest_det.configuration.model import assemble_model
from resnest_det.configuration.reading import load_config

SMALL = dict(blocks=(1, 2, 1, 1), stem_width=8, bottleneck_channels=16, res2_out_channels=32)
STAGES = ("stem", "res2", "res3", "res4", "res5")


def networks(**arguments) -> tuple[ResNeSt, ResNeSt]:
    """The same network without and with checkpointed stages, in double precision."""
    torch.manual_seed(0)
    plain = ResNeSt(**SMALL | arguments).double()
    checkpointed = ResNeSt(**SMALL | arguments, checkpoint_stages=STAGES).double()
    checkpointed.load_state_dict(copy.deepcopy(plain.state_dict()))
    return plain, checkpointed


def step(model: ResNeSt, images: torch.Tensor) -> torch.Tensor:
    loss = sum(feature.square().mean() for feature in model(images).values())
    loss.backward()
    return loss


@pytest.mark.parametrize(
    "arguments",
    [
        dict(norm="BN"),
        dict(norm="SyncBN", freeze_at=2),
        dict(norm="GN", bottleneck_channels=32, stem_width=32),
        dict(norm="BN", deform_on_per_stage=(False, True, True, True), deformable=Deformable(True, 2)),
        dict(norm="BN", out_features=("res1", "res5")),
    ],
    ids=["BN", "SyncBN, frozen", "GN", "deformable", "stem before its pooling"],
)
def test_losses_gradients_and_statistics_do_not_change(arguments):
    plain, checkpointed = networks(**arguments)
    for seed in range(2):
        images = torch.rand(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(step(checkpointed, images), step(plain, images), rtol=1e-12, atol=0)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in checkpointed.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12, msg=name)
    expected = plain.state_dict()
    for name, value in checkpointed.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)
    assert all(module.momentum == 0.1 for module in checkpointed.modules() if isinstance(module, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("out_features", [("res2", "res3", "res4", "res5"), ("res1", "res5")])
def test_less_is_kept_for_the_backward_pass(out_features):
    kept = []
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for model in networks(out_features=out_features):
        saved = 0

        def count(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(images)
        kept.append(saved)
    assert kept[1] < 0.2 * kept[0]


def test_norms_over_processes_count_a_batch_once(monkeypatch):
    """Their statistics are kept by code of this package, not by torch's."""
    monkeypatch.setattr("resnest_det.backbone.layers.get_world_size", lambda: 2)
    monkeypatch.setattr("resnest_det.backbone.layers.all_reduce", lambda tensor: tensor * 2)
    norm = GlooSyncBatchNorm2d(3)
    batch = torch.rand(2, 3, 4, 4)
    norm(batch)
    once = copy.deepcopy(norm.state_dict())
    with _fixed_statistics(norm):
        norm(batch)
    assert once["num_batches_tracked"] == 1 and all(torch.equal(value, once[name]) for name, value in norm.state_dict().items())


def test_the_key_reaches_the_backbone():
    cfg = load_config("mask_rcnn_ResNeSt50_FPN", ["MODEL.RESNETS.CHECKPOINT_STAGES", "['res3', 'res4']"])
    with torch.device("meta"):
        assert assemble_model(cfg).backbone.bottom_up.checkpoint_stages == ("res3", "res4")
        assert assemble_model(load_config("mask_rcnn_ResNeSt50_FPN")).backbone.bottom_up.checkpoint_stages == ()
