"""MMDetection's ResNeSt recipes with this backbone, the recipes of configs/mmdet, and training through MMEngine's runner."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet
mmdet = pytest.importorskip("mmdet")

from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict  # noqa: E402
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: E402

from resnest_det.data.shapes import THINGS, instances_json, write_shapes  # noqa: E402
from resnest_det.files import packaged  # noqa: E402
from resnest_det.integrations.mmdet import ResNeStDet  # noqa: E402
from tests.helpers.mmdet_agreement import work_in  # noqa: E402

register_all_modules()
OURS = sorted(path.name for path in (packaged("configs") / "mmdet").glob("*.py"))
THEIRS = [
    f"{detector}_s{depth}_fpn_syncbn-backbone+head_{schedule}_coco.py"
    for detector, schedule in (
        ("faster-rcnn", "ms-range-1x"),
        ("mask-rcnn", "ms-1x"),
        ("cascade-rcnn", "ms-range-1x"),
        ("cascade-mask-rcnn", "ms-1x"),
    )
    for depth in (50, 101)
]


def without_pretrained_weights(config: Config) -> Config:
    config.model.backbone.init_cfg = None
    return config


def their_config(name: str) -> Config:
    return Config.fromfile(Path(mmdet.__path__[0]) / ".mim" / "configs" / "resnest" / name)


@pytest.mark.parametrize("name", THEIRS)
def test_stands_in_for_mmdetections_own(name):
    """Its eight ResNeSt recipes, one word changed: the same detections from the same weights."""
    config = without_pretrained_weights(their_config(name))
    config.model.test_cfg.rcnn.score_thr = 0.0  # untrained weights are sure of nothing
    config.model.test_cfg.rpn.max_per_img = 30
    torch.manual_seed(0)
    theirs = MODELS.build(copy.deepcopy(config.model)).eval()
    for module in theirs.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    config.model.backbone.type = "ResNeStDet"
    ours = MODELS.build(config.model).eval()
    assert isinstance(ours.backbone, ResNeStDet)
    load_state_dict(ours, theirs.state_dict(), strict=True)
    assert set(ours.state_dict()) == set(theirs.state_dict())

    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 96), dtype=np.uint8))
    results = []
    for model in (theirs, ours):
        sample = DetDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0), img_id=0))
        with torch.no_grad():
            results.append(model.test_step(dict(inputs=[pixels], data_samples=[sample]))[0].pred_instances)
    expected, found = results
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    # Scores that differ in the last digit may change places.
    same = (found.labels[:, None] == expected.labels) & ((found.bboxes[:, None] - expected.bboxes).abs().amax(2) < 1e-2)
    assert same.any(0).float().mean() >= 0.99
    if "mask" in name:
        own, other = same.nonzero().unbind(1)
        assert (found.masks[own] == expected.masks[other]).float().mean() > 0.999


def test_every_combination_has_a_recipe():
    detectors = ("faster-rcnn", "mask-rcnn", "cascade-rcnn", "cascade-mask-rcnn", "panoptic-fpn")
    assert OURS == sorted(
        f"{detector}_resnest{depth}{dcn}_fpn_1x_coco.py" for detector in detectors for depth in (50, 101) for dcn in ("", "_dcn")
    )


@pytest.mark.parametrize("name", OURS)
def test_recipes_build(name):
    config = Config.fromfile(packaged("configs") / "mmdet" / name)
    depth = 101 if "101" in name else 50
    assert config.model.backbone.init_cfg == dict(type="Pretrained", checkpoint=f"resnest://resnest{depth}")
    assert list(config.model.data_preprocessor.mean) == [123.68, 116.779, 103.939] and config.model.data_preprocessor.bgr_to_rgb
    model = without_pretrained_weights(config).model
    # All of the largest ones would take minutes, and differ in the backbone only.
    backbone = MODELS.build(model).backbone if depth == 50 and "dcn" not in name else MODELS.build(model.backbone)
    assert isinstance(backbone, ResNeStDet) and not backbone.norm_eval
    state = backbone.state_dict()
    assert len(backbone.network.res4) == {50: 6, 101: 23}[depth]
    assert len(state["stem.7.weight"]) == {50: 64, 101: 128}[depth]
    assert any("conv_offset" in parameter for parameter in state) == ("dcn" in name)


@pytest.mark.slow
def test_an_epoch_on_shapes_through_the_runner(tmp_path, monkeypatch):
    """Training, evaluation, a checkpoint with MMDetection's names, and testing it again with the same figures."""
    monkeypatch.chdir(tmp_path)
    write_shapes(tmp_path / "shapes", {"train": 12, "val": 4})
    config = small_run(tmp_path / "shapes", tmp_path / "run")
    runner = Runner.from_cfg(copy.deepcopy(config))
    before = copy.deepcopy(runner.model.state_dict())
    runner.train()
    scalars = [json.loads(line) for line in next((tmp_path / "run").rglob("scalars.json")).read_text().splitlines()]
    losses = [line["loss"] for line in scalars if "loss" in line]
    metrics = scalars[-1]
    assert len(losses) == 6 and np.isfinite(losses).all() and losses[-1] < losses[0]
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= metrics.keys()

    checkpoint = tmp_path / "run" / "epoch_1.pth"
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert {"backbone.stem.0.weight", "backbone.layer4.0.conv2.fc1.weight"} <= state.keys() == before.keys()
    assert not torch.equal(state["backbone.layer4.0.conv2.fc1.weight"], before["backbone.layer4.0.conv2.fc1.weight"])
    assert torch.equal(state["backbone.layer1.0.conv1.weight"], before["backbone.layer1.0.conv1.weight"])  # frozen_stages=1

    config.load_from, config.work_dir = str(checkpoint), str(tmp_path / "again")
    tester = Runner.from_cfg(config)
    again = tester.test()
    for name in ("coco/bbox_mAP", "coco/segm_mAP"):
        assert again[name] == pytest.approx(metrics[name], abs=1e-3)
    load_checkpoint(tester.model, str(checkpoint), strict=True)


def small_run(data: Path, work_dir: Path) -> Config:
    config = without_pretrained_weights(Config.fromfile(packaged("configs") / "mmdet" / "mask-rcnn_resnest50_fpn_1x_coco.py"))
    config.model.backbone.update(depth=14, base_channels=16, stem_channels=16)
    config.model.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    config.model.rpn_head.update(in_channels=32, feat_channels=32)
    heads = config.model.roi_head
    heads.bbox_roi_extractor.out_channels = heads.mask_roi_extractor.out_channels = 32
    heads.bbox_head.update(in_channels=32, conv_out_channels=32, fc_out_channels=32, num_classes=len(THINGS))
    heads.mask_head.update(in_channels=32, conv_out_channels=32, num_classes=len(THINGS))
    for split, loader in (("train", config.train_dataloader), ("val", config.val_dataloader), ("val", config.test_dataloader)):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root="",
            ann_file=str(data / instances_json(split)),
            data_prefix=dict(img=str(data / split)),
            metainfo=dict(classes=THINGS),
        )
        for step in loader.dataset.pipeline:
            if "scale" in step:
                step.scale = (160, 96)
            if "scales" in step:
                step.scales = [(160, 96), (160, 128)]
    config.val_evaluator.ann_file = config.test_evaluator.ann_file = str(data / instances_json("val"))
    config.train_cfg.max_epochs = 1
    config.default_hooks.logger.interval = 1
    config.optim_wrapper.optimizer.lr = 0.005
    config.param_scheduler = []
    work_in(work_dir, config)
    config.randomness = dict(seed=1)
    return config
