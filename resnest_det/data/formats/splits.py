"""A folder of images and labels, as people have it: its format and its splits are found by looking."""

import logging
import os
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from resnest_det.data.formats.boxes_csv import splits_in
from resnest_det.data.formats.coco_export import image_root_in
from resnest_det.data.formats.collector import commonest_spellings
from resnest_det.data.formats.labels import KINDS, LabelFiles, counts_by_name
from resnest_det.data.formats.packed_labels import counts_of, is_one_file, packed_labels
from resnest_det.data.formats.pictures import plain, walk
from resnest_det.data.formats.reading import VAL_FRACTION, read_labels
from resnest_det.data.formats.recognise import (
    PER_IMAGE,
    Found,
    files_of_kind,
    folders_of_images,
    look_at_file,
    look_into,
    split_of,
)
from resnest_det.data.formats.yolo import folder_of_images, read_data_yaml
from resnest_det.errors import UserError, nearest

logger = logging.getLogger(__name__)

# A folder of this name has the images, whatever is beside it.
_IMAGES = ("images", "jpegimages")
# Beside a folder of this name.
_ANNOTATIONS = ("annotations", "annotation", "labels", "label", "json", "xml")


def find_splits(path: str, kind: str | None = None, images: str | None = None, seed: int = 0) -> dict[str, LabelFiles]:
    """The splits of a folder, or of a file with labels: "train" and "val", and "test" where there is one.

    Recognised are train/, val/ or valid/ and test/ folders of any format, at any depth (Roboflow, ultralytics, COCO), the splits
    of a data.yaml, files named by their split (instances_train2017.json), VOC's ImageSets/Main and the column "split" of a CSV.
    Of a single set one image in five becomes "val", with the classes in the same proportions. All splits have the same classes in
    the same order. Everything is read here, and what was found is logged; COCO files are not parsed again to train on them.

    Args:
        kind: of `labels.KINDS`; None: recognised.
        images: the folder with the images; None: looked for below `path`.
        seed: of the draw of a single set's parts.

    Returns:
        What `resnest_det.data.catalog.register` takes, by the name of the split.

    Raises:
        UserError: nothing or several formats are recognised, a split is there twice, or see `read_labels`.
    """
    found = _sets(path, kind, images)
    test = {"test": found["test"]} if "test" in found else {}
    if None in found:
        found, single = {}, found[None]
    elif "train" in found and "val" not in found:
        single = found["train"]
    elif "train" in found:
        found, single = {"train": found["train"], "val": found["val"]}, None
    else:
        raise UserError(f"{path}: has {' and '.join(map(str, found))}, but nothing to train on: expected train")
    if single is not None:
        if single.kind == "panoptic":
            raise UserError(
                f"{single.path}: a panoptic file by itself is not split; give one for training and one for evaluation"
            )
        found = {"train": replace(single, part=("train", seed)), "val": replace(single, part=("val", seed))}
    found |= test
    if any(files.kind == "panoptic" for files in found.values()):
        return found
    read = {name: _look_at(files) for name, files in found.items()}
    classes = _classes(read)
    if single is not None:
        logger.info(
            "%s: one set without splits, so %d of 100 images are for evaluation, drawn with seed %d",
            single.path,
            round(100 * VAL_FRACTION),
            seed,
        )
    _tell(read, classes)
    return {name: replace(files, classes=classes) for name, files in found.items()}


def find_labels(path: str, kind: str | None = None, images: str | None = None, split: str | None = None) -> LabelFiles:
    """The one set of labels in a file or folder, or of several that of `split`.

    Raises:
        UserError: there are several and no `split`, or not this one; or see `find_splits`.
    """
    found = _sets(path, kind, images)
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split in found:
        return found[split]
    names = ", ".join(str(name) for name in found if name)
    raise UserError(f"{path}: has {names or 'no splits'}; give one of them as split=NAME" if names else f"{path}: has no splits")


