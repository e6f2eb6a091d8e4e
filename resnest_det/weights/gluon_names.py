"""The names of parameters in Gluon's files, and what the authors call the same ones in PyTorch.

| written by | convolution | norm |
|---|---|---|
| `save_parameters`: by attributes | `layer2.1.conv2.fc1.weight` | `layer2.1.conv2.bn.gamma` |
| `export`, GluonCV's Faster R-CNN: by counting | `resnest_layers2_conv7_weight` | `resnest_layers2_batchnorm5_gamma` |

Before the second kind may stand whether a network learns it (`arg:`) or gathers it (`aux:`).
"""

import re
from collections.abc import Iterable

_NORM_VALUES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",  # as symbols call it
    "moving_var": "running_var",
}
_PREFIX = re.compile(r"(?:arg:|aux:)?(.*)")
# Of a split attention only: plain ResNets have other numbers of convolutions in a block.
_COUNTED_SIGN = re.compile(r"(?:arg:)?((?:.*[._])?)layers1_conv2_bias")
_COUNTED = re.compile(r"(?:(layers|down)(\d+)_)?(conv|(?:sync)?batchnorm|dense)(\d+)_(\w+)")
# In the order in which a network makes them.
_STEM = {"conv": ("conv1.0", "conv1.3", "conv1.6"), "batchnorm": ("conv1.1", "conv1.4", "bn1"), "dense": ("fc",)}
_BLOCK = {
    "conv": ("conv1", "conv2.conv", "conv2.fc1", "conv2.fc2", "conv3"),
    "batchnorm": ("bn1", "conv2.bn0", "conv2.bn1", "bn3"),
}
_SHORTCUT = {"conv": ("downsample.1",), "batchnorm": ("downsample.2",)}


def counted_prefix(names: Iterable[str]) -> str | None:
    """What stands before the names of a ResNeSt whose parameters are counted, `features.resnest_` for one; None without one."""
    return next((found[1] for name in names if (found := _COUNTED_SIGN.fullmatch(name))), None)


def authors_name(name: str, prefix: str) -> str | None:
    """What the authors call a parameter of the backbone or its head that has this name in a file of Gluon's.

    Args:
        prefix: of the backbone, in the file.

    Returns:
        The name, without a prefix; None where the file's is of nothing that is made by counting, or has another prefix.
    """
    name = _PREFIX.fullmatch(name)[1]
    if not name.startswith(prefix):
        return None
    name = name.removeprefix(prefix)
    counted = _COUNTED.fullmatch(name)
    if counted:
        module, value = _counted_module(*counted.groups()[:4]), counted[5]
    else:
        module, _, value = name.rpartition(".")
        module = re.sub(r"\.conv2\.bn$", ".conv2.bn0", module)
    return module and f"{module}.{_NORM_VALUES.get(value, value)}"


def _counted_module(part: str | None, stage: str | None, kind: str, number: str) -> str | None:
    index, kind = int(number), kind.removeprefix("sync")
    modules = {"layers": _BLOCK, "down": _SHORTCUT, None: _STEM}[part].get(kind, ())
    if not modules:
        return None
    block, index = divmod(index, len(modules))
    if part == "layers":
        return f"layer{stage}.{block}.{modules[index]}"
    return None if block else modules[index] if part is None else f"layer{stage}.0.{modules[index]}"
