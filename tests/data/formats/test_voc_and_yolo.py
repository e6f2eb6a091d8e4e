"""Pascal VOC and YOLO labels: what their tools write, and each of the faults that are mended, left out or refused."""

import pytest
from PIL import Image

from resnest_det.data.formats.reading import read_labels
from resnest_det.data.formats.splits import find_labels, find_splits
from resnest_det.data.formats.yolo import outline_of_parts, parts_of_outline
from resnest_det.errors import UserError
from tests.helpers.labels import boxes, voc, write_voc, write_yolo


def read(folder, **settings):
    return read_labels(find_labels(str(folder), **settings))


def notes(labels):
    return "\n".join(labels.notes)


def test_voc(tmp_path):
    write_voc(tmp_path, {"a": voc(("cat", 10, 5, 30, 25), ("dog", 0.5, 1, 60, 40)), "b": voc(filename="b.jpg")})
    labels = read(tmp_path)
    assert labels.files.kind == "voc" and len(labels.content.images) == 2
    assert boxes(labels) == [("a.jpg", "cat", 10, 5, 20, 20), ("a.jpg", "dog", 0.5, 1, 59.5, 39)]
    assert notes(labels) == ""


def test_files_of_voc_itself_count_pixels_from_one(tmp_path):
    text = voc(("cat", 1, 1, 60, 40), ("dog", 10, 5, 30, 25), database="The VOC2007 Database")
    write_voc(tmp_path / "one", {"a": text})
    assert boxes(read(tmp_path / "one")) == [("a.jpg", "cat", 0, 0, 60, 40), ("a.jpg", "dog", 9, 4, 21, 21)]
    # A corner at 0 shows that a tool has only copied the name.
    write_voc(tmp_path / "zero", {"a": text, "b": voc(("cat", 0, 3, 9, 9), filename="b.jpg")})
    assert ("a.jpg", "dog", 10, 5, 20, 20) in boxes(read(tmp_path / "zero"))


def test_what_names_voc(tmp_path):
    # LabelImg's own files: lines between pixels, 1 for what touches the border, and any folder's name.
    for folder, first in (("VOC2012", 1), ("VOC2007", 1), ("VOC2031", 0), ("my VOC2012", 0), ("JPEGImages", 0)):
        text = voc(("cat", 1, 1, 60, 40)).replace("<filename>", f"<folder>{folder}</folder><filename>")
        write_voc(tmp_path / folder, {"a": text})
        assert boxes(read(tmp_path / folder)) == [("a.jpg", "cat", 1 - first, 1 - first, 59 + first, 39 + first)], folder
    text = voc(("cat", 1, 1, 60, 40)).replace("</database>", "</database><annotation>PASCAL VOC2009</annotation>")
    write_voc(tmp_path / "by annotation", {"a": text})
    assert boxes(read(tmp_path / "by annotation")) == [("a.jpg", "cat", 0, 0, 60, 40)]


def test_files_of_labelmes_web_tool(tmp_path):
    def outlined(name, points, deleted=0):
        written = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points)
        outline = f"<polygon><username>me</username>{written}</polygon>"
        return f"<object><name>{name}</name><deleted>{deleted}</deleted>{outline}</object>\n"

    text = "<annotation>\n<filename>a.jpg</filename><folder>f</folder><source><sourceImage>LabelMe</sourceImage></source>\n"
    triangle = [(2, 3), (9, 3), (9.5, 8)]
    text += outlined("cat", triangle) + outlined("dog", triangle, deleted=1)
    text += "<imagesize><nrows>40</nrows><ncols>60</ncols></imagesize></annotation>"
    write_voc(tmp_path / "good", {"a": text})
    labels = read(tmp_path / "good")
    (annotation,) = labels.content.annotations
    assert annotation.segmentation == [[2, 3, 9, 3, 9.5, 8]] and annotation.bbox == (2, 3, 7.5, 5)
    assert "left out 1 objects that LabelMe's tool keeps as deleted" in notes(labels)
    for index, (old, new, message) in enumerate(
        [
            ("<x>9</x>", "", r"line 3: a <pt> without <x>"),
            ("<x>9</x>", "<x>nine</x>", r"line 3: x must be a finite number, not 'nine'"),
            ("<nrows>40", "<nrows>400", "400"),
        ]
    ):
        write_voc(tmp_path / f"bad {index}", {"a": text.replace(old, new, 1)})
        with pytest.raises(UserError, match=message):
            read(tmp_path / f"bad {index}")


