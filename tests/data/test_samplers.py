"""Streams of draws and batches."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnest_det.data.samplers import batches, repeat_factors_from_categories, training_draws
from resnest_det.data.samplers import inference_indices as indices_of_rank


def take(iterator, count):
    return list(itertools.islice(iterator, count))


@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(1, 4))
def test_every_pass_shows_every_image_once(size, seed, passes):
    drawn = take(training_draws(np.ones(size), seed), passes * size)
    assert [position for _, position in drawn] == list(range(passes * size))
    for start in range(0, passes * size, size):
        assert sorted(index for index, _ in drawn[start : start + size]) == list(range(size))


def test_the_seed_and_the_pass_decide_the_order():
    first, again, other = (take(training_draws(np.ones(50), seed), 100) for seed in (1, 1, 2))
    assert first == again != other
    assert [index for index, _ in first[:50]] != [index for index, _ in first[50:]]


def test_fractional_repeats_come_out_on_average():
    factors = np.array([1.0, 2.0, 1.25])
    drawn = Counter(index for index, _ in take(training_draws(factors, 0), 4250 * 2))
    np.testing.assert_allclose([drawn[0] / 2000, drawn[1] / 2000, drawn[2] / 2000], factors, rtol=0.03)


def records_with(*categories):
    return [{"annotations": [{"category_id": category} for category in present]} for present in categories]


def test_repeat_factors_follow_the_rarest_category():
    # Frequencies in 4 images: category 0 in all, 1 in two, 2 in one.
    records = records_with([0, 0], [0, 1], [0, 1, 2], [0])
    factors = repeat_factors_from_categories(records, 0.75)
    np.testing.assert_allclose(factors, [1, np.sqrt(0.75 / 0.5), np.sqrt(0.75 / 0.25), 1])
    np.testing.assert_allclose(repeat_factors_from_categories(records, 0.75, square_root=False), [1, 1.5, 3, 1])
    np.testing.assert_allclose(repeat_factors_from_categories(records_with([0], []), 0.9), [np.sqrt(1.8), 1])


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 6), st.integers(0, 1000))
def test_batches_hold_one_kind_and_lose_nothing(landscape, batch_size, seed):
    grouped = take(batches(training_draws(np.ones(len(landscape)), seed), batch_size, landscape), 40)
    assert all(len(batch) == batch_size for batch in grouped)
    assert all(len({landscape[index] for index, _ in batch}) == 1 for batch in grouped)
    positions = sorted(position for batch in grouped for _, position in batch)
    assert len(set(positions)) == len(positions)
    for kind in (True, False):
        shown = [position for batch in grouped for index, position in batch if landscape[index] == kind]
        stream = take(training_draws(np.ones(len(landscape)), seed), max(positions) + 1)
        expected = [position for index, position in stream if landscape[index] == kind]
        assert shown == expected[: len(shown)], "draws of a kind keep their order and none is skipped"


def test_batches_without_grouping_are_the_stream():
    stream = take(training_draws(np.ones(7), 3), 20)
    assert sum(take(batches(iter(stream), 4, None), 5), []) == stream


@pytest.mark.parametrize(
    "num_images, world_size, shares", [(5, 2, [3, 2]), (4, 4, [1, 1, 1, 1]), (10, 3, [4, 3, 3]), (1, 1, [1])]
)
def test_test_images_are_split_without_overlap(num_images, world_size, shares):
    parts = [indices_of_rank(num_images, rank, world_size) for rank in range(world_size)]
    assert [len(part) for part in parts] == shares
    assert [index for part in parts for index in part] == list(range(num_images))
