"""Running an exported detector: a file of any format as a function from samples to results, like the model it was made of."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from resnest_det.detector.postprocess import CompactMasks
from resnest_det.errors import UserError
from resnest_det.inference.export import require_back_end

SETTINGS = "resnest_det"  # under this name the settings are in the file
INPUT_NAMES = ("images", "output_size")
Run = Callable[[Tensor, Tensor], Sequence[Tensor]]

_FORMATS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "exported", ".pt": "torchscript"}


def exported_format(path: str | os.PathLike) -> str | None:
    """The format of an exported file by its name; None for other files, such as a checkpoint. A `.pt` may be either."""
    file_format = _FORMATS.get(Path(path).suffix.lower())
    if file_format == "torchscript" and not _is_torchscript(path):
        return None
    return file_format


def _is_torchscript(path: str | os.PathLike) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


class ExportedDetector:
    """A detector that `export_detector` wrote, on the CPU; to be called like the model itself.

    Args:
        path: the file; of OpenVINO the `.xml`, whose `.bin` lies beside it.
        threads: that compute, at most; None for torch's own number.

    Attributes:
        settings: what travels in the file; see `export_detector`.
        format, path: of the file.
        compact_masks: give `masks` as `CompactMasks`, not as pixels.

    Raises:
        UserError: the file cannot be read, is no detector of this package, or its back end is not installed.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None):
        self.path = str(path)
        file_format = exported_format(path)
        if file_format is None:
            raise UserError(f"{path} is no exported model; supported: {', '.join(_FORMATS)} files of `resnest-det export`")
        self.format = file_format
        self.compact_masks = False
        require_back_end(file_format)
        if not os.path.isfile(path):
            raise UserError(f"exported model {path} does not exist")
        try:
            text, self._run = _LOADERS[file_format](self.path, threads or torch.get_num_threads())
        # Each back end has errors of its own for a damaged file.
        except Exception as error:
            raise UserError(f"exported model {path} cannot be read: {error}") from error
        try:
            self.settings = json.loads(text)
            self.output_names = tuple(self.settings["outputs"])
        except (TypeError, ValueError, KeyError):
            raise UserError(f"{path} is no detector that `resnest-det export` wrote: it has no settings") from None

    def __call__(self, batch: Sequence[Mapping]) -> list[dict]:
        """Results of samples as the model itself gives them; see `GeneralizedRCNN`, `PanopticFPN` and `SemanticSegmentor`.

        `sem_seg` is 1 for the class of a pixel and 0 for others, (C, height, width) uint8.
        """
        results: list[dict] = [{} for _ in batch]
        # A file takes images of one size at a time: padded to a common size, they would give other numbers than alone.
        groups: dict[tuple, list[int]] = {}
        for i, sample in enumerate(batch):
            shape = tuple(sample["image"].shape)
            size = (sample.get("height", shape[1]), sample.get("width", shape[2]))
            groups.setdefault((shape, size), []).append(i)
        for (shape, size), members in groups.items():
            self._check_image(shape, batch[members[0]])
            images = torch.stack([batch[i]["image"] for i in members]).to(torch.uint8)
            outputs = dict(zip(self.output_names, self._run(images, torch.tensor(size)), strict=True))
            for position, i in enumerate(members):
                results[i] = self._of_image(outputs, position, size)
        return results

    def _check_image(self, size: tuple[int, ...], sample: Mapping) -> None:
        channels = self.settings["channels"]
        if size[0] != channels:
            raise UserError(f"{sample.get('file_name', 'image')}: {size[0]} channels, but {self.path} takes {channels}")

    def _of_image(self, outputs: Mapping[str, Tensor], position: int, size: tuple[int, int]) -> dict:
        result: dict = {}
        if "boxes" in outputs:
            own = outputs["image"] == position
            result |= {name: outputs[name][own] for name in ("boxes", "scores", "classes")}
            result["classes"] = result["classes"].long()
            if "masks" in outputs:
                masks = CompactMasks(outputs["masks"][own], result["boxes"], size)
                result["masks"] = masks if self.compact_masks else masks.pixels()
        if "labels" in outputs:
            labels = outputs["labels"][position]
            classes = range(self.settings["semantic_classes"])
            result["sem_seg"] = torch.stack([(labels == label).to(torch.uint8) for label in classes])
        if "panoptic" in outputs:
            stuff = (outputs["stuff_segments"][position].tolist(), outputs["stuff_areas"][position].tolist())
            segments = segments_info(result, outputs["segments"][own].tolist(), *stuff)
            result["panoptic_seg"] = (outputs["panoptic"][position].to(torch.int32), segments)
        return result


def segments_info(result: dict, of_detections: list[int], of_stuff: list[int], areas: list[int]) -> list[dict]:
    """The segments of `fuse` for one image.

    Args:
        result: its `scores` and `classes`.
        of_detections: segment id of each detection, 0 for one that is not shown.
        of_stuff, areas: segment id, 0 for none, and pixels of each class of pixels.
    """
    scores, classes = result["scores"].tolist(), result["classes"].tolist()
    things = [
        {"id": i, "isthing": True, "score": scores[at], "category_id": classes[at], "instance_id": at}
        for at, i in enumerate(of_detections)
        if i
    ]
    stuff = [
        {"id": i, "isthing": False, "category_id": label, "area": area}
        for label, (i, area) in enumerate(zip(of_stuff, areas))
        if i
    ]
    return sorted(things + stuff, key=lambda segment: segment["id"])


def _load_onnx(path: str, threads: int) -> tuple[str | None, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor, output_size: Tensor) -> list[Tensor]:
        outputs = session.run(None, dict(zip(INPUT_NAMES, (images.numpy(), output_size.numpy()))))
        return [torch.from_numpy(output) for output in outputs]

    return session.get_modelmeta().custom_metadata_map.get(SETTINGS), run


def _load_openvino(path: str, threads: int) -> tuple[str | None, Run]:
    import openvino

    model = openvino.Core().read_model(path)
    text = model.get_rt_info([SETTINGS, "settings"]).astype(str) if model.has_rt_info([SETTINGS, "settings"]) else None
    precision = json.loads(text).get("precision") if text else None
    # By default OpenVINO computes in bfloat16 on processors that have it.
    hints = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32", "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()

    def run(images: Tensor, output_size: Tensor) -> list[Tensor]:
        outputs = request.infer([images.numpy(), output_size.numpy()])
        # Copied: the next image is written into the same memory.
        return [torch.from_numpy(output.copy()) for output in outputs.to_tuple()]

    return text, run


def _load_torchscript(path: str, threads: int) -> tuple[str | None, Run]:
    extra = {f"{SETTINGS}.json": ""}
    module = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    return extra[f"{SETTINGS}.json"] or None, torch.inference_mode()(lambda *inputs: module(*inputs))


def _load_exported(path: str, threads: int) -> tuple[str | None, Run]:
    extra = {f"{SETTINGS}.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    return extra[f"{SETTINGS}.json"] or None, torch.no_grad()(lambda *inputs: module(*inputs))


_LOADERS = {"onnx": _load_onnx, "openvino": _load_openvino, "torchscript": _load_torchscript, "exported": _load_exported}
