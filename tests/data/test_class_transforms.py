"""Augmentation of classifiers' images: the library's own draws, the crops, and reading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from resnest_det.data.class_samples import collate, evaluation_image, training_image
from resnest_det.data.class_transforms import (
    EIGENVALUES,
    EIGENVECTORS,
    AuthorsCenterCrop,
    EfficientNetCrop,
    draw_lighting,
    evaluation_transform,
    seeded,
    training_transform,
)
from resnest_det.data.jpeg_decoders import DECODERS, jpeg_decoder
from resnest_det.errors import ArgumentError, UserError


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> str:
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    coarse.save(path, quality=90)
    return str(path)


def opened(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn", "rand"])
def test_draws_are_those_of_the_librarys_own_functions(photo, policy):
    own = {"rand_augment": (2, 12)} if policy == "rand" else {"auto_augment": policy}
    first = (
        v2.RandAugment(2, 12, interpolation=InterpolationMode.BILINEAR)
        if policy == "rand"
        else v2.AutoAugment(v2.AutoAugmentPolicy(policy), InterpolationMode.BILINEAR)
    )
    reference = v2.Compose(
        [first, v2.RandomResizedCrop(48, (0.08, 1.0)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4), v2.PILToTensor()]
    )
    transform = training_transform(48, **own, color_jitter=0.4)
    for position in range(5):
        generator = np.random.default_rng([3, position, 1])
        sample = training_image({"file_name": photo, "label": 1}, generator, transform=transform, lighting=0.1, decoder="pil")
        torch.manual_seed(int(np.random.default_rng([3, position, 1]).integers(2**63)))
        assert torch.equal(sample["image"], reference(opened(photo)))
        assert torch.equal(sample["lighting"], draw_lighting(0.1)) and sample["lighting"].any()


def test_reading_leaves_the_global_generator_alone(photo):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    generator = np.random.default_rng(0)
    record = {"file_name": photo, "label": 0}
    training_image(record, generator, transform=training_transform(32), lighting=0.1, decoder="pil")
    assert torch.equal(before, torch.get_rng_state())
    with seeded(1):
        first = torch.rand(2)
    with seeded(1):
        assert torch.equal(first, torch.rand(2))


def test_lighting_is_the_formula():
    with seeded(3):
        shift = draw_lighting(0.1)
    with seeded(3):
        alpha = torch.empty(3).normal_(0, 0.1)
    for channel in range(3):
        expected = sum(EIGENVECTORS[channel][k] * EIGENVALUES[k] * alpha[k].item() for k in range(3))
        assert shift[channel].item() == pytest.approx(expected, abs=1e-7)
    assert not draw_lighting(0.0).any()


def test_efficientnet_crops_are_within_their_limits():
    crop = EfficientNetCrop(32)
    image = Image.new("RGB", (200, 120))
    areas, ratios = [], []
    with seeded(0):
        for _ in range(500):
            top, left, height, width = crop.make_params([image])["box"]
            assert 0 <= top <= 120 - height and 0 <= left <= 200 - width
            areas.append(height * width / (200 * 120))
            ratios.append(width / height)
    assert 0.1 <= min(areas) < 0.13 and 0.5 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.78 and 1.3 < max(ratios) < 1.36
    # Its heights are uniform, so that large crops are more frequent than with uniform areas.
    assert np.mean(areas) > 0.3


def test_an_image_without_a_possible_crop_gets_the_centre():
    crop = EfficientNetCrop(32, area=(0.9, 1.0))
    with seeded(0):
        assert crop.make_params([Image.new("RGB", (400, 40))])["box"] == (10, 190, 20, 20)
        assert crop(Image.new("RGB", (400, 40))).size == (32, 32)


@pytest.mark.parametrize("size, side", [(224, 140), (256, 142), (320, 145), (416, 149)])
def test_the_authors_centre(size, side):
    image = Image.new("RGB", (200, 160))
    crop = AuthorsCenterCrop(size)
    assert crop(image).size == (size, size)
    square = np.full((160, 200, 3), 255, dtype=np.uint8)
    margin = (160 - side) // 2
    square[margin : margin + side, (200 - side) // 2 : (200 - side) // 2 + side] = 0
    assert np.asarray(crop(Image.fromarray(square))).mean() < 4  # all of the cut is inside, up to a rounded edge


def test_evaluation_resizes_as_timm_does(photo):
    from timm.data import create_transform

    reference = create_transform((3, 64, 64), crop_pct=0.875, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    found = evaluation_transform(64, share=0.875, interpolation="bicubic")(opened(photo))
    torch.testing.assert_close(found / 255, reference(opened(photo)), atol=1e-6, rtol=0)


def test_unreadable_images_are_filled_left_out_or_refused(photo, tmp_path):
    good = evaluation_image({"file_name": photo, "label": 2}, transform=evaluation_transform(32), decoder="pil")
    bad = UserError("image x.jpg cannot be read")
    filled = collate([bad, good, bad], strict=False, fill=True)
    assert len(filled) == 3 and filled.labels.tolist() == [2, 2, 2] and filled.unreadable == [str(bad)] * 2
    left = collate([bad, good], strict=False, fill=False)
    assert len(left) == 1 and left.images.dtype == torch.uint8
    assert len(collate([bad], strict=False, fill=False)) == 0
    assert collate([bad], strict=False, fill=True) is bad and collate([good, bad], strict=True, fill=True) is bad


@pytest.mark.parametrize("name", list(DECODERS))
def test_decoders_agree_with_pillow(photo, name):
    try:
        decode = jpeg_decoder(name)
    except ArgumentError as error:
        pytest.skip(str(error))
    if decode is None:
        return
    expected = np.asarray(opened(photo)).astype(int)
    found = decode(Path(photo).read_bytes())
    assert found.shape == expected.shape and found.dtype == np.uint8
    # Versions of libjpeg round chroma upsampling differently.
    assert np.abs(found - expected).max() <= 8 and np.abs(found - expected).mean() < 0.5


@pytest.mark.parametrize("name", list(DECODERS))
def test_other_decoders_turn_images_as_pillow_does(photo, tmp_path, name):
    image = opened(photo)
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=90)
    try:
        sample = evaluation_image(
            {"file_name": str(tmp_path / "turned.jpg"), "label": 0}, transform=v2.PILToTensor(), decoder=name
        )
    except ArgumentError as error:
        pytest.skip(str(error))
    assert sample["image"].shape == (3, 120, 90)


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"crop": "square"}, "crop is 'square'; supported"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"area": (0.5, 0.2)}, "area"),
        ({"area": (0.0, 1.0)}, "area"),
        ({"auto_augment": "coco"}, "auto_augment"),
        ({"rand_augment": (0, 3)}, "rand_augment"),
        ({"rand_augment": (2, 31)}, "rand_augment"),
        ({"color_jitter": -1.0}, "color_jitter"),
        ({"crop_size": 0}, "crop_size"),
    ],
)
def test_impossible_values(arguments, told):
    with pytest.raises(ArgumentError, match=told):
        training_transform(**({"crop_size": 32} | arguments))


def test_an_unknown_decoder():
    with pytest.raises(ArgumentError, match="decoder is 'gif'"):
        jpeg_decoder("gif")
