"""The names of the backbone's parameters in other libraries.

| layout | stem | shortcut | norm of a convolution | head |
|---|---|---|---|---|
| detectron2, this package's own | `stem.conv1_1` | `res3.0.shortcut` | `res3.0.conv1.norm` | `linear` |
| timm, the authors, torchvision | `conv1.0`, last norm `bn1` | `layer2.0.downsample.1` | `layer2.0.bn1` | `fc` |
| mmdet | `stem.0` ... `stem.7` | `layer2.0.downsample.1` | `layer2.0.bn1`, group norm `gn1` | `fc`, `head.fc` |
| gluon, read only | `conv1.0`, last norm `bn1` | `layer2.0.downsample.1` | `layer2.0.bn1`, its weight `gamma` | `fc` |
| caffe2, read only: plain ResNets of Detectron | `conv1` | `res3_0_branch1` | `res3_0_branch2a_bn` | `fc1000`, `pred` |

Gluon has a second kind of names, see `gluon_names`.
"""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from resnest_det.errors import UserError
from resnest_det.weights.gluon_names import authors_name, counted_prefix

LAYOUTS = ("detectron2", "timm", "mmdet")

# Keys that training code puts around a state dict, the usual ones first; others are tried as well.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs", "")
BACKBONE_PREFIXES = ("backbone.bottom_up.", "bottom_up.", "backbone.", "pretrained.", "")  # the last but one: PyTorch-Encoding's

# A parameter that only this layout has, by which it is recognised.
_SIGNS = {
    "detectron2": ("stem.conv1_1.weight", "stem.conv1.weight", "res2.0.conv1.weight"),
    "mmdet": ("stem.0.weight",),
    "gluon": ("bn1.gamma",),  # before timm's, which its convolutions are called like
    "timm": ("conv1.0.weight", "conv1.weight"),
    "caffe2": ("conv1_w",),
}

# (this package's name, the other's), without the parameter at the end: `weight`, `bias`, `running_mean` ...
_TIMM_STEM = (
    ("stem.conv1_1.norm", "conv1.1"),
    ("stem.conv1_1", "conv1.0"),
    ("stem.conv1_2.norm", "conv1.4"),
    ("stem.conv1_2", "conv1.3"),
    ("stem.conv1_3.norm", "bn1"),
    ("stem.conv1_3", "conv1.6"),
)
_MMDET_STEM = (
    ("stem.conv1_1.norm", "stem.1"),
    ("stem.conv1_1", "stem.0"),
    ("stem.conv1_2.norm", "stem.4"),
    ("stem.conv1_2", "stem.3"),
    ("stem.conv1_3.norm", "stem.7"),
    ("stem.conv1_3", "stem.6"),
)
_PLAIN_STEM = (("stem.conv1.norm", "bn1"), ("stem.conv1", "conv1"))
_BLOCK = (
    ("conv1.norm", "bn1"),
    ("conv2.norm", "bn2"),
    ("conv3.norm", "bn3"),
    ("conv1", "conv1"),
    ("conv2.conv", "conv2.conv"),
    ("conv2.bn0", "conv2.bn0"),
    ("conv2.fc1", "conv2.fc1"),
    ("conv2.bn1", "conv2.bn1"),
    ("conv2.fc2", "conv2.fc2"),
    ("conv2", "conv2"),
    ("conv3", "conv3"),
)
_POOLED_SHORTCUT = (("shortcut.norm", "downsample.2"), ("shortcut", "downsample.1"))
_STRIDED_SHORTCUT = (("shortcut.norm", "downsample.1"), ("shortcut", "downsample.0"))
_OFFSET = {"timm": "conv2_offset", "mmdet": "conv2.conv.conv_offset"}
_HEADS = {"detectron2": ("linear", "fc", "stem.fc"), "timm": ("fc",), "mmdet": ("fc", "head.fc")}
_CAFFE2_NAME = re.compile(r"(?:res_)?(?:(conv1)|(res[2-5])_(\d+)_branch(1|2a|2b|2c)|(fc1000|pred))_(w|b|bn_\w+)")
_CAFFE2_CONVOLUTIONS = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_CAFFE2_NORM = {
    "bn_s": "weight",
    "bn_gamma": "weight",
    "bn_b": "bias",
    "bn_beta": "bias",
    "bn_rm": "running_mean",
    "bn_running_mean": "running_mean",
    "bn_riv": "running_var",
    "bn_running_var": "running_var",
}
_BLOCK_NAME = re.compile(r"(res|layer)(\d)\.(\d+)\.(.+)")


