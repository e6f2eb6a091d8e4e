"""Panoptic quality against a direct loop over the definition, and what is refused."""

import copy
import json
import math
import os
import tempfile
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnest_det.data.annotation_files import PanopticFile, read_annotation_file
from resnest_det.data.panoptic_png import encode_segment_ids, read_segment_ids
from resnest_det.errors import UserError
from resnest_det.evaluation.panoptic import PanopticEvaluator
from resnest_det.evaluation.panoptic_quality import panoptic_quality

CATEGORIES = [{"id": 5 * i + 2, "name": f"class {i}", "isthing": int(i < 3)} for i in range(6)]


def quality_by_definition(truth, prediction, maps):
    """Section 4.1 of arXiv:1801.00868 with the panoptic API's rules for void and crowds, one pair of segments after the other.

    Args:
        maps: image id to (true ids, predicted ids).
    """
    iou_sum, tp, fp, fn = (defaultdict(float) for _ in range(4))
    predicted_by_image = {a["image_id"]: a["segments_info"] for a in prediction["annotations"]}
    for annotation in truth["annotations"]:
        true_map, predicted_map = maps[annotation["image_id"]]
        void = true_map == 0
        found = set()
        matched = set()
        for true in sorted(annotation["segments_info"], key=lambda s: s["id"]):
            for predicted in sorted(predicted_by_image[annotation["image_id"]], key=lambda s: s["id"]):
                if true["iscrowd"] or true["category_id"] != predicted["category_id"]:
                    continue
                a, b = true_map == true["id"], (predicted_map == predicted["id"]) & ~void
                iou = int((a & b).sum()) / int((a | b).sum())
                if iou > 0.5:
                    iou_sum[true["category_id"]] += iou
                    tp[true["category_id"]] += 1
                    found.add(true["id"])
                    matched.add(predicted["id"])
        for true in annotation["segments_info"]:
            if not true["iscrowd"] and true["id"] not in found:
                fn[true["category_id"]] += 1
        for predicted in predicted_by_image[annotation["image_id"]]:
            if predicted["id"] in matched:
                continue
            mask = predicted_map == predicted["id"]
            crowds = [
                s["id"] for s in annotation["segments_info"] if s["iscrowd"] and s["category_id"] == predicted["category_id"]
            ]
            ignored = (mask & (void | (true_map == crowds[-1]) if crowds else void)).sum()
            if ignored / mask.sum() <= 0.5:
                fp[predicted["category_id"]] += 1

    per_class = {}
    for category in CATEGORIES:
        c = category["id"]
        size = tp[c] + 0.5 * fp[c] + 0.5 * fn[c]
        if size:
            per_class[c] = {"pq": iou_sum[c] / size, "sq": iou_sum[c] / tp[c] if tp[c] else 0.0, "rq": tp[c] / size}
    result = {"per_class": per_class}
    for part, kinds in (("All", (0, 1)), ("Things", (1,)), ("Stuff", (0,))):
        classes = [category["id"] for category in CATEGORIES if category["isthing"] in kinds and category["id"] in per_class]
        result[part] = {"n": len(classes)}
        for name in ("pq", "sq", "rq"):
            total = 0.0
            for c in classes:
                total += per_class[c][name]
            result[part][name] = total / len(classes) if classes else math.nan
    return result


def random_map(rng, height, width):
    ids = rng.choice(2**24 - 1, size=rng.integers(0, 9), replace=False) + 1
    segment_ids = np.zeros((height, width), dtype=np.uint32)
    for segment_id in ids:
        y, x = rng.integers(height), rng.integers(width)
        segment_ids[y : y + rng.integers(1, height), x : x + rng.integers(1, width)] = segment_id
    if rng.random() < 0.5:
        segment_ids[rng.random((height, width)) < 0.1] = 0
    return segment_ids


