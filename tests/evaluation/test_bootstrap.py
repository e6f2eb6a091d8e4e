"""Confidence intervals of AP."""

import numpy as np
import pytest

from resnest_det.evaluation.average_precision import coco_figures
from resnest_det.evaluation.bootstrap import AREAS, average_precisions, best_thresholds, draw_images, estimate, matched_detections


def invented(images=60, seed=0, noise=0.1):
    """Objects of three classes and detections of most of them, some false."""
    random = np.random.default_rng(seed)
    truth = {"images": [], "categories": [{"id": 3 * i + 1, "name": f"class {i}"} for i in range(3)], "annotations": []}
    detections = []
    for image in range(1, images + 1):
        truth["images"].append({"id": image, "width": 640, "height": 480})
        for _ in range(random.integers(1, 6)):
            size = np.exp(random.uniform(2.5, 5.3, 2))
            box = np.concatenate([random.uniform(0, 300, 2), size])
            entry = {"image_id": image, "category_id": int(random.choice([1, 4, 7]))}
            crowd = int(random.random() < 0.05)
            truth["annotations"].append(entry | {"bbox": box.tolist(), "area": float(size.prod()), "iscrowd": crowd})
            if random.random() < 0.7:
                found = box + random.normal(0, noise, 4) * np.tile(size, 2)
                detections.append(entry | {"bbox": found.clip(1).tolist(), "score": random.beta(4, 2)})
            if random.random() < 0.5:
                box = np.concatenate([random.uniform(0, 300, 2), np.exp(random.uniform(2.5, 5.3, 2))])
                detections.append(entry | {"bbox": box.tolist(), "score": random.beta(2, 4)})
    return truth, detections


@pytest.mark.parametrize("area", AREAS)
def test_with_every_image_once_it_is_cocos_average_precision(area):
    truth, detections = invented()
    figures = coco_figures(truth, detections, "bbox")
    once = np.ones((1, len(truth["images"])))
    of_classes = 100 * average_precisions(matched_detections(truth, detections), once, area)[0].mean(axis=0)
    # Crowds, and objects of another size, are matched as COCO does; which of two equal scores comes first may differ.
    assert np.nanmean(of_classes) == pytest.approx(figures[f"AP{area}"], abs=0.3)
    if not area:
        assert of_classes == pytest.approx([figures[f"AP-class {i}"] for i in range(3)], abs=1e-9)


def test_an_image_that_is_drawn_twice_counts_as_two():
    truth, detections = invented(images=8)
    twice = {**truth, "images": [*truth["images"], {**truth["images"][0], "id": 99}]}
    copies = [each | {"image_id": 99} for each in truth["annotations"] if each["image_id"] == 1]
    twice["annotations"] = [*truth["annotations"], *copies]
    found = [*detections, *(each | {"image_id": 99} for each in detections if each["image_id"] == 1)]
    weights = np.ones((2, 8))
    weights[1, 0] = 2
    one, two = average_precisions(matched_detections(truth, detections), weights).mean(axis=1) * 100
    assert np.nanmean(one) == pytest.approx(coco_figures(truth, detections, "bbox")["AP"], abs=1e-9)
    assert np.nanmean(two) == pytest.approx(coco_figures(twice, found, "bbox")["AP"], abs=1e-9)


def test_draws_have_as_many_images_and_an_estimate_takes_their_bias_out():
    weights = draw_images(50, draws=40)
    assert (weights.sum(axis=1) == 50).all() and (weights[0] == 1).all() and (weights[1:] != weights[1]).any()
    drawn = np.random.default_rng(0).normal(0.6, 0.1, 20000)
    said = estimate(np.concatenate([[0.5], drawn]))
    assert said.value == 0.5 and said.low == pytest.approx(0.4 - 0.196, abs=0.005)
    assert said.high == pytest.approx(0.4 + 0.196, abs=0.005) and said.above_zero > 0.999
    assert np.isnan(estimate(np.array([np.nan])).low)


def test_intervals_cover_the_average_precision_of_the_images_that_a_set_is_drawn_from():
    """95 of 100 should; of percentiles of the draws, without taking out the bias, fewer than 80 do."""
    pool = matched_detections(*invented(images=300))
    true = np.nanmean(average_precisions(pool, np.ones((1, 300))))
    covered = 0
    for seed in range(12):
        weights = np.zeros((41, 300))
        weights[:, np.random.default_rng(seed).choice(300, 60, replace=False)] = draw_images(60, draws=40, seed=seed)
        said = estimate(np.nanmean(average_precisions(pool, weights).mean(axis=1), axis=1))
        covered += said.low <= true <= said.high
    assert covered >= 10


def test_the_best_threshold_of_a_class():
    truth = {"images": [{"id": 1, "width": 99, "height": 99}], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    boxes = [[10, 10, 20, 20], [50, 50, 20, 20]]
    truth["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0} for box in boxes]
    scores = {0.9: boxes[0], 0.8: [70, 10, 9, 9], 0.7: boxes[1], 0.1: [5, 70, 9, 9]}
    detections = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for score, box in scores.items()]
    best, none = best_thresholds(matched_detections(truth, detections))
    assert (best.score, best.precision, best.recall) == pytest.approx((0.7, 2 / 3, 1.0)) and none is None
