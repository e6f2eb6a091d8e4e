"""Semantic labels as PNG files for Detectron2, made from panoptic ones."""

import os
from concurrent.futures import ProcessPoolExecutor

from PIL import Image
from tqdm import tqdm

from resnest_det.data.coco import Dataset
from resnest_det.data.panoptic import read_semantic_labels
from resnest_det.files import atomic_write, remove_unfinished


def write_semantic_pngs(dataset: Dataset, folder: str, processes: int) -> int:
    """Write the semantic PNG files of a panoptic dataset that `folder` lacks, and return how many.

    Each has the name of the panoptic file and one byte per pixel: 0 for things, 1..S for stuff, 255 where there is no label.

    Raises:
        UserError: see `resnest_det.data.panoptic.read_record_segments`.
    """
    os.makedirs(folder, exist_ok=True)
    remove_unfinished(folder)
    present = set(os.listdir(folder))
    jobs = [(record, os.path.join(folder, os.path.basename(record["pan_seg_file_name"]))) for record in dataset.records]
    jobs = [job for job in jobs if os.path.basename(job[1]) not in present]
    with ProcessPoolExecutor(max(1, processes)) as pool:
        for _ in tqdm(pool.map(_write_semantic_png, jobs, chunksize=16), total=len(jobs), desc=dataset.name, unit="image"):
            pass
    return len(jobs)


def _write_semantic_png(job: tuple[dict, str]) -> None:
    record, path = job
    labels = Image.fromarray(read_semantic_labels(record))
    with atomic_write(path, "wb") as file:
        labels.save(file, format="PNG")
