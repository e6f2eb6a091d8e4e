"""A run's folder stands alone: its config.yaml and each of its checkpoints say everything that a run was told."""

import json
import os
import shutil

import pytest
import torch
import yaml

from resnest_det.commands.train_net import main
from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.standalone import configuration_of, datasets_of, whole_configuration, with_datasets
from resnest_det.data.catalog import CocoFiles, PanopticFiles
from resnest_det.data.semantic import SemanticFiles
from resnest_det.errors import UserError
from resnest_det.weights.checkpoint_files import read_checkpoint
from tests.helpers.tiny_run import write_tiny_run

QUICK = ["TEST.PRECISE_BN.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that was told everything by relative paths."""
    folder = tmp_path_factory.mktemp("standalone")
    config_file, name = write_tiny_run(folder)[1], f"tiny_{folder.name}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        register = ["--register", f"{name}=tiny.json,images"]
        main(["--config-file", os.path.basename(config_file), *register, *QUICK, "OUTPUT_DIR", "out"])
    return folder / "out", name


def test_config_yaml_is_evaluated_from_any_folder_without_a_flag(trained, tmp_path, monkeypatch):
    folder, _ = trained
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    results = moved / "inference" / "coco_instances_results.json"
    expected = json.loads(results.read_text())
    results.unlink()
    monkeypatch.chdir(tmp_path)
    main(["--config-file", "moved/config.yaml", "--eval-only"])
    assert json.loads(results.read_text()) == expected and expected
    assert (folder / "config.yaml").read_bytes() == (moved / "config.yaml").read_bytes()
    # What is said besides is done.
    main(["--config-file", "moved/config.yaml", "--eval-only", "OUTPUT_DIR", "elsewhere"])
    assert (tmp_path / "elsewhere" / "inference" / "coco_instances_results.json").exists()
    with pytest.raises(UserError, match="absent.pth"):
        main(["--config-file", "moved/config.yaml", "--eval-only", "MODEL.WEIGHTS", "absent.pth"])


def test_checkpoints_and_config_yaml_carry_the_same(trained):
    folder, name = trained
    text = (folder / "config.yaml").read_text()
    files = CocoFiles(str(folder.parent / "tiny.json"), str(folder.parent / "images"))
    for checkpoint in ("model_0000001.pth", "model_final.pth"):
        content = read_checkpoint(folder / checkpoint)
        assert content["config"] == text
        cfg = configuration_of(content, checkpoint)
        assert cfg == load_config(str(folder / "config.yaml"))
        assert datasets_of(cfg) == {name: files} and cfg.DATASETS.ROOT == "" and cfg.OUTPUT_DIR == str(folder)
        assert list(cfg.DATASETS.THING_CLASSES) == content["trained_on"]["thing_classes"] == ["red", "blue"]
        assert list(cfg.DATASETS.THING_IDS) == [1, 2]
    assert configuration_of(content, "a.pth", ("MODEL.DEVICE", "cpu")).MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "checkpoint a.pth has no configuration in it .*: give the YAML file or the name of the recipe"),
        (3, "checkpoint a.pth: 'config' is a int, expected the text"),
        ("MODEL: [", "configuration in checkpoint a.pth: not valid YAML"),
        ("MODEL: {DEPHT: 3}", "configuration in checkpoint a.pth: unknown config key MODEL.DEPHT"),
        ("_BASE_: /etc/passwd", "configuration in checkpoint a.pth: it has a _BASE_"),
        ("a: &a [1]\nb: " + "[*a," * 60 + "]" * 60, "configuration in checkpoint a.pth: not a configuration: more than"),
        ("x: '" + "y" * 300_000 + "'", "configuration in checkpoint a.pth: not a configuration: larger than"),
        ("DATASETS: {THING_CLASSES: ['a\\u0007', b]}".replace("'", '"'), "DATASETS.THING_CLASSES .* has control characters"),
        ("DATASETS: {THING_IDS: [one]}", "DATASETS.THING_IDS takes a list"),
        ("DATASETS: {REGISTERED: [1]}", "DATASETS.REGISTERED takes a list"),
    ],
)
def test_what_a_checkpoint_says_is_not_believed(config, message):
    with pytest.raises(UserError, match=message) as error:
        configuration_of({"model": {}} | ({} if config is None else {"config": config}), "a.pth")
    assert "\n" not in str(error.value)


