"""Clipping, outlines and rasters of polygons."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnest_det.data.polygons import clip_polygon, outline, polygon_area, rasterize


def test_area_of_a_triangle():
    assert polygon_area(np.array([[0, 0], [4, 0], [0, 3]])) == pytest.approx(6)


def test_inside_comes_back_untouched_and_outside_vanishes():
    triangle = np.array([[1.0, 1.0], [9.0, 1.0], [5.0, 10.0]])
    (same,) = clip_polygon(triangle, (10, 20))
    np.testing.assert_array_equal(same, triangle)
    assert clip_polygon(triangle + [20, 0], (10, 20)) == []
    assert clip_polygon(triangle + [19, 0], (10, 20)) == [], "touches the border with a corner only"


def test_convex_cut():
    (part,) = clip_polygon(np.array([[-5.0, 2.0], [5.0, 2.0], [5.0, 6.0], [-5.0, 6.0]]), (10, 10))
    assert sorted(map(tuple, part)) == [(0, 2), (0, 6), (5, 2), (5, 6)]


def test_concave_polygon_falls_into_pieces():
    # A comb whose back is beyond the left border and whose two teeth reach in.
    comb = np.array([[-4, 0], [6, 0], [6, 2], [-2, 2], [-2, 5], [8, 5], [8, 7], [-4, 7]], dtype=float)
    pieces = clip_polygon(comb, (10, 10))
    boxes = sorted((*piece.min(axis=0), *piece.max(axis=0)) for piece in pieces)
    assert boxes == [(0, 0, 6, 2), (0, 5, 8, 7)]


def test_no_seam_reaches_a_corner_that_the_object_never_touched():
    # A hook around the upper left corner: one end comes in from above, the other from the left.
    hook = np.array([[-3, 8], [2, 8], [2, 9], [-4, 9], [-4, -4], [9, -4], [9, 3], [8, 3], [8, -3], [-3, -3]], dtype=float)
    pieces = clip_polygon(hook, (10, 10))
    assert sorted((*piece.min(axis=0), *piece.max(axis=0)) for piece in pieces) == [(0, 8, 2, 9), (8, 0, 9, 3)]


@st.composite
def star_polygons(draw):
    """Simple polygons, often concave: corners at rising angles around a centre."""
    corners = draw(st.integers(3, 14))
    radii = draw(st.lists(st.integers(2, 40), min_size=corners, max_size=corners))
    center = draw(st.tuples(st.integers(-15, 55), st.integers(-15, 55)))
    angles = 2 * np.pi * (np.arange(corners) + 0.3) / corners
    return np.array(center) + np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@settings(max_examples=150, deadline=None)
@given(star_polygons(), st.integers(5, 40), st.integers(5, 40))
def test_clipping_keeps_the_area_that_a_fine_raster_sees(polygon, height, width):
    pieces = clip_polygon(polygon, (height, width))
    for piece in pieces:
        assert (piece >= 0).all() and (piece <= [width, height]).all()
    scale, margin = 8, 60
    fine = rasterize([(polygon + margin) * scale], (160 * scale, 160 * scale))
    window = fine[margin * scale : (margin + height) * scale, margin * scale : (margin + width) * scale]
    area = sum(polygon_area(piece) for piece in pieces)
    # The raster is off by a fraction of a fine pixel along the outline.
    assert area == pytest.approx(window.sum() / scale**2, abs=0.15 * (height + width) / scale * 4)
    corners = extreme_points(polygon, height, width)
    if pieces:
        points = np.concatenate(pieces)
        np.testing.assert_allclose(points.min(axis=0), corners.min(axis=0), atol=1e-6)
        np.testing.assert_allclose(points.max(axis=0), corners.max(axis=0), atol=1e-6)


def extreme_points(polygon, height, width):
    """Where the corners of a polygon's part in the window can be: its own, those of the window, and crossings."""
    points = list(polygon)
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0)):
        for axis, border in ((0, 0), (0, width), (1, 0), (1, height)):
            if (start[axis] < border) != (end[axis] < border):
                points.append(start + (border - start[axis]) / (end[axis] - start[axis]) * (end - start))
    points += [corner for corner in np.array([[0, 0], [width, 0], [0, height], [width, height]]) if surrounds(polygon, corner)]
    return np.array([point for point in points if (point >= -1e-9).all() and (point <= np.array([width, height]) + 1e-9).all()])


def surrounds(polygon, point):
    crossings = 0
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        if (y0 <= point[1]) != (y1 <= point[1]) and x0 + (point[1] - y0) / (y1 - y0) * (x1 - x0) > point[0]:
            crossings += 1
    return crossings % 2 == 1


def test_an_outline_that_crosses_itself_keeps_its_raster():
    # Three overlapping rectangles in one line: along the left border all begin before any ends.
    crossed = np.array([[-2, 0], [8, 0], [8, 3], [-2, 3], [-2, 1], [6, 1], [6, 4], [-2, 4], [-2, 2], [4, 2], [4, 5], [-2, 5]])
    whole = rasterize([crossed + [4, 0]], (10, 14))
    np.testing.assert_array_equal(rasterize(clip_polygon(crossed, (10, 10)), (10, 10)), whole[:, 4:])


def test_whole_window_inside_the_polygon():
    (part,) = clip_polygon(np.array([[-9.0, -9.0], [99.0, -9.0], [99.0, 99.0], [-9.0, 99.0]]), (4, 6))
    assert polygon_area(part) == 24


@settings(max_examples=100, deadline=None)
@given(star_polygons())
def test_outline_draws_its_mask_again(polygon):
    mask = rasterize([polygon], (48, 64))
    line = outline(mask)
    if line is not None:
        assert polygon_area(line) == mask.sum()
        np.testing.assert_array_equal(rasterize([line], (48, 64)), mask)


@pytest.mark.parametrize(
    "rows",
    [["....", "...."], ["#..#", "#..#"], ["###.", "#.#.", "###."], ["##..", "..##"]],
    ids=["empty", "two pieces", "hole", "corner contact"],
)
def test_no_outline_unless_one_simple_piece(rows):
    assert outline(np.array([[c == "#" for c in row] for row in rows])) is None


def test_outline_keeps_corners_only():
    line = outline(np.array([[0, 1, 1], [0, 1, 0]]))
    assert sorted(map(tuple, line)) == [(1, 0), (1, 2), (2, 1), (2, 2), (3, 0), (3, 1)]
