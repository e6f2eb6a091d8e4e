"""Which image is shown when: streams of training draws that depend only on the seed and the position."""

from collections.abc import Iterator, Sequence

import numpy as np

from resnest_det.data.instance_records import objects_of
from resnest_det.data.records import Record

# One draw: the record's index, and the draw's position in the whole run, which seeds its augmentation.
Draw = tuple[int, int]


def training_draws(repeat_factors: np.ndarray, seed: int) -> Iterator[Draw]:
    """Endless shuffled passes over all images.

    A pass shows image i `repeat_factors[i]` times on average: always the whole part, and once more with the fraction as
    probability (stochastic rounding, as in Detectron2's RepeatFactorTrainingSampler).

    Args:
        repeat_factors: (N,) float, each at least 1, which shows an image once per pass.
    """
    position = 0
    epoch = 0
    whole = np.floor(repeat_factors)
    fraction = repeat_factors - whole
    while True:
        generator = np.random.default_rng([seed, epoch])
        times = (whole + (generator.random(len(whole)) < fraction)).astype(np.int64)
        indices = np.repeat(np.arange(len(whole)), times)
        for index in generator.permutation(indices).tolist():
            yield index, position
            position += 1
        epoch += 1


SHARDS_OPEN = 16  # tar files whose images are mixed


def shard_draws(shards: np.ndarray, seed: int) -> Iterator[Draw]:
    """Endless passes over images in tar files, each read from few files at a time: these come in random order, and the images
    of `SHARDS_OPEN` of them mixed.

    Args:
        shards: (N,) the number of the file that each image is in.
    """
    members = [np.flatnonzero(shards == number) for number in np.unique(shards)]
    position = epoch = 0
    while True:
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(members))
        for first in range(0, len(order), SHARDS_OPEN):
            together = np.concatenate([members[number] for number in order[first : first + SHARDS_OPEN]])
            for index in generator.permutation(together).tolist():
                yield index, position
                position += 1
        epoch += 1


def repeat_factors_from_categories(records: Sequence[Record], threshold: float, square_root: bool = True) -> np.ndarray:
    """How often to show each image so that rare categories are seen more (LVIS, https://arxiv.org/abs/1908.03195, appendix B.2).

    A category in a fraction f of the images gets max(1, sqrt(threshold / f)), without the root if not `square_root`. An
    image gets the largest factor of its categories, or 1 without any.

    Returns:
        (N,) float64.
    """
    objects = objects_of(records)
    categories = int(objects.label.max(initial=0)) + 1
    image, category = np.divmod(np.unique(objects.record * categories + objects.label), categories)
    ratios = threshold * len(records) / np.bincount(category, minlength=categories).clip(min=1)
    factors = np.maximum(1.0, np.sqrt(ratios) if square_root else ratios)
    result = np.ones(len(records))
    np.maximum.at(result, image, factors[category])
    return result


def batches(draws: Iterator[Draw], batch_size: int, landscape: list[bool] | None) -> Iterator[list[Draw]]:
    """Group draws into batches, in the order in which batches fill up.

    Args:
        batch_size: images in a batch of all processes together.
        landscape: whether each image is wider than high; a batch then holds images of one kind, which need less padding.
            None mixes them.
    """
    filling: dict[bool, list[Draw]] = {False: [], True: []}
    for draw in draws:
        kind = landscape is not None and landscape[draw[0]]
        filling[kind].append(draw)
        if len(filling[kind]) == batch_size:
            yield filling[kind]
            filling[kind] = []


def inference_indices(num_images: int, rank: int, world_size: int) -> range:
    """One process's consecutive share of images; the first ones get one extra image when the count does not divide evenly."""
    share, left = divmod(num_images, world_size)
    begin = rank * share + min(rank, left)
    return range(begin, begin + share + (rank < left))
