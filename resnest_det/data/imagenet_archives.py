"""ImageNet's official archives to class folders: DIR/train/n01440764/*.JPEG and DIR/val/n01440764/*.JPEG.

`ILSVRC2012_img_train.tar` holds a tar for each class; `ILSVRC2012_img_val.tar` is flat, and its classes are in the devkit. What
was unpacked before is left as it is: a class appears whole or not at all, and so does an image of the validation set.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from resnest_det.errors import UserError
from resnest_det.files import TEMPORARY_SUFFIX, atomic_write

_CHUNK = 1 << 22
_IMAGES_A_TASK = 500
_CHECKED = ".checked_archives.json"


@dataclass(frozen=True)
class Archive:
    """A file that image-net.org gives, and the digest of it."""

    name: str
    algorithm: str
    digest: str


# Digests: sha1 as image-net.org and academic mirrors list them; md5 of the devkit as torchvision.datasets.ImageNet has it.
ARCHIVES = {
    "train": Archive("ILSVRC2012_img_train.tar", "sha1", "43eda4fe35c1705d6606a6a7a633bc965d194284"),
    "val": Archive("ILSVRC2012_img_val.tar", "sha1", "5f3f73da3395154b60528b2b2a2caf2374f5f178"),
    "devkit": Archive("ILSVRC2012_devkit_t12.tar.gz", "md5", "fa75699e90414af021442c21a62c3abf"),
}


@dataclass(frozen=True)
class Member:
    """A file inside a tar."""

    name: str
    offset: int
    size: int


def prepare_imagenet(archives: str, out: str, workers: int, *, check: bool = True) -> dict[str, tuple[int, int]]:
    """Unpack what is in the folder `archives` into `out`; an interrupted run is finished by the next.

    Args:
        workers: processes.
        check: compare digests first; of a file that was compared before and has not changed, not again.

    Returns:
        split to (classes, images).

    Raises:
        UserError: an archive is absent, has another digest, is cut short or holds something else, or there is no room.
    """
    paths = {key: Path(archives, archive.name) for key, archive in ARCHIVES.items()}
    present = {key: path for key, path in paths.items() if path.is_file()}
    if not {"train", "val"} & set(present):
        names = ", ".join(archive.name for archive in ARCHIVES.values())
        raise UserError(f"{archives} has neither the training nor the validation archive of ImageNet; expected {names}")
    if "val" in present and "devkit" not in present:
        raise UserError(f"{paths['devkit']} does not exist: it has the classes of the images in {paths['val'].name}")
    root = Path(out)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_room(present, root)
        if check:
            check_archives(present, root)
        synsets, labels = read_devkit(present["devkit"]) if "devkit" in present else ({}, [])
        counts = {}
        if "train" in present:
            counts["train"] = unpack_train(present["train"], root / "train", workers)
        if "val" in present:
            counts["val"] = unpack_val(present["val"], root / "val", [_synset(number, synsets) for number in labels], workers)
        if synsets:
            with atomic_write(root / "synset_words.txt") as file:
                file.writelines(f"{synset} {words}\n" for synset, words in sorted(synsets.values()))
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror or error}") from error
    return counts


def _check_room(present: dict[str, Path], root: Path) -> None:
    needed = sum(path.stat().st_size for key, path in present.items() if key != "devkit" and not (root / key).is_dir())
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(f"{root} has {free / 2**30:.1f} GiB free; the images need {needed / 2**30:.1f}")


def check_archives(present: dict[str, Path], root: Path) -> None:
    """Compare the digests of archives with those that are published.

    Raises:
        UserError: one differs; the message has both.
    """
    record = root / _CHECKED
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    for key, path in present.items():
        archive, status = ARCHIVES[key], path.stat()
        state = [str(path.resolve()), status.st_size, status.st_mtime_ns, archive.digest]
        if known.get(key) == state:
            continue
        found = digest_of(path, archive.algorithm)
        if found != archive.digest:
            raise UserError(
                f"{path} has the {archive.algorithm} {found}, that of {archive.name} is {archive.digest}: it is damaged, cut "
                "short, or another file; download it again"
            )
        known[key] = state
        with atomic_write(record) as file:
            json.dump(known, file)


def digest_of(path: Path, algorithm: str) -> str:
    """The digest of a file, in hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file, _bar(path.stat().st_size, f"checking {path.name}", "B", scale=True) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def read_devkit(path: Path) -> tuple[dict[int, tuple[str, str]], list[int]]:
    """What the devkit says: number of a class to its synset ("n01440764") and words, and the numbers of the validation images.

    Raises:
        UserError: it is damaged, or scipy is not installed, which reads its meta.mat.
    """
    wanted = {"meta.mat": b"", "ILSVRC2012_validation_ground_truth.txt": b""}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if name in wanted and member.isfile() and member.size < 1 << 26:
                    wanted[name] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read, it is damaged or cut short: {error}") from error
    if absent := [name for name, content in wanted.items() if not content]:
        raise UserError(f"{path} has no {absent[0]}: it is not ImageNet's devkit")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f'reading meta.mat of the devkit needs scipy: pip install "resnest_det[classify]" ({error})') from None
    try:
        rows = loadmat(io.BytesIO(wanted["meta.mat"]), squeeze_me=True)["synsets"]
        synsets = {int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"])) for row in rows if not row["num_children"]}
        labels = [int(line) for line in wanted["ILSVRC2012_validation_ground_truth.txt"].split()]
    except Exception as error:  # its reader raises nearly anything on damaged data
        raise UserError(f"{path}: its meta.mat or ground truth cannot be read: {' '.join(str(error).split())[:200]}") from error
    for synset, _ in synsets.values():
        if not _is_plain(synset):
            raise UserError(f"{path}: {synset!r} is not the name of a class")
    return synsets, labels


def _synset(number: int, synsets: dict[int, tuple[str, str]]) -> str:
    if number not in synsets:
        raise UserError(f"the devkit's ground truth has class {number}, which its meta.mat has not")
    return synsets[number][0]


def unpack_train(archive: Path, out: Path, workers: int) -> tuple[int, int]:
    """Unpack the tar of each class into a folder of its name; returns the number of classes and of images there are then.

    Raises:
        UserError: the archive is damaged or another one.
    """
    classes = [member for member in members_of(archive) if member.name.endswith(".tar")]
    if not classes:
        raise UserError(f"{archive} holds no tar for each class: it is not ImageNet's training archive")
    out.mkdir(parents=True, exist_ok=True)
    left = [member for member in classes if not (out / member.name.removesuffix(".tar")).is_dir()]
    tasks = [(str(archive), member, str(out / member.name.removesuffix(".tar"))) for member in left]
    _in_parallel(unpack_class, tasks, workers, _bar(len(classes), "unpacking classes", "class", done=len(classes) - len(left)))
    folders = [out / member.name.removesuffix(".tar") for member in classes]
    return len(folders), sum(len(os.listdir(folder)) for folder in folders)


def unpack_class(archive: str, member: Member, folder: str) -> int:
    """Unpack a tar that lies inside a tar into a folder, which is there only when all of it is; returns 1, one class.

    Raises:
        UserError: it is damaged.
    """
    unfinished = Path(folder).with_name(f".{Path(folder).name}{TEMPORARY_SUFFIX}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        with tarfile.open(archive, "r:") as outer, tarfile.open(fileobj=outer.extractfile(_info(member)), mode="r:") as inner:
            for image in inner:
                if not image.isfile() or not _is_plain(image.name):
                    raise UserError(f"{archive}: {member.name} holds {image.name!r}, expected images")
                content = inner.extractfile(image).read()
                if len(content) < image.size:
                    raise UserError(f"{archive} is cut short in {member.name}: {image.name}")
                (unfinished / image.name).write_bytes(content)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive}: {member.name} is damaged or cut short: {error}") from error
    unfinished.rename(folder)
    return 1


def unpack_val(archive: Path, out: Path, synsets: Sequence[str], workers: int) -> tuple[int, int]:
    """Unpack the flat archive into class folders; returns the number of classes and of images.

    Args:
        synsets: of the images, in the order of their names.

    Raises:
        UserError: the archive is damaged, or has another number of images than there are classes.
    """
    images = sorted((member for member in members_of(archive)), key=lambda member: member.name)
    if len(images) != len(synsets):
        raise UserError(f"{archive} holds {len(images)} images, but the devkit has the classes of {len(synsets)}")
    for synset in set(synsets):
        (out / synset).mkdir(parents=True, exist_ok=True)
    left = [
        (member, str(out / synset / member.name))
        for member, synset in zip(images, synsets)
        if _size(out / synset / member.name) != member.size
    ]
    tasks = [(str(archive), left[first : first + _IMAGES_A_TASK]) for first in range(0, len(left), _IMAGES_A_TASK)]
    _in_parallel(unpack_images, tasks, workers, _bar(len(images), "unpacking images", "image", done=len(images) - len(left)))
    return len(set(synsets)), len(images)


def unpack_images(archive: str, images: Sequence[tuple[Member, str]]) -> int:
    """Write some files of a tar, each whole or not at all; returns how many."""
    with open(archive, "rb") as file:
        for member, path in images:
            file.seek(member.offset)
            with atomic_write(path, "wb", sync=False) as out:
                out.write(file.read(member.size))
    return len(images)


def members_of(archive: Path) -> Iterator[Member]:
    """The files in a tar; only headers are read.

    Raises:
        UserError: it is damaged or cut short, or has names with folders.
    """
    length = archive.stat().st_size
    try:
        with tarfile.open(archive, "r:") as file:
            for member in file:
                if not member.isfile():
                    continue
                if not _is_plain(member.name):
                    raise UserError(f"{archive}: {member.name!r} is no name of a file without folders")
                if member.offset_data + member.size > length:
                    raise UserError(f"{archive} is cut short: {member.name} goes on to byte {member.offset_data + member.size}")
                yield Member(member.name, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} cannot be read, it is damaged or no tar file: {error}") from error


def _info(member: Member) -> tarfile.TarInfo:
    info = tarfile.TarInfo(member.name)
    info.size, info.offset_data, info.sparse = member.size, member.offset, None
    return info


def _is_plain(name: str) -> bool:
    return bool(name) and name.isprintable() and not name.startswith(".") and "/" not in name and "\\" not in name


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _in_parallel(function: Callable[..., int], tasks: Iterable[tuple], workers: int, bar: tqdm) -> None:
    tasks = list(tasks)
    with bar:
        if workers <= 1 or len(tasks) <= 1:
            for task in tasks:
                bar.update(function(*task))
            return
        with ProcessPoolExecutor(min(workers, len(tasks))) as pool:
            futures = [pool.submit(function, *task) for task in tasks]
            try:
                for future in as_completed(futures):
                    bar.update(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _bar(total: int, what: str, unit: str, *, done: int = 0, scale: bool = False) -> tqdm:
    return tqdm(total=total, initial=done, desc=what, unit=unit, unit_scale=scale, unit_divisor=1024, mininterval=1)
