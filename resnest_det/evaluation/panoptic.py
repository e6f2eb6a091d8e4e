"""Collecting a model's panoptic maps over a dataset, writing them in COCO's format, and their panoptic quality."""

import itertools
import os
import tempfile

import msgspec

from resnest_det.data.annotation_files import PanopticFile, read_annotation_file
from resnest_det.data.panoptic_png import encode_segment_ids
from resnest_det.distributed import gather_objects, is_main_process
from resnest_det.errors import UserError
from resnest_det.evaluation.panoptic_quality import panoptic_quality
from resnest_det.files import write_bytes

_SUFFIXES = {"All": "", "Things": "_th", "Stuff": "_st"}


class PanopticEvaluator:
    """Panoptic, segmentation and recognition quality (arXiv:1801.00868) of things, stuff and each class.

    Args:
        dataset: `name` and `metadata` with `panoptic_json`, `panoptic_root`, `thing_dataset_id_to_contiguous_id` and
            `stuff_dataset_id_to_contiguous_id`, and `panoptic_truth`, the JSON file as it was read; None reads it.
        output_dir: where `panoptic_predictions.json` and the PNG files of the folder `panoptic_predictions` go, in the form that
            COCO's panoptic API reads; None keeps nothing.

    Raises:
        UserError: the truth's JSON file is absent or malformed.
    """

    def __init__(self, dataset, output_dir: str | None = None):
        metadata = dataset.metadata
        self.dataset_name = dataset.name
        self.panoptic_json, self.panoptic_root = metadata.panoptic_json, metadata.panoptic_root
        self.category_ids = {
            True: {contiguous: category for category, contiguous in metadata.thing_dataset_id_to_contiguous_id.items()},
            False: {contiguous: category for category, contiguous in metadata.stuff_dataset_id_to_contiguous_id.items()},
        }
        self.truth = dataset.panoptic_truth or read_annotation_file(self.panoptic_json, PanopticFile)
        self.image_ids = {annotation.image_id for annotation in self.truth.annotations}
        self.output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        """Forget everything processed so far."""
        self.predictions: dict[int, tuple[bytes, list[dict]]] = {}

    def process(self, batch: list[dict], outputs: list[dict]) -> None:
        """Take the panoptic maps of some images.

        Args:
            batch: samples with `image_id`.
            outputs: for each, `panoptic_seg`: (height, width) int map of segment ids, 0 for void, and a list with a dict for
                each segment, {"id", "isthing", "category_id" (contiguous, among things or among stuff)}.

        Raises:
            UserError: an image is not in the dataset, a segment is listed twice, its id does not fit into a PNG, or its class is
                not one of the dataset.
        """
        for sample, output in zip(batch, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id not in self.image_ids:
                raise UserError(f"{self.panoptic_json}: there is no image {image_id}, of which segments were predicted")
            segment_ids, segments = output["panoptic_seg"]
            if len({segment["id"] for segment in segments}) < len(segments):
                raise UserError(
                    f"image {image_id} of {self.dataset_name}: a predicted segment is listed twice, so segments overlap"
                )
            png = encode_segment_ids(segment_ids.cpu().numpy(), f"image {image_id} of {self.dataset_name}")
            self.predictions[image_id] = (png, [self._segment_info(image_id, segment) for segment in segments])

    def _segment_info(self, image_id, segment: dict) -> dict:
        category_ids = self.category_ids[bool(segment["isthing"])]
        if segment["category_id"] not in category_ids:
            kind = "thing" if segment["isthing"] else "stuff"
            raise UserError(
                f"image {image_id} of {self.dataset_name}: segment {segment['id']} has {kind} class "
                f"{segment['category_id']}, of which the dataset has {len(category_ids)}"
            )
        info = {"id": int(segment["id"]), "category_id": category_ids[segment["category_id"]]}
        return {**info, "score": float(segment["score"])} if "score" in segment else info

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Gather the maps of all processes, write and compare them.

        Returns:
            {"panoptic_seg": figures in percent}: `PQ`, `SQ`, `RQ`, the same of things (`PQ_th`, ...) and stuff (`PQ_st`, ...),
            and `PQ-<class>`, `SQ-<class>`, `RQ-<class>`; nan for what is neither in the truth nor predicted. None on other
            processes than the main one.

        Raises:
            UserError: a prediction is broken or missing, see `panoptic_quality`.
        """
        gathered = gather_objects(self.predictions)
        if not is_main_process():
            return None
        predictions = dict(itertools.chain.from_iterable(part.items() for part in gathered))
        with tempfile.TemporaryDirectory(prefix="panoptic") as scratch:
            folder, annotations = self._write(predictions, self.output_dir or scratch)
            quality = panoptic_quality(self.truth, self.panoptic_root, annotations, folder)
        return {"panoptic_seg": panoptic_figures(quality, {c.id: str(c.name) for c in self.truth.categories})}

    def _write(self, predictions: dict, output_dir: str) -> tuple[str, dict[int, dict]]:
        """Write the PNG files and their JSON file: the folder of the PNG files, and the annotations by image id."""
        folder = os.path.join(output_dir, "panoptic_predictions")
        annotations = {}
        for image_id, (png, segments) in sorted(predictions.items()):
            # Not the image's own name, which two folders may have in common.
            file_name = f"{image_id:012d}.png"
            write_bytes(os.path.join(folder, file_name), png)
            annotations[image_id] = {"image_id": image_id, "file_name": file_name, "segments_info": segments}
        content = {"images": self.truth.images, "categories": self.truth.categories, "annotations": list(annotations.values())}
        write_bytes(f"{folder}.json", msgspec.json.encode(content, enc_hook=str))  # ids that are text
        return folder, annotations


def panoptic_figures(quality: dict[str, dict], class_names: dict[int, str]) -> dict[str, float]:
    """The result of `panoptic_quality` in percent, under the names that Detectron2 gives them, and of each class."""
    figures = {}
    for part, suffix in _SUFFIXES.items():
        figures.update({f"{name}{suffix}": 100 * quality[part][name.lower()] for name in ("PQ", "SQ", "RQ")})
    for category_id, values in quality["per_class"].items():
        figures.update({f"{name}-{class_names[category_id]}": 100 * values[name.lower()] for name in ("PQ", "SQ", "RQ")})
    return figures
