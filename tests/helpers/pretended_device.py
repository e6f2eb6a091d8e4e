"""Tensors that pretend to be on another device, to count where the host would wait for a GPU, on a machine without one.

Their values lie in main memory, so results are right; they say that they are elsewhere, and everything that torch or torchvision
does to them is seen. Kernels, speed and precision of a real device are not tested by this.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

import resnest_det

# Of this device torch has everything but kernels. "cuda" would look for a driver.
DEVICE = torch.device("meta")

# What needs a value or a size on the host.
WAITING = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "masked_select",
    "aten::repeat_interleave": "repeat_interleave",
    "aten::bincount": "bincount",
    "aten::equal": "equal",
    "aten::_unique": "unique",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "torchvision::nms": "nms",
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
COPYING = {"aten::_to_copy", "aten::copy_"}


class MixedDevices(RuntimeError):
    """An operation met tensors of the host and of the device, or a random generator of the host."""


class Elsewhere(Tensor):
    """A tensor that says it is on `DEVICE`; `values` are its values, in main memory."""

    @staticmethod
    def __new__(cls, values: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype, device=DEVICE
        )

    def __init__(self, values: Tensor):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _computed(operation, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, **_):
        raise TypeError("a tensor of a device has no numpy array")

    __array__ = numpy


class PretendedDevice(TorchDispatchMode):
    """Within this context `Elsewhere` tensors can be computed with, and `DEVICE` named as the device of new ones.

    Attribute `waits`: how often the host waited, by (what for, file and line of the package). A copy counts in both directions,
    unless `non_blocking` says that the host need not know when it is done; one to the host always does.
    """

    # As fake tensors are: before functions that are registered in Python for an operator.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self):
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()

    def move(self, value):
        """The same on this device: a tensor, or a module, whose parameters and buffers are replaced."""
        if isinstance(value, Tensor):
            return Elsewhere(value.detach())
        for module in value.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()), parameter.requires_grad)
            module._buffers |= {name: None if buffer is None else Elsewhere(buffer) for name, buffer in module._buffers.items()}
        return value

    def report(self) -> str:
        """The places, most waits first."""
        return "\n".join(f"{count:4} {what} at {place}" for (what, place), count in self.waits.most_common())

    def __enter__(self):
        # Constructors that read Python values would leave them out on a device without memory.
        self._made = torch.tensor, torch.as_tensor, Tensor.new_tensor
        torch.tensor, torch.as_tensor, Tensor.new_tensor = self._tensor, self._as_tensor, self._new_tensor()
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor, torch.as_tensor, Tensor.new_tensor = self._made
        return super().__exit__(*error)

    def _tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        made = self._made[0](data, dtype=dtype, requires_grad=requires_grad)
        return made if device is None else made.to(device)

    def _as_tensor(self, data, *, dtype=None, device=None):
        if isinstance(data, Tensor):
            return data.to(device=data.device if device is None else device, dtype=dtype)
        return self._tensor(data, dtype=dtype, device=device)

    def _new_tensor(self):
        def new_tensor(tensor, data, *, dtype=None, device=None, requires_grad=False):
            return self._tensor(data, dtype=dtype or tensor.dtype, device=device or tensor.device, requires_grad=requires_grad)

        return new_tensor

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self._look(operation._schema.name, args, kwargs or {})
        return _computed(operation, args, kwargs or {})

    def _look(self, name: str, args: tuple, kwargs: dict) -> None:
        inputs = list(tree_iter((args, kwargs)))
        theirs = [value for value in inputs if isinstance(value, Elsewhere)]
        ours = [value for value in inputs if isinstance(value, Tensor) and not isinstance(value, Elsewhere)]
        there = _is_there(inputs)
        if not (theirs or there):
            return
        if name in WAITING and not (name == "aten::repeat_interleave" and "output_size" in kwargs):
            self._count(WAITING[name])
        if name in INDEXING and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            self._count("index by bool")
        if name in COPYING:
            copied = args[1] if name == "aten::copy_" else args[0]
            into_theirs = isinstance(args[0], Elsewhere) if name == "aten::copy_" else there
            non_blocking = kwargs.get("non_blocking", args[2] if name == "aten::copy_" and len(args) > 2 else False)
            if isinstance(copied, Elsewhere) and not into_theirs:
                self._count("copy to the host")
            elif not isinstance(copied, Elsewhere) and into_theirs and not non_blocking:
                self._count("copy from the host")
        elif theirs and any(value.dim() for value in ours) and name not in INDEXING:
            shapes = [tuple(value.shape) for value in ours]
            raise MixedDevices(f"{name} at {_place()}: {shapes} on the host, {[tuple(t.shape) for t in theirs]} on the device")
        elif theirs and name in INDEXING and (ours and any(value.dim() for value in ours)):
            # Torch copies the indices; a value or the tensor itself has to be there.
            if not isinstance(args[0], Elsewhere) or any(isinstance(v, Tensor) and v.dim() and v in ours for v in args[2:3]):
                raise MixedDevices(f"{name} at {_place()}")
            self._count("copy from the host")
        if any(isinstance(value, torch.Generator) and value.device.type == "cpu" for value in inputs):
            raise MixedDevices(f"{name} at {_place()}: a generator of the host")

    def _count(self, what: str) -> None:
        self.waits[what, _place()] += 1


def _is_there(inputs: list) -> bool:
    """Whether an operation with these inputs gives tensors of the device."""
    devices = [value for value in inputs if isinstance(value, torch.device)]
    return devices[-1] == DEVICE if devices else any(isinstance(value, Elsewhere) for value in inputs)


def _computed(operation, args: tuple, kwargs: dict):
    inputs = list(tree_iter((args, kwargs)))

    def unwrapped(value):
        if isinstance(value, Elsewhere):
            return value.values
        return torch.device("cpu") if isinstance(value, torch.device) and value == DEVICE else value

    args_here, kwargs_here = tree_map(unwrapped, (args, {key: value for key, value in kwargs.items() if key != "pin_memory"}))
    with torch.utils._python_dispatch._disable_current_modes():
        output = operation(*args_here, **kwargs_here)
    if operation._schema.name == "aten::copy_":
        return args[0]
    if not _is_there(inputs):
        return output
    output = tree_map(lambda value: Elsewhere(value) if isinstance(value, Tensor) else value, output)
    # What is computed in place gives the tensor that went in, not another.
    has_theirs = any(isinstance(value, Elsewhere) for value in inputs)
    return return_and_correct_aliasing(operation, args, kwargs, output) if has_theirs else output


def _place() -> str:
    """File and line of the package that is being executed; in the backward pass there is none."""
    root = str(Path(resnest_det.__file__).parent)
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(root):
            return f"{frame.f_code.co_filename[len(root) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
