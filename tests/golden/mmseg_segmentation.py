"""MMSegmentation's semantic models with a ResNeSt, and the files that the tests compare ours with. In the folder of the checkout:

    python -m tests.golden.mmseg_segmentation CHECKOUT

CHECKOUT has the folder `mmseg` of MMSegmentation 1.2.2; MMCV of any version 2 and MMEngine are installed. Its configurations
`_base_/models/{fcn,pspnet,deeplabv3,deeplabv3plus}_r50-d8.py` are what `configs/resnest` begins from.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import torch

from tests.helpers.segmentation_cases import CLASSES, MMSEG_KINDS, SIZES, build_filled, mmseg_config, network_input, sampled

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "mmseg_segmentation.npz"
PARAMETERS = FOLDER / "mmseg_segmentation_parameters.json.gz"


def build(checkout: str, kind: str, depth: int):
    """Their model of a kind, in evaluation mode."""
    import mmcv

    mmcv.__version__ = "2.1.0"  # they refuse newer ones by the number alone
    sys.path.insert(0, checkout)
    from mmengine.config import Config
    from mmseg.models.backbones import ResNeSt
    from mmseg.models.backbones.resnest import Bottleneck
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    ResNeSt.arch_settings[14] = (Bottleneck, (1, 1, 1, 1))
    model = Config.fromfile(f"{checkout}/mmseg/.mim/configs/_base_/models/{kind}_r50-d8.py").model
    norm = dict(type="BN", requires_grad=True)
    stem = 64 if depth < 101 else 128
    model.pretrained = model.data_preprocessor = None
    model.backbone.update(type="ResNeSt", depth=depth, stem_channels=stem, radix=2, reduction_factor=4, avg_down_stride=True)
    for part in (model.backbone, model.decode_head, model.auxiliary_head):
        part.norm_cfg = norm
    model.decode_head.num_classes = model.auxiliary_head.num_classes = CLASSES
    return MODELS.build(model).eval()


def main(checkout: str) -> None:
    from resnest_det.weights.weights import weights_of

    found, listed = {}, {}
    for kind in MMSEG_KINDS:
        with torch.device("meta"):
            state = build(checkout, kind, 101).state_dict()
        listed[f"{kind}_resnest101"] = {name: list(value.shape) for name, value in state.items()}
        ours, theirs = build_filled(mmseg_config(kind, 14)).state_dict(), build(checkout, kind, 14)
        places = {name: torch.arange(value.numel()).view(value.shape) for name, value in theirs.state_dict().items()}
        weights = weights_of(places, "theirs")
        with torch.no_grad():
            # Each of their values is the one that the translation takes to the place where ours has it.
            for own, place in ({f"backbone.{name}": p for name, p in weights.backbone.items()} | weights.heads).items():
                origin = weights.origin[own.removeprefix("backbone.")]
                theirs.state_dict()[origin].view(-1)[place.flatten()] = ours[own].flatten()
            for size in SIZES:
                features = theirs.extract_feat(network_input(size)[None])
                for name, head in (("logits", theirs.decode_head), ("auxiliary", theirs.auxiliary_head)):
                    logits = torch.nn.functional.interpolate(head(features), size, mode="bilinear", align_corners=False)
                    found[f"{kind}/{size[0]}x{size[1]}/{name}"] = logits[0].numpy()
    largest = {f"{name}/largest": np.abs(values).max() for name, values in found.items()}
    np.savez_compressed(GOLDEN, **{name: sampled(values) for name, values in found.items()}, **largest)
    PARAMETERS.write_bytes(gzip.compress(json.dumps(listed, separators=(",", ":")).encode(), mtime=0))
    print({path.name: path.stat().st_size for path in (GOLDEN, PARAMETERS)})


if __name__ == "__main__":
    main(*sys.argv[1:])
