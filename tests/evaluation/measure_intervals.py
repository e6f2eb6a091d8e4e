"""How many of 100 confidence intervals cover the AP of what their images are drawn from. Not a test.

python -m tests.evaluation.measure_intervals
"""

import numpy as np

from resnest_det.evaluation.bootstrap import average_precisions, draw_images, estimate, matched_detections
from tests.evaluation.test_bootstrap import invented

POPULATION, SETS = 2000, 100


def main() -> None:
    whole = matched_detections(*invented(images=POPULATION, seed=12345))
    true = average_precisions(whole, np.ones((1, POPULATION))).mean()
    for images in (60, 200):
        covered = 0
        for seed in range(SETS):
            matched = matched_detections(*invented(images=images, seed=seed))
            said = estimate(np.nanmean(average_precisions(matched, draw_images(images)).mean(axis=1), axis=1))
            covered += said.low <= true <= said.high
        print(f"{images} images: {covered} of {SETS} intervals cover {100 * true:.2f}")


if __name__ == "__main__":
    main()
