"""Small folders of labels, in the layout of each tool."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.datasets import noise

SIZE = (40, 60)  # of every image, height and width


def write_images(folder: Path, names: Sequence[str], size: tuple[int, int] = SIZE) -> None:
    """Images of noise, with folders of their own where a name has them."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Pillow goes by the suffix.
        Image.fromarray(noise(*size, seed)).save(path, format="PNG" if path.suffix.lower() == ".png" else "JPEG")


def voc(
    *objects: tuple, filename: str = "a.jpg", size: tuple[int, int] | None = SIZE, database: str = "Unknown", more: str = ""
) -> str:
    """A VOC file of objects (name, xmin, ymin, xmax, ymax)."""
    sides = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    written = "".join(
        f"<object><name>{name}</name><difficult>0</difficult>\n<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox>{more}</object>\n"
        for name, x0, y0, x1, y1 in objects
    )
    return (
        f"<annotation>\n<filename>{filename}</filename>\n<source><database>{database}</database></source>{sides}\n"
        f"{written}</annotation>\n"
    )


def write_voc(folder: Path, files: dict[str, str], images: Sequence[str] | None = None) -> None:
    """VOC files by their stem, and an image for each or those named."""
    (folder / "Annotations").mkdir(parents=True)
    for stem, text in files.items():
        (folder / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
    write_images(folder / "JPEGImages", [f"{stem}.jpg" for stem in files] if images is None else images)


def write_yolo(
    folder: Path, files: dict[str, str], names: Sequence[str] = ("cat", "dog"), images: Sequence[str] | None = None
) -> None:
    """YOLO's label files by their stem, classes.txt, and an image for each or those named."""
    for stem, text in files.items():
        path = folder / "labels" / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    write_images(folder / "images", [f"{stem}.jpg" for stem in files] if images is None else images)


def write_coco_export(folder: Path, **changes) -> Path:
    """A COCO file beside images/ with a.jpg and b.jpg; of `changes`, lists of the file."""
    write_images(folder / "images", ["a.jpg", "b.jpg"])
    height, width = SIZE
    content = {
        "images": [{"id": i, "file_name": f"{n}.jpg", "height": height, "width": width} for i, n in enumerate("ab")],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "bbox": [5, 5, 20, 10], "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]]},
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "segmentation": []},
        ],
    }
    path = folder / "result.json"
    path.write_text(json.dumps(content | changes))
    return path


def boxes(labels) -> list[tuple]:
    """(file name, class, x, y, width, height) of what was read, sorted."""
    content = labels.content
    images = {image.id: str(image.file_name) for image in content.images}
    names = {category.id: str(category.name) for category in content.categories}
    return sorted(
        (images[each.image_id], names[each.category_id], *np.round(each.bbox, 3).tolist()) for each in content.annotations
    )
