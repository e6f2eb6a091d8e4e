"""Test-time augmentation beside Detectron2's GeneralizedRCNNWithTTA, in one process."""

import pytest
import torch

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model  # noqa: E402

from resnest_det.configuration.defaults import default_config  # noqa: E402
from resnest_det.configuration.model import build_test_time_augmentation  # noqa: E402
from resnest_det.integrations.detectron2 import add_resnest_config  # noqa: E402
from tests.helpers.cases import make_samples, overrides  # noqa: E402
from tests.helpers.detectron2_reference import from_detectron2, to_detectron2  # noqa: E402
from tests.helpers.fill import fill  # noqa: E402
from tests.helpers.observe import build_builtin  # noqa: E402

# The last is limited by MAX_SIZE; five views (with mirrors: ten) are no multiple of the images in a batch.
AUGMENTATION = ["TEST.AUG.MIN_SIZES", (64, 80, 97, 110, 150), "TEST.AUG.MAX_SIZE", 170]


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("case", ["faster_frozenbn", "mask_bn", "cascade_mask_gn_ciou"])
def test_same_boxes_and_masks(case, flip):
    values = [*overrides(case), *AUGMENTATION, "TEST.AUG.FLIP", flip]
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_list(values)
    theirs = build_model(cfg).eval()
    fill(theirs)
    with torch.no_grad():
        expected = GeneralizedRCNNWithTTA(cfg, theirs)([to_detectron2(sample) for sample in make_samples(case)])

    cfg = default_config()
    cfg.merge_from_list(values)
    with torch.no_grad():
        actual = build_test_time_augmentation(cfg, build_builtin(case).eval())(make_samples(case))

    for ours, theirs in zip(actual, map(from_detectron2, expected)):
        assert len(ours["boxes"]) == len(theirs["boxes"]) > 5
        assert torch.equal(ours["classes"], theirs["classes"])
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=1e-4, atol=2e-3)
        assert ours.keys() == theirs.keys()
        if "masks" in theirs:
            assert theirs["masks"].any() and (ours["masks"] != theirs["masks"]).float().mean() < 1e-4
