"""Split labels of any format into train.json and val.json, in COCO's format.

    split_data.py my_photos splits
    split_data.py result.json splits --val 0.1 --group "^(video_[0-9]+)"

Every class has its share of both parts, the rarest are dealt first; the same seed gives the same parts. The images stay where
they are: the files say where.
"""

import argparse
import os

from resnest_det.commands.labels_flags import add_labels_flags, labels_of, tell
from resnest_det.data.coco import instances_dataset
from resnest_det.data.formats.labels import counts_by_name
from resnest_det.data.formats.reading import VAL_FRACTION, of_images
from resnest_det.data.formats.splitting import split_images
from resnest_det.data.formats.writing import write_coco
from resnest_det.errors import UserError, naming, printable


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_labels_flags(parser)
    parser.add_argument("out", metavar="OUT_DIR", help="folder to write train.json and val.json to")
    parser.add_argument("--val", type=float, default=VAL_FRACTION, help="share of the images for val.json (default: %(default)s)")
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="images whose names have the same first group of it, or the same match, stay together, such as those of a video",
    )
    parser.add_argument("--random", action="store_true", help="split by chance alone, without a look at the classes")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace train.json and val.json if they exist")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = parse_arguments(arguments)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")
    paths = [os.path.join(options.out, f"{name}.json") for name in ("train", "val")]
    for path in paths:
        if os.path.lexists(path) and not options.overwrite:
            raise UserError(f"{path} exists; add --overwrite to replace it")
        if os.path.exists(path) and os.path.realpath(path) == os.path.realpath(options.source):
            raise UserError(f"{path}: is what is split; give another folder")
    labels = labels_of(options, need_images=False)
    tell(labels)
    content = instances_dataset("labels", labels.content, labels.files.path, labels.image_root, keep_truth=True).truth
    with naming({"fraction": "--val", "group": "--group"}):
        parts = split_images(content, options.val, options.seed, stratified=not options.random, group=options.group)
    os.makedirs(options.out, exist_ok=True)
    for path, image_ids in zip(paths, parts):
        part = of_images(content, image_ids)
        write_coco(part, labels.image_root, path)
        counts = counts_by_name(part)
        absent = [name for name, count in counts.items() if not count]
        print(printable(f"{path}: {len(part.images)} images, {len(part.annotations)} objects"))
        if absent:
            print(printable(f"{path}: has no object of {len(absent)} of {len(counts)} classes: {', '.join(absent[:10])}"))
