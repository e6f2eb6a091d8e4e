"""metrics.json, the progress line, TensorBoard."""

import io
import json
import logging
import re
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnest_det.engine.events import TrainingLog, cut_metrics, keep_earlier_metrics, peak_memory_mib, setup_logging
from tests.helpers.tiny_run import read_metrics


def _log(folder, start, end, max_iter=40):
    log = TrainingLog(str(folder), start_iteration=start, max_iter=max_iter)
    for iteration in range(start, end):
        # An outlier that a median hides and a mean does not.
        loss = 1000.0 if iteration == 10 else 1.0
        log.iteration(iteration, {"loss_cls": loss, "loss_mask": 0.5}, lr=0.01, time=2.0, data_time=0.25)
    return log


def test_progress_line_every_20_iterations_shows_medians(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _log(tmp_path, 0, 39).close()
    first, *lines = [record.message for record in caplog.records]
    assert first.startswith("eta: 0:01:14  iter: 2  ")  # as soon as an iteration was timed
    assert len(lines) == 1
    assert re.fullmatch(
        r"eta: 0:00:40  iter: 19  total_loss: 1.5  loss_cls: 1  loss_mask: 0.5  time: 2.0000  last_time: 2.0000  "
        r"data_time: 0.2500  last_data_time: 0.2500  lr: 0.01  max_mem: \d+M",
        lines[0],
    )


def test_every_iteration_is_in_metrics_json_with_exact_values(tmp_path):
    log = _log(tmp_path, 0, 12)
    log.results(11, {"bbox/AP": 12.5})
    log.close()
    lines = read_metrics(tmp_path)
    assert [line["iteration"] for line in lines] == [*range(12), 11]
    assert lines[10]["total_loss"] == 1000.5 and lines[10]["loss_cls"] == 1000.0
    assert set(lines[5]) == {"iteration", "total_loss", "loss_cls", "loss_mask", "lr", "time", "data_time", "eta_seconds"}
    assert lines[-1] == {"iteration": 11, "bbox/AP": 12.5}


def test_resumed_run_supersedes_what_it_does_again(tmp_path):
    _log(tmp_path, 0, 7).close()
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 7, "total_l')  # killed while writing
    _log(tmp_path, 4, 9).close()
    assert [line["iteration"] for line in read_metrics(tmp_path)] == list(range(9))


def test_cutting_keeps_whole_lines_before_the_start(tmp_path):
    path = tmp_path / "metrics.json"
    kept = json.dumps({"iteration": 1, "bbox/AP": 3.0}) + "\n"
    foreign = '{"iteration": "x"}\n[1]\n' + "[" * 100_000 + "\n"
    path.write_text(kept + "torn\n" + foreign + json.dumps({"iteration": 2}) + "\n")
    cut_metrics(path, 2)
    assert path.read_text() == kept


def test_new_run_keeps_the_metrics_of_the_one_before(tmp_path):
    for number in (1, 2):
        (tmp_path / "metrics.json").write_text(f"run {number}\n")
        keep_earlier_metrics(str(tmp_path))
    assert (tmp_path / "metrics_earlier_1.json").read_text() == "run 1\n"
    assert (tmp_path / "metrics_earlier_2.json").read_text() == "run 2\n" and not (tmp_path / "metrics.json").exists()


def test_tensorboard_has_the_curves(tmp_path):
    log = _log(tmp_path, 0, 40)
    log.results(39, {"bbox/AP": 12.5})
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("total_loss")] == [(19, 1.5), (39, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("bbox/AP")] == [(39, 12.5)]
    assert events.Scalars("lr")[0].value == pytest.approx(0.01)


def test_memory_is_that_of_this_process():
    assert 50 < peak_memory_mib() < 100_000


@pytest.mark.parametrize("name", ["log.txt", "metrics.json"])
def test_links_in_the_output_folder_are_not_written_through(tmp_path, name):
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious\n")
    folder.mkdir()
    (folder / name).symlink_to(victim)
    setup_logging(str(folder))
    logging.getLogger("resnest_det").info("a line")
    log = TrainingLog(str(folder), start_iteration=0, max_iter=1)
    log.iteration(0, {"loss": 1.0}, lr=0.1, time=0.1, data_time=0.1)
    log.close()
    setup_logging(None)
    assert victim.read_text() == "precious\n" and (folder / name).read_text()


def test_a_closed_standard_output_does_not_end_a_run(tmp_path, monkeypatch):
    output = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        setup_logging(None)
    output.close()
    _log(tmp_path, 0, 5).close()
    setup_logging(None)
    assert len(read_metrics(tmp_path)) == 5
