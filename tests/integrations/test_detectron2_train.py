"""`train_net --engine detectron2`: whole runs, checkpoints that go from one host to the other, and bad input."""

import json
import re
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.commands import start_training
from tests.helpers.tiny_run import read_metrics, write_tiny_run

pytestmark = pytest.mark.detectron2
pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, get_detection_dataset_dicts  # noqa: E402
from detectron2.evaluation import COCOEvaluator  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402

from resnest_det import Predictor  # noqa: E402
from resnest_det.commands.train_net import main  # noqa: E402
from resnest_det.data.catalog import register, register_coco, register_semantic  # noqa: E402
from resnest_det.data.formats.splits import find_labels  # noqa: E402
from resnest_det.errors import UserError  # noqa: E402
from resnest_det.inference.evaluating import flatten_results  # noqa: E402
from resnest_det.integrations.detectron2_data import have_run_length_masks, register_datasets  # noqa: E402
from resnest_det.integrations.detectron2_train import _facts, load_config  # noqa: E402
from resnest_det.training.process import run_process  # noqa: E402
from resnest_det.weights.checkpoint_files import read_checkpoint  # noqa: E402
from tests.helpers.configs import TINY_PANOPTIC, typed  # noqa: E402
from tests.helpers.datasets import write_panoptic_shapes  # noqa: E402
from tests.helpers.labels import voc, write_voc  # noqa: E402

# Enough to find the rectangles of the training images again, whatever the seed: AP has to be more than 0 to be compared.
LEARN = typed(
    {
        "SOLVER.MAX_ITER": 120,
        "SOLVER.STEPS": (100,),
        "SOLVER.CHECKPOINT_PERIOD": 1000,
        "SOLVER.BASE_LR": 0.03,
        "TEST.EVAL_PERIOD": 0,
        "MODEL.DEVICE": "cpu",
    }
)


