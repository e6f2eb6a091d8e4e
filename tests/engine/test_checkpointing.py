"""Checkpoints: format, crashes, full disks, other models."""

import itertools
import os
import resource

import pytest
import torch
from torch import nn

from resnest_det.engine.checkpoint import DetectionCheckpointer, periodic_checkpointer, restore_optimizer
from resnest_det.engine.muon import Muon
from resnest_det.errors import UserError
from resnest_det.weights.checkpoint_files import read_checkpoint


def _trained(width=4):
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_names_and_keys_are_detectron2s(tmp_path):
    model, optimizer = _trained()
    periodic = periodic_checkpointer(DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer), period=2, max_iter=5)
    for iteration in range(5):
        periodic.step(iteration, seed=7)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth", "model_0000003.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    saved = read_checkpoint(tmp_path / "model_0000003.pth")
    assert set(saved) == {"model", "optimizer", "iteration", "seed"} and (saved["iteration"], saved["seed"]) == (3, 7)


def test_state_comes_back_exactly(tmp_path):
    model, optimizer = _trained()
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_final", iteration=4)
    other, other_optimizer = _trained()
    saved = DetectionCheckpointer(other, str(tmp_path)).resume()
    other_optimizer.param_groups[0]["lr"] = 0.025
    restore_optimizer(other_optimizer, saved["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    momentum, restored = (
        [each.state[p]["momentum_buffer"] for p in each.param_groups[0]["params"]] for each in (optimizer, other_optimizer)
    )
    assert all(torch.equal(a, b) for a, b in zip(momentum, restored, strict=True))
    # The learning rate is the configuration's, not the file's.
    assert other_optimizer.param_groups[0]["lr"] == 0.025 and saved["iteration"] == 4


def test_another_model_is_described_briefly(tmp_path):
    model, optimizer = _trained(width=4)
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_final", iteration=4)
    other = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2), nn.Linear(2, 2))
    del other[1]
    with pytest.raises(UserError) as error:
        DetectionCheckpointer(other, str(tmp_path)).resume()
    message = str(error.value)
    assert "model_final.pth is of another model" in message and "\n" not in message
    assert "0.weight is (4, 3) in the file, (6, 3) in the model" in message
    assert "missing (" in message and "unexpected (1.running_mean" in message


def test_truncated_file_is_named(tmp_path):
    model, optimizer = _trained()
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_final", iteration=4)
    path = tmp_path / "model_final.pth"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"model_final.pth is truncated"):
        checkpointer.resume()


def test_last_checkpoint_that_names_an_absent_file(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(UserError, match=r"last_checkpoint names .*model_0000009.pth, which does not exist"):
        DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)).resume()


def test_weights_alone_cannot_be_resumed_from(tmp_path):
    model, _ = _trained()
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    with pytest.raises(UserError, match="has no optimizer and no iteration.*can start from its weights"):
        DetectionCheckpointer(model, str(tmp_path)).resume()


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"model": {}, "iteration": Bomb()}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(UserError, match="model_final.pth refused"):
        DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path)).resume()
    assert not (tmp_path / "exploded").exists()


