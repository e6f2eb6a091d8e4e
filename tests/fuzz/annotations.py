"""Change annotation files at random, and see that reading one gives a dataset or one line.

    python -m tests.fuzz.annotations --count 10000 --seed 0

reads that many changed files of each kind, under the limits of `tests/fuzz/limits.py`, and prints those that ended in anything
else. Every fourth is damaged in its bytes, the others have one to four other values. A short run of it is in the suite.
"""

import copy
import json
import logging
import random
from pathlib import Path

import numpy as np
import PIL.Image
import pycocotools.mask as mask_util

from resnest_det.data.coco import Dataset, load_coco_instances
from resnest_det.data.panoptic import load_coco_panoptic
from tests.fuzz.checkpoints import damaged
from tests.fuzz.limits import command, problem_of

# What stands for text that json.dumps would not write.
RAW = {
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "@digits": "9" * 5000,
    "@huge": "1e400",
    "@minus": "-0",
}
VALUES = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        255,
        256,
        65536,
        2**24,
        2**31,
        2**32,
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64,
        2**70,
        -(2**63),
    ),
    *(10**400, -(10**400), 0.5, -0.0, 1e-320, 1e10, 1e300, -1e300, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "x",
        "1",
        "-1",
        "0.5",
        "1e999",
        "nan",
        "null",
        "true",
        "\ud800",
        "\x1b[2J",
        "a\nb",
        "\u202e",
        "a\0b",
        "../../x",
        "/x",
    ),
    *("9" * 5000, "W" * 100_000, "~", "oops1", "0" * 500),
    *([], [None], [[]], [1], [1, 2], ["a"] * 6, [[0, 0, 1e300, 0, 1e300, 1e300]], [[[0, 0]] * 6], [2**70], [2**62] * 4, [1.5]),
    *([[0, 0]] * 3, [[0.0, 0.0] * 50_000], [[-1e8, 0, 1e8, 0, 1e8, 1e8]], [float("nan")] * 4, [10**400] * 4, [[10**400] * 6]),
    *({}, {"a": 1}, {"size": [32, 48], "counts": []}, {"size": [2**31, 2**31], "counts": [2**62]}, {"size": 5, "counts": "x"}),
    *({"size": [32, 48], "counts": [2**63, -(2**63), 1536]}, {"size": [32, 48], "counts": "\ud800"}, {"counts": [1536]}),
    *RAW,
]


def instances() -> dict:
    """A small file with every form of mask."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 48} for i in (1, 2)]
    box = {"bbox": [4, 4, 16, 12], "category_id": 3, "area": 192.0, "iscrowd": 0}
    masks = [
        [[4, 4, 20, 4, 20, 16, 4, 16]],
        [[4, 4, 12, 4, 12, 16], [12.5, 4, 20, 4, 20.0, 16]],
        {"size": [32, 48], "counts": [132, 12, 20, 12, 1360]},
        {"size": [32, 48], "counts": _compressed()},
    ]
    annotations = [{"id": i, "image_id": 1 + i % 2, **box, "segmentation": mask} for i, mask in enumerate(masks, start=1)]
    annotations[2]["iscrowd"] = 1
    categories = [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}]
    return {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": categories}


def _compressed() -> str:
    mask = np.zeros((32, 48), dtype=np.uint8, order="F")
    mask[4:16, 4:20] = 1
    return mask_util.encode(mask)["counts"].decode()


def panoptic() -> dict:
    """A small panoptic file with things, stuff and a crowd."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 48} for i in (1, 2)]
    segments = [
        {"id": 1 + category, "category_id": category, "area": 100, "iscrowd": crowd, "bbox": [0, 0, 10, 10]}
        for category, crowd in ((3, 0), (7, 1), (9, 0))
    ]
    annotations = [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in (1, 2)]
    categories = [
        {"id": 3, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
        {"id": 7, "name": "dog", "isthing": 1},
        {"id": 9, "name": "sky", "isthing": 0, "color": [9, 2, 3]},
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


WHOLE = {"instances": instances, "images alone": instances, "panoptic": panoptic, "both": panoptic}


def read(kind: str, path: Path) -> Dataset:
    """What reading the file `path` gives; beside it lie the PNG files and, for "both", an instance file."""
    if kind in ("instances", "images alone"):
        return load_coco_instances("d", str(path), str(path.parent), keep_truth=kind == "images alone")
    beside = str(path.parent / "instances.json") if kind == "both" else None
    return load_coco_panoptic("d", str(path), str(path.parent), str(path.parent), beside, keep_truth=True)


def changed(content: dict, numbers: random.Random) -> bytes:
    """The file with one to four other values: put in, left out, repeated, exchanged, or made by a step."""
    content = copy.deepcopy(content)
    for _ in range(numbers.randint(1, 4)):
        places = list(_places(content))
        if not places:
            break
        holder, key = numbers.choice(places)
        change = numbers.randrange(10)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif change == 2:
            other, place = numbers.choice(places)
            holder[key] = copy.deepcopy(other[place])
        elif change == 3 and isinstance(holder[key], (int, float)) and abs(holder[key]) < 1e300:
            holder[key] = holder[key] * numbers.choice((-1, 2, 0.5, 10, 1e6)) + numbers.choice((0, 1, -1, 0.25))
        else:
            holder[key] = copy.deepcopy(numbers.choice(VALUES))
    text = json.dumps(content)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode(errors="surrogatepass")


def _places(value):
    """(holder, key) of everything inside a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)) and len(value[key]) < 100:
            yield from _places(value[key])


def prepare(folder: Path) -> None:
    """The files that lie beside a changed one."""
    (folder / "instances.json").write_text(json.dumps(instances()))
    for image in (1, 2):
        PIL.Image.new("RGB", (48, 32)).save(folder / f"{image}.png")


def file_of(kind: str, seed: int, index: int) -> bytes:
    """The changed file of that number."""
    numbers = random.Random(f"{kind} {seed} {index}")
    whole = WHOLE[kind]()
    return damaged(json.dumps(whole).encode(), numbers) if index % 4 == 3 else changed(whole, numbers)


def run(count: int, seed: int, folder: Path, kinds=tuple(WHOLE)) -> list[str]:
    """Read `count` changed files of each kind in `folder`; the problems, with what makes the file again."""
    prepare(folder)
    problems = []
    for kind in kinds:
        path = folder / f"{kind}.changed"
        path.write_text(json.dumps(WHOLE[kind]()))
        read(kind, path)  # what is not changed is read
        for index in range(count):
            path.write_bytes(file_of(kind, seed, index))
            if problem := problem_of(lambda kind=kind, path=path: read(kind, path), Dataset):
                problems.append(f"{kind}, seed {seed}, file {index}: {problem}")
    return problems


def main() -> None:
    logging.getLogger("resnest_det").setLevel(logging.ERROR)  # what was left out is told of almost every file
    command(__doc__, "files of each kind", len(WHOLE), run)


if __name__ == "__main__":
    main()
