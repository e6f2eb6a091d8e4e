"""Networks of Gluon's files: every name of the catalog, and what MXNet itself computed from a file that it wrote."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from resnest_det import UserError, create_model
from resnest_det.backbone.classifier import Classifier
from resnest_det.backbone.loading import load_weights
from resnest_det.backbone.resnest import ResNeSt
from resnest_det.backbone.variants import VARIANTS
from resnest_det.weights.names import from_own_names, to_own_names
from resnest_det.weights.published import GLUON_FILES
from resnest_det.weights.weights import read_weights
from tests.helpers.mxnet_writer import params_bytes
from tests.helpers.networks import assert_same, small_backbone
from tests.helpers.timm_reference import randomise
from tests.weights.gluon.filling import IMAGE_SHAPE, NETWORK, values

FOLDER = Path(__file__).parent / "gluon"
# What MXNet 1.9.1 computes from `small.zip` for the image of `values`, as make_files.py there prints it.
LOGITS = [0.7735856771469116, -0.24128031730651855, -0.3410816192626953, 0.957680881023407, -0.9532914161682129]


def gluon_names(state: dict) -> dict:
    """State of the authors' layout under the names that Gluon's `save_parameters` gives it."""
    found = {}
    norms = {name.rpartition(".")[0] for name in state if name.endswith(".running_var")}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        if module in norms:
            kind = {"weight": "gamma", "bias": "beta"}.get(kind, kind)
        found[f"{module.replace('.conv2.bn0', '.conv2.bn')}.{kind}"] = value
    return found


def counted_names(state: dict) -> dict:
    """State under the names that Gluon gives its symbols: what is of one kind counted in a stage, in the order it is made in."""
    order = ("conv1", "bn1", "conv2.conv", "conv2.bn", "conv2.fc1", "conv2.bn1", "conv2.fc2", "conv3", "bn3")
    convolutions = [each for each in order if "bn" not in each]
    norms = [each for each in order if "bn" in each]
    stem = {"conv1.0": "conv0", "conv1.3": "conv1", "conv1.6": "conv2", "fc": "dense0"}
    stem |= {"conv1.1": "batchnorm0", "conv1.4": "batchnorm1", "bn1": "batchnorm2"}
    found = {}
    for name, value in gluon_names(state).items():
        module, _, kind = name.rpartition(".")
        block = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", module)
        if not block:
            counted = stem[module]
        elif block[3].startswith("downsample"):
            counted = f"down{block[1]}_{'conv0' if block[3] == 'downsample.1' else 'batchnorm0'}"
        elif "bn" in block[3]:
            counted = f"layers{block[1]}_batchnorm{int(block[2]) * 4 + norms.index(block[3])}"
        else:
            counted = f"layers{block[1]}_conv{int(block[2]) * 5 + convolutions.index(block[3])}"
        found[f"resnest_{counted}_{kind}"] = value
    return found


def variant_of(name: str) -> str:
    return re.sub(r"^(deeplab|faster_rcnn_fpn_syncbn)_|_(ade|coco)$", "", name)


@pytest.mark.parametrize("name", GLUON_FILES)
def test_every_name_of_the_catalog_has_a_parameter_of_its_shape(name):
    count, digest = json.loads((FOLDER / "names.json").read_text())[name]  # of GluonCV's own networks
    with torch.device("meta"):
        model = create_model(variant_of(name))
    own = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    state, prefix = gluon_names(from_own_names(own, "timm")), ""
    if name.startswith("faster_rcnn"):
        state, prefix = counted_names(from_own_names(own, "timm")), "features.resnest_"
        state = {f"features.{key.replace('batchnorm', 'syncbatchnorm')}": value for key, value in state.items()}
    if name not in VARIANTS:
        state = {key: value for key, value in state.items() if not re.search(r"(^fc|dense0)[._]", key)}
        own = {key: value for key, value in own.items() if not key.startswith("linear.")}
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert [len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()] == [count, digest]

    backbone, origin, layout, found_prefix = to_own_names(state)
    assert (layout, found_prefix) == ("gluon", prefix) and set(origin.values()) == set(state)
    assert {key: value.shape for key, value in backbone.items()} == {key: value.shape for key, value in own.items()}


@pytest.mark.parametrize("name", ["small", "exported"])
def test_logits_of_mxnet(name):
    network = dict(NETWORK)
    model = randomise(Classifier(network.pop("classes"), 0.0, "avg", {}, **network), 0)
    report = load_weights(model, FOLDER / f"{name}.zip")
    assert report.layout == "gluon" and not (report.left or report.fresh or report.mismatched)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(values("image", IMAGE_SHAPE)))
    # float32 in another order of summing; the largest is 1.
    np.testing.assert_allclose(logits[0].numpy(), LOGITS, atol=2e-6, rtol=0)


def as_arrays(state: dict) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in state.items()}


def classifier_state(seed: int) -> dict:
    model = randomise(create_model("resnest14", num_classes=3), seed)
    return {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("version", [0, 3])
def test_a_file_by_its_path(tmp_path, version):
    own = classifier_state(1)
    path = tmp_path / "x.params"
    path.write_bytes(params_bytes(as_arrays(gluon_names(from_own_names(own, "timm"))), version))
    model = create_model("resnest14", num_classes=3, checkpoint_path=path, new_head=False)
    assert_same({name: value for name, value in model.state_dict().items() if name in own}, own)
    with pytest.raises(UserError, match="the file looks like resnest14, the model like resnest26"):
        create_model("resnest26", num_classes=3, checkpoint_path=path)


def small_state(seed: int) -> tuple[ResNeSt, dict]:
    network = small_backbone(seed)
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    return network, from_own_names(state, "timm")


@pytest.mark.parametrize("prefix", ["", "features.", "net.backbone."])
@pytest.mark.parametrize("counted", [False, True])
def test_other_networks_around_it(tmp_path, prefix, counted):
    network, state = small_state(2)
    state = (counted_names if counted else gluon_names)(state)
    others = {
        "head.conv1.weight": torch.ones(3),
        "features.P5_conv_lat_weight": torch.ones(2),
        "box_features.0.weight": torch.ones(1),
    }
    others |= {"conv0_weight": torch.ones(5)} if prefix else {}
    state = {f"{prefix}{name}": value for name, value in state.items()} | others
    (tmp_path / "x.params").write_bytes(params_bytes(as_arrays(state)))
    target = small_backbone(3)
    report = load_weights(target, tmp_path / "x.params")
    assert {name.removeprefix("features.") for name in report.left} == {name.removeprefix("features.") for name in others}
    assert not report.fresh
    expected = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert_same({name: value for name, value in target.state_dict().items() if name in expected}, expected)


def test_names_of_symbols_with_their_kind(tmp_path):
    network, state = small_state(4)
    kinds = {name: "aux" if "running" in name else "arg" for name in counted_names(state)}
    state = {f"{kinds[name]}:{name.replace('running', 'moving')}": value for name, value in counted_names(state).items()}
    (tmp_path / "x.params").write_bytes(params_bytes(as_arrays(state)))
    weights = read_weights(tmp_path / "x.params")
    assert weights.layout == "gluon" and not weights.rest
    assert torch.equal(weights.backbone["res5.0.conv2.bn1.running_var"], network.state_dict()["res5.0.conv2.bn1.running_var"])


def test_one_parameter_missing_or_of_another_shape_is_named(tmp_path):
    _, state = small_state(5)
    arrays = as_arrays(gluon_names(state))
    path = tmp_path / "x.params"
    missing = dict(arrays)
    del missing["layer2.0.conv2.fc2.bias"]
    path.write_bytes(params_bytes(missing))
    with pytest.raises(UserError, match=r"res3\.0\.conv2\.fc2\.bias is not in the file"):
        load_weights(small_backbone(), path)
    arrays["layer2.0.bn3.gamma"] = arrays["layer2.0.bn3.gamma"][1:]
    path.write_bytes(params_bytes(arrays))
    with pytest.raises(UserError, match=r"res3\.0\.conv3\.norm\.weight \(63,\) in the file, \(64,\) in the model"):
        load_weights(small_backbone(), path)
    path.write_bytes(params_bytes({"dense0_weight": np.zeros((2, 2), "float32")}))
    with pytest.raises(UserError, match=r"no ResNeSt or ResNet in a known layout .*gluon.*called dense0_weight"):
        load_weights(small_backbone(), path)
    arrays["conv1.0.weight"][0, 0, 0, 0] = np.nan
    path.write_bytes(params_bytes(arrays))
    with pytest.raises(UserError, match=r"conv1\.0\.weight has values that are not finite"):
        load_weights(small_backbone(), path)