def results_of(arguments, engine: str, keys) -> dict[str, float]:
    """The figures that `main(arguments)` with `engine` returns from its evaluation."""
    results = {}

    def keep(*given):
        results.update(run_process(*given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnest_det.commands.train_net.run_process", keep)
        main([*arguments[:2], "--engine", engine, *arguments[2:], *keys])
    return flatten_results(results)


@pytest.fixture(scope="module", params=["builtin", "detectron2"])
def trained(request, tmp_path_factory):
    """(engine that trained, arguments of its run, its output folder, its figures)"""
    folder = tmp_path_factory.mktemp(f"trained_{request.param}")
    arguments = write_tiny_run(folder)
    figures = results_of(arguments, request.param, LEARN)
    return request.param, arguments, folder / "out", figures


def detections(folder) -> list[dict]:
    entries = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    return sorted(entries, key=lambda entry: (entry["image_id"], -entry["score"]))


@pytest.mark.slow
def test_other_host_evaluates_the_checkpoint_alike(trained, tmp_path):
    engine, arguments, folder, figures = trained
    other = "detectron2" if engine == "builtin" else "builtin"
    again = results_of(
        [*arguments[:2], "--eval-only", *arguments[2:]],
        other,
        ["MODEL.WEIGHTS", str(folder / "model_final.pth"), "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"],
    )
    assert figures["bbox/AP50"] > 5 and figures["segm/AP50"] > 5
    for name in ("bbox/AP", "bbox/AP50", "bbox/AP75", "segm/AP", "segm/AP50", "bbox/AP-red", "segm/AP-blue"):
        assert again[name] == pytest.approx(figures[name], abs=0.1), name
    expected, actual = detections(folder), detections(tmp_path)
    assert [entry["image_id"] for entry in actual] == [entry["image_id"] for entry in expected]
    assert [entry["score"] for entry in actual] == pytest.approx([entry["score"] for entry in expected], abs=1e-3)


@pytest.mark.slow
def test_other_host_resumes_the_folder_for_evaluation(trained, tmp_path):
    engine, arguments, folder, figures = trained
    other = "detectron2" if engine == "builtin" else "builtin"
    again = results_of([*arguments[:2], "--eval-only", "--resume", *arguments[2:]], other, ["MODEL.DEVICE", "cpu"])
    assert again["bbox/AP"] == pytest.approx(figures["bbox/AP"], abs=0.1)
    with pytest.raises(UserError, match="model_final.pth .*(was not made by Detectron2's trainer|has no optimizer)"):
        main([*arguments[:2], "--engine", other, "--resume", *arguments[2:], *LEARN])


@pytest.mark.slow
def test_run_writes_the_same_files_and_resumes(tmp_path):
    arguments = write_tiny_run(tmp_path)
    arguments = [*arguments[:2], "--engine", "detectron2", *arguments[2:]]
    keys = ["MODEL.DEVICE", "cpu", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 64)"]
    main([*arguments, *keys, "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "TEST.EVAL_PERIOD", "0"])
    out = tmp_path / "out"
    for name in (
        "config.yaml",
        "log.txt",
        "metrics.json",
        "model_final.pth",
        "last_checkpoint",
        "inference/coco_instances_results.json",
        "inference_TTA/coco_instances_results.json",
    ):
        assert (out / name).exists(), name
    log = (out / "log.txt").read_text()
    assert "Detectron2 on cpu" in log and "Running precise batch norm over 2 batches" in log and "test-time augmentation" in log

    longer = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)", "TEST.EVAL_PERIOD", "0"]
    main([*arguments[:4], "--resume", *arguments[4:], *keys, *longer])
    figures = read_metrics(out)[-1]
    assert {"bbox/AP", "segm/AP", "bbox_TTA/AP"} <= set(figures) and figures["iteration"] == 4
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 3


def test_a_checkpoint_stands_alone(tmp_path):
    """It says its configuration and classes, as the built-in detector's; of a model that only Detectron2 builds, the classes."""
    arguments = write_tiny_run(tmp_path)
    arguments = [*arguments[:2], "--engine", "detectron2", *arguments[2:]]
    keys = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "TEST.EVAL_PERIOD", "0"]
    main([*arguments, *keys, "TEST.PRECISE_BN.ENABLED", "False"])
    predictor = Predictor(tmp_path / "out" / "model_final.pth", device="cpu", score_threshold=0)
    assert (predictor.classes.things.names, predictor.classes.things.ids) == (("red", "blue"), (1, 2))
    expected = [entry for entry in detections(tmp_path / "out") if entry["image_id"] == 1]
    found = predictor(str(tmp_path / "images" / "1.png")).to_coco()
    assert len(found) > 1
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in expected], abs=1e-3)
    main([*arguments, "--resume", *keys, "SOLVER.MAX_ITER", "3", "TEST.PRECISE_BN.ENABLED", "False"])
    again = read_checkpoint(tmp_path / "out" / "model_final.pth")
    assert (
        again["iteration"] == 2 and "MAX_ITER: 3" in again["config"] and again["trained_on"]["thing_classes"] == ["red", "blue"]
    )

    cfg = load_config("detectron2/retinanet_ResNeSt50_FPN", ["DATASETS.TRAIN", f"('tiny_{tmp_path.name}',)"])
    assert _facts(cfg).keys() == {"trained_on"}


@pytest.mark.slow
def test_terminated_and_resumed_after_the_last_step(tmp_path):
    keys = ["MODEL.DEVICE", "cpu", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]
    arguments = [*write_tiny_run(tmp_path), *keys, "TEST.PRECISE_BN.ENABLED", "False"]
    process = start_training(*arguments, "SOLVER.MAX_ITER", "1000", "SOLVER.STEPS", "(900,)", engine="detectron2")
    marker = tmp_path / "out" / "last_checkpoint"
    while process.poll() is None and not marker.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in text and text.splitlines()[-1] == "terminated", text
    last = int(re.search(r"Stopped after iteration (\d+), of which there is a checkpoint", text)[1])
    assert marker.read_text() == f"model_{last:07d}.pth"
    resume = [*arguments[:2], "--engine", "detectron2", "--resume", *arguments[2:]]
    main([*resume, "SOLVER.MAX_ITER", str(last + 3), "SOLVER.STEPS", "(900,)"])
    assert f"Starting training from iteration {last + 1}\n" in (tmp_path / "out" / "log.txt").read_text()
    assert torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["iteration"] == last + 2


