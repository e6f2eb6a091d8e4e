"""The objects of a panoptic file as instances, for `convert-data`; to train on its pixels, it is registered as it is."""

import os

from resnest_det.data.annotation_files import Annotation, Category, Image, InstanceFile, RunLengths
from resnest_det.data.formats.labels import LabelFiles, Labels, Notes
from resnest_det.data.formats.pictures import Pictures
from resnest_det.data.panoptic import load_coco_panoptic, with_truth
from resnest_det.errors import UserError


def panoptic_root_of(panoptic_json: str) -> str:
    """The folder of the PNG files of a panoptic file: of its own name, beside it or one folder up, as COCO has it.

    Raises:
        UserError: there is none.
    """
    folder, name = os.path.split(os.path.abspath(panoptic_json))
    stem = name.partition(".")[0]
    tried = [os.path.join(parent, stem) for parent in (folder, os.path.dirname(folder))]
    found = next((each for each in tried if os.path.isdir(each)), None)
    if found is None:
        raise UserError(f"{panoptic_json}: the folder of its PNG files is neither {tried[0]} nor {tried[1]}")
    return found


def read_panoptic(files: LabelFiles, pictures: Pictures, notes: Notes) -> Labels:
    """Read the things of a panoptic file, each with its visible mask; the stuff is left out.

    Raises:
        UserError: see `resnest_det.data.panoptic.load_coco_panoptic` and `with_truth`.
    """
    dataset = load_coco_panoptic("labels", files.path, panoptic_root_of(files.path), files.image_root)
    metadata, images, annotations = dataset.metadata, [], []
    ids = {index: category_id for category_id, index in metadata.thing_dataset_id_to_contiguous_id.items()}
    for record in dataset.records:
        name = os.path.relpath(record["file_name"], files.image_root).replace(os.sep, "/")
        images.append(Image(record["image_id"], name, record["height"], record["width"]))
        for found in with_truth(record)[0]["annotations"]:
            mask = found["segmentation"]
            annotations.append(
                Annotation(
                    id=len(annotations) + 1,
                    image_id=record["image_id"],
                    category_id=ids[found["category_id"]],
                    bbox=tuple(found["bbox"]),
                    iscrowd=int(found["iscrowd"]),
                    segmentation=RunLengths(list(mask["size"]), mask["counts"].decode()),
                )
            )
    categories = [Category(ids[index], name) for index, name in enumerate(metadata.thing_classes)]
    stuff = len(metadata.stuff_classes) - 1
    if stuff:
        notes.add("left out: classes of stuff, which are no objects", files.path, stuff)
    return Labels(files, InstanceFile(images, categories, annotations), files.image_root, notes, listed=True)
