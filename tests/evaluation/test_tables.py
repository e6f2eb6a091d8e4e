"""Text tables of evaluation results."""

import math

from resnest_det.evaluation.tables import copypaste_lines, format_results

RESULTS = {
    "bbox": {"AP": 41.23456, "AP50": 60.0, "APs": math.nan, "AP-person": 50.5, "AP-hair-drier": math.nan, "AP-cat": 1.0},
    "panoptic_seg": {"PQ": 40.0, "PQ-cat": 30.0, "SQ-cat": 80.0},
}


def test_every_figure_and_class_is_in_the_table_once():
    lines = format_results(RESULTS).splitlines()
    assert lines[0] == "bbox:"
    assert [cell.strip() for cell in lines[1].split("|")[1:-1]] == ["AP", "AP50", "APs"]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["41.235", "60.000", "nan"]
    text = "\n".join(lines)
    for row in ("person", "hair-drier", "cat"):
        assert sum(row in line for line in lines) >= 1
    assert "hair-drier" in text and "50.500" in text
    start = lines.index("panoptic_seg per class:")
    assert [cell.strip() for cell in lines[start + 3].split("|")[1:-1]] == ["cat", "30.000", "80.000"]


def test_rows_of_a_table_are_equally_long_and_classes_read_downwards():
    results = {"bbox": {"AP": 1.0, **{f"AP-class {i}": float(i) for i in range(8)}}}
    lines = format_results(results).splitlines()
    table = lines[lines.index("bbox per class:") + 1 :]
    assert len({len(line) for line in table}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    assert [row[0] for row in cells] == ["class 0", "class 1", "class 2"]
    assert cells[0] == ["class 0", "0.000", "class 3", "3.000", "class 6", "6.000"]
    assert cells[2] == ["class 2", "2.000", "class 5", "5.000", "", ""]


def test_copypaste_lines_hold_the_overall_figures_only():
    assert copypaste_lines(RESULTS)[:3] == ["copypaste: Task: bbox", "copypaste: AP,AP50,APs", "copypaste: 41.2346,60.0000,nan"]
    assert len(copypaste_lines(RESULTS)) == 6
