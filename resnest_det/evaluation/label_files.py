"""The predicted classes of pixels in label PNG files, in the form in which benchmarks take them."""

import logging
import os

import numpy as np
from PIL import Image

from resnest_det.data.coco import Dataset
from resnest_det.files import atomic_write

logger = logging.getLogger(__name__)


class LabelWriter:
    """Takes part in an evaluation and writes a label PNG for each image.

    A file has one byte a pixel, the value that the class has in the dataset's own label files (Cityscapes' ids; ADE20K's from 1
    on), and the name of its image, below the same folders.

    Args:
        dataset: `records`, and `metadata` with `image_root` and, where a value is not the index of its class, `label_values`.
        output_dir: files go to the folder "labels" in it, or in a folder of it that `begin` names.
    """

    def __init__(self, dataset: Dataset, output_dir: str):
        metadata = dataset.metadata
        values = getattr(metadata, "label_values", ()) or range(len(metadata.stuff_classes))
        self.values = np.array(values, dtype=np.uint8)
        self.names = {record["image_id"]: _name(record["file_name"], metadata.image_root) for record in dataset.records}
        self.output_dir = output_dir
        self.begin()

    def begin(self, subfolder: str = "") -> None:
        """Begin an evaluation whose files go to "labels" in that folder inside the output folder."""
        self.folder = os.path.join(self.output_dir, subfolder, "labels")

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Write those of some images, of `sem_seg` (C, height, width) scores of each."""
        for sample, output in zip(batch, outputs, strict=True):
            path = os.path.join(self.folder, self.names[sample["image_id"]])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            labels = Image.fromarray(self.values[output["sem_seg"].argmax(dim=0).cpu().numpy()])
            with atomic_write(path, "wb") as file:
                labels.save(file, format="PNG")

    def report(self) -> None:
        """Log where the files are."""
        logger.info("classes of the pixels of each image in %s", self.folder)


def _name(file_name: str, image_root: str) -> str:
    below = os.path.relpath(file_name, image_root)
    name = os.path.basename(file_name) if below.startswith(os.pardir) else below
    return f"{os.path.splitext(name)[0]}.png"
