"""Is it good? One HTML file about a run that stands alone: figures with how sure they are, errors, pictures, curves, data."""

import base64
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from resnest_det.data.coco import Dataset
from resnest_det.data.statistics import Statistics, describe
from resnest_det.drawing.curves import plot_runs
from resnest_det.drawing.plots import (
    plot_calibration,
    plot_classes,
    plot_confusion,
    plot_error_kinds,
    plot_precision_recall,
    plot_sizes,
)
from resnest_det.drawing.results import detections_by_image, draw_result
from resnest_det.engine.metrics import Metrics
from resnest_det.evaluation.average_precision import counted, figures_of
from resnest_det.evaluation.bootstrap import (
    AREAS,
    Estimate,
    MatchedDetections,
    average_precisions,
    best_thresholds,
    draw_images,
    estimate,
    matched_by,
    mean_of_counted,
)
from resnest_det.evaluation.results import errors_by_image, ground_truth_of, names_by_id
from resnest_det.files import write_bytes
from resnest_det.inference.advice import advice

_TASKS = {"bbox": "boxes", "segm": "masks"}
_WIDEST_PICTURE = 1300

_STYLE = """
:root { color-scheme: light dark; --edge: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--edge); }
h3 { font-size: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--edge); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1rem; align-items: start; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; }
.cards div { border: 1px solid var(--edge); border-radius: .5rem; padding: .5rem 1rem; }
.cards b { font-size: 1.5rem; display: block; } figure { margin: 1rem 0; } pre { overflow-x: auto; font-size: .8rem; }
small, figcaption { opacity: .75; }
@media (max-width: 40rem) {
  table { font-size: .9rem; }
  th, td { padding: .25rem .4rem; } ul { padding-left: 1.2rem; }
  .wide { overflow-x: auto; } .wide img { max-width: 40rem; } .wide figcaption { position: sticky; left: 0; max-width: 90vw; }
}
"""


@dataclass(frozen=True)
class Evaluated:
    """A dataset, read with its truth, and the detections on it, see `resnest_det.evaluation.results.read_results`."""

    dataset: Dataset
    detections: list[dict]
    statistics: Statistics


