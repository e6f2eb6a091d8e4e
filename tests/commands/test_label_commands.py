"""convert-data and split-data, as they are typed."""

import json

import pytest

from resnest_det.commands import convert_data, split_data
from resnest_det.data.formats.reading import read_labels
from resnest_det.data.formats.splits import find_labels, find_splits
from resnest_det.data.shapes import write_shapes
from resnest_det.errors import UserError
from tests.helpers.labels import boxes, voc, write_coco_export, write_images, write_voc, write_yolo


def test_convert_says_what_was_read_and_mended(tmp_path, capsys):
    write_voc(
        tmp_path / "in", {"a": voc(("cat", 30, 25, 10, 5), ("dog", 1, 2, 9, 9), ("dog", 3, 2, 9, 9)), "b": voc(filename="b.jpg")}
    )
    convert_data.main([str(tmp_path / "in"), str(tmp_path / "out.json")])
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/in/Annotations: voc, 2 images, 3 objects",
        "  dog  2",
        "  cat  1",
        "mended 1 boxes with exchanged corners (a.xml, line 4)",
        f"{tmp_path}/out.json: 2 images, 3 objects, 2 classes",
        f"train on it with --register mine={tmp_path}/out.json DATASETS.TRAIN \"('mine',)\"",
    ]
    assert boxes(read_labels(find_labels(str(tmp_path / "out.json"))))[0] == ("a.jpg", "cat", 10, 5, 20, 20)


def test_files_that_are_there_are_kept(tmp_path):
    source = write_coco_export(tmp_path)
    before = source.read_bytes()
    with pytest.raises(UserError, match="result.json exists; add --overwrite"):
        convert_data.main([str(source), str(source)])
    for arguments in ([str(source), str(source), "--overwrite"], [str(source), str(tmp_path), "--format", "yolo", "--overwrite"]):
        with pytest.raises(UserError, match="which is what is converted; give another name"):
            convert_data.main(arguments)
    out = tmp_path / "images"
    with pytest.raises(UserError, match="images: .*images is in it"):
        convert_data.main([str(source), str(out), "--format", "voc", "--overwrite"])
    with pytest.raises(UserError, match="out: COCO's format is one file"):
        convert_data.main([str(source), str(tmp_path / "out")])
    with pytest.raises(UserError, match="--format yolo writes a folder"):
        convert_data.main([str(source), str(tmp_path / "out.json"), "--format", "yolo"])
    assert source.read_bytes() == before and (out / "a.jpg").exists()


def test_images_beside_those_of_the_labels_are_no_part_of_them(tmp_path):
    source = write_coco_export(tmp_path)
    write_images(tmp_path / "images", ["c.jpg"])
    convert_data.main([str(source), str(tmp_path / "out"), "--format", "yolo"])
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["a.jpg", "b.jpg"]


def test_a_folder_is_replaced_whole(tmp_path):
    source = write_coco_export(tmp_path)
    out = tmp_path / "out"
    convert_data.main([str(source), str(out), "--format", "yolo"])
    (out / "labels" / "old.txt").write_text("")
    convert_data.main([str(source), str(out), "--format", "yolo", "--overwrite", "--put-images", "copy"])
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a.txt", "b.txt"]
    assert not (out / "images" / "a.jpg").is_symlink()


def test_labels_alone_are_converted(tmp_path):
    """VOC's tell the sizes of their images, which may be elsewhere."""
    write_voc(tmp_path / "in", {"a": voc(("cat", 1, 2, 9, 9))}, images=[])
    convert_data.main([str(tmp_path / "in"), str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["images"] == [
        {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}
    ]


def test_panoptic_maps_become_instances(tmp_path):
    write_shapes(tmp_path / "shapes", {"val": 6})
    folder = tmp_path / "shapes"
    source = folder / "annotations" / "panoptic_val.json"
    convert_data.main([str(source), str(tmp_path / "out.json"), "--images", str(folder / "val")])
    written = json.loads((tmp_path / "out.json").read_text())
    expected = json.loads((folder / "annotations" / "instances_val.json").read_text())
    assert len(written["annotations"]) == len(expected["annotations"]) and len(written["images"]) == 6


def test_split_data(tmp_path, capsys):
    write_yolo(tmp_path / "in", {f"v{index % 5}_{index}": f"{index % 2} .5 .5 .5 .5" for index in range(20)})
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--val", "0.4"]
    split_data.main(arguments)
    assert f"{tmp_path}/out/val.json: 8 images, 8 objects" in capsys.readouterr().out
    first = (tmp_path / "out" / "val.json").read_bytes()
    with pytest.raises(UserError, match="train.json exists; add --overwrite"):
        split_data.main(arguments)
    split_data.main([*arguments, "--overwrite"])
    assert (tmp_path / "out" / "val.json").read_bytes() == first
    splits = find_splits(str(tmp_path / "out"))
    assert splits["train"].image_root == str(tmp_path / "in" / "images")
    split_data.main([*arguments, "--overwrite", "--group", r"^(v\d)", "--random"])
    groups = [{name[:2] for name, *_ in boxes(read_labels(files))} for files in find_splits(str(tmp_path / "out")).values()]
    assert not groups[0] & groups[1] and len(groups[1]) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--val", "1.5"], "--val is 1.5; it must be above 0 and below 1"),
        (["--group", "("], r"--group is '\(', which is no regular expression"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
    ],
)
def test_flags_of_split_data_that_cannot_be(tmp_path, arguments, message):
    source = write_coco_export(tmp_path)
    with pytest.raises(UserError, match=message):
        split_data.main([str(source), str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_set_with_splits_needs_one(tmp_path):
    for split in ("train", "val"):
        write_yolo(tmp_path / "in" / split, {split: "0 .5 .5 .5 .5"})
    with pytest.raises(UserError, match="has train, val; give one of them as split=NAME"):
        convert_data.main([str(tmp_path / "in"), str(tmp_path / "out.json")])
    convert_data.main([str(tmp_path / "in"), str(tmp_path / "out.json"), "--split", "val"])
    assert [name for name, *_ in boxes(read_labels(find_labels(str(tmp_path / "out.json"))))] == ["val.jpg"]
