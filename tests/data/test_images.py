"""Reading image files: every mode and orientation, and what is wrong with bad ones."""

import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnest_det.data.image import read_image, read_record_image
from resnest_det.errors import UserError


def photograph(height=24, width=40):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 2], axis=2).astype(np.uint8)


def test_channel_orders(tmp_path):
    pixels = photograph()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB"), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "BGR"), pixels[:, :, ::-1])
    gray = read_image(tmp_path / "a.png", "L")
    assert gray.shape == (24, 40, 1)
    # ITU-R 601 luma
    np.testing.assert_allclose(gray[:, :, 0], pixels @ [0.299, 0.587, 0.114], atol=1)


MODES = [("L", "png"), ("L", "jpg"), ("P", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("1", "png")]


@pytest.mark.parametrize("mode, suffix", MODES)
def test_every_mode_becomes_three_channels(tmp_path, mode, suffix):
    image = Image.fromarray(photograph()).convert(mode)
    path = tmp_path / f"a.{suffix}"
    image.save(path, quality=95) if suffix == "jpg" else image.save(path)
    read = read_image(path, "RGB")
    assert read.shape == (24, 40, 3) and read.dtype == np.uint8
    np.testing.assert_allclose(read.astype(int), np.asarray(image.convert("RGB")).astype(int), atol=6 if suffix == "jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.fromarray(photograph())
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB"), expected)
    assert expected.shape[:2] == ((24, 40) if orientation <= 4 else (40, 24))


def test_record_size_is_that_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(photograph(24, 40)).save(tmp_path / "a.jpg", exif=exif)
    record = {"file_name": str(tmp_path / "a.jpg"), "height": 40, "width": 24}
    assert read_record_image(record, "BGR").shape == (40, 24, 3)
    with pytest.raises(UserError, match=r"a\.jpg is 24 x 40 pixels .* annotations say 40 x 24"):
        read_record_image(record | {"height": 24, "width": 40}, "BGR")


def test_broken_exif_does_not_hide_the_image(tmp_path):
    image = Image.fromarray(photograph())
    image.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):  # Pillow's
        assert read_image(tmp_path / "a.jpg", "RGB").shape == (24, 40, 3)


def test_a_tag_that_cannot_be_written_back_leaves_no_image_lying(tmp_path):
    """Where Pillow's exif_transpose gives up."""
    # Two entries of a TIFF header: a text as the width (tag 256), and orientation 6 (tag 274).
    exif = struct.pack("<6s2sHLH", b"Exif", b"II", 42, 8, 2)
    exif += struct.pack("<HHL4s", 256, 2, 4, b"wide") + struct.pack("<HHLHH", 274, 3, 1, 6, 0) + bytes(4)
    Image.fromarray(photograph(24, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", "RGB").shape == (40, 24, 3)


def noisy_file(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, kept):
    path = tmp_path / f"cut.{suffix}"
    whole = noisy_file(path)
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UserError, match=f"cut.{suffix} cannot be read") as error:
        read_image(path, "RGB")
    assert "\n" not in str(error.value)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="gone.jpg does not exist"):
        read_image(tmp_path / "gone.jpg", "RGB")
    (tmp_path / "text.jpg").write_text("this is no image")
    with pytest.raises(UserError, match="text.jpg cannot be read"):
        read_image(tmp_path / "text.jpg", "RGB")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path, "RGB")


def test_formats_that_pillow_runs_programs_for_are_not_opened(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **settings: started.append(arguments))
    Image.fromarray(photograph()).save(tmp_path / "photo.eps")
    os.rename(tmp_path / "photo.eps", tmp_path / "photo.jpg")
    with pytest.raises(UserError, match=r"photo\.jpg cannot be read"):
        read_image(tmp_path / "photo.jpg", "RGB")
    assert not started


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match=r"pipe\.jpg cannot be read.*not a regular file"):
        read_image(tmp_path / "pipe.jpg", "RGB")


def test_size_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 24, "width": 41}
    monkeypatch.setattr(Image.Image, "convert", lambda *arguments: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"a\.png is 40 x 24 pixels .* annotations say 41 x 24"):
        read_record_image(record, "RGB")
