"""ImageNet's archives, small ones of the same form: unpacked whole, again, in part, and damaged."""

import hashlib
import io
import tarfile

import numpy as np
import pytest

from resnest_det.commands.prepare_imagenet import main
from resnest_det.data import imagenet_archives
from resnest_det.data.imagenet_archives import ARCHIVES, Archive, prepare_imagenet
from resnest_det.errors import UserError

io_of_scipy = pytest.importorskip("scipy.io")
pytestmark = pytest.mark.extras

SYNSETS = {2: ("n01440764", "tench, Tinca tinca"), 3: ("n01443537", "goldfish"), 1: ("n02086240", "Shih-Tzu")}
TRUTH = [3, 2, 2, 1]


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def devkit() -> bytes:
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, synset, words, "", 0) for number, (synset, words) in SYNSETS.items()]
    rows.append((1001, "n00001740", "entity", "", 2))  # of the hierarchy above the classes
    meta = io.BytesIO()
    io_of_scipy.savemat(meta, {"synsets": np.array(rows, dtype=fields)})
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    folder = "ILSVRC2012_devkit_t12/data"
    files = {f"{folder}/meta.mat": meta.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth}
    return tar_of(files, "w:gz")


@pytest.fixture
def archives(tmp_path, monkeypatch):
    folder = tmp_path / "archives"
    folder.mkdir()
    classes = {
        f"{synset}.tar": tar_of({f"{synset}_{number}.JPEG": f"{synset} {number}".encode() * 99 for number in range(3)})
        for synset, _ in SYNSETS.values()
    }
    contents = {
        "train": tar_of(classes),
        "val": tar_of({f"ILSVRC2012_val_{number:08d}.JPEG": f"val {number}".encode() for number in (2, 1, 4, 3)}),
        "devkit": devkit(),
    }
    own = {}
    for key, content in contents.items():
        (folder / ARCHIVES[key].name).write_bytes(content)
        algorithm = ARCHIVES[key].algorithm
        own[key] = Archive(ARCHIVES[key].name, algorithm, hashlib.new(algorithm, content).hexdigest())
    monkeypatch.setattr(imagenet_archives, "ARCHIVES", own)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_they_become_class_folders(archives, tmp_path, workers, capsys):
    out = tmp_path / "out"
    main(["--archives", str(archives), "--out", str(out), "--workers", str(workers)])
    assert f"{out}/train: 9 images of 3 classes" in capsys.readouterr().out
    for synset, _ in SYNSETS.values():
        images = sorted((out / "train" / synset).iterdir())
        assert [image.name for image in images] == [f"{synset}_{number}.JPEG" for number in range(3)]
        assert images[1].read_bytes() == f"{synset} 1".encode() * 99
    for number, of_class in enumerate(TRUTH, start=1):
        path = out / "val" / SYNSETS[of_class][0] / f"ILSVRC2012_val_{number:08d}.JPEG"
        assert path.read_bytes() == f"val {number}".encode()
    assert (out / "synset_words.txt").read_text().splitlines()[0] == "n01440764 tench, Tinca tinca"
    assert not list(out.rglob("*.unfinished"))