def random_case(seed, images=3):
    """Truth with crowds and void; predictions that are shifted, damaged, partly renamed copies, or have nothing to do with it."""
    rng = np.random.default_rng(seed)
    truth, prediction = ({"images": [], "annotations": [], "categories": CATEGORIES} for _ in range(2))
    maps = {}
    for image_id in range(images):
        height, width = int(rng.integers(3, 40)), int(rng.integers(3, 40))
        true_map = random_map(rng, height, width)
        predicted_map = true_map.copy() if rng.random() < 0.7 else random_map(rng, height, width)
        if rng.random() < 0.7:
            predicted_map = np.roll(predicted_map, rng.integers(-3, 4, size=2), (0, 1))
        if rng.random() < 0.5:
            row = rng.integers(height)
            predicted_map[row : row + 5] = rng.choice(predicted_map.ravel())
        category_of = {int(i): int(rng.choice(CATEGORIES)["id"]) for i in np.unique(np.stack([true_map, predicted_map])) if i}
        true_segments = [
            {"id": int(i), "category_id": category_of[i], "iscrowd": int(rng.random() < 0.3), "area": int((true_map == i).sum())}
            for i in np.unique(true_map)
            if i
        ]
        renamed = {i: int(rng.choice(CATEGORIES)["id"]) for i in category_of if rng.random() < 0.2}
        predicted_segments = [{"id": int(i), "category_id": (category_of | renamed)[i]} for i in np.unique(predicted_map) if i]
        for content, segments in ((truth, true_segments), (prediction, predicted_segments)):
            rng.shuffle(segments)
            content["images"].append({"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.jpg"})
            content["annotations"].append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
        maps[image_id] = true_map, predicted_map
    return truth, prediction, maps


def write_case(folder, truth, prediction, maps):
    """Paths of the truth's JSON file and PNG folder and of the prediction's."""
    paths = []
    for side, (name, content) in enumerate((("truth", truth), ("prediction", prediction))):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
        for image_id, both in maps.items():
            with open(f"{folder}/{name}/{image_id}.png", "wb") as file:
                file.write(encode_segment_ids(both[side], name))
        with open(f"{folder}/{name}.json", "w") as file:
            json.dump(content, file)
        paths += [f"{folder}/{name}.json", f"{folder}/{name}"]
    return paths


def quality_of_files(truth_json, truth_folder, prediction_json, prediction_folder):
    with open(prediction_json) as file:
        predictions = {annotation["image_id"]: annotation for annotation in json.load(file)["annotations"]}
    return panoptic_quality(read_annotation_file(truth_json, PanopticFile), truth_folder, predictions, prediction_folder)


def assert_same_quality(ours, expected):
    for part in ("All", "Things", "Stuff"):
        for name, value in expected[part].items():
            assert ours[part][name] == value or (math.isnan(value) and math.isnan(ours[part][name])), (part, name)
    for category in CATEGORIES:
        if category["id"] in expected["per_class"]:
            assert ours["per_class"][category["id"]] == expected["per_class"][category["id"]]
        else:
            assert all(math.isnan(value) for value in ours["per_class"][category["id"]].values())


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_quality_equals_the_definition_to_the_last_digit(seed, images):
    case = random_case(seed, images)
    with tempfile.TemporaryDirectory() as folder:
        ours = quality_of_files(*write_case(folder, *case))
    assert_same_quality(ours, quality_by_definition(*case))


def test_quality_is_that_of_the_panoptic_api(tmp_path):
    """Where it can be imported (github.com/cocodataset/panopticapi); it has no release."""
    evaluation = pytest.importorskip("panopticapi.evaluation")
    truth, prediction, maps = random_case(11, images=60)
    paths = write_case(tmp_path, truth, prediction, maps)
    categories = {category["id"]: category for category in CATEGORIES}
    pairs = list(zip(truth["annotations"], prediction["annotations"]))
    counts = evaluation.pq_compute_single_core(0, pairs, paths[1], paths[3], categories)
    ours = quality_of_files(*paths)
    for part, isthing in (("All", None), ("Things", True), ("Stuff", False)):
        theirs, _ = counts.pq_average(categories, isthing=isthing)
        assert ours[part] == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=1e-15)


def two_segments():
    """One image: left half a thing, right half stuff, predicted perfectly."""
    ids = np.zeros((4, 8), dtype=np.uint32)
    ids[:, :4], ids[:, 4:] = 7, 300
    segments = [{"id": 7, "category_id": 2, "iscrowd": 0}, {"id": 300, "category_id": 17, "iscrowd": 0}]
    content = {
        "images": [{"id": 1, "height": 4, "width": 8, "file_name": "1.jpg"}],
        "categories": CATEGORIES,
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
    }
    return content, copy.deepcopy(content), {1: (ids, ids.copy())}


