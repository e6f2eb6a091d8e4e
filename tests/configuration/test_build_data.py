"""Configuration keys of the data side have their effect, or are refused by name."""

import itertools
from collections import Counter

import pytest
import torch
from PIL import Image

from resnest_det.configuration import data as build_data
from resnest_det.configuration.data import build_test_loader, build_train_loader, hold_against_checkpoint, read_run_data
from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.evaluation import build_evaluation_sets
from resnest_det.data import catalog
from resnest_det.errors import UserError

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
OBJECT = {"bbox": [2, 2, 6, 6], "segmentation": SQUARE}


pytestmark = pytest.mark.usefixtures("own_registry")


@pytest.fixture
def make_cfg(write_coco):
    def make(images, annotations, overrides=(), categories=((1, "cat"), (2, "dog")), names=("made",)):
        for name in names:
            catalog.register_coco(name, *write_coco(images, annotations, categories, name))
        cfg = default_config()
        base = ["DATASETS.TRAIN", names, "MODEL.ROI_HEADS.NUM_CLASSES", len(categories), "MODEL.MASK_ON", True]
        base += ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", (20,), "INPUT.MIN_SIZE_TEST", 20]
        cfg.merge_from_list(base + list(overrides))
        return cfg

    return make


IMAGES = [(1, 20, 30), (2, 20, 30), (3, 30, 20), (4, 30, 20), (5, 20, 30)]
EACH = [{"image_id": image_id} | OBJECT for image_id, _, _ in IMAGES]


def train_loader(cfg, *, seed=0, **kwargs):
    return build_train_loader(cfg, read_run_data(cfg, train=True).train, seed=seed, **kwargs)


def inference_loader(cfg):
    cfg.DATASETS.TEST = ("made",)
    (dataset,) = read_run_data(cfg, train=False).test
    return build_test_loader(cfg, dataset)


def batches_of(cfg, count=20, **kwargs):
    return list(itertools.islice(train_loader(cfg, seed=kwargs.pop("seed", 1), **kwargs), count))


def test_training_batches(make_cfg):
    cfg = make_cfg(IMAGES, EACH, ["INPUT.FORMAT", "RGB", "INPUT.RANDOM_FLIP", "none", "SOLVER.IMS_PER_BATCH", 3])
    batches = batches_of(cfg)
    assert all(len(batch) == 3 for batch in batches)
    assert {batch[0]["image"].shape for batch in batches} == {(3, 20, 30), (3, 30, 20)}
    assert all(len({sample["image"].shape for sample in batch}) == 1 for batch in batches), "grouped by aspect ratio"
    later = batches_of(cfg, 5, start_iteration=15)
    assert [[s["seed"] for s in batch] for batch in later] == [[s["seed"] for s in batch] for batch in batches[15:]]
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    assert any(len({sample["image"].shape for sample in batch}) > 1 for batch in batches_of(cfg))


def test_mask_keys(make_cfg):
    cfg = make_cfg(IMAGES, EACH)
    assert isinstance(batches_of(cfg, 1)[0][0]["target"]["masks"], list)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    assert batches_of(cfg, 1)[0][0]["target"]["masks"].dtype == torch.bool
    cfg.MODEL.MASK_ON = False
    assert "masks" not in batches_of(cfg, 1)[0][0]["target"]


def test_size_and_crop_keys(make_cfg):
    cfg = make_cfg(IMAGES, EACH, ["INPUT.MIN_SIZE_TRAIN", (40, 42), "INPUT.MAX_SIZE_TRAIN", 61])
    assert {min(s["image"].shape[1:]) for batch in batches_of(cfg) for s in batch} == {40, 41}, "42 would make 63 of the longer"
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.INPUT.MIN_SIZE_TRAIN = (30, 33)
    assert {min(s["image"].shape[1:]) for batch in batches_of(cfg, 60) for s in batch} == {30, 31, 32, 33}
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [12, 14]
    assert {tuple(s["image"].shape[1:]) for batch in batches_of(cfg, 5) for s in batch} == {(12, 14)}


def test_images_without_objects(make_cfg):
    annotations = [{"image_id": 1} | OBJECT, {"image_id": 2, "iscrowd": 1} | OBJECT]
    cfg = make_cfg(IMAGES, annotations)
    assert {s["image_id"] for batch in batches_of(cfg) for s in batch} == {1}
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert {s["image_id"] for batch in batches_of(cfg) for s in batch} == {1, 2, 3, 4, 5}