def _sets(path: str, kind: str | None, images: str | None) -> dict[str | None, LabelFiles]:
    """Sets of labels by their split, None for one without."""
    if kind is not None and kind not in KINDS:
        near = nearest(kind, KINDS, count=1)
        raise UserError(f"{kind!r} is no format of labels{f', perhaps {near[0]!r}' if near else ''}; formats: {', '.join(KINDS)}")
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist")
    if images is not None and not os.path.isdir(images):
        raise UserError(f"{images} is not a folder of images")
    path = os.path.normpath(path)
    if os.path.isfile(path):
        if path.lower().endswith((".zip", ".tar", ".gz", ".7z", ".rar")) and not path.lower().endswith(".json.gz"):
            raise UserError(f"{path}: an archive; unpack it, and give the folder")
        kind = kind or look_at_file(path)
        if kind is None:
            raise UserError(f"{path}: labels of no format that is known ({', '.join(KINDS)}); --from names one")
        return _of_file(Found(kind, path), None, images or _root_near(path), images)
    looked = look_into(path)
    given, kind = kind, kind or _one_kind(looked, path)
    found = [each for each in looked if each.kind == kind] or (files_of_kind(path, kind) if given else [])
    if not found:
        raise UserError(f"{path}: there are no {kind} labels in it")
    # A data.yaml without splits only has the names.
    listing = [each for each in found if each.path.lower().endswith((".yaml", ".yml"))]
    found = [each for each in found if each not in listing]
    listing = [each for each in listing if read_data_yaml(each.path).splits]
    if listing:
        found = _nearest_to_top(listing)
    if kind in PER_IMAGE and not listing:
        return _of_folders(found, kind, path, images)
    by_split: dict[str | None, list[Found]] = {}
    for each in found:
        by_split.setdefault(split_of(os.path.relpath(each.path, path), with_stem=True), []).append(each)
    if len(by_split) > 1:
        by_split.pop(None, None)
    sets: dict[str | None, LabelFiles] = {}
    for split, several in by_split.items():
        sets |= _of_file(_the_one(several, split, path), split, images or path, images)
    return sets


def _one_kind(found: list[Found], path: str) -> str:
    kinds = list(dict.fromkeys(each.kind for each in found))
    # What is there beside others on purpose: COCO's panoptic files beside instances, VOC's masks beside boxes.
    for extra in ("masks", "panoptic"):
        if len(kinds) > 1 and extra in kinds:
            kinds.remove(extra)
    if len(kinds) == 1:
        return kinds[0]
    if not kinds:
        raise UserError(f"{path}: labels of no format that is known ({', '.join(KINDS)})")
    examples = [f"{kind} ({next(os.path.relpath(each.path, path) for each in found if each.kind == kind)})" for kind in kinds]
    raise UserError(f"{path}: has labels in several formats, {', '.join(examples)}; --from names the one that is meant")


def _nearest_to_top(found: list[Found]) -> list[Found]:
    depth = min(each.path.count(os.sep) for each in found)
    return [each for each in found if each.path.count(os.sep) == depth]


def _the_one(several: list[Found], split: str | None, folder: str) -> Found:
    if len(several) > 1:
        # COCO has files of keypoints and of stuff beside that of the instances.
        named = [each for each in several if "instances" in plain(os.path.basename(each.path))]
        several = named if len(named) == 1 else several
    if len(several) > 1:
        names = [os.path.relpath(each.path, folder) for each in several]
        what = f"for {split}" if split else "without a split in their names"
        raise UserError(f"{folder}: {len(names)} files {what}, {', '.join(names[:4])}; give the one that is meant")
    return several[0]


def _of_file(found: Found, split: str | None, root: str, images: str | None) -> dict[str | None, LabelFiles]:
    if found.path.lower().endswith((".yaml", ".yml")):
        data = read_data_yaml(found.path)
        if not data.splits:
            raise UserError(f"{found.path}: has no train, val or test")
        sets = {
            name: LabelFiles(found.path, "yolo", images or folder_of_images(data, name, found.path), name) for name in data.splits
        }
        # Written so where nobody has split the images: the keys must be there.
        same = len(sets) > 1 and len({tuple(entries) for entries in data.splits.values()}) == 1
        return {None: next(iter(sets.values()))} if same else sets
    if found.kind == "csv" and split is None:
        splits = splits_in(found.path)
        if splits:
            return {name: LabelFiles(found.path, "csv", images or root, name) for name in splits}
    own = image_root_in(found.path) if found.kind == "coco" else None
    return {
        split: LabelFiles(
            found.path,
            found.kind,
            images or own or _images_of(split or split_of(os.path.basename(found.path), with_stem=True), root),
        )
    }


