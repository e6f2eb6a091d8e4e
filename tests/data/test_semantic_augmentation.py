"""Augmentation for labels of pixels: longest sides, padding, windows without one class alone, and colors."""

import numpy as np
import pytest
from PIL import Image

from resnest_det.configuration.data import build_augmentation
from resnest_det.configuration.reading import load_config
from resnest_det.data.colors import RandomColor, Recolor, from_hsv, to_hsv
from resnest_det.data.label_png import UNLABELLED, LabelPng
from resnest_det.data.mapper import training_sample
from resnest_det.data.transforms import (
    Augmentation,
    Pad,
    PadTo,
    RandomCrop,
    RandomFlip,
    ResizeLongestEdge,
    ResizeShortestEdge,
    long_side_size,
    transform_labels,
    transform_mask,
)
from resnest_det.errors import ArgumentError, UserError

# What `_sync_transform` of PyTorch-Encoding's encoding/datasets/base.py makes of (height, width, long side).
AUTHORS_SIZES = [
    ((375, 500, 260), (195, 260)),
    ((500, 375, 1040), (1040, 780)),
    ((512, 683, 777), (582, 777)),
    ((640, 640, 301), (301, 301)),
    ((1024, 2048, 1025), (513, 1025)),
    ((333, 1000, 523), (174, 523)),
]
SEMANTIC = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"]


@pytest.mark.parametrize("case, expected", AUTHORS_SIZES)
def test_long_side_sizes_are_the_authors(case, expected):
    assert long_side_size(*case) == expected


def test_no_side_vanishes():
    assert long_side_size(1, 2000, 40) == (1, 40) and long_side_size(2000, 1, 40) == (40, 1)


def draws(step, height, width, count=400):
    return [step.draw(height, width, np.random.default_rng(seed)) for seed in range(count)]


def test_every_long_side_of_the_range_is_drawn():
    sizes = {resize.size for resize in draws(ResizeLongestEdge((10, 14)), 20, 10)}
    assert sizes == {(10, 5), (11, 6), (12, 6), (13, 7), (14, 7)}


def test_padding_is_black_below_and_to_the_right_and_has_no_label():
    pixels = np.full((4, 6, 3), 9, dtype=np.uint8)
    pad = PadTo((7, 5)).draw(4, 6, np.random.default_rng(0))
    assert pad == Pad((4, 6), (7, 6)) and PadTo((3, 5)).draw(4, 6, np.random.default_rng(0)) is None
    padded, labels = pad.image(pixels), transform_labels(pixels[:, :, 0], [pad])
    assert padded.shape == (7, 6, 3) and (padded[:4] == 9).all() and (padded[4:] == 0).all()
    assert labels.shape == (7, 6) and (labels[:4] == 9).all() and (labels[4:] == UNLABELLED).all()
    assert (transform_mask(pixels[:, :, 0], [pad])[4:] == 0).all(), "of an object there is nothing"
    points = np.array([[1.0, 2.0]])
    assert (pad.points(points) == points).all() and pad.polygons([points]) == [points]


def test_a_sample_is_what_the_authors_make_of_the_same_draw(tmp_path):
    """Their steps by hand, with Pillow: scale, pad with black and 0, which means no label, crop."""
    rng = np.random.default_rng(0)
    picture, labels = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8), rng.integers(0, 9, (30, 50), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "l.png")
    augmentation = Augmentation((ResizeLongestEdge((52, 52)), PadTo((48, 48)), RandomCrop("absolute", (48, 48))))
    record = {"file_name": str(tmp_path / "a.png"), "height": 30, "width": 50, "image_id": 1, "annotations": []}
    record["label_png"] = LabelPng(str(tmp_path / "l.png"), 8, values=(UNLABELLED, *range(8)))
    sample = training_sample(
        record, np.random.default_rng(5), augmentation=augmentation, image_format="RGB", mask_format=None, semantic=True
    )
    generator = np.random.default_rng(5)
    generator.integers(2**63)
    crop = augmentation.draw(30, 50, generator)[-1]
    assert (crop.y0, crop.size) == (0, (48, 48)) and 0 <= crop.x0 <= 4
    scaled = Image.fromarray(picture).resize((52, 31), Image.Resampling.BILINEAR)
    scaled_labels = Image.fromarray(labels).resize((52, 31), Image.Resampling.NEAREST)
    expected = np.zeros((48, 52, 3), dtype=np.uint8)
    expected[:31] = np.asarray(scaled)
    expected_labels = np.zeros((48, 52), dtype=int)
    expected_labels[:31] = np.asarray(scaled_labels)
    expected_labels = np.where(expected_labels == 0, UNLABELLED, expected_labels - 1)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), expected[:, crop.x0 : crop.x0 + 48])
    np.testing.assert_array_equal(sample["target"]["sem_seg"].numpy(), expected_labels[:, crop.x0 : crop.x0 + 48])


