"""Writes `deformable_split_attention.npz`: outputs of the authors' deformable split attention.

    PYTHONPATH=AUTHORS_REPOSITORY python -m tests.recipes.make_deformable_golden

in the folder of this project; needs Detectron2 and AUTHORS_REPOSITORY, a checkout of github.com/zhanghang1989/ResNeSt. Detectron2
has no deformable convolution on CPUs: under the authors' module lies torchvision's here, so that what is compared is how they
split offsets and modulation, group and attend.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.ops import deform_conv2d

FILE = Path(__file__).with_name("deformable_split_attention.npz")
# (modulated, radix, groups, deformable groups)
CASES = ((True, 2, 1, 2), (False, 2, 1, 1), (True, 4, 2, 1))
CHANNELS = 8


def make_input(modulated: bool, deformable_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps, and offsets of up to two pixels, some of which point beyond the border."""
    random = np.random.RandomState(7)
    values = (3 if modulated else 2) * 9 * deformable_groups
    draw = [random.uniform(-2, 2, (2, count, 9, 11)).astype(np.float32) for count in (CHANNELS, values)]
    return torch.from_numpy(draw[0]), torch.from_numpy(draw[1])


def main() -> None:
    from detectron2.layers import deform_conv
    from resnest.d2.splat import SplAtConv2d_dcn

    from tests.helpers.fill import fill

    deform_conv.modulated_deform_conv = lambda x, offset, mask, weight, bias, stride, padding, dilation, *groups: deform_conv2d(
        x, offset, weight, bias, stride, padding, dilation, mask
    )
    deform_conv.deform_conv = lambda x, offset, weight, stride, padding, dilation, *groups: deform_conv2d(
        x, offset, weight, None, stride, padding, dilation
    )
    outputs = {}
    for modulated, radix, groups, deformable_groups in CASES:
        operator = deform_conv.ModulatedDeformConv if modulated else deform_conv.DeformConv
        module = SplAtConv2d_dcn(
            CHANNELS,
            CHANNELS,
            3,
            1,
            1,
            groups=groups,
            bias=False,
            radix=radix,
            norm="BN",
            deform_conv_op=operator,
            deformable_groups=deformable_groups,
            deform_modulated=modulated,
        ).eval()
        fill(module)
        with torch.no_grad():
            output = module(*make_input(modulated, deformable_groups))
        outputs["-".join(map(str, (int(modulated), radix, groups, deformable_groups)))] = output.numpy()
        print({name: tuple(value.shape) for name, value in module.state_dict().items()})
    np.savez_compressed(FILE, **outputs)


if __name__ == "__main__":
    main()
