"""Reading image files: every mode and orientation, and what is wrong with bad ones."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnest_det.data.image import MAX_PIXELS, check_record_size, read_image, read_record_image, upright_size
from resnest_det.data.label_png import LabelPng, read_label_png
from resnest_det.data.panoptic_png import read_segment_ids
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


RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))


def write_png16(path, values, color):
    """A PNG of 16 bits: values (H, W, C), `color` 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA. Pillow writes gray only."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.mark.parametrize("channels, color", [(1, 0), (3, 2), (2, 4), (4, 6)])
def test_png_of_16_bits_is_the_one_of_8(tmp_path, channels, color):
    values = np.repeat(RAMP.astype(np.uint16)[:, :, None] * 257, channels, axis=2)
    write_png16(tmp_path / "a.png", values, color)
    for image_format, shape in (("RGB", (4, 256, 3)), ("BGR", (4, 256, 3)), ("L", (4, 256, 1))):
        pixels = read_image(tmp_path / "a.png", image_format)
        assert pixels.dtype == np.uint8 and pixels.shape == shape
        np.testing.assert_array_equal(pixels, np.broadcast_to(RAMP[:, :, None], shape))


@pytest.mark.parametrize(
    "name, values",
    [
        ("16.tif", RAMP.astype(np.uint16) * 257),
        ("32.tif", RAMP.astype(np.int32) * 257),
        ("float.tif", RAMP.astype(np.float32) / 255),
        ("16.pgm", RAMP.astype(np.uint16) * 257),
        ("16.jp2", RAMP.astype(np.uint16) * 257),
    ],
)
def test_deep_files_are_the_ones_of_8_bits(tmp_path, name, values):
    if name.endswith(".pgm"):
        (tmp_path / name).write_bytes(b"P5 256 4 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name, "RGB"), np.repeat(RAMP[:, :, None], 3, axis=2))


def test_16_bits_are_divided_by_257_and_rounded(tmp_path):
    values = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "L")[:, :, 0], [[0, 0, 1, 1, 2, 254, 255, 255]])


def test_16_bits_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "L", (256, 4))[:, :, 0], np.rot90(RAMP, -1))


@pytest.mark.parametrize(
    "values, reason",
    [
        (RAMP.astype(np.float32), "float pixels go from 0 to 255, expected 0 for black to 1 for white"),
        (RAMP.astype(np.float32) / -255, "float pixels go from -1 to"),
        (np.full((4, 4), np.nan, np.float32), "float pixels go from nan to nan"),
        (np.full((4, 4), np.inf, np.float32), "float pixels go from inf to inf"),
        (
            np.full((4, 4), 70000, np.int32),
            "32-bit integer pixels go from 70000 to 70000, expected 0 for black to 65535 for white",
        ),
        (np.full((4, 4), -1, np.int32), "32-bit integer pixels go from -1"),
        (RAMP.astype(np.int32), "32-bit integer pixels go from 0 to 255"),  # 8 bits or 16, who knows
    ],
)
def test_values_without_a_rule_are_refused(tmp_path, values, reason):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"a\.tif: {reason}") as error:
        read_image(tmp_path / "a.tif", "BGR")
    assert "\n" not in str(error.value)


