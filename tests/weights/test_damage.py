"""Checkpoints that are damaged, or made to be: told by what the file has for it, and named."""

import collections
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resnest_det import UserError, create_model, resolve_weights
from resnest_det.backbone.loading import load_weights
from resnest_det.weights.checkpoint_files import read_checkpoint, save_safetensors, with_digests
from resnest_det.weights.digests import KEY

NAME = "res4.0.conv1.weight"
STATE = {"stem.conv1_1.weight": torch.full((4, 3), 0.5), NAME: torch.arange(1001.0)}


def own_file(kind, content=None):
    """What this package writes of `content`, in bytes."""
    content = {"model": STATE, "iteration": 3} if content is None else content
    buffer = io.BytesIO()
    if kind == "safetensors":
        return save_safetensors(content["model"])
    if kind == "pickle":
        arrays = {name: value.numpy() for name, value in content["model"].items()}
        return pickle.dumps({**with_digests(content), "model": arrays}, protocol=2)
    torch.save(with_digests(content), buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "stream", "pickle", "safetensors"])
def test_one_bit_of_an_own_file(tmp_path, kind):
    whole = own_file(kind)
    path = tmp_path / "x"
    path.write_bytes(whole)
    model = read_checkpoint(path)
    model = model if kind == "safetensors" else model["model"]
    assert KEY not in model and torch.equal(model[NAME], STATE[NAME])
    at = whole.index(struct.pack("<f", 769.0))  # bytes below 128, which a pickle's text has as they are
    damaged = bytearray(whole)
    damaged[at + 2] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=f"x is .*(CRC differs|{NAME} are not the numbers)"):
        read_checkpoint(path)


def test_archive_of_others_by_its_checksums(tmp_path):
    torch.save(STATE, tmp_path / "x.pth")
    whole = bytearray((tmp_path / "x.pth").read_bytes())
    whole[whole.index(struct.pack("<f", 769.0)) + 2] ^= 4
    (tmp_path / "x.pth").write_bytes(whole)
    with pytest.raises(UserError, match="record x/data/1 is not what was written"):
        read_checkpoint(tmp_path / "x.pth")


def test_digests_cover_names_shapes_and_settings(tmp_path):
    content = with_digests({"model": STATE, "iteration": 3})
    renamed = {"model": {name.replace("res4", "res5"): value for name, value in STATE.items()}}
    for change in (
        {"iteration": 4},
        renamed,
        {"model": {**STATE, NAME: STATE[NAME].view(7, 143)}},
        {"more": 1},
        {KEY: 5},
        {KEY: {}},
    ):
        torch.save({**content, **change}, tmp_path / "x.pth")
        with pytest.raises(UserError, match="x.pth is damaged: .*on purpose.*resnest_det_digests"):
            read_checkpoint(tmp_path / "x.pth")


def test_digests_do_not_depend_on_how_tensors_lie_in_memory(tmp_path):
    shared = torch.arange(12.0)
    state = {"a": shared[:6], "b": shared[6:].view(2, 3).T, "c": shared, "d": torch.empty(0, 3), "e": torch.zeros(1).expand(5)}
    torch.save(with_digests({"model": state}), tmp_path / "x.pth")
    for name, value in read_checkpoint(tmp_path / "x.pth")["model"].items():
        assert torch.equal(value, state[name])