def write_report(
    path: str | Path,
    title: str,
    evaluated: Sequence[Evaluated],
    *,
    trained_on: Statistics | None = None,
    metrics: Metrics | None = None,
    configuration: str = "",
    score_threshold: float = 0.5,
    worst: int = 8,
) -> None:
    """Write the report of a run.

    Args:
        path: of the HTML file.
        trained_on: the training images.
        metrics: of the run.
        configuration: its text.
        score_threshold: of the confusion matrix and the pictures.
        worst: how many images with the most errors are drawn.

    Raises:
        UserError: matplotlib is not installed, an image cannot be read, or the file cannot be written.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    for each in evaluated:
        parts += _evaluation(each, trained_on, metrics, score_threshold, worst)
    if metrics is not None:
        parts += [
            "<h2>Training</h2>",
            _plot(lambda file: plot_runs([metrics], file), "loss, learning rate, evaluations", wide=True),
        ]
    if trained_on is not None:
        parts += ["<h2>Training images</h2>", *_data(trained_on)]
    if configuration:
        parts.append(f"<h2>Configuration</h2><details><summary>all keys</summary><pre>{escape(configuration)}</pre></details>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    write_bytes(str(path), page.encode())


def _evaluation(
    evaluated: Evaluated, trained_on: Statistics | None, metrics: Metrics | None, score_threshold: float, worst: int
) -> list[str]:
    dataset, detections = evaluated.dataset, evaluated.detections
    truth = ground_truth_of(dataset)
    names = names_by_id(truth)
    tasks = ["bbox"]
    if detections and all("segmentation" in each for each in (*detections, *truth["annotations"])):
        tasks.append("segm")
    # Each by itself: boxes and masks give detections other areas.
    countings = {task: counted(truth, detections, (task,), 100)[task] for task in tasks}
    figures = {task: figures_of(each, truth) for task, each in countings.items()}
    counting, weights = countings["bbox"], draw_images(len(truth["images"]))
    matched = {task: matched_by(each, truth, detections) for task, each in countings.items()}
    sizes = {task: {area: _ends(matched[task], weights, area) for area in AREAS} for task in tasks}
    error_kinds, calibration = counting.tide_errors(), counting.calibration()

    said = advice(
        figures["bbox"],
        sizes["bbox"][""][0],
        {kind: value for kind, value in error_kinds["delta_ap"].items() if kind in error_kinds["counts"]},
        float(calibration["ece"]),
        evaluated.statistics,
        trained_on,
        metrics,
    )
    parts = [
        f"<h2>Evaluation on {escape(dataset.name)}</h2>",
        _cards(figures, sizes),
        "<p><small>In percent. Ranges: 95 % confidence intervals, by the bootstrap over images.</small></p>",
        "<h3>What to try next</h3><ul>" + "".join(f"<li>{escape(line)}</li>" for line in said) + "</ul>",
    ]
    for task in tasks:
        parts.append(f"<h3>{_TASKS[task].capitalize()} by class</h3>")
        parts.append(_classes(figures[task], matched[task], sizes[task][""][1], names, evaluated.statistics))
    parts.append(f"<h3>By size</h3>{_sizes(figures, sizes)}")
    parts.append(_plot(lambda file: plot_precision_recall(counting, names, file), "precision and recall", wide=True))
    parts.append(_plot(lambda file: plot_sizes(figures, file), "AP and AR by size", wide=True))
    plots: dict[str, Callable[[str], None]] = {
        f"confusion at scores of {score_threshold:g} and more": lambda file: plot_confusion(
            counting, names, score_threshold, file
        ),
        "how often a detection of a score is right": lambda file: plot_calibration(counting, file),
        "AP50 lost by each kind of error": lambda file: plot_error_kinds(counting, file),
    }
    parts.append('<div class="plots">' + "".join(_plot(draw, caption) for caption, draw in plots.items()) + "</div>")

    errors = [image for image in errors_by_image(truth, detections, score_threshold) if image.missed + image.false][:worst]
    records, found = {record["image_id"]: record for record in dataset.records}, detections_by_image(detections)
    parts.append(f"<h3>The {len(errors)} images with the most errors</h3>" if errors else "<p>No image has an error.</p>")
    for image in errors:
        record = records[image.image_id]
        picture = draw_result(dataset, record, found.get(image.image_id, []), score_threshold)
        parts.append(_picture(picture, f"{Path(record['file_name']).name}: {image.missed} missed, {image.false} false"))
    return [*parts, "<h3>Evaluated images</h3>", *_data(evaluated.statistics)]


def _ends(matched: MatchedDetections, weights: np.ndarray, area: str) -> tuple[Estimate, list[Estimate]]:
    """AP, and that of each class, in percent."""
    draws = 100 * average_precisions(matched, weights, area).mean(axis=1)  # (draws, classes)
    present = ~np.isnan(draws[0])
    over_all = mean_of_counted(draws[:, present]) if present.any() else np.array([np.nan])
    return estimate(over_all), [estimate(draws[:, label]) for label in range(draws.shape[1])]


def _cards(figures: Mapping[str, Mapping[str, float]], sizes: Mapping) -> str:
    cards = []
    for task, values in figures.items():
        cards.append(f"<div>AP of {_TASKS[task]}<b>{_number(values['AP'])}</b><small>{_range(sizes[task][''][0])}</small></div>")
        cards.append(f"<div>AP50 of {_TASKS[task]}<b>{_number(values['AP50'])}</b></div>")
    return f'<div class="cards">{"".join(cards)}</div>'


def _classes(
    figures: Mapping[str, float], matched: MatchedDetections, ends: Sequence[Estimate], names: Sequence[str], data: Statistics
) -> str:
    rows = []
    for label, (name, best) in enumerate(zip(names, best_thresholds(matched))):
        at_best = (f"{best.score:.2f}", f"{100 * best.precision:.0f}", f"{100 * best.recall:.0f}") if best else ("–",) * 3
        rows.append((name, str(data.objects_of[name]), _number(figures[f"AP-{name}"]), _range(ends[label]), *at_best))
    return _table(("class", "objects", "AP", "range", "best threshold", "precision there", "recall there"), rows)


def _sizes(figures: Mapping[str, Mapping[str, float]], sizes: Mapping) -> str:
    rows = [
        (f"{_TASKS[task]}, {size}", _number(values[f"AP{area}"]), _range(sizes[task][area][0]))
        for task, values in figures.items()
        for area, size in {"": "all", "s": "below 32² pixels", "m": "medium", "l": "96² pixels and more"}.items()
    ]
    return _table(("objects", "AP", "range"), rows)


def _data(data: Statistics) -> list[str]:
    lines = "".join(f"<li>{escape(line)}</li>" for line in describe(data))
    return [f"<ul>{lines}</ul>", _plot(lambda file: plot_classes(data, file), "objects of each class") if len(data.boxes) else ""]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>{body}</table></div>'


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.1f}"


def _range(ends: Estimate) -> str:
    return "–" if np.isnan(ends.low) else f"{max(0, ends.low):.1f} to {min(100, ends.high):.1f}"


def _plot(draw: Callable[[str], None], caption: str, wide: bool = False) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "plot.png"))
        draw(file)
        return _figure("image/png", Path(file).read_bytes(), caption, wide)


def _picture(picture: Image.Image, caption: str) -> str:
    picture.thumbnail((_WIDEST_PICTURE, _WIDEST_PICTURE))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return _figure("image/jpeg", content.getvalue(), caption, wide=True)


def _figure(kind: str, content: bytes, caption: str, wide: bool) -> str:
    """A picture and what it shows. One that is `wide`, of several parts side by side, is not made small on phones, but moved."""
    data, caption = base64.b64encode(content).decode(), escape(caption)
    kept = ' class="wide"' if wide else ""
    return f'<figure{kept}><img src="data:{kind};base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
