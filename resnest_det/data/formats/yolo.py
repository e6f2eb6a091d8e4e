"""YOLO: one text file an image, a line an object, in fractions of the image's sides, and the names of the classes in data.yaml.

    class x_center y_center width height          a box; a sixth number, a confidence, is not looked at
    class x1 y1 x2 y2 x3 y3 ...                   a polygon

An outline that comes back to the point where it began ends a part there: so objects of several parts are written.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from resnest_det.data.annotation_files import Image
from resnest_det.data.formats.collector import Collector, number
from resnest_det.data.formats.labels import ABSENT, LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import Pictures, plain, walk
from resnest_det.data.formats.sizes import sizes_of
from resnest_det.data.formats.text import read_lines, read_text
from resnest_det.errors import UserError, shown

NAMES_FILES = ("classes.txt", "obj.names", "predefined_classes.txt", "labels.txt", "classes.names")
# Other texts that are beside labels.
NO_LABELS = (*NAMES_FILES, "readme.txt", "notes.txt", "requirements.txt")
_LISTS = ("train", "val", "valid", "test")  # of images, unless an image has this name
SPLIT_KEYS = ("train", "val", "test")
_MOST_CLASSES, _LONGEST_YAML = 100_000, 2**20


@dataclass(frozen=True)
class DataYaml:
    """A data.yaml: names of classes; of each split the folders and lists of its images; whether keypoints follow the boxes."""

    names: list[str]
    splits: dict[str, list[str]]
    keypoints: bool


def read_yolo(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read a split of a data.yaml, or a folder of label files.

    Raises:
        UserError: a line is no object, or has a class beyond the names; an image cannot be read. Names file and line.
    """
    if os.path.isfile(files.path):
        data = read_data_yaml(files.path)
        images = _images_of(data, files, pictures, notes)
    else:
        data, images = DataYaml(_names_near(files), {}, keypoints=False), pictures.names
    labels, left = _match(images, files, pictures)
    root = os.path.dirname(files.path) if os.path.isfile(files.path) else files.path
    for path in left:
        notes.add(ABSENT, os.path.relpath(path, root))
    unlabelled = [name for name in images if name not in labels]
    if unlabelled:
        notes.add("told: images without a label file, taken as images without objects", unlabelled[0], len(unlabelled))
    objects = {name: list(_objects(labels[name], data.keypoints)) for name in images if name in labels}
    names = data.names
    if not names:
        last = max((class_id for found in objects.values() for _, class_id, _ in found), default=-1)
        names = [str(index) for index in range(last + 1)]
        if names:
            notes.add("told: classes called by their numbers, as there is no data.yaml or classes.txt", files.path, len(names))
    collector = Collector(files, notes, names)
    for name, size in zip(images, sizes_of(map(pictures.path, images))):
        image = collector.image(name, size, pictures.path(name))
        for line, class_id, values in objects.get(name, ()):
            if class_id >= len(names):
                raise UserError(
                    f"{labels[name]}: line {line}: class {class_id}, but there are {len(names)} names, for 0 to "
                    f"{len(names) - 1}: are the labels those of another list?"
                )
            _add(collector, image, names[class_id], values, f"{os.path.relpath(labels[name], root)}, line {line}")
    return collector.labels()


def read_data_yaml(path: str) -> DataYaml:
    """Names and splits of a data.yaml; folders as they are found on this machine.

    Raises:
        UserError: it is no YAML, or has no list of different names; names the file and the key.
    """
    content = _content_of(path)
    splits = {}
    for split in SPLIT_KEYS:
        entry = content.get(split, content.get("valid") if split == "val" else None)
        entries = [entry] if isinstance(entry, str) else entry or []
        if not isinstance(entries, list) or not all(isinstance(each, str) for each in entries):
            raise UserError(f"{path}: {split} must be a folder, a text file or a list of them, not {shown(entry)}")
        found = [_on_this_machine(each, content.get("path"), path, split) for each in entries if each.strip()]
        if found:
            splits[split] = found
    return DataYaml(_names_of(content, path), splits, "kpt_shape" in content)


def _content_of(path: str) -> dict:
    text = read_text(path)
    if len(text) > _LONGEST_YAML:
        raise UserError(f"{path}: {len(text)} characters; a data.yaml has at most {_LONGEST_YAML}")
    try:
        # A few lines of aliases of aliases stand for gigabytes.
        alias = next((token for token in yaml.scan(text) if isinstance(token, yaml.AliasToken)), None)
        if alias is not None:
            raise UserError(f"{path}: line {alias.start_mark.line + 1}: the alias *{alias.value}, which names have no use for")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise UserError(f"{path}: {line}malformed YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a data.yaml: holds {shown(content)}")
    return content


