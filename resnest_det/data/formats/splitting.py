"""Which images are for training and which for evaluation: with the classes in the same proportions, the same for a seed."""

import re
from collections import Counter

import numpy as np

from resnest_det.data.annotation_files import InstanceFile
from resnest_det.errors import ArgumentError, UserError


def split_images(
    content: InstanceFile, fraction: float, seed: int, *, stratified: bool = True, group: str | None = None
) -> tuple[set[int], set[int]]:
    """Ids of the images for training and of those for evaluation, about `fraction` of all.

    Both are made of whole groups. The draw goes by the names of the files, not by their order in the document.

    Args:
        fraction: of the images, above 0 and below 1; at least one image is in either part.
        stratified: give every class its share, the rarest first (Sechidis, Tsoumakas, Vlahavas: "On the stratification of
            multi-label data", 2011). False: by chance alone.
        group: a regular expression; images whose names have the same first group, or else the same match, stay together. Images
            that it does not match are each a group of their own.

    Raises:
        ArgumentError: a fraction outside of (0, 1), an expression that is none, or a single group.
    """
    if not 0 < fraction < 1:
        raise ArgumentError("fraction", f"is {fraction}; it must be above 0 and below 1")
    groups = _groups(content, group)
    if len(groups) < 2:
        if group:
            raise ArgumentError("group", f"is {group!r}, which makes {len(groups)} group of the images; two parts need two")
        raise UserError(f"{len(groups)} image: one part for training and one for evaluation need two")
    order = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
    wanted = min(max(round(fraction * len(content.images)), 1), len(content.images) - 1)
    chosen = _stratified(content, order, wanted, fraction) if stratified else _first(order, wanted)
    val = {image_id for index in chosen for image_id in order[index]}
    return {image.id for image in content.images} - val, val


def _groups(content: InstanceFile, group: str | None) -> list[list[int]]:
    try:
        pattern = re.compile(group) if group else None
    except re.error as error:
        raise ArgumentError("group", f"is {group!r}, which is no regular expression: {error}") from None
    by_key: dict[tuple[bool, str], list[int]] = {}
    for image in sorted(content.images, key=lambda image: (str(image.file_name), image.id)):
        found = pattern.search(str(image.file_name)) if pattern else None
        if found is None:
            key = (False, f"{image.file_name}\n{image.id}")
        else:
            key = (True, (found.group(1) if pattern.groups else found.group()) or "")
        by_key.setdefault(key, []).append(image.id)
    return list(by_key.values())


def _first(order: list[list[int]], wanted: int) -> list[int]:
    """Groups in their order, while they bring the number of images nearer to `wanted`; never all of them."""
    chosen, count = [], 0
    for index, members in enumerate(order[:-1]):
        if abs(count + len(members) - wanted) < abs(count - wanted):
            chosen.append(index)
            count += len(members)
    return chosen or [min(range(len(order)), key=lambda index: len(order[index]))]


def _stratified(content: InstanceFile, order: list[list[int]], wanted: int, fraction: float) -> list[int]:
    """Groups for evaluation. Of each class, the rarest first, a group goes where more of its objects are still wanted."""
    group_of = {image_id: index for index, members in enumerate(order) for image_id in members}
    counts: list[Counter] = [Counter() for _ in order]
    for annotation in content.annotations or ():
        if annotation.image_id in group_of:
            counts[group_of[annotation.image_id]][annotation.category_id] += 1
    of_class: dict[int, list[int]] = {}
    for index, has in enumerate(counts):
        for category_id in has:
            of_class.setdefault(category_id, []).append(index)
    total = sum(counts, Counter())
    # Images and objects of each class that the part for evaluation, or that for training, still takes.
    room = {True: wanted, False: len(content.images) - wanted}
    objects = {
        val: {category_id: share * count for category_id, count in total.items()}
        for val, share in ((True, fraction), (False, 1 - fraction))
    }
    placed: dict[int, bool] = {}

    def place(index: int, val: bool) -> None:
        placed[index] = val
        room[val] -= len(order[index])
        for category_id, count in counts[index].items():
            objects[val][category_id] -= count

    for category_id in sorted(of_class, key=lambda category_id: (len(of_class[category_id]), category_id)):
        members = of_class[category_id]
        for index in [index for index in members if index not in placed]:
            wants = objects[True][category_id] - objects[False][category_id]
            # A class of two groups is in both parts, one of a single group in that for training.
            last_chance = all(placed.get(other) is False for other in members if other != index) and len(members) > 1
            place(index, last_chance or (wants > 0 and len(members) > 1))
    for index in range(len(order)):
        if index not in placed:
            place(index, room[True] > 0 and room[True] * (1 - fraction) >= room[False] * fraction)
    chosen = [index for index in range(len(order)) if placed[index]]
    if chosen and len(chosen) < len(order):
        return chosen
    return _first(order, wanted)
