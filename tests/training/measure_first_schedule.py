"""`train --data DIR --model NAME` with nothing else, beside a small search by hand at the same cost. Not a test.

    python -m tests.training.measure_first_schedule WORK start  # first: a detector for the others to begin with
    python -m tests.training.measure_first_schedule WORK SET [SETTING ...] [--coco FOLDER] [--seed 1]

SET is shapes, tiny, huge, rare or coco; WORK gets the data, the runs and results.jsonl. Without SETTING all of HAND run after
the default; a run that is in results.jsonl is not run again. `coco` takes COCO's images from the folder --coco.

A setting changes the default's config.yaml. Its cost is pixels, and Muon's own part of a step: one that costs twice as much gets
half the steps, with warm-up and evaluations in proportion; CPU seconds, which are printed beside, say how well that holds. A
run's figure is the box AP of its best evaluation, as `model_best.pth` is kept.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from resnest_det.commands.train_net import main as train
from resnest_det.configuration.reading import load_config
from resnest_det.data.shapes import THINGS, draw_scene
from tests.helpers.tiny_run import read_metrics

MODEL = "mask_rcnn_ResNeSt14_FPN_shapes"
FROM_NOTHING = ("shapes", "coco")  # the others begin with the detector of `start`, as users do with a published one
OTHERS = ("disc", "box", "wedge", "spark")  # so that the layers of its classes begin anew
# name: images of train and val, scenes in a row, pixels of a scene (0: its own), names of THINGS, share of images with a star
SETS = {
    "shapes": ({"train": 40, "val": 100}, 1, 0, THINGS, None),
    "tiny": ({"train": 30, "val": 50}, 4, 24, OTHERS, None),
    "huge": ({"train": 12, "val": 20}, 2, 800, OTHERS, None),
    "rare": ({"train": 60, "val": 100}, 1, 0, ("plain", "plain", "plain", "star"), {"train": 1 / 15, "val": 1 / 3}),
}
# setting: factors of learning rate, batch, side of the images, and anchors
HAND = {
    "rate x0.5": (0.5, 1, 1, 1),
    "rate x2": (2, 1, 1, 1),
    "rate x4": (4, 1, 1, 1),
    "batch x0.5": (0.5, 0.5, 1, 1),
    "batch x2": (1, 2, 1, 1),
    "size x0.7": (1, 1, 0.7, 0.7),
    "size x1.4": (1, 1, 1.4, 1.4),
    "anchors x0.7": (1, 1, 1, 0.7),
}
# What a step of Muon costs besides its images, in images: 8 in place of 4, or 0.7 of the side, took 1.5 and 0.72 times as long.
MUONS_OWN = 3.4


def write_set(folder: Path, name: str) -> None:
    """One of SETS, as folders of JPEGs and COCO's files."""
    splits, across, cell, names, stars = SETS[name]
    classes = list(dict.fromkeys(names))
    for number, (split, count) in enumerate(splits.items()):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        generator = np.random.default_rng([sorted(SETS).index(name), number])
        for image_id in range(1, count + 1):
            wanted = None if stars is None else bool(image_id <= round(stars[split] * count))
            pixels, objects = _mosaic(generator, across, cell, wanted)
            Image.fromarray(pixels).save(folder / split / f"{image_id:04d}.jpg", quality=95)
            images.append({"id": image_id, "file_name": f"{image_id:04d}.jpg", "height": len(pixels), "width": pixels.shape[1]})
            for category, outline in objects:
                low, high = outline.min(axis=0), outline.max(axis=0)
                entry = {"image_id": image_id, "category_id": classes.index(names[category]) + 1, "iscrowd": 0}
                entry |= {"bbox": [*low.tolist(), *(high - low).tolist()], "area": float((high - low).prod())}
                entry |= {"segmentation": [outline.reshape(-1).tolist()]} if name == "shapes" else {}
                annotations.append(entry | {"id": len(annotations) + 1})
        _write_annotations(folder, split, images, annotations, classes)


def _mosaic(generator: np.random.Generator, across: int, cell: int, star: bool | None) -> tuple[np.ndarray, list]:
    """An image of `across` x `across` scenes with (class, outline) of its objects; with a star or without, if that is wanted."""
    rows, found = [], []
    for row in range(across):
        cells = []
        for column in range(across):
            while True:
                pixels, objects, _ = draw_scene(generator)
                if star is None or star == any(THINGS[category] == "star" for category, *_ in objects):
                    break
            scale = np.array([cell / pixels.shape[1], cell / pixels.shape[0]]) if cell else np.ones(2)
            cells.append(np.asarray(Image.fromarray(pixels).resize((cell, cell))) if cell else pixels)
            for category, seen, outline in objects:
                y, x = np.nonzero(seen)
                corners = np.array(
                    [[x.min(), y.min()], [x.max() + 1, y.min()], [x.max() + 1, y.max() + 1], [x.min(), y.max() + 1]]
                )
                outline = corners if outline is None else outline
                found.append((category, np.round(outline * scale + [column * cell, row * cell], 2)))
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows), found


