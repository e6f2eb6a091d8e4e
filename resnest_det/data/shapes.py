"""The generated dataset: textured backgrounds with overlapping circles, squares, triangles and stars, as COCO files.

Instance annotations describe what is visible of an object: as a polygon where that is one piece, else run-length encoded.
Panoptic annotations (https://cocodataset.org/#format-data, item 4) add the background's textures as stuff.
"""

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from resnest_det.data.panoptic_png import encode_segment_ids, read_segment_ids
from resnest_det.data.polygons import clip_polygon, outline, rasterize
from resnest_det.errors import UserError

logger = logging.getLogger(__name__)

SPLITS = {"train": 1000, "val": 200}
THINGS = ("circle", "square", "triangle", "star")
STUFF = ("stripes", "checks", "speckles")

CLASS_SPLITS = {"train": 1600, "val": 400}  # of the images of one shape each

_SIDES = (80, 88, 96)
_RADII = (10.0, 24.0)
# What others leave of an object must be enough to tell it by.
_LEAST_VISIBLE = 0.6
# Of an image's only shape: its radius, and how far from the middle it is, both as shares of the image's side.
_SHARES_OF_SIDE = (0.28, 0.45)
_OFF_CENTER = 0.12


def instances_json(split: str) -> str:
    """Path of a split's instance annotations below the dataset's folder."""
    return f"annotations/instances_{split}.json"


def panoptic_json(split: str) -> str:
    """Path of a split's panoptic annotations below the dataset's folder; the PNG files are in panoptic_{split}."""
    return f"annotations/panoptic_{split}.json"


def ensure_shapes(root: Path) -> Path:
    """The dataset's folder below `root`, generated if it is not there; see `_ensure`."""
    return _ensure(root / "shapes", write_shapes)


def ensure_shape_classes(root: Path) -> Path:
    """The folder below `root` with one shape in each image, generated if it is not there; see `_ensure`."""
    return _ensure(root / "shape_classes", write_shape_classes)