def compressed(path):
    torch.save({"w": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def two_of_one_name(path):
    torch.save({"w": torch.zeros(3), "v": torch.ones(3)}, path)
    path.write_bytes(path.read_bytes().replace(b"x/data/1", b"x/data/0"))


def stream_of_many(path):
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03", b"\x8a\x05" + (3 << 30).to_bytes(5, "little")))


@pytest.mark.parametrize(
    "write, reason",
    [(compressed, "is compressed"), (two_of_one_name, "two records of one name"), (stream_of_many, "does not fit into the file")],
)
def test_archives_that_torch_never_writes(tmp_path, write, reason):
    write(tmp_path / "x.pth")
    with pytest.raises(UserError, match=reason):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda value: value.to_sparse(), "is a tensor that is sparse"),
        (lambda value: value.to("meta"), "is a tensor without numbers"),
        (lambda value: value.to(torch.complex64), "has numbers of type torch.complex64"),
        (lambda value: value.to(torch.int8), "torch.int8 in the file, torch.float32 in the model"),
        (lambda value: value.to(torch.float8_e4m3fn), "has numbers of type torch.float8_e4m3fn"),
        (lambda value: value * float("nan"), "has values that are not finite"),
        (lambda value: value / 0, "has values that are not finite"),
        (lambda value: value + 1e31, "has a value of 1e\\+31"),
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_tensors_that_no_model_has_are_named(tmp_path, change, reason, new):
    model = create_model("resnest14", num_classes=2)
    state = model.state_dict()
    torch.save(
        {"model": {**state, "res4.0.conv1.weight": change(state["res4.0.conv1.weight"])}},
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=new,
    )
    before = {name: value.clone() for name, value in state.items()}
    with pytest.raises(UserError, match=f"x.pth.*res4.0.conv1.weight.*{reason}") as caught:
        load_weights(model, tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensor(tmp_path):
    torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="w is a tensor of quantized numbers"):
        read_checkpoint(tmp_path / "x.pth")


def test_half_precision_is_read_into_single(tmp_path):
    model = create_model("resnest14", num_classes=2)
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    load_weights(model, tmp_path / "x.pth")
    assert all(torch.equal(value, state[name].float()) for name, value in model.state_dict().items() if value.is_floating_point())


def _text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


LISTS = b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(60))
EQUAL_HASHES = b"".join(b"\x8a\x0f" + (n * (2**61 - 1)).to_bytes(15, "little") + b"N" for n in range(1, 50_000))
BOMBS = {
    "memo index": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "length": b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00a.",
    "length of 3 GB": b"\x80\x04\x8e" + (3 << 30).to_bytes(8, "little") + b"a.",
    "bytearray": b"\x80\x05\x96" + (3 << 30).to_bytes(8, "little") + b"a.",
    "bytes by a number": b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    "marks": b"(" * 3_000_000 + b".",
    "deep tuple": b"\x80\x02N" + b"\x85" * 2_000_000 + b".",
    "deep key": b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.",
    "deep member": b"\x80\x02c__builtin__\nset\n]N" + b"\x85" * 1_000_000 + b"a\x85R.",
    "deep ordered key": b"\x80\x02ccollections\nOrderedDict\n]N" + b"\x85" * 1_000_000 + b"N\x86a\x85R.",
    "lists of lists": b"\x80\x02}" + _text("w") + b"]q\x00(" + b"N" * 10 + b"e" + LISTS + b"s.",
    "one hash": b"\x80\x02}(" + EQUAL_HASHES + b"u.",
    "bytes again and again": b"\x80\x02](" + b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"q\x00"
    + (b"c_codecs\nencode\nh\x00" + _text("latin1") + b"\x86R") * 5000 + b"e.",
}  # fmt: skip


# Each file is read by a process of its own, forked from one that has imported what it takes.
READING = """
import json, os, resource, sys, time
import resnest_det.weights.checkpoint_files as files
for path in sys.argv[1:]:
    if os.fork() == 0:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            files.read_checkpoint(path)
            told = "read"
        except files.UserError as error:
            told = str(error)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        print(json.dumps([told, more, time.perf_counter() - start]), flush=True)
        os._exit(0)
    status = os.wait()[1]
    if status:
        print(json.dumps([f"ended with status {status}", 0, 0]), flush=True)
"""


@pytest.fixture(scope="module")
def read_bombs(tmp_path_factory):
    """What reading each of `BOMBS` said, the MiB that it took and the seconds."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [folder / f"{number}.pkl" for number in range(len(BOMBS))]
    for path, content in zip(paths, BOMBS.values()):
        path.write_bytes(content)
    ran = subprocess.run([sys.executable, "-c", READING, *paths], capture_output=True, text=True, timeout=60 * len(BOMBS))
    assert ran.returncode == 0, ran.stderr[-300:]
    return dict(zip(BOMBS, map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_few_bytes_do_not_ask_for_gigabytes(read_bombs, name):
    told, mebibytes, seconds = read_bombs[name]
    assert told.startswith("checkpoint ") or (name == "lists of lists" and told == "read")
    assert mebibytes < 1000 and seconds < 60  # on a busy machine


def test_views_of_one_storage_without_end(tmp_path):
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="many times more memory"):
        read_checkpoint(tmp_path / "x.pth")


def test_reading_leaves_nothing_to_collect(tmp_path):
    torch.save({"w": torch.zeros(1 << 24)}, tmp_path / "x.pth")
    before = _resident_bytes()
    for _ in range(20):
        read_checkpoint(tmp_path / "x.pth")
    assert _resident_bytes() - before < 1 << 29  # 64 MiB each would be 1.3 GiB more


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_counters_and_dictionaries_of_tensors(tmp_path):
    content = {
        "a": collections.OrderedDict(x=1),
        "b": collections.Counter("abb"),
        "c": {1, 2},
        "d": (1, [2.5, None]),
        "e": 1 + 2j,
        "f": b"\xff",
    }
    torch.save(
        content | {"p": torch.nn.Parameter(torch.ones(2)), "s": torch.Size([1, 2]), "t": torch.float16}, tmp_path / "x.pth"
    )
    found = read_checkpoint(tmp_path / "x.pth")
    assert {key: found[key] for key in content} == content
    assert torch.equal(found["p"], torch.ones(2)) and found["s"] == (1, 2) and found["t"] == torch.float16


@pytest.mark.parametrize(
    "name, refused", [("x-0123abcd.pth", True), ("resnest50-528c19ca.pth", True), ("x-20240131.pth", False), ("x.pth", False)]
)
def test_local_file_with_a_hash_in_its_name(tmp_path, name, refused):
    save_file(STATE, tmp_path / name)
    if refused:
        with pytest.raises(UserError, match="sha256 does not begin with"):
            resolve_weights(tmp_path / name)
    else:
        assert resolve_weights(tmp_path / name) == str(tmp_path / name)