def test_transparency_is_left_away(tmp_path):
    pixels = photograph()
    Image.fromarray(np.dstack([pixels, np.zeros((24, 40, 1), np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB"), pixels)


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
    turned = r"a\.jpg is 24 x 40 pixels \(width x height\), turned upright by its EXIF orientation 6, but its annotations say "
    with pytest.raises(UserError, match=turned + "40 x 24, as it is stored: annotate it upright, or take the orientation out"):
        read_record_image(record | {"height": 24, "width": 40}, "BGR")
    with pytest.raises(UserError, match=turned + "40 x 25$"):
        read_record_image(record | {"height": 25, "width": 40}, "BGR")


def test_a_header_tells_what_reading_would(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[274] = 6
    for suffix in ("jpg", "png", "webp", "tif"):
        Image.fromarray(photograph(24, 40)).save(tmp_path / f"a.{suffix}", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    start, end = content.index(b"eXIf") - 4, content.index(b"IDAT") - 4
    (tmp_path / "late.png").write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    Image.fromarray(photograph(40, 24)).save(tmp_path / "plain.png")
    for name in sorted(os.listdir(tmp_path)):
        record = {"file_name": str(tmp_path / name), "height": 40, "width": 24}
        check_record_size(record)
        upright = read_record_image(record, "RGB")
        assert upright.shape == (40, 24, 3)
        if name in ("a.png", "late.png", "a.tif"):
            assert (upright == np.rot90(photograph(24, 40), -1)).all()
        with pytest.raises(UserError, match="is 24 x 40 pixels") as read:
            read_record_image(record | {"height": 24, "width": 40}, "RGB")
        if name != "late.png":  # what stands after the pixels is looked for only where the stored size does not fit
            with pytest.raises(UserError) as looked_at:
                check_record_size(record | {"height": 24, "width": 40})
            assert str(looked_at.value) == str(read.value)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    check_record_size({"file_name": str(tmp_path / "plain.png"), "height": 40, "width": 24})


@pytest.mark.parametrize("orientation", [1, 3])
def test_an_orientation_that_keeps_the_sides_is_not_blamed(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(photograph(24, 40)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(UserError, match=r"a\.jpg is 40 x 24 pixels \(width x height\), but its annotations say 24 x 40$"):
        read_image(tmp_path / "a.jpg", "RGB", (40, 24))


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


def write_png_header(path, width, height, color=2):
    """A PNG of 8 bits whose header promises pixels that are not there; `color` 0 is gray, 2 RGB."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (head, data, b"IEND")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


SIDE = 13_378  # 13,378 squared is just above MAX_PIXELS


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_image(path, "RGB", (SIDE, SIDE)),
        lambda path: read_segment_ids(str(path), (SIDE, SIDE)),
        lambda path: read_label_png(LabelPng(str(path), 3), (SIDE, SIDE)),
    ],
    ids=["image", "panoptic", "label"],
)
def test_what_has_more_pixels_than_can_be_held_is_refused_in_one_line(tmp_path, read, request):
    assert (SIDE - 1) ** 2 < MAX_PIXELS < SIDE**2
    write_png_header(tmp_path / "a.png", SIDE, SIDE, color=0 if "label" in request.node.name else 2)
    with pytest.raises(UserError, match=rf"a\.png has too many pixels; at most {MAX_PIXELS} are read") as error:
        read(tmp_path / "a.png")
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_panoptic_size_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    write_png_header(tmp_path / "a.png", SIDE - 1, SIDE - 1)
    monkeypatch.setattr(Image.Image, "tobytes", lambda *arguments: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"panoptic PNG .*a\.png is 13377 x 13377 pixels .*, but its image is 40 x 24 by its ann"):
        read_segment_ids(str(tmp_path / "a.png"), (24, 40))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DRAWING = b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    "content, said",
    [
        (LFS, "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "is HEIC, as phones save pictures: convert it to JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "is HEIC"),
        (b"\n <!DOCTYPE HTML PUBLIC>\n<html><body>Sign in", "is a web page"),
        (b"<!doctype html><html><body>Sign in", "is a web page, not the file itself: its address has moved, or wants a login"),
        (b"\xef\xbb\xbf<HTML><head>", "is a web page"),
        (DRAWING, r"is a drawing \(SVG\): save it as PNG"),
        (b"%PDF-1.7\n", "is a PDF: save its pages as PNG"),
        (bytes(128) + b"DICM" + bytes(99), "is DICOM: save it as PNG of 16 bits"),
        (b"PK\x03\x04" + bytes(99), "is a zip archive: unpack it"),
        (b"\x93NUMPY\x01\0v\0{}", "is a numpy array"),
    ],
)
def test_what_people_have_in_the_place_of_an_image_is_named(tmp_path, content, said):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    for read in (lambda: read_image(str(path), "RGB"), lambda: upright_size(str(path)), lambda: upright_size(str(path), content)):
        with pytest.raises(UserError, match=f"image {path} {said}") as caught:
            read()
        assert "\n" not in str(caught.value)