def test_a_window_of_one_class_is_drawn_again():
    labels = np.zeros((20, 200), dtype=np.uint8)
    labels[:, 150:152], labels[0] = 1, UNLABELLED
    crop = RandomCrop("absolute", (20, 20), max_area=0.95)
    with_two, counts = 0, []
    for seed in range(300):
        window = crop.draw(20, 200, np.random.default_rng(seed), labels).mask(labels)
        counts.append(len(set(window.ravel()) - {UNLABELLED}))
        with_two += counts[-1] == 2
    alone = sum(crop.draw(20, 200, np.random.default_rng(seed)).x0 in range(131, 152) for seed in range(300)) / 300
    assert alone < 0.2 and with_two / 300 == pytest.approx(1 - (1 - 21 / 181) ** 10, abs=0.08)
    # Within the limit, a class may be the larger one; none is looked for where no limit is set.
    half = np.zeros((20, 40), dtype=np.uint8)
    half[:, 20:] = 1
    first = RandomCrop("absolute", (20, 20)).draw(20, 40, np.random.default_rng(3), half)
    assert first == RandomCrop("absolute", (20, 20), max_area=1.0).draw(20, 40, np.random.default_rng(3))


def test_unlabelled_pixels_count_for_no_class():
    """As `ignored_category`: 30 of 100 labelled pixels are of class 1, whatever is around them."""
    labels = np.full((40, 40), UNLABELLED, dtype=np.uint8)
    labels[0, : 70 % 40], labels[1, :40], labels[2, :30] = 0, 0, 1
    for limit, kept in ((0.71, True), (0.70, False)):
        generator = np.random.default_rng(0)
        RandomCrop("absolute", (40, 40), max_area=limit).draw(40, 40, generator, labels)
        after = np.random.default_rng(0)
        for _ in range(1 if kept else 10):
            after.integers(1), after.integers(1)
        assert generator.integers(10**9) == after.integers(10**9)


def test_labels_move_with_what_was_drawn_before_the_window():
    labels = np.zeros((10, 10), dtype=np.uint8)
    labels[:, 9] = 1
    augmentation = Augmentation((ResizeShortestEdge((20,), 99), RandomCrop("absolute", (20, 20), max_area=0.99)))
    assert augmentation.looks_at_labels and not Augmentation((RandomCrop("absolute", (9, 9)),)).looks_at_labels
    resize, crop = augmentation.draw(10, 10, np.random.default_rng(0), labels)
    assert resize.size == crop.size == (20, 20)


def test_colors_change_as_opencv_changes_them():
    """Against OpenCV's own conversions: a round trip of hue is off by two of 255 at most, by their 8 bits."""
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    ours = np.stack(to_hsv(pixels), axis=2)
    theirs = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV).astype(int)
    turned = (ours - theirs)[:, :, 0]
    assert np.abs((turned + 90) % 180 - 90).max() <= 1 and np.abs((ours - theirs)[:, :, 1:]).max() <= 1
    back = cv2.cvtColor(theirs.astype(np.uint8), cv2.COLOR_HSV2RGB).astype(int)
    assert np.abs(from_hsv(*np.moveaxis(theirs.astype(np.float32), 2, 0)).astype(int) - back).max() <= 1


def test_changes_of_color_by_hand():
    gray = np.full((2, 2, 3), 100, dtype=np.uint8)
    changed = dict(brightness=None, contrast=None, saturation=None, hue=None, contrast_first=False, bgr=False)
    assert (Recolor((2, 2), **changed | {"brightness": 30.6}).image(gray) == 130).all()
    assert (Recolor((2, 2), **changed | {"contrast": 3.0}).image(gray) == 255).all()
    red = np.zeros((1, 1, 3), dtype=np.uint8)
    red[..., 0] = 200
    for bgr, pixels in ((False, red), (True, red[:, :, ::-1])):
        turned = Recolor((1, 1), **changed | {"hue": 60, "bgr": bgr}).image(pixels)
        assert (turned[..., ::-1] if bgr else turned).tolist() == [[[0, 200, 0]]]
        pale = Recolor((1, 1), **changed | {"saturation": 0.5, "bgr": bgr}).image(pixels)
        assert (pale[..., ::-1] if bgr else pale).tolist() == [[[200, 100, 100]]]
    labels = np.ones((2, 2), dtype=np.uint8)
    assert Recolor((2, 2), **changed).mask(labels) is labels


