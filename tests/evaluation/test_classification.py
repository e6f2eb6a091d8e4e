"""Figures of classification against scikit-learn's definitions."""

import csv

import numpy as np
import pytest
import torch

from resnest_det.data.class_samples import LabelledImages
from resnest_det.drawing.plots import plot_class_confusion
from resnest_det.errors import UserError
from resnest_det.evaluation.classification import ClassificationEvaluator


def batch_of(labels, unreadable=()):
    count = len(labels)
    return LabelledImages(
        torch.zeros(count, 3, 1, 1), torch.tensor(labels), torch.zeros(count, 3), ["x"] * count, list(unreadable)
    )


def evaluated(logits, labels, classes, folder=""):
    evaluator = ClassificationEvaluator(classes, folder)
    for part in range(0, len(labels), 7):
        evaluator.process(batch_of(labels[part : part + 7]), logits[part : part + 7])
    return evaluator, evaluator.evaluate()["classification"]


@pytest.fixture
def guesses():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 8, (60,), generator=generator).tolist()
    logits = torch.randn(60, 8, generator=generator)
    logits[range(60), labels] += 1
    return logits, labels


def test_figures_are_scikit_learns(guesses, tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = guesses
    evaluator, figures = evaluated(logits, labels, [f"c{number}" for number in range(8)], tmp_path)
    predicted = logits.argmax(1).numpy()
    assert figures["top1"] == pytest.approx(100 * metrics.accuracy_score(labels, predicted))
    assert figures["top5"] == pytest.approx(100 * metrics.top_k_accuracy_score(labels, logits.numpy(), k=5, labels=range(8)))
    assert figures["top1_mean"] == pytest.approx(100 * metrics.balanced_accuracy_score(labels, predicted))
    assert figures["loss"] == pytest.approx(
        metrics.log_loss(labels, logits.double().softmax(1).numpy(), labels=range(8)), rel=1e-6
    )
    assert (evaluator.confusion == metrics.confusion_matrix(labels, predicted, labels=range(8))).all()
    recall = metrics.recall_score(labels, predicted, average=None, labels=range(8))
    assert [figures[f"top1-c{number}"] for number in range(8)] == pytest.approx(100 * recall)
    with open(tmp_path / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["images"]) for row in rows] == np.bincount(labels, minlength=8).tolist()
    off = evaluator.confusion - np.diag(evaluator.confusion.diagonal())
    assert [int(row["times"]) for row in rows] == off.max(1).tolist()


def test_few_classes_have_no_top5_and_many_no_figures_of_their_own():
    logits = torch.eye(5).repeat(2, 1)
    _, figures = evaluated(logits, list(range(5)) * 2, list("abcde"))
    assert figures["top1"] == 100 and "top5" not in figures
    _, figures = evaluated(torch.eye(120), list(range(120)), [str(number) for number in range(120)])
    assert figures["top5"] == 100 and not any(name.startswith("top1-") for name in figures)


def test_a_class_without_images_is_in_no_mean():
    _, figures = evaluated(torch.eye(3)[:2], [0, 1], list("abc"))
    assert figures["top1_mean"] == 100 and np.isnan(figures["top1-c"])


def test_unreadable_images_are_counted_and_in_no_figure():
    evaluator = ClassificationEvaluator(["a", "b"])
    evaluator.process(batch_of([0], ["image x cannot be read"]), torch.tensor([[1.0, 0.0]]))
    evaluator.process(batch_of([], ["image y cannot be read"]), torch.zeros(0, 2))
    figures = evaluator.evaluate()["classification"]
    assert (figures["images"], figures["unreadable"], figures["top1"]) == (1, 2, 100)
    evaluator.reset()
    evaluator.process(batch_of([], ["image y cannot be read"]), torch.zeros(0, 2))
    with pytest.raises(UserError, match="no image could be read to evaluate: image y"):
        evaluator.evaluate()


@pytest.mark.extras
@pytest.mark.parametrize("classes", [2, 60])
def test_the_picture_of_what_was_confused(tmp_path, classes):
    pytest.importorskip("matplotlib")
    counts = np.random.default_rng(0).integers(0, 9, (classes, classes))
    plot_class_confusion(counts, [f"class {number}" for number in range(classes)], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
