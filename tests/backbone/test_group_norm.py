"""Group norm inside split attention, where the hidden layer is one value a channel."""

import torch

from resnest_det.backbone.split_attention import SplitAttentionConv2d


def test_attention_follows_the_image_for_a_single_image_too():
    torch.manual_seed(0)
    layer = SplitAttentionConv2d(32, 32, norm="GN").train()
    descriptors = torch.randn(2, 32, 1, 1)
    one, other = (layer.attention(descriptor[None]) for descriptor in descriptors)
    assert (one - other).abs().max() > 0.05
    assert torch.allclose(torch.cat((one, other)), layer.attention(descriptors), atol=1e-6)
