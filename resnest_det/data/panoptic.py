"""COCO panoptic annotations (https://cocodataset.org/#format-data, item 4): reading them, and targets made from them.

Classes are counted as in Detectron2's "separated" form: things from 0 among themselves; stuff from 1, with 0 for all things
together, and 255 for pixels without a label.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pycocotools.mask as mask_util

from resnest_det.data.annotation_files import Image, without_collector
from resnest_det.data.coco import Dataset, load_coco_instances, with_classes
from resnest_det.data.dataset_cache import packed_once
from resnest_det.data.image import READERS
from resnest_det.data.image_files import check_files
from resnest_det.data.instance_records import Records
from resnest_det.data.label_masks import read_label_masks
from resnest_det.data.label_png import UNLABELLED, read_label_png
from resnest_det.data.panoptic_columns import PanopticColumns, PanopticParts, pack_panoptic
from resnest_det.data.panoptic_metadata import PanopticMetadata, metadata_of
from resnest_det.data.panoptic_png import check_panoptic_png, read_segment_ids
from resnest_det.data.records import Annotation, Record, SegmentInfo
from resnest_det.errors import UserError, shown

logger = logging.getLogger(__name__)


@without_collector()
def load_coco_panoptic(
    name: str,
    panoptic_json: str,
    panoptic_root: str,
    image_root: str,
    instances_json: str | None = None,
    *,
    stuff_only: bool = False,
    keep_truth: bool = False,
) -> Dataset:
    """Read a COCO panoptic JSON file, and check that the PNG files exist.

    Records are sorted by image id, and have `pan_seg_file_name` and `segments_info`. Images without annotation are left out, with
    a log line.

    Args:
        panoptic_root: folder of the PNG files.
        instances_json: instance annotations of the same images. Without it, `annotations` are the thing segments; records say
            so by `objects_in_png`.
        stuff_only: no instances at all: `annotations` are empty and `thing_classes` too.
        keep_truth: keep what the files say as `Dataset.truth` and `Dataset.panoptic_truth`; PNG files have to be of their images'
            sizes then.

    Raises:
        UserError: see `resnest_det.data.coco.load_coco_instances`; also a category without "isthing", a segment id that is
            0, does not fit 24 bits or occurs twice in an image, a PNG file that is absent, or instance annotations with
            other categories, images or sizes. The message names the file and the entry.
    """
    panoptic_json = str(panoptic_json)
    columns = PanopticColumns(packed_once(panoptic_json, "panoptic", pack_panoptic(panoptic_json)))
    metadata = metadata_of(name, columns.categories, panoptic_json, panoptic_root, image_root)
    contiguous = metadata.thing_dataset_id_to_contiguous_id | metadata.stuff_dataset_id_to_contiguous_id
    parts = PanopticParts(columns, metadata.panoptic_root, [contiguous[category.id] for category in columns.categories])
    pngs = [
        {
            "pan_seg_file_name": os.path.join(metadata.panoptic_root, png),
            "image_id": image.id,
            "size": (image.height, image.width),
        }
        for png, image in zip(columns.png_names, columns.images)
    ]
    check_files(pngs, "pan_seg_file_name", panoptic_root, "panoptic PNG")
    if keep_truth:
        # Evaluation decodes a file before it asks for its size, and only after the training.
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda png: check_panoptic_png(png["pan_seg_file_name"], png["size"]), pngs))
    if columns.unannotated:
        logger.warning("%s: left out %d images without annotation", panoptic_json, columns.unannotated)

    truth, left_out = None, {}
    if instances_json is not None and not stuff_only:
        metadata = PanopticMetadata(**vars(metadata) | {"json_file": str(instances_json)})
        instances = load_coco_instances(name, instances_json, image_root, keep_truth=keep_truth)
        _check_same(columns, metadata, instances)
        records = instances.records.with_more(parts)
        truth, left_out = instances.truth, instances.left_out
    else:
        records = [_record(image, part, metadata.image_root) for image, part in zip(columns.images, parts)]
    if stuff_only:
        for record in records:
            record.update(annotations=[], objects_in_png=False)
        metadata = PanopticMetadata(
            **vars(metadata) | {"thing_classes": [], "thing_colors": [], "thing_dataset_id_to_contiguous_id": {}}
        )
    return Dataset(name, records, metadata, truth, columns.document() if keep_truth else None, left_out)


def with_panoptic_classes(dataset: Dataset, things: list[str] | None, stuff: list[str] | None) -> Dataset:
    """A dataset with its classes counted in the order of these names, which are those it has; None leaves them as they are."""
    if things is not None and things != dataset.metadata.thing_classes:
        order = [dataset.metadata.thing_classes.index(name) for name in things]
        dataset = with_classes(dataset, things)
        if isinstance(dataset.metadata, PanopticMetadata):
            colors = [dataset.metadata.thing_colors[old] for old in order]
            dataset = replace(dataset, metadata=replace(dataset.metadata, thing_colors=colors))
            moved = {old: new for new, old in enumerate(order)}
            dataset = _with_segments_moved(dataset, moved, isthing=True)
    if stuff is not None and isinstance(dataset.metadata, PanopticMetadata) and stuff != dataset.metadata.stuff_classes:
        metadata = dataset.metadata
        order = [metadata.stuff_classes.index(name) for name in stuff]
        moved = {old: new for new, old in enumerate(order)}
        ids = {category_id: moved[old] for category_id, old in metadata.stuff_dataset_id_to_contiguous_id.items()}
        colors = [metadata.stuff_colors[old] for old in order]
        changed = {"stuff_classes": list(stuff), "stuff_colors": colors, "stuff_dataset_id_to_contiguous_id": ids}
        dataset = _with_segments_moved(replace(dataset, metadata=replace(metadata, **changed)), moved, isthing=False)
    return dataset


def _with_segments_moved(dataset: Dataset, moved: dict[int, int], *, isthing: bool) -> Dataset:
    if all(old == new for old, new in moved.items()):
        return dataset

    def changed(info: dict) -> dict:
        return info | {"category_id": moved[info["category_id"]]} if info["isthing"] == isthing else info

    if isinstance(dataset.records, Records):
        return replace(dataset, records=dataset.records.with_more(dataset.records.more.with_labels(moved, isthing)))
    records = [record | {"segments_info": [changed(info) for info in record["segments_info"]]} for record in dataset.records]
    return replace(dataset, records=records)


def read_record_segments(record: Record) -> np.ndarray:
    """The segment ids of a record's PNG file, (H, W) uint32, 0 where there is none.

    Raises:
        UserError: see `read_segment_ids`; also where its segments are not those of the record's `segments_info`.
    """
    file_name = record["pan_seg_file_name"]
    segment_ids = read_segment_ids(file_name, (record["height"], record["width"]))
    drawn = set(np.unique(_runs(segment_ids)[1]).tolist()) - {0}
    listed = {info["id"] for info in record["segments_info"]}
    if drawn - listed:
        raise UserError(
            f"panoptic PNG {file_name} has a segment {min(drawn - listed)}, which is not in the annotation of "
            f"image {record['image_id']}"
        )
    if listed - drawn:
        raise UserError(
            f"panoptic PNG {file_name} lacks segment {min(listed - drawn)}, which is in the annotation of "
            f"image {record['image_id']}"
        )
    return segment_ids


def semantic_labels(segment_ids: np.ndarray, segments_info: list[SegmentInfo]) -> np.ndarray:
    """The semantic target (H, W) uint8: 0 for things, 1..S for stuff, 255 where there is no segment.

    Args:
        segment_ids: (H, W) uint32.
        segments_info: of a record; each of `segment_ids` but 0 is in it.
    """
    labels = {0: UNLABELLED} | {info["id"]: 0 if info["isthing"] else info["category_id"] for info in segments_info}
    ids = np.array(sorted(labels))
    starts, values = _runs(segment_ids)
    run_labels = np.array([labels[segment_id] for segment_id in ids], dtype=np.uint8)[np.searchsorted(ids, values)]
    return np.repeat(run_labels, np.diff(starts, append=segment_ids.size)).reshape(segment_ids.shape)


def instance_annotations(segment_ids: np.ndarray, segments_info: list[SegmentInfo]) -> list[Annotation]:
    """The thing segments as annotations of a record, with the box around and the run lengths of what is visible."""
    annotations = []
    for info in segments_info:
        if info["isthing"]:
            encoded = mask_util.encode(np.asfortranarray(segment_ids == info["id"]).view(np.uint8))
            annotations.append(
                {
                    "id": info["id"],
                    "bbox": mask_util.toBbox(encoded).tolist(),
                    "category_id": info["category_id"],
                    "iscrowd": info["iscrowd"],
                    "segmentation": encoded,
                }
            )
    return annotations


def read_semantic_labels(record: Record) -> np.ndarray:
    """The semantic target of a record, (H, W) uint8, 255 where there is no label.

    Raises:
        UserError: see `read_record_segments`, and `resnest_det.data.label_png.read_label_png`.
    """
    if "label_png" in record:
        return read_label_png(record["label_png"], (record["height"], record["width"]))
    if "label_masks" in record:
        return read_label_masks(record["label_masks"], (record["height"], record["width"]))
    return semantic_labels(read_record_segments(record), record["segments_info"])


def with_truth(record: Record) -> tuple[Record, np.ndarray]:
    """The record with boxes and masks where they are `objects_in_png`, and its semantic target, see `read_semantic_labels`.

    Raises:
        UserError: see `read_semantic_labels`.
    """
    if not record.get("objects_in_png"):
        return record, read_semantic_labels(record)
    segment_ids = read_record_segments(record)
    objects = instance_annotations(segment_ids, record["segments_info"])
    return record | {"annotations": objects, "objects_in_png": False}, semantic_labels(segment_ids, record["segments_info"])


def _runs(segment_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal ids begin in the flattened map, and their ids: a hundredth of the pixels in a picture of objects."""
    flat = segment_ids.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return starts, flat[starts]


