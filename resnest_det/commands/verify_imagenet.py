"""Measure top-1 and top-5 accuracy on ImageNet's validation images, which lie in one folder for each class.

    verify_imagenet.py --data imagenet --model resnest50

DIR holds the 1000 class folders (n01440764, ...), or a folder `val` that holds them. The authors measured their figures with
`--crop authors`, the centre square of size / (size + 32) of the short side; timm's figures are of the other crop.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from resnest_det import create_model, transforms_for
from resnest_det.backbone.classifier import IMAGENET_CLASSES
from resnest_det.backbone.variants import find_variant
from resnest_det.data.class_transforms import TEST_CROPS
from resnest_det.data.image import open_image
from resnest_det.errors import UserError


class ClassFolders(ImageFolder):
    """Images and labels. An image that cannot be read yields the error itself, because worker processes can only return."""

    def __getitem__(self, index):
        path, label = self.samples[index]
        try:
            with open_image(path) as image:  # not turned upright, as the published accuracies were measured
                return self.transform(image), label  # which makes RGB of any mode
        except UserError as error:
            return error if path in str(error) else UserError(f"image {path}: {error}")
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
            return UserError(f"image {path} cannot be read: it is damaged or not an image ({type(error).__name__})")


def collate(samples):
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    images, labels = zip(*samples)
    return torch.stack(images), torch.tensor(labels)


def open_folder(data: str, transform, classes: int) -> ClassFolders:
    folder = Path(data)
    if not folder.is_dir():
        raise UserError(f"--data {data}: no such folder")
    if (folder / "val").is_dir():
        folder = folder / "val"
    try:
        dataset = ClassFolders(str(folder), transform)
    except FileNotFoundError as error:
        raise UserError(
            f"--data {folder}: expected one folder of images for each class, the layout of ImageNet's validation images "
            f"for PyTorch: {error}"
        ) from None
    if len(dataset.classes) != classes:
        raise UserError(
            f"--data {folder}: {len(dataset.classes)} class folders, expected {classes}; a class's index is the "
            "position of its folder in alphabetical order, so none may be missing"
        )
    return dataset


def accuracy(model, loader, device) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    counted, hits = 0, torch.zeros(2, dtype=torch.int64)
    with torch.inference_mode(), tqdm(total=len(loader.dataset), unit="image") as bar:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            images, labels = batch
            logits = model(images.to(device, non_blocking=True)).cpu()
            right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            hits += torch.stack([right[:, 0].sum(), right.any(1).sum()])
            counted += len(labels)
            bar.update(len(labels))
            bar.set_postfix_str(f"top-1 {100 * hits[0] / counted:.2f} top-5 {100 * hits[1] / counted:.2f}")
    return tuple((100 * hits / counted).tolist())


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--model", default="resnest50", help="see resnest_det.list_models() (default: resnest50)")
    parser.add_argument("--checkpoint", help="weights to use instead of the published ones")
    parser.add_argument("--num-classes", type=int, default=IMAGENET_CLASSES, help="classes of the checkpoint (default: 1000)")
    parser.add_argument("--crop", choices=TEST_CROPS, default="resize", help="what is seen of an image (default: resize)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.batch_size < 1 or options.workers < 0:
        raise UserError("--batch-size must be at least 1 and --workers at least 0")

    variant = find_variant(options.model)
    if options.num_classes != IMAGENET_CLASSES and not options.checkpoint:
        raise UserError("--num-classes needs a --checkpoint: the published weights have 1000 classes")
    # The folder comes first: without images, the long download of weights would be for nothing.
    dataset = open_folder(options.data, None, options.num_classes)
    model = (
        create_model(
            variant.name,
            pretrained=not options.checkpoint,
            num_classes=options.num_classes,
            checkpoint_path=options.checkpoint,
            new_head=False,
        )
        .eval()
        .to(device)
    )
    dataset.transform = transforms_for(model, options.crop)
    loader = DataLoader(dataset, options.batch_size, num_workers=options.workers, collate_fn=collate, pin_memory=device == "cuda")
    start = time.perf_counter()
    top1, top5 = accuracy(model, loader, device)
    rate = len(dataset) / (time.perf_counter() - start)
    what = f"{len(dataset)} images (crop {options.crop})"
    print(f"{variant.name}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {what}, {rate:.1f} images/s")
    if not options.checkpoint:
        published = f"top-1 {variant.top1:.2f} %" + (f", top-5 {variant.top5:.2f} %" if variant.top5 else "")
        print(f"published: {published}")
