"""Probes of embeddings against scikit-learn's, and the command."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resnest_det import create_model
from resnest_det.commands.probe import main
from resnest_det.errors import UserError
from resnest_det.inference import probing
from resnest_det.inference.probing import TEMPERATURE, fit_linear, linear_probe, nearest_neighbours
from tests.helpers.class_data import write_class_folders


def clouds(count: int, seed: int, spread: float = 1.0):
    """Vectors around four centres, and which they belong to."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(4, 12))
    labels = random.integers(0, 4, count)
    vectors = torch.tensor(centres[labels] + spread * random.normal(size=(count, 12)), dtype=torch.float32)
    return F.normalize(vectors), torch.tensor(labels)


def test_neighbours_vote_as_scikit_learns_do():
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, val = clouds(200, 0, 1.5), clouds(100, 1, 1.5)
    found = nearest_neighbours(train, val, 4, neighbours=10)
    # Of vectors of length 1 the squared distance is 2 - 2 * cosine.
    votes = neighbors.KNeighborsClassifier(10, weights=lambda distances: np.exp((1 - distances**2 / 2) / TEMPERATURE))
    votes.fit(train[0].double().numpy(), train[1].numpy())
    expected = 100 * votes.score(val[0].double().numpy(), val[1].numpy())
    assert found.top1 == pytest.approx(expected) and 40 < expected < 100


def test_the_linear_layer_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = clouds(200, 0, 1.5)
    decay = 1e-3
    layer = fit_linear(x, y, 4, decay)
    reference = linear_model.LogisticRegression(C=1 / (decay * len(x)), tol=1e-9, max_iter=2000).fit(
        x.double().numpy(), y.numpy()
    )
    probabilities = layer(x).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, reference.predict_proba(x.double().numpy()), atol=2e-3)


def test_the_decay_is_chosen_on_held_out_images(monkeypatch):
    monkeypatch.setattr(probing, "DECAYS", (1e-4, 1e6))
    told = clouds(200, 0)
    assert linear_probe(told, clouds(100, 1), 4).settings == "weight decay 0.0001"
    # Vectors that tell nothing: with weights the layer learns noise, without it takes the class that most images are of.
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(200, generator=random) < 0.2).long()
    found = linear_probe((torch.randn(200, 80, generator=random), labels), (torch.randn(50, 80), torch.zeros(50).long()), 2)
    assert found.settings == "weight decay 1e+06" and found.top1 == 100


def test_the_command(tmp_path, capsys):
    write_class_folders(tmp_path, {"train": 6, "val": 3}, ("blue", "green", "red"))
    torch.manual_seed(0)
    model = create_model("resnest14", num_classes=5, width=0.125)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "val" / "red" / "0.png").write_bytes(b"no image")
    arguments = ["--train-on", str(tmp_path), "--model", "resnest14", "--width", "0.125", "--size", "32", "--workers", "0"]
    main([*arguments, "--checkpoint", str(tmp_path / "weights.pth")])
    lines = capsys.readouterr().out.splitlines()
    assert "left out: image" in lines[0] and "18 images to learn from and 8 to measure on, of 3 classes" in lines[1]
    assert lines[2].startswith("nearest neighbours: top-1 ") and lines[3].startswith("linear layer: top-1 ")
    assert float(lines[3].split()[3]) > 60  # colors are easy, even for a network that has learned nothing
    with pytest.raises(UserError, match="--neighbours 0"):
        main([*arguments, "--neighbours", "0"])
