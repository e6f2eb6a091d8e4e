"""The command `inspect`: what is in a dataset, what is suspicious in it, and how good results on it are."""

import argparse
import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from resnest_det.commands.inspect_results import inspect_results
from resnest_det.commands.register import add_register_flags, registered_datasets
from resnest_det.configuration.data import build_training_mapper
from resnest_det.configuration.reading import load_config
from resnest_det.data.annotation_files import Annotation, InstanceFile, read_annotation_file
from resnest_det.data.catalog import CocoFiles, DatasetFiles, dataset_names, known_files, load_files, register
from resnest_det.data.coco import Dataset
from resnest_det.data.formats.labels import LabelFiles
from resnest_det.data.formats.reading import read_labels
from resnest_det.data.formats.splits import find_splits
from resnest_det.data.health import Finding, check_annotations, check_image_headers, shared_images
from resnest_det.data.image import read_record_image
from resnest_det.data.panoptic import read_semantic_labels
from resnest_det.data.records import Record, Sample
from resnest_det.data.semantic import SemanticMetadata
from resnest_det.data.statistics import Statistics, describe, doubts, statistics_of
from resnest_det.drawing.comparison import WRONG, draw_enlarged, truth_of_record
from resnest_det.drawing.panoptic import draw_labels
from resnest_det.drawing.plots import plot_classes
from resnest_det.drawing.sheets import save_picture
from resnest_det.drawing.training import sample_image, sample_truth
from resnest_det.drawing.writers import spread_records, thing_colors, with_objects
from resnest_det.engine.events import setup_logging
from resnest_det.errors import UserError, nearest, printable
from resnest_det.evaluation.results import read_results
from resnest_det.files import atomic_write

EXAMPLES = """
examples:
  resnest-det inspect photos/                                     a folder with labels of any format, its splits together
  resnest-det inspect train.json,images val.json,images           two datasets, and the images that are in both
  resnest-det inspect shapes_train --config-file mask_rcnn_ResNeSt14_FPN_shapes   after augmentation, as the model sees it
  resnest-det inspect val.json,images --results output/inference/coco_instances_results.json
"""
_SHOWN = 5  # findings of a kind in the terminal

