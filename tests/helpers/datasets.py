"""Small datasets, written on the spot."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resnest_det.data.shapes import write_shapes


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_coco(
    parent: Path,
    images: Sequence[tuple[int, int, int]],
    annotations: Sequence[dict],
    categories: Sequence[tuple[int, str]] = ((1, "cat"), (2, "dog")),
    name: str = "made",
) -> tuple[str, str]:
    """Write images (id, height, width) of noise, and a COCO file of them.

    Annotations get an id, category 1 and iscrowd 0 where they say nothing.

    Returns:
        Annotation file and image folder.
    """
    folder = parent / name
    folder.mkdir()
    for image_id, height, width in images:
        Image.fromarray(noise(height, width, image_id)).save(folder / f"{image_id}.png")
    content = {
        "images": [{"id": i, "height": h, "width": w, "file_name": f"{i}.png"} for i, h, w in images],
        "annotations": [{"id": n, "category_id": 1, "iscrowd": 0} | a for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": category} for i, category in categories],
    }
    json_file = parent / f"{name}.json"
    json_file.write_text(json.dumps(content))
    return str(json_file), str(folder)


def write_panoptic_shapes(folder: Path, images: dict[str, int], without_instances: Sequence[str] = ()) -> list[str]:
    """Write generated shapes into `folder`/shapes.

    Args:
        images: how many of each split.
        without_instances: splits whose objects are to be taken from the panoptic file.

    Returns:
        Flags of a command that register each split as FOLDER_SPLIT, after the last part of `folder`: a name is registered once.
    """
    shapes = folder / "shapes"
    write_shapes(shapes, images)
    flags = []
    for split in images:
        paths = [f"{shapes}/annotations/panoptic_{split}.json", f"{shapes}/panoptic_{split}", f"{shapes}/{split}"]
        if split not in without_instances:
            paths.append(f"{shapes}/annotations/instances_{split}.json")
        flags += ["--register-panoptic", f"{folder.name}_{split}={','.join(paths)}"]
    return flags
