"""Exporting classifiers and feature extractors to ONNX, OpenVINO, TorchScript and torch.export.

An exported model takes any number of images of any size and has its norms folded into convolutions. It is run once after
writing; a file that does not give the model's numbers is not kept.
"""

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from resnest_det.backbone.classifier import Classifier, FeatureExtractor
from resnest_det.backbone.folding import fold_norms
from resnest_det.errors import UserError

FORMATS = ("onnx", "openvino", "torchscript", "exported")
OPSETS = range(11, 22)  # of ONNX
DEFAULT_OPSET = 18
TOLERANCE = 1e-4  # of the largest value of an output
INPUT_NAME = "data"

_BACK_ENDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
_DYNAMIC_AXES = {0: "batch", 2: "height", 3: "width"}
# Two images, so that the batch is not taken for a constant, and two different sides, so that neither is taken for the other.
_TRACED_SHAPE = (2, 64, 96)


class DeployedModel(nn.Module):
    """A classifier or feature extractor with its conventions of input and output built in, ready for export.

    Args:
        model: from `create_model`; put into evaluation mode.
        bgr: the input's channels are blue, green, red.
        pixels: the input's values are 0 ... 255, and the network normalises them with the mean and standard deviation of the
            model's weights. Otherwise the input is already normalised, as by `transforms_for(model)`.
        probabilities: apply a softmax over the classes.

    Attributes:
        output_names: `logits`, `prob` with `probabilities`, `embedding` for a model without classes, or the names of the
            feature maps.

    Raises:
        UserError: the conventions do not fit the model, or it is none that can be exported.
    """

    def __init__(
        self, model: Classifier | FeatureExtractor, *, bgr: bool = False, pixels: bool = False, probabilities: bool = False
    ):
        super().__init__()
        _check_exportable(model)
        self.in_channels = next(model.parameters()).shape[1]
        if (bgr or pixels) and self.in_channels != 3:
            raise UserError(f"BGR and pixel input need images of 3 channels; this model takes {self.in_channels}")
        if isinstance(model, FeatureExtractor):
            self.output_names = model.out_features
        else:
            self.output_names = ("logits" if model.num_classes else "embedding",)
        if probabilities:
            if self.output_names != ("logits",):
                raise UserError(f"probabilities need classes; this model gives {', '.join(self.output_names)}")
            self.output_names = ("prob",)
        self.model = model
        self.bgr = bgr
        self.pixels = pixels
        self.probabilities = probabilities
        if pixels:
            for name in ("mean", "std"):
                self.register_buffer(name, 255 * torch.tensor(model.pretrained_cfg[name])[:, None, None])
        self.eval()

    def forward(self, data: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images (N, C, H, W) to scores or embeddings (N, K), or to feature maps (N, channels, H / stride, W / stride)."""
        if self.bgr:
            data = data.flip(1)
        if self.pixels:
            data = (data - self.mean) / self.std
        outputs = self.model(data)
        if self.probabilities:
            outputs = outputs.softmax(1)
        return tuple(outputs) if isinstance(outputs, list) else outputs


def _check_exportable(model: nn.Module) -> None:
    if not isinstance(model, (Classifier, FeatureExtractor)):
        inner = next((name for name in ("module", "_orig_mod", "model") if isinstance(getattr(model, name, None), nn.Module)), "")
        raise UserError(
            f"export takes a classifier or feature extractor of create_model, not a {type(model).__name__}"
            + (f": give its .{inner}" if inner else "")
        )
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise UserError(f"export takes a model with weights, {name} is on the meta device and has none")
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise UserError(f"export takes float32 models, {name} is {dtype}: call model.float() first")
        if parameter.device.type != "cpu":
            raise UserError(f"export takes models on the CPU, {name} is on {parameter.device}: call model.cpu() first")


def export_model(
    model: DeployedModel, path: str | os.PathLike, file_format: str, opset: int | None = None
) -> dict[tuple[int, ...], float]:
    """Write `model` to a file, and run the file.

    Args:
        model: float32, on the CPU.
        path: the file. For OpenVINO its name ends in `.xml`, and the weights go into a `.bin` beside it. An existing file is
            replaced only when the new one is complete and checked.
        file_format: one of `FORMATS`.
        opset: version of ONNX's operators, one of `OPSETS`; None is `DEFAULT_OPSET`.

    Returns:
        For each input shape tried, none of them the traced one: the largest difference from the model, relative to the
        largest value of that output.

    Raises:
        UserError: the format or opset is unknown, its back end is not installed, the model is none that can be exported, the
            file cannot have this name or be in this folder, or it does not give the model's numbers to `TOLERANCE`.
    """
    require_back_end(file_format)
    path = Path(path)
    check_path(path, file_format)
    check_opset(opset, file_format)
    if not isinstance(model, DeployedModel):
        raise UserError(f"export takes a DeployedModel, not a {type(model).__name__}: give it DeployedModel(model)")
    _check_exportable(model.model)
    write = {
        "onnx": partial(_write_onnx, opset=opset or DEFAULT_OPSET),
        "openvino": _write_openvino,
        "torchscript": _write_torchscript,
        "exported": _write_exported,
    }
    images = torch.rand(_TRACED_SHAPE[0], model.in_channels, *_TRACED_SHAPE[1:])
    # Beside the target, so that a rename puts the checked file in place.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporters' own deprecations
        written = Path(folder) / path.name
        write[file_format](fold_norms(model), images, written)
        differences = check_exported(model, written, file_format)
        for file in sorted(written.parent.iterdir()):
            os.replace(file, path.parent / file.name)
    return differences


def require_back_end(file_format: str) -> None:
    """Raise `UserError` if the format is unknown or its back end is not installed."""
    if file_format not in FORMATS:
        raise UserError(f"unknown export format {file_format!r}; supported: {', '.join(FORMATS)}")
    missing = [name for name in _BACK_ENDS.get(file_format, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export to {file_format} needs {', '.join(missing)}: pip install 'resnest_det[export]'")


def check_path(path: Path, file_format: str) -> None:
    """Raise `UserError` if a file of this format cannot be written there."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"cannot export to {path}: " + ("it is a folder" if path.is_dir() else "its folder does not exist"))
    if file_format == "openvino" and path.suffix != ".xml":
        raise UserError(
            f"cannot export to {path}: the name of an OpenVINO model must end in .xml (its weights go into a .bin beside it)"
        )


def check_opset(opset: int | None, file_format: str) -> None:
    """Raises `UserError` for a version of ONNX's operators that is not written here, and for one where the format has none."""
    if opset is None:
        return
    if file_format != "onnx":
        raise UserError(f"opset {opset} is for onnx, the format is {file_format}")
    if opset not in OPSETS:
        raise UserError(f"opset {opset} is not supported; supported: {OPSETS[0]} to {OPSETS[-1]}")


def check_exported(model: DeployedModel, path: str | os.PathLike, file_format: str) -> dict[tuple[int, ...], float]:
    """Compare a file with `model`; returns and raises as `export_model`."""
    run = load_exported(path, file_format)
    scale = 255.0 if model.pixels else 1.0
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for size in ((1, 224, 224), (3, 75, 101)):
        shape = (size[0], model.in_channels, *size[1:])
        images = scale * torch.rand(shape, generator=generator)
        with torch.no_grad():
            expected = model(images)
        expected = (expected,) if isinstance(expected, Tensor) else expected
        difference = max(
            ((got - want).abs().max() / want.abs().max()).item() for got, want in zip(run(images), expected, strict=True)
        )
        if not difference <= TOLERANCE:
            raise UserError(
                f"the {file_format} file does not give the model's numbers: for input {shape} they differ by "
                f"{difference:.1e} (tolerance {TOLERANCE:.0e}); nothing was written"
            )
        differences[shape] = difference
    return differences


def load_exported(path: str | os.PathLike, file_format: str) -> Callable[[Tensor], list[Tensor]]:
    """A function that runs an exported file on the CPU in float32, from images (N, C, H, W) to a list of outputs."""
    require_back_end(file_format)
    path = str(path)
    if file_format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: [torch.from_numpy(output) for output in session.run(None, {INPUT_NAME: images.numpy()})]
    if file_format == "openvino":
        import openvino

        # By default OpenVINO computes in bfloat16 on processors that have it.
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: [torch.from_numpy(output) for output in compiled(images.numpy()).to_tuple()]
    module = torch.jit.load(path) if file_format == "torchscript" else torch.export.load(path).module()

    @torch.no_grad()
    def run(images: Tensor) -> list[Tensor]:
        outputs = module(images)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


def _trace_exported(model: DeployedModel, images: Tensor) -> torch.export.ExportedProgram:
    dynamic = dict.fromkeys(_DYNAMIC_AXES, torch.export.Dim.DYNAMIC)
    return torch.export.export(model, (images,), dynamic_shapes=(dynamic,))


def _write_exported(model: DeployedModel, images: Tensor, path: Path) -> None:
    torch.export.save(_trace_exported(model, images), str(path))


def _write_torchscript(model: DeployedModel, images: Tensor, path: Path) -> None:
    torch.jit.trace(model, images, check_trace=False).save(str(path))


def _write_onnx(model: DeployedModel, images: Tensor, path: Path, opset: int) -> None:
    # The newer exporter writes 18 and more, and does not convert all that it writes to less; the older one writes up to 20.
    newer = opset >= 18
    axes = {"dynamic_shapes": (_DYNAMIC_AXES,)}
    if not newer:
        axes = {"dynamic_axes": {INPUT_NAME: _DYNAMIC_AXES}}
        for name in model.output_names:
            sides = {2: f"{name}_height", 3: f"{name}_width"} if isinstance(model.model, FeatureExtractor) else {}
            axes["dynamic_axes"][name] = {0: "batch", **sides}
    torch.onnx.export(
        model,
        (images,),
        str(path),
        dynamo=newer,
        input_names=[INPUT_NAME],
        output_names=list(model.output_names),
        opset_version=opset,
        external_data=False,
        verbose=False,
        **axes,
    )


def _write_openvino(model: DeployedModel, images: Tensor, path: Path) -> None:
    import openvino

    converted = openvino.convert_model(
        model, example_input=images, input=[openvino.PartialShape([-1, model.in_channels, -1, -1])]
    )
    for port, name in ((converted.inputs[0], INPUT_NAME), *zip(converted.outputs, model.output_names, strict=True)):
        port.get_tensor().set_names({name})
    openvino.save_model(converted, str(path), compress_to_fp16=False)
