"""Results that are read from a file, and the images on which they are worst."""

import json

import pytest

from resnest_det.data.coco import load_coco_instances
from resnest_det.errors import UserError
from resnest_det.evaluation.results import ImageErrors, errors_by_image, ground_truth_of, read_results
from tests.helpers.datasets import write_coco


@pytest.fixture
def dataset(tmp_path):
    """Two images with two objects each, all of class 1."""
    boxes = [[2, 2, 10, 10], [15, 5, 10, 12]]
    annotations = [{"image_id": image, "bbox": box, "area": box[2] * box[3]} for image in (1, 2) for box in boxes]
    return load_coco_instances("made", *write_coco(tmp_path, [(1, 20, 30), (2, 20, 30)], annotations), keep_truth=True)


def result(image_id=1, box=(2, 2, 10, 10), score=0.9, **more):
    return {"image_id": image_id, "category_id": 1, "bbox": list(box), "score": score} | more


def read(tmp_path, dataset, content):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_results(str(path), dataset)


def test_detections_come_best_first(tmp_path, dataset):
    results = read(tmp_path, dataset, [result(score=0.2), result(score=0.7), result(2)])
    assert [each["score"] for each in results] == [0.9, 0.7, 0.2]
    assert read(tmp_path, dataset, []) == []


@pytest.mark.parametrize(
    "content, said",
    [
        ('[{"image_id": 1', "is not a file of COCO results"),
        ('{"images": []}', "is not a file of COCO results"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}], "is not a file of COCO results"),
        ([result(1), result(9)], "of another dataset than made: 1 of 2 detections have image_ids that it lacks, the first 9"),
        ([result(category_id=5)], "of another dataset than made: 1 of 1 detections have category_ids that it lacks, the first 5"),
        ([result(segmentation={"size": [9, 9], "counts": "Q1"})], r"detection at position 0: the mask is \[9, 9\]"),
        ([result(box=(0, 0, 1e999, 1))], "is not a file of COCO results|not finite"),
    ],
)
def test_results_that_cannot_be_of_the_dataset_are_refused(tmp_path, dataset, content, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, dataset, content)


def test_images_with_the_most_errors_come_first(tmp_path, dataset):
    # In image 1 one object is found and one missed; in image 2 both are missed and one detection is false.
    results = read(tmp_path, dataset, [result(), result(score=0.3, box=(15, 5, 10, 12)), result(2, box=(0, 15, 5, 5))])
    truth = ground_truth_of(dataset)
    assert errors_by_image(truth, results, 0.5) == [ImageErrors(2, 2, 1, 0), ImageErrors(1, 1, 0, 1)]
    assert errors_by_image(truth, results, 0.2)[1] == ImageErrors(1, 0, 0, 2)
