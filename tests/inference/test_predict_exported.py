"""`Predictor` with a file that `resnest-det export` wrote."""

import pytest
import torch

from resnest_det import Predictor
from resnest_det.backbone.loading import load_weights
from resnest_det.commands.export_detector import settings_of
from resnest_det.commands.train_net import main
from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.data.image import read_image
from resnest_det.errors import UserError
from resnest_det.inference.detector_export import export_detector
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.tiny_run import write_tiny_run

QUICK = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]


def test_an_exported_file_finds_the_same(tmp_path):
    main([*write_tiny_run(tmp_path), *QUICK])
    run, image = tmp_path / "out", str(tmp_path / "images" / "1.png")
    cfg = load_config(str(run / "config.yaml"))
    model = build_model(cfg).eval()
    load_weights(model, run / "model_final.pth")
    pixels = torch.from_numpy(read_image(image, "RGB").copy()).permute(2, 0, 1)
    settings = settings_of(cfg, read_checkpoint(run / "model_final.pth")["trained_on"])
    export_detector(model, tmp_path / "m.pt", "torchscript", settings, [{"image": pixels, "height": 64, "width": 80}])
    own, exported = (Predictor(source, score_threshold=0)(image) for source in (run, tmp_path / "m.pt"))
    assert exported.names == own.names and len(own) > 1
    assert torch.allclose(exported.boxes, own.boxes, atol=0.1) and torch.allclose(exported.scores, own.scores, atol=1e-3)
    assert exported.masks.probabilities.shape == own.masks.probabilities.shape
    assert exported.classes == own.classes
    with pytest.raises(UserError, match="device 'cuda': .*m.pt is an exported file, which is run on the CPU"):
        Predictor(tmp_path / "m.pt", device="cuda")