def test_datasets_of_every_kind_with_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {
        "a": CocoFiles("a.json", "a, b=c"),
        "b": PanopticFiles("p.json", "png", "images", None, True),
        "c": SemanticFiles("labels", "images", "names.txt", 7, "list.txt", "_l"),
        "d": SemanticFiles("labels", "images", ("sky", "road")),
        "e": SemanticFiles("labels", "images", 5, reduce_zero_label=True),
    }
    cfg = with_datasets(default_config(), files)
    found = datasets_of(cfg)
    assert found["a"] == CocoFiles(str(tmp_path / "a.json"), str(tmp_path / "a, b=c"))
    assert found["b"] == PanopticFiles(*(str(tmp_path / name) for name in ("p.json", "png", "images")), None, True)
    paths = [str(tmp_path / name) for name in ("labels", "images", "names.txt")]
    assert found["c"] == SemanticFiles(*paths, 7, str(tmp_path / "list.txt"), "_l")
    assert found["d"] == SemanticFiles(*paths[:2], ("sky", "road")) and found["e"].classes == 5 and found["e"].reduce_zero_label
    assert datasets_of(with_datasets(cfg, {"a": files["d"]}))["a"] == found["d"], "a flag comes before the file"
    (tmp_path / "config.yaml").write_text(whole_configuration(cfg, {}))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["DATASETS"]["REGISTERED"][0]["image_root"].endswith("a, b=c")


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"name": "x"}, "each entry has a name and one of"),
        ({"json_file": "x"}, "each entry has a name and one of"),
        ({"name": "x", "json_file": "a"}, "dataset x: .*image_root"),
        ({"name": "x", "json_file": 3, "image_root": "a"}, "dataset x: .*json_file"),
        ({"name": "x", "json_file": "a", "image_root": "a", "more": 1}, "dataset x: 'more' is not known"),
        (
            {"name": "x", "label_root": "a", "image_root": "a", "classes": 2, "ignore_value": 700},
            "dataset x: ignore_value is 700",
        ),
    ],
)
def test_entries_that_are_no_dataset(entry, message):
    cfg = default_config()
    cfg.DATASETS.REGISTERED = [entry]
    with pytest.raises(UserError, match=f"DATASETS.REGISTERED.*{message}"):
        datasets_of(cfg)


def test_thousands_of_classes_are_left_to_the_checkpoint():
    lvis = {"thing_classes": [f"class number {i}" for i in range(1203)], "thing_ids": list(range(1203))}
    assert len(yaml.safe_load(whole_configuration(default_config(), lvis))["DATASETS"]["THING_IDS"]) == 1203
    many = {"thing_classes": [f"class {i}" for i in range(6000)]}
    assert yaml.safe_load(whole_configuration(default_config(), many))["DATASETS"]["THING_CLASSES"] == []


def test_datasets_known_by_name_are_found_where_they_were(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    (tmp_path / "datasets").mkdir()
    monkeypatch.chdir(tmp_path)
    cfg = default_config()
    cfg.DATASETS.TEST = ("coco_2017_val",)
    cfg = with_datasets(cfg, {})
    assert cfg.DATASETS.ROOT == str(tmp_path / "datasets")
    monkeypatch.chdir("/")
    assert with_datasets(cfg, {}).DATASETS.ROOT == str(tmp_path / "datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert with_datasets(cfg, {}).DATASETS.ROOT == str(tmp_path)


@pytest.mark.detectron2
def test_detectron2_merges_config_yaml(trained):
    get_cfg = pytest.importorskip("detectron2.config").get_cfg
    from resnest_det.integrations.detectron2 import add_resnest_config

    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_file(str(trained[0] / "config.yaml"))
    own = load_config(str(trained[0] / "config.yaml"))
    assert cfg.SOLVER.MAX_ITER == 2 and cfg.DATASETS.REGISTERED == own.DATASETS.REGISTERED and cfg.INPUT.FORMAT == "RGB"
    torch.manual_seed(0)
    from detectron2.modeling import build_model

    missing = build_model(cfg).load_state_dict(read_checkpoint(trained[0] / "model_final.pth")["model"], strict=False)
    assert not missing.unexpected_keys