def test_half_of_the_images_get_each_change_of_color():
    steps = draws(RandomColor(bgr=True), 4, 4, 2000)
    for name, limit in (("brightness", (-32, 32)), ("contrast", (0.5, 1.5)), ("saturation", (0.5, 1.5)), ("hue", (-18, 18))):
        drawn = [getattr(step, name) for step in steps if getattr(step, name) is not None]
        assert 900 < len(drawn) < 1100 and limit[0] <= min(drawn) and max(drawn) <= limit[1]
        assert np.mean(drawn) == pytest.approx(np.mean(limit), abs=0.05 * (limit[1] - limit[0]))
    assert 900 < sum(step.contrast_first for step in steps) < 1100


def names_of(cfg):
    return [type(step).__name__ for step in build_augmentation(cfg).steps]


def test_a_model_of_pixels_crops_what_was_resized():
    crop = ["INPUT.CROP.ENABLED", True]
    own = load_config("semantic_ResNeSt50_FPN", crop + ["INPUT.COLOR_AUG_SSD", True])
    assert names_of(own) == ["ResizeShortestEdge", "RandomCrop", "RandomColor", "RandomFlip"]
    assert names_of(load_config("mask_rcnn_ResNeSt50_FPN", crop))[:2] == ["RandomCrop", "ResizeShortestEdge"]


def test_the_authors_augmentation_by_keys():
    values = ["INPUT.LONG_SIDE_TRAIN", (260, 1040), "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"]
    values += ["INPUT.CROP.SIZE", (480, 480), "INPUT.CROP.PAD", True]
    expected = (ResizeLongestEdge((260, 1040)), PadTo((480, 480)), RandomCrop("absolute", (480, 480)), RandomFlip())
    assert build_augmentation(load_config("semantic_ResNeSt50_FPN", values)).steps == expected


@pytest.mark.parametrize(
    "values, message",
    [
        (["INPUT.CROP.PAD", True], "INPUT.CROP.PAD True needs INPUT.CROP.ENABLED True"),
        (["INPUT.CROP.PAD", True, "INPUT.CROP.ENABLED", True], "INPUT.CROP.PAD True needs INPUT.CROP.TYPE 'absolute', not"),
        (["INPUT.LONG_SIDE_TRAIN", (7, 5)], r"INPUT.LONG_SIDE_TRAIN is \(7, 5\)"),
        (["INPUT.LONG_SIDE_TRAIN", (7,)], r"INPUT.LONG_SIDE_TRAIN is \(7,\); it must be two whole numbers"),
        (
            ["INPUT.LONG_SIDE_TRAIN", (100, 400), "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"]
            + ["INPUT.CROP.SIZE", (480, 480)],
            r"INPUT.CROP.SIZE \(480, 480\) is larger than any image .*set INPUT.CROP.PAD True",
        ),
        (
            ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0],
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is 0; it must be above 0",
        ),
        (
            ["INPUT.COLOR_AUG_SSD", True, "INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [1.0], "MODEL.PIXEL_STD", [1.0]],
            "INPUT.COLOR_AUG_SSD True is not supported with INPUT.FORMAT 'L'",
        ),
        (["TEST.AUG.WINDOW", (480,)], r"TEST.AUG.WINDOW is \(480,\)"),
        (["TEST.AUG.SCALES", (0.0, 1.0)], r"TEST.AUG.SCALES is \(0.0, 1.0\)"),
        (["TEST.AUG.COMBINE", "logits"], "TEST.AUG.COMBINE is 'logits'; supported: probabilities, exponentials"),
    ],
)
def test_values_that_cannot_be_are_named(values, message):
    with pytest.raises(UserError, match=message) as error:
        load_config("semantic_ResNeSt50_FPN", values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("build", [lambda: PadTo((0, 4)), lambda: RandomCrop("absolute", (4, 4), 1.5)])
def test_impossible_steps(build):
    with pytest.raises(ArgumentError):
        build()