Mapper = Callable[[Record, np.random.Generator], Sample]


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Look at datasets, and at results on them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "data", nargs="+", metavar="DATA", help="a dataset's name, ANNOTATIONS.json,IMAGE_DIR, or a path that has labels"
    )
    add_register_flags(parser)
    parser.add_argument("--config-file", metavar="FILE", help="show images as this configuration's training augments them")
    parser.add_argument("--results", metavar="FILE.json", help="detections in COCO's results format, to hold against one dataset")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for pictures and lists (default: inspect_ and the dataset's name)"
    )
    parser.add_argument("--count", type=int, default=16, metavar="N", help="images to draw (default: 16)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="leave out detections below it in pictures (default: 0.5)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Look at the datasets, print what there is to say, and write pictures.

    Raises:
        UserError: bad input of any kind. Of a dataset that cannot be used, what is suspicious in it is told before.
    """
    args = argument_parser().parse_args(arguments)
    if args.count < 0:
        raise UserError(f"--count is {args.count}; it must be 0 or more")
    setup_logging(None)
    logging.getLogger("resnest_det").setLevel(logging.WARNING)
    for name, files in registered_datasets(args).items():
        register(name, files)
    named: dict[str, DatasetFiles] = {}
    for name, files in chain.from_iterable(map(_datasets_of, args.data)):
        same = sum(other == name or other.startswith(f"{name} (") for other in named)
        named[f"{name} ({same + 1})" if same else name] = files
    if args.results and len(named) > 1:
        raise UserError(f"--results are of one dataset, and these are {len(named)}: {', '.join(named)}")
    output = Path(args.output or f"inspect_{next(iter(named))}")
    mapper, image_format = None, "RGB"
    if args.config_file:
        cfg = load_config(args.config_file)
        mapper, image_format = build_training_mapper(cfg), cfg.INPUT.FORMAT

    findings: list[tuple[str, Finding]] = []
    for name, files in named.items():
        findings += [(name, finding) for finding in _check_entries(files)]
    try:
        datasets = [load_files(name, files, keep_truth=True) for name, files in named.items()]
    except UserError:
        if findings:
            _report(findings, output)
        raise
    detections = read_results(args.results, datasets[0]) if args.results else None
    for dataset in datasets:
        findings += [(dataset.name, finding) for finding in check_image_headers(dataset.records)]
    for first, second in combinations(datasets, 2):
        both = shared_images(first.records, second.records)
        findings += [(f"{first.name} and {second.name}", finding) for finding in both]
    _describe(datasets, output)
    _report(findings, output)
    for dataset in datasets:
        bad = {finding.file for name, finding in findings if name == dataset.name and "image" in finding.what}
        records = [record for record in dataset.records if record["file_name"] not in bad]
        own = [finding for name, finding in findings if name == dataset.name and finding.annotation is not None]
        reasons, folder = _reasons(dataset, own), dataset.name if len(datasets) > 1 else ""
        _draw_suspicious(dataset, records, reasons, output / "suspicious" / folder, args.count)
        _draw(dataset, spread_records(records, args.count), reasons, output / "images" / folder, mapper, image_format)
    if detections is not None:
        inspect_results(datasets[0], detections, output, args.count, args.score_threshold)


def _datasets_of(data: str) -> Iterator[tuple[str, DatasetFiles]]:
    """Names and files of what was typed."""
    if data in dataset_names():
        yield data, known_files(data)
        return
    json_file, comma, image_root = data.partition(",")
    path = Path(data).expanduser()
    if comma:
        found = {"": CocoFiles(json_file.strip(), image_root.strip())}
    elif path.exists():
        splits = find_splits(str(path))
        whole = all(files.part is not None for files in splits.values())
        # Where no split was found, parts would be drawn; here they are of no interest.
        found = {"": replace(splits["train"], part=None)} if whole else splits
    else:
        near = nearest(data, dataset_names(), cutoff=0.6)
        hint = f"; a dataset of a similar name: {', '.join(near)}" if near else ""
        raise UserError(f"{data} is neither a file or folder nor the name of a dataset{hint}")
    stem = Path(json_file.strip()).stem if comma else path.resolve().stem
    for split, files in found.items():
        yield "_".join(filter(None, (stem, split))), files


def _check_entries(files: DatasetFiles) -> list[Finding]:
    if isinstance(files, LabelFiles):
        if files.kind == "coco" and Path(files.path).is_file():
            return check_annotations(read_annotation_file(files.path, InstanceFile))
        return [] if files.kind == "panoptic" else check_annotations(read_labels(files).content)
    json_file = files.json_file if isinstance(files, CocoFiles) else files.instances_json
    return check_annotations(read_annotation_file(json_file, InstanceFile)) if json_file and Path(json_file).is_file() else []


def _describe(datasets: Sequence[Dataset], output: Path) -> None:
    counted = []
    for dataset in datasets:
        records = dataset.records
        if len(records) and records[0].get("objects_in_png"):
            records = [with_objects(record) for record in records]
        data = statistics_of(dataset.name, records, dataset.metadata.thing_classes)
        print("\n".join(printable(line) for line in describe(data)))
        if len(data.boxes):
            print(printable(_table(data), lines=True))
            path = output / f"classes_{dataset.name}.png"
            try:
                plot_classes(data, path)
            except UserError as error:
                print(error)
        counted.append(data)
    for line in doubts(counted[0], counted[1:]):
        print(printable(line))


def _table(data: Statistics) -> str:
    sizes = np.digitize(data.sizes, (32, 96))
    rows = []
    for index, name in enumerate(data.classes):
        own = data.labels == index
        rows.append(
            [name, int(own.sum()), *(int((own & (sizes == size)).sum()) for size in range(3)), len(set(data.image_of[own]))]
        )
    rows.sort(key=lambda row: -row[1])
    return tabulate(rows, ["class", "objects", "small", "medium", "large", "images"], disable_numparse=[0])


def _report(findings: list[tuple[str, Finding]], output: Path) -> None:
    """Print what is suspicious, a few of each kind, and write all of it to a table."""
    if not findings:
        print("nothing suspicious")
        return
    order = sorted(findings, key=lambda pair: (pair[1].what, pair[0]))
    for what, group in groupby(order, key=lambda pair: pair[1].what):
        group = list(group)
        print(f"suspicious: {len(group)} x {what}")
        for name, finding in group[:_SHOWN]:
            annotation = "" if finding.annotation is None else f"annotation {finding.annotation}"
            print(printable("    " + ", ".join(filter(None, (name, finding.file, annotation, finding.detail)))))
        if len(group) > _SHOWN:
            print(f"    and {len(group) - _SHOWN} more")
    path = output / "suspicious.csv"
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        table = csv.writer(file)
        table.writerow(("dataset", "what", "file", "annotation", "detail"))
        for name, each in order:
            table.writerow((name, each.what, each.file, "" if each.annotation is None else each.annotation, each.detail))
    print(f"all {len(findings)}: {path}")


def _reasons(dataset: Dataset, findings: Iterable[Finding]) -> dict[int, list[str]]:
    """What is suspicious in each annotation that the dataset has, by its id."""
    known = {annotation.id for annotation in _annotations(dataset)}
    reasons = defaultdict(list)
    for finding in findings:
        if finding.annotation in known:
            reasons[finding.annotation].append(finding.what)
    return reasons


def _annotations(dataset: Dataset) -> Sequence[Annotation]:
    return (dataset.truth and dataset.truth.annotations) or ()


def _draw_suspicious(
    dataset: Dataset, records: Sequence[Record], reasons: dict[int, list[str]], folder: Path, count: int
) -> None:
    """Pictures of up to `count` images that have suspicious annotations, so that each kind is there if it can be."""
    seen, ranked = Counter(), []
    for annotation in _annotations(dataset):
        for what in reasons.get(annotation.id, ()):
            seen[what] += 1
            ranked.append((seen[what], annotation.image_id))
    by_id = {record["image_id"]: record for record in records}
    wanted = [by_id[image] for image in dict.fromkeys(image for _, image in sorted(ranked)) if image in by_id][:count]
    for record, path in _with_paths(wanted, folder):
        image = Image.fromarray(read_record_image(record, "RGB"))
        save_picture(_draw_truth(image, dataset, with_objects(record), reasons), f"{path}.png")
    if wanted:
        print(f"{len(wanted)} images with what is suspicious in red: {folder}")


def _draw_truth(image: Image.Image, dataset: Dataset, record: Record, reasons: dict[int, list[str]]) -> Image.Image:
    """The objects of a record; what is suspicious has a red frame and says why, what was left out in reading included."""
    truth, metadata = truth_of_record(record), dataset.metadata
    ids = [annotation.get("id") for annotation in record.get("annotations", [])]
    left_out = [a for a in _annotations(dataset) if a.image_id == record["image_id"] and a.id in reasons and a.id not in ids]
    if left_out:
        boxes = torch.tensor([each.bbox for each in left_out], dtype=torch.float64)
        corners = torch.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        boxes = torch.cat([corners.amin(0), corners.amax(0)], dim=1)
        sides = torch.tensor([record["width"], record["height"]] * 2)
        boxes = torch.minimum(boxes.clamp(min=0), sides)
        classes = torch.tensor([metadata.thing_dataset_id_to_contiguous_id[each.category_id] for each in left_out])
        truth["boxes"], truth["classes"] = torch.cat([truth["boxes"], boxes]), torch.cat([truth["classes"], classes])
        if "masks" in truth:
            truth["masks"] = torch.cat([truth["masks"], truth["masks"].new_zeros(len(left_out), *truth["masks"].shape[1:])])
        ids += [each.id for each in left_out]
    labels = [metadata.thing_classes[label] for label in truth["classes"].tolist()]
    labels = [f"{label}: {reasons[each][0]}" if each in reasons else label for label, each in zip(labels, ids)]
    frames = [WRONG if each in reasons else None for each in ids]
    return draw_enlarged(image, truth, metadata.thing_classes, colors=thing_colors(dataset), labels=labels, frames=frames)


def _with_paths(records: Sequence[Record], folder: Path) -> Iterator[tuple[Record, Path]]:
    """Each record with the path of its picture, without a suffix."""
    stems = Counter(Path(record["file_name"]).stem for record in records)
    for number, record in enumerate(records, start=1):
        stem = Path(record["file_name"]).stem
        yield record, folder / (stem if stems[stem] == 1 else f"{stem}_{number}")


def _draw(
    dataset: Dataset,
    records: Sequence[Record],
    reasons: dict[int, list[str]],
    folder: Path,
    mapper: Mapper | None,
    image_format: str,
) -> None:
    colors, names = thing_colors(dataset), dataset.metadata.thing_classes
    for number, (record, path) in enumerate(_with_paths(records, folder), start=1):
        record = with_objects(record)
        sample = None if mapper is None else mapper(record, np.random.default_rng(number))
        image = Image.fromarray(read_record_image(record, "RGB")) if sample is None else sample_image(sample, image_format)
        if names and sample is None:
            save_picture(_draw_truth(image, dataset, record, reasons), f"{path}.png")
        elif names:
            save_picture(draw_enlarged(image, sample_truth(sample), names, colors=colors), f"{path}.png")
        if isinstance(dataset.metadata, SemanticMetadata):
            labels = read_semantic_labels(record) if sample is None else sample["target"].get("sem_seg")
            if labels is not None:
                classes = list(zip(dataset.metadata.stuff_classes, dataset.metadata.stuff_colors))
                save_picture(draw_labels(image, np.asarray(labels), classes), f"{path}_semantic.png")
    if records:
        what = "as the model sees them" if mapper else "with their annotations"
        print(f"{len(records)} images {what}: {folder}")
