"""Panoptic datasets: what is read, the targets made of it, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnest_det.configuration.data import build_train_loader, read_run_data
from resnest_det.configuration.defaults import default_config
from resnest_det.data import catalog, dataset_cache, shapes
from resnest_det.data.mapper import training_sample
from resnest_det.data.panoptic import (
    UNLABELLED,
    instance_annotations,
    load_coco_panoptic,
    read_record_segments,
    read_semantic_labels,
    semantic_labels,
    with_panoptic_classes,
    with_truth,
)
from resnest_det.data.transforms import Augmentation, RandomCrop, RandomFlip, ResizeShortestEdge
from resnest_det.errors import UserError

# Ids out of order and with gaps, things among stuff, as in COCO.
CATEGORIES = [
    {"id": 92, "name": "wall", "isthing": 0, "color": [1, 2, 3]},
    {"id": 3, "name": "dog", "isthing": 1},
    {"id": 40, "name": "sky", "isthing": 0},
    {"id": 1, "name": "cat", "isthing": 1, "color": [250, 0, 9]},
]
# Segment id: category id. 70000 needs all three bytes.
SEGMENTS = {5: 3, 70000: 1, 300: 40, 7: 92}
KEEP_SIZE = Augmentation()


def segment_map(height: int, width: int) -> np.ndarray:
    """Sky above wall, two objects, and void in the lower right corner."""
    ids = np.full((height, width), 300)
    ids[height // 2 :] = 7
    ids[2:9, 3:12] = 5
    ids[6:16, 8:14] = 70000
    ids[-4:, -6:] = 0
    return ids


def write_png(path, ids: np.ndarray) -> None:
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2).astype(np.uint8)).save(path)


@pytest.fixture
def made(tmp_path):
    """Paths and content of a panoptic dataset of two images, 24 x 30 and 20 x 26 (height x width)."""
    for folder in ("images", "panoptic"):
        (tmp_path / folder).mkdir()
    images, annotations = [], []
    for image_id, (height, width) in ((12, (24, 30)), (4, (20, 26))):
        pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{image_id}.jpg")
        write_png(tmp_path / "panoptic" / f"{image_id}.png", segment_map(height, width))
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        infos = [{"id": segment, "category_id": category, "iscrowd": 0} for segment, category in SEGMENTS.items()]
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": infos})
    return Made(tmp_path, {"images": images, "annotations": annotations, "categories": [dict(c) for c in CATEGORIES]})


class Made:
    def __init__(self, folder, content):
        self.folder, self.content = folder, content

    def paths(self) -> tuple[str, str, str]:
        json_file = self.folder / "panoptic.json"
        json_file.write_text(json.dumps(self.content))
        return str(json_file), str(self.folder / "panoptic"), str(self.folder / "images")

    def load(self, **arguments):
        return load_coco_panoptic("made", *self.paths(), **arguments)

    def write_instances(self, change=lambda content: None) -> str:
        content = {
            "images": [dict(image) for image in self.content["images"]],
            "categories": [{"id": c["id"], "name": c["name"]} for c in self.content["categories"] if c["isthing"]],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 4,
                    "category_id": 3,
                    "bbox": [3, 2, 9, 7],
                    "iscrowd": 0,
                    "segmentation": [[3, 2, 12, 2, 12, 9, 3, 9]],
                }
            ],
        }
        change(content)
        json_file = self.folder / "instances.json"
        json_file.write_text(json.dumps(content))
        return str(json_file)


def expected_labels(ids: np.ndarray) -> np.ndarray:
    """Things 0, sky (id 40) 1, wall (id 92) 2."""
    labels = np.full(ids.shape, UNLABELLED)
    for segment_id, label in ((5, 0), (70000, 0), (300, 1), (7, 2)):
        labels[ids == segment_id] = label
    return labels


def test_classes_are_counted_apart_in_the_order_of_their_ids(made):
    metadata = made.load().metadata
    assert metadata.thing_classes == ["cat", "dog"] and metadata.thing_dataset_id_to_contiguous_id == {1: 0, 3: 1}
    assert metadata.stuff_classes == ["things", "sky", "wall"] and metadata.stuff_dataset_id_to_contiguous_id == {40: 1, 92: 2}
    assert metadata.thing_colors[0] == (250, 0, 9) and metadata.stuff_colors[2] == (1, 2, 3)
    colors = metadata.thing_colors + metadata.stuff_colors
    assert len(set(colors)) == 5 and all(0 <= channel <= 255 for color in colors for channel in color)


def test_records(made):
    records = made.load().records
    assert [record["image_id"] for record in records] == [4, 12]
    assert records[0]["file_name"].endswith("images/4.jpg") and records[0]["pan_seg_file_name"].endswith("panoptic/4.png")
    assert records[0]["segments_info"][0] == {"id": 5, "category_id": 1, "isthing": True, "iscrowd": 0}
    assert records[0]["segments_info"][2] == {"id": 300, "category_id": 1, "isthing": False, "iscrowd": 0}
    assert read_record_segments(records[1]).tolist() == segment_map(24, 30).tolist()
    assert read_semantic_labels(records[1]).tolist() == expected_labels(segment_map(24, 30)).tolist()


def test_objects_come_from_the_png_where_there_is_no_instance_file(made):
    dataset = made.load()
    record, labels = with_truth(dataset.records[0])
    assert dataset.metadata.json_file is None and labels.tolist() == expected_labels(segment_map(20, 26)).tolist()
    assert [(a["id"], a["category_id"], a["bbox"]) for a in record["annotations"]] == [
        (5, 1, [3, 2, 9, 7]),
        (70000, 0, [8, 6, 6, 10]),
    ]
    sample = training_sample(
        dataset.records[0], np.random.default_rng(0), augmentation=KEEP_SIZE, image_format="RGB", mask_format="polygon"
    )
    ids = torch.from_numpy(segment_map(20, 26))
    assert torch.equal(sample["target"]["masks"], torch.stack([ids == 5, ids == 70000]))
    assert sample["target"]["labels"].tolist() == [1, 0] and "sem_seg" not in sample["target"]


def test_objects_come_from_the_instance_file_where_there_is_one(made):
    dataset = made.load(instances_json=made.write_instances())
    assert dataset.metadata.json_file.endswith("instances.json")
    assert [len(record["annotations"]) for record in dataset.records] == [1, 0]
    assert with_truth(dataset.records[0])[0]["annotations"] == dataset.records[0]["annotations"]


@pytest.mark.parametrize("with_instances", [True, False])
def test_the_json_is_parsed_once_and_a_process_gets_no_copy(made, tmp_path, monkeypatch, with_instances):
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_cache, "_SETTLED", -(10**12))  # the files are just written
    made.content["annotations"][0]["segments_info"][0]["area"] = 63
    paths = (*made.paths(), made.write_instances() if with_instances else None)
    first = load_coco_panoptic("made", *paths, keep_truth=True)
    with monkeypatch.context() as patch:
        patch.setattr(dataset_cache, "read_bytes_and_digest", lambda path: pytest.fail("the JSON was read again"))
        second = load_coco_panoptic("made", *paths, keep_truth=True)
    assert list(first.records) == list(second.records) and first.metadata == second.metadata
    assert first.panoptic_truth == second.panoptic_truth
    assert [[segment.area for segment in each.segments_info][:2] for each in second.panoptic_truth.annotations] == [
        [None, None],
        [63, None],
    ]
    if with_instances:
        pickled = pickle.dumps(second.records)
        assert len(pickled) < 2000 and list(pickle.loads(pickled)) == list(first.records)
        assert pickle.loads(pickled)[1:][0] == first.records[1]


def test_classes_moved_by_name_move_in_records_of_both_files(made):
    dataset = made.load(instances_json=made.write_instances())
    moved = with_panoptic_classes(dataset, dataset.metadata.thing_classes[::-1], ["things", "wall", "sky"])
    for before, after in zip(dataset.records, moved.records, strict=True):
        assert [each["category_id"] for each in after["annotations"]] == [
            len(dataset.metadata.thing_classes) - 1 - each["category_id"] for each in before["annotations"]
        ]
        for old, new in zip(before["segments_info"], after["segments_info"], strict=True):
            kind = "thing_classes" if old["isthing"] else "stuff_classes"
            old_name = getattr(dataset.metadata, kind)[old["category_id"]]
            new_name = getattr(moved.metadata, kind)[new["category_id"]]
            assert old_name == new_name and old["category_id"] != new["category_id"]


def test_stuff_only(made):
    dataset = made.load(stuff_only=True)
    assert dataset.metadata.thing_classes == [] and dataset.metadata.stuff_classes == ["things", "sky", "wall"]
    assert all(record["annotations"] == [] for record in dataset.records)
    assert (read_semantic_labels(dataset.records[0]) == expected_labels(segment_map(20, 26))).all()


def test_classes_of_other_ids_are_matched_by_name(made, tmp_path):
    """Of two datasets of the same classes, one counts them the other way round; labels and objects come out the same."""
    first = made.load()
    exchanged = {92: 40, 40: 92, 3: 1, 1: 3}
    for category in made.content["categories"]:
        category["id"] = exchanged[category["id"]]
    for annotation in made.content["annotations"]:
        for info in annotation["segments_info"]:
            info["category_id"] = exchanged[info["category_id"]]
    second = made.load(keep_truth=True)
    assert second.metadata.thing_classes == ["dog", "cat"] and second.metadata.stuff_classes == ["things", "wall", "sky"]
    assert (read_semantic_labels(second.records[0]) != read_semantic_labels(first.records[0])).any()

    matched = with_panoptic_classes(second, first.metadata.thing_classes, first.metadata.stuff_classes)
    for name in ("thing_classes", "stuff_classes"):
        assert getattr(matched.metadata, name) == getattr(first.metadata, name)
    assert matched.metadata.stuff_dataset_id_to_contiguous_id == {40: 2, 92: 1}
    assert matched.metadata.stuff_colors[2] == first.metadata.stuff_colors[2] == (1, 2, 3)
    assert matched.metadata.thing_colors[0] == (250, 0, 9)
    for ours, theirs in zip(matched.records, first.records):
        assert read_semantic_labels(ours).tolist() == read_semantic_labels(theirs).tolist()
        assert with_truth(ours)[0]["annotations"] == with_truth(theirs)[0]["annotations"]
    assert with_panoptic_classes(first, first.metadata.thing_classes, first.metadata.stuff_classes) is first


def test_a_crowd_is_a_thing_to_the_labels_and_no_target(made):
    made.content["annotations"][1]["segments_info"][0]["iscrowd"] = 1
    record = made.load().records[0]
    sample = training_sample(
        record, np.random.default_rng(0), augmentation=KEEP_SIZE, image_format="RGB", mask_format="polygon", semantic=True
    )
    assert sample["target"]["labels"].tolist() == [0]
    assert sample["target"]["sem_seg"].tolist() == expected_labels(segment_map(20, 26)).tolist()


@pytest.mark.parametrize(
    "augmentation, expected",
    [
        (Augmentation((RandomCrop("absolute", (20, 26)),)), lambda labels: labels),
        (Augmentation((ResizeShortestEdge((40,), 1000),)), lambda labels: labels.repeat(2, axis=0).repeat(2, axis=1)),
        (
            Augmentation((ResizeShortestEdge((10,), 1000),)),
            lambda labels: labels[1::2, 1::2],
        ),  # the nearest pixel's centre, Pillow's rule
    ],
)
def test_labels_are_resized_to_the_nearest_pixel(made, augmentation, expected):
    sample = training_sample(
        made.load().records[0],
        np.random.default_rng(0),
        augmentation=augmentation,
        image_format="RGB",
        mask_format=None,
        semantic=True,
    )
    assert sample["target"]["sem_seg"].dtype == torch.uint8
    assert sample["target"]["sem_seg"].tolist() == expected(expected_labels(segment_map(20, 26))).tolist()


@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
def test_labels_move_with_the_image(tmp_path, flip):
    """An image that is painted with its labels still is after cropping and flipping."""
    ids = segment_map(24, 30)
    write_png(tmp_path / "1.png", ids)
    Image.fromarray(np.repeat(expected_labels(ids)[:, :, None], 3, axis=2).astype(np.uint8)).save(tmp_path / "painted.png")
    record = {
        "file_name": str(tmp_path / "painted.png"),
        "pan_seg_file_name": str(tmp_path / "1.png"),
        "height": 24,
        "width": 30,
        "image_id": 1,
        "annotations": [],
        "segments_info": [
            {"id": i, "category_id": c, "isthing": i in (5, 70000), "iscrowd": 0}
            for i, c in ((5, 1), (70000, 0), (300, 1), (7, 2))
        ],
    }
    augmentation = Augmentation((RandomCrop("relative_range", (0.4, 0.4)), RandomFlip(flip)))
    for seed in range(10):
        sample = training_sample(
            record, np.random.default_rng(seed), augmentation=augmentation, image_format="RGB", mask_format=None, semantic=True
        )
        assert torch.equal(sample["image"][0], sample["target"]["sem_seg"])


@given(st.integers(0, 2**32 - 1))
def test_labels_and_masks_of_any_map(seed):
    random = np.random.default_rng(seed)
    ids = random.choice([0, *random.integers(1, 2**24, 4)], size=tuple(random.integers(1, 9, 2)))
    drawn = sorted(set(ids.ravel().tolist()) - {0})
    infos = [{"id": i, "category_id": n + 1, "isthing": bool(n % 2), "iscrowd": 0} for n, i in enumerate(drawn)]
    labels = semantic_labels(ids.astype(np.uint32), infos)
    for info in infos:
        assert (labels[ids == info["id"]] == (0 if info["isthing"] else info["category_id"])).all()
    assert ((labels == UNLABELLED) == (ids == 0)).all()
    for annotation in instance_annotations(ids.astype(np.uint32), infos):
        rows, columns = np.nonzero(ids == annotation["id"])
        assert annotation["bbox"] == [columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1]


def change_info(**values):
    return lambda content: content["annotations"][0]["segments_info"][2].update(values)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("categories"), r'panoptic.json: no list "categories"'),
        (lambda c: c.update(categories=[{"id": 1, "name": "cat"}]), 'category 1: the key "isthing" is missing'),
        (lambda c: c.update(categories=[{"id": 1, "name": "cat", "isthing": 2}]), "category 1: isthing must be 0 or 1, not 2"),
        (lambda c: c["categories"][0].update(color=[1, 2, 256]), "category 92: color must be"),
        (lambda c: c.update(categories=[{"id": i, "name": "a", "isthing": 0} for i in range(1, 256)]), "255 stuff categories"),
        (lambda c: c.update(categories=[]), '"categories" is empty'),
        (change_info(category_id=2), r'panoptic.json: image 12: segment 300: category id 2 is not in the list "categories"'),
        (change_info(id=2**24), "image 12: a segment id is a whole number from 1 to 16777215.* not 16777216"),
        (change_info(id=0), "image 12: a segment id is a whole number from 1 to 16777215.* not 0"),
        (change_info(id=5), "image 12: segment id 5 occurs more than once"),
        (lambda c: c["annotations"][0].update(image_id=4), "image 4 has more than one annotation"),
        (lambda c: c["annotations"][0].update(image_id=5), 'image 5 is not in the list "images"'),
        (lambda c: c["annotations"][0].update(segments_info=3), "image 12: segments_info must be a list of objects"),
        (lambda c: c["annotations"][0].pop("file_name"), 'image 12: the key "file_name" is missing'),
        (lambda c: c["annotations"][0].update(file_name="13.png"), "13.png of image 12 does not exist; 1 of 2 are absent"),
        (
            lambda c: c["annotations"][0].update(file_name="panoptic/12.png"),
            "1 of 2 are absent; there is .*panoptic/12.png: the name in the annotations begins with too many folders",
        ),
        (lambda c: c["images"][0].update(height=-1), "image 12: height must be a positive integer"),
    ],
)
def test_a_broken_json_is_named_with_the_entry(made, change, message):
    change(made.content)
    with pytest.raises(UserError, match=message):
        made.load()


@pytest.mark.parametrize(
    "ids, message",
    [
        (np.where(segment_map(20, 26) == 7, 8, segment_map(20, 26)), "4.png has a segment 8, which is not in .* of image 4"),
        (np.where(segment_map(20, 26) == 7, 5, segment_map(20, 26)), "4.png lacks segment 7, which is in .* of image 4"),
        (segment_map(26, 20), r"4.png is 20 x 26 pixels \(width x height\), but its image is 26 x 20 by its annotations"),
    ],
)
def test_a_png_that_disagrees_is_named_with_the_segment(made, ids, message):
    dataset = made.load()
    write_png(made.folder / "panoptic" / "4.png", ids)
    with pytest.raises(UserError, match=message):
        read_semantic_labels(dataset.records[0])
    with pytest.raises(UserError, match=message):
        training_sample(
            dataset.records[0], np.random.default_rng(0), augmentation=KEEP_SIZE, image_format="RGB", mask_format=None
        )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["categories"].pop(), "instances.json: its categories are not the things of .*only .*panoptic.json has"),
        (lambda c: c["categories"][0].update(name="bird"), "one has 'bird' where the other has 'dog'"),
        (lambda c: c["images"].pop(0), "its images are not those of .*: 1 are in one only, of which image 12 in .*panoptic.json"),
        (lambda c: c["images"].append({"id": 1, "file_name": "a", "height": 1, "width": 1}), "image 1 in .*instances.json"),
        (lambda c: c["images"][0].update(width=31), "instances.json: image 12: width is 31, but 30 in .*panoptic.json"),
    ],
)
def test_instances_of_something_else_are_refused(made, change, message):
    instances = made.write_instances(change)
    with pytest.raises(UserError, match=message):
        made.load(instances_json=instances)


def test_images_without_annotation_are_left_out(made, caplog):
    made.content["annotations"].pop()
    assert [record["image_id"] for record in made.load().records] == [12]
    assert "left out 1 images without annotation" in caplog.text


@pytest.fixture
def registry(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "_registered", {})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))


def test_registering(made, registry):
    panoptic_json, panoptic_root, image_root = made.paths()
    catalog.register_panoptic("mine", panoptic_json, panoptic_root, image_root)
    catalog.register_panoptic("more", panoptic_json, panoptic_root, image_root, made.write_instances())
    assert catalog.get_dataset("mine").metadata.json_file is None
    assert catalog.get_dataset("more").metadata.json_file.endswith("instances.json")
    with pytest.raises(UserError, match="mine already exists"):
        catalog.register_panoptic("mine", panoptic_json, panoptic_root, "elsewhere")
    with pytest.raises(UserError, match="more already exists"):
        catalog.register_coco("more", "a.json", "images")
    catalog.register_panoptic("gone", panoptic_json, str(made.folder / "gone"), image_root)
    with pytest.raises(UserError, match="dataset gone: expected its panoptic PNG files in .*gone, which is not a folder"):
        catalog.get_dataset("gone")


def test_coco_is_found_where_detectron2_looks(made, registry, tmp_path):
    with pytest.raises(UserError, match="annotations/panoptic_val2017.json, which does not exist; unpack .*panoptic_annotations"):
        catalog.get_dataset("coco_2017_val_panoptic_separated")
    coco = tmp_path / "root" / "coco"
    (coco / "annotations").mkdir(parents=True)
    panoptic_json, panoptic_root, image_root = made.paths()
    for source, name in (
        (panoptic_json, "annotations/panoptic_val2017.json"),
        (panoptic_root, "panoptic_val2017"),
        (image_root, "val2017"),
        (made.write_instances(), "annotations/instances_val2017.json"),
    ):
        (coco / name).symlink_to(source)
    separated = catalog.get_dataset("coco_2017_val_panoptic_separated")
    assert separated.name == "coco_2017_val_panoptic_separated" and len(separated.records[0]["annotations"]) == 1
    assert catalog.get_dataset("coco_2017_val_panoptic_stuffonly").metadata.thing_classes == []


def test_shapes_have_panoptic_truth(registry, monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 3, "val": 2})
    monkeypatch.setattr(shapes.write_shapes, "__defaults__", (shapes.SPLITS, 0))
    dataset = catalog.get_dataset("shapes_train_panoptic")
    assert dataset.metadata.thing_classes == list(shapes.THINGS) and dataset.metadata.stuff_classes == ["things", *shapes.STUFF]
    for record in dataset.records:
        from_png = instance_annotations(read_record_segments(record), record["segments_info"])
        assert [a["category_id"] for a in record["annotations"]] == [a["category_id"] for a in from_png]


def panoptic_config(architecture: str, overrides=()):
    cfg = default_config()
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE",
            architecture,
            "MODEL.ROI_HEADS.NUM_CLASSES",
            2,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            3,
            "MODEL.MASK_ON",
            architecture != "SemanticSegmentor",
            "DATASETS.TRAIN",
            ("mine",),
            "DATASETS.TEST",
            ("mine",),
            "SOLVER.IMS_PER_BATCH",
            2,
            "DATALOADER.NUM_WORKERS",
            0,
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
            architecture == "SemanticSegmentor",
            "INPUT.MIN_SIZE_TRAIN",
            (20,),
            *overrides,
        ]
    )
    return cfg


def train_loader(cfg):
    return build_train_loader(cfg, read_run_data(cfg, train=True).train, seed=0)


@pytest.mark.parametrize(
    "architecture, has_labels", [("GeneralizedRCNN", False), ("PanopticFPN", True), ("SemanticSegmentor", True)]
)
def test_loaders_give_labels_to_the_models_that_learn_them(made, registry, architecture, has_labels):
    catalog.register_panoptic("mine", *made.paths())
    batch = next(train_loader(panoptic_config(architecture)))
    assert all(("sem_seg" in sample["target"]) == has_labels for sample in batch)
    assert all(("masks" in sample["target"]) == (architecture != "SemanticSegmentor") for sample in batch)
    if has_labels:
        assert all(sample["target"]["sem_seg"].shape == sample["image"].shape[1:] for sample in batch)


def test_a_model_of_stuff_alone_needs_no_objects(made, registry):
    for annotation in made.content["annotations"]:
        annotation["segments_info"] = [info for info in annotation["segments_info"] if info["id"] in (300, 7)]
    for image_id, size in ((12, (24, 30)), (4, (20, 26))):
        ids = segment_map(*size)
        write_png(made.folder / "panoptic" / f"{image_id}.png", np.where(np.isin(ids, [300, 7]), ids, 0))
    catalog.register_panoptic("mine", *made.paths())
    batch = next(train_loader(panoptic_config("SemanticSegmentor")))
    assert {label for sample in batch for label in sample["target"]["sem_seg"].unique().tolist()} == {1, 2, UNLABELLED}


@pytest.mark.parametrize("train", [True, False], ids=["train", "test"])
def test_data_that_does_not_fit_the_model_is_refused(made, write_coco, registry, train):
    catalog.register_panoptic("mine", *made.paths())
    with pytest.raises(UserError, match="dataset mine has 3 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 54"):
        read_run_data(panoptic_config("PanopticFPN", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54]), train=train)
    with pytest.raises(UserError, match="dataset mine has 2 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 80"):
        read_run_data(panoptic_config("PanopticFPN", ["MODEL.ROI_HEADS.NUM_CLASSES", 80]), train=train)
    catalog._registered.clear()
    catalog.register_coco("mine", *write_coco([(1, 20, 30)], [{"image_id": 1, "bbox": [1, 1, 4, 4]}]))
    with pytest.raises(UserError, match="dataset mine has no labels of pixels, which MODEL.META_ARCHITECTURE PanopticFPN needs"):
        read_run_data(panoptic_config("PanopticFPN"), train=train)


def test_a_png_of_another_size_is_told_before_it_is_evaluated_against(made):
    write_png(made.folder / "panoptic" / "4.png", segment_map(26, 20))
    made.load()  # training tells when it comes to the image
    with pytest.raises(
        UserError, match=r"4.png is 20 x 26 pixels \(width x height\), but its image is 26 x 20 by its annotations"
    ):
        made.load(keep_truth=True)
    (made.folder / "panoptic" / "4.png").write_bytes(b"no PNG at all")
    with pytest.raises(UserError, match="panoptic PNG .*4.png is not a PNG file"):
        made.load(keep_truth=True)
