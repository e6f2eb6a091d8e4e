"""Curves and bars as PNG files, by matplotlib and hotcoco's plots."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hotcoco import COCOeval
from hotcoco import plot as hotcoco_plot

from resnest_det.data.statistics import Statistics
from resnest_det.drawing.objects import class_colors
from resnest_det.errors import UserError
from resnest_det.evaluation.bootstrap import mean_of_counted

_MOST_CLASSES = 40  # in a chart
_MOST_CURVES = 10
_SIZES = ("small (below 32² pixels)", "medium", "large (96² and more)")


@contextmanager
def figure(path: str | Path, width: float, height: float, columns: int = 1) -> Iterator:
    """The axes of a figure, `columns` of them beside each other, that is written to `path` as PNG or SVG afterwards.

    Args:
        width, height: in inches of 100 pixels.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    plt = _matplotlib()
    with hotcoco_plot.style():
        drawn, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
        try:
            yield axes
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            drawn.savefig(path, dpi=100)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
        finally:
            plt.close(drawn)


def _matplotlib():
    try:
        import matplotlib
    except ImportError:
        raise UserError('plots need matplotlib: pip install "resnest_det[draw]"') from None
    matplotlib.use("Agg")
    # Weights that a font lacks are taken from the next one, with a line for each text.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    from matplotlib import pyplot

    return pyplot


def plot_classes(data: Statistics, path: str | Path) -> None:
    """How many objects of each class there are, small, medium and large; of many classes the most frequent."""
    order = sorted(range(len(data.classes)), key=lambda index: -np.sum(data.labels == index))[:_MOST_CLASSES]
    bins = np.digitize(data.sizes, (32, 96))
    with figure(path, 8, 1.4 + 0.26 * len(order)) as axes:
        begin = np.zeros(len(order))
        for size, label in enumerate(_SIZES):
            counts = np.array([np.sum((data.labels == index) & (bins == size)) for index in order], dtype=float)
            axes.barh(range(len(order)), counts, left=begin, label=label)
            begin += counts
        axes.bar_label(axes.containers[-1], labels=[f" {count:.0f}" for count in begin])
        axes.set_yticks(range(len(order)), [_short(data.classes[index]) for index in order])
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set(title=f"{data.name}: {len(data.labels)} objects", xlabel="objects")
        axes.figure.legend(loc="outside lower center", ncols=3)


def plot_precision_recall(counting: COCOeval, class_names: Sequence[str], path: str | Path) -> None:
    """Precision over recall: the mean of all classes at several overlaps, and the classes with the most objects at 0.5.

    Args:
        counting: see `resnest_det.evaluation.average_precision.counted`.
        class_names: in the order of the categories' ids.
    """
    precision = counting.eval["precision"][:, :, :, 0, -1].astype(float)  # (10 overlaps, 101 recalls, classes)
    precision[precision < 0] = np.nan
    recall = np.linspace(0, 1, 101)
    present = [index for index in range(len(class_names)) if not np.isnan(precision[:, :, index]).all()]
    truth = counting.coco_gt
    counts = {index: len(truth.get_ann_ids(cat_ids=[index + 1])) for index in present}
    shown = sorted(present, key=lambda index: -counts[index])[:_MOST_CURVES]
    with figure(path, 13, 5, columns=2) as (left, right):
        for row in (0, 2, 4, 6, 8):
            if present:
                left.plot(recall, mean_of_counted(precision[row][:, present]), label=f"overlap {0.5 + 0.05 * row:.2f}")
        for color, index in zip(class_colors(len(class_names)), range(len(class_names))):
            if index in shown:
                name, curve = _short(class_names[index]), precision[0, :, index]
                right.plot(recall, curve, color=np.array(color) / 255, label=f"{name}, AP50 {100 * curve.mean():.0f}")
        left.set(title="mean of the classes")
        right.set(
            title=f"the {len(shown)} classes with the most objects" if len(present) > len(shown) else "classes, overlap 0.5"
        )
        for axes in (left, right):
            axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
            if axes.lines:
                axes.legend(loc="lower left", frameon=True)


def plot_sizes(figures: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """AP and AR of all, small, medium and large objects, for each task."""
    names = (("AP", "APs", "APm", "APl"), ("AR100", "ARs", "ARm", "ARl"))
    with figure(path, 9, 4, columns=2) as both:
        for axes, kinds, title in zip(both, names, ("average precision", "average recall")):
            width = 0.8 / max(1, len(figures))
            for number, (task, values) in enumerate(figures.items()):
                heights = [values[kind] for kind in kinds]
                places = np.arange(4) + width * (number - (len(figures) - 1) / 2)
                bars = axes.bar(places, np.nan_to_num(heights), width, label={"bbox": "boxes", "segm": "masks"}.get(task, task))
                axes.bar_label(bars, labels=["none" if np.isnan(height) else f"{height:.1f}" for height in heights])
            axes.set_xticks(range(4), ("all", "small", "medium", "large"))
            axes.set(title=title, ylim=(0, 100))
        both[0].legend()


def plot_confusion(counting: COCOeval, class_names: Sequence[str], score_threshold: float, path: str | Path) -> None:
    """What objects of each class were taken for, and what was found where nothing is (BG, background)."""
    said = counting.confusion_matrix(min_score=score_threshold) | {"cat_names": [_short(name) for name in class_names]}
    side = min(14, 5 + 0.3 * min(26, len(class_names)))
    with figure(path, side + 1, side) as axes:
        hotcoco_plot.confusion_matrix(said, ax=axes)


def plot_class_confusion(confusion: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """What images of each class were taken for; of many classes those that were most often wrong.

    Args:
        confusion: (K, K) counts, rows are the true classes.
    """
    wrong = confusion.sum(1) - confusion.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES])
    counts = confusion[np.ix_(shown, shown)]
    shares = counts / np.maximum(confusion[shown].sum(1, keepdims=True), 1)
    names = [_short(class_names[index]) for index in shown]
    side = min(14, 3 + 0.3 * len(names))
    with figure(path, side + 1.5, side) as axes:
        drawn = axes.imshow(shares, vmin=0, vmax=1)
        axes.figure.colorbar(drawn, label="share of the true class")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        if len(names) <= 20:
            for row, column in np.ndindex(counts.shape):
                color = "black" if shares[row, column] > 0.5 else "white"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
        more = f" ({len(names)} of {len(class_names)} classes)" if len(names) < len(class_names) else ""
        axes.set(xlabel="taken for", ylabel=f"class{more}")


def plot_calibration(counting: COCOeval, path: str | Path) -> None:
    """How many detections of a score are right."""
    with figure(path, 5.5, 5) as axes:
        hotcoco_plot.reliability_diagram(counting.calibration(), ax=axes)


def plot_error_kinds(counting: COCOeval, path: str | Path) -> None:
    """How much AP50 each kind of error costs (TIDE: Bolya et al., arXiv:2008.08115)."""
    with figure(path, 7, 3.5) as axes:
        hotcoco_plot.tide_errors(counting.tide_errors(), ax=axes)


def _short(name: str, most: int = 24) -> str:
    # "$" would begin a formula.
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")
