"""Name what is in images: the five most probable classes of each.

    python tools/classify.py dog.jpg cat.png --model resnest50
    python tools/classify.py leaf.jpg --checkpoint run/model_best.pth
    python tools/classify.py leaf.jpg --model resnest26 --checkpoint leaves.pth --num-classes 12 --names leaves.txt

The names are ImageNet's, or those that the checkpoint of a run of `train-classifier` has, which says the rest as well; for other
fine-tuned models they are in a text file, one a line in the order of its outputs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision.models import ResNet50_Weights

from resnest_det import create_model, transforms_for
from resnest_det.backbone.classifier import IMAGENET_CLASSES
from resnest_det.data.image import read_image
from resnest_det.errors import UserError, printable
from resnest_det.inference.trained_classifier import trained_classifier


def class_names(names: str | None, classes: int) -> list[str]:
    """Names in the order of a model's outputs: the lines of the file `names`, else ImageNet's, else numbers.

    Raises:
        UserError: the file cannot be read or has not one name for each class.
    """
    if names is None:
        imagenet = ResNet50_Weights.DEFAULT.meta["categories"]  # torchvision's list of the 1000 ImageNet classes
        return imagenet if classes == IMAGENET_CLASSES else [f"class {index}" for index in range(classes)]
    try:
        lines = Path(names).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--names {names} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}") from None
    found = [line.strip() for line in lines if line.strip()]
    if len(found) != classes:
        raise UserError(f"--names {names} has {len(found)} names, expected {classes}, one a line for each class of the model")
    return found


def published(options: argparse.Namespace, device: str) -> Callable[[Image.Image], torch.Tensor]:
    """From an image to the probabilities of its classes, by a model that its name and a file of weights say."""
    model = create_model(
        options.model,
        pretrained=not options.checkpoint,
        num_classes=options.num_classes,
        checkpoint_path=options.checkpoint,
        new_head=False,
    )
    model = model.eval().to(device)
    transform = transforms_for(model)

    @torch.inference_mode()
    def probabilities(image: Image.Image) -> torch.Tensor:
        return model(transform(image)[None].to(device))[0].softmax(0).cpu()

    return probabilities


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--model", default="resnest50", help="see resnest_det.list_models() (default: resnest50)")
    parser.add_argument("--checkpoint", help="weights to use instead of the published ones")
    parser.add_argument("--num-classes", type=int, default=IMAGENET_CLASSES, help="of the checkpoint (default: 1000)")
    parser.add_argument("--names", metavar="FILE", help="text file with the name of a class in each line")
    options = parser.parse_args(arguments)
    if options.num_classes < 1:
        raise UserError(f"--num-classes is {options.num_classes}, expected at least 1")
    if options.num_classes != IMAGENET_CLASSES and not options.checkpoint:
        raise UserError("--num-classes needs a --checkpoint: the published weights have 1000 classes")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained = trained_classifier(options.checkpoint, device) if options.checkpoint else None
    if trained is not None:
        names = class_names(options.names, len(trained.classes)) if options.names else trained.classes
        probabilities_of = trained.probabilities
    else:
        names = class_names(options.names, options.num_classes)
    images = [Image.fromarray(read_image(path, "RGB")) for path in options.images]
    if trained is None:
        probabilities_of = published(options, device)
    for path, image in zip(options.images, images):
        probabilities = probabilities_of(image)
        print(printable(str(path)))
        for probability, index in zip(*(each.tolist() for each in probabilities.topk(min(5, len(names))))):
            print(f"  {100 * probability:5.1f} %  {names[index]}")
