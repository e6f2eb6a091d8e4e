"""The same network built from timm's parts, and random weights under which every layer matters."""

import math

import torch
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import ResNet
from torch import nn

from resnest_det.backbone.loading import load_into
from resnest_det.backbone.variants import VARIANTS
from resnest_det.weights.weights import weights_of


def timm_model(name: str, output_stride: int = 32, num_classes: int = 1000, in_chans: int = 3) -> ResNet:
    """timm's network with the settings of a variant, randomised; timm itself has names for 8 of the 13."""
    variant = VARIANTS[name]
    with torch.device("meta"):
        model = ResNet(
            block=ResNestBottleneck,
            layers=list(variant.blocks),
            stem_type="deep",
            stem_width=variant.stem_width,
            avg_down=True,
            base_width=variant.bottleneck_width,
            cardinality=variant.groups,
            output_stride=output_stride,
            num_classes=num_classes,
            in_chans=in_chans,
            block_args=dict(radix=variant.radix, avd=True, avd_first=variant.avd_first),
        )
    return randomise(model.to_empty(device="cpu"))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations near 1 in a network of any depth; norms with statistics and scales all different."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.uniform_(low, high, generator=generator)

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = math.sqrt(6 / module.weight[0].numel())
            uniform(module.weight, -bound, bound)
        if isinstance(module, nn.BatchNorm2d):
            # What a block adds to the shortcut is small, or a hundred blocks add up to thousands.
            low = 0.02 if name.endswith("bn3") else 0.3 if name.endswith("downsample.2") else 0.7
            uniform(module.weight, low, 1.9 * low)
            uniform(module.running_mean, -0.2, 0.2)
            uniform(module.running_var, 0.6, 1.4)
            module.num_batches_tracked.zero_()
        if getattr(module, "bias", None) is not None:
            uniform(module.bias, -0.2, 0.2)
    return model


def with_weights_of(model: nn.Module, reference: nn.Module) -> nn.Module:
    """`model`, made on the meta device, with the weights of timm's `reference`."""
    model = model.to_empty(device="cpu")
    load_into(model, weights_of(reference.state_dict(), "timm"))
    return model


def images(count: int, size: int = 64, channels: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