def test_repeat_factor_sampling(make_cfg):
    annotations = EACH + [{"image_id": 3, "category_id": 2} | OBJECT]
    overrides = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.8]
    cfg = make_cfg(IMAGES, annotations, [*overrides, "DATALOADER.ASPECT_RATIO_GROUPING", False])
    shown = Counter(s["image_id"] for batch in batches_of(cfg, 30) for s in batch)
    assert shown == {1: 10, 2: 10, 3: 20, 4: 10, 5: 10}, "the dog is in 1 of 5 images: sqrt(0.8 / 0.2) = 2"
    cfg.DATALOADER.REPEAT_SQRT = False
    shown = Counter(s["image_id"] for batch in batches_of(cfg, 40) for s in batch)
    assert shown == {1: 10, 2: 10, 3: 40, 4: 10, 5: 10}


def test_several_datasets_are_one(make_cfg):
    cfg = make_cfg(IMAGES, EACH, names=("first", "second"))
    folders = Counter(s["file_name"].split("/")[-2] for batch in batches_of(cfg, 10) for s in batch)
    assert set(folders) == {"first", "second"}


def test_inference_loader(make_cfg):
    cfg = make_cfg(IMAGES, EACH, ["INPUT.MIN_SIZE_TEST", 40, "INPUT.MAX_SIZE_TEST", 50])
    loader = inference_loader(cfg)
    samples = [sample for (sample,) in loader]
    assert len(loader) == 5 and [sample["image_id"] for sample in samples] == [1, 2, 3, 4, 5]
    assert samples[0]["image"].shape == (3, 33, 50) and "target" not in samples[0]
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert next(iter(inference_loader(cfg)))[0]["image"].shape == (3, 20, 30)


def test_processes_divide_batches_and_test_images(make_cfg, monkeypatch):
    cfg = make_cfg(IMAGES, EACH)
    whole = [[s["seed"] for s in batch] for batch in batches_of(cfg, 4)]
    monkeypatch.setattr(build_data, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(build_data, "get_rank", lambda rank=rank: rank)
        assert [[s["seed"] for s in batch] for batch in batches_of(cfg, 4)] == [batch[rank::2] for batch in whole]
        assert [s["image_id"] for (s,) in inference_loader(cfg)] == [[1, 2, 3], [4, 5]][rank]
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH is 3; it must be a multiple of the number of processes, 2"):
        train_loader(cfg)
    monkeypatch.setattr(build_data, "get_world_size", lambda: 6)
    cfg.SOLVER.IMS_PER_BATCH = 6
    for build in (lambda: train_loader(cfg), lambda: inference_loader(cfg)):
        with pytest.raises(UserError, match="6 processes but only 5 images"):
            build()


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN is empty"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 80], "dataset made has 2 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 80"),
        (["INPUT.MIN_SIZE_TRAIN", ()], r"INPUT.MIN_SIZE_TRAIN is \(\)"),
        (["INPUT.MIN_SIZE_TRAIN", (10.5,)], r"INPUT.MIN_SIZE_TRAIN is \(10.5,\)"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], r"INPUT.MIN_SIZE_TRAIN is \(20,\).*smallest, largest"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.5, 1.5]], r"CROP.SIZE is \(0.5, 1.5\).*relative_range.*\(0, 1\]"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.5]], r"INPUT.CROP.SIZE is \(0.5,\).*two"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"], "INPUT.CROP.SIZE is .*absolute.*pixels"),
        (["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", [9, 5]], "the smaller first"),
    ],
)
def test_wrong_values_are_named(make_cfg, overrides, expected):
    cfg = make_cfg(IMAGES, EACH, overrides)
    with pytest.raises(UserError, match=expected):
        train_loader(cfg)


def test_nothing_to_learn_from(make_cfg):
    with pytest.raises(UserError, match="none of the 5 images has an object"):
        train_loader(make_cfg(IMAGES, []))


def test_an_object_without_a_mask_is_named_before_training(make_cfg):
    cfg = make_cfg(IMAGES, [*EACH, {"image_id": 2, "bbox": [1, 1, 5, 5]}])
    with pytest.raises(UserError, match=r"annotation 6 of image .*/2.png has no segmentation; set MODEL.MASK_ON False"):
        train_loader(cfg)
    cfg.MODEL.MASK_ON = False
    assert len(batches_of(cfg, 1)[0]) == 2


def labels_of(loader, count):
    return {
        label for batch in itertools.islice(loader, count) for sample in batch for label in sample["target"]["labels"].tolist()
    }


