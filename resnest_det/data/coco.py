"""Reading COCO instance annotations into records and the truth of an evaluation, with every fault of the file named."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from resnest_det.data.annotation_files import InstanceFile, PanopticFile, no_list, without_collector
from resnest_det.data.dataset_cache import packed_in_memory, packed_once
from resnest_det.data.instance_columns import pack_document, pack_instances
from resnest_det.data.instance_records import Instances, Records
from resnest_det.data.records import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metadata:
    """What is known of a dataset besides its images: its files and the names of its classes.

    `thing_classes[i]` names class i; `thing_dataset_id_to_contiguous_id` maps the file's category ids to 0..K-1.
    """

    name: str
    json_file: str | None
    image_root: str
    thing_classes: list[str]
    thing_dataset_id_to_contiguous_id: dict[int, int]


@dataclass(frozen=True)
class LabelsMetadata(Metadata):
    """What is known of labels in any format: `json_file` is their file or folder, which other libraries cannot read as COCO's."""


@dataclass(frozen=True)
class Dataset:
    """A dataset (images stay on disk).

    A record is one image: {"file_name", "height", "width", "image_id", "annotations"}; an annotation is
    {"id", "bbox" (x, y, width, height in pixels), "category_id" (contiguous), "iscrowd", "segmentation"}, where the
    segmentation is a list of polygons [x0, y0, x1, y1, ...] or a compressed run-length dict, and may be absent.
    Those of an instance file are made when they are asked for (`resnest_det.data.instance_records.Records`).
    `truth` and `panoptic_truth` are the checked content of the instance and of the panoptic file where it was kept to evaluate
    against; `truth.annotations` is None where the file only lists images. `left_out` has reasons to how many annotations were not
    taken for them.
    """

    name: str
    records: Sequence[Record]
    metadata: Metadata
    truth: Instances | None = None
    panoptic_truth: PanopticFile | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


@without_collector()
def load_coco_instances(name: str, json_file: str, image_root: str, *, keep_truth: bool = False) -> Dataset:
    """Read a COCO instance JSON file (https://cocodataset.org/#format-data); docs/data.md has the rules that it is held to.

    Records are sorted by image id; category ids become contiguous in the order of the ids. Left out, and counted in one
    log line: boxes with no area inside their image, objects none of whose polygons has three points, and annotations of
    images that the file does not list.

    The file is parsed once: from then on what it says is mapped from the cache, see `resnest_det.data.dataset_cache`.

    Args:
        keep_truth: keep what the file says as `Dataset.truth`, to evaluate against; it may then be a file that only lists images.
            AP counts what is left out here, too, except annotations of images that the file does not list.

    Raises:
        UserError: the file cannot be read, is not JSON, lacks a key, repeats an id or a name, refers to a category it does not
            list, or has a box or mask that cannot belong to its image. The message names file and entry.
    """
    json_file = str(json_file)
    packed = packed_once(json_file, "instances", pack_instances(json_file))
    return dataset_of(name, Instances(packed, json_file), image_root, keep_truth)


def instances_dataset(name: str, content: InstanceFile, json_file: str, image_root: str, *, keep_truth: bool = False) -> Dataset:
    """The dataset of labels that were read from another format, packed in memory; see `load_coco_instances`.

    Args:
        json_file: what messages call the labels: their file or folder.

    Raises:
        UserError: see `load_coco_instances`.
    """
    packed = packed_in_memory(lambda out: pack_document(content, json_file, out))
    return dataset_of(name, Instances(packed, json_file), image_root, keep_truth)


def dataset_of(name: str, instances: Instances, image_root: str, keep_truth: bool) -> Dataset:
    """The dataset of a packed file; see `load_coco_instances`."""
    json_file = instances.file_name
    if instances.annotations is None:
        if not keep_truth:
            raise no_list(json_file, "annotations", InstanceFile)
        logger.warning(
            "%s lists images without annotations: results are written, and there is nothing to count them by", json_file
        )
    if instances.listed_twice:
        count, first = instances.listed_twice
        first = os.path.join(image_root, first)
        logger.warning("%s lists %d files under more than one image id, of which %s", json_file, count, first)
    left_out = instances.left_out
    if left_out:
        parts = [f"{count} {what} ({first}{', ...' if count > 1 else ''})" for what, (count, first) in left_out.items()]
        logger.warning("%s: left out %s", json_file, ", ".join(parts))
    contiguous = {category.id: index for index, category in enumerate(instances.categories)}
    metadata = Metadata(name, json_file, str(image_root), instances.names, contiguous)
    truth = instances if keep_truth else None
    counts = {what: count for what, (count, _) in left_out.items()}
    return Dataset(name, Records(instances, str(image_root)), metadata, truth=truth, left_out=counts)


def with_classes(dataset: Dataset, names: list[str]) -> Dataset:
    """The dataset with its classes counted in the order of `names`, which are those it has."""
    metadata = dataset.metadata
    if metadata.thing_classes == names:
        return dataset
    moved = {old: names.index(name) for old, name in enumerate(metadata.thing_classes)}
    if isinstance(dataset.records, Records):
        records = dataset.records.with_labels(moved)
    else:
        records = [
            record | {"annotations": [entry | {"category_id": moved[entry["category_id"]]} for entry in record["annotations"]]}
            for record in dataset.records
        ]
    ids = {category_id: moved[old] for category_id, old in metadata.thing_dataset_id_to_contiguous_id.items()}
    changed = {"thing_classes": list(names), "thing_dataset_id_to_contiguous_id": ids}
    return replace(dataset, records=records, metadata=replace(metadata, **changed))
