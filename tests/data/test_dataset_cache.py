"""Annotation files are parsed once: what lies in the cache is believed only where it is of these bytes, these rules and whole."""

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest

from resnest_det.data import dataset_cache, instance_columns
from resnest_det.data.coco import load_coco_instances
from resnest_det.data.packed_file import Damaged, Writer, open_packed, packed_from
from resnest_det.errors import UserError
from resnest_det.evaluation.coco import COCOEvaluator
from resnest_det.evaluation.ground_truth import ground_truth_of_instances

POLYGONS = [[1.0, 1.0, 9.0, 1.0, 5.0, 7.25], [2.0, 2.0, 4.0, 2.0, 4.0, 4.0, 2.0, 4.0]]
CONTENT = {
    "images": [
        {"id": 9, "height": 10, "width": 20, "file_name": "b.png"},
        {"id": 4, "height": 12, "width": 8, "file_name": "a.png"},
    ],
    "annotations": [
        {"id": 5, "image_id": 9, "category_id": 3, "bbox": [1, 1, 8, 6.5], "segmentation": POLYGONS},
        {"id": 2, "image_id": 4, "category_id": 7, "bbox": [0, 0, 4, 4], "area": 12.5, "iscrowd": 1,
         "segmentation": {"size": [12, 8], "counts": [10, 6, 80]}},
        {"id": 3, "image_id": 9, "category_id": 7, "bbox": [1, 1, 0, 4]},
        {"id": 4, "image_id": 9, "category_id": 7, "bbox": [2, 1, 3, 4]},
    ],
    "categories": [{"id": 7, "name": "zebra"}, {"id": 3, "name": "cat"}],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache's folder, of this test alone."""
    monkeypatch.setenv("RESNEST_DET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


@pytest.fixture
def parsed(monkeypatch):
    """How often a file was parsed in this process."""
    times = []
    pack = instance_columns._Columns.finish
    monkeypatch.setattr(instance_columns._Columns, "finish", lambda self, *more: (times.append(self._file), pack(self, *more)))
    return times


def write(path, content=CONTENT, age=100):
    path.write_text(json.dumps(content))
    os.utime(path, (time.time() - age,) * 2)
    return path


def settled(monkeypatch):
    """Files count as settled at once: a test would have to wait until their times are old."""
    monkeypatch.setattr(dataset_cache, "_SETTLED", -(10**12))


def read(path):
    return load_coco_instances("made", path, "/images", keep_truth=True)


def plain(dataset):
    return list(dataset.records), dataset.metadata, ground_truth_of_instances(dataset), dict(dataset.left_out)


def test_the_second_reading_is_of_the_packed_file_and_equal(folder, tmp_path, parsed, monkeypatch, caplog):
    settled(monkeypatch)
    path = write(tmp_path / "a.json")
    first = read(path)
    told = [record.message for record in caplog.records]
    assert len(parsed) == 1 and told == [f"{path}: left out 1 boxes with no area inside their image (annotation 3)"]
    with monkeypatch.context() as patch:
        patch.setattr(dataset_cache, "read_bytes_and_digest", lambda path: pytest.fail("the JSON was read again"))
        second = read(path)
    assert len(parsed) == 1 and plain(first) == plain(second)
    assert [record.message for record in caplog.records] == told * 2
    assert [record["image_id"] for record in second.records] == [4, 9]
    assert second.records[1]["annotations"][0] == {
        "id": 5, "bbox": [1, 1, 8, 6.5], "category_id": 0, "iscrowd": 0, "segmentation": POLYGONS,
    }  # fmt: skip
    assert [annotation.id for annotation in second.truth.annotations] == [5, 2, 3, 4]


def test_another_process_gets_the_file_and_not_a_copy(folder, tmp_path):
    dataset = read(write(tmp_path / "a.json"))
    pickled = pickle.dumps(dataset.records)
    assert len(pickled) < 2000 and list(pickle.loads(pickled)) == list(dataset.records)


def test_a_changed_file_is_parsed_anew_and_a_touched_one_is_not(folder, tmp_path, parsed, monkeypatch):
    settled(monkeypatch)
    path = write(tmp_path / "a.json")
    before = path.stat()
    read(path)
    os.utime(path)
    read(path)
    read(write(tmp_path / "copy.json"))
    assert len(parsed) == 1, "the same bytes"
    # As long, and of the same time: what `cp --preserve` or an editor of a coarse file system leaves.
    path.write_text(path.read_text().replace('"zebra"', '"horse"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(path).metadata.thing_classes == ["cat", "horse"] and len(parsed) == 2


def test_a_file_that_was_just_written_is_not_believed_by_its_times(folder, tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", age=0)
    read(path)
    state = path.stat()
    monkeypatch.setattr(dataset_cache, "_stat", lambda name: (state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    path.write_text(path.read_text().replace('"zebra"', '"horse"'))
    assert read(path).metadata.thing_classes == ["cat", "horse"], "within one tick of the clock"


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "array", "table", "long"])
def test_a_damaged_cache_file_is_made_anew(folder, tmp_path, monkeypatch, caplog, parsed, damage):
    settled(monkeypatch)
    path = write(tmp_path / "a.json")
    expected = plain(read(path))
    (packed,) = folder.glob("*.packed")
    whole = bytearray(packed.read_bytes())
    if damage == "array":
        whole[open_packed(packed).arrays["box"].ctypes.data - open_packed(packed).block.ctypes.data + 8] ^= 1
    elif damage == "table":
        whole[-60] ^= 1
    changed = {"empty": b"", "cut": whole[:-100], "text": b"{}", "long": whole + b"\0" * 8}.get(damage, whole)
    packed.write_bytes(changed)
    caplog.clear()
    assert plain(read(path)) == expected and len(parsed) == 2
    assert f"{packed} is damaged" in caplog.records[0].message
    assert plain(read(path)) == expected and len(parsed) == 2


def test_damage_to_an_outline_is_found_where_it_is_read(folder, tmp_path):
    records = read(write(tmp_path / "a.json")).records
    (packed,) = folder.glob("*.packed")
    with open(packed, "r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    assert records[0]["annotations"][0]["id"] == 2
    with pytest.raises(UserError, match="damaged since this run opened it; remove it"):
        records[1]


def test_a_stamp_that_is_no_stamp_is_not_believed(folder, tmp_path, monkeypatch):
    settled(monkeypatch)
    path = write(tmp_path / "a.json")
    read(path)
    (stamp,) = folder.glob("*.json")
    for content in (b"", b"[]", b"\xff", json.dumps(json.loads(stamp.read_text()) | {"sha256": "../../x"}).encode()):
        stamp.write_bytes(content)
        assert len(read(path).records) == 2


def test_other_rules_make_other_packed_files(folder, tmp_path, monkeypatch, parsed):
    settled(monkeypatch)
    path = write(tmp_path / "a.json")
    read(path)
    monkeypatch.setattr(dataset_cache, "_rules", lambda: "0123")
    read(path)
    assert len(parsed) == 2


@pytest.mark.parametrize("obstacle", ["a file in its place", "read-only", "full", "no home"])
def test_without_a_cache_files_are_read_into_memory_and_one_line_says_so(folder, tmp_path, monkeypatch, caplog, obstacle):
    if obstacle == "a file in its place":
        folder.parent.write_text("")
    elif obstacle == "read-only":
        monkeypatch.setenv("RESNEST_DET_CACHE", "/proc")
    elif obstacle == "no home":
        monkeypatch.setenv("RESNEST_DET_CACHE", "~nobody-of-this-name/cache")
    else:

        @contextlib.contextmanager
        def full(*args, **options):
            raise OSError(errno.ENOSPC, "No space left on device")
            yield

        monkeypatch.setattr(dataset_cache, "atomic_write", full)
    path = write(tmp_path / "a.json")
    with caplog.at_level(logging.WARNING):
        dataset = read(path)
    lines = [record.message for record in caplog.records if "kept in memory" in record.message]
    where = "RESNEST_DET_CACHE" if obstacle == "no home" else str(dataset_cache.cache_folder())
    assert len(lines) == 1 and str(path) in lines[0] and where in lines[0]
    assert len(dataset.records[1]["annotations"]) == 2
    assert list(pickle.loads(pickle.dumps(dataset.records))) == list(dataset.records)


def test_a_file_that_changes_while_it_is_read_is_refused(folder, tmp_path, monkeypatch):
    path = write(tmp_path / "a.json")
    whole = dataset_cache.read_bytes_and_digest

    def while_written(name):
        content = whole(name)
        path.write_text(json.dumps(CONTENT) + " ")
        return content

    monkeypatch.setattr(dataset_cache, "read_bytes_and_digest", while_written)
    with pytest.raises(UserError, match="was changed while it was read"):
        read(path)
    assert not list(folder.glob("*.packed"))


def test_a_file_that_changes_during_a_run_is_counted_as_it_was(folder, tmp_path, caplog):
    path = write(tmp_path / "a.json")
    dataset = read(path)
    caplog.clear()
    evaluator = COCOEvaluator(dataset, ("bbox",))
    path.write_text(json.dumps(CONTENT | {"annotations": CONTENT["annotations"][:1]}))
    figures = evaluator.evaluate()
    assert figures["bbox"]["AP"] == 0 and not np.isnan(figures["bbox"]["AP-zebra"])
    assert sum("was changed after this run had read it" in record.message for record in caplog.records) == 1
    path.unlink()
    assert evaluator.evaluate()["bbox"]["AP"] == 0


def test_a_wrong_file_leaves_nothing_in_the_cache(folder, tmp_path):
    wrong = CONTENT | {"annotations": [CONTENT["annotations"][0] | {"bbox": [1, 1, 2]}]}
    for _ in range(2):
        with pytest.raises(UserError, match="annotation 5: bbox must be four finite numbers"):
            read(write(tmp_path / "a.json", wrong))
    assert not list(folder.glob("*.packed")) and not list(folder.glob("*.unfinished"))


def test_what_nobody_used_for_long_is_removed(folder, tmp_path):
    read(write(tmp_path / "a.json"))
    (old,) = folder.glob("*.packed")
    os.utime(old, (time.time() - 61 * 24 * 3600,) * 2)
    read(write(tmp_path / "b.json", CONTENT | {"info": 1}))
    assert not old.exists() and len(list(folder.glob("*.packed"))) == 1


def test_ids_of_any_size_and_of_text_come_back(folder, tmp_path, monkeypatch):
    settled(monkeypatch)
    image, huge = CONTENT["images"][0], 10**30
    for image_id, annotation_id in ((huge, -huge), (-3, 5), ("a-b", "uuid-1"), (2**63, 2**62)):
        content = CONTENT | {
            "images": [image | {"id": image_id}],
            "annotations": [CONTENT["annotations"][0] | {"image_id": image_id, "id": annotation_id}],
        }
        for _ in range(2):
            dataset = read(write(tmp_path / "a.json", content))
            assert str(dataset.records[0]["image_id"]) == str(image_id)
            assert str(dataset.records[0]["annotations"][0]["id"]) == str(annotation_id)
            assert str(dataset.truth.annotations[0].image_id) == str(image_id)


def _read_in_another(path, results):
    results.put(len(read(path).records[1]["annotations"]))


def test_processes_that_come_together_share_the_work(folder, tmp_path):
    path = write(tmp_path / "a.json")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_read_in_another, args=(path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [2] * 4
    for process in processes:
        process.join()
    assert len(list(folder.glob("*.packed"))) == 1 and not list(folder.glob(".*"))


def test_a_packed_file_cannot_point_outside_of_itself(tmp_path):
    class Memory:
        def __init__(self):
            self.content = b""

        def write(self, part):
            self.content += bytes(part)

    file = Memory()
    writer = Writer(file)
    writer.append(b"abc")
    writer.finish({"numbers": np.arange(3, dtype=np.int64)}, {"a": 1})
    packed = packed_from(file.content)
    assert packed.arrays["numbers"].tolist() == [0, 1, 2] and packed.block.tobytes() == b"abc" and packed.about == {"a": 1}
    for wrong in (b'"shape":[4]', b'"shape":[-1]', b'"start":999'):
        name = wrong.split(b":")[0]
        table = file.content[: -(8 + 32 + 8)]
        begin = table.rindex(b'{"arrays"')
        part = table[begin:]
        at = part.index(name)
        end = min(at + part[at:].index(mark) for mark in (b"]", b"}") if mark in part[at:])
        changed = part[:at] + wrong + part[end + (name == b'"shape"') :]
        start = packed.block.size + 8
        import hashlib

        digest = hashlib.sha256(table[start:begin] + changed).digest()
        whole = table[:begin] + changed + len(changed).to_bytes(8, "little") + digest + file.content[-8:]
        with pytest.raises(Damaged):
            packed_from(whole)
