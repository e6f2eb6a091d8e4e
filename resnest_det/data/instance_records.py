"""An instance file's content as it lies packed: records and annotations are made when they are asked for.

Processes that open the same packed file share its memory, and forked ones do too: nothing writes to it.
"""

import os
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import overload

import numpy as np

from resnest_det.data.annotation_files import Annotation, Category, Image
from resnest_det.data.instance_columns import ids_from, names_from
from resnest_det.data.packed_file import Packed
from resnest_det.data.records import Record
from resnest_det.errors import UserError


class Instances:
    """The checked content of an instance file.

    Attributes:
        images: of the file, in the order of their ids.
        categories: likewise.
        annotations: those of images that the file lists, in its order; None where it only lists images. Polygons have three or
            more points, run lengths are compressed ({"size", "counts"}), and `iscrowd` is 0 or 1.
        file_name: of the annotations, for messages.
    """

    def __init__(self, packed: Packed, file_name: str):
        self._packed, self._columns, self._about = packed, packed.arrays, packed.about
        self.file_name = file_name

    def __reduce__(self):
        return Instances, (self._packed, self.file_name)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the file as it was read, in hexadecimal digits; None for labels of another format."""
        return self._about.get("sha256")

    @cached_property
    def images(self) -> list[Image]:
        sides = self._columns["sides"].tolist()
        entries = zip(self.image_ids, self.file_names, sides, strict=True)
        return [Image(number, name, height, width) for number, name, (width, height) in entries]

    @property
    def categories(self) -> list[Category]:
        return [Category(number, name) for number, name in zip(ids_from([each[0] for each in self._listed]), self.names)]

    @property
    def names(self) -> list[str]:
        """Of the categories."""
        return [name for _, name in self._listed]

    @property
    def _listed(self) -> list:
        return self._about["categories"]

    @property
    def annotations(self) -> "Annotations | None":
        return Annotations(self) if self._about["annotated"] else None

    @property
    def left_out(self) -> dict[str, tuple[int, str]]:
        """Why annotations are not trained on, to how many and what messages call the first."""
        return {what: (count, first) for what, (count, first) in self._about["left_out"].items()}

    @property
    def listed_twice(self) -> tuple[int, str] | None:
        """How many files have more than one image id, and the first of them."""
        return self._about["listed_twice"] and tuple(self._about["listed_twice"])

    @cached_property
    def image_ids(self) -> Sequence[int]:
        return self._ids("image_id")

    @cached_property
    def file_names(self) -> list[str]:
        return names_from(self._columns["file_names"], self._columns["file_name_end"])

    @property
    def annotation_ids(self) -> Sequence[int]:
        """In the file's order."""
        return self._ids("id")

    @cached_property
    def _annotation_ids(self) -> np.ndarray | list[int]:
        return self._columns["id"] if "id" in self._columns else ids_from(self._about["id"])

    def _ids(self, name: str) -> list[int]:
        return self._columns[name].tolist() if name in self._columns else ids_from(self._about[name])

    def ids_at(self, positions: np.ndarray) -> list[int]:
        """Ids of the annotations at these positions of the file."""
        if isinstance(self._annotation_ids, np.ndarray):
            return self._annotation_ids[positions].tolist()
        return [self._annotation_ids[at] for at in positions.tolist()]

    def column(self, name: str) -> np.ndarray:
        """A number of each annotation: "image" (position), "label", "box" (x, y, width, height), "area" (nan: none given),
        "crowd", "trained", "bytes" (0: no mask); or "sides" (width, height) of each image."""
        return self._columns[name]

    def trained_on(self, image: int) -> np.ndarray:
        """Positions of the annotations of the image at a position that are trained on."""
        start, end = self._columns["first"][image : image + 2].tolist()
        return self._columns["order"][start:end]

    @property
    def all_trained_on(self) -> np.ndarray:
        """Positions of the annotations that are trained on, by image."""
        return self._columns["order"]

    def segmentation(self, position: int) -> list[list[float]] | dict | None:
        """That of the annotation at a position of the file.

        Raises:
            UserError: the packed file was damaged since it was opened.
        """
        columns = self._columns
        start, size = int(columns["start"][position]), int(columns["bytes"][position])
        if not size:
            return None
        # The block begins behind the mark of the file.
        outline = self._packed.block[start : start + size]
        if zlib.crc32(outline) != columns["checksum"][position]:
            raise UserError(f"{self._packed.path}: damaged since this run opened it; remove it, and it is made anew")
        polygons = int(columns["polygons"][position])
        if not polygons:
            width, height = columns["sides"][columns["image"][position]].tolist()
            return {"size": [height, width], "counts": outline.tobytes()}
        coordinates = np.frombuffer(outline, dtype=np.float64).tolist()
        if polygons == 1:
            return [coordinates]
        first = int(columns["first_polygon"][position])
        ends = (2 * np.cumsum(columns["points"][first : first + polygons])).tolist()
        return [coordinates[start:end] for start, end in zip([0, *ends], ends)]


