"""Which image is shown when: streams of training draws that depend on the seed and the position alone."""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from resnest_det.data.records import Record

# One draw: the record's index, and the draw's position in the whole run, which seeds its augmentation.
Draw = tuple[int, int]


def training_draws(repeat_factors: np.ndarray, seed: int) -> Iterator[Draw]:
    """Shuffled passes over all images, without end.

    A pass shows image i `repeat_factors[i]` times on average: the whole part surely, the fraction as a chance (stochastic
    rounding, as in Detectron2's RepeatFactorTrainingSampler). Factors of one show every image once a pass.

    Args:
        repeat_factors: (N,) float, at least one each.
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


def repeat_factors_from_categories(records: list[Record], threshold: float, square_root: bool = True) -> np.ndarray:
    """How often to show each image so that rare categories are seen more (LVIS, https://arxiv.org/abs/1908.03195, appendix B.2).

    A category that a fraction f of the images contains gets max(1, sqrt(threshold / f)), without the root when
    `square_root` is False; an image gets the largest factor of its categories, 1 with none.

    Returns:
        (N,) float64.
    """
    categories = [{annotation["category_id"] for annotation in record["annotations"]} for record in records]
    images_with = Counter(category for present in categories for category in present)
    factors = {}
    for category, count in images_with.items():
        ratio = threshold * len(records) / count
        factors[category] = max(1.0, math.sqrt(ratio) if square_root else ratio)
    return np.array([max((factors[category] for category in present), default=1.0) for present in categories])


def batches(draws: Iterator[Draw], batch_size: int, landscape: list[bool] | None) -> Iterator[list[Draw]]:
    """Group draws into batches in the order in which batches fill up.

    Args:
        batch_size: images of a batch over all processes.
        landscape: for each image whether it is wider than high; a batch then holds images of one kind, which need less
            padding. None mixes them.
    """
    filling: dict[bool, list[Draw]] = {False: [], True: []}
    for draw in draws:
        kind = landscape is not None and landscape[draw[0]]
        filling[kind].append(draw)
        if len(filling[kind]) == batch_size:
            yield filling[kind]
            filling[kind] = []


def inference_indices(num_images: int, rank: int, world_size: int) -> range:
    """The images that one process evaluates: consecutive shares, the first ones larger by one where it does not divide."""
    share, left = divmod(num_images, world_size)
    begin = rank * share + min(rank, left)
    return range(begin, begin + share + (rank < left))
