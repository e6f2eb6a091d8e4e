"""Checkpoints as training scripts of other libraries write them: the network is found under every key and prefix."""

import argparse
import logging
import pathlib

import pytest
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resnest_det import UserError, create_model, load_weights
from resnest_det.backbone.resnest import ResNeSt
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.names import from_own_names
from resnest_det.weights.weights import read_weights
from tests.helpers.timm_reference import randomise

CLASSES = 10


def network(seed, layout="detectron2"):
    """The state dict of a small classifier."""
    backbone = randomise(ResNeSt((1, 1, 1, 1), stem_width=8, bottleneck_channels=16, res2_out_channels=32), seed)
    head = randomise(nn.Linear(256, CLASSES), seed).state_dict()
    return from_own_names({**backbone.state_dict(), **under("linear.", head)}, layout)


@pytest.fixture(scope="module")
def own():
    return network(1)


@pytest.fixture(scope="module")
def by_timm():
    return network(1, "timm")


@pytest.fixture(scope="module")
def other():
    """Weights that are not to be loaded."""
    return network(2, "timm")


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def assert_loads(path, own, **arguments):
    weights = read_weights(path, **arguments)
    assert weights.backbone.keys() == own.keys()
    for name, value in weights.backbone.items():
        assert torch.equal(value, own[name]), name
    return weights


WRITERS = {
    "Lightning, self.model": lambda s: {"state_dict": under("model.", s), "pytorch-lightning_version": "2.5", "epoch": 3},
    "Lightning, self.net, with a loss": lambda s: {"state_dict": {**under("net.", s), "loss.weight": torch.ones(CLASSES)}},
    "transformers' TimmWrapper": lambda s: under("timm_model.", s),
    "transformers, as a backbone": lambda s: under("model.backbone.conv_encoder.model._backbone.", s),
    "DistributedDataParallel": lambda s: {"state_dict": under("module.", s)},
    "torch.compile": lambda s: {"model": under("_orig_mod.", s)},
    "torch.compile(DDP)": lambda s: {"model": under("_orig_mod.module.", s)},
    "DDP(torch.compile)": lambda s: {"model": under("module._orig_mod.", s)},
    "DDP in DataParallel": lambda s: under("module.module.", s),
    "PyTorch's tutorial": lambda s: {"epoch": 1, "model_state_dict": s, "optimizer_state_dict": {"state": {}, "loss": 0.3}},
    "some key": lambda s: {"network": s, "step": torch.tensor(3)},
    "keys in keys": lambda s: {"trainer": {"state": {"net": under("module.", s)}}, "config": {"lr": 0.1}},
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(5), **under("module.", s)},
    "Accelerate's EMA beside nothing": lambda s: {"ema": s, "model": None},
}


