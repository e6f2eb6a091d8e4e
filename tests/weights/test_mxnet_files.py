"""MXNet's `.params` files: those that MXNet wrote, each version by its description, and none that is damaged or hostile."""

import io
import struct
import time
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resnest_det.errors import UserError, printable
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.mxnet_files import Damaged, read_params, sha1_of
from resnest_det.weights.pickles import UnusableTensor
from tests.helpers.mxnet_writer import DTYPES, params_bytes

BY_MXNET = Path(__file__).parent / "gluon"  # see make_files.py there
ARRAYS = {
    "float32": np.arange(-6, 6, dtype="float32").reshape(3, 4) / 7,
    "float64": np.array([np.pi, -1e300]),
    "float16": np.array([[[0.5]], [[-2.0]]], dtype="float16"),
    "uint8": np.arange(250, 256, dtype="uint8"),
    "int32": np.array([[-(2**31), 2**31 - 1]], dtype="int32"),
    "int8": np.array([-128, 127], dtype="int8"),
    "int64": np.array([-(2**63), 2**63 - 1]),
}
ONLY_3 = {"scalar": np.array(2.5, dtype="float32"), "nothing": np.zeros((0, 3), dtype="float32")}


def assert_arrays(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        value = found[name].numpy()
        assert value.dtype == array.dtype and value.shape == array.shape
        np.testing.assert_array_equal(value, array)


def read(content: bytes):
    return read_params(io.BytesIO(content), len(content))


@contextmanager
def little_memory():
    """At no time does what is done in it hold a megabyte."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path} ") and printable(message) == message and len(message) < 400
    return message


@pytest.mark.parametrize("version", [2, 3])
def test_files_of_mxnet_are_read_and_are_as_described(version):
    path = BY_MXNET / f"version{version}.params"
    arrays = ARRAYS | ONLY_3 if version == 3 else ARRAYS
    assert_arrays(read_checkpoint(path), arrays)
    assert path.read_bytes() == params_bytes(arrays, version)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_every_version(tmp_path, version):
    (tmp_path / "x.bin").write_bytes(params_bytes(ARRAYS, version))
    found = read_checkpoint(tmp_path / "x.bin")
    assert_arrays(found, ARRAYS)
    found["float32"].add_(1)  # writable


def test_versions_may_be_mixed_and_names_be_any_text():
    content = bytearray(params_bytes({"ü/ 1": ARRAYS["int8"], "": ARRAYS["float32"]}, 1))
    assert_arrays(read(bytes(content)), {"ü/ 1": ARRAYS["int8"], "": ARRAYS["float32"]})


def test_a_list_without_names_is_numbered():
    assert read_checkpoint(BY_MXNET / "unnamed.params")["0"].tolist() == [0, 1, 2]
    with pytest.raises(Damaged, match="two of its arrays have one name"):
        read(params_bytes({"a": ARRAYS["int8"], "b": ARRAYS["int8"]}).replace(b"b", b"a"))


def test_what_no_parameter_is(tmp_path):
    assert refusal(BY_MXNET / "sparse.params").endswith("cannot be used: array 0 is sparse (CSR), expected plain numbers")
    path = tmp_path / "x.params"
    for version in (0, 1, 2):
        path.write_bytes(params_bytes({"made later": np.array(1.0)}, version))
        assert "array 0 is empty, as of a network that was saved before its parameters were made" in refusal(path)
    content = params_bytes({"a": ARRAYS["int8"]})
    path.write_bytes(content.replace(struct.pack("<iii", 1, 0, 5), struct.pack("<iii", 1, 0, 7)))
    assert "array 0 has numbers of a type 7, expected plain numbers" in refusal(path)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_cut_at_any_byte_and_with_a_byte_too_many(tmp_path, version):
    whole = params_bytes(ARRAYS, version)
    for length in range(8, len(whole)):
        with pytest.raises(Damaged, match="it ends in the middle"):
            read(whole[:length])
    for length in (9, 40, 100, len(whole) - 1):
        (tmp_path / "x.params").write_bytes(whole[:length])
        assert "is truncated, damaged or not a checkpoint: it ends in the middle" in refusal(tmp_path / "x.params")
    (tmp_path / "x.params").write_bytes(whole + b"\0")
    assert "1 bytes follow its last name" in refusal(tmp_path / "x.params")


dtypes = st.sampled_from(sorted(DTYPES)).map(np.dtype)
some_arrays = st.dictionaries(
    st.text(max_size=8),
    dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(some_arrays, st.integers(0, 3), st.data())
def test_any_arrays_are_read_and_any_cut_is_refused(arrays, version, data):
    whole = params_bytes(arrays, version)
    assert_arrays(read(whole), arrays)
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Damaged):
        read(whole[:length])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.lists(st.tuples(st.integers(8, 4000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
def test_damage_ends_soon_in_arrays_or_one_line(version, changes):
    content = bytearray(params_bytes(ARRAYS, version))
    for at, replacement in changes:
        at %= len(content)
        content[at : at + len(replacement)] = replacement
    start = time.process_time()
    with little_memory():
        try:
            read(bytes(content))
        except (Damaged, UnusableTensor, UnicodeDecodeError) as error:
            assert "\n" not in str(error)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<QQQ", 0x112, 0, 1 << 62),
        struct.pack("<QQQ", 0x112, 0, 1)
        + struct.pack("<Ii", 0xF993FAC9, 0)
        + struct.pack("<i2q", 2, 1 << 40, 1 << 40)
        + bytes(99),
        struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<Ii", 0xF993FAC9, 0) + struct.pack("<i2q", 2, -1, -(1 << 40)) + bytes(99),
        struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<Ii", 0xF993FAC9, 0) + struct.pack("<i3q", 3, 0, 1 << 62, 8) + bytes(99),
        struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<Ii", 0xF993FAC9, 0) + struct.pack("<i", 1 << 30) + bytes(99),
        struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<I", 1 << 31) + bytes(99),
        params_bytes({"a": ARRAYS["int8"]})[:-9] + struct.pack("<Q", 1 << 63) + b"a",
        params_bytes({"a": ARRAYS["int8"]}, named=False)[:-8] + struct.pack("<Q", 1 << 60),
        params_bytes({"a": ARRAYS["int8"]})[:-1] + b"\xff",
    ],
    ids=[
        "arrays",
        "sides",
        "negative sides",
        "sides of nothing",
        "dimensions",
        "dimensions before versions",
        "name",
        "names",
        "no text",
    ],
)
def test_no_size_is_believed(tmp_path, content):
    (tmp_path / "x.params").write_bytes(content)
    with little_memory():
        refusal(tmp_path / "x.params")


def zipped(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_the_archive_that_is_published(tmp_path):
    whole = params_bytes(ARRAYS)
    path = zipped(tmp_path / "x-0123abcd.zip", {"x-0123abcd.params": whole})
    assert_arrays(read_checkpoint(path), ARRAYS)
    (tmp_path / "x.params").write_bytes(whole)
    assert sha1_of(path) == sha1_of(tmp_path / "x.params") != "unreadable"

    content = bytearray(path.read_bytes())
    content[60] ^= 4
    path.write_bytes(content)
    refusal(path)
    assert sha1_of(path) == "unreadable"
    path.write_bytes(content[:-30])
    assert "no table of contents" in refusal(path)
    assert "zip archive but not a PyTorch" in refusal(zipped(path, {"a.params": whole, "b.params": whole}))


def test_a_small_archive_of_very_much_is_not_unpacked(tmp_path):
    path = zipped(tmp_path / "x.zip", {"x.params": params_bytes({"a": np.zeros(65 << 20, "uint8")})})
    with little_memory():
        assert "more than parameters can be packed from" in refusal(path)
    assert sha1_of(path) == "unreadable"
