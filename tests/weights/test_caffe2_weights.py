"""Plain ResNets in the layout of Detectron's files, `ImageNetPretrained/MSRA/R-50.pkl` for one."""

import pickle

import pytest
import torch

from resnest_det.backbone.loading import load_weights
from resnest_det.backbone.resnest import ResNeSt
from resnest_det.errors import UserError

PLAIN = dict(
    blocks=(1, 2, 1, 1),
    stem_width=4,
    radix=0,
    bottleneck_channels=8,
    res2_out_channels=16,
    deep_stem=False,
    avd=False,
    avg_down=False,
    stride_in_1x1=True,
)
BRANCHES = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
NORM = {"weight": "bn_gamma", "bias": "bn_beta", "running_mean": "bn_running_mean", "running_var": "bn_running_var"}
OLD_NORM = {"weight": "bn_s", "bias": "bn_b"}


def caffe2_state(network: ResNeSt, norm_names: dict[str, str]) -> dict:
    """What a file of that network has: arrays, a head, and biases that have no effect."""
    state = {"fc1000_w": torch.rand(10, 128).numpy(), "fc1000_b": torch.rand(10).numpy(), "conv1_b": torch.zeros(8).numpy()}
    for name, value in network.state_dict().items():
        *module, kind = name.split(".")
        if kind == "num_batches_tracked":
            continue
        is_norm = module[-1] == "norm"
        module = module[:-1] if is_norm else module
        stem = module[0] == "stem"
        base = ("res_conv1" if is_norm else "conv1") if stem else f"{module[0]}_{module[1]}_branch{BRANCHES[module[2]]}"
        if not is_norm:
            state[f"{base}_w"] = value.numpy()
        elif kind in norm_names:
            state[f"{base}_{norm_names[kind]}"] = value.numpy()
    return state


def random_network(seed: int) -> ResNeSt:
    torch.manual_seed(seed)
    network = ResNeSt(**PLAIN)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("wrapper", [None, "model", "blobs"])
def test_every_parameter_and_statistic_arrives(tmp_path, wrapper):
    source, target = random_network(0), random_network(1)
    state = caffe2_state(source, NORM)
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({wrapper: state} if wrapper else state))
    report = load_weights(target, tmp_path / "R.pkl")
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in target.state_dict().items() if "tracked" not in name)
    assert report.layout == "caffe2" and set(report.left) == {"conv1_b", "fc1000_w", "fc1000_b"} and not report.fresh


def test_older_files_have_the_statistics_in_the_affine_parameters(tmp_path):
    source, target = random_network(0), random_network(1)
    (tmp_path / "R.pkl").write_bytes(pickle.dumps({"blobs": caffe2_state(source, OLD_NORM)}))
    load_weights(target, tmp_path / "R.pkl")
    state, expected = target.state_dict(), source.state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            assert not value.any()
        elif name.endswith("running_var"):
            assert (value == 1).all()
        elif "tracked" not in name:
            assert torch.equal(value, expected[name]), name


def test_other_depth_is_refused(tmp_path):
    state = caffe2_state(random_network(0), NORM)
    (tmp_path / "R.pkl").write_bytes(pickle.dumps(state))
    with pytest.raises(UserError, match="do not fit the model: res2.1.conv1.weight is not in the file"):
        load_weights(ResNeSt(**PLAIN | {"blocks": (2, 2, 1, 1)}), tmp_path / "R.pkl")
