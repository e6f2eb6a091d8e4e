"""Tiles of large images: where they lie, and what of their objects is kept."""

import pytest
import torch

from resnest_det.inference.tiles import keep_one_of_each, tile_starts


@pytest.mark.parametrize("length, tile, overlap", [(100, 40, 0.2), (1000, 300, 0.5), (41, 40, 0.0), (40, 40, 0.3), (10, 40, 0.3)])
def test_tiles_cover_a_side_and_overlap_enough(length, tile, overlap):
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and (starts[-1] + tile == length or length <= tile)
    for one, other in zip(starts, starts[1:]):
        assert 0 < other - one and one + tile - other >= int(overlap * tile) - 1


def test_one_of_each_object_is_kept():
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],  # kept: the best
            [1.0, 0, 11, 10],  # the same from another tile
            [1.0, 0, 11, 10],  # another class
            [50.0, 0, 90, 20],  # kept: whole, though its score is lower
            [50.0, 0, 70, 20],  # the part of it that a tile saw
            [52.0, 2, 60, 10],  # a small object before it, whole
        ]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.5, 0.95, 0.4])
    classes = torch.tensor([0, 0, 1, 0, 0, 0])
    at_seam = torch.tensor([False, False, False, False, True, False])
    assert keep_one_of_each(boxes, scores, classes, at_seam, 0.5).tolist() == [0, 2, 3, 5]
    assert keep_one_of_each(boxes[:0], scores[:0], classes[:0], at_seam[:0], 0.5).tolist() == []
