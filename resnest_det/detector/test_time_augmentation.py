"""Test-time augmentation: objects of one image found at several sizes and mirrored, and merged.

Everything is done as Detectron2's GeneralizedRCNNWithTTA does it, so that the same model has the same figures there and here.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from resnest_det.data.transforms import Flip, Resize, Transform, short_side_size, transform_image
from resnest_det.detector.postprocess import rescale_detections
from resnest_det.detector.rcnn import GeneralizedRCNN

# Images of one batch are padded to one size, and split attention averages over the padding too: another number of images gives
# other scores. This is Detectron2's.
IMAGES_PER_BATCH = 3


class GeneralizedRCNNWithTTA(nn.Module):
    """A detector that looks at each image several times; in evaluation mode to be called like the detector itself.

    Boxes of all views go through the box head's non-maximum suppression together. The mask of each box that is left is the mean
    of the probabilities that all views give for it.

    Args:
        model: whose boxes and masks are merged. What else it predicts, labels of pixels for instance, is left out.
        short_sides: a view for each of these lengths in pixels.
        max_side: no view's longer side exceeds this.
        flip: whether to look at each size mirrored left to right too.

    Views are made of the sample's `image`, (C, H, W) uint8, which the test loader has resized already.
    """

    def __init__(self, model: GeneralizedRCNN, *, short_sides: Sequence[int], max_side: int, flip: bool):
        super().__init__()
        self.model = model
        self.short_sides = tuple(short_sides)
        self.max_side = max_side
        self.flip = flip

    def forward(self, batch: Sequence[dict]) -> list[dict[str, Tensor]]:
        """`boxes`, `scores`, `classes` and, with a mask head, `masks` of each image, as from `GeneralizedRCNN`."""
        return [self._detect(sample) for sample in batch]

    def _detect(self, sample: dict) -> dict[str, Tensor]:
        size = (sample["height"], sample["width"])
        views = self._views(sample["image"])
        found = [
            (self._moved(detection["boxes"], size, view, to_view=False), detection["scores"], detection["classes"])
            for chunk in _chunks(views)
            for view, detection in zip(chunk, self._boxes(chunk))
        ]
        boxes, scores, classes = (torch.cat(values) for values in zip(*found))
        boxes, images = clip_boxes_to_image(boxes, size), torch.zeros_like(classes)
        (detections,) = self.model.roi_heads.final_predictor.suppress(boxes, scores, classes, images, 1)
        if self.model.roi_heads.mask_head is not None:
            detections["mask_probabilities"] = self._masks(detections, size, views)
        return rescale_detections([detections], [size], [size])[0]

    def _views(self, image: Tensor) -> list[dict]:
        """Samples with `image` and `mirrored`."""
        pixels = image.permute(1, 2, 0).cpu().numpy()
        height, width = pixels.shape[:2]
        views = []
        for short_side in self.short_sides:
            resize = Resize((height, width), short_side_size(height, width, short_side, self.max_side))
            for mirrored in (False, True) if self.flip else (False,):
                transforms: list[Transform] = [resize, Flip(resize.new_size, horizontal=True)] if mirrored else [resize]
                view = np.ascontiguousarray(transform_image(pixels, transforms).transpose(2, 0, 1))
                views.append({"image": torch.from_numpy(view), "mirrored": mirrored})
        return views

    def _boxes(self, views: list[dict]) -> list[dict[str, Tensor]]:
        """`boxes` in the pixels of each view, `scores` and `classes`."""
        images, sizes = self.model.preprocess(views)
        features, heads = self.model.backbone(images), self.model.roi_heads
        proposals, _ = self.model.proposal_generator(features, sizes)
        maps = [features[name] for name in heads.in_features]
        return heads.detect_boxes(maps, [image.boxes for image in proposals], sizes)

    def _masks(self, detections: dict[str, Tensor], size: tuple[int, int], views: list[dict]) -> Tensor:
        """(D, M, M) mean over the views of the probabilities in the boxes of `detections`, which are in the image's pixels."""
        total = 0
        for chunk in _chunks(views):
            # Computed a second time rather than kept: the maps of all views together would not fit into memory.
            features = self.model.backbone(self.model.preprocess(chunk)[0])
            moved = [detections | {"boxes": self._moved(detections["boxes"], size, view, to_view=True)} for view in chunk]
            self.model.roi_heads.add_masks(features, moved)
            for view, detection in zip(chunk, moved):
                masks = detection["mask_probabilities"]
                total = total + (masks.flip(-1) if view["mirrored"] else masks)
        return total / len(views)

    @staticmethod
    def _moved(boxes: Tensor, size: tuple[int, int], view: dict, *, to_view: bool) -> Tensor:
        """(N, 4) boxes from the image, of `size` (height, width), to a view of it, or back."""
        height, width = view["image"].shape[-2:]
        scale = boxes.new_tensor([width / size[1], height / size[0]]).repeat(2)
        boxes = boxes * scale if to_view else boxes
        if view["mirrored"]:
            x0, y0, x1, y1 = boxes.unbind(1)
            boxes = torch.stack((width - x1, y0, width - x0, y1), dim=1)
        return boxes if to_view else boxes / scale


def _chunks(views: list[dict]) -> list[list[dict]]:
    return [views[start : start + IMAGES_PER_BATCH] for start in range(0, len(views), IMAGES_PER_BATCH)]
