"""Masks in PNG files of the images' names: of objects, of classes, or both as VOC and CVAT have them.

- SegmentationObject beside SegmentationClass: a color of the first is an object, the second says its class.
- One folder, with labelmap.txt (name:r,g,b) or classes.txt (a name for each value; the first may be the background's): colors
  are classes, and each connected part is an object.
- One folder and no list: each value is an object of the class "object", or where there is but one value in all files, each
  connected part. Black is the background; VOC's color for borders counts for nothing.
"""

import os

import numpy as np

from resnest_det.data.formats.collector import Collector
from resnest_det.data.formats.labels import ABSENT, LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import Pictures, plain, walk
from resnest_det.data.formats.text import read_lines
from resnest_det.data.image import open_image, upright_size
from resnest_det.errors import UserError

_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
_ENDINGS = ("_mask", "-mask", "_label", "_labels", "_seg", "_instances", "_gt")
_BACKGROUND = ("background", "_background_", "__background__", "bg")
_VOC_BORDER = 224 + 192 * 256 + 192 * 65536
_MOST_OBJECTS, _MOST_COLORS = 10_000, 2_000


def read_masks(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read the masks of a folder; which of the three kinds they are is seen by what is there.

    Raises:
        UserError: a mask is no image, has not the size of its image or far too many colors, or a color that is no class.
    """
    objects, classes = _folders(files.path)
    names = _names(files.path)
    masks = _files(objects or classes)
    if objects and classes and not names:
        raise UserError(f"{files.path}: SegmentationClass needs a labelmap.txt with a line name:r,g,b for each class")
    single = names is None and len({code for path in masks for code in _codes_in(path)}) <= 1
    collector = Collector(files, notes, None if names is None else list(dict.fromkeys(names.values())))
    if names is None:
        notes.add('told: masks without a list of classes, taken for objects of the class "object"', files.path, len(masks))
    for path in masks:
        where, stem = os.path.basename(path), os.path.splitext(os.path.basename(path))[0]
        found = pictures.find(stem, path, stem_only=True)
        for ending in _ENDINGS if found is None else ():
            if stem.lower().endswith(ending):
                found = found or pictures.find(stem[: -len(ending)], path, stem_only=True)
        if found is None:
            notes.add(ABSENT, where)
            continue
        codes = _read(path)
        height, width = upright_size(pictures.path(found))
        if (height, width) != codes.shape:
            raise UserError(
                f"{path}: {codes.shape[1]} x {codes.shape[0]} pixels (width x height), but image {pictures.path(found)} has "
                f"{width} x {height}"
            )
        image = collector.image(found, codes.shape, path)
        class_of = _read(os.path.join(classes, os.path.basename(path))) if objects and classes else codes
        if class_of.shape != codes.shape:
            raise UserError(f"{path}: not of the size of its file in {classes}")
        found_objects, found_codes = 0, np.unique(codes[(codes != 0) & (codes != _VOC_BORDER)]).tolist()
        if len(found_codes) > _MOST_COLORS:
            raise UserError(f"{path}: {len(found_codes)} colors; is it a mask, not a photograph?")
        for code in found_codes:
            mask = codes == code
            name = "object" if names is None else _class(int(np.bincount(class_of[mask].astype(np.int64)).argmax()), names, path)
            if name is None:
                continue
            for part in [mask] if objects or not (single or names is not None) else connected(mask):
                found_objects += 1
                if found_objects > _MOST_OBJECTS:
                    raise UserError(f"{path}: more than {_MOST_OBJECTS} objects; is it a mask, not a photograph?")
                collector.mask(image, name, part, f"{where}, color {_shown(code)}")
    return collector.labels()


def _class(code: int, names: dict[int, str], path: str) -> str | None:
    if code in names:
        return names[code] if plain(names[code]) not in _BACKGROUND else None
    raise UserError(f"{path}: color {_shown(code)} is none of the {len(names)} classes")


def _shown(code: int) -> str:
    return str(code) if code < 256 else f"{code % 256},{code // 256 % 256},{code // 65536}"


def _folders(path: str) -> tuple[str | None, str]:
    """The folder of masks of objects, if there is one, and that of masks of classes."""
    by_name = {plain(os.path.basename(parent)): parent for parent, _ in walk(path)}
    objects, classes = by_name.get("segmentationobject"), by_name.get("segmentationclass")
    if objects is not None:
        return (objects, classes) if classes is not None else (None, objects)
    return None, classes or path


def _files(folder: str) -> list[str]:
    found = [os.path.join(parent, name) for parent, names in walk(folder) for name in names if name.lower().endswith(_SUFFIXES)]
    if not found:
        raise UserError(f"{folder}: there are no masks in it")
    return found


def _names(path: str) -> dict[int, str] | None:
    """Names of classes by their colors, r + 256 g + 65536 b, or by their values."""
    folder = os.path.abspath(path)
    for _ in range(2):
        colors = os.path.join(folder, "labelmap.txt")
        if os.path.isfile(colors):
            return _labelmap(colors)
        listed = os.path.join(folder, "classes.txt")
        if os.path.isfile(listed):
            lines = [line.strip() for line in read_lines(listed) if line.strip()]
            first = 0 if lines and plain(lines[0]) in _BACKGROUND else 1
            return dict(enumerate(lines, start=first))
        folder = os.path.dirname(folder)
    return None


def _labelmap(path: str) -> dict[int, str]:
    names: dict[int, str] = {}
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip() or text.startswith("#"):
            continue
        name, _, rest = text.partition(":")
        channels = rest.partition(":")[0].split(",")
        if len(channels) != 3 or not all(channel.strip().isdecimal() and int(channel) < 256 for channel in channels):
            raise UserError(f"{path}: line {line}: must be name:red,green,blue:parts:actions")
        names[sum(int(channel) << shift for channel, shift in zip(channels, (0, 8, 16)))] = name.strip()
    return names


def _codes_in(path: str) -> list[int]:
    codes = _read(path)
    return np.unique(codes[(codes != 0) & (codes != _VOC_BORDER)])[:2].tolist()


def _read(path: str) -> np.ndarray:
    """A mask's values (H, W) int64; of colors r + 256 g + 65536 b. A palette counts as its colors only where it is VOC's."""
    try:
        with open_image(path) as image:
            voc = plain(os.path.basename(os.path.dirname(path))).startswith("segmentation")
            if image.mode == "P" and voc or image.mode in ("RGBA", "CMYK", "LA"):
                image = image.convert("RGB")
            values = np.asarray(image.convert("L") if image.mode == "1" else image).astype(np.int64)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise UserError(f"{path}: cannot be read, it is damaged or not an image: {' '.join(str(error).split())}") from error
    return values if values.ndim == 2 else values[:, :, 0] + 256 * values[:, :, 1] + 65536 * values[:, :, 2]


def connected(mask: np.ndarray, *, corners: bool = True) -> list[np.ndarray]:
    """The parts of a mask (H, W) bool whose pixels touch, at a side or, with `corners`, at a corner, from top to bottom."""
    apart = 0 if corners else 1
    padded = np.pad(mask.astype(np.int8), ((0, 0), (1, 1)))
    turns = np.diff(padded, axis=1)
    rows, starts = np.nonzero(turns == 1)
    ends = np.nonzero(turns == -1)[1]
    owner = list(range(len(rows)))

    def root(run: int) -> int:
        while owner[run] != run:
            owner[run] = owner[owner[run]]
            run = owner[run]
        return run

    first_of_row = np.searchsorted(rows, np.arange(mask.shape[0] + 1)).tolist()
    for row in range(1, mask.shape[0]):
        above, here = first_of_row[row - 1], first_of_row[row]
        while above < first_of_row[row] and here < first_of_row[row + 1]:
            if starts[above] + apart <= ends[here] and starts[here] + apart <= ends[above]:
                low, high = sorted((root(above), root(here)))
                owner[high] = low
            if ends[above] < ends[here]:
                above += 1
            else:
                here += 1
    parts: dict[int, np.ndarray] = {}
    for run in range(len(rows)):
        part = parts.setdefault(root(run), np.zeros(mask.shape, dtype=bool))
        part[rows[run], starts[run] : ends[run]] = True
        if len(parts) > _MOST_OBJECTS:
            break
    return list(parts.values())
