"""Semantic labels as PNG files, as Detectron2 reads them, made of panoptic ones or of those that datasets come with."""

import os
from concurrent.futures import ProcessPoolExecutor

from PIL import Image
from tqdm import tqdm

from resnest_det.data.coco import Dataset
from resnest_det.data.panoptic import read_semantic_labels
from resnest_det.data.records import Record
from resnest_det.files import atomic_write, remove_unfinished


def write_semantic_pngs(dataset: Dataset, folder: str, processes: int) -> int:
    """Write those semantic PNG files of a dataset that `folder` lacks, see `semantic_png_name`; how many were written.

    They have one byte a pixel: its class (of panoptic datasets 0 for things, 1..S for stuff), 255 where there is no label.

    Raises:
        UserError: see `resnest_det.data.panoptic.with_truth`.
    """
    os.makedirs(folder, exist_ok=True)
    remove_unfinished(folder)
    present = set(os.listdir(folder))
    jobs = [(record, os.path.join(folder, semantic_png_name(record))) for record in dataset.records]
    jobs = [job for job in jobs if os.path.basename(job[1]) not in present]
    with ProcessPoolExecutor(max(1, processes)) as pool:
        for _ in tqdm(pool.map(_write_semantic_png, jobs, chunksize=16), total=len(jobs), desc=dataset.name, unit="image"):
            pass
    return len(jobs)


def semantic_png_name(record: Record) -> str:
    """The name of the panoptic PNG where there is one, else the image id: names may repeat in the folders of a dataset."""
    return os.path.basename(record["pan_seg_file_name"]) if "pan_seg_file_name" in record else f"{record['image_id']}.png"


def _write_semantic_png(job: tuple[Record, str]) -> None:
    record, path = job
    labels = Image.fromarray(read_semantic_labels(record))
    with atomic_write(path, "wb") as file:
        labels.save(file, format="PNG")
