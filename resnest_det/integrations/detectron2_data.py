"""This package's datasets in Detectron2's catalogs."""

import os
from collections.abc import Mapping
from types import MappingProxyType

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from fvcore.common.config import CfgNode

from resnest_det.configuration.classes import check_classes, class_names, count_classes, kept_of_classes, match_classes
from resnest_det.configuration.data import training_records
from resnest_det.configuration.tables import ARCHITECTURES
from resnest_det.data.catalog import get_dataset
from resnest_det.data.coco import Dataset, LabelsMetadata
from resnest_det.data.image_files import check_image_files, check_image_sizes
from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.panoptic import PanopticMetadata, with_truth
from resnest_det.data.semantic import SemanticMetadata
from resnest_det.data.semantic_files import semantic_png_name, write_semantic_pngs
from resnest_det.distributed import is_main_process, synchronize
from resnest_det.errors import UserError

_ours: set[str] = set()


def register_datasets(
    cfg: CfgNode, registered: list[str], *, only_test: bool = False, counted: Mapping[str, str] = MappingProxyType({})
) -> CfgNode:
    """Read the datasets of DATASETS.TRAIN and DATASETS.TEST that Detectron2 does not know, and register them there.

    They are read here. Of those whose pixels have labels the semantic PNG files that Detectron2 reads are written to the folder
    `semantic_labels` of OUTPUT_DIR, once: it reads no panoptic ones, palettes as grays, and any value as a class. To be called by
    every process.

    Args:
        registered: names registered on the command line; Detectron2 may not have other datasets of these names.
        only_test: leave out DATASETS.TRAIN.
        counted: keys to take from the first dataset, see `resnest_det.configuration.classes.count_classes`.

    Returns:
        `cfg` with those keys.

    Raises:
        UserError: a name that nobody knows, or that is taken; a dataset that cannot be read, lacks images or does not fit the
            model; or labels of pixels with another MODEL.SEM_SEG_HEAD.IGNORE_VALUE than what is written for those that have none.
    """
    first, names = None, None
    for name in dict.fromkeys((*(() if only_test else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)):
        if name in DatasetCatalog.list():
            if name in registered and name not in _ours:
                raise UserError(f"Detectron2 already has a dataset named {name}; register yours under another name")
            if names is None:
                names = MetadataCatalog.get(name).as_dict()
                cfg = count_classes(cfg, names, counted)
            continue
        # What is only tested on may be a list of images: Detectron2 writes results for it, too, and counts nothing.
        dataset = get_dataset(name, keep_truth=name not in cfg.DATASETS.TRAIN)
        first = first or dataset
        if names is None:
            names = vars(dataset.metadata)
            cfg = count_classes(cfg, names, counted)
        dataset = match_classes(dataset, class_names(cfg, first), first.name)
        check_classes([dataset], cfg)
        read = dataset.records if name in cfg.DATASETS.TEST else training_records(cfg, dataset)
        check_image_files(name, read, dataset.metadata.image_root)
        check_image_sizes(read)
        records = _records(dataset, cfg)
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(**_metadata(dataset))
        _ours.add(name)
    return cfg


def _records(dataset: Dataset, cfg: CfgNode) -> list[dict]:
    records = dataset.records
    if isinstance(dataset.metadata, SemanticMetadata):
        ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        if ignored != UNLABELLED and cfg.MODEL.META_ARCHITECTURE in ("PanopticFPN", "SemanticSegmentor"):
            raise UserError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {ignored}: Detectron2 gets pixels of dataset {dataset.name} that have no label "
                f"as {UNLABELLED}; supported: {UNLABELLED}, whatever the dataset's own files have for them"
            )
        folder = os.path.join(cfg.OUTPUT_DIR, "semantic_labels", dataset.name)
        if is_main_process():
            write_semantic_pngs(dataset, folder, os.cpu_count() or 1)
        synchronize()
        records = [
            (with_truth(record)[0] if record.get("objects_in_png") else record)
            | {"sem_seg_file_name": os.path.join(folder, semantic_png_name(record))}
            for record in records
        ]
    if not dataset.metadata.thing_classes:
        # Detectron2 would leave out every image whose list of objects is empty.
        return [{key: value for key, value in record.items() if key != "annotations"} for record in records]
    return [
        record | {"annotations": [entry | {"bbox_mode": BoxMode.XYWH_ABS} for entry in record["annotations"]]}
        for record in records
    ]


def _metadata(dataset: Dataset) -> dict:
    values = {name: value for name, value in vars(dataset.metadata).items() if name != "name" and value is not None}
    if isinstance(dataset.metadata, LabelsMetadata):
        # Without a file Detectron2's evaluator makes one of the records.
        return {name: value for name, value in values.items() if name != "json_file"} | {"evaluator_type": "coco"}
    if not isinstance(dataset.metadata, SemanticMetadata):
        return values | {"evaluator_type": "coco"}
    if not isinstance(dataset.metadata, PanopticMetadata):
        kind = "sem_seg" if dataset.metadata.json_file is None else "coco_sem_seg"
        return values | {"ignore_label": UNLABELLED, "evaluator_type": kind}
    # Class 0 of the semantic labels, all things together, has an id of no category there, as in Detectron2's own metadata.
    stuff = dataset.metadata.stuff_dataset_id_to_contiguous_id | {0: 0}
    return values | {
        "stuff_dataset_id_to_contiguous_id": stuff,
        "ignore_label": UNLABELLED,
        "evaluator_type": "coco_panoptic_seg",
    }


def kept_in_checkpoints(cfg: CfgNode, name: str) -> dict:
    """What the built-in detector keeps in a checkpoint about the classes of a registered dataset, under "trained_on".

    Of Detectron2's own datasets only the objects: it has other names for their stuff than COCO's files.
    """
    metadata, architecture = MetadataCatalog.get(name), ARCHITECTURES.get(cfg.MODEL.META_ARCHITECTURE)
    wanted = {"thing_classes": architecture is None or architecture.objects}  # Detectron2's other architectures find objects
    wanted["stuff_classes"] = architecture is not None and architecture.pixels and name in _ours
    names = {kind: metadata.get(kind) for kind in wanted if wanted[kind] and metadata.get(kind)}
    return kept_of_classes(names, metadata, cfg.INPUT.FORMAT)


def have_run_length_masks(names: list[str]) -> bool:
    """Whether any object in those of these datasets that `register_datasets` registered has a mask other than polygons."""
    return any(
        isinstance(entry.get("segmentation"), dict) and not entry["iscrowd"]
        for name in names
        if name in _ours
        for record in DatasetCatalog.get(name)
        for entry in record.get("annotations", ())
    )
