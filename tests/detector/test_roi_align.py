"""The gradient of pooled regions on a CPU, against torchvision's."""

import pytest
import torch
from torchvision.ops import roi_align

from resnest_det.detector.roi_align import AlignedRegions


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("output_size, scale", [(7, 0.25), (14, 0.125), (3, 1 / 64)])
def test_gradient_equals_torchvision(sampling_ratio, output_size, scale):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(3, 5, 17, 23, generator=generator)
    height, width = 17 / scale, 23 / scale
    centers = torch.rand(40, 2, generator=generator) * torch.tensor([width, height])
    halves = torch.rand(40, 2, generator=generator) ** 2 * torch.tensor([width, height]) * 0.6  # many reach beyond the map
    halves[0], halves[1, 0] = 0.0, 0.0  # a point and a line
    regions = torch.cat((torch.randint(0, 3, (40, 1), generator=generator), centers - halves, centers + halves), dim=1)
    regions[2, 1:] = torch.tensor([0.0, 0.0, width, height])
    regions[3, 1:] = torch.tensor([2 * width, height, 3 * width, 2 * height])  # outside
    regions[4, 1:] = torch.tensor([0.5 * width, 0.0, 0.5 * width + 1, height])  # narrow
    outputs, gradients = [], []
    for crop in (
        lambda x: roi_align(x, regions, output_size, scale, sampling_ratio, aligned=True),
        lambda x: AlignedRegions.apply(x, regions, output_size, scale, sampling_ratio),
    ):
        x = feature.clone().requires_grad_()
        outputs.append(crop(x))
        (outputs[-1] * torch.randn(outputs[-1].shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*outputs)
    assert gradients[0].abs().max() > 1
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


def test_a_map_without_regions_has_a_gradient_of_zeros():
    feature = torch.randn(1, 2, 4, 5, requires_grad=True)
    AlignedRegions.apply(feature, torch.zeros(0, 5), 7, 0.25, 0).sum().backward()
    assert feature.grad.shape == feature.shape and not feature.grad.any()
