"""Deformable split attention beside outputs of the authors' module for the same weights, see `make_deformable_golden.py`."""

import numpy as np
import pytest
import torch

from resnest_det.backbone.split_attention import Deformable, SplitAttentionConv2d
from tests.helpers.fill import fill
from tests.recipes.make_deformable_golden import CASES, CHANNELS, FILE, make_input


@pytest.mark.parametrize("case", CASES)
def test_same_outputs(case):
    modulated, radix, groups, deformable_groups = case
    module = SplitAttentionConv2d(CHANNELS, CHANNELS, groups=groups, radix=radix, deformable=Deformable(modulated)).eval()
    fill(module)
    expected = torch.from_numpy(np.load(FILE)["-".join(map(str, (int(modulated), radix, groups, deformable_groups)))])
    with torch.no_grad():
        actual = module(*make_input(modulated, deformable_groups))
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
