"""Tar shards as webdataset writes them."""

import io
import itertools
import tarfile

import numpy as np
import pytest
from PIL import Image

webdataset = pytest.importorskip("webdataset")

from resnest_det.data.class_samples import evaluation_image  # noqa: E402
from resnest_det.data.class_transforms import evaluation_transform  # noqa: E402
from resnest_det.data.samplers import shard_draws  # noqa: E402
from resnest_det.data.shards import is_shards, read_shards  # noqa: E402
from resnest_det.errors import UserError  # noqa: E402

# webdataset's own reader leaves its files to the garbage collector.
pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Three shards to train on and one to evaluate on, by webdataset's own writer."""
    for split, count in (("train", 12), ("val", 4)):
        with webdataset.ShardWriter(str(tmp_path / f"{split}-%03d.tar"), maxcount=4, verbose=0) as writer:
            for number in range(count):
                label = {"cls": number % 2} if number % 4 < 2 else {"json": {"label": number % 2, "from": "x"}}
                writer.write({"__key__": f"{split}/{number:05d}", "png": picture(10 * number), **label})
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    return tmp_path


def test_what_webdataset_writes_is_read(shards):
    assert is_shards(str(shards)) and is_shards(str(shards / "train-{000..002}.tar")) and not is_shards(str(shards / "x"))
    train, val = read_shards(str(shards))
    assert train.classes == ("even", "odd") and (len(train), len(val)) == (12, 4)
    assert train.labels.tolist() == [0, 1] * 6 and train.shards.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # The same images as webdataset's own reader gives, in its order.
    urls = [str(shards / f"train-{number:03d}.tar") for number in range(3)]
    own = [sample["png"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    for index, content in enumerate(own):
        record = train.records[index]
        with open(record["shard"], "rb") as file:
            file.seek(record["offset"])
            assert file.read(record["size"]) == content
    sample = evaluation_image(train.records[5], transform=evaluation_transform(16), decoder="pil")
    assert sample["label"] == 1 and set(sample["image"][0].unique().tolist()) == {50}


def test_patterns_and_held_out_shards(shards):
    train, val = read_shards(str(shards / "train-{000..001}.tar"), str(shards / "train-002.tar"))
    assert (len(train), len(val)) == (8, 4)
    train, val = read_shards(str(shards / "train-*.tar"))
    assert (len(train), len(val)) == (8, 4)
    (shards / "classes.txt").unlink()
    assert read_shards(str(shards))[0].classes == ("0", "1")


def test_each_pass_shows_every_image_once_from_few_shards_at_a_time():
    shards = np.repeat(np.arange(40), 5)
    draws = list(itertools.islice(shard_draws(shards, seed=1), 400))
    first, second = ([index for index, _ in draws[begin : begin + 200]] for begin in (0, 200))
    assert sorted(first) == sorted(second) == list(range(200)) and first != second
    assert [position for _, position in draws] == list(range(400))
    assert len({shards[index] for index in first[:80]}) == 16
    assert first[:80] != sorted(first[:80])


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def add(path, name, content):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda f: cut(f / "train-001.tar", 700), "train-001.tar .*cut short"),
        (lambda f: cut(f / "train-001.tar", 512 * 5), "train-001.tar .*cut short"),
        (lambda f: cut(f / "train-001.tar", 3), "train-001.tar cannot be read"),
        (lambda f: (f / "train-001.tar").write_bytes(b"x" * 2048), "train-001.tar cannot be read"),
        (lambda f: add(f / "train-001.tar", "a/1.jpg", picture(1)), "a/1.jpg has no class"),
        (lambda f: add(f / "train-001.tar", "1.cls", b"cat"), "1.cls: expected the number of a class, found b'cat'"),
        (lambda f: add(f / "train-001.tar", "1.json", b'{"label": -1}'), "1.json: expected the number"),
        (lambda f: (f / "classes.txt").write_text("one"), "classes.txt names 1 classes"),
        (lambda f: (f / "classes.txt").write_bytes(b"\xff\xfe"), "classes.txt cannot be read"),
        (lambda f: [path.unlink() for path in f.glob("train*")], "there are no tar files to train on"),
    ],
)
def test_damaged_shards_are_one_line(shards, damage, told):
    damage(shards)
    with pytest.raises(UserError, match=told):
        read_shards(str(shards))


def test_a_shard_cut_at_any_block_is_seen(shards):
    whole = (shards / "train-001.tar").read_bytes()
    for keep in range(0, len(whole), 512):
        (shards / "train-001.tar").write_bytes(whole[:keep])
        padding = whole[keep:].count(0) == len(whole) - keep and len(whole) - keep <= 8192
        if padding and whole[:keep].endswith(bytes(1024)):
            continue  # only what fills up the last record is gone
        with pytest.raises(UserError, match="train-001.tar"):
            read_shards(str(shards))


def test_absent_shards(tmp_path):
    with pytest.raises(UserError, match="there is no such tar file"):
        read_shards(str(tmp_path / "train-{0..3}.tar"))
