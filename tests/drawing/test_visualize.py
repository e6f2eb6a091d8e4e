"""Pictures of predictions beside the truth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_det.drawing.instances import ComparisonWriter, draw_comparison, draw_instances, instance_colors, save_picture
from resnest_det.errors import UserError

GREY = Image.new("RGB", (120, 60), (128, 128, 128))


def instances(*boxes, masks=False, scores=None):
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "classes": torch.zeros(len(boxes), dtype=torch.int64),
    }
    if masks:
        found["masks"] = torch.zeros(len(boxes), 60, 120, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found["masks"], boxes):
            mask[y0:y1, x0:x1] = True
    if scores is not None:
        found["scores"] = torch.tensor(scores)
    return found


def changed(picture):
    return (np.asarray(picture) != 128).any(axis=2)


def test_a_box_is_drawn_where_it_is_and_its_inside_is_left_alone():
    picture = changed(draw_instances(GREY, instances((30, 20, 90, 50)), ["thing"]))
    assert picture.shape == (240, 480)
    rows, columns = np.nonzero(picture)
    assert (columns.min(), columns.max(), rows.max()) == (120, 359, 199)
    assert picture[80:200, 120].all() and picture[199, 120:360].all()
    assert not picture[110:190, 130:350].any()


def test_a_mask_is_translucent_inside_and_solid_at_its_edge():
    picture = np.asarray(draw_instances(GREY, instances((30, 20, 90, 50), masks=True), [""])).astype(int)
    color = np.array(instance_colors([0])[0])
    inside, edge, outside = picture[150, 240], picture[199, 240], picture[220, 240]
    assert (edge == color).all() and (outside == 128).all()
    assert np.abs(inside - (128 + 0.45 * (color - 128))).max() <= 1


def test_comparison_draws_confident_predictions_on_the_right_only():
    truth, prediction = instances(), instances((30, 20, 90, 50), (0, 0, 10, 10), scores=[0.9, 0.2])
    picture = draw_comparison(GREY, truth, prediction, ["thing"])
    assert picture.size == (480 + 8 + 480, 240 + 26)
    drawn = changed(picture.crop((0, 26, 968, 266)))
    assert not drawn[:, :480].any()
    right = drawn[:, 488:]
    assert right[80:200, 120].all() and not right[:40, :40].any()
    assert changed(draw_comparison(GREY, truth, prediction, ["thing"], 0.1).crop((488, 26, 968, 266)))[:40, :40].any()


def test_the_picture_without_any_prediction_is_the_image():
    picture = draw_comparison(GREY, instances(masks=True), instances(scores=[], masks=True), ["thing"])
    assert not changed(picture.crop((488, 26, 968, 266))).any()


def test_labels_stay_inside_the_picture_and_apart():
    image = Image.new("RGB", (480, 480), (128, 128, 128))
    boxes = instances((470, 0, 480, 10), (470, 0, 480, 10), (0, 470, 10, 480))
    picture = np.asarray(draw_instances(image, boxes, ["one thing", "another thing", "third thing"]))
    colors = instance_colors([0, 0, 0])
    areas = [(picture == color).all(axis=2).sum() for color in colors]
    assert min(areas) > 500
    assert picture.shape == (480, 480, 3)


def test_large_images_keep_their_size():
    assert draw_instances(Image.new("RGB", (700, 300)), instances((1, 1, 5, 5)), ["a"]).size == (700, 300)


def test_instances_of_a_class_have_different_colors():
    colors = instance_colors([4] * 10 + [5] * 10)
    assert len(set(colors)) == 20
    assert instance_colors([5])[0] == colors[10]


def test_writer_draws_some_images_with_objects(tmp_path):
    records = []
    for i in range(10):
        GREY.save(tmp_path / f"{i}.jpg")
        annotation = {
            "id": 1,
            "bbox": [30, 20, 60, 30],
            "category_id": 0,
            "iscrowd": 0,
            "segmentation": [[30, 20, 90, 20, 90, 50, 30, 50]],
        }
        records.append(
            {
                "file_name": str(tmp_path / f"{i}.jpg"),
                "image_id": i,
                "height": 60,
                "width": 120,
                "annotations": [annotation] if i % 2 else [],
            }
        )
    dataset = SimpleNamespace(name="invented", records=records, metadata=SimpleNamespace(thing_classes=["thing"]))
    writer = ComparisonWriter(dataset, str(tmp_path / "pictures"), count=2)
    for record in records:
        writer.process([{"image_id": record["image_id"]}], [instances((30, 20, 90, 50), masks=True, scores=[0.9])])
    writer.report()
    written = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in written] == ["1.png", "5.png"]
    halves = [np.asarray(Image.open(written[0]).crop((x, 110, x + 480, 266))).astype(int) for x in (0, 488)]
    # Below the labels, which differ by the score, an equal prediction looks like the truth.
    assert np.abs(halves[0] - halves[1]).max() == 0
    assert np.abs(halves[0] - 128).max() > 50


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/a.png cannot be written"):
        save_picture(GREY, str(tmp_path / "file" / "a.png"))
