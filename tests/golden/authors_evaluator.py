"""Label maps that the authors' own evaluator (MultiEvalModule) makes of images. In the folder of the checkout:

    python -m tests.golden.authors_evaluator CHECKOUT

writes the file that the tests compare ours with; CHECKOUT as in tests/golden/authors_segmentation.py.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch

from tests.golden.authors_segmentation import build, import_models
from tests.helpers.segmentation_cases import CLASSES, EVALUATED, build_filled, evaluated_config, evaluated_image

GOLDEN = Path(__file__).parent / "authors_evaluator.npz"


def main(checkout: str) -> None:
    from resnest_det.weights.weights import weights_of

    # It wants a GPU for its sums and nothing else.
    torch.Tensor.cuda = lambda tensor, *_: tensor
    torch.cuda.device_of = lambda _: contextlib.nullcontext()
    models = import_models(checkout)
    theirs = build(models, "deeplab", 14, CLASSES)
    ours = build_filled(evaluated_config()).state_dict()
    weights = weights_of(theirs.state_dict(), "theirs")
    for name, value in ({f"backbone.{name}": value for name, value in weights.backbone.items()} | weights.heads).items():
        value.data.copy_(ours[name])
    theirs.base_size, theirs.crop_size = EVALUATED.long_side, EVALUATED.window[0]
    evaluator = models.base.MultiEvalModule(theirs, CLASSES, scales=list(EVALUATED.scales), flip=EVALUATED.flip)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (theirs.mean, theirs.std))
    found = {}
    with torch.no_grad():
        for name in ("wide", "high", "small"):
            image = (evaluated_image(name) / 255 - mean) / std
            scores = evaluator.forward(image[None])[0]
            found[name] = scores.argmax(dim=0).to(torch.uint8).numpy()
            two = scores.topk(2, dim=0).values
            print(name, np.bincount(found[name].ravel()), scores.max().item(), (two[0] / two[1]).quantile(0.001).item())
    np.savez_compressed(GOLDEN, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
