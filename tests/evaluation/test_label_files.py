"""Predicted classes as label PNG files in the form of each benchmark."""

import numpy as np
import torch
from PIL import Image

from resnest_det.data.benchmarks import CITYSCAPES
from resnest_det.data.coco import Dataset
from resnest_det.data.panoptic import read_semantic_labels
from resnest_det.data.semantic import SemanticFiles, SemanticMetadata, load_semantic
from resnest_det.evaluation.label_files import LabelWriter


def scores_of(labels, classes):
    return torch.nn.functional.one_hot(torch.as_tensor(labels), classes).permute(2, 0, 1).float()


def test_cityscapes_files_have_its_ids_and_names(tmp_path):
    names = CITYSCAPES.names
    values = tuple(CITYSCAPES.values.index(index) for index in range(19))
    metadata = SemanticMetadata("citys", None, "/data/leftImg8bit/val", [], {}, list(names), [], label_values=values)
    record = {"file_name": "/data/leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png", "image_id": 1}
    writer = LabelWriter(Dataset("citys", [record], metadata), str(tmp_path))
    writer.process([{"image_id": 1}], [{"sem_seg": scores_of(np.arange(19).reshape(1, 19), 19)}])
    writer.report()
    with Image.open(tmp_path / "labels/ulm/ulm_000000_000019_leftImg8bit.png") as picture:
        assert picture.mode == "L"
        ids = np.asarray(picture)[0].tolist()
    assert ids == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_what_is_written_reads_as_the_datasets_own_labels(tmp_path):
    """ADE20K's way: class 0 is 1 in the files."""
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    for folder, pixels in (("images", np.zeros((3, 4, 3), dtype=np.uint8)), ("truth", labels + 1)):
        (tmp_path / folder / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / "a" / "b.png")
    files = SemanticFiles(str(tmp_path / "truth"), str(tmp_path / "images"), 4, reduce_zero_label=True)
    dataset = load_semantic("mine", files)
    writer = LabelWriter(dataset, str(tmp_path / "out"))
    writer.begin("iteration_9")
    writer.process([{"image_id": 1}], [{"sem_seg": scores_of(labels.astype(np.int64), 4)}])
    written = SemanticFiles(str(tmp_path / "out/iteration_9/labels"), str(tmp_path / "images"), 4, reduce_zero_label=True)
    np.testing.assert_array_equal(read_semantic_labels(load_semantic("written", written).records[0]), labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/iteration_9/labels/a/b.png")), labels + 1)
