"""Evaluation results as text: tables to read, and lines to copy."""

import math

from tabulate import tabulate

from resnest_det.errors import printable


def format_results(results: dict[str, dict[str, float]]) -> str:
    """Tables of all figures of each task, then of its figures per class.

    Args:
        results: task ("bbox", "segm", "panoptic_seg", "sem_seg") to figures; a figure of one class is named
            `<figure>-<class>`, as in `AP-person`.
    """
    parts = []
    for task, figures in results.items():
        overall = {name: value for name, value in figures.items() if "-" not in name}
        per_class: dict[str, dict[str, float]] = {}
        for name, value in figures.items():
            if "-" in name:
                figure, label = name.split("-", 1)
                per_class.setdefault(figure, {})[label] = value
        parts.append(f"{task}:\n" + _table([list(overall), [_number(value) for value in overall.values()]]))
        if per_class:
            parts.append(f"{task} per class:\n" + _class_table(per_class))
    return "\n\n".join(parts)


def copypaste_lines(results: dict[str, dict[str, float]]) -> list[str]:
    """Three lines for each task, to paste into a spreadsheet: its name, the names of its overall figures, and their values."""
    lines = []
    for task, figures in results.items():
        overall = {name: value for name, value in figures.items() if "-" not in name}
        lines += [
            f"copypaste: Task: {task}",
            "copypaste: " + ",".join(overall),
            "copypaste: " + ",".join(f"{value:.4f}" for value in overall.values()),
        ]
    return lines


def _class_table(per_class: dict[str, dict[str, float]]) -> str:
    """Rows of classes with their figures; the fewer the figures, the more classes side by side."""
    header = ["class", *per_class]
    labels = list(dict.fromkeys(label for values in per_class.values() for label in values))
    cells = [[printable(label), *(_number(values.get(label, math.nan)) for values in per_class.values())] for label in labels]
    across = max(1, min(6 // len(header), len(cells)))
    down = math.ceil(len(cells) / across)
    rows = [
        sum(
            (cells[row + column * down] if row + column * down < len(cells) else [""] * len(header) for column in range(across)),
            [],
        )
        for row in range(down)
    ]
    return _table([header * across, *rows])


def _table(rows: list[list[str]]) -> str:
    header, *others = rows
    return tabulate(others, header, tablefmt="github", disable_numparse=True)


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.3f}"
