"""Exact batch-norm statistics, in one process and over several."""

import pytest
import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn

from resnest_det.backbone.layers import get_norm
from resnest_det.backbone.split_attention import SplitAttentionConv2d
from resnest_det.distributed import get_rank, get_world_size
from resnest_det.engine.launch import join_process_group, launch
from resnest_det.engine.precise_bn import update_batch_norm_statistics


def make_model(norm: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), get_norm(norm, 8), nn.ReLU(), SplitAttentionConv2d(8, 8, norm=norm))


def make_batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 12, 10 + number, generator=generator) for number in range(count)]


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))}


def test_one_process_agrees_with_fvcore():
    expected, model = make_model("BN"), make_model("BN")
    update_bn_stats(expected, make_batches(), 3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    update_batch_norm_statistics(model, iter(make_batches(5)), 3)
    assert len(statistics(model)) == 6
    for name, value in statistics(model).items():
        torch.testing.assert_close(value, statistics(expected)[name], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_norms_in_evaluation_mode_and_unused_ones_stay():
    model = make_model("BN")
    model.unused, model[1].training = nn.BatchNorm2d(8), False
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    update_batch_norm_statistics(model, make_batches(), 3)
    for norm in (model[1], model.unused):
        assert not norm.running_mean.any() and (norm.running_var == 1).all()
    assert model[3].bn0.running_mean.any()


def test_maps_in_half_precision_do_not_overflow():
    norm = nn.BatchNorm2d(2)
    x = 100 + 30 * torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    update_batch_norm_statistics(norm, [x.half()], 1)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3)), rtol=1e-3, atol=0)


def _part(folder, norms):
    join_process_group(torch.device("cpu"))
    for norm in norms:
        model = make_model(norm)
        update_batch_norm_statistics(model, [batch[get_rank() :: get_world_size()] for batch in make_batches()], 3)
        torch.save(statistics(model), folder / f"{norm}_{get_rank()}.pth")


NORMS = ["SyncBN", "BN"]


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """A folder with the statistics that each of two processes has, for each norm."""
    folder = tmp_path_factory.mktemp("two_processes")
    launch(_part, folder, NORMS, num_processes=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_processes_agree_on_the_statistics_of_all(norm, of_two_processes):
    parts = [torch.load(of_two_processes / f"{norm}_{rank}.pth") for rank in range(2)]
    assert all(torch.equal(value, parts[1][name]) for name, value in parts[0].items())
    whole = make_model("BN")
    update_batch_norm_statistics(whole, make_batches(), 3)
    # What comes after a plain batch norm depends on how the batch was split; a synchronised one makes it all the same.
    for name, value in statistics(whole).items():
        if norm == "SyncBN" or name.startswith("1."):
            torch.testing.assert_close(parts[0][name], value, rtol=1e-4, atol=1e-6)