def test_an_interrupted_run_is_finished_and_nothing_done_twice(archives, tmp_path, monkeypatch):
    out = tmp_path / "out"
    unpack, done = imagenet_archives.unpack_class, []

    def interrupted(archive, member, folder):
        if done:
            (out / "train" / f".{member.name[:-4]}.unfinished").mkdir()
            raise KeyboardInterrupt
        done.append(member.name)
        return unpack(archive, member, folder)

    monkeypatch.setattr(imagenet_archives, "unpack_class", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_imagenet(str(archives), str(out), 1)
    finished = [path.name for path in (out / "train").iterdir() if not path.name.startswith(".")]
    assert [f"{name}.tar" for name in finished] == done
    again = []
    monkeypatch.setattr(imagenet_archives, "unpack_class", lambda *task: again.append(task[1].name) or unpack(*task))
    digests = []
    monkeypatch.setattr(imagenet_archives, "digest_of", lambda *given: digests.append(given))
    assert prepare_imagenet(str(archives), str(out), 1) == {"train": (3, 9), "val": (3, 4)}
    assert len(again) == 2 and done[0] not in again and not digests
    (out / "val" / "n01440764" / "ILSVRC2012_val_00000002.JPEG").write_bytes(b"torn")
    prepare_imagenet(str(archives), str(out), 1)
    assert (out / "val" / "n01440764" / "ILSVRC2012_val_00000002.JPEG").read_bytes() == b"val 2"


def test_parts_can_be_prepared_alone(archives, tmp_path):
    (archives / ARCHIVES["val"].name).unlink()
    (archives / ARCHIVES["devkit"].name).unlink()
    assert prepare_imagenet(str(archives), str(tmp_path / "out"), 1) == {"train": (3, 9)}


def rewrite(archives, key, content):
    path = archives / ARCHIVES[key].name
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)


def inner(name="n1.tar", **files):
    return tar_of({name: tar_of({key.replace("_", "."): value for key, value in files.items()})})


@pytest.mark.parametrize(
    "key, content, told",
    [
        ("train", lambda whole: whole[:-10241], "cut short"),
        ("train", lambda whole: whole[:3000], "cut short|damaged"),
        ("train", b"no tar at all" * 100, "damaged or no tar file"),
        ("train", tar_of({"readme.txt": b"x"}), "holds no tar for each class"),
        ("train", tar_of({"../n1.tar": b"x"}), "is no name of a file without folders"),
        ("train", tar_of({"n1.tar": b"x" * 2000}), "n1.tar is damaged"),
        ("train", tar_of({"n1.tar": tar_of({"../../evil": b"x"})}), "expected images"),
        ("val", tar_of({"a.JPEG": b"x"}), "holds 1 images, but the devkit has the classes of 4"),
        ("val", tar_of({"/etc/a.JPEG": b"x"}), "is no name of a file"),
        ("devkit", b"no gzip", "cannot be read, it is damaged"),
        # Written in the test: gzip notes the time, and the name of a test has to be the same in all processes.
        ("devkit", lambda whole: tar_of({"a/meta.mat": b"x"}, "w:gz"), "has no ILSVRC2012_validation_ground_truth.txt"),
        ("devkit", lambda whole: whole[: len(whole) // 2], "damaged|has no"),
    ],
)
def test_damaged_archives_are_one_line(archives, tmp_path, key, content, told):
    rewrite(archives, key, content)
    with pytest.raises(UserError, match=told):
        prepare_imagenet(str(archives), str(tmp_path / "out"), 1, check=False)
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("key", ["train", "val", "devkit"])
def test_a_wrong_checksum_names_both(archives, tmp_path, key):
    rewrite(archives, key, lambda whole: whole + b"\0")
    with pytest.raises(
        UserError, match=f"{ARCHIVES[key].name} has the (sha1|md5) [0-9a-f]+, that of .* is [0-9a-f]+: it is damaged"
    ):
        prepare_imagenet(str(archives), str(tmp_path / "out"), 1)
    assert not (tmp_path / "out" / "train").exists()


def test_what_is_absent(archives, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        main(["--archives", str(tmp_path / "no"), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--workers 0"):
        main(["--archives", str(archives), "--out", str(tmp_path / "out"), "--workers", "0"])
    with pytest.raises(UserError, match="neither the training nor the validation archive"):
        prepare_imagenet(str(tmp_path), str(tmp_path / "out"), 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: Not a directory"):
        prepare_imagenet(str(archives), str(tmp_path / "file" / "out"), 1)
    (archives / ARCHIVES["devkit"].name).unlink()
    with pytest.raises(UserError, match="does not exist: it has the classes"):
        prepare_imagenet(str(archives), str(tmp_path / "out"), 1)
