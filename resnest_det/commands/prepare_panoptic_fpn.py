"""Write the semantic PNG files that Detectron2's Panoptic FPN reads, from COCO's panoptic annotations.

    prepare_panoptic_fpn.py
    prepare_panoptic_fpn.py shapes_train_panoptic shapes_val_panoptic
    prepare_panoptic_fpn.py mine --register-panoptic mine=panoptic.json,panoptic,images --output-dir panoptic_stuff

In them 0 is every thing, 1 and up are the stuff classes in the order of their ids, 255 is unlabelled. The built-in detector makes
the same on the fly and needs none of them. Files that are there already are left alone, so an interrupted run can go on.
"""

import argparse
import os

from resnest_det.commands.register import add_register_flags, registered_datasets
from resnest_det.data.catalog import get_dataset, register
from resnest_det.data.semantic_files import write_semantic_pngs
from resnest_det.errors import UserError, printable

COCO = ("coco_2017_val_panoptic_stuffonly", "coco_2017_train_panoptic_stuffonly")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=COCO, help="panoptic datasets (default: %(default)s)")
    add_register_flags(parser, instances=False)
    parser.add_argument(
        "--output-dir",
        help="folder of the PNG files of one dataset (default: beside the panoptic ones, with "
        "panoptic_ in its name replaced by panoptic_stuff_, which is where Detectron2 looks)",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many share the work (default: %(default)s)")
    return parser.parse_args(arguments)


def default_folder(panoptic_root: str) -> str:
    """coco/panoptic_val2017 -> coco/panoptic_stuff_val2017."""
    parent, name = os.path.split(panoptic_root.rstrip(os.sep))
    if not name.startswith("panoptic_"):
        raise UserError(
            f"{panoptic_root} is not named panoptic_..., so there is no usual place for its semantic PNG files; give --output-dir"
        )
    return os.path.join(parent, name.replace("panoptic_", "panoptic_stuff_", 1))


def main(arguments: list[str]) -> None:
    options = parse_arguments(arguments)
    for name, files in registered_datasets(options).items():
        register(name, files)
    if options.output_dir and len(options.datasets) > 1:
        raise UserError(f"--output-dir {options.output_dir} is for one dataset, not for {len(options.datasets)}")
    for name in options.datasets:
        dataset = get_dataset(name)
        if not hasattr(dataset.metadata, "panoptic_root"):
            raise UserError(f"{name} is not a panoptic dataset")
        folder = options.output_dir or default_folder(dataset.metadata.panoptic_root)
        written = write_semantic_pngs(dataset, folder, options.processes)
        print(printable(f"{name}: {written} written, {len(dataset.records) - written} were there, in {folder}"))
