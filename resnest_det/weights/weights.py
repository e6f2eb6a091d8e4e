"""Weights read from a file: its tensors, and which of them are the backbone's."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from resnest_det.errors import UserError
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.names import state_dict_of, to_own_names
from resnest_det.weights.segmentor_names import segmentor_heads

_LARGEST = 1e30  # what a bit turned in the exponent of an ordinary weight makes larger; squares are infinite soon after
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint, with the backbone among them found and translated.

    Attributes:
        path: the file, for messages.
        state: every tensor by its name in the file, without what `state_dict_of` takes off.
        layout: "detectron2", "timm", "mmdet", "gluon" or "caffe2", recognised by the names.
        prefix: what stands before the backbone's names in the file.
        backbone: the backbone and its classification head (`linear.`) under this package's names, without a prefix.
        origin: name in `backbone` and `heads` to the name in the file.
        taken_off: in words, the key and the prefix under which `state` was in the file; "" for none.
        heads: those of a semantic model of another library under this package's names, see `segmentor_heads`.
        family: whose they are, "authors" or "mmseg"; "" for none.
        class_names: "thing_classes" and "stuff_classes" that a detector was trained on, as far as its file says.
    """

    path: str
    state: dict[str, Tensor]
    layout: str
    prefix: str
    backbone: dict[str, Tensor]
    origin: dict[str, str]
    taken_off: str = ""
    heads: dict[str, Tensor] = field(default_factory=dict)
    family: str = ""
    class_names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def rest(self) -> dict[str, Tensor]:
        """The tensors outside the backbone and its classification head, by their names in the file."""
        used = {self.origin[name] for name in self.backbone if name in self.origin}
        return {name: value for name, value in self.state.items() if name not in used}

    @property
    def is_detector(self) -> bool:
        """Whether the file holds a detector in Detectron2's layout, whose heads can be used too."""
        return self.layout == "detectron2" and self.prefix != ""


def read_weights(path: str | os.PathLike, use_ema: bool = True) -> Weights:
    """Read a checkpoint of any known layout, under any key and prefix.

    Args:
        path: a local file, see `read_checkpoint`.
        use_ema: where the file has averaged weights beside the others, take those.

    Raises:
        UserError: the file cannot be used, there is no ResNeSt or ResNet in it, or numbers that no parameter has.
    """
    return weights_in(read_checkpoint(path), path, use_ema)


def weights_in(checkpoint: dict, path: str | os.PathLike, use_ema: bool = True) -> Weights:
    """`read_weights` of a file that was read already."""
    with errors_naming(path):
        state, taken_off = state_dict_of(checkpoint, use_ema)
        check_numbers(state)
    return replace(weights_of(state, path), taken_off=taken_off, class_names=_class_names(checkpoint.get("trained_on")))


def _class_names(trained_on: object) -> dict[str, list[str]]:
    """The lists of names in what a checkpoint says of its training."""
    kinds = ("thing_classes", "stuff_classes")
    named = {kind: trained_on.get(kind) for kind in kinds} if isinstance(trained_on, Mapping) else {}
    return {
        kind: names for kind, names in named.items() if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }


def read_state(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, of any network.

    Raises:
        UserError: the file cannot be used, or one of them has numbers that no parameter has.
    """
    checkpoint = read_checkpoint(path)
    with errors_naming(path):
        state, _ = state_dict_of(checkpoint)
        check_numbers(state)
    return state


def check_numbers(state: dict[str, Tensor]) -> None:
    """Raises `UserError` for the first tensor with numbers that are complex, of 8 bits or fewer, not finite or absurd."""
    for name, value in state.items():
        if value.is_complex() or (value.is_floating_point() and value.dtype not in _FLOATS):
            raise UserError(f"{name} has numbers of type {value.dtype}, expected {', '.join(map(str, _FLOATS))} or integers")
        if value.is_floating_point() and value.numel():
            # Found in a thirtieth of the time of `isfinite`; NaN is both of them.
            least, largest = map(float, torch.aminmax(value))
            if not math.isfinite(least) or not math.isfinite(largest):
                raise UserError(f"{name} has values that are not finite (NaN or infinite)")
            if max(-least, largest) > _LARGEST:
                raise UserError(
                    f"{name} has a value of {max(-least, largest):.3g}, as a damaged file has: no parameter is so large"
                )


def other_kind(value: Tensor, target: Tensor) -> str:
    """What is wrong with the type of `value` for `target`, "" if it only has more or fewer digits."""

    def kind(tensor: Tensor) -> tuple[bool, bool]:
        return tensor.is_floating_point(), tensor.dtype == torch.bool

    return "" if kind(value) == kind(target) else f"{value.dtype} in the file, {target.dtype} in the model"


def weights_of(state: dict[str, Tensor], path: str | os.PathLike) -> Weights:
    """`Weights` of tensors already read; `path` says where they come from.

    Raises:
        UserError: there is no ResNeSt or ResNet among them.
    """
    with errors_naming(path):
        backbone, origin, layout, prefix = to_own_names(state)
    heads, head_origin, family = segmentor_heads(state)
    return Weights(os.fspath(path), state, layout, prefix, backbone, origin | head_origin, heads=heads, family=family)


@contextmanager
def errors_naming(path: str | os.PathLike) -> Iterator[None]:
    """Put the file's name before errors about its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"weights {path}: {error}") from None
