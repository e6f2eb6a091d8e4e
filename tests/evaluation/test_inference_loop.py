"""Inference over a dataset."""

import contextlib
import logging

import torch

from resnest_det.evaluation.loop import inference_on_dataset


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.BatchNorm2d(1).eval()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.modes = set()

    def forward(self, batch):
        self.modes.add((self.training, self.frozen.training, torch.is_inference_mode_enabled()))
        return [{"value": self.scale * sample["value"]} for sample in batch]


class Sum:
    def reset(self):
        self.total = 0.0

    def process(self, batch, outputs):
        assert len(batch) == len(outputs)
        self.total += sum(output["value"].item() for output in outputs)

    def evaluate(self):
        return {"sum": {"total": self.total}}


class Silent(Sum):
    def evaluate(self):
        return None


def test_every_batch_reaches_every_evaluator_and_modes_are_restored(caplog):
    model = Model().train()
    model.frozen.eval()
    loader = [[{"value": i}] for i in range(9)]
    with caplog.at_level(logging.INFO, logger="resnest_det"):
        for _ in range(2):
            assert inference_on_dataset(model, loader, [Sum(), Silent()]) == {"sum": {"total": 36.0}}
    assert model.modes == {(False, False, True)}
    assert model.training and not model.frozen.training
    assert "4 images after 5 batches of warm-up" in caplog.text


def test_modes_are_restored_when_a_batch_fails():
    model = Model().train()
    with contextlib.suppress(KeyError):
        inference_on_dataset(model, [[{}]], [Sum()])
    assert model.training


def test_one_image_and_none():
    assert inference_on_dataset(Model(), [[{"value": 2}]], [Sum()]) == {"sum": {"total": 2.0}}
    assert inference_on_dataset(Model(), [], [Sum()]) == {"sum": {"total": 0.0}}