def write_coco(folder: Path, coco: Path, short: int = 160, least: float = 0.16) -> None:
    """COCO's training images, their shorter side `short` pixels, and their boxes of more than `least` of that side, as one class.

    They are those of the evaluation, too: what so few teach a small network about other photographs is below 1 of AP.
    """
    content = json.loads((coco / "annotations/instances_train2017.json").read_text())
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        images, scales = [], {}
        for entry in content["images"]:
            with Image.open(coco / "train2017" / entry["file_name"]) as picture:
                scale = scales[entry["id"]] = short / min(picture.size)
                small = picture.convert("RGB").resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
            small.save(folder / split / entry["file_name"], quality=95)
            images.append({"id": entry["id"], "file_name": entry["file_name"], "width": small.width, "height": small.height})
        annotations = []
        for entry in content["annotations"]:
            scale = scales[entry["image_id"]]
            kept = {key: entry[key] for key in ("id", "image_id", "iscrowd")} | {"category_id": 1}
            x, y, width, height = (value * scale for value in entry["bbox"])
            annotations.append(kept | {"bbox": [x, y, width, height], "area": entry["area"] * scale**2})
        area = (least * short) ** 2
        annotations = [each for each in annotations if not each["iscrowd"] and each["bbox"][2] * each["bbox"][3] > area]
        _write_annotations(folder, split, images, annotations, ["object"])


def _write_annotations(folder: Path, split: str, images: list, annotations: list, classes: list) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    (folder / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def changed(default: Path, setting: str) -> list[str]:
    """The keys that make of the default's configuration that of a setting, at the same cost."""
    rate, batch, size, anchors = HAND[setting]
    cfg = load_config(default / "config.yaml")
    images = max(1, round(cfg.SOLVER.IMS_PER_BATCH * batch))
    own = MUONS_OWN if cfg.SOLVER.OPTIMIZER == "MUON" else 0
    cost = (own + images * size**2) / (own + cfg.SOLVER.IMS_PER_BATCH)
    values = {
        "SOLVER.IMS_PER_BATCH": images,
        "SOLVER.BASE_LR": cfg.SOLVER.BASE_LR * rate,
        "INPUT.MIN_SIZE_TRAIN": tuple(round(side * size) for side in cfg.INPUT.MIN_SIZE_TRAIN),
        "INPUT.MAX_SIZE_TRAIN": round(cfg.INPUT.MAX_SIZE_TRAIN * size),
        "INPUT.MIN_SIZE_TEST": round(cfg.INPUT.MIN_SIZE_TEST * size),
        "INPUT.MAX_SIZE_TEST": round(cfg.INPUT.MAX_SIZE_TEST * size),
        "MODEL.ANCHOR_GENERATOR.SIZES": [[side * anchors for side in level] for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES],
    }
    for key in ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"):
        node, _, leaf = key.partition(".")
        values[key] = max(1, round(cfg[node][leaf] / cost))
    return [word for key, value in values.items() for word in (key, str(value))]


def run(arguments: list[str]) -> float:
    """CPU seconds of a training, in a process of its own that need not import."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = multiprocessing.get_context("fork").Process(target=train, args=([*arguments, "MODEL.DEVICE", "cpu"],))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"train {' '.join(arguments)} ended with {process.exitcode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def figures(out: Path) -> dict:
    evaluations = [line for line in read_metrics(out) if "bbox/AP" in line]
    kept = "segm/AP" if "segm/AP" in evaluations[0] else "bbox/AP"
    best = max(evaluations, key=lambda line: line[kept])
    return {"AP": best["bbox/AP"], "AP50": best["bbox/AP50"], "at": best["iteration"] + 1, "evaluations": len(evaluations)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("set", choices=["start", "coco", *SETS])
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    start = args.work / "start"
    if args.set == "start":
        os.environ["DETECTRON2_DATASETS"] = str(args.work)
        sgd = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.08", "SOLVER.MOMENTUM", "0.9"]
        keys = [*sgd, "SOLVER.MAX_ITER", "600", "TEST.REPORT", "False", "OUTPUT_DIR", str(start)]
        print(run(["--config-file", MODEL, *keys]), figures(start))
        return
    data = args.work / f"data_{args.set}"
    if not data.exists():
        write_coco(data, args.coco) if args.set == "coco" else write_set(data, args.set)
    results = args.work / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    default = args.work / f"{args.set}-{args.seed}-default"
    for setting in ("default", *(args.settings or HAND)):
        if any((line["set"], line["setting"], line["seed"]) == (args.set, setting, args.seed) for line in done):
            continue
        out = args.work / f"{args.set}-{args.seed}-{setting.replace(' ', '')}"
        last = ["OUTPUT_DIR", str(out)]
        if setting == "default":
            weights = [] if args.set in FROM_NOTHING else ["MODEL.WEIGHTS", str(start / "model_final.pth")]
            keys = ["--data", str(data), "--model", MODEL, "SEED", str(args.seed), *weights, *last]
        else:
            keys = ["--config-file", str(default / "config.yaml"), *changed(default, setting), *last]
        line = {"set": args.set, "setting": setting, "seed": args.seed, "cpu": round(run(keys)), **figures(out)}
        print(line, flush=True)
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
