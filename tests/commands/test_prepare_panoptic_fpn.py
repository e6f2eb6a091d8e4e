"""tools/prepare_panoptic_fpn.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnest_det.data.panoptic_png import encode_segment_ids

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(tmp_path):
    for folder in ("images", "panoptic_mine"):
        (tmp_path / folder).mkdir()
    categories = [
        {"id": 9, "name": "grass", "isthing": 0},
        {"id": 3, "name": "box", "isthing": 1},
        {"id": 7, "name": "sky", "isthing": 0},
    ]
    content = {"images": [], "annotations": [], "categories": categories}
    for image_id in range(3):
        ids = np.zeros((4, 6), dtype=int)
        ids[0], ids[1], ids[2] = 5, 70000, 600
        (tmp_path / "panoptic_mine" / f"{image_id}.png").write_bytes(encode_segment_ids(ids, ""))
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{image_id}.jpg")
        content["images"].append({"id": image_id, "height": 4, "width": 6, "file_name": f"{image_id}.jpg"})
        segments = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in ((5, 9), (70000, 3), (600, 7))]
        content["annotations"].append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return [
        "mine",
        "--processes",
        "2",
        "--register-panoptic",
        f"mine={tmp_path}/panoptic.json,{tmp_path}/panoptic_mine,{tmp_path}/images",
    ]


def run(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "prepare_panoptic_fpn.py", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_semantic_pngs_are_written_where_detectron2_looks_and_only_once(tmp_path, arguments):
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "mine: 3 written, 0 existed" in done.stdout
    folder = tmp_path / "panoptic_stuff_mine"
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    image = Image.open(folder / "1.png")
    assert image.mode == "L"
    assert np.asarray(image)[:, 0].tolist() == [2, 0, 1, 255]

    (folder / "0.png").unlink()
    kept = (folder / "1.png").stat().st_mtime_ns
    assert "mine: 1 written, 2 existed" in run(*arguments).stdout
    assert (folder / "0.png").exists() and (folder / "1.png").stat().st_mtime_ns == kept


def test_broken_input_is_one_line_and_what_was_written_stays(tmp_path, arguments):
    (tmp_path / "panoptic_mine" / "2.png").write_bytes(encode_segment_ids(np.full((4, 6), 8), ""))
    failed = run(*arguments)
    assert failed.returncode == 2
    assert "panoptic_mine/2.png has a segment 8" in failed.stderr and "Traceback" not in failed.stderr
    (tmp_path / "panoptic_mine").rename(tmp_path / "elsewhere")
    moved = [argument.replace("panoptic_mine", "elsewhere") for argument in arguments]
    named = run(*moved)
    assert named.returncode == 2 and "--output-dir" in named.stderr