@pytest.mark.slow
def test_panoptic_shapes(tmp_path, monkeypatch):
    name, arguments = tmp_path.name, write_panoptic_shapes(tmp_path, {"train": 4, "val": 3})
    keys = TINY_PANOPTIC | {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (1,),
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 16,
        "TEST.AUG.ENABLED": True,
        "TEST.AUG.MIN_SIZES": (64,),
        "DATASETS.TRAIN": (f"{name}_train",),
        "DATASETS.TEST": (f"{name}_val",),
        "OUTPUT_DIR": tmp_path / "out",
    }
    main(["--config-file", "panoptic_ResNeSt14_FPN_shapes", "--engine", "detectron2", *arguments, *typed(keys)])
    figures = read_metrics(tmp_path / "out")[-1]
    assert {"bbox/AP", "segm/AP", "sem_seg/mIoU", "panoptic_seg/PQ", "panoptic_seg/PQ_st", "bbox_TTA/AP"} <= set(figures)
    assert figures["sem_seg/pACC"] > 0 and 0 <= figures["panoptic_seg/PQ"] <= 100
    assert len(list((tmp_path / "out" / "semantic_labels" / f"{name}_val").glob("*.png"))) == 3
    assert MetadataCatalog.get(f"{name}_val").evaluator_type == "coco_panoptic_seg"
    record = DatasetCatalog.get(f"{name}_train")[0]
    assert {"sem_seg_file_name", "pan_seg_file_name", "segments_info", "annotations"} <= set(record)


