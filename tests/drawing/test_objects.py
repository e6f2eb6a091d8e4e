"""Objects drawn on an image."""

import numpy as np
import torch

from resnest_det.drawing.objects import class_colors, draw_objects, place_label

GREY = np.full((240, 480, 3), 128, dtype=np.uint8)
BOX = np.array([[120, 80, 360, 200]])


def changed(picture):
    return (picture != 128).any(axis=2)


def test_a_box_is_drawn_where_it_is_and_its_inside_is_left_alone():
    drawn = changed(draw_objects(GREY, BOX, [0], ["thing"]))
    rows, columns = np.nonzero(drawn)
    assert (columns.min(), columns.max(), rows.max()) == (120, 359, 199)
    assert drawn[80:200, 120].all() and drawn[199, 120:360].all()
    assert not drawn[110:190, 130:350].any()
    assert (GREY == 128).all()


def test_a_mask_is_translucent_inside_and_solid_at_its_edge_in_the_color_of_its_class():
    mask = np.zeros((1, 240, 480), dtype=bool)
    mask[:, 80:200, 120:360] = True
    picture = draw_objects(GREY, BOX, [3], list("abcd"), masks=mask).astype(int)
    color = np.array(class_colors(4)[3])
    assert (picture[199, 240] == color).all() and (picture[220, 240] == 128).all()
    assert np.abs(picture[150, 240] - (128 + 0.45 * (color - 128))).max() <= 1


def test_masks_are_asked_for_one_at_a_time():
    asked = []

    class Lazy:
        def __getitem__(self, index):
            asked.append(index)
            return torch.ones(240, 480, dtype=torch.bool)

    picture = draw_objects(GREY, torch.tensor([[0, 0, 9, 9], [0, 0, 480, 240]]), torch.tensor([0, 0]), ["a"], masks=Lazy())
    assert asked == [1, 0] and changed(picture).all()  # small ones over large ones


def test_what_is_not_sure_is_faint_and_what_is_wrong_has_a_frame():
    def box_edge(**options):
        return draw_objects(GREY, BOX, [0], ["thing"], scores=[0.3], **options).astype(int)

    sure, faint, framed = box_edge(), box_edge(faint=True), box_edge(frames=[(255, 0, 255)])
    strength = [np.abs(picture[199, 240] - 128).sum() for picture in (sure, faint)]
    assert 0 < strength[1] < 0.5 * strength[0]
    assert (framed[201, 240] == (255, 0, 255)).all() and (framed[199, 240] == sure[199, 240]).all()
    assert not changed(sure)[201:].any()


def test_labels_stay_inside_the_picture_and_apart():
    image = np.full((480, 480, 3), 128, dtype=np.uint8)
    boxes = [[470, 0, 480, 10], [470, 0, 480, 10], [0, 470, 10, 480]]
    picture = draw_objects(image, boxes, [0, 1, 2], ["one thing", "another thing", "third thing"])
    assert min((picture == color).all(axis=2).sum() for color in class_colors(3)) > 500
    first = place_label(470, 0, 60, 18, (480, 480), [])
    second = place_label(470, 0, 60, 18, (480, 480), [first])
    assert first[:2] == (420, 0) and second[:2] == (420, 18)


def test_a_name_of_a_million_characters_is_shortened_and_keeps_its_score():
    image, boxes = np.full((480, 480, 3), 128, dtype=np.uint8), [[100, 100, 200, 200]]
    picture = draw_objects(image, boxes, [0], ["a" * 1_000_000], scores=[0.5])
    assert (picture == draw_objects(image, boxes, [0], ["a" * 30 + " ... " + "a" * 11], scores=[0.5])).all()


def test_no_object_no_change_and_a_box_without_area_is_drawn():
    assert (draw_objects(GREY, np.zeros((0, 4)), [], ["thing"], masks=np.zeros((0, 240, 480), dtype=bool)) == 128).all()
    assert changed(
        draw_objects(GREY, [[30.0, 50.0, 30.0, 50.0]], [0], ["thing"], masks=np.zeros((1, 240, 480), dtype=bool))
    ).any()


def test_colors_of_classes_are_their_own_and_do_not_depend_on_how_many_there_are():
    colors = class_colors(80)
    assert len(set(colors)) == 80 and class_colors(5) == colors[:5]
