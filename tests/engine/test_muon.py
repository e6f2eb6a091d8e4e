"""Muon against timm's, which is made to compute in float32 here, and torch's own, which computes in bfloat16."""

from functools import partial

import pytest
import torch
from timm.optim import muon as timm_muon
from torch import nn

from resnest_det.engine.muon import COEFFICIENTS, WIDE, Muon, orthogonalized

SHAPES = [(6, 4, 3, 3), (4, 40), (40, 4), (8, 8), (6, 4, 3, 3), (8, 2, 3, 3)]
AS_OURS = dict(adjust_lr_fn="match_rms_adamw", ns_coefficients=[COEFFICIENTS], nesterov=True)  # timm's arguments


@pytest.fixture
def in_float32(monkeypatch):
    """timm's has bfloat16 fixed."""
    exact = partial(timm_muon.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(timm_muon, "zeropower_via_newtonschulz", exact)


def parameters(shapes):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def take_steps(optimizer, members, count=4, seed=2):
    generator = torch.Generator().manual_seed(seed)
    for step in range(count):
        for index, parameter in enumerate(members):
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (index - step)
        optimizer.step()


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (2, 1, 30)])
def test_matrices_become_orthogonal_as_timm_makes_them(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 1e-3
    expected = timm_muon.zeropower_via_newtonschulz(matrices, 5, [COEFFICIENTS], dtype=torch.float32)
    actual = orthogonalized(matrices)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    values = torch.linalg.svdvals(actual)
    assert values.min() > 0.6 and values.max() < 1.25
    assert not orthogonalized(torch.zeros(shape)).any()


def test_steps_are_timms(in_float32):
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    take_steps(Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.3), ours)
    take_steps(timm_muon.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.3, **AS_OURS), theirs)
    for actual, expected in zip(ours, theirs):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape, share", [((32, WIDE), 1), ((32, 4 * WIDE), 0.5), ((4 * WIDE, 32), 0.5), ((32, WIDE, 2, 2), 0.5)])
def test_steps_of_a_wide_matrix_are_timms_made_smaller(shape, share, in_float32):
    (ours,), (theirs,), (before,) = parameters([shape]), parameters([shape]), parameters([shape])
    take_steps(Muon([ours], lr=0.1, momentum=0.9), [ours], 1)
    take_steps(timm_muon.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0, **AS_OURS), [theirs], 1)
    torch.testing.assert_close(ours - before, share * (theirs - before), atol=1e-5, rtol=1e-5)


def test_steps_of_a_long_vector_are_as_large_as_adamws():
    """The weights of norms are ones in networks of any width."""
    short, long = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(4 * WIDE))
    for each in (short, long):
        each.grad = torch.ones_like(each)
    Muon([short, long], lr=0.1).step()
    torch.testing.assert_close(short[0], long[0])


def test_steps_of_matrices_are_torchs():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has Muon from 2.9 on")
    shapes = [(4, 40), (40, 4), (8, 8)]
    ours, theirs = parameters(shapes), parameters(shapes)
    take_steps(Muon(ours, lr=0.1, momentum=0.9, weight_decay=0.3), ours)
    take_steps(torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"), theirs)
    for before, actual, expected in zip(parameters(shapes), ours, theirs):
        # Eight bits, through five multiplications whose polynomial is steepest at small values.
        assert (actual - expected).norm() < 0.03 * (expected - before).norm()


def test_a_vector_is_a_matrix_of_one_row():
    """Its direction is the gradient's, and its size four fifths of a fifth of the rate: what five steps make of a 1."""
    vector = nn.Parameter(torch.zeros(50))
    vector.grad = torch.linspace(-3, 5, 50)
    Muon([vector], lr=0.1).step()
    share = orthogonalized(torch.ones(1, 1, 1)).item()
    assert 0.6 < share < 1.25
    torch.testing.assert_close(vector.detach(), -0.1 * 0.2 * 50**0.5 * share * vector.grad / vector.grad.norm())


def test_groups_closures_and_what_has_no_gradient():
    fast, slow, idle = parameters([(3, 5), (3, 5), (3, 5)])
    before = [each.detach().clone() for each in (fast, slow, idle)]
    optimizer = Muon([dict(params=[fast, idle], lr=0.2), dict(params=[slow], lr=0.1, weight_decay=0.5)], momentum=0.9)
    for each in (fast, slow):
        each.grad = torch.arange(15.0).reshape(3, 5)
    assert optimizer.step(lambda: torch.tensor(7.0)) == 7
    torch.testing.assert_close((before[0] - fast) / 2, before[1] * (1 - 0.1 * 0.5) - slow)
    assert torch.equal(idle, before[2]) and idle not in optimizer.state


def test_goes_on_from_what_was_saved():
    whole, stopped, forgotten = parameters(SHAPES), parameters(SHAPES), parameters(SHAPES)
    optimizer, before = Muon(whole, lr=0.1), Muon(stopped, lr=0.1)
    for each, members in ((optimizer, whole), (before, stopped), (Muon(forgotten, lr=0.1), forgotten)):
        take_steps(each, members, 1)
    after = Muon(stopped, lr=0.3)
    after.load_state_dict(before.state_dict())
    for each, members in ((optimizer, whole), (after, stopped), (Muon(forgotten, lr=0.1), forgotten)):
        take_steps(each, members, 1, seed=3)
    for one, other, without_momentum in zip(whole, stopped, forgotten):
        assert torch.equal(one, other) and not torch.allclose(one, without_momentum)


@pytest.mark.parametrize("wrong", [dict(lr=-1.0), dict(weight_decay=-0.1), dict(momentum=1.0), dict(momentum=-0.1)])
def test_refuses(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
        Muon(parameters([(2, 2)]), **wrong)