class Annotations(Sequence[Annotation]):
    """Annotations of an instance file, each made when it is asked for."""

    def __init__(self, instances: Instances):
        self._instances = instances

    def __len__(self) -> int:
        return len(self._instances.column("image"))

    def __getitem__(self, position: int) -> Annotation:
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        its, position = self._instances, position % len(self)
        area = float(its.column("area")[position])
        return Annotation(
            id=its.ids_at(np.array([position]))[0],
            image_id=its.image_ids[int(its.column("image")[position])],
            category_id=self._category_ids[int(its.column("label")[position])],
            bbox=tuple(its.column("box")[position].tolist()),
            area=None if area != area else area,
            iscrowd=int(its.column("crowd")[position]),
            segmentation=its.segmentation(position),
        )

    @cached_property
    def _category_ids(self) -> list[int]:
        return [category.id for category in self._instances.categories]


@dataclass(frozen=True)
class Objects:
    """The objects of N records in numbers.

    Attributes:
        record: (M,) int64, positions of their records.
        label: (M,) int64, classes.
        sides: (M, 2) float64, width and height of their boxes in pixels, 0 where only a PNG file has them, or nothing.
        crowd: (M,) bool.
        mask: (M,) bool, whether they have one.
    """

    record: np.ndarray
    label: np.ndarray
    sides: np.ndarray
    crowd: np.ndarray
    mask: np.ndarray


