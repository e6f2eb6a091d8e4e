"""Collecting a detector's boxes and masks over a dataset, and their COCO average precision."""

import itertools
import logging
import os

import msgspec
import torch

from resnest_det.data.coco import Dataset
from resnest_det.data.dataset_cache import changed_since
from resnest_det.data.instance_records import images_of
from resnest_det.distributed import gather_objects, is_main_process
from resnest_det.errors import UserError
from resnest_det.evaluation.average_precision import figures_of_tasks
from resnest_det.evaluation.ground_truth import check_can_be_evaluated, ground_truth_of_instances, ground_truth_of_segments
from resnest_det.evaluation.masks import encode_masks
from resnest_det.files import write_bytes

logger = logging.getLogger(__name__)


class COCOEvaluator:
    """COCO average precision of boxes and masks.

    Args:
        dataset: read with its truth kept. A panoptic dataset whose `metadata.json_file` is None has its thing segments as
            ground truth; a dataset that only lists images has none, and its detections are written and not counted.
        tasks: any of "bbox" and "segm".
        output_dir: where `coco_instances_results.json` goes (COCO's result format); None writes nothing.
        max_detections: detections of one image and category that count. Where this is not COCO's 100 it takes the place of 100
            in AP, APs, ARs and so on too; AR100 keeps its name.

    Raises:
        UserError: the dataset's list of annotations is empty, or one has no mask where "segm" is asked for.
    """

    def __init__(self, dataset: Dataset, tasks=("bbox", "segm"), output_dir: str | None = None, max_detections: int = 100):
        self.dataset = dataset
        self.dataset_name = dataset.name
        self.tasks = tuple(tasks)
        self.output_dir = output_dir
        self.max_detections = max_detections
        mapping = dataset.metadata.thing_dataset_id_to_contiguous_id
        self.category_ids = {contiguous: category for category, contiguous in mapping.items()}
        self.json_file = dataset.metadata.json_file
        if self.json_file is not None:
            check_can_be_evaluated(dataset, self.tasks)
        self.image_ids = {record["image_id"] for record in images_of(dataset.records)}
        self.reset()

    def reset(self) -> None:
        """Forget everything processed so far."""
        self.results_by_image: dict[int, list[dict]] = {}

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Take the detections of some images.

        Args:
            batch: samples with `image_id`, `height`, `width`.
            outputs: for each, `boxes` (N, 4) XYXY in pixels of the original image, `scores` (N,), `classes` (N,) and, for
                "segm", `masks` (N, height, width) bool.

        Raises:
            UserError: an image that is not in the file, a class the dataset lacks, no masks although "segm" is a task, or
                boxes or scores that are not finite.
        """
        for sample, output in zip(batch, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id not in self.image_ids:
                raise UserError(f"{self.json_file or self.dataset_name} has no image {image_id}, but there are detections for it")
            self._check(image_id, output)
            self.results_by_image[image_id] = detections_to_coco(output, image_id, self.category_ids, "segm" in self.tasks)

    def _check(self, image_id, output: dict) -> None:
        if "segm" in self.tasks and "masks" not in output:
            raise UserError("mask AP was asked for, but the model predicts no masks")
        if not (torch.isfinite(output["boxes"]).all() and torch.isfinite(output["scores"]).all()):
            raise UserError(f"image {image_id} of {self.dataset_name}: a predicted box or score is not finite")
        unknown = set(output["classes"].tolist()) - set(self.category_ids)
        if unknown:
            raise UserError(
                f"image {image_id} of {self.dataset_name}: predicted class {min(unknown)}, "
                f"but {self.dataset_name} has {len(self.category_ids)} classes"
            )

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Gather the detections of all processes, write them and compute the figures.

        Returns:
            for each task the twelve COCO figures (`AP`, `AP50`, `AP75`, `APs`, `APm`, `APl`, `AR1`, `AR10`, `AR100`, `ARs`,
            `ARm`, `ARl`) and `AP-<category>`, in percent, nan where there is no ground truth; None on other processes than
            the main one, and nothing for a dataset that only lists images.
        """
        gathered = gather_objects(self.results_by_image)
        if not is_main_process():
            return None
        by_image = {image_id: results for part in gathered for image_id, results in part.items()}
        absent = len(self.image_ids) - len(by_image)
        if absent:
            logger.warning(
                "%d of %d images of %s were not predicted; they count as images without detections",
                absent,
                len(self.image_ids),
                self.dataset_name,
            )
        detections = list(itertools.chain.from_iterable(by_image[image_id] for image_id in sorted(by_image)))
        if not detections:
            logger.warning("no detections on %s: AP is 0 wherever there is ground truth", self.dataset_name)
        if self.output_dir:
            write_bytes(
                os.path.join(self.output_dir, "coco_instances_results.json"), msgspec.json.encode(detections, enc_hook=str)
            )  # ids that are text
        if self.json_file is not None and self.dataset.truth.annotations is None:
            logger.info("%s has no annotations: nothing is counted", self.dataset_name)
            return {}
        if self.json_file is not None and self.dataset.truth.digest and changed_since(self.json_file, self.dataset.truth.digest):
            logger.warning("%s was changed after this run had read it: counted is what it said then", self.json_file)
        of = ground_truth_of_segments if self.json_file is None else ground_truth_of_instances
        truth = of(self.dataset)
        return figures_of_tasks(truth, detections, self.tasks, self.max_detections)


def detections_to_coco(output: dict, image_id, category_ids: dict[int, int], with_masks: bool) -> list[dict]:
    """One image's detections in COCO's result format, in the order given.

    Args:
        output: `boxes` (N, 4) XYXY, `scores` (N,), `classes` (N,), and `masks` (N, height, width) bool when `with_masks`.
        category_ids: from contiguous class to the dataset's category id.
    """
    boxes = output["boxes"].detach().cpu().clone()
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(boxes.tolist(), output["scores"].tolist(), output["classes"].tolist())
    results = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score} for box, score, label in columns
    ]
    if with_masks:
        for result, encoded in zip(results, encode_masks(output["masks"]), strict=True):
            result["segmentation"] = encoded
    return results
