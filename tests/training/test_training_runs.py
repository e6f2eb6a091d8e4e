"""Whole runs on a tiny dataset: files, exact resumption, evaluation, precise batch norm."""

import json
import shutil
import sys
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnest_det.commands.train_net import main
from resnest_det.configuration.reading import load_config
from resnest_det.errors import UserError
from resnest_det.inference import prepared
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.tiny_run import losses_of, read_metrics, write_tiny_run

OPENED: list[str] = []  # files of the run of `finished`, while it ran
_watching = []


def _note(event: str, arguments: tuple) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(_note)  # for the whole process: hooks cannot be taken off


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its arguments and its folder, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = write_tiny_run(folder)
    time.sleep(2.1)  # a file that was just written may change again unseen, and is looked at each time
    _watching.append(True)
    main([*arguments, "VIS_PERIOD", "4"])
    _watching.clear()
    return arguments, folder / "out"


def test_a_dataset_is_read_once(finished):
    """Though the run trains and evaluates on it twice, takes precise statistics twice, and draws it."""
    assert len([path for path in OPENED if path.endswith("tiny.json")]) == 1


def _same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _interrupted(folder, other, checkpoint):
    """A copy of a finished run as it was when killed some time after `checkpoint`."""
    shutil.copytree(folder, other)
    (other / "last_checkpoint").write_text(checkpoint)
    (other / "model_final.pth").unlink()


def test_a_run_from_the_command_line(finished, capsys):
    arguments, folder = finished
    written = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "inference"} <= written
    assert {f"model_{name}.pth" for name in ("0000001", "0000003", "0000005", "final")} <= written
    assert load_config(folder / "config.yaml").SOLVER.MAX_ITER == 6
    assert "PyTorch" in (folder / "log.txt").read_text()

    lines = read_metrics(folder)
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [2, 6]
    assert {"bbox/AP50", "segm/AP", "segm/AP-red"} <= set(lines[-1])
    assert list(losses_of(folder)) == list(range(6))
    losses = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert set(losses_of(folder)[0]) == {"total_loss", "lr", *losses}
    assert [event.step for event in EventAccumulator(str(folder)).Reload().Images("truth and prediction")] == [3]
    assert len(list((folder / "inference").glob("*.png"))) == 4

    # Evaluating the checkpoint gives the figures that training ended with, and leaves config.yaml alone.
    final = {key: value for key, value in lines[-1].items() if key != "iteration"}
    before = (folder / "config.yaml").read_bytes()
    capsys.readouterr()
    main(
        [
            arguments[0],
            arguments[1],
            "--eval-only",
            "MODEL.WEIGHTS",
            str(folder / "model_final.pth"),
            "TEST.EXPECTED_RESULTS",
            f"[['bbox', 'AP50', {final['bbox/AP50']}, 1e-9], ['segm', 'AP', {final['segm/AP']}, 1e-9]]",
        ]
    )
    assert "bbox per class" in capsys.readouterr().out
    assert (folder / "config.yaml").read_bytes() == before
    with pytest.raises(UserError, match="results differ from the expected ones: bbox AP50 is .*, expected 99"):
        main([*arguments[:2], "--eval-only", "--resume", "TEST.EXPECTED_RESULTS", "[['bbox', 'AP50', 99.0, 0.1]]"])


def test_evaluating_the_model_as_it_is(finished, tmp_path, monkeypatch):
    """TEST.FOLD_NORMS False: no copy is made, for which the figures are the same in so small a model."""
    arguments, folder = finished
    folded, fold_norms = [], prepared.fold_norms
    monkeypatch.setattr(prepared, "fold_norms", lambda model: folded.append(model) or fold_norms(model))
    detections = []
    for fold in (True, False):
        keys = ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / str(fold))]
        main([*arguments[:2], "--eval-only", *keys, "TEST.FOLD_NORMS", str(fold)])
        detections.append(json.loads((tmp_path / str(fold) / "inference" / "coco_instances_results.json").read_text()))
    assert len(folded) == 1
    as_folded, as_it_is = detections
    assert len(as_folded) == len(as_it_is) > 0
    for one, other in zip(as_folded, as_it_is):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4) and one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


