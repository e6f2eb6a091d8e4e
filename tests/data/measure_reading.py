"""How long reading a generated annotation file of COCO's size takes, and how much memory: first, again, eight processes at once.

    python -m tests.data.measure_reading FOLDER [--images 118287] [--annotations 1100000]

The file is generated in FOLDER on the first run, and used again on later ones. The cache is a folder of FOLDER, emptied before
the first reading. Memory is what a process has more than after its imports: at its peak, and at the end with what it shares with
others divided among them (PSS).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIZES = ((480, 640), (427, 640), (640, 480), (640, 427))
PROCESSES = 8


def generate(path: Path, images: int, annotations: int) -> None:
    """Outlines of 17 points on average, two decimals, some objects in pieces, one in a hundred a crowd with run lengths."""
    rng = np.random.default_rng(0)
    sizes = [SIZES[each] for each in rng.integers(0, len(SIZES), images).tolist()]
    ids = (rng.choice(5 * images, images, replace=False) + 1).tolist()
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "w") as file:
        address = "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg"
        listed = [
            {"license": 3, "file_name": f"{i:012d}.jpg", "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg"}
            | {"height": height, "width": width, "date_captured": "2013-11-14 11:18:45", "flickr_url": address, "id": i}
            for i, (height, width) in zip(ids, sizes)
        ]
        categories = [{"supercategory": "thing", "id": i, "name": f"class {i}"} for i in range(1, 81)]
        file.write(f'{{"images": {json.dumps(listed)}, "categories": {json.dumps(categories)}, "annotations": [')
        for number, image in enumerate(rng.integers(0, images, annotations).tolist(), start=1):
            height, width = sizes[image]
            size = rng.uniform(8, 0.6 * np.array([width, height]))
            corner = rng.uniform(0, [width, height] - size)
            crowd = rng.random() < 0.01
            if crowd:
                ends = np.sort(rng.integers(0, height * width, 40))
                segmentation = {"counts": np.diff([0, *ends, height * width]).tolist(), "size": [height, width]}
            else:
                segmentation = [outline(rng, corner, size) for _ in range(1 if rng.random() < 0.8 else rng.integers(2, 4))]
            entry = {"segmentation": segmentation, "area": round(0.6 * size.prod(), 5), "iscrowd": int(crowd)}
            entry |= {"image_id": ids[image], "bbox": [*corner.round(2).tolist(), *size.round(2).tolist()]}
            entry |= {"category_id": int(rng.integers(1, 81)), "id": number}
            file.write((", " if number > 1 else "") + json.dumps(entry))
        file.write("]}")
    os.replace(unfinished, path)


def outline(rng: np.random.Generator, corner: np.ndarray, size: np.ndarray) -> list[float]:
    points = max(3, int(rng.gamma(2, 8.5)))
    angles, radii = np.sort(rng.uniform(0, 2 * np.pi, points)), rng.uniform(0.6, 1, points)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return (corner + size / 2 * (1 + around)).round(2).reshape(-1).tolist()


def measure(json_file: str) -> None:
    """Print the figures of one reading in this process as JSON."""
    from resnest_det.data.coco import load_coco_instances
    from resnest_det.data.instance_records import objects_of

    def memory(name: str) -> float:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20

    before = memory("Pss:"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start, cpu = time.perf_counter(), time.process_time()
    dataset = load_coco_instances("measured", json_file, "/nowhere", keep_truth=True)
    figures = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before[1]
    start = time.process_time()
    objects = objects_of(dataset.records)
    for number in range(0, len(dataset.records), max(1, len(dataset.records) // 2000)):
        dataset.records[number]
    figures["cpu of columns and of 2,000 records"] = time.process_time() - start
    figures["share at the end"] = memory("Pss:") - before[0]
    print(json.dumps({name: round(value, 3) for name, value in figures.items()} | {"objects": len(objects.label)}), flush=True)
    sys.stdin.readline()  # until all have measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--images", type=int, default=118287)
    parser.add_argument("--annotations", type=int, default=1_100_000)
    options = parser.parse_args()
    path, cache = options.folder / f"{options.images}_{options.annotations}.json", options.folder / "cache"
    options.folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        generate(path, options.images, options.annotations)
    time.sleep(max(0.0, path.stat().st_mtime + 3 - time.time()))  # a file younger than that is read again
    shutil.rmtree(cache, ignore_errors=True)
    print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB; memory in GiB; load {os.getloadavg()[0]:.1f}")
    for title, count in (("first", 1), ("again", 1), (f"{PROCESSES} processes", PROCESSES)):
        program = [sys.executable, "-c", "from tests.data.measure_reading import measure; import sys; measure(sys.argv[1])", path]
        environment = os.environ | {"RESNEST_DET_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        running = [
            subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
            for _ in range(count)
        ]
        lines = [process.stdout.readline() for process in running]
        for process, line in zip(running, lines):
            print(f"{title}: {line.strip()}")
            process.communicate("\n")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
