"""Detectron2's own models of the golden cases: the reference of the golden files and of the live tests."""

import numpy as np
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects import deeplab  # noqa: F401 - registers its heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from resnest_det.integrations.detectron2 import add_resnest_config
from tests.helpers.cases import make_samples, overrides
from tests.helpers.fill import fill
from tests.helpers.observe import observe


def build_detectron2(case: str) -> nn.Module:
    """Detectron2's model of `case`, filled; only a ResNeSt backbone is this project's."""
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_list(overrides(case))
    model = build_model(cfg)
    fill(model)
    return model


def to_detectron2(sample: dict) -> dict:
    """A sample as Detectron2's models take it."""
    target = sample["target"]
    instances = Instances(tuple(sample["image"].shape[-2:]))
    instances.gt_boxes = Boxes(target["boxes"].clone())
    instances.gt_classes = target["labels"].clone()
    if "masks" in target:
        instances.gt_masks = PolygonMasks(target["masks"]) if isinstance(target["masks"], list) else BitMasks(target["masks"])
    result = {"image": sample["image"], "height": sample["height"], "width": sample["width"], "instances": instances}
    return result | ({"sem_seg": target["sem_seg"].long()} if "sem_seg" in target else {})


def from_detectron2(output: dict) -> dict:
    """Predictions as the built-in detector gives them."""
    prediction = {name: output[name] for name in ("sem_seg", "panoptic_seg") if name in output}
    if "instances" in output:
        instances = output["instances"]
        prediction |= {"boxes": instances.pred_boxes.tensor, "scores": instances.scores, "classes": instances.pred_classes}
        prediction |= {"masks": instances.pred_masks} if instances.has("pred_masks") else {}
    return prediction


def observe_detectron2(case: str) -> dict[str, np.ndarray]:
    """Detectron2's answers to `case`."""
    model = build_detectron2(case)
    samples = [to_detectron2(sample) for sample in make_samples(case)]

    normalized = [(sample["image"] - model.pixel_mean) / model.pixel_std for sample in samples]
    images = ImageList.from_tensors(normalized, model.backbone.size_divisibility)

    def propose(features):
        proposals, _ = model.proposal_generator(images, features)
        return [(image.proposal_boxes.tensor, image.objectness_logits) for image in proposals]

    with EventStorage():
        return observe(
            model,
            features=lambda: model.backbone(images.tensor),
            propose=propose if hasattr(model, "proposal_generator") else None,
            predict=lambda: [from_detectron2(output) for output in model(samples)],
            losses=lambda: model(samples),
        )
