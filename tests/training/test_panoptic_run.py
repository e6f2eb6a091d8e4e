"""Whole runs of Panoptic FPN and of a semantic model: one command trains, evaluates all tasks and writes pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from resnest_det.commands.train_net import main
from resnest_det.data.catalog import get_dataset, register_panoptic
from resnest_det.data.semantic_files import write_semantic_pngs
from resnest_det.data.shapes import write_shapes
from resnest_det.errors import UserError
from tests.helpers.configs import TINY_PANOPTIC, typed
from tests.helpers.datasets import write_panoptic_shapes
from tests.helpers.tiny_run import losses_of, read_metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Flags that register panoptic shapes, `{name}_train` without an instance file and `{name}_val` with one; the name."""
    folder = tmp_path_factory.mktemp("made")
    return write_panoptic_shapes(folder, {"train": 4, "val": 3}, without_instances=["train"]), folder.name


def overrides(name: str, folder) -> list[str]:
    return typed(TINY_PANOPTIC | {"DATASETS.TRAIN": (f"{name}_train",), "DATASETS.TEST": (f"{name}_val",), "OUTPUT_DIR": folder})


def test_panoptic(made, tmp_path):
    register, name = made
    out = tmp_path / "out"
    config = ["--config-file", "panoptic_ResNeSt14_FPN_shapes"]
    main([*config, *register, *overrides(name, out), "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "16"])

    assert all({"loss_sem_seg", "loss_mask", "loss_rpn_cls"} <= set(losses) for losses in losses_of(out).values())
    figures = read_metrics(out)[-1]
    assert {"bbox/AP", "segm/AP", "sem_seg/mIoU", "panoptic_seg/PQ_th", "panoptic_seg/PQ-stripes"} <= set(figures)
    assert 0 <= figures["panoptic_seg/PQ"] <= 100 and figures["sem_seg/pACC"] > 0
    folder = out / "inference"
    predicted = json.loads((folder / "panoptic_predictions.json").read_text())
    assert len(predicted["annotations"]) == 3 and len(list((folder / "panoptic_predictions").glob("*.png"))) == 3
    assert len(list(folder.glob("*_panoptic.png"))) == 3 and (folder / "coco_instances_results.json").exists()

    # Without fusion there is no panoptic map to count; the other figures stay.
    main(
        [
            *config,
            "--eval-only",
            *register,
            *overrides(name, tmp_path / "apart"),
            *typed({"MODEL.WEIGHTS": out / "model_final.pth", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": False}),
            "TEST.EXPECTED_RESULTS",
            f"[['sem_seg', 'mIoU', {figures['sem_seg/mIoU']}, 1e-9], ['bbox', 'AP50', {figures['bbox/AP50']}, 1e-9]]",
        ]
    )
    assert not list((tmp_path / "apart" / "inference").glob("*_panoptic.png"))


def test_semantic_with_output_stride_16(made, tmp_path):
    register, name = made
    out = tmp_path / "out"
    keys = {
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.DEPTH": 14,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.BACKBONE.NAME": "build_resnest_backbone",
        "MODEL.RESNETS.RES5_DILATION": 2,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res5"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
        "SOLVER.MAX_ITER": 12,
    }
    main(["--config-file", "semantic_ResNeSt50_FPN", *register, *overrides(name, out), *typed(keys)])
    assert set(losses_of(out)[0]) == {"total_loss", "loss_sem_seg", "lr"}
    figures = read_metrics(out)[-1]
    assert figures["sem_seg/pACC"] > 0 and not any(key.startswith(("bbox", "panoptic")) for key in figures)


@pytest.fixture
def label_pngs(tmp_path):
    """The flag that registers images of shapes with labels in PNG files, where 17 is no label, and the name."""
    folder, name = tmp_path / "shapes", f"labels_{tmp_path.name}"
    write_shapes(folder, {"train": 4})
    register_panoptic(
        f"{name}_source", f"{folder}/annotations/panoptic_train.json", f"{folder}/panoptic_train", f"{folder}/train"
    )
    write_semantic_pngs(get_dataset(f"{name}_source"), str(tmp_path / "labels"), 1)
    for path in (tmp_path / "labels").iterdir():
        labels = np.array(Image.open(path))
        labels[labels == 255] = 17
        labels[:3] = 17
        Image.fromarray(labels).save(path)
    return ["--register-semantic", f"{name}={tmp_path}/labels,{folder}/train,4,ignore=17"], name


def test_label_pngs_and_any_ignore_value(label_pngs, tmp_path):
    """The value that the model has for pixels without a label changes nothing, as long as it is no class."""
    register, name = label_pngs
    losses, figures = [], []
    for value in ("255", "-1"):
        out = tmp_path / f"out{value}"
        data = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)", "OUTPUT_DIR", str(out), "SEED", "3"]
        model = ["MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "14", "MODEL.BACKBONE.FREEZE_AT", "0"]
        head = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", value]
        main(["--config-file", "semantic_ResNeSt50_FPN", *register, *typed(TINY_PANOPTIC), *data, *model, *head])
        losses.append([each["loss_sem_seg"] for each in losses_of(out).values()])
        figures.append({key: each for key, each in read_metrics(out)[-1].items() if key.startswith("sem_seg/")})
        assert len(list((out / "inference").glob("*_semantic.png"))) == 4
    assert losses[0] == losses[1] and len(losses[0]) == 3
    assert figures[0] == figures[1] and figures[0]["sem_seg/pACC"] > 0


def test_classes_that_do_not_fit_are_refused_before_training(made, tmp_path):
    register, name = made
    arguments = ["--config-file", "panoptic_ResNeSt14_FPN_shapes", *register, *overrides(name, tmp_path / "out")]
    with pytest.raises(UserError, match="has 4 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 54"):
        main([*arguments, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "54"])
    assert not list((tmp_path / "out").glob("*.pth"))