def test_evaluation_holds_the_data_against_what_the_checkpoint_was_trained_on(finished, tmp_path):
    arguments, folder = finished
    final = {key: value for key, value in read_metrics(folder)[-1].items() if key != "iteration"}
    weights = str(folder / "model_final.pth")
    assert read_checkpoint(weights)["trained_on"] == {
        "thing_classes": ["red", "blue"],
        "thing_ids": [1, 2],
        "thing_colors": [[255, 77, 77], [61, 103, 204]],
        "input_format": "RGB",
    }
    content = json.loads((folder.parent / "tiny.json").read_text())
    expected = f"[['bbox', 'AP50', {final['bbox/AP50']}, 1e-9], ['bbox', 'AP-red', {final['bbox/AP-red']}, 1e-9]]"

    def evaluate(name, *keys):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register = ["--register", f"{name}_{folder.parent.name}={tmp_path / name}.json,{folder.parent / 'images'}"]
        keys = (
            "DATASETS.TEST",
            (f"{name}_{folder.parent.name}",),
            "OUTPUT_DIR",
            str(tmp_path / name),
            "MODEL.WEIGHTS",
            weights,
            *keys,
        )
        return main([*arguments[:2], "--eval-only", *register, *map(str, keys)])

    for annotation in content["annotations"]:
        annotation["category_id"] = 3 - annotation["category_id"]
    content["categories"] = [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
    evaluate("swapped", "TEST.EXPECTED_RESULTS", expected)
    results = json.loads((tmp_path / "swapped" / "inference" / "coco_instances_results.json").read_text())
    theirs = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    assert [3 - each["category_id"] for each in results] == [each["category_id"] for each in theirs]
    with pytest.raises(UserError, match="INPUT.FORMAT is BGR, but checkpoint .*model_final.pth was trained on RGB images"):
        evaluate("swapped", "INPUT.FORMAT", "BGR")

    old = read_checkpoint(weights)
    del old["trained_on"]
    torch.save(old, tmp_path / "old.pth")
    evaluate("swapped", "MODEL.WEIGHTS", tmp_path / "old.pth")

    content["categories"][0]["name"] = "green"
    with pytest.raises(
        UserError, match="classes of checkpoint .*model_final.pth and others.* are not the same: only one has blue, green"
    ):
        evaluate("others")

    content["categories"][0]["name"] = "blue"
    del content["annotations"]
    evaluate("images")
    assert len(json.loads((tmp_path / "images" / "inference" / "coco_instances_results.json").read_text())) == len(results)


def test_resumed_runs_equal_the_uninterrupted_one(finished, tmp_path):
    arguments, folder = finished
    final = read_checkpoint(folder / "model_final.pth")
    for checkpoint in ("model_0000001.pth", "model_0000003.pth"):
        other = tmp_path / checkpoint
        _interrupted(folder, other, checkpoint)
        main([*arguments[:2], "--resume", "OUTPUT_DIR", str(other)])
        assert losses_of(other) == losses_of(folder)
        resumed = read_checkpoint(other / "model_final.pth")
        assert _same_state(resumed["model"], final["model"]) and resumed["iteration"] == final["iteration"] == 5
        for state, expected in zip(*(each["optimizer"]["state"].values() for each in (resumed, final)), strict=True):
            assert torch.equal(state["momentum_buffer"], expected["momentum_buffer"])


def test_a_run_is_resumed_on_classes_of_other_ids(finished, tmp_path):
    """The same dataset, whose categories have exchanged their ids meanwhile: the losses go on as if nothing had happened."""
    arguments, folder = finished
    content = json.loads((folder.parent / "tiny.json").read_text())
    content["categories"] = [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 3 - annotation["category_id"]
    name = f"exchanged_{folder.parent.name}"
    (tmp_path / "exchanged.json").write_text(json.dumps(content))
    _interrupted(folder, tmp_path / "out", "model_0000003.pth")
    register = ["--register", f"{name}={tmp_path / 'exchanged.json'},{folder.parent / 'images'}"]
    keys = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(tmp_path / "out")]
    main([*arguments[:2], "--resume", *register, *keys])
    assert losses_of(tmp_path / "out") == losses_of(folder)
    assert read_metrics(tmp_path / "out")[-1]["bbox/AP-red"] == read_metrics(folder)[-1]["bbox/AP-red"]
    assert read_checkpoint(tmp_path / "out" / "model_final.pth")["trained_on"]["thing_ids"] == [2, 1]


def test_killed_between_the_last_two_checkpoints(finished, tmp_path, capsys):
    arguments, folder = finished
    _interrupted(folder, tmp_path / "other", "model_0000005.pth")
    capsys.readouterr()
    main([*arguments[:2], "--resume", "OUTPUT_DIR", str(tmp_path / "other")])
    assert "Nothing to train: 6 iterations are done" in capsys.readouterr().out
    final, expected = (read_checkpoint(each / "model_final.pth") for each in (tmp_path / "other", folder))
    assert _same_state(final["model"], expected["model"]) and final["iteration"] == 5
    assert read_metrics(tmp_path / "other")[-1]["bbox/AP"] == read_metrics(folder)[-1]["bbox/AP"]
    # A longer schedule goes on from there.
    main([*arguments[:2], "--resume", "OUTPUT_DIR", str(tmp_path / "other"), "SOLVER.MAX_ITER", "7"])
    assert list(losses_of(tmp_path / "other")) == list(range(7))


def test_resume_without_a_checkpoint_starts_from_the_beginning(tiny, tmp_path):
    quick = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SEED", "-1"]
    main([*tiny, "--resume", *quick])
    first = losses_of(tmp_path / "out")
    assert list(first) == [0, 1]
    # The seed that was drawn is in the checkpoint, and going on reuses it.
    seed = read_checkpoint(tmp_path / "out" / "model_final.pth")["seed"]
    main([*tiny[:2], *quick[:-1], str(seed), "OUTPUT_DIR", str(tmp_path / "again")])
    assert losses_of(tmp_path / "again") == first


def test_precise_batch_norm_changes_statistics_only(tiny, tmp_path):
    common = ["SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0"]
    main([*tiny, *common])
    main([*tiny[:2], *common, "TEST.PRECISE_BN.ENABLED", "False", "OUTPUT_DIR", str(tmp_path / "plain")])
    precise, plain = (read_checkpoint(tmp_path / name / "model_final.pth")["model"] for name in ("out", "plain"))
    differing = {key.rsplit(".", 1)[1] for key in plain if not torch.equal(precise[key], plain[key])}
    assert differing == {"running_mean", "running_var", "num_batches_tracked"}


def test_fine_tuning_from_a_checkpoint_with_another_head(finished, tmp_path):
    arguments, folder = finished
    quick = [
        "MODEL.WEIGHTS",
        str(folder / "model_final.pth"),
        "SOLVER.MAX_ITER",
        "1",
        "OUTPUT_DIR",
        str(tmp_path / "tuned"),
        "MODEL.ROI_BOX_HEAD.FC_DIM",
        "16",
        "DATASETS.TEST",
        "()",
    ]
    with pytest.raises(UserError, match=r"box_head.fc1.\w+ \(32,.* in the file, \(16,.* in the model"):
        main([*arguments[:2], *quick])
    main([*arguments[:2], *quick, "MODEL.WEIGHTS_ALLOW_MISMATCH", "True"])
    assert list(losses_of(tmp_path / "tuned")) == [0]


CLASS_LAYERS = ["box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"]


def _on_other_classes(finished, folder, names, *flags):
    """Arguments of a run on the same images, whose objects are now of the classes `names`, into `folder`/out."""
    arguments, finished_folder = finished
    content = json.loads((finished_folder.parent / "tiny.json").read_text())
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    for annotation in content["annotations"]:
        annotation["category_id"] = 1 + annotation["id"] % len(names)
    (folder / "other.json").write_text(json.dumps(content))
    name = f"other_{folder.name}_{'_'.join(names)}"
    return [
        *arguments[:2],
        *("--register", f"{name}={folder / 'other.json'},{finished_folder.parent / 'images'}"),
        *flags,
        *("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(folder / "out")),
        *("MODEL.ROI_HEADS.NUM_CLASSES", str(len(names)), "TEST.PRECISE_BN.ENABLED", "False"),
    ]


@pytest.mark.parametrize(
    "names, said",
    [
        (["cat", "dog", "cow"], "(2 classes in the file, 3 in the model)"),
        (["cow"], "(2 classes in the file, 1 in the model)"),
        (["red", "cow"], "(2 classes in the file, 2 in the model: red, blue there, red, cow here)"),
    ],
)
def test_fine_tuning_on_other_classes(finished, tmp_path, capsys, names, said):
    arguments, weights = _on_other_classes(finished, tmp_path, names), finished[1] / "model_final.pth"
    capsys.readouterr()
    main([*arguments, "MODEL.WEIGHTS", str(weights), "SOLVER.MAX_ITER", "0"])  # so that the parameters are those it starts from
    log = capsys.readouterr().out
    layers = ", ".join(f"roi_heads.{layer}" for layer in CLASS_LAYERS)
    assert log.count("freshly initialised") == log.count(f"freshly initialised for other classes {said}: {layers}") == 1
    started, source = (read_checkpoint(path)["model"] for path in (tmp_path / "out" / "model_final.pth", weights))
    assert started.keys() == source.keys()
    counted = "num_batches_tracked"  # from the start of each run
    differing = {name for name in source if not torch.equal(started[name], source[name]) and not name.endswith(counted)}
    new = {name for name in source if any(layer in name for layer in CLASS_LAYERS)}
    assert differing <= new and {f"roi_heads.{layer}.weight" for layer in CLASS_LAYERS} <= differing

    main([*arguments, "MODEL.WEIGHTS", str(weights), "SOLVER.MAX_ITER", "2"])
    final = read_checkpoint(tmp_path / "out" / "model_final.pth")
    assert final["iteration"] == 1 and final["trained_on"]["thing_classes"] == names
    assert all(0 < line["total_loss"] < 100 for line in losses_of(tmp_path / "out").values())


def test_another_number_of_classes_is_refused_where_nothing_is_learned_anew(finished, tmp_path):
    names, folder = ["cat", "dog", "cow"], finished[1]
    _interrupted(folder, tmp_path / "out", "model_0000003.pth")
    evaluate = _on_other_classes(finished, tmp_path, names, "--eval-only")
    with pytest.raises(UserError, match="they do not fit the model: .*; 2 classes in the file, 3 in the model"):
        main([*evaluate, "MODEL.WEIGHTS", str(folder / "model_final.pth")])
    for flags in (["--resume"], ["--resume", "--eval-only"]):
        with pytest.raises(UserError, match="model_0000003.pth is of another model: .*; 2 classes in the file, 3 in the model"):
            main(_on_other_classes(finished, tmp_path, names, *flags))


def test_fine_tuning_on_the_same_classes_in_another_order(finished, tmp_path, capsys):
    """Each row goes to its class: the model that the run starts from has the figures that the other one ended with."""
    arguments, folder = finished
    content = json.loads((folder.parent / "tiny.json").read_text())
    content["categories"] = [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 3 - annotation["category_id"]
    turned = _on_other_classes(finished, tmp_path, ["blue", "red"])
    (tmp_path / "other.json").write_text(json.dumps(content))
    capsys.readouterr()
    main([*turned, "MODEL.WEIGHTS", str(folder / "model_final.pth"), "SOLVER.MAX_ITER", "0"])
    assert "put into the order of the model's classes: roi_heads.box_predictor.cls_score.weight" in capsys.readouterr().out
    final, expected = (read_metrics(each)[-1] for each in (tmp_path / "out", folder))
    assert final["bbox/AP-red"] == pytest.approx(expected["bbox/AP-red"], abs=1e-9)
    assert final["bbox/AP50"] == pytest.approx(expected["bbox/AP50"], abs=1e-9)
    assert read_checkpoint(tmp_path / "out" / "model_final.pth")["trained_on"]["thing_classes"] == ["blue", "red"]


def test_mixed_precision_trains(tiny, tmp_path):
    quick = ["SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", "TEST.PRECISE_BN.ENABLED", "False"]
    main([*tiny, *quick, "SOLVER.AMP.ENABLED", "True"])
    assert all(0 < line["total_loss"] < 100 for line in losses_of(tmp_path / "out").values())


def test_classes_are_counted_in_the_data_unless_they_are_set_and_epochs_are_its_images(tmp_path):
    arguments = write_tiny_run(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("NUM_CLASSES: 2, ", ""))
    quick = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]
    main([*arguments, *quick, "SOLVER.MAX_EPOCHS", "1.5"])
    written = load_config(tmp_path / "out" / "config.yaml")
    assert written.MODEL.ROI_HEADS.NUM_CLASSES == 2 and written.SOLVER.MAX_ITER == 3
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 2, as the data has it" in log and "12 objects of 2 classes: red 6, blue 6" in log
    # What is set is held against the data, in an override or in a file, the run's own configuration too.
    with pytest.raises(UserError, match="has 2 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 80"):
        main([*arguments, *quick, "MODEL.ROI_HEADS.NUM_CLASSES", "80"])
    (tmp_path / "tiny.json").write_text(
        (tmp_path / "tiny.json").read_text().replace('"categories": [', '"categories": [{"id": 7, "name": "x"}, ')
    )
    with pytest.raises(UserError, match="has 3 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 2"):
        main(["--config-file", str(tmp_path / "out" / "config.yaml"), *arguments[2:], *quick])
    # A checkpoint's classes are held against the data, too.
    with pytest.raises(UserError, match="(?s)classes"):
        main(
            [
                *arguments[:2],
                "--eval-only",
                *arguments[2:],
                "DATASETS.TEST",
                "('" + arguments[3].split("=")[0] + "',)",
                "MODEL.WEIGHTS",
                str(tmp_path / "out" / "model_final.pth"),
            ]
        )
