"""Images a second that one worker makes ready for training, beside Detectron2's mapper where that is installed.

    OMP_NUM_THREADS=1 python -m tests.data.measure_mapper ANNOTATIONS.json IMAGE_DIR [--rounds 5]

CPU time, contenders in turns, median and range. All resize the shorter side to 800, mirror half of the images and take polygons.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from resnest_det.data.coco import load_coco_instances
from resnest_det.data.mapper import training_sample
from resnest_det.data.transforms import Augmentation, RandomFlip, ResizeShortestEdge


def own(library: str) -> Callable[[dict], object]:
    steps = (ResizeShortestEdge((800,), 1333, library=library), RandomFlip())
    make = partial(training_sample, augmentation=Augmentation(steps), image_format="BGR", mask_format="polygon")
    generator = np.random.default_rng(0)
    return lambda record: make(record, generator)


def detectron2s() -> Callable[[dict], object]:
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T
    from detectron2.structures import BoxMode

    steps = [T.ResizeShortestEdge((800,), 1333, "choice"), T.RandomFlip()]
    mapper = DatasetMapper(True, augmentations=steps, image_format="BGR", use_instance_mask=True, instance_mask_format="polygon")
    return lambda record: mapper(
        record | {"annotations": [each | {"bbox_mode": BoxMode.XYWH_ABS} for each in record["annotations"]]}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", metavar="ANNOTATIONS.json")
    parser.add_argument("images", metavar="IMAGE_DIR")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    records = list(load_coco_instances("measured", options.annotations, options.images).records)
    contenders = {"this package": own("pillow"), "this package, RESIZE_LIBRARY_TRAIN torch": own("torch")}
    if importlib.util.find_spec("detectron2"):
        contenders["Detectron2"] = detectron2s()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds + 1):  # the first is for the page cache
        for name, make in contenders.items():
            start = time.process_time()
            for record in records:
                make(record)
            rates[name].append(len(records) / (time.process_time() - start))
    for name, values in rates.items():
        values = values[1:]
        print(f"{name}: {statistics.median(values):.1f} images a second of CPU time ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main()