def _record(image: Image, part: dict, image_root: str) -> Record:
    """The record of an image whose objects are in its PNG file alone."""
    objects = [{key: info[key] for key in ("id", "category_id", "iscrowd")} for info in part["segments_info"] if info["isthing"]]
    path = os.path.join(image_root, str(image.file_name))
    record = Record(file_name=path, height=image.height, width=image.width, image_id=image.id, annotations=objects)
    return record | part | {"objects_in_png": True}


def _check_same(columns: PanopticColumns, metadata: PanopticMetadata, instances: Dataset) -> None:
    """That an instance file has the categories and images of a panoptic one."""
    file, own = instances.metadata.json_file, metadata.panoptic_json
    categories = instances.metadata.thing_dataset_id_to_contiguous_id
    differing = set(categories) ^ set(metadata.thing_dataset_id_to_contiguous_id)
    if differing:
        only = file if min(differing) in categories else own
        raise UserError(f"{file}: its categories are not the things of {own}: only {only} has the category id {min(differing)}")
    for theirs, ours in zip(instances.metadata.thing_classes, metadata.thing_classes):
        if theirs != ours:
            raise UserError(
                f"{file}: its categories are not the things of {own}: one has {shown(theirs)} where the other has {shown(ours)}"
            )
    own_images, their_images = columns.images, instances.records.instances.images
    if own_images == their_images:
        return
    differing = {image.id for image in own_images} ^ {image.id for image in their_images}
    if differing:
        only = own if any(image.id == min(differing) for image in own_images) else file
        raise UserError(
            f"{file}: its images are not those of {own}: {len(differing)} are in one only, of which image "
            f"{min(differing)} in {only}"
        )
    for ours, theirs in zip(own_images, their_images):
        for key in ("height", "width", "file_name"):
            if getattr(theirs, key) != getattr(ours, key):
                found, expected = getattr(theirs, key), getattr(ours, key)
                raise UserError(f"{file}: image {theirs.id}: {key} is {found!r}, but {expected!r} in {own}")
