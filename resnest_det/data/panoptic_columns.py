"""A panoptic file checked and put into columns, as they are packed into a file, and what they say of each image.

Processes that open the same packed file share its memory; what an image has in it is made when it is asked for.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain

import numpy as np

from resnest_det.data.annotation_files import (
    Image,
    PanopticAnnotation,
    PanopticCategory,
    PanopticFile,
    Segment,
    by_id,
    check_text,
    document_from,
    must_be,
)
from resnest_det.data.instance_columns import check_image, ids_from, ids_of, names_from, packed_names, whole_numbers
from resnest_det.data.packed_file import Packed, Writer
from resnest_det.data.panoptic_metadata import metadata_of
from resnest_det.data.panoptic_png import MAX_SEGMENT_ID
from resnest_det.data.records import SegmentInfo
from resnest_det.errors import UserError


def pack_panoptic(json_file: str) -> Callable[[bytes, Writer], None]:
    """What packs the bytes of a panoptic file, for `resnest_det.data.dataset_cache.packed_once`.

    Raises:
        UserError (when called): see `resnest_det.data.panoptic.load_coco_panoptic`.
    """

    def pack(content: bytes, out: Writer) -> None:
        file = document_from(content, PanopticFile, json_file)
        metadata_of("", file.categories, json_file, "", "")  # for its checks
        place = {category.id: index for index, category in enumerate(file.categories)}
        images = by_id(file.images, "image", json_file)
        annotations: dict[int, PanopticAnnotation] = {}
        for annotation in file.annotations:
            image_id = annotation.image_id
            if image_id in annotations:
                raise UserError(f"{json_file}: image {image_id} has more than one annotation")
            if image_id not in images:
                raise UserError(f'{json_file}: annotation of image {image_id}: image {image_id} is not in the list "images"')
            annotations[image_id] = annotation
            where = f"{json_file}: image {image_id}"
            _check_segments(annotation.segments_info, place, where)
            check_text(str(annotation.file_name), f"{where}: file_name")
            check_image(images[image_id], where)
        annotations = dict(sorted(annotations.items()))
        listed = [images[image_id] for image_id in annotations]
        segments = list(chain.from_iterable(annotation.segments_info for annotation in annotations.values()))
        counts = [len(annotation.segments_info) for annotation in annotations.values()]
        columns = {
            "sides": np.array([(image.width, image.height) for image in listed], dtype=np.int32).reshape(-1, 2),
            "first": np.cumsum([0, *counts], dtype=np.int64),
            "segment": np.array([segment.id for segment in segments], dtype=np.int32),
            "category": np.array([place[segment.category_id] for segment in segments], dtype=np.int32),
            "crowd": np.array([segment.iscrowd or 0 for segment in segments], dtype=np.uint8),
            "area": np.array([np.nan if segment.area is None else segment.area for segment in segments], dtype=np.float64),
        }
        for name, entries in (("image", listed), ("png", annotations.values())):
            columns[f"{name}_names"], columns[f"{name}_name_end"] = packed_names(str(entry.file_name) for entry in entries)
        categories = [[ids_of([each.id])[0], each.name, int(each.isthing), each.color] for each in file.categories]
        about = {"categories": categories, "unannotated": len(images) - len(annotations)}
        ids = whole_numbers(list(annotations))
        if ids is None:
            about["image_id"] = ids_of(list(annotations))
        else:
            columns["image_id"] = ids
        out.finish(columns, about)

    return pack


def _check_segments(segments: list[Segment], categories: dict[int, int], where: str) -> None:
    for info in segments:
        if not 0 < info.id <= MAX_SEGMENT_ID:
            raise UserError(f"{where}: a segment id is a whole number from 1 to {MAX_SEGMENT_ID}, which RGB holds, not {info.id}")
        if info.category_id not in categories:
            raise UserError(f'{where}: segment {info.id}: category id {info.category_id} is not in the list "categories"')
        if info.iscrowd not in (None, 0, 1):
            raise UserError(f"{where}: segment {info.id}: {must_be('iscrowd', info.iscrowd)}")
        if info.area is not None and not 0 <= info.area <= 1e10:
            raise UserError(f"{where}: segment {info.id}: {must_be('area', info.area)}")
    if len({info.id for info in segments}) < len(segments):
        seen: set[int] = set()
        twice = next(info.id for info in segments if info.id in seen or seen.add(info.id))
        raise UserError(f"{where}: segment id {twice} occurs more than once")


class PanopticColumns:
    """The checked content of a panoptic file: its images that have an annotation, in the order of their ids."""

    def __init__(self, packed: Packed):
        self._packed, self._columns = packed, packed.arrays

    def __reduce__(self):
        return PanopticColumns, (self._packed,)

    def __len__(self) -> int:
        return len(self._columns["sides"])

    @property
    def unannotated(self) -> int:
        """How many images of the file have no annotation."""
        return self._packed.about["unannotated"]

    @cached_property
    def categories(self) -> list[PanopticCategory]:
        listed = self._packed.about["categories"]
        numbers = ids_from([each[0] for each in listed])
        return [
            PanopticCategory(number, name, isthing, color and tuple(color))
            for number, (_, name, isthing, color) in zip(numbers, listed)
        ]

    @cached_property
    def image_ids(self) -> list[int]:
        written = self._packed.about.get("image_id")
        return self._columns["image_id"].tolist() if written is None else ids_from(written)

    @cached_property
    def images(self) -> list[Image]:
        entries = zip(self.image_ids, self._names("image"), self._columns["sides"].tolist(), strict=True)
        return [Image(number, name, height, width) for number, name, (width, height) in entries]

    @cached_property
    def png_names(self) -> list[str]:
        return self._names("png")

    def _names(self, kind: str) -> list[str]:
        return names_from(self._columns[f"{kind}_names"], self._columns[f"{kind}_name_end"])

    def segments(self, row: int) -> list[tuple[int, int, int, float]]:
        """Of the image at a position: (id, position of the category, crowd, area or nan) of each."""
        start, end = self._columns["first"][row : row + 2].tolist()
        return list(zip(*(self._columns[name][start:end].tolist() for name in ("segment", "category", "crowd", "area"))))

    def document(self) -> PanopticFile:
        """The file without images that have no annotation."""
        ids = [category.id for category in self.categories]
        annotations = [
            PanopticAnnotation(
                image_id,
                name,
                [
                    Segment(number, ids[at], crowd, None if area != area else area)
                    for number, at, crowd, area in self.segments(row)
                ],
            )
            for row, (image_id, name) in enumerate(zip(self.image_ids, self.png_names))
        ]
        return PanopticFile(self.images, self.categories, annotations)


class PanopticParts(Sequence[dict]):
    """`pan_seg_file_name` and `segments_info` of the record of each image.

    Args:
        root: folder of the PNG files.
        labels: contiguous class of each category of `columns`, among things or among stuff.
    """

    def __init__(self, columns: PanopticColumns, root: str, labels: Sequence[int]):
        self.columns, self.root, self.labels = columns, root, labels

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, row: int) -> dict:
        if not 0 <= row < len(self):
            raise IndexError(row)
        categories = self.columns.categories
        segments = [
            SegmentInfo(id=number, category_id=self.labels[at], isthing=bool(categories[at].isthing), iscrowd=crowd)
            for number, at, crowd, _ in self.columns.segments(row)
        ]
        name = self.columns.png_names[row]
        return {"pan_seg_file_name": os.path.join(self.root, name), "segments_info": segments, "objects_in_png": False}

    def with_labels(self, moved: dict[int, int], isthing: bool) -> "PanopticParts":
        """The same with other numbers of the classes of things, or of stuff."""
        of_kind = (bool(category.isthing) == isthing for category in self.columns.categories)
        labels = [moved[label] if is_moved else label for label, is_moved in zip(self.labels, of_kind)]
        return PanopticParts(self.columns, self.root, labels)
