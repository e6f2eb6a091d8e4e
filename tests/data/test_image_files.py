"""Files of images are looked for before the first of them is read, and what is wrong with their names is told."""

import os
import re

import pytest
from PIL import Image

from resnest_det.data.image import MAX_PIXELS
from resnest_det.data.image_files import check_image_files, check_image_sizes
from resnest_det.errors import UserError


@pytest.fixture
def check(tmp_path):
    """check(files, names): that the images `names` of data/images, where `files` of data are, are there."""

    def check(files, names, root="images"):
        for file in files:
            path = tmp_path / "data" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        root = str(tmp_path / "data" / root)
        os.makedirs(root, exist_ok=True)
        records = [
            {"file_name": os.path.join(root, name), "image_id": number, "height": 4, "width": 4}
            for number, name in enumerate(names, start=7)
        ]
        check_image_files("mine", records, root)

    return check


def test_images_in_folders_and_files_that_are_not_listed_are_fine(check):
    check(["images/a.jpg", "images/more/deep/b.png", "images/not listed.txt"], ["a.jpg", "more/deep/b.png", "./more/../a.jpg"])


def test_all_that_are_missing_are_counted_and_the_first_is_named(check):
    files = [f"images/{number}.jpg" for number in range(5)]
    with pytest.raises(UserError) as error:
        check(files, [f"{number}.jpg" for number in range(8)])
    message = str(error.value)
    assert re.fullmatch(r"dataset mine: image \S+/data/images/5.jpg of image 12 does not exist; 3 of 8 are absent", message)


@pytest.mark.parametrize(
    "file, name, cause",
    [
        ("images/deep/a.jpg", r"deep\a.jpg", r"has \\ for /"),
        ("images/a.jpg", r"C:\Users\me\images\a.jpg", r"has \\ for / and begins with too many folders"),
        ("images/a.jpg", "/home/me/data/a.jpg", "begins with too many folders"),
        ("images/a.jpg", "/a.jpg", "begins with too many folders"),
        ("images/a.jpg", "images/a.jpg", "begins with too many folders"),
        ("images/a.jpg", "images/images/a.jpg", "begins with too many folders"),
        ("images/a.jpg", "https://somewhere.example/pictures/a.jpg", "begins with too many folders"),
        ("images/a b.jpg", "a%20b.jpg", r"is quoted as in an address \(%20\)"),
        ("images/a b.jpg", r"images\1\a%20b.jpg", r"has \\ for / and is quoted .* and begins with too many folders"),
        ("images/a%20b.jpg", "a b.jpg", "is not quoted as that of the file"),
        ("images/a.jpg", "a.jpg ", "has spaces around it"),
        ("images/a.PNG", "a.png", "is in another case"),
        ("images/a.jpg", "A.jpg", "is in another case"),
        ("images/Deep/a.jpg", "deep/a.jpg", "is in another case"),
        ("images/a\u0308.jpg", "\u00e4.jpg", "is in another case or Unicode form"),
        ("images/a.jpeg", "a.jpg", "has another suffix"),
        ("images/a.png", "a.jpg", "has another suffix"),
        ("images/000012.jpg", "000012", "has another suffix"),
        ("images/a.JPEG", "a.jpg", "has another suffix and is in another case"),
        ("images/train/a.jpg", "a.jpg", "begins in another folder than the one given"),
        ("a.jpg", "a.jpg", "begins in another folder than the one given"),
        ("val2017/a.jpg", "a.jpg", "begins in another folder than the one given"),
    ],
)
def test_the_likely_cause_is_told(check, file, name, cause):
    with pytest.raises(
        UserError, match=f"; 1 of 1 are absent; there is .*{re.escape('/data/' + file)}: the name .* {cause}"
    ) as error:
        check([file], [name])
    assert "\n" not in str(error.value)


