"""The command `pack`: a trained detector in one file, to be carried anywhere."""

import argparse
import os
from collections.abc import Sequence

from resnest_det.training.packing import pack


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, write the file and say what it is.

    Raises:
        UserError: see `resnest_det.training.packing.pack`.
    """
    parser = argparse.ArgumentParser(
        description="Write a trained detector with its configuration and classes into one file, without what only resuming needs."
    )
    parser.add_argument("run", metavar="RUN", help="the OUTPUT_DIR of a run (its model_best.pth, or its newest), or a checkpoint")
    parser.add_argument("out", metavar="OUT.pth", help="the file to write")
    args = parser.parse_args(arguments)
    path = pack(args.run, args.out)
    size, before = os.path.getsize(args.out) / 2**20, os.path.getsize(path) / 2**20
    print(f"{path} ({before:.1f} MiB) packed into {args.out} ({size:.1f} MiB): MODEL.WEIGHTS {args.out} takes it anywhere")