def _names_of(content: dict, path: str) -> list[str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{path}: names must be of the numbers 0 to {len(names) - 1}, not of {shown(list(names))}")
        names = [names[index] for index in range(len(names))]
    if names is None and isinstance(count, int) and 0 < count <= _MOST_CLASSES:
        names = [str(index) for index in range(count)]
    if not isinstance(names, list) or not names or len(names) > _MOST_CLASSES:
        raise UserError(f'{path}: "names" must be a list of the classes, not {shown(names)}')
    if isinstance(count, int) and count != len(names):
        raise UserError(f"{path}: nc is {count}, but there are {len(names)} names")
    if not all(isinstance(name, (str, int, float)) for name in names):
        # YAML reads `no` and `off` as false, and a date as one.
        wrong = next(name for name in names if not isinstance(name, (str, int, float)))
        raise UserError(f'{path}: "names": {shown(wrong)} is no text; write it in quotes')
    if any(isinstance(name, bool) for name in names):
        raise UserError(f'{path}: "names": YAML reads yes, no, on and off as true or false; write them in quotes')
    return _different([str(name).strip() for name in names], path)


def _different(names: list[str], path: str) -> list[str]:
    seen: set[str] = set()
    twice = next((name for name in names if name in seen or seen.add(name)), None)
    if twice is not None:
        raise UserError(f"{path}: two classes are called {shown(twice)}; give them names of their own")
    return names


def _on_this_machine(entry: str, base: object, path: str, split: str) -> str:
    """The folder or list that a data.yaml names, which may have been written on another machine or by another tool."""
    here = os.path.dirname(os.path.abspath(path))
    entry = entry.strip().replace("\\", "/")
    # Roboflow writes ../train/images for a folder beside the file; ultralytics counts from `path`, wherever it looks.
    bases = [os.path.join(here, base)] if isinstance(base, str) else []
    shorter = entry
    while shorter.startswith(("../", "./", "/")):
        shorter = shorter.lstrip("/") if shorter.startswith("/") else shorter.partition("/")[2]
    parts = [part for part in shorter.split("/") if part]
    tails = ["/".join(parts[first:]) for first in range(len(parts))]
    tried = [os.path.join(folder, entry) for folder in (*bases, here)] + [os.path.join(here, tail) for tail in tails]
    for candidate in tried:
        if os.path.exists(candidate):
            return os.path.normpath(candidate)
    raise UserError(f"{path}: {split} is {entry}, which is neither at {os.path.normpath(tried[0])} nor below {here}")


def folder_of_images(data: DataYaml, split: str, path: str) -> str:
    """The folder that all images of a split are below."""
    folders = [each if os.path.isdir(each) else os.path.dirname(os.path.abspath(path)) for each in data.splits[split]]
    return os.path.commonpath([os.path.abspath(folder) for folder in folders]) if len(folders) > 1 else folders[0]


def _images_of(data: DataYaml, files: LabelFiles, pictures: Pictures, notes: Notes) -> list[str]:
    """The images of a split, or without one of all of them."""
    wanted = set()
    for split in [files.split] if files.split is not None else data.splits:
        if split not in data.splits:
            raise UserError(f"{files.path}: has no {split}")
        for entry in data.splits[split]:
            if os.path.isdir(entry):
                below = os.path.join(os.path.relpath(entry, pictures.root), "").replace(os.sep, "/")
                wanted |= {name for name in pictures.names if below == "./" or name.startswith(below)}
                continue
            for count, line in enumerate(read_lines(entry), start=1):
                if line.strip():
                    where = f"{entry}: line {count}"
                    name = pictures.find(line.strip().removeprefix("./"), where)
                    if name is None:
                        notes.add("left out: listed images that are absent", f"{where}, {line.strip()[:200]}")
                    else:
                        wanted.add(name)
    return [name for name in pictures.names if name in wanted]


def label_files(folder: str) -> list[str]:
    """The text files at and below a folder that may be labels."""
    return [
        os.path.join(parent, name)
        for parent, names in walk(folder)
        for name in names
        if name.lower().endswith(".txt") and name.lower() not in NO_LABELS
    ]


def _match(images: Sequence[str], files: LabelFiles, pictures: Pictures) -> tuple[dict[str, str], list[str]]:
    """The label file of each image that has one, and the label files that no image has."""
    candidates = {name: list(_label_stems(name, files, pictures)) for name in images}
    folders = {os.path.dirname(stem) for stems in candidates.values() for stem in stems}
    if os.path.isdir(files.path):
        folders |= {os.path.dirname(path) for path in label_files(files.path)}
    found: dict[str, str] = {}
    for folder in sorted(folders):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            stem, suffix = os.path.splitext(name)
            if suffix.lower() == ".txt" and name.lower() not in NO_LABELS and not name.startswith("."):
                found.setdefault(plain(os.path.join(folder, stem)), os.path.join(folder, name))
    labels, owners = {}, {}
    for name, stems in candidates.items():
        path = next((found[plain(stem)] for stem in stems if plain(stem) in found), None)
        if path is not None:
            if owners.setdefault(path, name) != name:
                raise UserError(f"{path}: images {owners[path]} and {name} of {pictures.root} would both have these labels")
            labels[name] = path
    # Of a split, the folders of the labels may be those of other splits, too.
    whole = os.path.isdir(files.path)
    stems_of_all = set() if whole else {plain(stem) for name in pictures.names for stem in _label_stems(name, files, pictures)}

    def is_other(stem: str) -> bool:
        return stem in stems_of_all or os.path.basename(stem) in _LISTS

    return labels, [path for stem, path in found.items() if path not in owners and not is_other(stem)]


def _label_stems(name: str, files: LabelFiles, pictures: Pictures) -> Iterator[str]:
    """Where the label file of an image may be, without suffix: in the folder of labels, in labels/ for images/, beside it."""
    stem = os.path.splitext(name)[0]
    if os.path.isdir(files.path):
        yield os.path.normpath(os.path.join(files.path, stem))
    path = os.path.normpath(pictures.path(stem))
    parts = path.split(os.sep)
    for index in range(len(parts) - 2, -1, -1):
        if plain(parts[index]) == "images":
            yield os.sep.join([*parts[:index], "labels", *parts[index + 1 :]])
            break
    yield path
    if os.path.isfile(files.path):
        yield os.path.normpath(os.path.join(os.path.dirname(files.path), "labels", stem))


def _names_near(files: LabelFiles) -> list[str]:
    """Names of the classes in a text or YAML beside the labels or in one of the two folders above, or none."""
    folder = os.path.abspath(files.path)
    for _ in range(3):
        for name in NAMES_FILES:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                return _different([line.strip() for line in read_lines(path) if line.strip()], path)
        for name in sorted(os.listdir(folder)):
            if name.lower().endswith((".yaml", ".yml")) and b"names" in _head(os.path.join(folder, name)):
                path = os.path.join(folder, name)
                return _names_of(_content_of(path), path)
        folder = os.path.dirname(folder)
    return []


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2**20)
    except OSError:
        return b""


