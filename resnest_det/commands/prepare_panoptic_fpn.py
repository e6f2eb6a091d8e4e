"""Write the semantic PNG files that Detectron2's Panoptic FPN reads, from COCO's panoptic annotations.

    prepare_panoptic_fpn.py
    prepare_panoptic_fpn.py shapes_train_panoptic shapes_val_panoptic
    prepare_panoptic_fpn.py mine --register-panoptic mine=panoptic.json,panoptic,images --output-dir panoptic_stuff

Their values: 0 for all things, 1 and up for the stuff classes in the order of their ids, 255 for unlabelled. The built-in
detector makes the same on the fly and needs no such files. Existing files are left alone, so an interrupted run can be repeated.
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
    add_register_flags(parser, all_kinds=False)
    parser.add_argument(
        "--output-dir",
        help="folder to write to, for one dataset (default: where Detectron2 looks, beside the panoptic files, with "
        "panoptic_stuff_ in the name instead of panoptic_)",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many share the work (default: %(default)s)")
    return parser.parse_args(arguments)


def default_folder(panoptic_root: str) -> str:
    """coco/panoptic_val2017 -> coco/panoptic_stuff_val2017."""
    parent, name = os.path.split(panoptic_root.rstrip(os.sep))
    if not name.startswith("panoptic_"):
        raise UserError(
            f"{panoptic_root} is not named panoptic_..., so its semantic PNG files have no default folder; give --output-dir"
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
        print(printable(f"{name}: {written} written, {len(dataset.records) - written} existed, in {folder}"))
