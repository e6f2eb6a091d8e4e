"""How long panoptic evaluation takes on generated PNG files of COCO's size.

    python tests/evaluation/measure_panoptic_speed.py --images 5000 FOLDER

The files are generated in FOLDER on the first run, which takes some minutes, and used again on later ones. Where the panoptic API
(github.com/cocodataset/panopticapi) can be imported, its own loop in one process is measured too.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from PIL import Image

from resnest_det.data.annotation_files import PanopticFile, read_annotation_file
from resnest_det.data.json_files import read_json
from resnest_det.data.panoptic_png import encode_segment_ids
from resnest_det.evaluation.panoptic_quality import panoptic_quality

CATEGORIES = [{"id": i + 1, "name": f"class {i}", "isthing": int(i < 80)} for i in range(133)]
SIZES = ((480, 640), (427, 640), (640, 480))


def generate(folder, images, processes):
    for name in ("truth", "prediction"):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
    contents = [{"images": [], "annotations": [], "categories": CATEGORIES} for _ in range(2)]
    with ProcessPoolExecutor(processes) as pool:
        for image_id, annotations in enumerate(pool.map(partial(generate_image, folder), range(images), chunksize=16)):
            height, width = SIZES[image_id % 3]
            for content, annotation in zip(contents, annotations):
                content["images"].append({"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.jpg"})
                content["annotations"].append(annotation)
    for name, content in zip(("truth", "prediction"), contents):
        with open(f"{folder}/{name}.json", "w") as file:
            json.dump(content, file)


def generate_image(folder, image_id):
    """Truth: 5 to 21 regions with curved borders, one of them void. Prediction: the same with borders moved."""
    rng = np.random.default_rng(image_id)
    height, width = SIZES[image_id % 3]
    count = rng.integers(5, 22)
    field = rng.random((count, height // 32, width // 32), dtype=np.float32)
    moved = field + 0.25 * rng.random(field.shape, dtype=np.float32)
    ids = rng.choice(2**24 - 1, size=count, replace=False) + 1
    category_of = dict(zip(ids.tolist(), rng.integers(1, len(CATEGORIES) + 1, count).tolist()))
    annotations = []
    for name, values in (("truth", field), ("prediction", moved)):
        half = [np.asarray(Image.fromarray(v).resize((width // 2, height // 2), Image.Resampling.BICUBIC)) for v in values]
        region = Image.fromarray(np.stack(half).argmax(axis=0).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        segment_ids = np.where(np.arange(count) == 0, 0 if name == "truth" else ids, ids)[np.asarray(region)]
        file_name = f"{image_id:012d}.png"
        content = encode_segment_ids(segment_ids, file_name)
        if name == "prediction":
            with open(f"{folder}/{name}/{file_name}", "wb") as file:
                file.write(content)
        else:  # as Pillow writes it, which COCO's truth comes from
            Image.open(io.BytesIO(content)).save(f"{folder}/{name}/{file_name}")
        present, areas = np.unique(segment_ids, return_counts=True)
        segments = [
            {"id": i, "category_id": category_of[i], "iscrowd": 0, "area": area}
            for i, area in zip(present.tolist(), areas.tolist())
            if i
        ]
        annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
    return annotations


def panoptic_api_loop(folder):
    """Mean PQ by the panoptic API, in one process."""
    from panopticapi.evaluation import pq_compute_single_core

    contents = []
    for name in ("truth", "prediction"):
        with open(f"{folder}/{name}.json") as file:
            contents.append(json.load(file)["annotations"])
    categories = {category["id"]: category for category in CATEGORIES}
    with contextlib.redirect_stdout(None):
        counts = pq_compute_single_core(0, list(zip(*contents)), f"{folder}/truth", f"{folder}/prediction", categories)
    return float(counts.pq_average(categories, isthing=None)[0]["pq"])


def by_this_package(folder):
    truth = read_annotation_file(f"{folder}/truth.json", PanopticFile)
    predictions = {annotation["image_id"]: annotation for annotation in read_json(f"{folder}/prediction.json")["annotations"]}
    return panoptic_quality(truth, f"{folder}/truth", predictions, f"{folder}/prediction")["All"]["pq"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("--images", type=int, default=5000)
    options = parser.parse_args()
    folder = options.folder
    if not os.path.exists(f"{folder}/prediction.json"):
        generate(folder, options.images, os.cpu_count() or 1)
    own = "this package"
    contenders = {own: partial(by_this_package, folder)}
    if importlib.util.find_spec("panopticapi"):
        contenders["panoptic API, one process"] = partial(panoptic_api_loop, folder)
    seconds = {}
    for name, count in contenders.items():
        start, cpu = time.perf_counter(), sum(os.times()[:4])
        quality = count()
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.1f} s, of CPU {sum(os.times()[:4]) - cpu:.1f} s, PQ {100 * quality!r}", flush=True)
    for name in list(contenders)[1:]:
        print(f"{own} takes {seconds[own] / seconds[name]:.2f} of the time of {name}")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