def test_a_folder_of_other_files_is_named(check):
    with pytest.raises(
        UserError, match=r"2 of 2 are absent; \S+/data/images may be the wrong folder: it has files such as b.jpg"
    ):
        check(["images/b.jpg", "images/c.jpg"], ["1.jpg", "2.jpg"])
    with pytest.raises(UserError, match=r"1 of 1 are absent; \S+/data/empty may be the wrong folder: it has no files"):
        check([], ["1.jpg"], root="empty")


def test_the_same_name_in_another_folder_is_of_another_image_if_some_are_there(check):
    with pytest.raises(UserError, match="1 of 2 are absent$"):
        check(["images/a.jpg", "others/b.jpg"], ["a.jpg", "b.jpg"])
    with pytest.raises(UserError, match="2 of 2 are absent; there is .*others/b.jpg"):
        check(["others/c.jpg"], ["b.jpg", "c.jpg"], root="empty")


@pytest.mark.parametrize("name", ["", "..", "/", "a\0b/c\0.jpg", "%00.jpg", "\ud800/a.jpg", "a" * 5000, "a/" * 100, "\n.jpg"])
def test_whatever_the_name_is_the_error_is_one_line(check, name):
    with pytest.raises(UserError, match="of image 7 does not exist; 1 of 2 are absent") as error:
        check(["images/a.jpg"], [name, "a.jpg"])
    assert str(error.value).isprintable()


def test_links_that_lead_nowhere_and_folders_are_no_images(check, tmp_path):
    folder = tmp_path / "data" / "images"
    (folder / "b.jpg").mkdir(parents=True)
    (folder / "c.jpg").symlink_to(tmp_path / "not mounted" / "c.jpg")
    (folder / "d.jpg").symlink_to(folder / "a.jpg")
    with pytest.raises(UserError, match=r"images/b.jpg of image 8 does not exist; 2 of 4 are absent"):
        check(["images/a.jpg"], ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])


def test_each_folder_is_listed_once_and_no_file_is_asked_for(check, monkeypatch):
    listed, scandir = [], os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: listed.append(os.path.basename(folder)) or scandir(folder))
    monkeypatch.setattr("os.path.isfile", lambda path: pytest.fail(f"asked for {path}"))
    names = [f"{folder}/{number}.jpg" for number in range(20) for folder in ("a", "b")]
    check([f"images/{name}" for name in names], names)
    assert sorted(listed) == ["a", "b"]


def test_a_name_that_the_system_knows_another_way_is_there(check, monkeypatch):
    """As where it makes no difference between cases."""
    monkeypatch.setattr("os.path.isfile", lambda path: True)
    check(["images/a.jpg"], ["A.JPG"])


def test_an_image_too_large_to_be_read_is_told_before(tmp_path):
    (tmp_path / "a.jpg").touch()
    record = {"file_name": str(tmp_path / "a.jpg"), "image_id": 1, "height": MAX_PIXELS // 2, "width": 2}
    check_image_files("mine", [record], str(tmp_path))
    with pytest.raises(
        UserError, match=rf"dataset mine: image .*a.jpg is 3 x {MAX_PIXELS // 2} pixels .*at most {MAX_PIXELS} pix"
    ):
        check_image_files("mine", [record | {"width": 3}], str(tmp_path))


def test_sizes_of_all_images_are_looked_at_or_of_a_part_that_is_always_the_same(tmp_path, monkeypatch):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    records = [{"file_name": str(tmp_path / "a.png"), "image_id": number, "height": 4, "width": 6} for number in range(6)]
    check_image_sizes(records)
    for wrong, problem in (({"height": 6}, "a.png is 6 x 4 pixels"), ({"file_name": str(tmp_path / "b.png")}, "b.png cannot be")):
        with pytest.raises(UserError, match=problem):
            check_image_sizes([*records, records[0] | wrong])
    looked_at = []
    monkeypatch.setattr("resnest_det.data.image_files._MOST_HEADERS", 3)
    monkeypatch.setattr("resnest_det.data.image_files.check_record_size", lambda record: looked_at.append(record["image_id"]))
    check_image_sizes(records)
    check_image_sizes(records)
    assert len(set(looked_at)) == 3 and sorted(looked_at[:3]) == sorted(looked_at[3:])
