"""A classifier with what is around it in training and evaluation: normalising, mixing of images, and the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from resnest_det.backbone.classifier import Classifier
from resnest_det.data.class_samples import LabelledImages
from resnest_det.errors import ArgumentError


class ImageClassifier(nn.Module):
    """Maps a batch to its loss in training, and to logits otherwise.

    The loss is the cross entropy with labels that mixing (mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899; one of them at
    random where both are given) and smoothing (arXiv:1512.00567, section 7) have made soft.

    Args:
        classifier: shared, not copied; its `pretrained_cfg` has the mean and deviation of its input.
        mixup, cutmix: alpha of the Beta distribution of the share of the other image; 0 for none. They mix the images of one
            process, each with the one before it.
        label_smoothing: share of the label that all classes get alike.
        channels_last: the layout of images in memory.
        compiled: run the classifier through `torch.compile`.

    Raises:
        ArgumentError: a value that cannot be used.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        compiled: bool = False,
    ):
        super().__init__()
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if not value >= 0:
                raise ArgumentError(name, f"is {value:g}; it must not be negative")
        if not 0 <= label_smoothing < 1:
            raise ArgumentError("label_smoothing", f"is {label_smoothing:g}; it must be from 0 to below 1")
        self.classifier = classifier
        self.label_smoothing = label_smoothing
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        classes = classifier.num_classes
        mixes = [kind(alpha=alpha, num_classes=classes) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha]
        self.mixing = v2.RandomChoice(mixes) if len(mixes) > 1 else mixes[0] if mixes else None
        self.run = torch.compile(classifier) if compiled else classifier
        for name in ("mean", "std"):
            value = 255 * torch.tensor(classifier.pretrained_cfg[name])
            self.register_buffer(name, value[:, None, None].to(classifier.stem.conv1_1.weight.device), persistent=False)

    def forward(self, batch: LabelledImages) -> dict[str, Tensor] | Tensor:
        """{"loss_cls": ()} in training, else logits (N, num_classes)."""
        images = self.normalised(batch)
        if not self.training:
            return self.run(images)
        labels = batch.labels.to(images.device, non_blocking=True)
        if self.mixing is not None:
            images, labels = self.mixing(images, labels)
        logits = self.run(images)
        return {"loss_cls": F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)}

    def normalised(self, batch: LabelledImages) -> Tensor:
        """The images (N, 3, S, S) float32, lit and normalised, on the classifier's device."""
        device = self.mean.device
        images = batch.images.to(device, non_blocking=True).float()
        images = images + 255 * batch.lighting.to(device, non_blocking=True)[:, :, None, None]
        return ((images - self.mean) / self.std).contiguous(memory_format=self.memory_format)