def test_perfect_prediction_and_predictions_inside_void_and_crowd(tmp_path):
    truth, prediction, maps = two_segments()
    quality = quality_of_files(*write_case(tmp_path, truth, prediction, maps))
    assert quality["All"] == {"pq": 1, "sq": 1, "rq": 1, "n": 2}

    maps[1][1][0, :4] = 9  # a quarter of the thing becomes another predicted thing
    prediction["annotations"][0]["segments_info"].append({"id": 9, "category_id": 2})
    quality = quality_of_files(*write_case(tmp_path, truth, prediction, maps))
    assert quality["per_class"][2] == {"pq": 0.75 / 1.5, "sq": 0.75, "rq": 1 / 1.5}

    maps[1][0][0, :4] = 0  # void there: the piece is ignored and does not lower the IoU
    assert quality_of_files(*write_case(tmp_path, truth, prediction, maps))["per_class"][2]["pq"] == 1
    maps[1][0][0, :4] = 8  # a crowd of the same class: ignored too
    truth["annotations"][0]["segments_info"].append({"id": 8, "category_id": 2, "iscrowd": 1})
    assert quality_of_files(*write_case(tmp_path, truth, prediction, maps))["per_class"][2]["pq"] == 1
    truth["annotations"][0]["segments_info"][-1]["category_id"] = 7  # of another class: a false positive
    assert quality_of_files(*write_case(tmp_path, truth, prediction, maps))["per_class"][2]["pq"] == 1 / 1.5


def segments_of(content):
    return content["annotations"][0]["segments_info"]


BROKEN = {
    "not listed": (
        lambda t, p, m: m[1][1].__setitem__((0, 0), 55),
        "prediction .*image 1: predicted segment 55 is in the PNG but",
    ),
    "no pixels": (
        lambda t, p, m: segments_of(p).append({"id": 66, "category_id": 2}),
        "prediction .*image 1: predicted segment 66 is in segments_info but not in the mask",
    ),
    "size": (lambda t, p, m: m.update({1: (m[1][0], m[1][1][:3])}), "image 1: ground truth is 4×8 but the prediction is 3×8"),
    "truth size": (
        lambda t, p, m: m.update({1: (m[1][0][:3], m[1][1])}),
        "image 1: ground truth is 3×8 but the prediction is 4×8",
    ),
    "unpredicted": (lambda t, p, m: p.update(annotations=[]), "prediction has no prediction for image 1"),
    "file": (lambda t, p, m: p["annotations"][0].update(file_name="2.png"), "prediction/2.png: No such file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_errors_that_name_file_and_segment(tmp_path, name):
    change, message = BROKEN[name]
    truth, prediction, maps = two_segments()
    change(truth, prediction, maps)
    with pytest.raises(UserError, match=message):
        quality_of_files(*write_case(tmp_path, truth, prediction, maps))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_a_png_of_another_mode_is_named(tmp_path, mode):
    truth, prediction, maps = two_segments()
    path = f"{write_case(tmp_path, truth, prediction, maps)[1]}/1.png"
    Image.open(path).convert(mode).save(path)
    with pytest.raises(UserError, match=f"1.png is not a panoptic PNG: its pixels are {mode}"):
        read_segment_ids(path)


@pytest.mark.parametrize("side", ["truth", "prediction"])
def test_a_damaged_png_is_named(tmp_path, side):
    truth, prediction, maps = two_segments()
    paths = write_case(tmp_path, truth, prediction, maps)
    path = tmp_path / side / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be read"):
        read_segment_ids(str(path))
    with pytest.raises(UserError, match=f"{side}/1.png"):
        quality_of_files(*paths)


def test_ids_of_images_and_categories_mean_nothing(tmp_path):
    truth, prediction, maps = random_case(4, images=6)
    expected = quality_by_definition(truth, prediction, maps)
    ids = [-3, 2**70, 5, 2**53, 2**53 + 1, 0]
    for content in (truth, prediction):
        for entry, image_id in zip(content["images"], ids):
            entry["id"] = image_id
        for annotation, image_id in zip(content["annotations"], ids):
            annotation["image_id"] = image_id
    assert 0 < expected["All"]["pq"] < 1
    assert_same_quality(quality_of_files(*write_case(tmp_path, truth, prediction, maps)), expected)


def test_ids_survive_the_png():
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 2**24 - 2, 2**24 - 1]])
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(encode_segment_ids(ids, ""))
        file.flush()
        assert (read_segment_ids(file.name) == ids).all()
        red, green, blue = np.moveaxis(np.asarray(Image.open(file.name)).astype(int), 2, 0)
    assert (red + 256 * green + 65536 * blue == ids).all()


