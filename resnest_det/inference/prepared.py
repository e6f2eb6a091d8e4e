"""A model made ready for inference: folded norms, the memory format, the precision and the compilation that suit the device.

>>> import resnest_det
>>> model = resnest_det.prepare_for_inference(resnest_det.create_model("resnest50", pretrained=True))
"""

import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from resnest_det.backbone.folding import fold_norms
from resnest_det.backbone.split_attention import DeformConv2d
from resnest_det.errors import ArgumentError, UserError

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)

# What holds nearly all of a detector's arithmetic, in this project's names and Detectron2's. The rest, which decides between
# scores and places boxes, stays float32.
_PARTS = ("backbone", "proposal_generator.rpn_head.conv", "roi_heads.box_head", "roi_heads.mask_head", "sem_seg_head")


def prepare_for_inference(model: nn.Module, precision: str = "auto", compile: bool = False) -> nn.Module:
    """A faster copy of `model` for inference on the device where it is; `model` is left as it is.

    Batch norms become part of the convolutions before them, maps lie channels last on a CPU and in half precision, and outputs
    are float32 in any precision. Of a detector the backbone and the heads' towers run in `precision`; scores, boxes
    and what chooses among them are float32.

    Args:
        model: a classifier, feature extractor or backbone of this project, or a detector: a built-in one or Detectron2's.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the processor computes in it (see `has_precision`), on older GPUs
            fp16, else fp32.
        compile: compile with torch.compile for inputs of any size, which takes minutes at the first batch.

    A precision that the device has no instructions for is replaced by fp32, and without a working compiler nothing is compiled;
    a line in the log says so.

    Raises:
        UserError: `precision` is no precision, `compile` no bool, or `model` no module.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"prepare_for_inference takes a torch.nn.Module, not a {type(model).__name__}")
    if precision not in PRECISIONS:
        raise ArgumentError("precision", f"{precision!r} is not supported; supported: {', '.join(map(repr, PRECISIONS))}")
    if not isinstance(compile, bool):
        raise ArgumentError("compile", f"is {compile!r}, expected True or False")
    first = next(model.parameters(), torch.zeros(0))
    precision = usable_precision(precision, first.device)
    prepared = fold_norms(model)
    if first.device.type == "cpu" or precision != "fp32":
        prepared = prepared.to(memory_format=torch.channels_last)
    parts = list(_parts(prepared))
    if precision != "fp32" and first.dtype == torch.float32:
        for part, method in parts:
            _run_in(part, method, DTYPES[precision])
    if compile and can_compile(first.device):
        for part, method in parts:
            if method == "forward":
                part.compile(dynamic=True, fullgraph=True)
    return prepared


def usable_precision(precision: str, device: torch.device) -> str:
    """`precision` where `device` has it, else "fp32" with a warning; of "auto" the fastest that it has."""
    if precision == "auto":
        candidates = ("bf16",) if device.type == "cpu" else ("bf16", "fp16")
        return next((each for each in candidates if has_precision(each, device)), "fp32")
    if not has_precision(precision, device):
        logger.warning("precision %s: this %s has no instructions for it; fp32 is used", precision, _processor(device))
        return "fp32"
    return precision


def has_precision(precision: str, device: torch.device) -> bool:
    """Whether `device` has instructions that multiply matrices in a precision, without which it is slower than fp32."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        if precision == "bf16":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_capability(device) >= (7, 0)  # tensor cores
    if device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        # What the variables that hold torch to older instructions leave of it, as well.
        allowed = torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX"))
        own = ("avx512_bf16", "amx_bf16") if precision == "bf16" else ("avx512_fp16", "amx_fp16")
        return allowed and bool(set(own) & processor_instructions())
    question = "_is_mkldnn_bf16_supported" if precision == "bf16" else "_is_mkldnn_fp16_supported"
    return bool(getattr(torch.ops.mkldnn, question)())


def processor_instructions() -> set[str]:
    """Extensions of the CPU's instruction set as Linux names them; those that torch knows of on other systems."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    asked = {
        "avx2": "_is_avx2_supported",
        "avx512f": "_is_avx512_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_tile": "_is_amx_tile_supported",
    }
    return {name for name, question in asked.items() if getattr(torch.cpu, question, bool)()}


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works for `device`; a warning says why not."""
    try:
        torch.compile(lambda x: x + 1.0, fullgraph=True)(torch.zeros(2, device=device))
    except Exception as error:  # of whatever is missing: a C++ compiler, Triton, a version of Python that it knows
        logger.warning("compile: torch.compile does not work here, the model runs without it: %s", _first_line(error))
        return False
    return True


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _processor(device: torch.device) -> str:
    return "GPU" if device.type == "cuda" else f"{device.type.upper()} device" if device.type != "cpu" else "CPU"


def _parts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """What runs in the wanted precision, each with the name of the method that computes it."""
    if not hasattr(model, "backbone"):
        yield model, "forward"
        return
    for path in _PARTS:
        part: Any = model
        for name in path.split("."):
            part = getattr(part, name, None)
        for each in part if isinstance(part, nn.ModuleList) else [part]:
            if isinstance(each, nn.Module):
                # Detectron2's heads for masks and pixels also compute results, in the same `forward`.
                yield each, "layers" if callable(getattr(each, "layers", None)) else "forward"


def _run_in(part: nn.Module, method: str, dtype: torch.dtype) -> None:
    for module in part.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not isinstance(module, DeformConv2d):
            for parameter in module.parameters(recurse=False):  # once, and not at each batch
                parameter.data = parameter.data.to(dtype)
    part.autocast_dtype = dtype
    setattr(part, method, MethodType(_FORWARDS[method], part))  # a copy of the model gets its own


def _forward(part: nn.Module, *inputs: Any, **named: Any) -> Any:
    return _in_precision(part, type(part).forward, *inputs, **named)


def _layers(part: nn.Module, *inputs: Any, **named: Any) -> Any:
    return _in_precision(part, type(part).layers, *inputs, **named)


_FORWARDS: dict[str, Callable] = {"forward": _forward, "layers": _layers}


def _in_precision(part: nn.Module, function: Callable, *inputs: Any, **named: Any) -> Any:
    with torch.autocast(next(part.parameters()).device.type, part.autocast_dtype):
        return _as_float32(function(part, *inputs, **named))


def _as_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _as_float32(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_as_float32(each) for each in value)
    return value