def test_voc_corners_that_are_exchanged_or_outside(tmp_path):
    good = [("cat", 1, 1, 5 + index, 5) for index in range(5)]
    wrong = [
        ("cat", 30, 25, 10, 5),
        ("cat", 50, 30, 70, 45),
        ("cat", 20, 20, 20, 30),
        ("cat", 61, 2, 66, 8),
        ("cat", 7, 7, 60.2, 9),
    ]
    write_voc(tmp_path, {"a": voc(*good, *wrong)})
    labels = read(tmp_path)
    assert len(boxes(labels)) == 8
    assert ("a.jpg", "cat", 10, 5, 20, 20) in boxes(labels) and ("a.jpg", "cat", 50, 30, 10, 10) in boxes(labels)
    assert notes(labels).splitlines() == [
        "mended 1 boxes with exchanged corners (a.xml, line 14)",
        "mended 1 boxes clipped to their image (a.xml, line 16)",
        "left out 2 boxes with no area inside their image (a.xml, line 18, ...)",
    ]


def test_most_boxes_outside_are_of_another_size(tmp_path):
    write_voc(tmp_path, {"a": voc(("cat", 10, 5, 200, 250), ("cat", 100, 5, 220, 25), ("cat", 1, 1, 9, 9))})
    with pytest.raises(UserError, match=r"Annotations: 2 of 3 boxes leave their image, the first that of a.xml, line 4"):
        read(tmp_path)


@pytest.mark.parametrize(
    "filename, image",
    [
        ("my cat.jpg", "my cat.jpg"),
        ("größe.jpg", "größe.jpg"),  # one letter in the file, two in the labels
        ("a.jpg", "A.JPG"),
        ("a.png", "a.jpg"),
        ("a", "a.jpg"),
        (r"C:\\photos\\a.jpg", "a.jpg"),
        ("/home/me/photos/a.jpg", "deep/er/a.jpg"),
        ("other.jpg", "s.jpg"),  # the name of the label file
        ("a%20b.jpg", "a b.jpg"),
        ("", "s.jpg"),
    ],
)
def test_names_of_images_as_tools_have_them(tmp_path, filename, image):
    write_voc(tmp_path, {"s": voc(("cat", 1, 2, 9, 9), filename=filename)}, [image])
    assert [name for name, *_ in boxes(read(tmp_path))] == [image.rpartition("/")[2]]


