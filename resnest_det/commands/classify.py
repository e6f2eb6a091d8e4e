"""Name what is in images: the five most probable ImageNet classes of each.

python tools/classify.py dog.jpg cat.png --model resnest50
"""

import argparse

import torch
from PIL import Image
from torchvision.models import ResNet50_Weights

from resnest_det import create_model, transforms_for
from resnest_det.data.image import read_image
from resnest_det.errors import printable


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--model", default="resnest50", help="see resnest_det.list_models() (default: resnest50)")
    parser.add_argument("--checkpoint", help="weights to use instead of the published ones")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    images = [Image.fromarray(read_image(path, "RGB")) for path in options.images]
    model = create_model(options.model, pretrained=not options.checkpoint, checkpoint_path=options.checkpoint)
    model = model.eval().to(device)
    transform = transforms_for(model)
    names = ResNet50_Weights.DEFAULT.meta["categories"]  # torchvision's list of the 1000 ImageNet classes
    for path, image in zip(options.images, images):
        with torch.inference_mode():
            probabilities = model(transform(image)[None].to(device))[0].softmax(0).cpu()
        print(printable(str(path)))
        for probability, index in zip(*(each.tolist() for each in probabilities.topk(5))):
            print(f"  {100 * probability:5.1f} %  {names[index]}")
