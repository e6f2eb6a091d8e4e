"""What a run says of its data at the start."""

import numpy as np

from resnest_det.data.statistics import describe, doubts, statistics_of


def record(annotations, height=100, width=200, **more):
    return {"height": height, "width": width, "annotations": annotations} | more


def entry(category, width=10.0, height=40.0, **more):
    return {"category_id": category, "iscrowd": 0, "bbox": [0, 0, width, height]} | more


RECORDS = [
    record([entry(0, segmentation=[[0, 0, 9, 0, 9, 9]])] * 20 + [entry(1, 100, 100), {"category_id": 1, "iscrowd": 1}]),
    record([entry(0)], height=300),
    record([]),
]


def test_numbers():
    data = statistics_of("mine", RECORDS, ["cat", "dog", "cow"], {"boxes with no area": 2})
    assert data.objects_of == {"cat": 21, "dog": 1, "cow": 0} and data.without_objects == 1
    assert (data.masks, data.crowds) == (20, 1) and data.image_sizes.tolist() == [[100, 200], [300, 200], [100, 200]]
    assert np.unique(data.sizes).tolist() == [20, 100] and data.image_of.tolist() == [0] * 21 + [1]
    assert describe(data) == [
        "mine: 3 images of 200 x 100-300 pixels (width x height), 1 without objects",
        "mine: 22 objects, 20 with a mask, and 1 crowd region of 3 classes: cat 21, dog 1, cow 0",
        "mine: sizes of objects (root of the area) 20 to 20 pixels, 5 % below and above, median 20; "
        "95% small, 0% medium, 5% large as COCO counts",
        "mine: left out: 2 boxes with no area",
    ]


def test_doubts_name_classes_that_are_rare_or_missing_in_a_split():
    names = ["cat", "dog", "cow"]
    train = statistics_of("train", RECORDS, names)
    test = statistics_of("val", [record([entry(2)] * 30 + [entry(1)] * 11)], names)
    assert doubts(train, [test]) == [
        "train has no object of cow: nothing can be learned of it",
        "train has fewer than 10 objects of dog 1",
        "val has no object of cat: its AP will be nan and counts nowhere",
    ]
    assert doubts(None, [statistics_of("val", [record([entry(1)])], ["cat", "dog"])]) == [
        "val has no object of cat: its AP will be nan and counts nowhere",
        "val has fewer than 10 objects of dog 1: their AP says little",
    ]
    assert doubts(train, [statistics_of("list", [record([])], names)])[2:] == []


def test_many_classes_are_two_ends_of_a_list():
    annotations = [entry(number) for number in range(80) for _ in range(number + 1)]
    line = describe(statistics_of("coco", [record(annotations)], [f"c{number}" for number in range(80)]))[1]
    assert "of 80 classes; most: c79 80, c78 79, " in line and line.endswith(" c1 2, c0 1") and len(line) < 200


def test_images_with_labels_of_pixels_alone():
    assert describe(statistics_of("pixels", [record([])] * 2, [])) == ["pixels: 2 images of 200 x 100 pixels (width x height)"]
