"""The command `compare`: whether one run is better than another, and how sure that is."""

import argparse
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from resnest_det.commands.run_results import RunResults, read_run
from resnest_det.data.coco import Dataset
from resnest_det.errors import UserError, printable
from resnest_det.evaluation.bootstrap import AREAS, average_precisions, draw_images, estimate, matched_detections, mean_of_counted
from resnest_det.evaluation.results import ground_truth_of, names_by_id, read_results

_TASKS = {"bbox": "boxes", "segm": "masks"}
_DRAWS = 400


def main(arguments: Sequence[str]) -> None:
    """Compare two runs on every dataset that both have evaluated.

    Raises:
        UserError: a folder has no run with detections, or they have no dataset in common.
    """
    parser = argparse.ArgumentParser(
        description="Compare the AP of two runs on the same images, by the paired bootstrap over images."
    )
    parser.add_argument("run_a", metavar="RUN_A", help="the OUTPUT_DIR of a run")
    parser.add_argument("run_b", metavar="RUN_B", help="the OUTPUT_DIR of another")
    parser.add_argument("--draws", type=int, default=_DRAWS, metavar="N", help=f"how often images are drawn (default: {_DRAWS})")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    if args.draws < 20:
        raise UserError(f"--draws is {args.draws}; it must be 20 or more")
    a, b = read_run(args.run_a), read_run(args.run_b)
    of_b = {dataset.name: dataset for dataset in b.datasets}
    common = [dataset for dataset in a.datasets if dataset.name in of_b]
    if not common:
        names = [", ".join(dataset.name for dataset in run.datasets) for run in (a, b)]
        raise UserError(f"{args.run_a} was evaluated on {names[0]}, {args.run_b} on {names[1]}: on no dataset both")
    for dataset in common:
        _compare(dataset, of_b[dataset.name], a, b, args.draws)


def _compare(dataset: Dataset, same: Dataset, a: RunResults, b: RunResults, draws: int) -> None:
    truth = ground_truth_of(dataset)
    if truth != ground_truth_of(same):
        raise UserError(f"{a.folder} and {b.folder} were evaluated on different annotations of {dataset.name}")
    found = [read_results(str(run.results_file(dataset)), dataset) for run in (a, b)]
    weights = draw_images(len(truth["images"]), draws)
    for task in _TASKS:
        if task == "segm" and not all("segmentation" in each for each in (*truth["annotations"], *found[0], *found[1])):
            continue
        matched = [matched_detections(truth, detections, task) for detections in found]
        figures = {}
        for area, size in zip(AREAS, ("all", "small", "medium", "large")):
            both = [100 * average_precisions(each, weights, area).mean(axis=1) for each in matched]  # (draws, classes) of each
            present = ~np.isnan(both[0][0])
            if present.any():
                figures[size] = [mean_of_counted(each[:, present]) for each in both]
            if not area:
                classes = {
                    name: [each[:, label] for each in both] for label, name in enumerate(names_by_id(truth)) if present[label]
                }
        rows = [_row(name, *each) for name, each in (figures | {f"class {name}": each for name, each in classes.items()}).items()]
        heads = ["AP", f"A: {a.folder.name}", f"B: {b.folder.name}", "B - A", "95 % interval", "B is better"]
        table = tabulate(rows, heads, disable_numparse=True)
        print(printable(f"{dataset.name}, {_TASKS[task]}, {len(truth['images'])} images:\n{table}", lines=True))
        print(_verdict(figures["all"][1] - figures["all"][0]) if figures else "there are no objects to compare by")


def _row(name: str, a: np.ndarray, b: np.ndarray) -> tuple[str, ...]:
    said = estimate(b - a)
    ends = f"{said.low:+.1f} to {said.high:+.1f}"
    return name, f"{a[0]:.1f}", f"{b[0]:.1f}", f"{said.value:+.1f}", ends, f"{100 * said.above_zero:.0f} %"


def _verdict(difference: np.ndarray) -> str:
    said = estimate(difference)
    if said.low > 0:
        return f"B is better: by {said.low:.1f} to {said.high:.1f} points of AP."
    if said.high < 0:
        return f"A is better: by {-said.high:.1f} to {-said.low:.1f} points of AP."
    return (
        f"Undecided: B is between {-said.low:.1f} points of AP worse and {said.high:.1f} better than A; evaluating on more "
        "images would tell."
    )
