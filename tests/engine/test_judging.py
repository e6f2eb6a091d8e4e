"""Evaluations: the best, when to stop, and what is not learned; losses that leap; averages."""

import math

import pytest
import torch
from torch import nn

from resnest_det.engine.averaging import averaged_model, load_averaged
from resnest_det.engine.judging import Evaluations
from resnest_det.engine.memory import OutOfMemory, memory_for_use, most_that_fit, telling_of_memory
from resnest_det.engine.spikes import SpikeWatch
from resnest_det.errors import UserError


def of(*values):
    return Evaluations([(10 * number, {"bbox/AP": value}) for number, value in enumerate(values)], "bbox/AP")


@pytest.mark.parametrize(
    "values, best, without_better",
    [
        ((), None, 0),
        ((1.0,), (0, 1.0), 0),
        ((1.0, 3.0, 2.0, 3.0), (10, 3.0), 2),  # an equal one is no better
        ((math.nan, 0.0, math.nan), (10, 0.0), 1),
        ((math.nan, math.nan), (0, -math.inf), 1),
    ],
)
def test_best(values, best, without_better):
    assert of(*values).best() == best and of(*values).without_better() == without_better
    one_by_one = of()
    better = [one_by_one.add(10 * number, {"bbox/AP": value}) for number, value in enumerate(values)]
    assert one_by_one.best() == best and sum(better) == better.index(True, best[0] // 10 if best else 0) + 1 if values else True


def test_figure_that_is_missing_is_below_all():
    evaluations = of(0.0)
    assert not evaluations.add(20, {"segm/AP": 50.0}) and evaluations.best() == (0, 0.0)


def test_classes_that_stay_at_nothing():
    figures = [
        {"bbox/AP-cat": 5.0, "bbox/AP-dog": 0.0, "bbox/AP-cow": cow, "bbox/AP-elk": math.nan} for cow in (1.0, 0.0, 0.0, 0.0)
    ]
    evaluations = Evaluations([(0, figures[0]), (1, figures[1])], "bbox/AP")
    assert evaluations.stuck("bbox/AP-") == []
    evaluations.add(2, figures[2])
    assert evaluations.stuck("bbox/AP-") == ["dog"]
    evaluations.add(3, figures[3])
    assert evaluations.stuck("bbox/AP-") == ["dog", "cow"]
    nothing = Evaluations([(number, {"bbox/AP-cat": 0.0}) for number in range(3)], "bbox/AP")
    assert nothing.stuck("bbox/AP-") == [], "nothing at all is learned yet"


def test_leap_of_the_loss_is_told_once():
    watch, found = SpikeWatch(), {}
    for iteration in range(300):
        loss = {5: 50.0, 60: 7.0, 70: 7.0, 250: 4.5, 260: 100.0}.get(iteration, 1.0)
        watch.iteration(iteration, {"loss_a": loss, "loss_b": 0.2}, lr=0.1, time=1, data_time=0)
        if watch.found:
            found[iteration] = watch.found
    assert list(found) == [60, 260], "not among the first, not twice in a hundred, not below five times the median"
    assert found[60] == (
        "iteration 60: the loss leapt to 7.2, 6 times the median of the last 50 iterations; most of it is loss_a, 7"
    )


def test_average_follows_quickly_at_first_and_is_exact_after_loading():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    averaged = averaged_model(model, 0.5)
    values, expected = (1.0, 2.0, 4.0, 8.0), []
    for number, value in enumerate(values):
        model[0].weight.data.fill_(value)
        model[1].num_batches_tracked.fill_(number)
        averaged.update_parameters(model)
        kept = min(0.5, (1 + number) / (10 + number))
        expected.append(value if number == 0 else kept * expected[-1] + (1 - kept) * value)
        assert averaged.module[0].weight.item() == pytest.approx(expected[-1], rel=1e-6)
        if number == 1:
            saved = {"model_ema": {name: each.clone() for name, each in averaged.state_dict().items()}}
    assert averaged.module[1].num_batches_tracked == 3

    other = averaged_model(model, 0.5)
    assert load_averaged(other, saved, "x.pth") and not load_averaged(other, {}, "x.pth")
    for value in values[2:]:
        model[0].weight.data.fill_(value)
        other.update_parameters(model)
    assert torch.equal(other.module[0].weight, averaged.module[0].weight)
    alone = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    load_averaged(alone, saved, "x.pth")
    assert torch.equal(alone[0].weight, saved["model_ema"]["module.0.weight"])
    with pytest.raises(UserError, match="checkpoint x.pth: its 'model_ema' is of another model"):
        load_averaged(nn.Linear(2, 1), saved, "x.pth")
    with pytest.raises(UserError, match="decay is 1; it must be from 0 to below 1"):
        averaged_model(model, 1.0)


def test_what_fits_is_found_by_halves():
    tried = []

    def step(images):
        tried.append(len(images))
        if len(images) > 3:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
            )

    with pytest.raises(OutOfMemory, match="out of memory in a step of 16 images: .*DefaultCPUAllocator"), telling_of_memory(16):
        step(range(16))
    assert most_that_fit(step, range(16), least=1) == 2 and tried == [16, 8, 4, 2]
    assert most_that_fit(step, range(16), least=4) == 0
    with pytest.raises(RuntimeError, match="other"), telling_of_memory(1):
        raise RuntimeError("something other")
    assert memory_for_use(torch.device("cpu")) > 2**20