def test_classes_are_matched_by_name(make_cfg, write_coco):
    cfg = make_cfg(IMAGES, EACH)
    swapped = write_coco(IMAGES, EACH, [(1, "dog"), (2, "cat")], "swapped")
    catalog.register_coco("swapped", *swapped)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("made", "swapped"), ("made", "swapped")
    data = read_run_data(cfg, train=True)
    assert labels_of(build_train_loader(cfg, data.train, seed=0), 20) == {0, 1}, "category 1 is the cat here and the dog there"
    assert [dataset.metadata.thing_classes for dataset in data.test] == [["cat", "dog"]] * 2
    assert data.test[1].metadata.thing_dataset_id_to_contiguous_id == {1: 1, 2: 0}
    assert {a["category_id"] for record in data.test[1].records for a in record["annotations"]} == {1}
    assert data.trained_on == {
        "thing_classes": ["cat", "dog"],
        "thing_ids": [1, 2],
        "thing_colors": [[255, 77, 77], [61, 103, 204]],
        "input_format": "BGR",
    }

    cfg.DATASETS.TRAIN = ("swapped",)
    data = read_run_data(cfg, train=True)
    assert [dataset.metadata.thing_classes for dataset in data.test] == [["dog", "cat"]] * 2
    assert data.trained_on["thing_classes"] == ["dog", "cat"] and data.train.class_names == ["dog", "cat"]


@pytest.mark.parametrize(
    "categories, only",
    [
        ([(1, "cat"), (2, "bird")], "bird, dog"),
        ([(1, "Cat"), (2, "dog")], r"Cat, cat \('cat' and 'Cat' differ in case, Unicode form or spaces alone\)"),
        ([(1, "plane"), (2, "boat")], "boat, cat, dog, plane"),
        ([(1, "cat"), (2, "dog "), (3, "dog")], "dog "),
        ([(1, "cat")], "dog"),
        ([(1, "cat"), (2, "dog"), (3, "background")], "background"),
        ([(1, "cats"), (2, "dogs")], "cat, cats, dog, dogs"),
        ([(1, "1"), (2, 2)], "1, 2, cat, dog"),
        ([(1, "cat"), (2, "cat.dog")], "cat.dog, dog"),
    ],
)
@pytest.mark.parametrize("role", ["TRAIN", "TEST"])
def test_classes_of_other_names_are_refused_with_both_lists(make_cfg, write_coco, categories, only, role):
    cfg = make_cfg(IMAGES, EACH)
    catalog.register_coco("others", *write_coco(IMAGES, EACH, categories, "others"))
    cfg.DATASETS.TRAIN = ("made", "others") if role == "TRAIN" else ("made",)
    cfg.DATASETS.TEST = ("others",) if role == "TEST" else ()
    theirs = ", ".join(str(name) for _, name in categories)
    expected = f"classes of made and others are not the same: only one has {only}; made has cat, dog; others has {theirs}$"
    with pytest.raises(UserError, match=expected):
        train_loader(cfg)


def test_names_that_look_the_same_are_told_apart(make_cfg, write_coco):
    """One program writes an accent as a letter of its own."""
    cfg = make_cfg(IMAGES, EACH, categories=((1, "caf\u00e9"), (2, "dog")))
    catalog.register_coco("others", *write_coco(IMAGES, EACH, [(1, "cafe\u0301"), (2, "dog")], "others"))
    cfg.DATASETS.TEST = ("others",)
    with pytest.raises(UserError, match=r"\('caf\\xe9' and 'cafe\\u0301' differ in case, Unicode form or spaces alone\)"):
        read_run_data(cfg, train=True)


