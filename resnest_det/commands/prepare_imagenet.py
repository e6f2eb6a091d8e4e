"""Unpack ImageNet's official archives into class folders, which training and `verify` read.

    prepare_imagenet.py --archives downloads --out imagenet

`--archives` has ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, which image-net.org gives to
registered users; nothing is downloaded here. Their digests are compared first. Interrupted, the same line goes on where it ended.
"""

import argparse
import os

from resnest_det.data.imagenet_archives import prepare_imagenet
from resnest_det.errors import UserError


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", required=True, metavar="DIR", help="the folder of the archives")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder for train/ and val/")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that unpack (default: %(default)s)"
    )
    parser.add_argument("--skip-checksums", action="store_true", help="believe the archives")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: at least 1 is needed")
    if not os.path.isdir(options.archives):
        raise UserError(f"--archives {options.archives}: no such folder")
    for split, (classes, images) in prepare_imagenet(
        options.archives, options.out, options.workers, check=not options.skip_checksums
    ).items():
        print(f"{options.out}/{split}: {images} images of {classes} classes")
