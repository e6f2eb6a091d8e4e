"""The fusion beside Detectron2's own, on many random maps."""

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs  # noqa: E402
from detectron2.structures import Instances  # noqa: E402

from resnest_det.detector.panoptic import FusionLimits, fuse  # noqa: E402


@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("score", [0.0, 0.5])
@pytest.mark.parametrize("stuff_area", [1, 30, 120])
def test_same_maps_and_segments(overlap, score, stuff_area):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        count = int(torch.randint(0, 12, (), generator=generator))
        coarse = torch.rand(count, 5, 6, generator=generator) < 0.4
        masks = coarse.repeat_interleave(5, 1).repeat_interleave(5, 2)
        scores, classes = torch.rand(count, generator=generator), torch.randint(0, 5, (count,), generator=generator)
        labels = torch.randint(0, 5, (5, 6), generator=generator).repeat_interleave(5, 0).repeat_interleave(5, 1)
        instances = Instances((25, 30), scores=scores, pred_classes=classes, pred_masks=masks)
        expected_map, expected = combine_semantic_and_instance_outputs(instances, labels, overlap, stuff_area, score)
        found = {"scores": scores, "classes": classes, "masks": masks}
        actual_map, actual = fuse(found, labels, FusionLimits(overlap, stuff_area, score))
        assert torch.equal(actual_map, expected_map) and actual_map.dtype == expected_map.dtype
        assert actual == expected
