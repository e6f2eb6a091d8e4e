"""Reading checkpoints: every format by its content, and nothing that is hostile, damaged or something else."""

import collections
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resnest_det.errors import UserError
from resnest_det.weights.checkpoint_files import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.num_batches_tracked": torch.tensor(7)}


class Runs:
    """Unpickling this calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def assert_equal_states(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.safetensors", "x"])
def test_torch_files_by_content(tmp_path, new, name):
    torch.save({"model": STATE, "iteration": 3}, tmp_path / name, _use_new_zipfile_serialization=new)
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint["iteration"] == 3
    assert_equal_states(checkpoint["model"], STATE)


def test_safetensors_by_content(tmp_path):
    save_file(STATE, tmp_path / "x.pth")
    assert_equal_states(read_checkpoint(tmp_path / "x.pth"), STATE)


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_zoo_pickle_becomes_tensors(tmp_path, protocol):
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "i": np.array(7),
        "big": np.arange(3, dtype=">f4"),
        "t": np.ones((3, 2), order="F"),
        "empty": np.zeros((0, 2), np.float16),
    }
    content = {
        "model": collections.OrderedDict(arrays),
        "__author__": "someone",
        "matching_heuristics": True,
        "scalar": np.float32(0.5),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    checkpoint = read_checkpoint(tmp_path / "x.pkl")
    assert checkpoint["__author__"] == "someone" and checkpoint["matching_heuristics"] is True and checkpoint["scalar"] == 0.5
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint["model"][name].numpy(), array)
    checkpoint["model"]["f"].add_(1)  # writable


def test_python_2_pickle_of_the_model_zoo(tmp_path):
    # What Python 2 wrote at protocol 2: arrays' bytes as str, which only latin1 brings back.
    data = np.array([1.5, -2.0], np.float32)
    program = (
        b"\x80\x02}q\x00U\x05modelq\x01}q\x02U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08" + data.tobytes() + b"tbss."
    )
    (tmp_path / "x.pkl").write_bytes(program)
    assert read_checkpoint(tmp_path / "x.pkl")["model"]["w"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("write", ["zip", "stream", "pickle"])
@pytest.mark.parametrize("function", [os.system, eval, exec, __import__, os.unlink, getattr], ids=lambda f: f.__name__)
def test_hostile_file_is_refused_and_nothing_runs(tmp_path, write, function):
    victim = tmp_path / "victim"
    victim.touch()
    argument = {os.system: f"rm {victim}", os.unlink: str(victim)}.get(function, f"__import__('os').unlink({str(victim)!r})")
    arguments = (b"x", "hex") if function is getattr else (argument,)
    content = {"model": STATE, "extra": Runs(function, *arguments)}
    path = tmp_path / "x.pth"
    if write == "pickle":
        path.write_bytes(pickle.dumps({"extra": content["extra"]}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "zip")
    if function is getattr and write != "pickle":
        assert read_checkpoint(path)["extra"] is None  # MMEngine's files ask for it, and get nothing
    else:
        with pytest.raises(UserError, match=f"x.pth refused: it asks for .*{function.__name__}.*only tensors") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
    assert victim.exists()


def test_bytes_go_through_no_codec_by_name(tmp_path):
    program = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00zip_x\x86R."
    (tmp_path / "x.pkl").write_bytes(program)
    with pytest.raises(UserError, match="zip_x"):
        read_checkpoint(tmp_path / "x.pkl")


def test_whole_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(UserError, match="refused: it asks for torch.nn.modules.linear.Linear"):
        read_checkpoint(tmp_path / "x.pth")


def test_history_of_mmengine_is_passed_over(tmp_path, monkeypatch):
    class HistoryBuffer:
        def mean(self):
            return 1

        def __init__(self):
            self.log_history, self.statistics_methods = np.arange(3.0), {"mean": HistoryBuffer.mean}

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    HistoryBuffer.mean.__qualname__, HistoryBuffer.mean.__module__ = "HistoryBuffer.mean", HistoryBuffer.__module__
    module = types.ModuleType(HistoryBuffer.__module__)
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, HistoryBuffer.__module__, module)
    torch.save({"state_dict": STATE, "message_hub": {"loss": HistoryBuffer()}}, tmp_path / "epoch_12.pth")
    monkeypatch.undo()
    assert_equal_states(read_checkpoint(tmp_path / "epoch_12.pth")["state_dict"], STATE)


@pytest.mark.parametrize("kind", ["zip", "stream", "pickle", "safetensors"])
def test_truncated_file(tmp_path, kind):
    path = tmp_path / "x"
    state = {"w": torch.arange(1000.0)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"w": state["w"].numpy()}, protocol=2))
    elif kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in (30, len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"checkpoint {path} (is|refused)") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"hello world, this is text", "is not a checkpoint"),
        (b"\x80\x02]q\x00.", "holds a list, expected a dictionary"),
        (b"\x80\x02K\x05.", "holds a int"),
    ],
)
def test_something_else(tmp_path, content, reason):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} {reason}|{path} .*{reason}"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "members, reason",
    [(["x/data.pkl", "x/code/x.py", "x/constants.pkl"], "TorchScript program"), (["a.txt"], "not a PyTorch checkpoint")],
)
def test_other_archives(tmp_path, members, reason):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for member in members:
            archive.writestr(member, "")
    with pytest.raises(UserError, match=reason):
        read_checkpoint(tmp_path / "x.pt")


def test_absent_and_folder(tmp_path):
    with pytest.raises(UserError, match="none.pth does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)


def _text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def _call(function, *arguments):
    return b"c" + function.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


RAW = _call("_codecs encode", _text("A" * 8), _text("latin1"))
RECONSTRUCT, SCALAR = "numpy._core.multiarray _reconstruct", "numpy._core.multiarray scalar"


def _dtype(code, byte_order="<"):
    """With flags of 0: one of objects says of itself that it has none."""
    state = b"(K\x03" + _text(byte_order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return _call("numpy dtype", _text(code), b"\x89\x88") + state


OBJECTS = _dtype("O8", "|")


def _array(shape, dtype):
    empty = _call(RECONSTRUCT, b"cnumpy\nndarray\n", b"(K\x00t", RAW)
    sides = b"".join(b"J" + side.to_bytes(4, "little", signed=True) for side in shape)
    return empty + b"(K\x01(" + sides + b"t" + dtype + b"\x89" + RAW + b"tb"


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
@pytest.mark.parametrize(
    "value, expected",
    [
        (_call(SCALAR, OBJECTS, RAW), "refused"),
        (_array((1,), OBJECTS), "refused"),
        (_call("numpy ndarray", b"(K\x01t", _text("O"), RAW), "refused|damaged"),
        (_call("numpy ndarray", b"(K\x04t", _text("f4")), "refused|damaged"),
        (_array((900_000_000,), _dtype("f4")), "damaged"),
        (_array((2, -1), _dtype("f4")), "damaged"),
        (_array((1,), _dtype("V8")), "refused"),
        (_call(SCALAR, _dtype("f4"), RAW), "damaged"),
    ],
)
def test_numpy_is_not_asked_for_memory(tmp_path, suffix, value, expected):
    path = tmp_path / f"x.{suffix}"
    write_pickle(path, value)
    with pytest.raises(UserError, match=f"x.{suffix} .*({expected})"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_the_same_program_with_honest_numbers_is_read(tmp_path, suffix):
    write_pickle(tmp_path / f"x.{suffix}", _array((2,), _dtype("f4")))
    expected = torch.from_numpy(np.frombuffer(b"A" * 8, np.float32).copy())
    assert torch.equal(read_checkpoint(tmp_path / f"x.{suffix}")["w"], expected)


def write_pickle(path, value):
    program = b"\x80\x02}" + _text("w") + value + b"s."
    if path.suffix == ".pkl":
        path.write_bytes(program)
        return
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": program, "byteorder": "little", "version": "3\n"}.items():
            archive.writestr(f"archive/{name}", content)


def test_numpy_in_torch_files_and_what_torch_keeps_beside_a_state(tmp_path):
    state = torch.nn.BatchNorm2d(2).state_dict()
    content = {"model": state, "list": [np.arange(3)], "milestones": collections.Counter([4, 4, 9]), "lr": np.float64(0.5)}
    torch.save(content, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert torch.equal(checkpoint["list"][0], torch.arange(3)) and checkpoint["lr"] == 0.5
    assert checkpoint["milestones"] == content["milestones"] and checkpoint["model"]._metadata == state._metadata
