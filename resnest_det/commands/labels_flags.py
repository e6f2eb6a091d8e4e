"""The flags of commands that read labels, and what they print of them."""

import argparse
import os

from resnest_det.data.formats.labels import KINDS, Labels, counts_by_name
from resnest_det.data.formats.reading import read_labels
from resnest_det.data.formats.splits import find_labels
from resnest_det.errors import printable

_MOST_CLASSES = 100  # that are listed


def add_labels_flags(parser: argparse.ArgumentParser) -> None:
    """IN and what may have to be said of it."""
    parser.add_argument("source", metavar="IN", help="a file with labels, or a folder with labels and images")
    parser.add_argument("--from", dest="kind", choices=KINDS, help="format of IN (default: recognised by looking)")
    parser.add_argument("--images", metavar="DIR", help="folder of the images (default: looked for near the labels)")
    parser.add_argument("--split", metavar="NAME", help="train, val or test, of labels that have several")


def labels_of(options: argparse.Namespace, *, need_images: bool) -> Labels:
    """The labels of the flags.

    Raises:
        UserError: see `resnest_det.data.formats.splits.find_labels` and `read_labels`.
    """
    source = os.path.expanduser(options.source)
    images = None if options.images is None else os.path.expanduser(options.images)
    return read_labels(find_labels(source, options.kind, images, options.split), need_images=need_images)


def tell(labels: Labels) -> None:
    """Print what was read, and what was mended and left out."""
    counts, content = counts_by_name(labels.content), labels.content
    print(
        printable(f"{labels.files.path}: {labels.files.kind}, {len(content.images)} images, {len(content.annotations)} objects")
    )
    found = [(name, count) for name, count in counts.most_common(_MOST_CLASSES) if count]
    width = max((len(name) for name, _ in found), default=0)
    for name, count in found:
        print(printable(f"  {name:{width}}  {count}"))
    if len(found) < len(counts):
        empty = sum(not count for count in counts.values())
        print(f"  and {len(counts) - len(found)} more classes, {empty} of them without an object")
    for line in labels.notes:
        print(printable(line))
