"""Small COCO datasets made on the spot."""

import json

import numpy as np
import pytest
from PIL import Image


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def write_coco(tmp_path):
    """write_coco(images=[(id, height, width)], annotations=[...], categories=[...]) -> (json file, image folder).

    Annotations get an id, category 1 and iscrowd 0 where they say nothing.
    """

    def write(images, annotations, categories=((1, "cat"), (2, "dog")), name="made"):
        folder = tmp_path / name
        folder.mkdir()
        for image_id, height, width in images:
            Image.fromarray(noise(height, width, image_id)).save(folder / f"{image_id}.png")
        content = {
            "images": [{"id": i, "height": h, "width": w, "file_name": f"{i}.png"} for i, h, w in images],
            "annotations": [{"id": n, "category_id": 1, "iscrowd": 0} | a for n, a in enumerate(annotations, start=1)],
            "categories": [{"id": i, "name": category} for i, category in categories],
        }
        json_file = tmp_path / f"{name}.json"
        json_file.write_text(json.dumps(content))
        return str(json_file), str(folder)

    return write