def test_two_images_that_may_be_meant(tmp_path):
    write_voc(tmp_path, {"a": voc(("cat", 1, 2, 9, 9))}, ["x/a.jpg", "y/a.jpg"])
    with pytest.raises(UserError, match="a.xml: whether image a.jpg is [xy]/a.jpg or [xy]/a.jpg"):
        read(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(voc(("cat", 1, 2, 9, 9), filename="/data/y/a.jpg"))
    assert [name for name, *_ in boxes(read(tmp_path))] == ["y/a.jpg"]


def test_labels_without_images_and_images_without_labels(tmp_path):
    files = {stem: voc(("cat", 1, 2, 9, 9), filename=f"{stem}.jpg") for stem in "abc"}
    write_voc(tmp_path, files, ["a.jpg", "b.jpg", "unlabelled.jpg"])
    labels = read(tmp_path)
    assert [name for name, *_ in boxes(labels)] == ["a.jpg", "b.jpg"]
    assert notes(labels).splitlines() == [
        "left out 1 labels of images that are absent (c.xml, image c.jpg)",
        "1 images that the labels say nothing of, not taken (unlabelled.jpg)",
    ]
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(UserError, match="most images are absent below .*JPEGImages: left out 2 labels .*a.xml, image a.jpg"):
        read(tmp_path)
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    (tmp_path / "JPEGImages" / "unlabelled.jpg").unlink()
    with pytest.raises(UserError, match="there are no images in "):
        read(tmp_path)
    # Labels alone can be converted: VOC's tell sizes.
    assert len(read_labels(find_labels(str(tmp_path)), need_images=False).content.images) == 3


def test_voc_sizes(tmp_path):
    write_voc(tmp_path / "absent", {"a": voc(("cat", 1, 2, 9, 9), size=None)})
    assert notes(read(tmp_path / "absent")) == "mended 1 sizes of images, absent in the labels (a.xml)"
    write_voc(tmp_path / "zero", {"a": voc(("cat", 1, 2, 9, 9), size=(0, 0))})
    assert read(tmp_path / "zero").content.images[0].height == 40
    write_voc(tmp_path / "turned", {"a": voc(("cat", 1, 2, 9, 9), size=(60, 40))})
    assert "mended 1 sizes of images, width and height exchanged" in notes(read(tmp_path / "turned"))
    write_voc(tmp_path / "other", {"a": voc(("cat", 1, 2, 9, 9), size=(400, 600))})
    with pytest.raises(UserError, match=r"a.xml: says 600 x 400 pixels .* has 60 x 40: are the labels"):
        read(tmp_path / "other")
    write_voc(tmp_path / "exif", {"a": voc(("cat", 1, 2, 9, 9))})
    with Image.open(tmp_path / "exif" / "JPEGImages" / "a.jpg") as image:
        exif = image.getexif()
        exif[274] = 6
        image.save(tmp_path / "exif" / "JPEGImages" / "a.jpg", exif=exif)
    with pytest.raises(UserError, match="a.xml: says 60 x 40 .* has 40 x 60 upright, as its EXIF orientation says"):
        read(tmp_path / "exif")


def test_classes_that_differ_in_case_are_one_unless_they_are_letters(tmp_path):
    write_voc(
        tmp_path,
        {
            "a": voc(
                *(("cat", index, 2, 9, 9) for index in range(3)), (" Cat ", 8, 9, 20, 20), ("a", 1, 1, 9, 9), ("A", 1, 1, 8, 8)
            )
        },
    )
    labels = read(tmp_path)
    assert [category.name for category in labels.content.categories] == ["A", "a", "cat"]
    assert notes(labels) == "mended 1 objects of class 'Cat', taken for 'cat' (a.xml, line 10)"


def test_splits_agree_on_the_spelling(tmp_path):
    write_voc(tmp_path / "train", {"a": voc(("Cat", 1, 2, 9, 9), ("Cat", 3, 4, 9, 9), ("dog", 3, 4, 9, 9))})
    write_voc(tmp_path / "valid", {"b": voc(("cat", 1, 2, 9, 9), filename="b.jpg")})
    splits = find_splits(str(tmp_path))
    assert [splits[name].classes for name in ("train", "val")] == [("Cat", "dog")] * 2
    labels = read_labels(splits["val"])
    assert [category.name for category in labels.content.categories] == ["Cat", "dog"]
    assert boxes(labels) == [("b.jpg", "Cat", 1, 2, 8, 7)]


def test_an_object_that_is_there_twice(tmp_path):
    write_voc(tmp_path, {"a": voc(("cat", 1, 2, 9, 9), ("dog", 1, 2, 9, 9), ("cat", 1, 2, 9, 9))})
    labels = read(tmp_path)
    assert len(boxes(labels)) == 2
    assert notes(labels) == "left out 1 objects that their image has twice (a.xml, line 8)"


def test_difficult_objects_are_crowds(tmp_path):
    text = voc(("cat", 1, 2, 9, 9)).replace("<difficult>0", "<difficult>1")
    write_voc(tmp_path, {"a": text})
    assert [each.iscrowd for each in read(tmp_path).content.annotations] == [1]


def test_voc_polygons(tmp_path):
    polygon = "<polygon><x1>2</x1><y1>3</y1><x2>9</x2><y2>3</y2><x3>9.5</x3><y3>8</y3></polygon>"
    write_voc(tmp_path, {"a": voc(("cat", 1, 2, 9, 9), more=polygon)})
    (annotation,) = read(tmp_path).content.annotations
    assert annotation.segmentation == [[2, 3, 9, 3, 9.5, 8]] and annotation.bbox == (2, 3, 7.5, 5)


@pytest.mark.parametrize(
    "text, message",
    [
        (voc(("cat", "x", 2, 9, 9)), r"line 5: xmin must be a finite number, not 'x'"),
        (voc(("cat", "nan", 2, 9, 9)), r"line 5: xmin must be a finite number, not 'nan'"),
        (voc(("cat", "1_0", 2, 9, 9)), r"line 5: xmin must be a finite number, not '1_0'"),
        (voc(("cat", "1e300", 2, 9, 9)), r"line 4: a coordinate is not a finite number"),
        (voc(("", 1, 2, 9, 9)), r"line 4: an object without the name of a class"),
        (voc(("cat", 1, 2, 9, 9)).replace("<ymax>9</ymax>", ""), r"line 5: a <bndbox> without <ymax>"),
        (voc(("cat", 1, 2, 9, 9)).replace("bndbox", "box"), r"line 4: an object without <bndbox>"),
        (voc(("cat", 1, 2, 9, 9))[:-20], r"line \d+: malformed XML: unclosed token"),
        (voc(("cat & dog", 1, 2, 9, 9)), r"line 4: malformed XML"),
        (voc(("cat\u202e", 1, 2, 9, 9), size=("high", 3)), r"line 3: height must be a finite number, not 'high'"),
        ("<annotation>" + "<a>" * 100, r"line 1: elements are more than 64 deep"),
    ],
)
def test_malformed_voc_names_file_and_line(tmp_path, text, message):
    write_voc(tmp_path, {"a": text})
    with pytest.raises(UserError, match=rf"a\.xml.*{message}") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_xml_of_strangers_is_read_without_entities_files_or_addresses(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n'
    file = f'<!DOCTYPE a [<!ENTITY a SYSTEM "file://{tmp_path}/secret">]>\n'
    outside = '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/a.dtd">\n'
    (tmp_path / "secret").write_text("secret")
    for number, head in enumerate((bomb, file)):
        folder = tmp_path / str(number)
        write_voc(folder, {"a": head + voc(("&a;", 1, 2, 9, 9))})
        with pytest.raises(UserError, match=r"a.xml: line 1: declares an entity"):
            read(folder, kind="voc")
    write_voc(tmp_path / "outside", {"a": outside + voc(("cat", 1, 2, 9, 9))})
    assert len(boxes(read(tmp_path / "outside"))) == 1


def test_yolo_boxes_and_polygons(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.25\n\n1 0.1 0.1 0.5 0.1 0.5 0.6\n", "deep/b": "", "c": "1.0 .5 .5 1 1 0.93"})
    labels = read(tmp_path)
    assert [category.name for category in labels.content.categories] == ["cat", "dog"]
    assert boxes(labels) == [("a.jpg", "cat", 15, 15, 30, 10), ("a.jpg", "dog", 6, 4, 24, 20), ("c.jpg", "dog", 0, 0, 60, 40)]
    assert labels.content.annotations[1].segmentation == [[6, 4, 30, 4, 30, 24]]
    assert len(labels.content.images) == 3
    assert notes(labels) == "1 numbers after boxes, taken for confidences and not looked at (c.txt, line 1)"


def test_yolo_boxes_beyond_their_image_are_clipped(tmp_path):
    inside = "".join(f"0 0.5 0.5 0.{index} 0.2\n" for index in range(1, 6))
    write_yolo(tmp_path, {"a": inside + "1 1.0 0.5 0.4 0.5\n1 1.6 0.5 0.2 0.2\n0 0.9 0.9 1.3 0.9 1.3 1.3 0.9 1.3\n"})
    labels = read(tmp_path)
    assert ("a.jpg", "dog", 48, 10, 12, 20) in boxes(labels) and ("a.jpg", "cat", 54, 36, 6, 4) in boxes(labels)
    assert notes(labels).splitlines() == [
        "mended 1 boxes clipped to their image (a.txt, line 6)",
        "left out 1 boxes with no area inside their image (a.txt, line 7)",
        "mended 1 polygons clipped to their image (a.txt, line 8)",
    ]


def test_yolo_pixels_are_refused(tmp_path):
    write_yolo(tmp_path, {"a": "0 30 20 10 10\n1 10 10 4 4\n"})
    with pytest.raises(UserError, match="labels: 2 of 2 boxes leave their image, the first that of a.txt, line 1; .*fractions"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0 0.5 0.5 0.5 0.2\n2 0.5 0.5 0.2 0.2", r"line 2: class 2, but there are 2 names, for 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2", r"line 1: the class must be a whole number from 0, not -1"),
        ("0.5 0.5 0.5 0.2 0.2", r"line 1: the class must be a whole number"),
        ("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2", r"line 2: 4 numbers; an object has"),
        ("0 0.5 0.5 0.2 0.2 0.1 0.1 0.1", r"line 1: 8 numbers; an object has"),
        ("0 0.5 nan 0.2 0.2", r"line 1: number 3 must be a finite number, not 'nan'"),
        ("0 0.5 0,5 0.2 0.2", r"line 1: number 3 must be a finite number, not '0,5'"),
        ("cat 0.5 0.5 0.2 0.2", r"line 1: number 1 must be a finite number, not 'cat'"),
        ("0 0.5 ٠.٥ 0.2 0.2", r"line 1: number 3 must be a finite number"),
        ("0 1e300 0.5 0.2 0.2", r"line 1: a coordinate is not a finite number"),
    ],
)
def test_malformed_yolo_names_file_and_line(tmp_path, text, message):
    write_yolo(tmp_path, {"a": text})
    with pytest.raises(UserError, match=rf"a\.txt.*{message}") as error:
        read(tmp_path, kind="yolo")
    assert "\n" not in str(error.value)


def test_yolo_label_files_and_images_without_the_other(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5", "b": "0 0.5 0.5 0.5 0.5"}, images=["a.jpg", "background.PNG"])
    labels = read(tmp_path)
    assert [image.file_name for image in labels.content.images] == ["a.jpg", "background.PNG"]
    assert notes(labels).splitlines() == [
        "left out 1 labels of images that are absent (b.txt)",
        "1 images without a label file, taken as images without objects (background.PNG)",
    ]


def test_two_images_of_one_label_file(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"}, images=["a.jpg", "a.png"])
    with pytest.raises(UserError, match="a.txt: images a.jpg and a.png of .*images would both have these labels"):
        read(tmp_path)


def test_yolo_without_names_has_numbers(tmp_path):
    write_yolo(tmp_path, {"a": "2 0.5 0.5 0.5 0.5"})
    (tmp_path / "classes.txt").unlink()
    labels = read(tmp_path)
    assert [category.name for category in labels.content.categories] == ["0", "1", "2"]
    assert "3 classes called by their numbers" in notes(labels)


def test_data_yaml(tmp_path):
    for split in ("train", "valid", "test"):
        write_yolo(tmp_path / split, {split[0]: "1 0.5 0.5 0.5 0.5", f"{split}2": ""})
        (tmp_path / split / "classes.txt").unlink()
    # As Roboflow has it, whose paths are from another folder, and ultralytics, whose `path` is another machine's.
    for text in (
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['big cat', dog]\n",
        "path: /home/me/data\ntrain: train/images\nval: [valid/images]\ntest: test/images\nnames:\n  0: big cat\n  1: dog\n",
    ):
        (tmp_path / "data.yaml").write_text(text)
        splits = find_splits(str(tmp_path))
        assert list(splits) == ["train", "val", "test"] and splits["val"].classes == ("big cat", "dog")
        assert boxes(read_labels(splits["val"])) == [("v.jpg", "dog", 15, 10, 30, 20)]
        assert find_splits(str(tmp_path / "data.yaml")) == splits


def test_data_yaml_with_lists_of_images(tmp_path):
    write_yolo(tmp_path, dict.fromkeys("abc", "1 0.5 0.5 0.5 0.5"))
    (tmp_path / "train.txt").write_text("./images/a.jpg\nimages/c.jpg\nimages/absent.jpg\n")
    (tmp_path / "val.txt").write_text("/elsewhere/images/b.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    splits = find_splits(str(tmp_path))
    train = read_labels(splits["train"])
    assert [name for name, *_ in boxes(train)] == ["images/a.jpg", "images/c.jpg"]
    assert "left out 1 listed images that are absent" in notes(train)
    assert [name for name, *_ in boxes(read_labels(splits["val"]))] == ["images/b.jpg"]


def test_a_data_yaml_whose_splits_are_the_same_is_one_set(tmp_path):
    write_yolo(tmp_path, {f"i{index}": "1 0.5 0.5 0.5 0.5" for index in range(10)})
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\n")
    splits = find_splits(str(tmp_path))
    names = {name: {each[0] for each in boxes(read_labels(files))} for name, files in splits.items()}
    assert len(names["val"]) == 2 and len(names["train"]) == 8 and not names["train"] & names["val"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("names: [cat, cat]\n", "two classes are called 'cat'"),
        ("names: {0: cat, 2: dog}\n", "names must be of the numbers 0 to 1"),
        ("names: [yes, dog]\n", "YAML reads yes, no, on and off"),
        ("names: [cat, dog]\nnc: 3\n", "nc is 3, but there are 2 names"),
        ("names: [[cat]]\n", r"\['cat'\] is no text"),
        ("names: [cat\n", "line .*malformed YAML"),
        ("names: [cat, dog]\ntrain: nowhere/pictures\nval: images\n", "train is nowhere/pictures, which is neither at"),
        ("names: &a [*a]\ntrain: images\n", "line 1: the alias .a, which"),
        ("!!python/object/apply:os.system ['false']\nnames: x\ntrain: y\n", "malformed YAML|not a data.yaml"),
    ],
)
def test_malformed_data_yaml(tmp_path, text, message):
    write_yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.5"})
    (tmp_path / "data.yaml").write_text(text + ("" if "train" in text else "train: images\nval: images\n"))
    with pytest.raises(UserError, match=f"data.yaml: .*({message})"):
        find_splits(str(tmp_path))


def test_listed_classes_that_differ_in_case_stay_two(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5\n1 0.2 0.2 0.1 0.1"}, names=["cat", "Cat"])
    labels = read(tmp_path)
    assert [category.name for category in labels.content.categories] == ["cat", "Cat"]
    assert "classes that differ in case alone" in notes(labels)


def test_outlines_of_several_parts_come_back():
    parts = [[0, 0, 4, 0, 4, 4], [10, 10, 12, 10, 12, 12, 10, 12], [20, 20, 22, 20, 22, 22]]
    assert parts_of_outline(outline_of_parts(parts)) == parts
    assert parts_of_outline(outline_of_parts(parts[:1])) == parts[:1]
    closed = [0, 0, 4, 0, 4, 4, 0, 0]
    assert parts_of_outline(closed) == [closed[:-2]]
    crossing = [0, 0, 4, 0, 4, 4, 0, 0, 2, 2]
    assert parts_of_outline(crossing) == [crossing]