def test_any_ids_and_any_order_of_the_same_names(make_cfg, write_coco):
    """Three sets, each in its own order, with ids that are far apart, negative or text; numbers are names as text is."""
    names = ["cat", "7", "\u00e5sna"]
    cfg = make_cfg(IMAGES, EACH, categories=tuple(enumerate(names, start=1)))
    annotations = [{"image_id": image, "category_id": id_} | OBJECT for image in range(1, 5) for id_ in (-3, 1 << 60, 0)]
    catalog.register_coco("far", *write_coco(IMAGES, annotations, [(-3, "\u00e5sna"), (1 << 60, "cat"), (0, 7)], "far"))
    words = [a | {"category_id": {-3: "x", 1 << 60: "y", 0: "z"}[a["category_id"]]} for a in annotations]
    catalog.register_coco("words", *write_coco(IMAGES, words, [("z", "\u00e5sna"), ("y", "7"), ("x", "cat")], "words"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("made", "far"), ("far", "words")
    data = read_run_data(cfg, train=True)
    assert [dataset.metadata.thing_classes for dataset in data.test] == [names, names]
    first = data.train.records[len(EACH)]["annotations"]
    assert sorted(each["category_id"] for each in first) == [0, 1, 2]
    far, words = (dataset.metadata.thing_dataset_id_to_contiguous_id for dataset in data.test)
    assert far == {1 << 60: 0, 0: 1, -3: 2}
    assert {getattr(id_, "text", id_): index for id_, index in words.items()} == {"x": 0, "y": 1, "z": 2}


def test_the_number_of_classes_is_that_of_the_model(make_cfg):
    cfg = make_cfg(IMAGES, EACH, ["MODEL.ROI_HEADS.NUM_CLASSES", 3])
    with pytest.raises(UserError, match="dataset made has 2 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 3"):
        inference_loader(cfg)


def test_the_limit_of_ap_is_a_key_of_its_own(make_cfg):
    cfg = make_cfg(IMAGES, EACH, ["DATASETS.TEST", ("made",), "TEST.DETECTIONS_PER_IMAGE", 300])
    datasets = read_run_data(cfg, train=False).test
    assert build_evaluation_sets(cfg, datasets)[0].evaluators[0].max_detections == 100
    cfg.TEST.AP_MAX_DETECTIONS = 300
    assert build_evaluation_sets(cfg, datasets)[0].evaluators[0].max_detections == 300


def test_data_is_held_against_what_a_checkpoint_was_trained_on(make_cfg):
    cfg = make_cfg(IMAGES, EACH, ["DATASETS.TEST", ("made",)])
    data = read_run_data(cfg, train=False)
    for unknown in (None, {}, 3, {"thing_classes": "cat"}, {"thing_classes": [1, 2]}, data.trained_on):
        assert hold_against_checkpoint(cfg, data, unknown, "a.pth") is data

    turned = hold_against_checkpoint(cfg, data, {"thing_classes": ["dog", "cat"]}, "a.pth")
    assert turned.test[0].metadata.thing_dataset_id_to_contiguous_id == {1: 1, 2: 0}
    assert turned.test[0].truth.annotations[0].category_id == 1, "results and truth keep the file's ids"
    with pytest.raises(UserError, match="classes of checkpoint a.pth and made are not the same.*has dog, cow; made has cat, dog"):
        hold_against_checkpoint(cfg, data, {"thing_classes": ["dog", "cow"]}, "a.pth")
    with pytest.raises(UserError, match="INPUT.FORMAT is BGR, but checkpoint a.pth was trained on RGB images"):
        hold_against_checkpoint(cfg, data, data.trained_on | {"input_format": "RGB"}, "a.pth")


def test_the_images_that_a_run_reads_are_looked_for_at_its_start(make_cfg, write_coco, tmp_path):
    cfg = make_cfg(IMAGES, EACH[:-1])
    catalog.register_coco("others", *write_coco(IMAGES, EACH[:-1], name="others"))
    cfg.DATASETS.TEST = ("others",)
    (tmp_path / "made" / "5.png").unlink()  # has no object, so training does not show it
    read_run_data(cfg, train=True)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    with pytest.raises(UserError, match="^dataset made: image .*made/5.png of image 5 does not exist; 1 of 5 are absent$"):
        read_run_data(cfg, train=True)
    read_run_data(cfg, train=False)  # evaluation alone does not read what training would

    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("others",), ("made",)
    for train in (True, False):
        with pytest.raises(UserError, match="^dataset made: image .*made/5.png of image 5 does not exist; 1 of 5 are absent$"):
            read_run_data(cfg, train=train)
    (tmp_path / "made" / "5.PNG").touch()
    with pytest.raises(UserError, match="there is .*made/5.PNG: the name in the annotations is in another case"):
        read_run_data(cfg, train=False)


def test_sizes_of_the_images_that_a_run_reads_are_held_against_their_headers_at_its_start(make_cfg, write_coco, tmp_path):
    cfg = make_cfg(IMAGES, EACH[:-1])
    catalog.register_coco("others", *write_coco(IMAGES, EACH[:-1], name="others"))
    cfg.DATASETS.TEST = ("others",)
    read_run_data(cfg, train=True)
    path, exif = tmp_path / "others" / "2.png", Image.Exif()
    exif[274] = 6
    with Image.open(path) as image:
        image.save(path, exif=exif)
        stored = f"{image.width} x {image.height}"
    for train in (True, False):
        with pytest.raises(
            UserError, match=f"image .*others/2.png is .* EXIF orientation 6, but its annotations say {stored}, as it is"
        ):
            read_run_data(cfg, train=train)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("others",), ()
    with pytest.raises(UserError, match="others/2.png is .* EXIF orientation 6"):
        read_run_data(cfg, train=True)
