"""What a dataset is, in numbers: images, objects, classes and sizes, for people at the start of a run and for rules about it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from resnest_det.data.instance_records import objects_of, sizes_of
from resnest_det.data.records import Record

RARE = 10  # objects: of fewer a class is hardly learned, and its AP says little
_SHOWN = 12  # classes in a line
_SMALL, _LARGE = 32, 96  # pixels, COCO's borders of small, medium and large objects


@dataclass(frozen=True)
class Statistics:
    """A dataset in numbers.

    Attributes:
        name: of the dataset, or of several that are trained on together.
        classes: names of the classes of objects.
        image_sizes: (N, 2) float64, height and width of each image in pixels.
        boxes: (M, 2) float64, width and height of each object in pixels; crowds are left out.
        labels: (M,) class of each object.
        image_of: (M,) number of its image.
        masks: how many of the objects have a mask.
        crowds: regions with objects that were not told apart.
        left_out: reason to how many annotations were not taken for it.
    """

    name: str
    classes: Sequence[str]
    image_sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    image_of: np.ndarray
    masks: int = 0
    crowds: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def objects_of(self) -> dict[str, int]:
        """Objects of each class by its name, in the order of the classes."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist()))

    @property
    def without_objects(self) -> int:
        """Images without an object."""
        return len(self.image_sizes) - len(np.unique(self.image_of))

    @property
    def sizes(self) -> np.ndarray:
        """(M,) float64, square root of the area of each object's box, in pixels."""
        return np.sqrt(self.boxes.prod(axis=1))


def statistics_of(
    name: str, records: Sequence[Record], classes: Sequence[str], left_out: Mapping[str, int] | None = None
) -> Statistics:
    """Count records. Objects whose boxes are only in a PNG file (`objects_in_png`) are counted as 0 pixels wide and high."""
    objects = objects_of(records)
    told_apart = ~objects.crowd
    return Statistics(
        name,
        classes,
        sizes_of(records).astype(np.float64),
        objects.sides[told_apart],
        objects.label[told_apart],
        objects.record[told_apart],
        int(objects.mask[told_apart].sum()),
        int(objects.crowd.sum()),
        dict(left_out or {}),
    )


def describe(data: Statistics) -> list[str]:
    """What there is, in a few lines."""
    heights, widths = data.image_sizes.T
    lines = [
        f"{data.name}: {_count(len(data.image_sizes), 'image')} of {_range(widths)} x {_range(heights)} pixels (width x height)"
    ]
    if not data.classes:
        return [*lines, *_left_out(data)]
    lines[0] += f", {data.without_objects} without objects"
    with_masks = f", {data.masks} with a mask" if data.masks < len(data.boxes) else ""
    crowds = f", and {_count(data.crowds, 'crowd region')}" if data.crowds else ""
    lines.append(f"{data.name}: {_count(len(data.boxes), 'object')}{with_masks}{crowds} of {_classes(data)}")
    sizes = data.sizes[data.sizes > 0]
    if len(sizes):
        small, large = sizes < _SMALL, sizes >= _LARGE
        shares = f"{small.mean():.0%} small, {(~small & ~large).mean():.0%} medium, {large.mean():.0%} large"
        low, middle, high = np.percentile(sizes, (5, 50, 95))
        lines.append(
            f"{data.name}: sizes of objects (root of the area) {low:.0f} to {high:.0f} pixels, 5 % below and above, median "
            f"{middle:.0f}; {shares} as COCO counts"
        )
    return lines + _left_out(data)


def _left_out(data: Statistics) -> list[str]:
    parts = [f"{count} {why}" for why, count in data.left_out.items()]
    return [f"{data.name}: left out: {', '.join(parts)}"] if parts else []


def _classes(data: Statistics) -> str:
    counts = Counter(data.objects_of).most_common()
    text = _count(len(counts), "class", "classes")
    if len(counts) > _SHOWN:
        half = _SHOWN // 2
        most, fewest = _named(counts[:half]), _named(counts[-half:])
        return f"{text}; most: {most}; fewest: {fewest}"
    return f"{text}: {_named(counts)}"


def doubts(train: Statistics | None, tests: Sequence[Statistics]) -> list[str]:
    """What is worth knowing before hours are spent: classes that are rare, or missing in one of the splits."""
    lines = []
    if train is not None:
        absent, rare = _of_counts(train, 0, 1), _of_counts(train, 1, RARE)
        if absent:
            lines.append(f"{train.name} has no object of {_names(absent)}: nothing can be learned of it")
        if rare:
            lines.append(f"{train.name} has fewer than {RARE} objects of {_named(rare)}")
    for test in tests:
        if not len(test.boxes):
            continue  # it only lists images, or has labels of pixels
        absent = [pair for pair in _of_counts(test, 0, 1) if train is None or train.objects_of.get(pair[0], 0)]
        rare = _of_counts(test, 1, RARE)
        if absent:
            lines.append(f"{test.name} has no object of {_names(absent)}: its AP will be nan and counts nowhere")
        if rare:
            lines.append(f"{test.name} has fewer than {RARE} objects of {_named(rare)}: their AP says little")
    return lines


def _of_counts(data: Statistics, least: int, below: int) -> list[tuple[str, int]]:
    return [(name, count) for name, count in data.objects_of.items() if least <= count < below]


def _names(counts: list[tuple[str, int]]) -> str:
    shown = ", ".join(name for name, _ in counts[:_SHOWN])
    return shown + (f" and {len(counts) - _SHOWN} more classes" if len(counts) > _SHOWN else "")


def _named(counts: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in counts[:_SHOWN])
    return shown + (f" and {len(counts) - _SHOWN} more classes" if len(counts) > _SHOWN else "")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _range(values: np.ndarray) -> str:
    if not len(values):
        return "0"
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low}-{high}"
