"""Pictures of the classes of pixels beside the truth."""

import logging
import os

import numpy as np
from PIL import Image

from resnest_det.data.label_png import UNLABELLED
from resnest_det.data.panoptic import read_semantic_labels
from resnest_det.drawing.instances import chosen_images, save_picture, side_by_side, spread_records
from resnest_det.drawing.panoptic import draw_panoptic

logger = logging.getLogger(__name__)


class SemanticComparisonWriter:
    """Takes part in an evaluation and writes the classes of the pixels of a few images, beside the truth.

    Args:
        dataset: `records` whose pixels have labels, and `metadata` with names and colors of their classes.
        output_dir: where `<image file>_semantic.png` go.
        count: how many pictures, of images spread evenly over the dataset.
    """

    def __init__(self, dataset, output_dir: str, count: int = 4):
        self.classes = list(zip(dataset.metadata.stuff_classes, dataset.metadata.stuff_colors))
        self.output_dir = output_dir
        self.records = spread_records(dataset.records, count)

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Write the pictures of those images of the batch that were chosen."""
        for record, image, output, stem in chosen_images(self.records, batch, outputs):
            truth, predicted = read_semantic_labels(record), output["sem_seg"].argmax(dim=0).cpu().numpy()
            sheet = side_by_side([("truth", self._draw(image, truth)), ("predicted", self._draw(image, predicted))])
            save_picture(sheet, os.path.join(self.output_dir, f"{stem}_semantic.png"))

    def _draw(self, image: Image.Image, labels: np.ndarray) -> Image.Image:
        # Segments of a map: all pixels of a class are one, and 0 is for those that have no label.
        labels = np.where(labels == UNLABELLED, -1, labels.astype(np.int32))
        present = [label for label in np.unique(labels).tolist() if label >= 0]
        segments = [{"id": i + 1, "label": self.classes[i][0], "color": self.classes[i][1]} for i in present]
        return draw_panoptic(image, labels + 1, segments)

    def report(self) -> None:
        """Log where the pictures are."""
        logger.info("classes of pixels beside the truth: %d pictures in %s", len(self.records), self.output_dir)
