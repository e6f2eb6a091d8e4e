"""The authors' semantic models themselves, and the files that the tests compare ours with. In the folder of the checkout:

    python -m tests.golden.authors_segmentation CHECKOUT write     writes them
    python -m tests.golden.authors_segmentation CHECKOUT compare   puts full models beside ours

CHECKOUT is one of github.com/zhanghang1989/PyTorch-Encoding. Its compiled parts, and what only its training uses, are not
needed: of its package only the files of the models are run.
"""

import gzip
import importlib.util
import json
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.helpers.segmentation_cases import CLASSES, SAMPLES, SIZES, authors_config, build_filled, network_input, sampled

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "authors_segmentation.npz"
PARAMETERS = FOLDER / "authors_segmentation_parameters.json.gz"
DEPTHS = {"fcn": (50,), "deeplab": (50, 101, 200, 269)}


def import_models(checkout: str) -> types.SimpleNamespace:
    """Their classes `FCN`, `DeepLabV3`, `ResNet`, `Bottleneck`, and the module whose `get_backbone` they call."""
    root = Path(checkout) / "encoding"
    for name in ("encoding", "encoding.models", "encoding.models.sseg", "encoding.models.backbone", "encoding.nn"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    unused = {"SyncBatchNorm": nn.BatchNorm2d, "RFConv2d": None}
    sys.modules["encoding.nn.rectify"] = types.SimpleNamespace(RFConv2d=None)
    sys.modules["encoding.models.model_store"] = types.SimpleNamespace(get_model_file=None)
    sys.modules["encoding.utils"] = types.SimpleNamespace(batch_pix_accuracy=None, batch_intersection_union=None)

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, root.joinpath(*name.split(".")[1:]).with_suffix(".py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    for name in ("dropblock", "splat", "customize"):
        module = load(f"encoding.nn.{name}")
        unused |= {key: getattr(module, key) for key in getattr(module, "__all__", ())}
    vars(sys.modules["encoding.nn"]).update(unused)
    resnet = load("encoding.models.backbone.resnet")
    base, fcn, deeplab = (load(f"encoding.models.sseg.{name}") for name in ("base", "fcn", "deeplab"))
    return types.SimpleNamespace(
        FCN=fcn.FCN, DeepLabV3=deeplab.DeepLabV3, ResNet=resnet.ResNet, Bottleneck=resnet.Bottleneck, base=base
    )


def build(models: types.SimpleNamespace, kind: str, depth: int, classes: int) -> nn.Module:
    """Their model of a kind, "fcn" or "deeplab", in evaluation mode, with a backbone of `depth` layers."""
    blocks = {14: [1, 1, 1, 1], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 200: [3, 24, 36, 3], 269: [3, 30, 48, 8]}[depth]
    resnest = partial(
        models.ResNet,
        models.Bottleneck,
        blocks,
        radix=2,
        groups=1,
        bottleneck_width=64,
        deep_stem=True,
        stem_width=32 if depth <= 50 else 64,
        avg_down=True,
        avd=True,
        avd_first=False,
    )
    models.base.get_backbone = lambda name, pretrained, root, **arguments: resnest(**arguments)
    kinds = {"fcn": models.FCN, "deeplab": models.DeepLabV3}
    return kinds[kind](classes, f"resnest{depth}", aux=True, norm_layer=nn.BatchNorm2d).eval()


def logits_of(models: types.SimpleNamespace, kind: str, depth: int) -> dict[str, np.ndarray]:
    """Their logits and auxiliary logits of an image of each size, with the parameters of our filled model."""
    from resnest_det.weights.weights import weights_of

    ours = build_filled(authors_config(kind, depth)).state_dict()
    theirs = build(models, kind, depth, CLASSES)
    weights = weights_of(theirs.state_dict(), "theirs")
    with torch.no_grad():
        for name, value in ({f"backbone.{name}": value for name, value in weights.backbone.items()} | weights.heads).items():
            value.copy_(ours[name])
        found = {}
        for size in SIZES:
            for name, logits in zip(("logits", "auxiliary"), theirs(network_input(size)[None])):
                found[f"{kind}/{size[0]}x{size[1]}/{name}"] = logits[0].numpy()
    return found


def main(checkout: str, what: str) -> None:
    models = import_models(checkout)
    if what == "write":
        found = logits_of(models, "fcn", 14) | logits_of(models, "deeplab", 14)
        largest = {f"{name}/largest": np.abs(values).max() for name, values in found.items()}
        np.savez_compressed(GOLDEN, **{name: sampled(values) for name, values in found.items()}, **largest)
        listed = {}
        for kind, depths in DEPTHS.items():
            for depth in depths:
                with torch.device("meta"):
                    state = build(models, kind, depth, CLASSES).state_dict()
                listed[f"{kind}_resnest{depth}"] = {name: list(value.shape) for name, value in state.items()}
        PARAMETERS.write_bytes(gzip.compress(json.dumps(listed, separators=(",", ":")).encode(), mtime=0))
        print({path.name: path.stat().st_size for path in (GOLDEN, PARAMETERS)}, SAMPLES)
        return
    from tests.helpers.segmentation_cases import our_logits

    for kind, depths in DEPTHS.items():
        for depth in (depth for depth in depths if depth <= 101):
            theirs, ours = logits_of(models, kind, depth), our_logits(kind, authors_config(kind, depth))
            for name, values in theirs.items():
                difference = np.abs(ours[name] - values).max() / np.abs(values).max()
                print(f"{kind} ResNeSt-{depth} {name}: {difference:.1e} of the largest")


if __name__ == "__main__":
    main(*sys.argv[1:])
