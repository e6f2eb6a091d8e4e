"""How long counting the pixels of label maps of Cityscapes' size takes, beside a loop of NumPy's bincount.

    python tests/evaluation/measure_semantic_speed.py --images 500

Both count the same maps, 19 classes and pixels without a label, taking turns; seconds are those of the CPU in this process (all
threads) and of the clock. Twenty different maps are generated and counted again and again.
"""

import argparse
import time

import numpy as np
from hotcoco.semantic import SemanticEval

from resnest_det.evaluation.semantic import semantic_figures

CLASSES, HEIGHT, WIDTH, TURNS = 19, 1024, 2048, 5


def make_maps(rng):
    """Truth: regions of a few dozen pixels, a tenth of them without a label. Prediction: the same with wrong regions."""
    truth = rng.integers(0, CLASSES, (HEIGHT // 32, WIDTH // 32)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.8, truth, rng.integers(0, CLASSES, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    return tuple(np.roll(each.repeat(32, 0).repeat(32, 1), rng.integers(32)) for each in (truth, predicted))


def with_bincount(pairs):
    counts = np.zeros(CLASSES * CLASSES, dtype=np.int64)
    for truth, predicted in pairs:
        labelled = truth < CLASSES
        counts += np.bincount(CLASSES * predicted[labelled].astype(np.int64) + truth[labelled], minlength=CLASSES * CLASSES)
    return counts.reshape(CLASSES, CLASSES)


def with_hotcoco(pairs):
    counting = SemanticEval(CLASSES, ignore_index=255)
    for truth, predicted in pairs:
        counting.update(truth, predicted)
    return counting.confusion().astype(np.int64).T


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    images = parser.parse_args().images
    rng = np.random.default_rng(0)
    maps = [make_maps(rng) for _ in range(20)]
    pairs = [maps[index % 20] for index in range(images // TURNS)]
    seconds, counted = {}, {}
    for _ in range(TURNS):
        for count in (with_bincount, with_hotcoco):
            cpu, clock = time.process_time(), time.perf_counter()
            counted[count] = count(pairs)
            seconds.setdefault(count, []).append((time.process_time() - cpu, time.perf_counter() - clock))
    np.testing.assert_array_equal(*counted.values())
    for count, each in seconds.items():
        cpu, clock = np.sum(each, axis=0)
        print(f"{count.__name__}: {images} maps of {HEIGHT}x{WIDTH}: {cpu:.2f} s of CPU, {clock:.2f} s")
    ratios = np.array(seconds[with_bincount]) / np.array(seconds[with_hotcoco])
    cpu, clock = np.median(ratios, axis=0)
    print(f"bincount by hotcoco, medians of {TURNS} turns: CPU {cpu:.1f}, clock {clock:.1f}")
    print(f"mIoU {semantic_figures(counted[with_hotcoco], [str(index) for index in range(CLASSES)])['mIoU']:.3f}")


if __name__ == "__main__":
    main()