def _objects(path: str, keypoints: bool) -> Iterator[tuple[int, int, list[float]]]:
    """Line, class and numbers of each object of a label file."""
    for line, text in enumerate(read_lines(path), start=1):
        words = text.split()
        if not words:
            continue
        where = f"{path}: line {line}"
        values = [number(word, f"{where}: number {place}") for place, word in enumerate(words, start=1)]
        if values[0] < 0 or values[0] != int(values[0]):
            raise UserError(f"{where}: the class must be a whole number from 0, not {words[0]}")
        if keypoints:
            values = values[:5]
        count = len(values)
        if not (count in (5, 6) or (count >= 7 and count % 2 == 1)):
            raise UserError(
                f"{where}: {count} numbers; an object has a class and four numbers of a box, or a class and three or more points"
            )
        yield line, int(values[0]), values[1:]


def _add(collector: Collector, image: Image, name: str, values: list[float], place: str) -> None:
    width, height = image.width, image.height
    if len(values) > 5:
        # Rounded, so that coordinates of four decimals come back as they were before they were divided by the sides.
        scaled = [round(value * (height if index % 2 else width), 4) for index, value in enumerate(values)]
        collector.polygons(image, name, parts_of_outline(scaled), place)
        return
    if len(values) == 5:
        collector.notes.add("told: numbers after boxes, taken for confidences and not looked at", place)
    x, y, w, h = values[:4]
    if w < 0 or h < 0:
        collector.notes.add("left out: boxes of negative width or height", place)
        return
    corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
    corners = [round(corner, 4) for corner in corners]
    collector.box(image, name, corners, place)


def outline_of_parts(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Polygons as one outline: it goes to each of the others and back by lines without width, so that its area is theirs."""
    first = list(polygons[0])
    if len(polygons) == 1:
        return first
    start = first[:2]
    outline = [*first, *start]
    for polygon in polygons[1:]:
        outline += [*polygon, *polygon[:2], *start]
    return outline


def parts_of_outline(outline: Sequence[float]) -> list[list[float]]:
    """The polygons that `outline_of_parts` has joined, and one closed by its first point without that."""
    points = list(zip(outline[::2], outline[1::2]))
    parts: list[list[tuple[float, float]]] = []
    part: list[tuple[float, float]] = []
    for point in points:
        if not part and parts and point == points[0]:
            continue  # the way back
        if len(part) >= 3 and point == part[0]:
            parts.append(part)
            part = []
        else:
            part.append(point)
    polygons = [[value for point in each for value in point] for each in parts]
    closed = len(polygons) == 1 and not part
    # Other outlines may cross their first point, too.
    return polygons if closed or (polygons and outline_of_parts(polygons) == list(outline)) else [list(outline)]
