"""PASCAL-Context as `trainval_merged.json`, the file from which the authors and MMSegmentation make their labels."""

import os
from collections import defaultdict
from dataclasses import dataclass

import msgspec

from resnest_det.data.annotation_files import RunLengths, without_collector
from resnest_det.data.benchmarks import PASCAL_CONTEXT, PASCAL_CONTEXT_IDS
from resnest_det.data.coco import Dataset
from resnest_det.data.json_files import read_bytes
from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.outlines import compressed
from resnest_det.data.records import Record
from resnest_det.data.semantic import SemanticMetadata
from resnest_det.errors import UserError, shown

PHASES = ("train", "val")


@dataclass(frozen=True)
class PascalContextFiles:
    """Where PASCAL-Context lives.

    Attributes:
        merged_json: `trainval_merged.json`.
        image_root: folder of VOC 2010's images.
        phase: which of `PHASES` to take.
    """

    merged_json: str
    image_root: str
    phase: str


class _Image(msgspec.Struct, gc=False):
    image_id: int
    file_name: str
    phase: str
    height: int
    width: int


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    segmentation: RunLengths


class _Merged(msgspec.Struct):
    images: list[_Image]
    annos_segmentation: list[_Annotation]


def load_pascal_context(name: str, files: PascalContextFiles) -> Dataset:
    """List the images of a phase with the masks of their 59 classes; pixels of other categories have no label.

    Records are sorted by file name and have `label_masks`, see `resnest_det.data.records.Record`.

    Raises:
        UserError: the file cannot be read, is another one, has a mask of another size than its image, or no image of that phase.
    """
    path = files.merged_json
    with without_collector():
        try:
            merged = msgspec.json.decode(read_bytes(path), type=_Merged)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(
                f"{path} is not PASCAL-Context's trainval_merged.json, which has images and annos_segmentation: "
                f"{shown(str(error), 200)}"
            ) from None
    indices = {category: index for index, category in enumerate(PASCAL_CONTEXT_IDS)}
    images = {image.image_id: image for image in merged.images if image.phase == files.phase}
    masks: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for annotation in merged.annos_segmentation:
        image = images.get(annotation.image_id)
        if image is None:
            continue
        where = f"{path}: category {annotation.category_id} of {image.file_name}"
        encoded = compressed(annotation.segmentation, image.image_id, image.height, image.width, where)
        masks[image.image_id].append((indices.get(annotation.category_id, UNLABELLED), encoded["counts"]))
    if not images:
        raise UserError(f"{path} has no image of phase {files.phase!r}")
    astray = next((image for image in images.values() if os.path.basename(image.file_name) != image.file_name), None)
    if astray is not None:
        raise UserError(
            f"{path}: image {astray.image_id}: file_name {shown(astray.file_name)} is not the name of a file of a folder"
        )
    records = [
        Record(
            file_name=os.path.join(files.image_root, image.file_name),
            height=image.height,
            width=image.width,
            image_id=image.image_id,
            annotations=[],
            label_masks=tuple(masks[image.image_id]),
        )
        for image in sorted(images.values(), key=lambda image: image.file_name)
    ]
    own = tuple(range(1, len(PASCAL_CONTEXT.names) + 1))
    names, colors = list(PASCAL_CONTEXT.names), list(PASCAL_CONTEXT.colors)
    metadata = SemanticMetadata(name, None, files.image_root, [], {}, names, colors, label_values=own)
    return Dataset(name, records, metadata)
