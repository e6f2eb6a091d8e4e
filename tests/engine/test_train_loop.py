"""The loop over any model that returns losses and any iterator of batches."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from resnest_det.configuration.model import check_batch_norm
from resnest_det.engine import loop
from resnest_det.engine.loop import add_gradients, train_loop
from resnest_det.errors import UserError
from resnest_det.training.run import choose_seed, resumed_seed


class _Toy(nn.Module):
    def __init__(self, poison_at=-1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.calls, self.poison_at, self.dtypes = 0, poison_at, []

    def forward(self, batch):
        target = torch.stack([sample["image"] for sample in batch]).mean(0)
        self.dtypes.append(torch.matmul(torch.ones(1, 3), self.weight[:, None]).dtype)
        bad = math.nan if self.calls == self.poison_at else 1.0
        self.calls += 1
        return {"loss_fit": (self.weight - target).square().sum() * bad, "loss_size": 0.1 * self.weight.square().sum()}


def _batches(start=0):
    while True:
        generator = torch.Generator().manual_seed(start)
        yield [{"image": torch.randn(3, generator=generator), "file_name": f"{start}.jpg"} for _ in range(2)]
        start += 1


class _Fixed:
    def step(self):
        pass


class _Log:
    def __init__(self):
        self.lines = []

    def iteration(self, iteration, losses, *, lr, time, data_time):
        assert time >= data_time >= 0
        self.lines.append((iteration, losses, lr))


def _train(model, *, start=0, max_iter=4, optimizer=None, amp=False, **more):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: 1 / (1 + iteration))
    log = _Log()
    train_loop(
        model,
        _batches(start),
        optimizer,
        scheduler,
        start_iteration=start,
        max_iter=max_iter,
        seed=3,
        log=log,
        names_of=lambda batch: [sample["file_name"] for sample in batch],
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        autocast=torch.autocast("cpu", torch.bfloat16, enabled=amp),
        **more,
    )
    return log.lines


def test_losses_and_learning_rates_are_logged_as_they_were_in_each_step():
    model = _Toy()
    lines = _train(model)
    expected = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([expected], lr=0.1, momentum=0.9)
    for iteration, (batch, line) in enumerate(zip(_batches(), lines)):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + iteration)
        target = torch.stack([sample["image"] for sample in batch]).mean(0)
        losses = {"loss_fit": (expected - target).square().sum(), "loss_size": 0.1 * expected.square().sum()}
        assert line == (iteration, {name: loss.item() for name, loss in losses.items()}, 0.1 / (1 + iteration))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert len(lines) == 4 and torch.equal(expected, model.weight)


def test_parts_of_a_batch_add_up_to_its_losses_and_gradients():
    class Squares(_Toy):
        def forward(self, batch):
            # A mean over samples, as losses are; of parts of 2 and 1.
            return {"loss_fit": torch.stack([(self.weight - s["image"]).square().sum() for s in batch]).mean()}

    def three(start=0):
        for batch in _batches(start):
            yield [*batch, {"image": torch.ones(3), "file_name": "third"}]

    weights, lines = [], []
    for parts in (1, 2, 3, 7):
        model, log = Squares(), _Log()
        train_loop(
            model,
            three(),
            torch.optim.SGD(model.parameters(), lr=0.1),
            _Fixed(),
            start_iteration=0,
            max_iter=3,
            seed=3,
            log=log,
            names_of=lambda batch: [sample["file_name"] for sample in batch],
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            autocast=torch.autocast("cpu", torch.bfloat16, enabled=False),
            accumulate=parts,
        )
        weights.append(model.weight.detach())
        lines.append([losses["loss_fit"] for _, losses, _ in log.lines])
    for weight, line in zip(weights[1:], lines[1:]):
        torch.testing.assert_close(weight, weights[0])
        assert line == pytest.approx(lines[0])


def test_something_can_be_done_before_each_step():
    model, before = _Toy(), []
    _train(model, start=2, max_iter=5, before_step=lambda iteration: before.append((iteration, model.calls)))
    assert before == [(2, 0), (3, 1), (4, 2)]


def test_each_iteration_is_seeded_by_its_number():
    draws = {}
    after_step = [lambda iteration, batch: draws.setdefault(iteration, torch.rand(1).item())]
    _train(_Toy(), max_iter=4, after_step=after_step)
    resumed = {}
    _train(_Toy(), start=2, max_iter=4, after_step=[lambda iteration, batch: resumed.setdefault(iteration, torch.rand(1).item())])
    assert len(set(draws.values())) == 4 and resumed == {2: draws[2], 3: draws[3]}


def test_loss_that_is_not_finite_names_losses_and_images_and_changes_nothing():
    model = _Toy(poison_at=2)
    weights = []
    with pytest.raises(UserError) as error:
        _train(model, after_step=[lambda iteration, batch: weights.append(model.weight.detach().clone())])
    assert "not finite at iteration 2: loss_fit nan; images of this step: 2.jpg, 2.jpg" in str(error.value)
    assert torch.equal(model.weight, weights[-1]) and len(weights) == 2


def test_gradients_are_clipped_before_the_update():
    model = _Toy()

    def clip(parameters):
        for parameter in parameters:
            parameter.grad.zero_()

    _train(model, clip_gradients=clip)
    assert torch.equal(model.weight, torch.zeros(3))


def test_mixed_precision_computes_in_bfloat16_on_cpus():
    half, full = _Toy(), _Toy()
    _train(half, amp=True)
    _train(full)
    assert set(half.dtypes) == {torch.bfloat16} and set(full.dtypes) == {torch.float32}
    assert half.weight.dtype == torch.float32


class _Means(nn.Module):
    """Losses that are means over images."""

    def __init__(self):
        super().__init__()
        self.weight, self.sizes = nn.Parameter(torch.zeros(3)), []

    def forward(self, batch):
        self.sizes.append(len(batch))
        images = torch.stack([sample["image"] for sample in batch])
        return {"loss_fit": (self.weight - images).square().sum(1).mean(), "loss_size": 0.1 * self.weight.square().sum()}


@pytest.mark.parametrize("parts, sizes", [(1, [7]), (2, [3, 4]), (3, [2, 2, 3]), (7, [1] * 7)])
def test_gradients_of_parts_add_up_to_those_of_the_batch(parts, sizes):
    torch.manual_seed(0)
    batch = [{"image": torch.randn(3)} for _ in range(7)]
    results = []
    for count in (1, parts):
        model = _Means()
        with torch.no_grad():
            model.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
        scaler, autocast = torch.amp.GradScaler("cpu", enabled=False), torch.autocast("cpu", enabled=False)
        losses = add_gradients(model, batch, count, autocast, scaler)
        results.append((losses, model.weight.grad))
    assert model.sizes == sizes
    (expected, gradient), (losses, in_parts) = results
    torch.testing.assert_close(in_parts, gradient)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name].detach())
        assert not loss.requires_grad or parts == 1


def test_a_run_in_parts_goes_as_one_in_whole_batches():
    whole, parts = _Means(), _Means()
    lines, of_parts = _train(whole), _train(parts, accumulate=2)
    torch.testing.assert_close(parts.weight, whole.weight)
    assert [losses for _, losses, _ in of_parts] == [pytest.approx(losses) for _, losses, _ in lines]


def test_processes_exchange_gradients_once_a_step(monkeypatch):
    exchanges, sent = [], [True]

    class Distributed(_Means):
        @contextmanager
        def no_sync(self):
            sent[0] = False
            yield
            sent[0] = True

        def forward(self, batch):
            exchanges.append(sent[0])
            return super().forward(batch)

    monkeypatch.setattr(loop, "DistributedDataParallel", Distributed)
    _train(Distributed(), accumulate=2, max_iter=2)
    assert exchanges == [False, True, False, True]


def test_seed_is_kept_or_drawn():
    assert choose_seed(12) == 12
    drawn = {choose_seed(-1) for _ in range(5)}
    assert len(drawn) > 1 and min(drawn) >= 0


def test_resumed_run_takes_the_seed_it_began_with(caplog):
    assert resumed_seed(-1, chosen=99, saved=7) == 7
    assert resumed_seed(7, chosen=7, saved=7) == 7 and not caplog.text
    assert resumed_seed(8, chosen=8, saved=7) == 8
    assert "began with 7" in caplog.text


def test_split_attention_with_batch_norm_needs_two_images():
    from resnest_det.backbone.split_attention import SplitAttentionConv2d

    model = nn.Sequential(SplitAttentionConv2d(8, 8))
    check_batch_norm(model, 2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 8, 4, 4))
    with pytest.raises(UserError, match="IMS_PER_BATCH 2 or more.*'FrozenBN'.*'GN'"):
        check_batch_norm(model, 1)
    with pytest.raises(UserError, match="a process and part: use SOLVER.IMS_PER_BATCH 8 or more, a smaller SOLVER.ACCUMULATE"):
        check_batch_norm(model, 1, parts=4)
    for norm in ("FrozenBN", ""):
        check_batch_norm(nn.Sequential(SplitAttentionConv2d(8, 8, norm=norm)), 1)
