"""What a network costs: parameters, multiply-adds and activations of each part, counted by fvcore in one traced forward pass."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fvcore.nn.jit_analysis import JitModelAnalysis
from fvcore.nn.jit_handles import batchnorm_flop_jit, conv_flop_jit, get_shape, linear_flop_jit, norm_flop_counter
from torch import Tensor, nn

from resnest_det.backbone.resnest import STAGES, ResNeSt


@dataclass(frozen=True)
class Counts:
    """Cost of a part of a network for the input it was traced with.

    Attributes:
        parameters: learned values; running statistics are none.
        multiply_adds: of convolutions (deformable ones without their interpolation) and linear layers.
        norm_operations: of batch norm, two for each value, and of group norm, five: fvcore's counts. timm's model cards add
            them to the multiply-adds. A frozen norm has none, and none is left when norms are folded into convolutions.
        activations: outputs of convolutions and linear layers ("Designing Network Design Spaces", arXiv:2003.13678).
    """

    parameters: int
    multiply_adds: int
    norm_operations: int
    activations: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.parameters + other.parameters,
            self.multiply_adds + other.multiply_adds,
            self.norm_operations + other.norm_operations,
            self.activations + other.activations,
        )


def count_parts(model: nn.Module, inputs: tuple[Tensor, ...], parts: Mapping[str, str]) -> dict[str, Counts]:
    """Costs of the parts of `model` for `model(*inputs)`.

    Args:
        model: in evaluation mode, on the device of `inputs`.
        inputs: tensors.
        parts: module name to the name of the part it counts for. What is below it counts with it, except for modules that
            have an entry of their own; `""` takes everything else. Several modules may make one part.

    Returns:
        Counts by part, in the order of `parts`.
    """
    analysis = JitModelAnalysis(model, inputs).set_op_handle(**_OPERATORS)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    operations = analysis.by_module_and_operator()

    owners = {name: _owner(name, parts) for name, _ in model.named_parameters()}
    counts: dict[str, Counts] = {}
    for module, part in parts.items():
        own = Counter(operations[module])
        for other in parts:
            if other and _owner(other.rpartition(".")[0], parts) == module:
                own.subtract(operations[other])
        counts[part] = counts.get(part, Counts(0, 0, 0, 0)) + Counts(
            sum(value.numel() for name, value in model.named_parameters() if owners[name] == module),
            own["multiply_adds"],
            own["norm_operations"],
            own["activations"],
        )
    return counts


def _owner(name: str, parts: Mapping[str, str]) -> str | None:
    """The entry of `parts` that a module or parameter counts for."""
    while name not in parts:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return name


def _multiply_adds(count: Callable) -> Callable:
    def handle(inputs: list, outputs: list) -> Counter:
        counted = count(inputs, outputs)  # a number, or a Counter with one
        number = sum(counted.values()) if isinstance(counted, Counter) else counted
        return Counter(multiply_adds=number, activations=math.prod(get_shape(outputs[0])))

    return handle


def _norm_operations(count: Callable) -> Callable:
    return lambda inputs, outputs: Counter(norm_operations=count(inputs, outputs))


def _count_deform_conv(inputs: list, outputs: list) -> int:
    weight_shape = get_shape(inputs[1])  # (C_out, C_in / groups, kernel height, kernel width)
    return math.prod(get_shape(outputs[0])) * math.prod(weight_shape[1:])


_OPERATORS = {
    "aten::_convolution": _multiply_adds(conv_flop_jit),
    "aten::linear": _multiply_adds(linear_flop_jit),
    "torchvision::deform_conv2d": _multiply_adds(_count_deform_conv),
    "aten::batch_norm": _norm_operations(batchnorm_flop_jit),
    "aten::group_norm": _norm_operations(norm_flop_counter(2)),
}


def backbone_parts(model: nn.Module) -> dict[str, str]:
    """Entries for `count_parts`: stem and stages of the ResNeSt that `model` is or has."""
    prefix = next(name + "." if name else "" for name, module in model.named_modules() if isinstance(module, ResNeSt))
    names = [name for name, _ in model.named_modules()]
    return {prefix + stage: stage for stage in ("stem", *STAGES) if prefix + stage in names}


def count_classifier(model: nn.Module, images: Tensor) -> dict[str, Counts]:
    """Costs of stem, stages and head (the linear layer) of a classifier or a feature extractor.

    Args:
        model: from `create_model`, in evaluation mode.
        images: (N, C, H, W), of any values.
    """
    return count_parts(model, (images,), {**backbone_parts(model), "": "head"})


def total(counts: Mapping[str, Counts]) -> Counts:
    """The sum over all parts."""
    return sum(counts.values(), Counts(0, 0, 0, 0))