def _ensure(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, made by `write` if it is not there.

    It appears complete or not at all: an interrupted run leaves nothing under its name, and of several processes that
    generate at once one wins with the same bytes.

    Raises:
        UserError: it cannot be written.
    """
    root = folder.parent
    if folder.is_dir():
        return folder
    unfinished = root / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            logger.info("Generating the %s dataset in %s", folder.name, folder)
            write(unfinished)
            try:
                unfinished.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write the {folder.name} dataset to {folder.absolute()}: {error.strerror or error}; "
            f"set DETECTRON2_DATASETS to a folder that can be written"
        ) from error
    return folder


def ensure_labels(folder: Path, split: str) -> Path:
    """The folder of a split's label PNG files inside that of the dataset, made of its panoptic ones if it is not there.

    Class i is THINGS[i], and after them STUFF; every pixel has one. The folder appears complete or not at all.

    Raises:
        UserError: it cannot be written, or a panoptic file is damaged.
    """
    labels = folder / f"labels_{split}"
    if labels.is_dir():
        return labels
    unfinished = folder / f".labels-{uuid.uuid4().hex}"
    try:
        unfinished.mkdir()
        try:
            _write_labels(folder, split, unfinished)
            try:
                unfinished.rename(labels)
            except OSError:
                if not labels.is_dir():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write the labels of the shapes dataset to {labels.absolute()}: {error.strerror or error}"
        ) from error
    return labels


def _write_labels(folder: Path, split: str, labels: Path) -> None:
    for annotation in json.loads((folder / panoptic_json(split)).read_text(encoding="utf-8"))["annotations"]:
        ids = read_segment_ids(str(folder / f"panoptic_{split}" / annotation["file_name"]))
        classes = np.zeros(1 + len(annotation["segments_info"]), dtype=np.uint8)
        for segment in annotation["segments_info"]:
            classes[segment["id"]] = segment["category_id"] - 1
        Image.fromarray(classes[ids]).save(labels / annotation["file_name"])


def write_shape_classes(folder: Path, splits: dict[str, int] = CLASS_SPLITS, side: int = 64, seed: int = 0) -> None:
    """Write images of one shape each into a new folder, as class folders SPLIT/SHAPE/NUMBER.jpg; the same for the same arguments.

    Args:
        splits: number of images of each split, of all classes together.
        side: of the images, in pixels.

    Raises:
        OSError: a file cannot be written.
    """
    size = (side, side)
    for number, (split, num_images) in enumerate(splits.items()):
        for name in THINGS:
            (folder / split / name).mkdir(parents=True)
        for image in range(num_images):
            generator = np.random.default_rng([seed, number, image])
            pixels, _ = _draw_background(size, generator)
            category = image % len(THINGS)
            radius = side * generator.uniform(*_SHARES_OF_SIDE)
            center = side * (0.5 + generator.uniform(-_OFF_CENTER, _OFF_CENTER, 2))
            mask = rasterize([_shape(category, size, center, radius, generator.uniform(0, 2 * np.pi))], size).astype(bool)
            _paint(pixels, mask, generator)
            pixels += generator.normal(0, 3, pixels.shape)
            picture = Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
            picture.save(folder / split / THINGS[category] / f"{image:05d}.jpg", quality=92)


def write_shapes(folder: Path, splits: dict[str, int] = SPLITS, seed: int = 0) -> None:
    """Write images, instance and panoptic annotations into a new folder; the same bytes for the same arguments.

    Args:
        splits: number of images of each split.

    Raises:
        OSError: a file cannot be written.
    """
    (folder / "annotations").mkdir(parents=True)
    for number, (split, num_images) in enumerate(splits.items()):
        _write_split(folder, split, [np.random.default_rng([seed, number, image]) for image in range(num_images)])


def _write_split(folder: Path, split: str, generators: list[np.random.Generator]) -> None:
    images, annotations, panoptic = [], [], []
    os.mkdir(folder / split)
    os.mkdir(folder / f"panoptic_{split}")
    for image_id, generator in enumerate(generators, start=1):
        pixels, objects, stuff = draw_scene(generator)
        height, width = pixels.shape[:2]
        file_name = f"{image_id:06d}.png"
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        Image.fromarray(pixels).save(folder / split / file_name)

        for category, visible, polygon in objects:
            entry = _instance(category + 1, visible, polygon)
            annotations.append(entry | {"id": len(annotations) + 1, "image_id": image_id})
        segments = [(category + 1, visible) for category, visible, _ in objects]
        segments += [(len(THINGS) + kind + 1, stuff == kind) for kind in range(len(STUFF)) if (stuff == kind).any()]
        ids = _segment_ids([mask for _, mask in segments])
        (folder / f"panoptic_{split}" / file_name).write_bytes(encode_segment_ids(ids, file_name))
        infos = [_segment_info(number, *segment) for number, segment in enumerate(segments, start=1)]
        panoptic.append({"image_id": image_id, "file_name": file_name, "segments_info": infos})

    things = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(THINGS, start=1)]
    stuffs = [{"id": i, "name": name, "supercategory": "texture"} for i, name in enumerate(STUFF, start=len(THINGS) + 1)]
    categories = [entry | {"isthing": 1} for entry in things] + [entry | {"isthing": 0} for entry in stuffs]
    info = {"description": "generated shapes", "version": "1"}
    for path, content in (
        (instances_json(split), {"annotations": annotations, "categories": things}),
        (panoptic_json(split), {"annotations": panoptic, "categories": categories}),
    ):
        with open(folder / path, "w", encoding="utf-8") as file:
            json.dump(content | {"info": info, "images": images}, file, sort_keys=True)


def _instance(category_id: int, visible: np.ndarray, polygon: np.ndarray | None) -> dict:
    encoded = mask_util.encode(np.asfortranarray(visible, dtype=np.uint8))
    if polygon is None:
        box = mask_util.toBbox(encoded).tolist()
        segmentation = {"size": list(visible.shape), "counts": encoded["counts"].decode()}
    else:
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        box = np.round([*low, *(high - low)], 2).tolist()
        segmentation = [polygon.reshape(-1).tolist()]
    area = int(visible.sum())
    return {"category_id": category_id, "bbox": box, "area": area, "iscrowd": 0, "segmentation": segmentation}


def _segment_info(segment_id: int, category_id: int, mask: np.ndarray) -> dict:
    box = [int(side) for side in mask_util.toBbox(mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)))]
    return {"id": segment_id, "category_id": category_id, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}


def _segment_ids(masks: list[np.ndarray]) -> np.ndarray:
    """Masks (H, W) bool numbered 1, 2, ... in one map, (H, W)."""
    ids = np.zeros(masks[0].shape, dtype=np.uint32)
    for segment_id, mask in enumerate(masks, start=1):
        ids[mask] = segment_id
    return ids


def draw_scene(generator: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray, np.ndarray | None]], np.ndarray]:
    """One image with its truth.

    Returns:
        pixels (H, W, 3) uint8 RGB; for each object its index in THINGS, the visible part (H, W) bool, and that part as a
        polygon (k, 2) or None where it is not one piece; and (H, W) int8, an index in STUFF where background is visible,
        else -1.
    """
    height, width = (int(side) for side in generator.choice(_SIDES, 2))
    size = (height, width)
    pixels, stuff = _draw_background(size, generator)
    categories: list[int] = []
    polygons: list[np.ndarray] = []
    whole: list[np.ndarray] = []
    visible: list[np.ndarray] = []
    wanted = int(generator.integers(3, 7))
    for _ in range(4 * wanted):
        if len(categories) == wanted:
            break
        category = int(generator.integers(len(THINGS)))
        polygon = _place(category, size, generator)
        mask = rasterize([polygon], size).astype(bool)
        remaining = [seen & ~mask for seen in visible]
        if mask.sum() < 80 or any(left.sum() < _LEAST_VISIBLE * all_.sum() for left, all_ in zip(remaining, whole)):
            continue
        categories.append(category)
        polygons.append(polygon)
        whole.append(mask)
        visible = [*remaining, mask]
        _paint(pixels, mask, generator)

    objects = []
    for category, polygon, mask, seen in zip(categories, polygons, whole, visible):
        objects.append((category, seen, polygon if (seen == mask).all() else outline(seen)))
        stuff[seen] = -1
    grain = generator.normal(0, 3, pixels.shape)
    return np.clip(np.round(pixels + grain), 0, 255).astype(np.uint8), objects, stuff


def _draw_background(size: tuple[int, int], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One texture, or two on the sides of a straight line: (H, W, 3) float64 and (H, W) int8."""
    kinds = generator.permutation(len(STUFF))[: 1 + int(generator.random() < 0.7)]
    y, x = np.mgrid[: size[0], : size[1]]
    angle = generator.uniform(0, 2 * np.pi)
    through = generator.uniform(0.3, 0.7, 2) * size
    beyond = (y - through[0]) * np.sin(angle) + (x - through[1]) * np.cos(angle) > 0
    pixels = np.zeros((*size, 3))
    stuff = np.zeros(size, dtype=np.int8)
    for kind, where in zip(kinds, (np.ones(size, dtype=bool), beyond)):
        light = _texture(STUFF[kind], size, generator)[:, :, None]
        first = generator.uniform(40, 215, 3)
        second = first + generator.choice([-1, 1]) * generator.uniform(30, 55, 3)
        pixels[where] = (first * (1 - light) + second * light)[where]
        stuff[where] = kind
    return pixels, stuff


def _texture(kind: str, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """(H, W) values between 0 and 1."""
    y, x = np.mgrid[: size[0], : size[1]]
    angle, period = generator.uniform(0, np.pi), generator.uniform(8, 20)
    along = (x * np.cos(angle) + y * np.sin(angle)) / period
    across = (y * np.cos(angle) - x * np.sin(angle)) / period
    if kind == "stripes":
        return 0.5 + 0.5 * np.sin(2 * np.pi * along)
    if kind == "checks":
        return (np.floor(along) + np.floor(across)) % 2
    coarse = generator.integers(0, 256, [int(side / 4) for side in size], dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)) / 255.0


def _place(category: int, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A shape's polygon (k, 2) at a random place, size and rotation, clipped at the image's border."""
    radius, rotation = generator.uniform(*_RADII), generator.uniform(0, 2 * np.pi)
    center = [generator.uniform(0.5 * radius, side - 0.5 * radius) for side in size[::-1]]
    return _shape(category, size, center, radius, rotation)


def _shape(category: int, size: tuple[int, int], center, radius: float, rotation: float) -> np.ndarray:
    """A shape's polygon (k, 2) around `center` (x, y), clipped at the image's border."""
    corners = {"circle": 36, "square": 4, "triangle": 3, "star": 10}[THINGS[category]]
    angles = rotation + 2 * np.pi * np.arange(corners) / corners
    distance = np.full(corners, radius)
    if THINGS[category] == "star":
        distance[1::2] *= 0.45
    polygon = center + distance[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Two decimals, as COCO's own polygons; and the last bits of a machine's cosine don't reach the files.
    pieces = clip_polygon(np.round(polygon, 2), size)
    return np.round(max(pieces, key=len), 2)


def _paint(pixels: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> None:
    """Fill a mask with a shaded color that stands out from what was there."""
    behind = pixels[mask].mean(axis=0)
    color = behind
    while np.linalg.norm(color - behind) < 90:
        color = generator.uniform(10, 245, 3)
    y, x = np.nonzero(mask)
    angle = generator.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    shade = 1 + generator.uniform(0, 0.25) * (2 * (along - along.min()) / max(float(np.ptp(along)), 1.0) - 1)
    pixels[mask] = color * shade[:, None]
