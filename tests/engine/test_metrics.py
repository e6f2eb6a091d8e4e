"""Reading metrics.json."""

import pytest

from resnest_det.engine.events import TrainingLog
from resnest_det.engine.metrics import read_metrics
from resnest_det.errors import UserError


def test_what_a_run_has_logged_is_read_back(tmp_path):
    log = TrainingLog(str(tmp_path), start_iteration=0, max_iter=3)
    for iteration in range(3):
        log.iteration(iteration, {"loss_a": 1.0, "loss_b": iteration / 2}, lr=0.1 * iteration, time=0.5, data_time=0.1)
    log.results(3, {"bbox/AP": 12.5, "bbox/APl": float("nan")})
    log.close()
    for run in (tmp_path, tmp_path / "metrics.json"):
        metrics = read_metrics(run)
        assert metrics.name == tmp_path.name
        assert metrics.scalars["total_loss"] == ([0, 1, 2], [1.0, 1.5, 2.0])
        assert metrics.scalars["bbox/AP"] == ([3], [12.5]) and "bbox/APl" not in metrics.scalars


def test_half_a_line_is_skipped_and_of_a_repeated_iteration_the_later_line_counts(tmp_path):
    lines = [
        '{"iteration": 1, "lr": 0.5}',
        '{"iteration": 0, "lr": 0.1}',
        "[1]",
        '{"iteration": 1, "lr": 0.2}',
        '{"iteration": 2, "l',
    ]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert read_metrics(tmp_path).scalars == {"lr": ([0, 1], [0.1, 0.2])}


def test_folders_without_figures_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder; expected the OUTPUT_DIR of a run"):
        read_metrics(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no metrics.json"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "total_lo')
    with pytest.raises(UserError, match="has no line with figures"):
        read_metrics(tmp_path)