@pytest.fixture
def little_space():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_space_keeps_the_earlier_checkpoint(tmp_path, little_space):
    model, optimizer = _trained(width=5000)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_0000004", iteration=4)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    little_space(100_000)
    with pytest.raises(UserError, match=r"model_0000009.pth cannot be written: File too large; .*model_0000004.pth is intact"):
        checkpointer.save("model_0000009", iteration=9)
    little_space(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert checkpointer.resume()["iteration"] == 4


def test_other_parameter_groups_are_refused():
    _, optimizer = _trained()
    saved = optimizer.state_dict()
    layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    other = torch.optim.SGD([{"params": layers[0].parameters()}, {"params": layers[1].parameters()}], lr=0.1)
    with pytest.raises(UserError, match=r"groups of \[2, 2\] parameters, the checkpoint of \[6\]"):
        restore_optimizer(other, saved)


def _saved(tmp_path, **changes):
    """A checkpoint of an earlier version, without digests, with other content in some places."""
    model, optimizer = _trained()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 4, "seed": 7}
    torch.save({**content, **changes}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    return DetectionCheckpointer(model, str(tmp_path)), optimizer


def test_checkpoint_of_an_earlier_version(tmp_path):
    checkpointer, optimizer = _saved(tmp_path)
    saved = checkpointer.resume()
    restore_optimizer(optimizer, saved["optimizer"])
    assert (saved["iteration"], saved["seed"]) == (4, 7)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"iteration": "x"}, "'iteration' is 'x'"),
        ({"iteration": -5}, "'iteration' is -5"),
        ({"iteration": 2**70}, "'iteration' is"),
        ({"iteration": True}, "'iteration' is True"),
        ({"iteration": torch.ones(3)}, "'iteration' is tensor"),
        ({"seed": "x"}, "'seed' is 'x'"),
        ({"seed": -1}, "'seed' is -1"),
        ({"grad_scaler": [1]}, "'grad_scaler' is a list"),
        ({"grad_scaler": {"scale": float("inf")}}, "'grad_scaler' has inf for scale"),
        ({"model": {"0.weight": "text"}}, "0.weight is a str"),
        ({"model": {"0.weight": torch.ones(4, 3, dtype=torch.int8)}}, "0.weight is torch.int8 in the file"),
        ({"model": {"0.weight": torch.full((4, 3), float("nan"))}}, "0.weight has values that are not finite"),
        ({"model": {5: torch.ones(1)}}, "5 is a Tensor"),
    ],
)
def test_values_that_a_run_cannot_go_on_with(tmp_path, changes, reason):
    checkpointer, _ = _saved(tmp_path, **changes)
    with pytest.raises(UserError, match=f"model_final.pth: {reason}") as caught:
        checkpointer.resume()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda saved: [], "not what an optimizer saves"),
        (lambda saved: {}, "not what an optimizer saves"),
        (lambda saved: {**saved, "state": "x"}, "not what an optimizer saves"),
        (lambda saved: {**saved, "param_groups": 5}, "not what an optimizer saves"),
        (lambda saved: {**saved, "state": {99: {}}}, "state of parameter 99"),
        (lambda saved: {**saved, "state": {0: 5}}, "state of parameter 0"),
        (
            lambda saved: {**saved, "state": {0: {"momentum_buffer": torch.zeros(3)}}},
            r"momentum_buffer of parameter 0 is \(3,\) in",
        ),
        (lambda saved: {**saved, "state": {0: {"momentum_buffer": "x"}}}, "momentum_buffer of parameter 0 is a str"),
        (
            lambda saved: {**saved, "state": {0: {"momentum_buffer": torch.full((4, 3), torch.nan)}}},
            "has values that are not finite",
        ),
        (
            lambda saved: {**saved, "state": {0: {"momentum_buffer": torch.zeros(4, 3, dtype=torch.int8)}}},
            "torch.int8 in the file",
        ),
    ],
)
def test_state_that_is_of_no_optimizer(change, reason):
    _, optimizer = _trained()
    before = optimizer.state_dict()
    with pytest.raises(UserError, match=f"cannot resume: .*{reason}"):
        restore_optimizer(optimizer, change(optimizer.state_dict()))
    assert str(optimizer.state_dict()) == str(before)


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"model_00", b"\0" * 17, b"\xff\xfe", b"../model_final.pth", b"a" * 5000, b".", b".."]
)
def test_last_checkpoint_that_is_damaged(tmp_path, content):
    checkpointer, _ = _saved(tmp_path)
    (tmp_path / "last_checkpoint").write_bytes(content)
    for use in (checkpointer.get_checkpoint_file, checkpointer.resume):
        with pytest.raises(UserError, match="last_checkpoint (is damaged|names)") as caught:
            use()
        assert "\n" not in str(caught.value)
    checkpointer.save("model_0000009", iteration=9)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000009.pth")


def test_one_bit_of_a_checkpoint(tmp_path):
    model, optimizer = _trained()
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_final", iteration=4)
    whole = bytearray((tmp_path / "model_final.pth").read_bytes())
    whole[whole.index(model[0].weight.detach().numpy().tobytes()) + 5] ^= 1
    (tmp_path / "model_final.pth").write_bytes(whole)
    with pytest.raises(UserError, match="CRC differs"):
        checkpointer.resume()


@pytest.mark.parametrize("names", list(itertools.permutations(["SGD", "AdamW", "Muon"], 2)), ids="-".join)
def test_a_state_of_another_optimizer_is_refused(names):
    """torch would take SGD's for AdamW's and fail in the first step; Muon would go on from momentum of another size."""
    kinds = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW, "Muon": Muon}
    parameter = nn.Parameter(torch.ones(2, 3))
    saved, other = (kinds[name]([parameter], lr=0.1) for name in names)
    parameter.grad = torch.ones(2, 3)
    saved.step()
    with pytest.raises(UserError, match="cannot resume: the checkpoint was written with another optimizer"):
        restore_optimizer(other, saved.state_dict())
    restore_optimizer(kinds[names[0]]([parameter], lr=0.1), saved.state_dict())
