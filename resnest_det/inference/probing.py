"""What frozen embeddings are worth on new classes: the nearest neighbours, and a linear layer."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnest_det.backbone.classifier import Classifier
from resnest_det.backbone.image_classifier import ImageClassifier
from resnest_det.data.class_samples import LabelledImages

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of a neighbour's vote, as in "Emerging properties in self-supervised vision transformers" (2104.14294)
DECAYS = tuple(10.0**exponent for exponent in range(-6, 2))  # tried for the linear layer
_SHARE = 0.2  # of the training images that chooses among them
_ITERATIONS = 200
_CHUNK = 1024  # images that are compared at a time


@dataclass(frozen=True)
class Probe:
    """Top-1 and top-5 in percent, and how they came about."""

    name: str
    top1: float
    top5: float
    settings: str


@torch.no_grad()
def embeddings(model: Classifier, batches: Iterable[LabelledImages]) -> tuple[Tensor, Tensor, list[str]]:
    """Vectors (N, num_features) float32 of length 1, labels (N,), and errors about images that are left out.

    Args:
        model: without a head (num_classes 0), on its device.
    """
    network, vectors, labels, unreadable = ImageClassifier(model.eval()).eval(), [], [], []
    for batch in batches:
        unreadable += batch.unreadable
        if len(batch):
            vectors.append(network(batch).float().cpu())
            labels.append(batch.labels)
    found = torch.cat(vectors) if vectors else torch.zeros(0, model.num_features)
    return F.normalize(found), torch.cat([*labels, torch.zeros(0, dtype=torch.int64)]), unreadable


def nearest_neighbours(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int, neighbours: int = NEIGHBOURS
) -> Probe:
    """Classes by a vote of the most similar training images, each with weight exp(cosine / `TEMPERATURE`).

    Args:
        train, val: vectors of length 1 and labels.
    """
    known, labels = train
    count = min(neighbours, len(known))
    scores = []
    for part in val[0].split(_CHUNK):
        similar, indices = (part @ known.T).topk(count)
        # From the best one's: exp of large numbers overflows.
        weights = ((similar - similar[:, :1]) / TEMPERATURE).exp()
        scores.append(torch.zeros(len(part), classes).scatter_add_(1, labels[indices], weights))
    return _probe("nearest neighbours", torch.cat(scores), val[1], f"{count} neighbours")


def linear_probe(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int, seed: int = 0) -> Probe:
    """Multinomial logistic regression. Its weight decay is chosen on a part of the training images, then all are used.

    Args:
        train, val: vectors and labels; they are standardised by the training ones.
    """
    mean, deviation = train[0].mean(0), train[0].std(0, correction=0).clamp(min=1e-6)
    x, y = (train[0] - mean) / deviation, train[1]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(_SHARE * len(x)))
    out, rest = order[:held], order[held:]
    if len(rest):
        accuracies = [_top(fit_linear(x[rest], y[rest], classes, decay)(x[out]), y[out], 1) for decay in DECAYS]
        # Of equally good ones the strongest: `max` takes the first.
        decay = DECAYS[max(reversed(range(len(DECAYS))), key=accuracies.__getitem__)]
    else:
        decay = DECAYS[-1]
    layer = fit_linear(x, y, classes, decay)
    return _probe("linear layer", layer((val[0] - mean) / deviation), val[1], f"weight decay {decay:g}")


@torch.no_grad()
def fit_linear(x: Tensor, y: Tensor, classes: int, decay: float) -> nn.Linear:
    """The layer with the least mean cross entropy + decay / 2 * |weights|^2, by L-BFGS from zero."""
    layer = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_ITERATIONS, line_search_fn="strong_wolfe", tolerance_change=1e-9)

    @torch.enable_grad()
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y) + 0.5 * decay * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer.requires_grad_(False)


def probe(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: Sequence[str], neighbours: int = NEIGHBOURS
) -> list[Probe]:
    """Both probes of vectors of length 1 with their labels."""
    return [nearest_neighbours(train, val, len(classes), neighbours), linear_probe(train, val, len(classes))]


def _probe(name: str, scores: Tensor, labels: Tensor, settings: str) -> Probe:
    return Probe(name, _top(scores, labels, 1), _top(scores, labels, 5), settings)


def _top(scores: Tensor, labels: Tensor, count: int) -> float:
    best = scores.topk(min(count, scores.shape[1])).indices
    return 100 * float((best == labels[:, None]).any(1).float().mean())