def evaluator_for(tmp_path, truth, maps, **arguments):
    paths = write_case(tmp_path, truth, truth, {i: (both[0], both[0]) for i, both in maps.items()})
    things = [c["id"] for c in CATEGORIES if c["isthing"]]
    stuff = [c["id"] for c in CATEGORIES if not c["isthing"]]
    metadata = SimpleNamespace(
        panoptic_json=paths[0],
        panoptic_root=paths[1],
        thing_dataset_id_to_contiguous_id={c: i for i, c in enumerate(things)},
        stuff_dataset_id_to_contiguous_id={c: i for i, c in enumerate(stuff, start=1)},
    )
    return PanopticEvaluator(SimpleNamespace(name="invented", metadata=metadata, panoptic_truth=None), **arguments)


def output_of(segment_ids, segments):
    """A model's output in contiguous classes."""
    isthing = {c["id"]: bool(c["isthing"]) for c in CATEGORIES}
    things = [c["id"] for c in CATEGORIES if c["isthing"]]
    stuff = [None, *(c["id"] for c in CATEGORIES if not c["isthing"])]
    infos = [
        {
            "id": s["id"],
            "isthing": isthing[s["category_id"]],
            "score": 0.5,
            "category_id": (things if isthing[s["category_id"]] else stuff).index(s["category_id"]),
        }
        for s in segments
    ]
    return {"panoptic_seg": (torch.from_numpy(segment_ids.astype(np.int32)), infos)}


def test_evaluator_scores_and_writes_what_the_definition_scores(tmp_path):
    truth, prediction, maps = random_case(8, images=6)
    evaluator = evaluator_for(tmp_path, truth, maps, output_dir=str(tmp_path / "out"))
    for annotation in prediction["annotations"]:
        evaluator.process(
            [{"image_id": annotation["image_id"]}], [output_of(maps[annotation["image_id"]][1], annotation["segments_info"])]
        )
    figures = evaluator.evaluate()["panoptic_seg"]
    expected = quality_by_definition(truth, prediction, maps)
    assert 0 < figures["PQ"] < 100
    for suffix, part in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        assert [figures[n + suffix] for n in ("PQ", "SQ", "RQ")] == [100 * expected[part][n] for n in ("pq", "sq", "rq")]
    assert figures["RQ-class 1"] == 100 * expected["per_class"][7]["rq"]

    written = json.loads((tmp_path / "out" / "panoptic_predictions.json").read_text())
    assert written["categories"] == CATEGORIES and written["images"] == truth["images"]
    predictions = str(tmp_path / "out" / "panoptic_predictions")
    again = quality_of_files(str(tmp_path / "truth.json"), str(tmp_path / "truth"), f"{predictions}.json", predictions)
    assert_same_quality(again, expected)


def test_evaluator_refuses_broken_outputs(tmp_path):
    truth, prediction, maps = two_segments()
    evaluator = evaluator_for(tmp_path, truth, maps)
    ids, segments = maps[1][1], segments_of(prediction)

    def evaluate(output):
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [output])
        return evaluator.evaluate()["panoptic_seg"]

    assert evaluate(output_of(ids, segments))["PQ"] == 100
    with pytest.raises(UserError, match="image 1: predicted segment 300 is in the PNG but not"):
        evaluate(output_of(ids, segments[:1]))
    with pytest.raises(UserError, match="image 1: predicted segment 301 is in segments_info but not"):
        evaluate(output_of(ids, [*segments, {"id": 301, "category_id": 2}]))
    with pytest.raises(UserError, match="image 1 of invented: segment id 16777216 does not fit"):
        evaluate(output_of(np.where(ids == 300, 2**24, ids).astype(np.int64), segments))
    with pytest.raises(UserError, match="image 1 of invented: segment id -1 does not fit"):
        evaluate(output_of(np.where(ids == 300, -1, ids.astype(np.int64)), segments))
    output = output_of(ids, segments)
    output["panoptic_seg"][1][0]["category_id"] = 3
    with pytest.raises(UserError, match="segment 7 has thing class 3, of which the dataset has 3"):
        evaluate(output)
    with pytest.raises(UserError, match="image 1 of invented: a predicted segment is listed twice, so segments overlap"):
        evaluate(output_of(ids, [*segments, segments[0]]))
    with pytest.raises(UserError, match="truth.json: there is no image 9, of which segments were predicted"):
        evaluator.process([{"image_id": 9}], [output_of(ids, segments)])
    evaluator.reset()
    with pytest.raises(UserError, match="no prediction for image 1"):
        evaluator.evaluate()