def _of_folders(found: list[Found], kind: str, folder: str, images: str | None) -> dict[str | None, LabelFiles]:
    """Sets of a format with a label file for each image: by the folders that these are in."""
    by_split: dict[str | None, set[str]] = {}
    for each in found:
        parent = each.path if kind == "masks" else os.path.dirname(each.path)
        split = split_of(os.path.join(os.path.relpath(parent, folder), "x"), with_stem=False)
        by_split.setdefault(split, set()).add(parent)
    if len(by_split) > 1 and None in by_split:
        left = sorted(by_split.pop(None))[0]
        logger.warning("%s: left out labels outside of the splits, in %s", folder, left)
    sets = {}
    for split, folders in by_split.items():
        common = os.path.commonpath(list(folders))
        sets[split] = LabelFiles(common, kind, images or _images_of(split, folder))
    if kind == "voc" and set(sets) == {None}:
        lists = _image_sets(folder)
        sets = {split: replace(sets[None], split=path) for split, path in lists.items()} if "train" in lists else sets
    return sets


def _images_of(split: str | None, folder: str) -> str:
    """The folder that all images of a split are below; of all images, where none are in a folder of the split."""
    folders = folders_of_images(folder)
    own = [each for each in folders if split_of(os.path.join(os.path.relpath(each, folder), "x"), with_stem=False) == split]
    named = [each for each in own if plain(os.path.relpath(each, folder).split(os.sep)[0]) in _IMAGES]
    return os.path.commonpath(named or own or folders or [folder])


def _root_near(path: str) -> str:
    """The folder of a file; where it is one of annotations, that above."""
    folder = os.path.dirname(os.path.abspath(path))
    return os.path.dirname(folder) if plain(os.path.basename(folder)) in _ANNOTATIONS else folder


def _image_sets(folder: str) -> dict[str, str]:
    """VOC's lists of images by their split."""
    for parent, names in walk(folder):
        if plain(os.path.basename(parent)) in ("main", "imagesets"):
            lists = {os.path.splitext(name)[0].lower(): os.path.join(parent, name) for name in names if name.endswith(".txt")}
            if "train" not in lists and "trainval" in lists:
                lists["train"] = lists["trainval"]
            found = {split: lists[split] for split in ("train", "val", "test") if split in lists}
            if found:
                return found
    return {}


class _Looked(NamedTuple):
    """What the labels of a split have: objects of each class, classes without any among them, and how many images and objects."""

    files: LabelFiles
    counts: Counter
    images: int
    objects: int
    listed: bool


def _look_at(files: LabelFiles) -> _Looked:
    if is_one_file(files):  # which then need not be parsed again to train on it
        instances, _ = packed_labels(files)
        return _Looked(files, counts_of(instances), len(instances.image_ids), len(instances.annotations), listed=True)
    labels = read_labels(files)
    content = labels.content
    return _Looked(files, counts_by_name(content), len(content.images), len(content.annotations), labels.listed)


def _classes(read: dict[str, _Looked]) -> tuple[str, ...]:
    """The classes of all splits: listed ones in the order of the first split's list, typed ones sorted."""
    names = dict.fromkeys(name for looked in read.values() for name in looked.counts)
    if all(looked.listed for looked in read.values()):
        return tuple(names)
    counts = Counter(dict.fromkeys(names, 0))
    for looked in read.values():
        counts.update(looked.counts)
    return tuple(sorted(set(commonest_spellings(counts).values())))


def _tell(read: dict[str, _Looked], classes: tuple[str, ...]) -> None:
    for name, looked in read.items():
        logger.info(
            "%s: %s labels in %s, %d images, %d objects",
            name,
            looked.files.kind,
            looked.files.path,
            looked.images,
            looked.objects,
        )
        absent = [each for each in classes if not looked.counts[each]]
        if absent and len(absent) < len(classes):
            few = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
            logger.warning("%s: has no object of %d of %d classes: %s", name, len(absent), len(classes), few)
    if not read["train"].objects:
        raise UserError(f"{read['train'].files.path}: no object in {read['train'].images} images to train on")