def state_dict_of(checkpoint: dict, use_ema: bool = True) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint by name, out of whatever training code wrapped around them.

    A known layout is looked for under every key, at every depth, and behind every prefix of the names. What is not behind the
    prefix of the backbone keeps its name.

    Args:
        checkpoint: a dictionary that was read from a file.
        use_ema: where there are averaged weights (the key or prefix says `ema`) beside others, take those.

    Returns:
        The tensors, and in words what was taken off, "" for nothing.

    Raises:
        UserError: there are no tensors, or several networks and no way to know which of them is meant.
    """
    if "message_hub" in checkpoint:  # MMEngine keeps the averaged weights in state_dict, and the others under this key
        checkpoint = {key: value for key, value in checkpoint.items() if key != "ema_state_dict"}
    candidates = list(_tensors_by_key(checkpoint))
    if not candidates:
        raise UserError("it holds no tensors by name: not the state dict of a model")
    networks = [(key, state, prefix) for key, state in candidates for prefix in _prefixes(state)]
    found = networks or [(key, state, "") for key, state in candidates]

    averaged = [each for each in found if _is_averaged(f"{each[0]}.{each[2]}")]
    others = [each for each in found if not _is_averaged(f"{each[0]}.{each[2]}")]
    chosen = (averaged if use_ema else others) or found
    best = min(_rank(key) for key, *_ in chosen)
    chosen = [each for each in chosen if _rank(each[0]) == best]
    if networks and len(chosen) > 1:
        names = ", ".join(repr(f"{key}: {prefix}" if key and prefix else key or prefix) for key, _, prefix in chosen[:4])
        raise UserError(f"it holds several networks, {names}: save the one to load in a file of its own")
    key, state, prefix = chosen[0]
    taken_off = [f"the key {key!r}"] if key else []
    if prefix:
        taken_off.append(f"the prefix {prefix!r}")
        state = {name: value for name, value in state.items() if not name.startswith(prefix)} | {
            name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)
        }
    words = " and ".join(taken_off)
    if averaged and others:
        words += " (averaged weights; use_ema=False takes the others)" if use_ema else " (not the averaged weights)"
    return state, words


def _tensors_by_key(checkpoint: dict, key: str = "", depth: int = 4) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(keys joined by dots, tensors by name) for each dictionary within a checkpoint that holds tensors."""
    state = {name: value for name, value in checkpoint.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if state:
        yield key, state
    for name, value in checkpoint.items():
        if isinstance(name, str) and isinstance(value, dict) and depth:  # a dictionary may contain itself
            yield from _tensors_by_key(value, f"{key}.{name}" if key else name, depth - 1)


def _rank(key: str) -> int:
    return _WRAPPERS.index(key) if key in _WRAPPERS else len(_WRAPPERS)


def _is_averaged(name: str) -> bool:
    return "ema" in re.split(r"[^a-z]+", name.lower())


def _prefixes(state: dict[str, Tensor]) -> list[str]:
    """What stands before the names of each ResNeSt or ResNet, other than a prefix of `BACKBONE_PREFIXES`; "" for nothing."""
    found = {}
    for name in state:
        first_block = re.fullmatch(r"((?:.*\.)?)(?:layer1|res2)\.0\.conv1\.weight", name)
        if first_block:
            prefix = first_block[1]
            if any(prefix + sign in state for signs in _SIGNS.values() for sign in signs if not sign.startswith("res2.")):
                known = next(each for each in BACKBONE_PREFIXES if prefix == each or prefix.endswith("." + each))
                found[prefix.removesuffix(known)] = None
    if "" in found:
        return [prefix for prefix in found if prefix == "" or _is_averaged(prefix)]
    # A part of a network, or Detectron's names, are known only where nothing but a prefix of a backbone is before them.
    return list(found) or ([""] if find_backbone(state) else [])


def find_backbone(names) -> tuple[str, str] | None:
    """(layout, prefix) of the backbone among parameter names, or None if there is none."""
    names = set(names)
    for prefix in BACKBONE_PREFIXES:
        for layout, signs in _SIGNS.items():
            if any(prefix + sign in names for sign in signs):
                return layout, prefix
    counted = counted_prefix(names)
    return None if counted is None else ("gluon", counted)


def to_own_names(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], str, str]:
    """Split a state dict into the backbone and the rest.

    Args:
        state: tensors by name, in any of `LAYOUTS`, in "gluon" or in "caffe2"; see `state_dict_of`.

    Returns:
        The backbone and its classification head under this package's names with no prefix; every name in it mapped to
        the one it had; the layout; and the prefix the backbone had. Parameters that belong to neither are not in it.

    Raises:
        UserError: no layout is recognised.
    """
    found = find_backbone(state)
    if found is None:
        some = ", ".join(sorted(state)[:3])
        raise UserError(
            f"no ResNeSt or ResNet in a known layout ({', '.join(_SIGNS)}), under any prefix; "
            f"its parameters are called {some} ..."
        )
    layout, prefix = found
    if layout == "caffe2":
        return *_from_caffe2(state), layout, prefix
    if layout == "gluon":
        return *_from_gluon(state, prefix), layout, prefix
    plain_stem = f"{prefix}conv1.weight" in state
    strided_shortcut = any(name.startswith(prefix) and name.endswith("downsample.0.weight") for name in state)
    backbone, origin = {}, {}
    for name, value in state.items():
        own = _own_name(name, layout, prefix, plain_stem, strided_shortcut)
        if own is not None:
            if own.endswith("conv2_offset.weight") and layout == "mmdet":
                value = _grouped_offsets(value, name)
            backbone[own], origin[own] = value, name
    return backbone, origin, layout, prefix


