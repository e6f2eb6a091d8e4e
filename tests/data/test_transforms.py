"""Augmentation: Detectron2's sizes and pixels, and geometry that boxes, polygons and bitmasks agree on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnest_det.data.polygons import rasterize
from resnest_det.data.transforms import (
    Augmentation,
    Crop,
    Flip,
    RandomCrop,
    RandomFlip,
    Resize,
    ResizeShortestEdge,
    short_side_size,
    transform_boxes,
    transform_image,
    transform_mask,
    transform_polygons,
)
from resnest_det.errors import ArgumentError

# What Detectron2's ResizeShortestEdge.get_output_shape says for (height, width, short side, longest side).
DETECTRON2_SIZES = [
    ((480, 640, 800, 1333), (800, 1067)),
    ((640, 480, 800, 1333), (1067, 800)),
    ((427, 640, 800, 1333), (800, 1199)),
    ((333, 500, 800, 1333), (800, 1201)),
    ((375, 1242, 800, 1333), (402, 1333)),
    ((1242, 375, 640, 1333), (1333, 402)),
    ((100, 100, 7, 10), (7, 7)),
    ((500, 333, 672, 1333), (1009, 672)),
    ((612, 612, 800, 800), (800, 800)),
    ((333, 1000, 736, 1333), (444, 1333)),
    ((281, 500, 768, 1333), (749, 1333)),
    ((600, 1000, 800, 1333), (800, 1333)),
]


@pytest.mark.parametrize("case, expected", DETECTRON2_SIZES)
def test_short_side_sizes_are_detectron2s(case, expected):
    assert short_side_size(*case) == expected


def test_no_side_vanishes():
    assert short_side_size(2000, 1, 800, 1333) == (1333, 1)


@pytest.mark.parametrize("size", [(61, 110), (20, 33), (37, 20)])
def test_torch_resizes_as_pillow_but_for_one_of_255(size):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 62, 3), dtype=np.uint8)
    for shown in (pixels, pixels[:, :, ::-1], np.flip(pixels, 1), pixels[:, :, :1]):
        ours = Resize((37, 62), size, "torch").image(shown).astype(int)
        expected = Resize((37, 62), size).image(shown).astype(int)
        assert ours.shape == expected.shape == (*size, shown.shape[2])
        # Noise is the worst case: in photographs some values in ten thousand differ.
        assert np.abs(ours - expected).max() <= 1 and (ours != expected).mean() < 0.01


def test_resized_pixels_are_detectron2s():
    y, x = np.mgrid[:24, :40]
    pixels = np.stack([x * 6, y * 10, 255 - x * 3 - y * 2], axis=2).astype(np.uint8)
    resize = Resize((24, 40), (37, 62))
    resized = resize.image(pixels)
    assert (resized[0, 0].tolist(), resized[17, 33].tolist(), resized[36, 61].tolist()) == (
        [0, 0, 255], [127, 109, 170], [234, 230, 92],
    )  # fmt: skip
    assert resized.astype(int).sum() == 930254
    assert resize.mask(((x + y) % 7 < 3).astype(np.uint8)).sum() == 982
    np.testing.assert_array_equal(resize.image(pixels[:, :, :1])[:, :, 0], resized[:, :, 0])


def test_flips_turn_continuous_coordinates():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(Flip((2, 4), True).image(pixels), pixels[:, ::-1])
    np.testing.assert_array_equal(Flip((2, 4), False).image(pixels), pixels[::-1])
    points = np.array([[0.0, 0.0], [1.0, 0.5]])
    np.testing.assert_array_equal(Flip((2, 4), True).points(points), [[4, 0], [3, 0.5]])
    np.testing.assert_array_equal(Flip((2, 4), False).points(points), [[0, 2], [1, 1.5]])


def test_boxes_stay_ordered_and_inside():
    boxes = np.array([[-3.0, 1.0, 5.0, 99.0]])
    moved = transform_boxes(boxes, [Resize((10, 20), (20, 40)), Flip((20, 40), True)], (20, 40))
    np.testing.assert_array_equal(moved, [[30, 2, 40, 20]])
    assert transform_boxes(np.zeros((0, 4)), [Flip((20, 40), True)], (20, 40)).shape == (0, 4)


def marked(height, width, box):
    """An image whose one bright rectangle is also a box, a polygon and a bitmask."""
    x0, y0, x1, y1 = box
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    polygon = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)
    return np.repeat(mask[:, :, None] * 255, 3, axis=2), np.array([box], dtype=np.float64), polygon, mask


@settings(max_examples=100, deadline=None)
@given(
    st.integers(20, 60),
    st.integers(20, 60),
    st.sampled_from([(), (16, 90), (32,)]),
    st.sampled_from(["horizontal", "vertical", "none"]),
    st.sampled_from(
        [None, ("relative", (0.5, 0.8)), ("relative_range", (0.3, 0.3)), ("absolute", (15, 99)), ("absolute_range", (9, 40))]
    ),
    st.integers(0, 2**32),
)
def test_image_box_polygon_and_mask_move_together(height, width, sides, flip, crop, seed):
    generator = np.random.default_rng(seed)
    x0, y0 = (int(generator.integers(0, side - 8)) for side in (width, height))
    x1, y1 = (int(generator.integers(low + 6, side + 1)) for low, side in ((x0, width), (y0, height)))
    pixels, boxes, polygon, mask = marked(height, width, (x0, y0, x1, y1))
    steps = [RandomCrop(*crop)] if crop else []
    steps.append(ResizeShortestEdge(sides or (0,), 100, "range" if len(sides) == 2 else "choice"))
    steps += [RandomFlip(flip)] if flip != "none" else []
    transforms = Augmentation(tuple(steps)).draw(height, width, generator)

    image = transform_image(pixels, transforms)
    size = image.shape[:2]
    (box,) = transform_boxes(boxes, transforms, size)
    moved = transform_mask(mask, transforms)
    drawn = rasterize(transform_polygons([polygon], transforms), size)
    inside_box = np.zeros(size, dtype=np.uint8)
    left, top, right, bottom = np.round(box).astype(int)
    inside_box[top:bottom, left:right] = 1
    # They may differ by the pixels along the outline, where resizing rounds.
    outline_pixels = 2 * (sum(size)) + 8
    for other in (image[:, :, 0] > 127, drawn, inside_box):
        assert (other != moved).sum() <= outline_pixels
    if not any(isinstance(transform, Resize) for transform in transforms):
        np.testing.assert_array_equal(image[:, :, 0] > 127, moved)
        np.testing.assert_array_equal(inside_box, moved)
        np.testing.assert_array_equal(drawn, moved)


def draws(*steps, count=400, height=60, width=90):
    return [Augmentation(steps).draw(height, width, np.random.default_rng([1, n])) for n in range(count)]


def test_choice_and_range_of_short_sides():
    chosen = {transforms[0].new_size[0] for transforms in draws(ResizeShortestEdge((40, 50), 999, "choice"))}
    assert chosen == {40, 50}
    ranged = {transforms[0].new_size[0] for transforms in draws(ResizeShortestEdge((40, 50), 999, "range"))}
    assert ranged == set(range(40, 51))
    assert draws(ResizeShortestEdge((0,), 999), count=3) == [[], [], []]


def test_half_of_the_images_are_flipped():
    flipped = [bool(transforms) for transforms in draws(RandomFlip("vertical"))]
    assert 160 < sum(flipped) < 240


@pytest.mark.parametrize(
    "crop, heights, widths",
    [
        (("relative", (0.5, 0.1)), (30, 30), (9, 9)),
        (("relative_range", (0.5, 0.1)), (30, 60), (9, 90)),
        (("absolute", (20, 200)), (20, 20), (90, 90)),
        (("absolute_range", (20, 70)), (20, 60), (20, 70)),
    ],
)
def test_crop_sizes(crop, heights, widths):
    crops = [transforms[0] for transforms in draws(RandomCrop(*crop))]
    assert all(isinstance(crop, Crop) and crop.x0 >= 0 and crop.y0 >= 0 for crop in crops)
    assert max(crop.y0 + crop.size[0] for crop in crops) == 60
    assert max(crop.x0 + crop.size[1] for crop in crops) == 90
    for axis, (least, most) in enumerate((heights, widths)):
        found = [crop.size[axis] for crop in crops]
        assert least <= min(found) <= least + 2 and most - 2 <= max(found) <= most


def test_each_step_draws_for_the_size_that_the_one_before_leaves():
    steps = RandomFlip(), ResizeShortestEdge((30,), 999), RandomCrop("absolute", (30, 45)), ResizeShortestEdge((10,), 999)
    for transforms in draws(*steps, count=20):
        *flip, first, crop, last = transforms
        assert first == Resize((60, 90), (30, 45)) and crop == Crop(0, 0, (30, 45)) and last == Resize((30, 45), (10, 15))
        assert flip in ([], [Flip((60, 90), True)])
    assert draws(count=1) == [[]]


def test_draws_of_a_seed_stay_what_they_are():
    """A run that is resumed by a later version sees the images that it would have seen."""
    steps = RandomCrop("relative_range", (0.4, 0.6)), ResizeShortestEdge((40, 60), 80, "range"), RandomFlip()
    assert draws(*steps, count=3) == [
        [Crop(0, 0, (42, 88)), Resize((42, 88), (38, 80)), Flip((38, 80), True)],
        [Crop(7, 15, (36, 76)), Resize((36, 76), (38, 80))],
        [Crop(8, 1, (40, 70)), Resize((40, 70), (42, 74))],
    ]


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: RandomCrop("absolute", (2.0, 3.0)), r"^size is \(2.0, 3.0\); for a crop of kind absolute .* two whole numbers"),
        (lambda: RandomCrop("relative", (0.5, 0.0)), r"^size is \(0.5, 0.0\).*fractions in \(0, 1\]"),
        (lambda: RandomCrop("relative_range", (0.5,)), "^size is .*must be two"),
        (lambda: RandomCrop("absolute_range", (9, 5)), "^size is .*the smaller first"),
        (lambda: RandomCrop("square", (1, 1)), "^kind is 'square'; supported: relative, relative_range, absolute"),
        (lambda: ResizeShortestEdge((), 9), r"^short_sides is \(\)"),
        (lambda: ResizeShortestEdge((8, -1), 9), r"^short_sides is \(8, -1\)"),
        (lambda: ResizeShortestEdge((9, 8), 9, "range"), r"^short_sides is \(9, 8\); .*smallest, largest"),
        (lambda: ResizeShortestEdge((9,), 9, "rnage"), "^sampling is 'rnage'; supported: choice, range"),
        (lambda: ResizeShortestEdge((9,), 0), "^max_side is 0"),
        (lambda: RandomFlip("none"), "^direction is 'none'; supported: horizontal, vertical"),
    ],
)
def test_each_step_names_its_own_argument(build, message):
    with pytest.raises(ArgumentError, match=message):
        build()


def test_crop_comes_before_resize_and_flip():
    steps = RandomCrop("relative", (0.5, 0.5)), ResizeShortestEdge((30,), 999), RandomFlip()
    kinds = {tuple(type(transform) for transform in transforms) for transforms in draws(*steps, count=40)}
    assert kinds == {(Crop, Resize), (Crop, Resize, Flip)}
