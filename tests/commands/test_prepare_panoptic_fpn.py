"""The command prepare_panoptic_fpn."""

import json

import numpy as np
import pytest
from PIL import Image

from resnest_det.data.panoptic_png import encode_segment_ids


@pytest.fixture
def arguments(tmp_path, own_registry):
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
        "prepare-panoptic-fpn",
        "mine",
        "--processes",
        "2",
        "--register-panoptic",
        f"mine={tmp_path}/panoptic.json,{tmp_path}/panoptic_mine,{tmp_path}/images",
    ]


def test_semantic_pngs_are_written_where_detectron2_looks_and_only_once(tmp_path, arguments, resnest_det_command):
    done = resnest_det_command(*arguments)
    assert done.status == 0, done.stderr
    assert "mine: 3 written, 0 existed" in done.stdout
    folder = tmp_path / "panoptic_stuff_mine"
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    image = Image.open(folder / "1.png")
    assert image.mode == "L"
    assert np.asarray(image)[:, 0].tolist() == [2, 0, 1, 255]

    (folder / "0.png").unlink()
    kept = (folder / "1.png").stat().st_mtime_ns
    assert "mine: 1 written, 2 existed" in resnest_det_command(*arguments).stdout
    assert (folder / "0.png").exists() and (folder / "1.png").stat().st_mtime_ns == kept


def test_broken_input_is_one_line_and_what_was_written_stays(tmp_path, arguments, resnest_det_command):
    (tmp_path / "panoptic_mine" / "2.png").write_bytes(encode_segment_ids(np.full((4, 6), 8), ""))
    failed = resnest_det_command(*arguments)
    assert failed.status == 2
    assert "panoptic_mine/2.png has a segment 8" in failed.stderr and "Traceback" not in failed.stderr
    (tmp_path / "panoptic_mine").rename(tmp_path / "elsewhere")
    # Under another name: in one process a name means one dataset.
    moved = [argument.replace("panoptic_mine", "elsewhere").replace("mine", "moved") for argument in arguments]
    named = resnest_det_command(*moved)
    assert named.status == 2 and "--output-dir" in named.stderr