@pytest.mark.parametrize("layout", ["timm", "detectron2"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_classifier_is_found(tmp_path, own, by_timm, writer, layout):
    torch.save(WRITERS[writer](by_timm if layout == "timm" else own), tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", own)


@pytest.mark.parametrize("prefix", ["encoder.", "encoder.model.", "unet.encoder.model.", "model.encoder."])
@pytest.mark.parametrize("layout", ["timm", "mmdet", "detectron2"])
def test_the_encoder_of_a_segmentation_model(tmp_path, own, prefix, layout):
    encoder = from_own_names({name: value for name, value in own.items() if not name.startswith("linear.")}, layout)
    decoder = {
        "decoder.blocks.0.conv1.0.weight": torch.zeros(1),
        "decoder.blocks.0.conv1.weight": torch.zeros(1),
        "segmentation_head.0.weight": torch.zeros(1),
    }
    torch.save({"state_dict": {**decoder, **under(prefix, encoder)}}, tmp_path / "x.pth")
    model = ResNeSt((1, 1, 1, 1), stem_width=8, bottleneck_channels=16, res2_out_channels=32)
    report = load_weights(model, tmp_path / "x.pth")
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert report.left.keys() == decoder.keys()
    assert report.taken_off == f"the key 'state_dict' and the prefix '{prefix}'"
    assert f"without the key 'state_dict' and the prefix '{prefix}'" in str(report)


def test_a_detector_in_lightning_keeps_its_heads(tmp_path):
    class Detector(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.bottom_up = ResNeSt((1, 1, 1, 1), stem_width=8, bottleneck_channels=16, res2_out_channels=32)
            self.roi_heads = nn.Linear(8, 3)
            randomise(self, seed)

    source, model = Detector(1), Detector(0)
    for name, checkpoint in (
        ("lightning", {"state_dict": under("model.", source.state_dict())}),
        ("averaged", AveragedModel(source, use_buffers=True).state_dict()),
    ):
        torch.save(checkpoint, tmp_path / name)
        model = randomise(model, 3)
        assert not load_weights(model, tmp_path / name).fresh
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_what_timms_training_script_writes(tmp_path, caplog):
    model, averaged = (randomise(timm.create_model("resnest14d", num_classes=CLASSES), seed) for seed in (2, 1))
    flags = argparse.Namespace(model="resnest14d", lr=0.1, output=pathlib.Path("runs"), device=torch.device("cpu"))
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        args=flags,
        model_ema=ModelEmaV3(averaged),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, 71.0)
    for use_ema, source, key in ((True, averaged, "'state_dict_ema' (averaged weights; use_ema=False takes the others)"),
                                 (False, model, "'state_dict' (not the averaged weights)")):  # fmt: skip
        with caplog.at_level(logging.INFO):
            loaded = create_model(
                "resnest14", num_classes=CLASSES, checkpoint_path=tmp_path / "model_best.pth.tar", use_ema=use_ema
            )
        assert f"without the key {key}" in caplog.text
        state = from_own_names(loaded.state_dict(), "timm")
        assert all(torch.equal(value, state[name]) for name, value in source.state_dict().items())


def test_what_torchvisions_training_script_writes(tmp_path, own, by_timm, other):
    ema = AveragedModel(nn.Identity(), use_buffers=True).state_dict()
    checkpoint = {
        "model": other,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": argparse.Namespace(model="resnest14", data_path="/data", mixup_alpha=0.0, world_size=8),
        "model_ema": {**ema, **under("module.", by_timm)},
        "scaler": {"scale": 65536.0},
    }
    torch.save(checkpoint, tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", own)
    assert_loads(tmp_path / "x.pth", network(2), use_ema=False)
    del checkpoint["model_ema"]
    torch.save(checkpoint, tmp_path / "x.pth")
    for use_ema in (True, False):
        assert_loads(tmp_path / "x.pth", network(2), use_ema=use_ema)


def test_mmengine_keeps_the_averaged_weights_in_the_usual_place(tmp_path, own, by_timm, other):
    torch.save({"message_hub": {}, "state_dict": by_timm, "ema_state_dict": under("module.", other)}, tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", own)


def test_averaged_weights_under_a_prefix(tmp_path, own, by_timm, other):
    torch.save({"state_dict": {**under("model.", other), **under("ema.module.", by_timm)}}, tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", own)
    assert_loads(tmp_path / "x.pth", network(2), use_ema=False)


@pytest.mark.parametrize(
    "wrap, names",
    [
        (lambda a, b: {"teacher": under("backbone.", a), "student": under("backbone.", b)}, "'teacher', 'student'"),
        (lambda a, b: {"state_dict": {**under("encoder_q.", a), **under("encoder_k.", b)}}, "'state_dict: encoder_q.', "),
    ],
)
def test_several_networks_are_not_chosen_from(tmp_path, by_timm, other, wrap, names):
    torch.save(wrap(by_timm, other), tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"x.pth: it holds several networks, {names}"):
        read_weights(tmp_path / "x.pth")


def test_flags_are_read_as_nothing(tmp_path):
    flags = argparse.Namespace(lr=0.1, output=pathlib.Path("runs"), data=argparse.Namespace(folders=[pathlib.Path("x")]))
    torch.save({"args": flags, "state_dict": {"x": torch.ones(1)}}, tmp_path / "x.pth")
    flags = read_checkpoint(tmp_path / "x.pth")["args"]
    assert not isinstance(flags, argparse.Namespace) and not vars(flags)


def headless(state, **others):
    return {**{name: value for name, value in state.items() if not name.startswith("fc.")}, **others}


HEADLESS = {
    "a Sequential": lambda s: (
        headless(s, **{"fc.1.weight": s["fc.weight"], "fc.1.bias": s["fc.bias"]}),
        "fc.1.weight, fc.1.bias",
    ),
    "a bias alone": lambda s: (headless(s, **{"fc.bias": s["fc.bias"]}), r"\(but fc.bias\)"),
    "another name": lambda s: (headless(s, **{"classifier.weight": s["fc.weight"]}), r"\(but classifier.weight\)"),
    "nothing": lambda s: (headless(s), "or fc.weight and fc.bias: ask for"),
    "an empty head": lambda s: (headless(s, **{"fc.weight": s["fc.weight"]}), r"\(but fc.weight\)"),
}


@pytest.fixture(scope="module")
def classifier():
    """timm's names and the weights of a whole resnest14."""
    return from_own_names(randomise(create_model("resnest14", num_classes=CLASSES)).state_dict(), "timm")


@pytest.mark.parametrize("kind", HEADLESS)
def test_a_file_without_a_head_is_no_classifiers(tmp_path, classifier, kind):
    state, reason = HEADLESS[kind](classifier)
    path = tmp_path / "x.pth"
    torch.save(state, path)
    for arguments in ({}, {"num_classes": CLASSES}, {"num_classes": 3}, {"num_classes": CLASSES, "new_head": False}):
        refused = pytest.raises(UserError, match=rf"x.pth: they have no classification head.*{reason}.*new_head=True")
        with torch.device("meta"), refused as error:
            create_model("resnest14", checkpoint_path=path, **arguments)
        assert "\n" not in str(error.value)


def test_a_new_head_for_a_file_without_one(tmp_path, classifier, caplog):
    path = tmp_path / "x.pth"
    torch.save(headless(classifier, **{"fc.1.weight": classifier["fc.weight"]}), path)
    with caplog.at_level(logging.INFO):
        model = create_model("resnest14", num_classes=CLASSES, checkpoint_path=path, new_head=True)
    assert "have no head, the model 10: its head is freshly initialised" in caplog.text
    assert torch.equal(model.res5[0].conv3.weight, classifier["layer4.0.conv3.weight"])
    assert 0.005 < model.linear.weight.std() < 0.02 and model.linear.bias.count_nonzero() == 0
    for arguments in (dict(num_classes=0), dict(features_only=True)):
        create_model("resnest14", checkpoint_path=path, **arguments)
    with pytest.raises(UserError, match="linear.weight is not in the file, linear.bias is not in the file"):
        load_weights(model, path)


def test_a_head_of_other_classes_is_replaced_only_where_a_number_was_asked_for(tmp_path, classifier, caplog):
    path = tmp_path / "x.pth"
    torch.save(classifier, path)
    model = create_model("resnest14", num_classes=3, checkpoint_path=path)
    assert "have a head of 10 classes, the model 3: its head is freshly initialised" in caplog.text
    assert model.linear.weight.shape == (3, 2048)
    assert torch.equal(model.res2[0].conv1.weight, classifier["layer1.0.conv1.weight"])
    assert create_model("resnest14", checkpoint_path=path, new_head=True).linear.weight.shape == (1000, 2048)
    for arguments in ({}, {"num_classes": 3, "new_head": False}):
        with pytest.raises(UserError, match=r"linear.weight \(10, 2048\) in the file, \((1000|3), 2048\) in the model"):
            create_model("resnest14", checkpoint_path=path, **arguments)
    kept = create_model("resnest14", num_classes=CLASSES, checkpoint_path=path, new_head=True)
    assert torch.equal(kept.linear.bias, classifier["fc.bias"])