class Records(Sequence[Record]):
    """The records of an instance file, or some of them, each made when it is asked for.

    Args:
        rows: (N,) int, positions of the images in `instances`; None: all of them.
        labels: of each class in `instances` the class that it is here; None: the same.
        annotated: False: records have empty lists of annotations, which is all that some need, and quick.
        more: what else the record of each image in `instances` has.
    """

    def __init__(
        self,
        instances: Instances,
        image_root: str,
        rows: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        annotated: bool = True,
        more: Sequence[dict] | None = None,
    ):
        self.instances, self.image_root, self.more = instances, image_root, more
        self._rows = np.arange(len(instances.column("sides")), dtype=np.int32) if rows is None else rows
        self._labels = np.arange(len(instances.names)) if labels is None else labels
        self._annotated = annotated

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> "Records": ...
    def __getitem__(self, index):
        """A record, or those of a slice or of (K,) positions or a mask (N,)."""
        if isinstance(index, (slice, np.ndarray)):
            return Records(self.instances, self.image_root, self._rows[index], self._labels, self._annotated, self.more)
        return self._record(int(self._rows[index]))

    def without_annotations(self) -> "Records":
        """The same images."""
        return Records(self.instances, self.image_root, self._rows, self._labels, annotated=False)

    def with_labels(self, moved: dict[int, int]) -> "Records":
        """The same with other numbers of the classes."""
        labels = np.array([moved[label] for label in self._labels.tolist()], dtype=np.int64)
        return Records(self.instances, self.image_root, self._rows, labels, self._annotated, self.more)

    def with_more(self, more: Sequence[dict]) -> "Records":
        """The same with what else the record of each image has, in the order of their ids."""
        return Records(self.instances, self.image_root, self._rows, self._labels, self._annotated, more)

    def sizes(self) -> np.ndarray:
        """(N, 2) int32, height and width of each image."""
        return self.instances.column("sides")[self._rows][:, ::-1]

    def objects(self) -> Objects:
        """All objects that the records have, by record."""
        its = self.instances
        place = np.full(len(its.column("sides")), -1)
        place[self._rows] = np.arange(len(self))
        positions = its.all_trained_on
        record = place[its.column("image")[positions]]
        positions, record = positions[record >= 0], record[record >= 0]
        order = np.argsort(record, kind="stable")
        positions, record = positions[order], record[order]
        return Objects(
            record,
            self._labels[its.column("label")[positions]],
            its.column("box")[positions, 2:],
            its.column("crowd")[positions] > 0,
            its.column("bytes")[positions] > 0,
        )

    def _record(self, row: int) -> Record:
        its = self.instances
        width, height = its.column("sides")[row].tolist()
        record = {
            "file_name": os.path.join(self.image_root, its.file_names[row]),
            "height": height,
            "width": width,
            "image_id": its.image_ids[row],
            "annotations": self._annotations(row) if self._annotated else [],
        }
        return record if self.more is None else record | self.more[row]

    def _annotations(self, row: int) -> list[dict]:
        its = self.instances
        at = its.trained_on(row)
        numbers = zip(
            at.tolist(),
            its.ids_at(at),
            its.column("box")[at].tolist(),
            self._labels[its.column("label")[at]].tolist(),
            its.column("crowd")[at].tolist(),
        )
        entries = []
        for position, number, box, label, crowd in numbers:
            entry = {"id": number, "bbox": box, "category_id": label, "iscrowd": crowd}
            segmentation = its.segmentation(position)
            if segmentation is not None:
                entry["segmentation"] = segmentation
            entries.append(entry)
        return entries


class _Joined(Sequence[Record]):
    def __init__(self, parts: Sequence[Sequence[Record]]):
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part] - len(self.parts[part]))]


def joined(parts: Sequence[Sequence[Record]]) -> Sequence[Record]:
    """The records of one or more datasets behind each other; none are copied."""
    return parts[0] if len(parts) == 1 else _Joined(parts)


def images_of(records: Sequence[Record]) -> Sequence[Record]:
    """The records, without their annotations where that is quicker."""
    if isinstance(records, _Joined):
        return _Joined([images_of(part) for part in records.parts])
    return records.without_annotations() if isinstance(records, Records) else records


def sizes_of(records: Sequence[Record]) -> np.ndarray:
    """(N, 2) int, height and width of the image of each record."""
    if isinstance(records, _Joined):
        return np.concatenate([sizes_of(part) for part in records.parts])
    if isinstance(records, Records):
        return records.sizes()
    return np.array([(record["height"], record["width"]) for record in records], dtype=np.int64).reshape(-1, 2)


def objects_of(records: Sequence[Record]) -> Objects:
    """The objects of records in numbers."""
    if isinstance(records, _Joined):
        parts, starts = [objects_of(part) for part in records.parts], np.cumsum([0, *map(len, records.parts)])
        parts = [replace(part, record=part.record + start) for part, start in zip(parts, starts)]
        return Objects(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Objects)))
    if isinstance(records, Records):
        return records.objects()
    rows = [
        (
            number,
            each["category_id"],
            *each.get("bbox", (0, 0, 0, 0))[2:],
            each.get("iscrowd", 0),
            "bbox" not in each or "segmentation" in each,
        )
        for number, record in enumerate(records)
        for each in record["annotations"]
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    whole = table[:, :2].astype(np.int64)
    return Objects(whole[:, 0], whole[:, 1], table[:, 2:4], table[:, 4] > 0, table[:, 5] > 0)


def with_objects_only(records: Sequence[Record]) -> Sequence[Record]:
    """Those of a dataset's records that have an object; crowds are none."""
    objects = objects_of(records)
    which = np.unique(objects.record[~objects.crowd])
    return records[which] if isinstance(records, Records) else [records[at] for at in which.tolist()]
