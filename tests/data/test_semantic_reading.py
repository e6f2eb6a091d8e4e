"""Datasets with label PNG files: what is read, how images and labels find each other, and what is refused."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from resnest_det.configuration.data import build_train_loader, read_run_data
from resnest_det.configuration.evaluation import build_evaluation_sets
from resnest_det.configuration.reading import load_config
from resnest_det.data import catalog
from resnest_det.data.label_png import UNLABELLED, LabelPng, read_label_png
from resnest_det.data.mapper import training_sample
from resnest_det.data.panoptic import load_coco_panoptic, read_semantic_labels
from resnest_det.data.semantic import SemanticFiles, load_semantic
from resnest_det.data.semantic_files import write_semantic_pngs
from resnest_det.data.shapes import write_shapes
from resnest_det.data.transforms import Augmentation, RandomCrop, RandomFlip, ResizeShortestEdge
from resnest_det.errors import UserError

CLASSES = ("road", "sky", "tree")


@pytest.fixture(autouse=True)
def own_registry(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "_registered", {})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))


def label_map(height=20, width=30):
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[:8], labels[8:14, 4:20], labels[-3:, -5:] = 1, 2, 255
    return labels


@pytest.fixture
def made(tmp_path):
    """made(names of images without extension, values=...) -> arguments of SemanticFiles; labels are `label_map`."""

    def make(names=("a", "b"), *, image_suffix="", label_suffix="", extension="jpg", labels=None, mode="L"):
        for name in names:
            image, label = (
                tmp_path / folder / f"{name}{end}"
                for folder, end in (("images", f"{image_suffix}.{extension}"), ("labels", f"{label_suffix}.png"))
            )
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            values = label_map() if labels is None else labels
            pixels = np.random.default_rng(len(name)).integers(0, 256, (*values.shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image)
            picture = Image.fromarray(values)
            if mode == "P":
                picture.putpalette(list(np.random.default_rng(0).permutation(256).repeat(3)))
            picture.save(label)
        return {"label_root": str(tmp_path / "labels"), "image_root": str(tmp_path / "images"), "classes": CLASSES}

    return make


def load(arguments, **more):
    return load_semantic("mine", SemanticFiles(**arguments | more))


def test_records_and_metadata(made):
    dataset = load(made(["b", "a", "inner/c"]))
    assert [os.path.relpath(record["file_name"], dataset.metadata.image_root) for record in dataset.records] == [
        "a.jpg",
        "b.jpg",
        "inner/c.jpg",
    ]
    record = dataset.records[2]
    assert (record["height"], record["width"], record["image_id"], record["annotations"]) == (20, 30, 3, [])
    assert record["label_png"].file_name.endswith("labels/inner/c.png")
    np.testing.assert_array_equal(read_semantic_labels(record), label_map())
    metadata = dataset.metadata
    assert (metadata.name, metadata.stuff_classes, metadata.thing_classes) == ("mine", list(CLASSES), [])
    assert metadata.json_file is None and len(set(metadata.stuff_colors)) == 3


@pytest.mark.parametrize("mode", ["L", "P"])
def test_palettes_give_indices_not_colors(made, mode):
    np.testing.assert_array_equal(read_semantic_labels(load(made(mode=mode)).records[0]), label_map())


def test_palettes_of_few_colors_have_fewer_bits(made, tmp_path):
    arguments = made(["a"])
    picture = Image.fromarray(label_map() % 2).convert("P")
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.save(tmp_path / "labels" / "a.png", bits=1)
    assert (tmp_path / "labels" / "a.png").read_bytes()[24] == 1
    np.testing.assert_array_equal(read_semantic_labels(load(arguments).records[0]), label_map() % 2)


@pytest.mark.parametrize("ignore_value", [0, 1, 7, 254, 255])
def test_the_datasets_ignore_value_becomes_one(made, ignore_value):
    labels = label_map()
    labels[labels == 255] = ignore_value
    expected = np.where(labels == ignore_value, UNLABELLED, labels)
    record = load(made(labels=labels), ignore_value=ignore_value).records[0]
    np.testing.assert_array_equal(read_semantic_labels(record), expected)


@pytest.mark.parametrize("value, ignore_value", [(3, 255), (254, 255), (255, 0), (255, 254)])
def test_a_value_that_is_no_class_is_named(made, value, ignore_value):
    labels = label_map()
    labels[labels == 255] = 0
    labels[4, 5] = value
    record = load(made(labels=labels), ignore_value=ignore_value).records[0]
    message = f"label PNG .*labels/a.png has a pixel of value {value}; there are 3 classes, 0 to 2, and {ignore_value} is for"
    with pytest.raises(UserError, match=message):
        read_semantic_labels(record)


def test_values_that_are_no_classes_are_counted(made):
    labels = label_map()
    labels[4, 5:9], labels[6, :3], labels[7, :2] = 9, 77, 250
    message = "has 4 pixels of value 9, and 5 of 2 other values that are none; there are 3 classes"
    with pytest.raises(UserError, match=message):
        read_semantic_labels(load(made(labels=labels)).records[0])


@pytest.mark.parametrize(
    "classes, names, colors",
    [
        (("road", "sky"), ["road", "sky"], {}),
        (2, ["0", "1"], {}),
        ("c.txt:road\n\n sky \n", ["road", "sky"], {}),
        ('c.json:["road", "sky"]', ["road", "sky"], {}),
        ('c.json:[{"name": "road", "color": [1, 2, 3]}, {"name": "sky", "id": 1}]', ["road", "sky"], {0: (1, 2, 3)}),
    ],
)
def test_forms_of_classes(made, tmp_path, classes, names, colors):
    if isinstance(classes, str):
        file_name, _, text = classes.partition(":")
        (tmp_path / file_name).write_text(text)
        classes = str(tmp_path / file_name)
    metadata = load(made(), classes=classes).metadata
    assert metadata.stuff_classes == names and len(metadata.stuff_colors) == 2
    for index, color in colors.items():
        assert metadata.stuff_colors[index] == color


@pytest.mark.parametrize(
    "classes, message",
    [
        (("road",), "dataset mine: 1 classes; supported: 2 to 255"),
        (256, "dataset mine: 256 classes; supported: 2 to 255"),
        (("road", "sky", "road"), "dataset mine: two classes are called 'road'"),
        ("c.txt:road", "c.txt: 1 classes"),
        ("c.json:{}", "c.json: must be a list of names"),
        ("c.json:[1,", "c.json: malformed JSON at line 1, column 4"),
        ('c.json:["road", ""]', "c.json: class 1: the name must be printable text, not ''"),
        ("c.txt:road\nsky\x1b[2J", r"c.txt: class 1: the name must be printable text, not 'sky.x1b"),
        ('c.json:["road", {"label": "sky"}]', "c.json: class 1: the name must be printable text, not None"),
        ('c.json:[{"name": "road", "color": [1, 2]}, "sky"]', "c.json: class 0: color must be three whole numbers"),
        (
            'c.json:[{"name": "road", "id": 1}, {"name": "sky", "id": 7}]',
            "c.json: class 0: its id is 1, but the value of a pixel",
        ),
        ("absent.txt", "absent.txt: cannot be read: No such file"),
    ],
)
def test_classes_that_cannot_be(made, tmp_path, classes, message):
    if isinstance(classes, str):
        file_name, colon, text = classes.partition(":")
        if colon:
            (tmp_path / file_name).write_text(text)
        classes = str(tmp_path / file_name)
    with pytest.raises(UserError, match=message) as error:
        load(made(), classes=classes)
    assert "\n" not in str(error.value)


def test_names_that_differ_in_what_ends_them(made, tmp_path):
    """As in Cityscapes, where other files lie beside the labels."""
    arguments = made(["bonn/1_0", "ulm/1_0"], image_suffix="_leftImg8bit", label_suffix="_gtFine_labelTrainIds", extension="png")
    for other in ("bonn/1_0_gtFine_color.png", "ulm/1_0_gtFine_polygons.json"):
        (tmp_path / "labels" / other).write_bytes(b"")
    dataset = load(arguments, image_suffix="_leftImg8bit", label_suffix="_gtFine_labelTrainIds")
    assert [record["label_png"].file_name[len(str(tmp_path)) :] for record in dataset.records] == [
        "/labels/bonn/1_0_gtFine_labelTrainIds.png",
        "/labels/ulm/1_0_gtFine_labelTrainIds.png",
    ]


def test_labels_beside_the_images(made):
    arguments = made(label_suffix="_L", extension="png")
    for name in ("a", "b"):
        os.rename(f"{arguments['label_root']}/{name}_L.png", f"{arguments['image_root']}/{name}_L.png")
    dataset = load(arguments | {"label_root": arguments["image_root"]}, label_suffix="_L")
    assert [os.path.basename(record["file_name"]) for record in dataset.records] == ["a.png", "b.png"]


def test_a_list_chooses_images(made, tmp_path):
    """As in VOC, where few of the images have labels."""
    arguments = made(["a", "b", "c/d"])
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "unlabelled.jpg")
    (tmp_path / "train.txt").write_text("c/d.jpg\n\nb\n")
    dataset = load(arguments, list_file=str(tmp_path / "train.txt"))
    assert [os.path.basename(record["file_name"]) for record in dataset.records] == ["b.jpg", "d.jpg"]
    (tmp_path / "train.txt").write_text("b\nz\n")
    with pytest.raises(UserError, match="train.txt: line 2: there is no image 'z' in .*/images"):
        load(arguments, list_file=str(tmp_path / "train.txt"))


def test_absent_labels_are_told_when_the_dataset_is_read(made, tmp_path):
    arguments = made(["a", "b", "c"])
    for name in ("b", "c"):
        os.remove(tmp_path / "labels" / f"{name}.png")
    with pytest.raises(UserError, match="label PNG .*labels/b.png of image .*images/b.jpg does not exist; 2 of 3 are absent"):
        load(arguments)


def test_two_images_of_one_name(made, tmp_path):
    arguments = made(["a"])
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match=r"images/a\.(jpg|png) and .*images/a\.(jpg|png): which of them"):
        load(arguments)


def test_no_images(made, tmp_path):
    arguments = made(["a"])
    os.remove(tmp_path / "images" / "a.jpg")
    with pytest.raises(UserError, match="dataset mine: there are no images in .*images"):
        load(arguments)


@pytest.mark.parametrize(
    "mode, kind",
    [("I;16", "16-bit gray"), ("RGB", "8-bit RGB"), ("RGBA", "8-bit RGBA"), ("1", "1-bit gray"), ("LA", "gray and alpha")],
)
def test_pixels_that_are_not_a_byte_are_refused_before_training(made, tmp_path, mode, kind):
    arguments = made(["a"])
    Image.new(mode, (30, 20)).save(tmp_path / "labels" / "a.png")
    with pytest.raises(UserError, match=f"label PNG .*a.png: its pixels are .*{kind}; a class is one byte.*255 classes"):
        load(arguments)


def test_files_that_are_no_png_or_damaged(made, tmp_path):
    arguments = made(["a"], labels=np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8))
    record = load(arguments).records[0]
    path = tmp_path / "labels" / "a.png"
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(UserError, match="label PNG .*a.png cannot be read") as error:
        read_semantic_labels(record)
    assert "\n" not in str(error.value)
    Image.new("L", (30, 20)).save(path, format="JPEG")
    with pytest.raises(UserError, match="label PNG .*a.png is not a PNG file"):
        load(arguments)


def test_labels_of_another_size_are_named(made, tmp_path):
    arguments = made(["a"])
    Image.fromarray(label_map(10, 30)).save(tmp_path / "labels" / "a.png")
    record = load(arguments).records[0]
    with pytest.raises(UserError, match=r"image .*a.jpg is 30 x 20 pixels .*, but its label PNG .*labels/a.png is 30 x 10"):
        sample_of(record)
    with pytest.raises(UserError, match=r"a.png is 30 x 10 pixels \(width x height\), but its image is 30 x 20"):
        read_label_png(LabelPng(str(tmp_path / "labels" / "a.png"), 3), (20, 30))


def sample_of(record, steps=(), seed=0, **arguments):
    generator, augmentation = np.random.default_rng(seed), Augmentation(steps)
    return training_sample(
        record, generator, augmentation=augmentation, image_format="RGB", mask_format=None, semantic=True, **arguments
    )


@pytest.mark.parametrize("ignore_value", [255, 0, -1, 300])
def test_the_target_has_the_models_ignore_value(made, ignore_value):
    record = load(made()).records[0]
    target = sample_of(record, ignore_value=ignore_value)["target"]["sem_seg"]
    expected = np.where(label_map() == 255, ignore_value, label_map().astype(int))
    np.testing.assert_array_equal(target.numpy(), expected)
    assert target.dtype == (torch.uint8 if ignore_value == 255 else torch.int64)


@pytest.fixture
def shapes(tmp_path):
    """A panoptic dataset of shapes with an instance file, and the arguments of one that has the same labels as PNG files."""
    folder = tmp_path / "shapes"
    write_shapes(folder, {"train": 4})
    instances = f"{folder}/annotations/instances_train.json"
    panoptic = load_coco_panoptic(
        "panoptic", f"{folder}/annotations/panoptic_train.json", f"{folder}/panoptic_train", f"{folder}/train", instances
    )
    write_semantic_pngs(panoptic, str(tmp_path / "shape_labels"), 1)
    classes = tuple(panoptic.metadata.stuff_classes)
    folders = {"label_root": str(tmp_path / "shape_labels"), "image_root": f"{folder}/train"}
    return panoptic, {**folders, "classes": classes, "instances_json": instances}


def test_label_pngs_beside_an_instance_file_are_the_same_truth_as_a_panoptic_one(shapes):
    panoptic, arguments = shapes
    separate = load_semantic("separate", SemanticFiles(**arguments))
    assert separate.metadata.json_file == arguments["instances_json"]
    assert separate.metadata.thing_classes == panoptic.metadata.thing_classes
    steps = RandomCrop("relative_range", (0.5, 0.5)), ResizeShortestEdge((50, 70), 99), RandomFlip()
    for seed, (ours, theirs) in enumerate(zip(separate.records, panoptic.records, strict=True)):
        assert (ours["image_id"], ours["annotations"]) == (theirs["image_id"], theirs["annotations"])
        ours, theirs = sample_of(ours, steps, seed), sample_of(theirs, steps, seed)
        assert torch.equal(ours["image"], theirs["image"])
        assert all(torch.equal(ours["target"][key], theirs["target"][key]) for key in ("boxes", "labels", "sem_seg"))


def test_label_pngs_of_another_size_than_the_instance_file_says(shapes):
    _, arguments = shapes
    name = sorted(os.listdir(arguments["label_root"]))[1]
    Image.new("L", (9, 9)).save(os.path.join(arguments["label_root"], name))
    with pytest.raises(UserError, match=rf"label PNG .*{name} is 9 x 9 pixels .*, but image 2 is \d+ x \d+ by its annotations"):
        load_semantic("separate", SemanticFiles(**arguments))


def test_settings_that_exclude_each_other_or_cannot_be():
    with pytest.raises(UserError, match="^list_file is l.txt, but the images are those of i.json already"):
        SemanticFiles("labels", "images", 3, list_file="l.txt", instances_json="i.json")
    for value in (-1, 256, "0"):
        with pytest.raises(UserError, match=f"^ignore_value is {value!r}; it must be the value of a byte"):
            SemanticFiles("labels", "images", 3, value)


def test_registering(made, tmp_path):
    arguments = made()
    folders = arguments["label_root"], arguments["image_root"]
    catalog.register_semantic("mine", *folders, list(CLASSES))
    catalog.register_semantic("mine", *folders, CLASSES)
    assert catalog.get_dataset("mine").metadata.stuff_classes == list(CLASSES)
    with pytest.raises(UserError, match="mine already exists"):
        catalog.register_semantic("mine", *folders, CLASSES, ignore_value=0)
    catalog.register_semantic("gone", str(tmp_path / "gone"), folders[1], 3)
    with pytest.raises(UserError, match="dataset gone: expected its label PNG files in .*gone, which is not a folder"):
        catalog.get_dataset("gone")
    with pytest.raises(UserError, match="--register-semantic gome=LABEL_DIR,IMAGE_DIR,CLASSES"):
        catalog.get_dataset("gome")


def config(*overrides, base="semantic_ResNeSt50_FPN", classes=3):
    return load_config(
        base,
        [
            "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu",
            "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(20,)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(classes),
            *overrides,
        ],
    )  # fmt: skip


@pytest.mark.parametrize("key, own", [(255, 0), (-1, 255), (2, 255)])
def test_loaders_bring_the_datasets_ignore_value_to_the_key(made, key, own):
    """Also to a value that is a class: that is then not learned, as in Detectron2."""
    labels = label_map()
    labels[labels == 255] = own
    arguments = made(labels=labels)
    catalog.register_semantic("mine", arguments["label_root"], arguments["image_root"], CLASSES, ignore_value=own)
    cfg = config("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", str(key))
    batch = next(build_train_loader(cfg, read_run_data(cfg, train=True).train, seed=0))
    present = set(np.unique(labels).tolist()) - {own} | {key}
    assert all(set(sample["target"]["sem_seg"].unique().tolist()) == present for sample in batch)


def test_data_that_does_not_fit_the_model_is_refused(made, shapes):
    arguments = made()
    catalog.register_semantic("mine", arguments["label_root"], arguments["image_root"], CLASSES)
    with pytest.raises(UserError, match="dataset mine has 3 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 19"):
        read_run_data(config(classes=19), train=True)
    with pytest.raises(UserError, match="dataset mine has no objects, only labels of pixels; .* PanopticFPN cannot"):
        read_run_data(config(base="panoptic_ResNeSt14_FPN_shapes"), train=True)


def test_panoptic_quality_needs_panoptic_truth(shapes):
    panoptic, arguments = shapes
    catalog.register_semantic("mine", **arguments)
    classes = len(panoptic.metadata.stuff_classes)
    cfg = config(base="panoptic_ResNeSt14_FPN_shapes", classes=classes)
    with pytest.raises(UserError, match="dataset mine has no panoptic truth .*; set MODEL.PANOPTIC_FPN.COMBINE.ENABLED False"):
        build_evaluation_sets(cfg, read_run_data(cfg, train=False).test)
    cfg = config("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", "False", base="panoptic_ResNeSt14_FPN_shapes", classes=classes)
    (evaluated,) = build_evaluation_sets(cfg, read_run_data(cfg, train=False).test)
    assert [type(each).__name__ for each in evaluated.evaluators] == ["COCOEvaluator", "SemSegEvaluator"]


def test_a_json_file_of_classes_that_a_tool_wrote(made, tmp_path):
    (tmp_path / "c.json").write_text("\ufeff" + json.dumps([{"name": name, "id": i} for i, name in enumerate(CLASSES)]))
    assert load(made(), classes=str(tmp_path / "c.json")).metadata.stuff_classes == list(CLASSES)


def test_zero_may_be_no_label(made):
    labels = np.where(label_map() == 255, 0, label_map() + 1).astype(np.uint8)
    dataset = load(made(labels=labels), reduce_zero_label=True)
    np.testing.assert_array_equal(read_semantic_labels(dataset.records[0]), label_map())
    assert dataset.metadata.label_values == (1, 2, 3) and dataset.metadata.stuff_classes == list(CLASSES)
    labels[0, :2] = 4
    with pytest.raises(UserError, match="2 pixels of value 4; values 0 to 3 are known, and 255 is for pixels without a label"):
        read_semantic_labels(load(made(labels=labels), reduce_zero_label=True).records[0])


def test_labels_without_an_image_are_told(made, tmp_path, caplog):
    arguments = made(["a", "b", "c"])
    os.remove(tmp_path / "images" / "b.jpg")
    with caplog.at_level("WARNING"):
        assert len(load(arguments).records) == 2
    assert "1 of 3 label PNG files have no image in" in caplog.text and "labels/b.png; left out" in caplog.text


def test_folders_that_are_exchanged_are_told(made):
    arguments = made()
    exchanged = arguments | {"label_root": arguments["image_root"], "image_root": arguments["label_root"]}
    with pytest.raises(UserError, match="2 of 2 are absent; the folder of labels comes first.*are they exchanged"):
        load(exchanged)
