"""The command `plot`: the curves of training runs as one picture."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resnest_det.drawing.curves import plot_runs
from resnest_det.engine.metrics import read_metrics
from resnest_det.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Read the runs and draw them.

    Raises:
        UserError: a run has no figures, matplotlib is not installed, or the picture cannot be written.
    """
    parser = argparse.ArgumentParser(description="Draw loss, learning rate and AP of one or several runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the OUTPUT_DIR of a run, or its metrics.json")
    parser.add_argument("--output", metavar="FILE.png", help="the picture; curves.png in the first run's folder by default")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    runs = [read_metrics(run) for run in args.runs]
    names = Counter(run.name for run in runs)
    # Folders of one name are told apart by what was typed.
    runs = [replace(run, name=typed) if names[run.name] > 1 else run for run, typed in zip(runs, args.runs)]
    first = Path(args.runs[0])
    output = Path(args.output) if args.output else (first if first.is_dir() else first.parent) / "curves.png"
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--output {output} must end in .png, .svg or .pdf")
    plot_runs(runs, output)
    print(f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {output}")
