"""Where labels of any format are, what was read of them, and what had to be mended."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from resnest_det.data.annotation_files import Annotation, InstanceFile
from resnest_det.errors import printable

# The formats by the name that `--from` has for each.
KINDS = ("coco", "panoptic", "yolo", "voc", "labelme", "cvat", "label-studio", "masks", "csv")

# What `Notes` count, in the same words for every format.
ABSENT = "left out: labels of images that are absent"
RENAMED = "mended: names of images, found under another path, suffix or spelling"


@dataclass(frozen=True)
class LabelFiles:
    """Where a dataset in a format of `KINDS` lives, or the part of it that is one split.

    Attributes:
        path: the file with the labels, or the folder of such files.
        image_root: folder to look for the images in; they may be in folders of it.
        split: which of the splits that the labels themselves tell apart: a key of YOLO's data.yaml, the path of VOC's text with
            names of images, a value of the column "split" of a CSV. None: all of them.
        part: ("train" or "val", seed): this part of a split 80 to 20. None: all of it.
        classes: names of the classes in their order; without them, the labels' own. A folder's splits have the same ones.
    """

    path: str
    kind: str
    image_root: str
    split: str | None = None
    part: tuple[str, int] | None = None
    classes: tuple[str, ...] = ()


class PlacedAnnotation(Annotation, gc=False, kw_only=True):
    """An object of a file that is not COCO's; `place` is its file and line."""

    place: str

    def called(self) -> str:
        return f"annotation {self.id} ({self.place})"


class Notes:
    """What was mended, left out or is worth knowing, each kind with how many there are and where the first is."""

    def __init__(self) -> None:
        self._found: dict[str, list] = {}

    def add(self, what: str, place: str, count: int = 1) -> None:
        """Count `what`, such as "mended: boxes with exchanged corners"."""
        self._found.setdefault(what, [0, place])[0] += count

    def count(self, what: str) -> int:
        return self._found.get(what, (0,))[0]

    def __iter__(self) -> Iterator[str]:
        """A line for each kind, in the order in which they were found."""
        for what, (count, place) in self._found.items():
            verb, _, rest = what.partition(": ")
            more = ", ..." if count > 1 else ""
            yield printable(f"{'' if verb == 'told' else f'{verb} '}{count} {rest} ({place[:300]}{more})")


def counts_by_name(content: InstanceFile) -> Counter:
    """Objects of each class by its name; classes without any count 0."""
    names = {category.id: str(category.name) for category in content.categories}
    counts = Counter(dict.fromkeys(names.values(), 0))
    counts.update(names[annotation.category_id] for annotation in content.annotations or () if annotation.category_id in names)
    return counts


@dataclass
class Labels:
    """Labels that were read: `content` with file names from `image_root`, and what had to be mended.

    `listed`: the labels have a list of classes; otherwise their names are typed with each object.
    """

    files: LabelFiles
    content: InstanceFile
    image_root: str
    notes: Notes
    listed: bool
