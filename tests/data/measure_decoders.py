"""Images a second on one core, from JPEGs to crops of 224 pixels: torchvision's own v2 pipeline, and ours with each decoder.

    python tests/data/measure_decoders.py [FOLDER_OF_JPEGS] [--rounds 5]

CPU time; the pipelines take turns, and each row is the median of the rounds.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from resnest_det.data.class_samples import training_image
from resnest_det.data.class_transforms import training_transform
from resnest_det.data.jpeg_decoders import DECODERS, jpeg_decoder
from resnest_det.errors import ArgumentError

IMAGES = 48


def made(folder: Path) -> list[Path]:
    """Pictures of ImageNet's usual size."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (25, 33, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=92)
    return sorted(folder.glob("*.jpg"))


def torchvisions_own(path: Path, transform) -> torch.Tensor:
    with Image.open(path) as image:
        return transform(image.convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(options.folder.glob("*.jpg"))[:IMAGES] if options.folder else made(Path(folder))
        # As torchvision's documentation has it; ours leaves the last step to the device.
        usual = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
        ways = {
            "torchvision v2, to uint8": partial(torchvisions_own, transform=v2.Compose(usual)),
            "torchvision v2, normalised": partial(torchvisions_own, transform=v2.Compose([*usual, *last])),
        }
        generator = np.random.default_rng(0)
        for name in DECODERS:
            try:
                jpeg_decoder(name)
            except ArgumentError as error:
                print(f"{name}: {error}")
                continue
            own = partial(training_image, generator=generator, transform=training_transform(224), lighting=0.1, decoder=name)
            ways[f"resnest_det, {name}"] = lambda path, own=own: own({"file_name": str(path), "label": 0})
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds + 1):  # the first warms up
            for name, way in ways.items():
                start = time.process_time()
                for path in files:
                    way(path)
                seconds[name].append(time.process_time() - start)
    base = statistics.median(seconds["torchvision v2, to uint8"][1:])
    print("| pipeline | images/s | of torchvision's |\n|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times[1:])
        print(f"| {name} | {len(files) / median:.0f} | {base / median:.2f} |")


if __name__ == "__main__":
    main()
