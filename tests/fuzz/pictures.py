"""Damage pictures at random, and see that reading one gives pixels or one line.

    python -m tests.fuzz.pictures --count 10000 --seed 0

reads that many damaged files of each kind, under the limits of `tests/fuzz/limits.py`, and prints those that ended in anything
else. Images come in every format that is read, label PNG and panoptic PNG files with their records. Half of the PNG files have
right checksums after the damage, so that it gets past the first look. A short run of it is in the suite.
"""

import functools
import io
import logging
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from resnest_det.data.image import read_image
from resnest_det.data.label_png import LabelPng
from resnest_det.data.panoptic import read_semantic_labels, with_truth
from resnest_det.data.panoptic_png import encode_segment_ids
from tests.fuzz.checkpoints import damaged
from tests.fuzz.limits import command, problem_of

HEIGHT, WIDTH = 24, 40
SEGMENTS = (1, 300, 2**24 - 1)
# Numbers of four bytes that decide over sizes and offsets.
EDGES = (0, 1, 2, 24, 40, 255, 256, 2**15, 2**16 - 1, 2**16, 13_377, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@functools.cache
def whole_files() -> dict[str, bytes]:
    """Kind to the content of a small file of it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    photograph = Image.fromarray(np.stack([x * 6, y * 10, 255 - x * 3 - y * 2], axis=2).astype(np.uint8))
    exif = Image.Exif()
    exif[274], exif[0x8769] = 6, {0x9003: "2026:01:01 00:00:00"}
    kinds = {
        "jpeg": (photograph, {"format": "JPEG", "exif": exif, "icc_profile": b"\0" * 200}),
        "jpeg progressive": (photograph.convert("CMYK"), {"format": "JPEG", "progressive": True, "comment": b"a" * 50}),
        "png": (photograph, {"format": "PNG", "exif": exif}),
        "png palette": (photograph.convert("P"), {"format": "PNG", "transparency": 3}),
        "png 16 bits": (Image.fromarray((x * 1000).astype(np.uint16)), {"format": "PNG"}),
        "webp": (photograph, {"format": "WEBP"}),
        "bmp": (photograph, {"format": "BMP"}),
        "gif": (photograph.convert("P"), {"format": "GIF", "save_all": True, "append_images": [photograph.convert("P")]}),
        "tiff": (photograph, {"format": "TIFF"}),
        "tiff lzw": (photograph, {"format": "TIFF", "compression": "tiff_lzw"}),
        "tiff jpeg": (photograph, {"format": "TIFF", "compression": "jpeg"}),
        "tiff float": (Image.fromarray((x / 40).astype(np.float32)), {"format": "TIFF", "compression": "tiff_deflate"}),
        "ppm": (photograph, {"format": "PPM"}),
        "jpeg 2000": (photograph, {"format": "JPEG2000"}),
    }
    Image.init()
    if "AVIF" in Image.SAVE:
        kinds["avif"] = (photograph, {"format": "AVIF"})
    files = {}
    for kind, (image, how) in kinds.items():
        file = io.BytesIO()
        image.save(file, **how)
        files[kind] = file.getvalue()
    file = io.BytesIO()
    Image.fromarray((x // 14).astype(np.uint8)).save(file, format="PNG")
    files["labels"] = file.getvalue()
    files["panoptic"] = encode_segment_ids(np.array(SEGMENTS)[x // 14], "it")
    return files


def read(kind: str, path: Path, sized: bool) -> np.ndarray:
    """The pixels of a file of that kind; `sized`: an annotation says what size it has."""
    record = {"height": HEIGHT, "width": WIDTH, "image_id": 1, "annotations": []}
    if kind == "labels":
        return read_semantic_labels(record | {"label_png": LabelPng(str(path), 3)})
    if kind == "panoptic":
        segments = [
            {"id": number, "category_id": 1 + index, "isthing": index == 0, "iscrowd": 0} for index, number in enumerate(SEGMENTS)
        ]
        return with_truth(record | {"pan_seg_file_name": str(path), "segments_info": segments, "objects_in_png": True})[1]
    return read_image(str(path), "RGB", (HEIGHT, WIDTH) if sized else None)


def changed(whole: bytes, numbers: random.Random) -> bytes:
    """Damaged bytes; sometimes a number of four bytes in the place of another one, and right checksums of a PNG."""
    content = damaged(whole, numbers)
    if numbers.random() < 0.3 and len(content) > 40:
        at = numbers.randrange(min(len(content) - 4, 200))
        content = content[:at] + struct.pack(numbers.choice("<>") + "I", numbers.choice(EDGES)) + content[at + 4 :]
    return _with_checksums(content) if whole.startswith(b"\x89PNG") and numbers.random() < 0.5 else content


def _with_checksums(content: bytes) -> bytes:
    """The chunks of a PNG with the checksums that they should have."""
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        length = min(int.from_bytes(content[at : at + 4], "big"), len(content) - at - 12)
        kind_and_data = content[at + 4 : at + 8 + length]
        parts += [content[at : at + 4], kind_and_data, struct.pack(">I", zlib.crc32(kind_and_data))]
        at += 12 + length
    return b"".join(parts) + content[at:]


def file_of(kind: str, seed: int, index: int) -> bytes:
    """The damaged file of that number."""
    return changed(whole_files()[kind], random.Random(f"{kind} {seed} {index}"))


def run(count: int, seed: int, folder: Path) -> list[str]:
    """Read `count` damaged files of each kind in `folder`; the problems, with what makes the file again."""
    problems = []
    path = folder / "damaged"
    for kind in whole_files():
        for index in range(count):
            path.write_bytes(file_of(kind, seed, index))
            if problem := problem_of(lambda kind=kind, index=index: read(kind, path, sized=index % 2 == 0), np.ndarray):
                problems.append(f"{kind}, seed {seed}, file {index}: {problem}")
    return problems


def main() -> None:
    logging.disable(logging.CRITICAL)
    command(__doc__, "files of each kind", len(whole_files()), run)


if __name__ == "__main__":
    main()