def _from_caffe2(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    backbone, origin = {}, {}
    for name, value in state.items():
        found = _CAFFE2_NAME.fullmatch(name)
        if not found:
            continue
        stem, stage, block, branch, head, kind = found.groups()
        if head:
            own = {"w": "linear.weight", "b": "linear.bias"}.get(kind)
        else:
            convolution = "stem.conv1" if stem else f"{stage}.{block}.{_CAFFE2_CONVOLUTIONS[branch]}"
            # A norm follows, so a convolution's bias, which some of these files have, has no effect.
            norm = f"{convolution}.norm.{_CAFFE2_NORM[kind]}" if kind in _CAFFE2_NORM else None
            own = f"{convolution}.weight" if kind == "w" else norm
        if own:
            backbone[own], origin[own] = value, name
    for name in [name for name in backbone if name.endswith(".norm.weight")]:
        # Older files have no statistics: these are folded into weight and bias.
        for statistic, value in (("running_mean", 0.0), ("running_var", 1.0)):
            own = f"{name.removesuffix('weight')}{statistic}"
            if own not in backbone:
                backbone[own], origin[own] = torch.full_like(backbone[name], value), origin[name]
    return backbone, origin


def _from_gluon(state: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    in_file = {authors: name for name in state if (authors := authors_name(name, prefix))}
    backbone, origin, *_ = to_own_names({authors: state[name] for authors, name in in_file.items()})
    return backbone, {own: in_file[authors] for own, authors in origin.items()}


def _own_name(name: str, layout: str, prefix: str, plain_stem: bool, strided_shortcut: bool) -> str | None:
    for head in _HEADS[layout]:
        for spelled in (prefix + head, head):
            if name in (f"{spelled}.weight", f"{spelled}.bias"):
                return "linear" + name[len(spelled) :]
    if not name.startswith(prefix):
        return None
    name = name[len(prefix) :]
    if layout == "detectron2":
        return name if re.match(r"(stem|res[2-5])\.", name) else None
    if layout == "mmdet":
        name = re.sub(r"\.gn(\d\.)", r".bn\1", name)
    block = _BLOCK_NAME.fullmatch(name)
    if block and block[1] == "layer":
        offset = _OFFSET[layout]
        if block[4].startswith(offset + "."):
            inner = "conv2_offset" + block[4][len(offset) :]
        else:
            pairs = _BLOCK + (_STRIDED_SHORTCUT if strided_shortcut else _POOLED_SHORTCUT)
            inner = _replace_start(block[4], ((other, own) for own, other in pairs))
        return inner and f"res{int(block[2]) + 1}.{block[3]}.{inner}"
    stem = _MMDET_STEM if layout == "mmdet" else _PLAIN_STEM if plain_stem else _TIMM_STEM
    return _replace_start(name, ((other, own) for own, other in stem))


def _replace_start(name: str, pairs) -> str | None:
    for old, new in pairs:
        if name.startswith(old + "."):
            return new + name[len(old) :]
    return None


def from_own_names(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The inverse of `to_own_names`: backbone and head under another library's names, with no prefix.

    Raises:
        UserError: a parameter has no name in that layout.
    """
    if layout == "detectron2":
        return dict(state)
    translated = {}
    strided_shortcut = _has_strided_shortcut(state)
    group_norm = layout == "mmdet" and not any(name.endswith("running_var") for name in state)
    for name, value in state.items():
        other = _other_name(name, layout, strided_shortcut)
        if other is None:
            raise UserError(f"parameter {name} has no name in layout {layout}")
        if name.endswith("conv2_offset.weight") and layout == "mmdet":
            value = _dense_offsets(value, state[name.replace("conv2_offset.weight", "conv1.weight")].shape[0])
        if group_norm:
            other = re.sub(r"\.bn(\d\.)", r".gn\1", other)  # MMDetection names a block's norms after their kind
        translated[other] = value
    return translated


def _has_strided_shortcut(state: dict[str, Tensor]) -> bool:
    # Only plain ResNets (7x7 stem, no split attention) have no pooling before the shortcut's convolution.
    return "stem.conv1.weight" in state


def _other_name(name: str, layout: str, strided_shortcut: bool) -> str | None:
    if name.startswith("linear."):
        return "fc" + name[len("linear") :]
    block = _BLOCK_NAME.fullmatch(name)
    if block:
        if block[4].startswith("conv2_offset."):
            inner = _OFFSET[layout] + block[4][len("conv2_offset") :]
        else:
            inner = _replace_start(block[4], _BLOCK + (_STRIDED_SHORTCUT if strided_shortcut else _POOLED_SHORTCUT))
        return inner and f"layer{int(block[2]) - 1}.{block[3]}.{inner}"
    if strided_shortcut:
        return _replace_start(name, _PLAIN_STEM)
    return _replace_start(name, _MMDET_STEM if layout == "mmdet" else _TIMM_STEM)


def _dense_offsets(weight: Tensor, in_channels: int) -> Tensor:
    """MMDetection's convolution of offsets has no groups; ours has one for each deformable group.

    Args:
        weight: (out, in / groups, 3, 3). Returns (out, in, 3, 3), zero where a group does not look.
    """
    out_channels, per_group = weight.shape[:2]
    groups = in_channels // per_group
    if groups == 1:
        return weight
    dense = weight.new_zeros(groups, out_channels // groups, groups, per_group, *weight.shape[2:])
    index = torch.arange(groups)
    dense[index, :, index] = weight.unflatten(0, (groups, -1))
    return dense.flatten(2, 3).flatten(0, 1)


def _grouped_offsets(weight: Tensor, name: str) -> Tensor:
    """The inverse of `_dense_offsets`, for 27 (modulated) or 18 values per deformable group."""
    out_channels, in_channels = weight.shape[:2]
    groups = out_channels // 27 if out_channels % 27 == 0 else out_channels // 18
    if groups <= 1:
        return weight
    blocks = weight.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
    index = torch.arange(groups)
    diagonal = blocks[index, :, index]
    if torch.count_nonzero(weight) != torch.count_nonzero(diagonal):
        raise UserError(
            f"{name}: a deformable group computes its offsets from the channels of other groups too, "
            "which only MMDetection's own backbone can do"
        )
    return diagonal.flatten(0, 1)
