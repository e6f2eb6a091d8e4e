"""What finds the objects: a model of a checkpoint, a run's folder, a configuration or a recipe, ready to be used."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from resnest_det.backbone.loading import load_into
from resnest_det.configuration.model import build_model
from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.reading import find_config_file, load_config
from resnest_det.configuration.standalone import CONFIG_NAME, configuration_of, run_folder
from resnest_det.configuration.tables import tasks_of
from resnest_det.data.benchmarks import benchmark_classes
from resnest_det.data.coco_classes import coco_classes
from resnest_det.engine.checkpoint import BEST_CHECKPOINT, newest_checkpoint
from resnest_det.errors import UserError, shown
from resnest_det.inference.classes import Classes, classes_of
from resnest_det.inference.exported import ExportedDetector, exported_format
from resnest_det.inference.prepared import prepare_for_inference
from resnest_det.model_zoo import trained_weights
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.downloads import resolve_weights
from resnest_det.weights.weights import weights_in

_CONFIG_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Backend:
    """Something that finds objects or labels pixels, and what it expects and gives.

    Attributes:
        detect: of samples, see `resnest_det.detector.rcnn.GeneralizedRCNN`, as many results, each a dict with any of `boxes`,
            `scores`, `classes`, `masks` (`CompactMasks`, or (D, height, width) bool); `panoptic_seg`; and `sem_seg` (C, height,
            width) or its classes, `labels` (height, width). Tensors on any device.
        classes: what its classes are called.
        image_format: order of an image's channels, "RGB", "BGR" or "L".
        short_side, max_side: to which images are resized; 0 leaves them as they are.
        device: where it computes.
        source: the file it came from.
        nms_threshold: the overlap at which two objects of a class are one.
    """

    detect: Callable[[Sequence[dict]], list[dict]]
    classes: Classes
    image_format: str
    short_side: int
    max_side: int
    device: torch.device
    source: str
    nms_threshold: float = 0.5


def open_backend(model: str | os.PathLike, weights: str | os.PathLike | None = None, device: str = "auto") -> Backend:
    """Whatever can be used, by its name.

    Args:
        model: a checkpoint that training here wrote, a run's folder or its `config.yaml`, another configuration, the name of a
            recipe, whose published detector is taken, or a file that `resnest-det export` wrote.
        weights: a checkpoint in the place of that.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: a file cannot be found, read or used; the message names it.
    """
    exported = weights if weights is not None else model
    if exported_format(exported):
        return _exported(os.fspath(exported), str(device))
    cfg, path, checkpoint, names = _configured(os.fspath(model), None if weights is None else os.fspath(weights))
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", str(device)):
        raise UserError(f"device {shown(device)} is not supported; supported: 'auto', 'cpu', 'cuda', 'cuda:N'")
    # Whatever it was where the model was trained.
    network = build_model(with_values(cfg, {"MODEL.DEVICE": str(device)}))
    report = load_into(network, weights_in(checkpoint, path))
    report.require_whole("finding objects needs a checkpoint of a trained detector")
    network.eval()
    if cfg.TEST.FOLD_NORMS:
        network = prepare_for_inference(network, cfg.TEST.PRECISION, cfg.TEST.COMPILE)
    network.compact_masks = True
    classes = classes_of(cfg, checkpoint.get("trained_on") or names, f"checkpoint {path}")
    return _backend(cfg, network, classes, network.device, str(path))


def _exported(path: str, device: str) -> Backend:
    """A file that `resnest-det export` wrote, which says its configuration and classes, too."""
    if device not in ("auto", "cpu"):
        raise UserError(f"device {shown(device)}: {path} is an exported file, which is run on the CPU; supported: 'auto', 'cpu'")
    detector = ExportedDetector(path)
    detector.compact_masks = True
    cfg = configuration_of(detector.settings, path)
    classes = classes_of(cfg, detector.settings.get("trained_on") or None, path)
    return _backend(cfg, detector, classes, torch.device("cpu"), path)


def _backend(cfg: CfgNode, detect: Callable, classes: Classes, device: torch.device, source: str) -> Backend:
    return Backend(
        detect=detect,
        classes=classes,
        image_format=cfg.INPUT.FORMAT,
        short_side=cfg.INPUT.MIN_SIZE_TEST,
        max_side=cfg.INPUT.MAX_SIZE_TEST,
        device=device,
        source=source,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST if tasks_of(cfg).objects else 0.5,
    )


def _configured(model: str, weights: str | None) -> tuple[CfgNode, str, dict, dict | None]:
    """The configuration, the checkpoint's path and content, and what its classes are called if it does not say."""
    names = None
    if os.path.isdir(model):
        model = checkpoint_in(model)
    if model.lower().endswith(_CONFIG_SUFFIXES) and os.path.isfile(model):
        cfg = load_config(model)
        if weights is None and (folder := run_folder(model)):
            weights = checkpoint_in(folder)
        weights = weights or cfg.MODEL.WEIGHTS
        if not weights:
            raise UserError(f"{model}: MODEL.WEIGHTS is empty: give a checkpoint, too")
    elif "://" in model or os.path.exists(model):
        path = resolve_weights(model)
        checkpoint = read_checkpoint(path)
        cfg = configuration_of(checkpoint, model)
        if weights is None:
            return cfg, path, checkpoint, names
    else:
        cfg = load_config(_recipe(model))
        if weights is None:
            weights = trained_weights(model)
            names = coco_classes() if tasks_of(cfg).objects else benchmark_classes(cfg.DATASETS.TEST[0])
    path = resolve_weights(weights)
    return cfg, path, read_checkpoint(path), names


def _recipe(name: str) -> str:
    try:
        return str(find_config_file(name))
    except UserError as error:
        if "/" in name or Path(name).suffix:
            raise UserError(f"{name}: there is no such file or folder, and no recipe of that name") from None
        raise UserError(f"{name} is no checkpoint, run folder or configuration here, and no recipe: {error}") from None


def checkpoint_in(folder: str) -> str:
    """The best checkpoint of a run where it kept one, else the newest.

    Raises:
        UserError: there is none.
    """
    best = Path(folder, BEST_CHECKPOINT)
    path = str(best) if best.is_file() else newest_checkpoint(folder)
    if not path:
        raise UserError(
            f"{folder} is not the folder of a run with a checkpoint: it has no last_checkpoint"
            + (f", only a {CONFIG_NAME}: the run has not saved one yet" if Path(folder, CONFIG_NAME).is_file() else "")
        )
    return path
