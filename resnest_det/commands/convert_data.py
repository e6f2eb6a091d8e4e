"""Convert labels of any format to COCO's, YOLO's or Pascal VOC's, and say what had to be mended on the way.

    convert_data.py my_photos my_photos.json
    convert_data.py export/data.yaml train.json --split train
    convert_data.py result.json labels_for_yolo --format yolo

IN is a file or folder of COCO, YOLO, Pascal VOC, LabelMe, CVAT or Label Studio labels, masks, or a CSV of boxes; docs/labels.md
says what each may look like. What was written is read again, and must have as many images, and objects of each class, as IN.
"""

import argparse
import os

from resnest_det.commands.labels_flags import add_labels_flags, labels_of, tell
from resnest_det.data.coco import instances_dataset
from resnest_det.data.formats.writing import FORMATS, IMAGES, write_labels
from resnest_det.errors import UserError, printable


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_labels_flags(parser)
    parser.add_argument("out", metavar="OUT", help="a .json file to write, or a folder for YOLO and VOC")
    parser.add_argument("--format", choices=FORMATS, default="coco", help="format to write (default: %(default)s)")
    parser.add_argument(
        "--put-images",
        choices=IMAGES,
        default="link",
        help="what YOLO's and VOC's folders get of the images (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse_arguments(arguments)
    out = os.path.normpath(options.out)
    if options.format == "coco" and not out.lower().endswith(".json"):
        raise UserError(
            f"{options.out}: COCO's format is one file, whose name ends in .json; YOLO's and VOC's folders need --format"
        )
    if options.format != "coco" and out.lower().endswith(".json"):
        raise UserError(f"{options.out}: --format {options.format} writes a folder")
    if os.path.lexists(out) and not options.overwrite:
        raise UserError(f"{options.out} exists; add --overwrite to replace it")
    if os.path.exists(out) and os.path.isdir(out) == (options.format == "coco"):
        raise UserError(f"{options.out} is {'a folder' if os.path.isdir(out) else 'a file'}; give another name")
    labels = labels_of(options, need_images=False)
    for needed in (labels.files.path, labels.image_root):
        if os.path.join(os.path.realpath(needed), "").startswith(os.path.join(os.path.realpath(out), "")):
            raise UserError(f"{options.out}: {needed} is in it, which is what is converted; give another name")
    tell(labels)
    dataset = instances_dataset("labels", labels.content, labels.files.path, labels.image_root, keep_truth=True)
    notes = write_labels(dataset, out, options.format, images=options.put_images)
    for line in notes:
        print(printable(line))
    objects = sum(len(record["annotations"]) for record in dataset.records)
    classes = len(dataset.metadata.thing_classes)
    print(printable(f"{out}: {len(dataset.records)} images, {objects} objects, {classes} classes"))
    if options.format == "coco":
        print(printable(f"train on it with --register mine={out} DATASETS.TRAIN \"('mine',)\""))