@pytest.mark.slow
@pytest.mark.parametrize("trained_by", ["builtin", "detectron2"])
def test_deeplab_has_the_same_figures_in_both_hosts(tmp_path, trained_by):
    for part, count in (("train", 6), ("val", 3)):
        for folder in ("images", "labels"):
            (tmp_path / part / folder).mkdir(parents=True)
        for i in range(count):
            random = np.random.default_rng(i + 10 * count)
            labels = random.integers(0, 3, (4, 6)).repeat(16, axis=0).repeat(16, axis=1).astype(np.uint8)
            Image.fromarray(labels).save(tmp_path / part / "labels" / f"{i}.png")
            pixels = (80 * labels[..., None] + random.integers(0, 60, (64, 96, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "images" / f"{i}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    arguments = ["--config-file", "deeplabv3plus_ResNeSt14_shapes"]
    for part in ("train", "val"):
        folders = f"{tmp_path / part / 'labels'},{tmp_path / part / 'images'},{tmp_path / 'classes.txt'}"
        arguments += ["--register-semantic", f"{tmp_path.name}_{part}={folders}"]
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
        "MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS": [],  # which Detectron2 does not have
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
        "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [32, 32, 32],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
        "DATASETS.TRAIN": (f"{tmp_path.name}_train",),
        "DATASETS.TEST": (f"{tmp_path.name}_val",),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.CROP.SIZE": [64, 96],  # Detectron2 evaluates only images that windows of this size fill
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.8,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 8,
        "SOLVER.WARMUP_ITERS": 0,
        "TEST.PRECISE_BN.ENABLED": False,
        "TEST.AUG.ENABLED": False,
        "TEST.EVAL_PERIOD": 0,
    }
    out = {engine: ["OUTPUT_DIR", str(tmp_path / engine)] for engine in ("builtin", "detectron2")}
    results_of(arguments, trained_by, [*typed(keys), *out[trained_by]])
    weights = ["MODEL.WEIGHTS", str(tmp_path / trained_by / "model_final.pth")]
    figures = [
        results_of([*arguments[:2], "--eval-only", *arguments[2:]], engine, [*typed(keys), *weights, *out[engine]])
        for engine in out
    ]
    for name in ("sem_seg/mIoU", "sem_seg/pACC", "sem_seg/fwIoU"):
        assert figures[0][name] == pytest.approx(figures[1][name], abs=1e-9) and figures[0][name] > 10, name


@pytest.fixture
def label_pngs(tmp_path):
    """The name of a registered dataset of one image, whose labels are indices of a palette, 9 for none; and what they are."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    labels[0] = 9
    picture = Image.fromarray(labels)
    picture.putpalette([*range(255, -1, -1)] * 3)
    picture.save(tmp_path / "labels" / "a.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "a.png")
    name = f"labels_{tmp_path.name}"
    register_semantic(name, str(tmp_path / "labels"), str(tmp_path / "images"), 3, ignore_value=9)
    return name, np.where(labels == 9, 255, labels)


def semantic_config(name, tmp_path, **head):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = "SemanticSegmentor", (name,), (name,)
    cfg.MODEL.SEM_SEG_HEAD.update({"NUM_CLASSES": 3} | head)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


def test_label_pngs_reach_detectron2_as_it_reads_them(label_pngs, tmp_path):
    name, labels = label_pngs
    cfg = semantic_config(name, tmp_path)
    register_datasets(cfg, [name])
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.ignore_label, metadata.stuff_classes) == ("sem_seg", 255, ["0", "1", "2"])
    (record,) = get_detection_dataset_dicts([name], filter_empty=True)
    sample = DatasetMapper(True, augmentations=[], image_format="RGB")(record)
    np.testing.assert_array_equal(sample["sem_seg"].numpy(), labels)
    assert have_run_length_masks([name]) is False


def test_labels_of_another_format_are_evaluated_without_their_file(tmp_path):
    name = f"voc_{tmp_path.name}"
    write_voc(tmp_path / "in", {"a": voc(("cat", 1, 2, 9, 9), ("dog", 10, 2, 19, 29))})
    register(name, find_labels(str(tmp_path / "in")))
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.MODEL.ROI_HEADS.NUM_CLASSES = (name,), (name,), 2
    register_datasets(cfg, [name])
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"] and not hasattr(MetadataCatalog.get(name), "json_file")
    (record,) = get_detection_dataset_dicts([name])
    evaluator = COCOEvaluator(name, tasks=("bbox",), output_dir=str(tmp_path / "out"), use_fast_impl=False)
    evaluator.reset()
    found = Instances((record["height"], record["width"]))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2, 9, 9], [10, 2, 19, 29]]))
    found.scores, found.pred_classes = torch.ones(2), torch.tensor([0, 1])
    evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("split, annotations", [("train", True), ("test", True), ("test", False)])
def test_images_are_looked_for_where_they_will_be_read(write_coco, tmp_path, split, annotations):
    name = f"mine_{tmp_path.name}"
    found = [{"image_id": 1, "bbox": [1, 1, 2, 2]}] + [{"image_id": 2, "bbox": [1, 1, 2, 2]}] * annotations
    register_coco(name, *write_coco([(1, 4, 6), (2, 4, 6)], found, name="images"))
    (tmp_path / "images" / "2.png").rename(tmp_path / "images" / "2.PNG")
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((name,), ()) if split == "train" else ((), (name,))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    with pytest.raises(UserError, match=f"dataset {name}: image .*/2.png of image 2 does not exist; 1 of 2 .*in another case"):
        register_datasets(cfg, [name])
    assert name not in DatasetCatalog.list()


def test_detectron2_is_refused_another_value_for_pixels_without_a_label(label_pngs, tmp_path):
    name, _ = label_pngs
    with pytest.raises(UserError, match=f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE 0: .* dataset {name} .* supported: 255"):
        register_datasets(semantic_config(name, tmp_path, IGNORE_VALUE=0), [name])


@pytest.mark.parametrize(
    "kind, architecture, expected",
    [
        ("coco_sem_seg", "PanopticFPN", ["COCOEvaluator", "SemSegEvaluator"]),
        ("coco", "GeneralizedRCNN", ["COCOEvaluator"]),
        ("coco_panoptic_seg", "PanopticFPN", ["COCOEvaluator", "SemSegEvaluator", "panoptic"]),
        ("coco_panoptic_seg", "GeneralizedRCNN", ["COCOEvaluator"]),
        ("sem_seg", "SemanticSegmentor", ["SemSegEvaluator"]),
        ("lvis", "GeneralizedRCNN", ["LVISEvaluator"]),
        ("pascal_voc", "GeneralizedRCNN", ["PascalVOCDetectionEvaluator"]),
        ("cityscapes_instance", "GeneralizedRCNN", ["CityscapesInstanceEvaluator"]),
        ("cityscapes_sem_seg", "SemanticSegmentor", ["CityscapesSemSegEvaluator"]),
    ],
)
def test_evaluators_are_chosen_by_the_type_of_the_data(monkeypatch, kind, architecture, expected):
    from resnest_det.integrations import detectron2_train

    made = []
    for name in (
        "COCOEvaluator",
        "SemSegEvaluator",
        "LVISEvaluator",
        "PascalVOCDetectionEvaluator",
        "CityscapesInstanceEvaluator",
        "CityscapesSemSegEvaluator",
    ):
        monkeypatch.setattr(detectron2_train, name, lambda *args, name=name, **kwargs: made.append(name))
    monkeypatch.setattr(detectron2_train, "_panoptic_evaluator", lambda *args: made.append("panoptic"))
    MetadataCatalog.get(f"of_{kind}").evaluator_type = kind
    cfg = detectron2_train.get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TEST = architecture, (f"of_{kind}",)
    detectron2_train.Trainer.build_evaluator(cfg, f"of_{kind}")
    assert made == expected


def test_data_that_the_model_cannot_be_measured_by():
    from resnest_det.integrations import detectron2_train

    MetadataCatalog.get("of_semantic").evaluator_type = "sem_seg"
    with pytest.raises(UserError, match="dataset of_semantic of type sem_seg has nothing to evaluate a GeneralizedRCNN on"):
        detectron2_train.Trainer.build_evaluator(detectron2_train.get_cfg(), "of_semantic")


@pytest.mark.parametrize(
    "flags, keys, message",
    [
        ([], ["DATASETS.TEST", "('absent_val',)"], "unknown dataset 'absent_val'"),
        ([], ["MODEL.ROI_HEADS.NAME", "NoSuchHeads"], "Detectron2 cannot build this configuration: .*NoSuchHeads"),
        ([], ["MODEL.ROI_HEADS.NUM_CLASSES", "5"], "has 2 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 5"),
        ([], ["MODEL.RESNETS.DEPTH", "51"], "MODEL.RESNETS.DEPTH 51 is not supported"),
        ([], ["MODEL.RESNETS.RADIUS", "2"], "unknown config key MODEL.RESNETS.RADIUS; nearest known key"),
        ([], ["SOLVER.IMS_PER_BATCH", "1"], "batch norm inside split attention"),
        ([], ["MODEL.WEIGHTS", "absent.pth"], "weights absent.pth: no such file"),
        ([], ["MODEL.DEVICE", "tpu"], "MODEL.DEVICE 'tpu' is not supported"),
        (["--eval-only"], [], "--eval-only needs MODEL.WEIGHTS, or --resume"),
        (["--num-processes", "2"], [], "Detectron2 runs several processes only on GPUs"),
        (
            ["--register", "lvis_v1_val=a.json,b"],
            ["DATASETS.TEST", "('lvis_v1_val',)"],
            "Detectron2 already has a dataset named lvis_v1_val",
        ),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, flags, keys, message):
    arguments = write_tiny_run(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        main([*arguments[:2], "--engine", "detectron2", *flags, *arguments[2:], *keys])
    assert "\n" not in str(error.value)


def test_other_classes_begin_anew_and_are_not_resumed(trained, tmp_path, capsys):
    """Three where the checkpoint, of either engine, has two; then two of other names."""
    engine, arguments, folder, _ = trained
    content = json.loads((folder.parent / "tiny.json").read_text())
    quick = ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "0", "MODEL.DEVICE", "cpu"]
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    for names in (["red", "blue", "green"], ["red", "green"]):
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        name = f"other_{folder.parent.name}_{len(names)}"
        (tmp_path / "other.json").write_text(json.dumps(content))
        register = ["--register", f"{name}={tmp_path / 'other.json'},{folder.parent / 'images'}"]
        keys = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)", "MODEL.ROI_HEADS.NUM_CLASSES", str(len(names))]

        def tune(*flags, output, weights=(), register=register, keys=keys):
            main(
                [*arguments[:2], "--engine", "detectron2", *flags, *register, *quick, *keys, *weights, "OUTPUT_DIR", str(output)]
            )

        capsys.readouterr()
        tune(output=tmp_path / str(len(names)), weights=weights)
        anew = "freshly initialised for other classes (2 classes in the file" in capsys.readouterr().out
        assert anew
        if len(names) == 3:
            with pytest.raises(UserError, match="; 2 classes in the file, 3 in the model"):
                tune("--eval-only", output=tmp_path / "evaluated", weights=weights)
            if engine == "detectron2":
                with pytest.raises(UserError, match="of another model: 2 classes in the file, 3 in the model"):
                    tune("--resume", output=folder)


def test_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = write_tiny_run(tmp_path)
    with pytest.raises(UserError, match="MODEL.DEVICE 'cuda': this machine has no GPU"):
        main([*arguments[:2], "--engine", "detectron2", *arguments[2:], "MODEL.DEVICE", "cuda"])


@pytest.mark.parametrize(
    "keys",
    [["SOLVER.RPN_LR_FACTOR", "0.5"], ["SOLVER.HEAD_LR_FACTOR", "10.0", "SOLVER.BIAS_LR_FACTOR", "2.0"]],
    ids=lambda keys: keys[0],
)
def test_parts_learn_at_rates_of_their_own(tiny, keys):
    from resnest_det.configuration import model, reading, solver
    from resnest_det.integrations.detectron2_train import Trainer

    def rates(built, optimizer):
        names = {parameter: name for name, parameter in built.named_parameters()}
        return {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}

    cfg = reading.load_config(tiny[1], keys)
    own = model.assemble_model(cfg)
    expected = rates(own, solver.build_optimizer(cfg, own))
    cfg = load_config(tiny[1], [*keys, "MODEL.DEVICE", "cpu"])
    theirs = Trainer.build_model(cfg)
    assert rates(theirs, Trainer.build_optimizer(cfg, theirs)) == expected
    assert len(set(expected.values())) > 1


def test_keys_of_the_built_in_trainer_and_classes_of_the_data(tiny, tmp_path):
    from resnest_det.integrations import detectron2_train

    for key, value in (("TEST.PATIENCE", "2"), ("SOLVER.EMA.ENABLED", "True"), ("SOLVER.CHECKPOINTS_KEPT", "1")):
        with pytest.raises(UserError, match=f"{key} .* is not supported: Detectron2's trainer does not read this key"):
            detectron2_train.load_config(tiny[1], [key, value])
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("NUM_CLASSES: 2, ", ""))
    keys = ["SOLVER.MAX_EPOCHS", "1.5", "TEST.EVAL_PERIOD", "0", "TEST.PRECISE_BN.ENABLED", "False", "DATASETS.TEST", "()"]
    main([*tiny[:2], "--engine", "detectron2", *tiny[2:], *keys, "MODEL.DEVICE", "cpu"])
    lines = [line for line in read_metrics(tmp_path / "out") if "total_loss" in line]
    assert lines[-1]["iteration"] == 2, "6 images in batches of 4: 1.5 epochs are 3 iterations"
    state = torch.load(tmp_path / "out" / "model_final.pth", weights_only=False)["model"]
    assert state["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3
