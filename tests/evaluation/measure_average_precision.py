"""How long the average precision of boxes and masks takes, and pycocotools beside it, on generated objects.

    python tests/evaluation/measure_average_precision.py --images 5000 --detections 100 --repeat 3

Both begin with the truth as a dict and the detections as a list of COCO results in memory, and end with the twelve figures of
boxes and the twelve of masks, which have to be equal to the last bit. They take turns, in a process with the settings of a run.
"""

import argparse
import os
import statistics
import time

import numpy as np
import pycocotools.mask as mask_util

from resnest_det.commands import keep_freed_memory
from resnest_det.commands.benchmark_data import by_pycocotools, by_this_package

HEIGHT, WIDTH, CATEGORIES = 480, 640, 80


def generate(images: int, detections: int) -> tuple[dict, list[dict]]:
    """Truth of 7 objects an image, ellipses as polygons, some of them crowds; detections near them and elsewhere."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    truth, found = [], []
    for image_id in range(1, images + 1):
        radii = np.exp(rng.uniform(np.log(6), np.log(120), (7, 2)))
        centers = rng.uniform(radii, np.array([WIDTH, HEIGHT]) - radii)
        categories = rng.integers(1, CATEGORIES + 1, 7)
        for center, radius, category in zip(centers, radii, categories.tolist()):
            outline = center + radius * circle
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [*(center - radius).tolist(), *(2 * radius).tolist()],
                    "area": float(np.pi * radius.prod()),
                    "iscrowd": int(rng.random() < 0.02),
                    "segmentation": [outline.round(2).ravel().tolist()],
                }
            )
        which = rng.integers(0, 7, detections)
        near = radii[which] * np.exp(0.15 * rng.standard_normal((detections, 2)))
        moved = centers[which] + 0.1 * radii[which] * rng.standard_normal((detections, 2))
        outlines = (moved[:, None] + near[:, None] * circle).reshape(detections, -1)
        encoded = mask_util.frPyObjects(outlines.tolist(), HEIGHT, WIDTH)
        labels = np.where(rng.random(detections) < 0.7, categories[which], rng.integers(1, CATEGORIES + 1, detections))
        scores = rng.random(detections).round(3)  # with ties
        for mask, label, score, center, radius in zip(encoded, labels.tolist(), scores.tolist(), moved, near):
            found.append(
                {
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [*(center - radius).tolist(), *(2 * radius).tolist()],
                    "score": score,
                    "segmentation": {"size": [HEIGHT, WIDTH], "counts": mask["counts"].decode()},
                }
            )
    content = {
        "images": [{"id": image_id, "height": HEIGHT, "width": WIDTH} for image_id in range(1, images + 1)],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, CATEGORIES + 1)],
        "annotations": truth,
    }
    return content, found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    truth, found = generate(options.images, options.detections)
    contenders = {"this package": by_this_package, "pycocotools": by_pycocotools}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(options.repeat):
        figures = {}
        for name, count in contenders.items():
            # pycocotools writes into what it is given.
            given = {key: [dict(each) for each in entries] for key, entries in truth.items()}, [dict(each) for each in found]
            start, cpu = time.perf_counter(), time.process_time()
            figures[name] = count(*given)
            seconds[name].append((time.perf_counter() - start, time.process_time() - cpu))
            print(f"{name}: {seconds[name][-1][0]:.2f} s, of CPU {seconds[name][-1][1]:.2f} s", flush=True)
            del given
        own, theirs = figures.values()
        assert own == theirs, [(a, b) for a, b in zip(own, theirs) if a != b]
    for index, what in enumerate(("time", "CPU time")):
        ratios = [theirs[index] / own[index] for own, theirs in zip(*seconds.values())]
        print(f"{what}: pycocotools takes {statistics.median(ratios):.1f} times that of this package, median of {len(ratios)}")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
