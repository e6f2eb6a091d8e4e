"""Writes the files of this folder with MXNet and GluonCV themselves; in the folder of the checkout:

    python -m tests.weights.gluon.make_files

They install in an old Python (3.8) by `pip install mxnet==1.9.1 "numpy<1.24" gluoncv==0.10.5.post0`; nothing else needs them.
"""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import mxnet as mx
import numpy as np
from gluoncv.model_zoo import get_model
from gluoncv.model_zoo.resnest import Bottleneck, ResNeSt
from mxnet import npx

from tests.weights.gluon.filling import IMAGE_SHAPE, NETWORK, values

FOLDER = Path(__file__).parent
CLASSIFIERS = ["resnest14", "resnest26", "resnest50", "resnest101", "resnest200", "resnest269"]
FAST = {  # radix, cardinality, width; the authors' package has them, whose class GluonCV took over
    "1s1x64d": (1, 1, 64),
    "2s1x64d": (2, 1, 64),
    "4s1x64d": (4, 1, 64),
    "1s2x40d": (1, 2, 40),
    "2s2x40d": (2, 2, 40),
    "4s2x40d": (4, 2, 40),
    "1s4x24d": (1, 4, 24),
}
SEGMENTORS = [f"deeplab_resnest{depth}_ade" for depth in (50, 101, 200, 269)]
DETECTORS = [f"faster_rcnn_fpn_syncbn_resnest{depth}_coco" for depth in (50, 101, 269)]


def packed(name, path):
    """As the model zoo packs its files, and small, for the numbers repeat themselves."""
    with zipfile.ZipFile(FOLDER / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(zipfile.ZipInfo(f"{name}.params"), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    path.unlink()


def resnest(classes, blocks, stem_width, radix, groups, bottleneck_width, avd_first=False):
    shape = dict(stem_width=stem_width, radix=radix, cardinality=groups, bottleneck_width=bottleneck_width, avd_first=avd_first)
    kind = dict(deep_stem=True, avg_down=True, avd=True, use_splat=True, name_prefix="resnest_")
    return ResNeSt(Bottleneck, list(blocks), classes=classes, **shape, **kind)


def small_network():
    network = resnest(**NETWORK)
    network.initialize()
    for name, parameter in network._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(values(name.rpartition(".")[2], parameter.shape)))
    return network


def arrays():
    return {
        "float32": np.arange(-6, 6, dtype="float32").reshape(3, 4) / 7,
        "float64": np.array([np.pi, -1e300]),
        "float16": np.array([[[0.5]], [[-2.0]]], dtype="float16"),
        "uint8": np.arange(250, 256, dtype="uint8"),
        "int32": np.array([[-(2**31), 2**31 - 1]], dtype="int32"),
        "int8": np.array([-128, 127], dtype="int8"),
        "int64": np.array([-(2**63), 2**63 - 1]),
    }


def names_of(network, of_backbone):
    """How many parameters, and the SHA-256 of lines of name and shape."""
    parameters = network._collect_params_with_prefix()
    lines = sorted(f"{name} {tuple(map(int, parameter.shape))}" for name, parameter in parameters.items() if of_backbone(name))
    return [len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()]


def main():
    npx.reset_np()  # GluonCV switches it on
    mx.nd.save(str(FOLDER / "version2.params"), {name: mx.nd.array(array, dtype=array.dtype) for name, array in arrays().items()})
    mx.nd.save(str(FOLDER / "unnamed.params"), [mx.nd.arange(3)])
    mx.nd.save(str(FOLDER / "sparse.params"), {"sparse": mx.nd.array([[0, 1], [0, 0]]).tostype("csr")})
    network = small_network()
    network.hybridize()
    logits = network(mx.nd.array(values("image", IMAGE_SHAPE)))
    print("logits", json.dumps(logits.asnumpy().tolist()))
    network.save_parameters(str(FOLDER / "small.params"))
    network.export(str(FOLDER / "exported"))
    (FOLDER / "exported-symbol.json").unlink()
    (FOLDER / "exported-0000.params").rename(FOLDER / "exported.params")
    for name in ("small", "exported"):
        path = FOLDER / f"{name}.params"
        halves = {each: array.astype("float16") for each, array in mx.nd.load(str(path)).items()}
        mx.nd.save(str(path), halves)  # half as many bytes, and the same numbers
        packed(name, path)

    names = {name: names_of(get_model(name), lambda _: True) for name in CLASSIFIERS}
    for setting, (radix, groups, width) in FAST.items():
        network = resnest(1000, (3, 4, 6, 3), 32, radix, groups, width, avd_first=True)
        names[f"resnest50_fast_{setting}"] = names_of(network, lambda _: True)
    backbone = ("conv1.", "bn1.", "layer")
    names.update(
        (name, names_of(get_model(name, pretrained_base=False), lambda n: n.startswith(backbone))) for name in SEGMENTORS
    )
    npx.reset_np()
    ours = "features.resnest_"
    names.update((name, names_of(get_model(name, pretrained_base=False), lambda n: n.startswith(ours))) for name in DETECTORS)
    (FOLDER / "names.json").write_text(json.dumps(names, indent=1) + "\n")

    npx.set_np()
    np_arrays = {name: mx.np.array(array, dtype=array.dtype) for name, array in arrays().items()}
    np_arrays.update(scalar=mx.np.array(2.5, dtype="float32"), nothing=mx.np.zeros((0, 3), dtype="float32"))
    mx.npx.save(str(FOLDER / "version3.params"), np_arrays)


if __name__ == "__main__":
    sys.exit(main())
