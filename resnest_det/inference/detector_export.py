"""Writing a whole detector for ONNX, OpenVINO, TorchScript and torch.export, and holding the file against the model.

A file takes a batch of images of one size, any size, and gives final boxes, scores, classes and masks, labels of pixels and
panoptic maps. It is run after writing; one that does not give the model's results is not kept.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from resnest_det.backbone.folding import fold_norms
from resnest_det.backbone.split_attention import DeformConv2d
from resnest_det.errors import UserError
from resnest_det.inference.deployed_detector import DeployedDetector
from resnest_det.inference.export import check_path, require_back_end
from resnest_det.inference.exported import INPUT_NAMES, SETTINGS, ExportedDetector

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
OPSETS = range(18, 22)  # of ONNX: RoIAlign with pixel centres is of 16, PyTorch's exporter begins with 18
DEFORMABLE_OPSET = 19  # of ONNX's DeformConv
BOX_TOLERANCE = 0.1  # pixels
SCORE_TOLERANCE = 1e-3
ROUNDED_BOX_TOLERANCE = 8.0  # of files of other precisions, which are kept all the same: pixels
ROUNDED_SCORE_TOLERANCE = 0.1
MASK_TOLERANCE, MASK_PIXELS = 1e-2, 2  # part of a mask's pixels, and so many more of a small one
PIXELS_ALIKE = 0.999  # part of the pixels whose class and segment must be the same

# Before, torch.export has no expression for a number of detections (2.6) or holds files to a multiple of the traced size (2.11).
_TORCH_EXPORT = "2.14"
_TRACED_SIZE = (96, 128)


def export_detector(
    model: nn.Module,
    path: str | os.PathLike,
    file_format: str,
    settings: Mapping,
    samples: Sequence[Mapping],
    *,
    opset: int | None = None,
    precision: str = "fp32",
    calibration: Callable[[], Sequence[Mapping]] | None = None,
) -> list[str]:
    """Write `model` to a file, run the file on `samples` and compare it with the model.

    Args:
        model: an R-CNN, a Panoptic FPN or a semantic model; it is not changed.
        path: the file. For OpenVINO its name ends in `.xml`, and the weights go into a `.bin` beside it. An existing file is
            replaced only when the new one is complete and checked.
        file_format: one of `resnest_det.inference.export.FORMATS`.
        settings: travel in the file as JSON; `outputs`, `channels`, `semantic_classes` and `precision` are added.
        samples: with `image` (C, H, W) uint8 at the model's input size, `height` and `width`; see `checking_samples`.
        opset: version of ONNX's operators, one of `OPSETS`.
        precision: one of `PRECISIONS`; other than fp32 for OpenVINO only. With these a file is kept however far it differs.
        calibration: gives the samples that int8 measures its ranges on.

    Returns:
        A line for each sample: how many results agree, and the largest differences.

    Raises:
        UserError: the format cannot express the model, its back end is not installed, the file cannot be there, or it does not
            give the model's results.
    """
    require_back_end(file_format)
    if file_format == "exported" and torch.__version__ < _TORCH_EXPORT:
        raise UserError(
            f"exported: detectors take torch {_TORCH_EXPORT} or later, and this is {torch.__version__}; torchscript works "
            "with this one"
        )
    path = Path(path)
    check_path(path, file_format)
    check_precision(precision, file_format)
    folded = fold_norms(model).cpu()
    deployed = DeployedDetector(folded)
    opset = checked_opset(deployed, file_format, opset)
    text = json.dumps(
        {
            **settings,
            "outputs": deployed.output_names,
            "channels": len(folded.pixel_mean),
            "semantic_classes": folded.sem_seg_head.num_classes if deployed.labels_pixels else 0,
            "precision": precision,
        }
    )
    height, width = _TRACED_SIZE
    # Two images, so that the batch is not taken for a constant, and three different lengths.
    images = torch.randint(0, 256, (2, len(folded.pixel_mean), height, width), generator=torch.Generator().manual_seed(0))
    inputs = (images.to(torch.uint8), torch.tensor([height + 5, width + 9]))
    # Beside the target, so that a rename puts the checked file in place.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporters' own deprecations
        written = Path(folder) / path.name
        try:
            if file_format == "openvino":
                _write_openvino(deployed, inputs, written, text, precision, calibration)
            elif file_format == "torchscript":
                _write_torchscript(deployed, inputs, written, text)
            elif file_format == "exported":
                torch.export.save(_exported(deployed, inputs), str(written), extra_files={f"{SETTINGS}.json": text})
            else:
                _write_onnx(deployed, inputs, written, text, opset)
        except (UserError, OSError):
            raise
        except Exception as error:  # of the exporters, which have no base class for theirs
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"{file_format} cannot express this model: {reason}") from error
        lines = compare(folded, ExportedDetector(written), samples, strict=precision == "fp32")
        for file in sorted(written.parent.iterdir()):
            os.replace(file, path.parent / file.name)
    return lines


def check_precision(precision: str, file_format: str) -> None:
    """Raises `UserError` for a precision that is unknown, or that the format does not have."""
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; supported: {', '.join(PRECISIONS)}")
    if precision != "fp32" and file_format != "openvino":
        raise UserError(f"precision {precision} is for openvino, the format is {file_format}")


def checked_opset(deployed: DeployedDetector, file_format: str, opset: int | None) -> int:
    """The version of ONNX's operators to write.

    Raises:
        UserError: the format has none, it is not written, or it is too old for a module of the model.
    """
    deformable = [name for name, module in deployed.model.named_modules() if isinstance(module, DeformConv2d)]
    if opset is None:
        return DEFORMABLE_OPSET if deformable else OPSETS[0]
    if file_format != "onnx":
        raise UserError(f"opset {opset} is for onnx, the format is {file_format}")
    if opset not in OPSETS:
        raise UserError(f"opset {opset} is not supported for detectors; supported: {OPSETS[0]} to {OPSETS[-1]}")
    if deformable and opset < DEFORMABLE_OPSET:
        raise UserError(
            f"opset {opset} has no deformable convolution, which {deformable[0]} is; supported: from {DEFORMABLE_OPSET}"
        )
    return opset


def _exported(deployed: DeployedDetector, inputs: tuple[Tensor, Tensor]) -> torch.export.ExportedProgram:
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(deployed, inputs, dynamic_shapes=(dynamic, None))
    # Suppression is taken to leave at least two boxes, and that is asserted; one or none is as good.
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _write_torchscript(deployed: DeployedDetector, inputs: tuple[Tensor, Tensor], path: Path, settings: str) -> None:
    traced = torch.jit.trace(deployed, inputs, check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={f"{SETTINGS}.json": settings})


def _write_onnx(deployed: DeployedDetector, inputs: tuple[Tensor, Tensor], path: Path, settings: str, opset: int) -> None:
    program = torch.onnx.export(
        _exported(deployed, inputs),
        dynamo=True,
        input_names=list(INPUT_NAMES),
        output_names=list(deployed.output_names),
        opset_version=opset,
        verbose=False,
    )
    program.model.metadata_props[SETTINGS] = settings
    program.save(str(path), external_data=False)


def _write_openvino(
    deployed: DeployedDetector,
    inputs: tuple[Tensor, Tensor],
    path: Path,
    settings: str,
    precision: str,
    calibration: Callable[[], Sequence[Mapping]] | None,
) -> None:
    import openvino

    traced = torch.jit.trace(deployed, inputs, check_trace=False)
    shapes = [openvino.PartialShape([-1, inputs[0].shape[1], -1, -1]), openvino.PartialShape([2])]
    converted = openvino.convert_model(traced, example_input=inputs, input=shapes)
    if precision == "int8":
        converted = _quantized(converted, calibration() if calibration is not None else [])
    ports = (*zip(converted.inputs, INPUT_NAMES), *zip(converted.outputs, deployed.output_names, strict=True))
    for port, name in ports:
        port.get_tensor().set_names({name})
    converted.set_rt_info(settings, [SETTINGS, "settings"])
    openvino.save_model(converted, str(path), compress_to_fp16=precision == "fp16")


def _quantized(model, samples: Sequence[Mapping]):
    if not samples:
        raise UserError("int8 needs images to measure its ranges on")
    os.environ.setdefault("NNCF_CI", "1")  # else it reports its use to its makers, with a process for each event
    try:
        import nncf
    except ImportError:
        raise UserError("int8 needs nncf: pip install 'resnest_det[export]'") from None

    def inputs_of(sample: Mapping) -> list:
        return [sample["image"][None].numpy(), torch.tensor([sample["height"], sample["width"]]).numpy()]

    nncf.set_log_level(logging.WARNING)  # else there is a line for each operation that stays as it is, hundreds of them
    return nncf.quantize(
        model,
        nncf.Dataset(samples, inputs_of),
        subset_size=len(samples),
        preset=nncf.QuantizationPreset.MIXED,
        # The arithmetic of boxes and masks, which belongs to no layer.
        ignored_scope=nncf.IgnoredScope(patterns=[r"^(?!__module\.).*"], validate=False),
    )


def compare(
    model: nn.Module, exported: Callable[[Sequence[Mapping]], list[dict]], samples: Sequence[Mapping], *, strict: bool = True
) -> list[str]:
    """A line for each sample, which says how far the file's results are from the model's.

    Raises:
        UserError: `strict`, and they are further than the tolerances of this module.
    """
    lines = []
    for sample in samples:
        name = sample.get("file_name", "image")
        with torch.inference_mode():
            expected = model([sample])[0]
        got = exported([sample])[0]
        problems, said = [], []
        if "boxes" in expected:
            tolerances = (BOX_TOLERANCE, SCORE_TOLERANCE) if strict else (ROUNDED_BOX_TOLERANCE, ROUNDED_SCORE_TOLERANCE)
            wrong, text = compare_detections(expected, got, *tolerances)
            problems += wrong
            said.append(text)
        if "sem_seg" in expected:
            alike = (expected["sem_seg"].argmax(dim=0) == got["sem_seg"].argmax(dim=0)).float().mean().item()
            said.append(f"{100 * alike:.2f} % of the pixels of the same class")
            problems += [] if alike >= PIXELS_ALIKE else [f"only {said[-1]}"]
        if "panoptic_seg" in expected:
            alike = (expected["panoptic_seg"][0] == got["panoptic_seg"][0]).float().mean().item()
            said.append(f"{100 * alike:.2f} % of the pixels in the same segment")
            problems += [] if alike >= PIXELS_ALIKE else [f"only {said[-1]}"]
        if strict and problems:
            raise UserError(f"the file does not give the model's results on {name}: {problems[0]}; nothing was written")
        lines.append(f"{name}: {', '.join(said)}")
    return lines


def compare_detections(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    box_tolerance: float = BOX_TOLERANCE,
    score_tolerance: float = SCORE_TOLERANCE,
) -> tuple[list[str], str]:
    """What differs between two sets of detections by more than the tolerances, and a text for both.

    A detection whose score is within the tolerance of the worst that was kept may be in one set and not in the other.
    """
    problems, box_difference, score_difference, matched = [], 0.0, 0.0, 0
    for one, other, what in ((expected, got, "missing"), (got, expected, "not the model's")):
        worst = one["scores"].min() if len(one["scores"]) > 1 else 0.0
        for i in range(len(one["scores"])):
            boxes = (other["boxes"] - one["boxes"][i]).abs().amax(dim=1)
            scores = (other["scores"] - one["scores"][i]).abs()
            fits = (other["classes"] == one["classes"][i]) & (boxes <= box_tolerance) & (scores <= score_tolerance)
            if not fits.any():
                if one["scores"][i] <= worst + score_tolerance:
                    continue
                box = ", ".join(f"{side:.1f}" for side in one["boxes"][i].tolist())
                problems.append(f"{what}: class {int(one['classes'][i])}, score {one['scores'][i]:.3f}, box {box}")
            elif one is expected:
                nearest = boxes.masked_fill(~fits, float("inf")).argmin()
                matched += 1
                box_difference = max(box_difference, boxes[nearest].item())
                score_difference = max(score_difference, scores[nearest].item())
                if "masks" in one:
                    differing = (one["masks"][i] ^ other["masks"][nearest]).sum().item()
                    allowed = MASK_TOLERANCE * (one["masks"][i] | other["masks"][nearest]).sum().item() + MASK_PIXELS
                    if differing > allowed:
                        problems.append(f"the mask of class {int(one['classes'][i])} differs in {differing} pixels")
    within = f"boxes to {box_tolerance:g} pixels, scores to {score_tolerance:g}"
    text = f"{matched} of {len(expected['scores'])} detections alike ({within})"
    if matched:
        text += f", differing by {box_difference:.1e} pixels and {score_difference:.1e}"
    return problems, text
