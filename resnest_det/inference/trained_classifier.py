"""A classifier that `train-classifier` has trained, put to use by its checkpoint alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from resnest_det.backbone.classifier import load_classifier
from resnest_det.backbone.image_classifier import ImageClassifier
from resnest_det.backbone.variants import find_variant
from resnest_det.configuration.classifier import load_classifier_text
from resnest_det.configuration.classifier_parts import build_classifier, build_evaluation_transform
from resnest_det.data.class_samples import LabelledImages
from resnest_det.errors import UserError
from resnest_det.weights.checkpoint_files import read_checkpoint
from resnest_det.weights.downloads import resolve_weights


class TrainedClassifier(NamedTuple):
    """What its classes are called, and a function from a Pillow image (RGB) to their probabilities (K,)."""

    classes: list[str]
    probabilities: Callable[[Image.Image], Tensor]


def trained_classifier(path: str, device: str = "cpu") -> TrainedClassifier | None:
    """The classifier of a checkpoint, with images cut as its run evaluated them; None if the file does not say what it is.

    Raises:
        UserError: it cannot be read, or what it says cannot be used.
    """
    local = resolve_weights(path)
    checkpoint = read_checkpoint(local)
    trained_on, text = checkpoint.get("trained_on"), checkpoint.get("config")
    classes = trained_on.get("classes") if isinstance(trained_on, dict) else None
    if classes is None or not isinstance(text, str):
        return None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"checkpoint {path}: the names of its classes are not a list of texts")
    cfg = load_classifier_text(text, f"configuration in checkpoint {path}")
    model = build_classifier(cfg, len(classes))
    load_classifier(model, find_variant(cfg.MODEL.NAME), local)
    network, transform = ImageClassifier(model.to(device)).eval(), build_evaluation_transform(cfg)

    @torch.inference_mode()
    def probabilities(image: Image.Image) -> Tensor:
        batch = LabelledImages(transform(image)[None], torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3), [""])
        return network(batch)[0].softmax(0).cpu()

    return TrainedClassifier(classes, probabilities)
