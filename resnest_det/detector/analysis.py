"""What a detector or segmentor costs, part by part, with the number of regions fixed."""

import torch
from torch import Tensor, nn

from resnest_det.backbone.analysis import Counts, backbone_parts, count_parts
from resnest_det.backbone.resnest import ResNeSt
from resnest_det.detector.image_model import ImageModel

PARTS = {
    "backbone": "fpn",
    "proposal_generator": "rpn",
    "roi_heads.box_head": "box head",
    "roi_heads.box_predictor": "box head",
    "roi_heads.mask_head": "mask head",
    "sem_seg_head": "semantic head",
}


class _OnFixedRegions(nn.Module):
    """A model whose second stage sees given regions: those it finds in an image of nothing would say nothing of its cost."""

    def __init__(self, model: ImageModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, proposals: Tensor, detections: Tensor) -> list[Tensor]:
        """Everything that the parts give; what is not returned would be left out of the trace."""
        features = self.model.backbone(images)
        outputs = list(features.values())
        if hasattr(self.model, "sem_seg_head"):
            outputs.append(self.model.sem_seg_head(features))
        if hasattr(self.model, "roi_heads"):
            rpn, heads = self.model.proposal_generator, self.model.roi_heads
            logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
            boxes = heads.detect_boxes([features[name] for name in heads.in_features], [proposals], [tuple(images.shape[-2:])])
            outputs += [*logits, *deltas, *boxes[0].values()]
            if heads.mask_head is not None:
                masks = {"boxes": detections, "classes": torch.zeros_like(detections[:, 0], dtype=torch.int64)}
                heads.add_masks(features, [masks])
                outputs.append(masks["mask_probabilities"])
        return outputs


def count_detector(model: ImageModel, size: tuple[int, int], num_proposals: int, num_detections: int) -> dict[str, Counts]:
    """Costs of stem and stages, fpn, rpn, box head (all stages of a cascade), mask head and semantic head for one image.

    Args:
        model: a detector or segmentor in evaluation mode.
        size: (height, width) of the image in pixels, multiples of the backbone's `size_divisibility`.
        num_proposals: regions that each stage of the box head sees.
        num_detections: regions that the mask head sees.

    Returns:
        Counts of the parts that the model has, by part.
    """
    height, width = size
    images = torch.zeros(1, len(model.pixel_mean), height, width, device=model.device)
    box = torch.tensor([[0.0, 0.0, width / 4, height / 4]], device=model.device)
    parts = backbone_parts(model)
    for name, part in PARTS.items():
        module = dict(model.named_modules()).get(name)
        if module is not None and not isinstance(module, ResNeSt):
            parts[name] = part
    return count_parts(
        _OnFixedRegions(model).eval(),
        (images, box.repeat(num_proposals, 1), box.repeat(num_detections, 1)),
        {f"model.{name}": part for name, part in parts.items()},
    )
