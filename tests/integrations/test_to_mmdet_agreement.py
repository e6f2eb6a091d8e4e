"""Models that were translated to MMDetection detect the same there, and train.

Their parameters are not trained but filled so that a hundred detections an image have scores all over (0, 1); what is true in the
images is what the built-in detector finds, so that average precision is high where the translation finds the same.
"""

import json
from collections import Counter

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet
pytest.importorskip("mmdet")

from mmdet.registry import MODELS as REGISTRY  # noqa: E402
from mmdet.testing import demo_mm_inputs  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.registry import PARAM_SCHEDULERS  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from resnest_det.commands import to_mmdet  # noqa: E402
from resnest_det.configuration.model import assemble_model  # noqa: E402
from resnest_det.configuration.reading import load_config  # noqa: E402
from resnest_det.configuration.solver import build_lr_scheduler, build_optimizer  # noqa: E402
from resnest_det.data.catalog import get_dataset, register_coco  # noqa: E402
from resnest_det.data.shapes import write_shapes  # noqa: E402
from resnest_det.evaluation.coco import COCOEvaluator, detections_to_coco  # noqa: E402
from resnest_det.integrations.mmdet_schedule import schedule_config  # noqa: E402
from tests.helpers.configs import HERE, narrow, typed  # noqa: E402
from tests.helpers.fill import fill  # noqa: E402
from tests.helpers.mmdet_agreement import matched, own_results, panoptic_figures, same_pixels, their_results, work_in  # noqa: E402

# The longer side of some images is what limits their size.
TINY = typed(
    HERE
    | narrow(16, 64)
    | {
        "INPUT.MIN_SIZE_TEST": 100,
        "INPUT.MAX_SIZE_TEST": 118,
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 100,
    }
)
MASK, PANOPTIC = "mask_rcnn_ResNeSt14_FPN_shapes", "panoptic_ResNeSt14_FPN_shapes"
CASCADE = [
    "MODEL.ROI_HEADS.NAME",
    "CascadeROIHeads",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS",
    "[0.5]",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "True",
]
MODELS = {
    "faster": (MASK, ["MODEL.MASK_ON", "False"]),
    "mask": (MASK, []),
    "cascade": (MASK, [*CASCADE, "MODEL.MASK_ON", "False"]),
    "cascade mask, deformable": ("cascade_mask_rcnn_ResNeSt14_FPN_dcn_shapes", []),
    "panoptic": (PANOPTIC, []),
    "panoptic cascade": (PANOPTIC, CASCADE),
    # What the recipes do not use of anchors, boxes, norms, images and backbones.
    "mask, otherwise": (
        MASK,
        typed(
            {
                "MODEL.ANCHOR_GENERATOR.SIZES": [[12, 18], [24, 36], [48, 72], [96, 144]],
                "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
                "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.4, 1.5]],
                "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5"],
                "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4"],
                "MODEL.RPN.CONV_DIMS": [-1, -1],
                "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 2.0, 0.5, 1.0),
                "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 4,
                "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (8.0, 7.0, 6.0, 5.0),
                "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
                "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 5,
                "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
                "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
                "MODEL.RESNETS.NORM": "FrozenBN",
                "MODEL.FPN.NORM": "GN",
                "MODEL.ROI_BOX_HEAD.NORM": "",
                "MODEL.ROI_MASK_HEAD.NORM": "GN",
                "INPUT.FORMAT": "BGR",
                "INPUT.MIN_SIZE_TEST": 0,
                "MODEL.RESNETS.RADIX": 4,
                "MODEL.RESNETS.NUM_GROUPS": 2,
                "MODEL.RESNETS.AVD_FIRST": True,
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.2,
                "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
                "TEST.DETECTIONS_PER_IMAGE": 30,
            }
        ),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_shapes(folder / "shapes", {"train": 2, "val": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield folder


def register_found(own: list[dict], name: str, folder, datasets) -> list[str]:
    """A dataset `name` whose truth is the best detections in the images of shapes_val; keys for a configuration to use it."""
    truth = json.loads((datasets / "shapes" / "annotations" / "instances_val.json").read_text())
    ids = {index: category["id"] for index, category in enumerate(truth["categories"])}
    annotations = []
    for result in own:
        best = {key: value[:15] for key, value in result.items() if isinstance(value, torch.Tensor)}
        annotations += detections_to_coco(best, result["sample"]["image_id"], ids, with_masks="masks" in best)
    for number, annotation in enumerate(annotations, start=1):
        width, height = annotation["bbox"][2:]
        annotation.update(id=number, iscrowd=0, area=width * height)
        if "segmentation" in annotation:
            annotation["segmentation"]["counts"] = str(annotation["segmentation"]["counts"])
    path = folder / "found.json"
    path.write_text(json.dumps({**truth, "annotations": annotations}))
    register_coco(name, str(path), str(datasets / "shapes" / "val"))
    return ["DATASETS.TEST", f"('{name}',)"]


@pytest.fixture(scope="module", params=MODELS)
def pair(request, datasets, tmp_path_factory):
    """(kind, configuration here, configuration file there, results here, results there)"""
    kind, out = request.param, tmp_path_factory.mktemp("translated")
    config_file, keys = MODELS[kind]
    weights = out / "filled.pth"
    keys = [*TINY, *keys, "MODEL.WEIGHTS", str(weights)]
    cfg = load_config(config_file, keys)
    model = assemble_model(cfg)
    fill(model)
    torch.save({"model": model.state_dict()}, weights)
    own = own_results(cfg)
    if not kind.startswith("panoptic"):
        keys += register_found(own, f"found_{out.name}", out, datasets)
        cfg = load_config(config_file, keys)
    to_mmdet.main(["--config-file", config_file, "--weights", str(weights), "--out", str(out), *keys])
    written = out / f"{config_file}.py"
    return kind, cfg, written, own, their_results(written, written.with_suffix(".pth"), own)


def test_images_are_the_same(pair):
    _, cfg, _, own, their = pair
    assert same_pixels(own, their, rgb=cfg.INPUT.FORMAT == "RGB") == 0


def test_detections_are_the_same(pair):
    kind, _, _, own, their = pair
    # Worse detections than these are no part of a panoptic map.
    least = 0.5 if kind.startswith("panoptic") else 0.3
    for one, other in ((own, their), (their, own)):
        count, found = matched(one, other, least)
        assert count > 50 and found >= 0.99 * count, (count, found)


def test_panoptic_maps_are_the_same(pair):
    kind, cfg, _, own, their = pair
    if not kind.startswith("panoptic"):
        return
    for one, other in zip(own, their):
        (ids, listed), (other_ids, other_listed) = one["panoptic_seg"], other["panoptic_seg"]
        assert (
            sorted((s["isthing"], s["category_id"]) for s in listed)
            == sorted((s["isthing"], s["category_id"]) for s in other_listed)
            and len(listed) > 1
        )
        classes, other_classes = (
            torch.tensor([-1, *(s["category_id"] + 100 * s["isthing"] for s in segments)])[values.long()]
            for values, segments in ((ids, listed), (other_ids, other_listed))
        )
        assert (classes != other_classes).float().mean() < 1e-3
    expected, actual = (panoptic_figures(results, cfg.DATASETS.TEST[0]) for results in (own, their))
    for figure in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        assert actual[figure] == pytest.approx(expected[figure], abs=0.2), figure


def test_figures_are_the_same(pair, tmp_path):
    """As MMDetection's tools/test.py evaluates."""
    kind, cfg, written, own, _ = pair
    if kind.startswith("panoptic"):
        return
    evaluator = COCOEvaluator(
        get_dataset(cfg.DATASETS.TEST[0], keep_truth=True), ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    )
    for result in own:
        evaluator.process([result["sample"]], [result])
    expected = evaluator.evaluate()
    config = Config.fromfile(written)
    work_in(tmp_path, config)
    actual = Runner.from_cfg(config).test()
    for task in expected:
        assert expected[task]["AP"] > 50
        for figure, theirs in (("AP", "mAP"), ("AP50", "mAP_50"), ("AP75", "mAP_75")):
            assert 100 * actual[f"coco/{task}_{theirs}"] == pytest.approx(expected[task][figure], abs=0.2), (task, figure)


@pytest.mark.parametrize("kind", ["cascade", "cascade mask, deformable"])
def test_cascades_give_raw_outputs(kind, tmp_path):
    """As MMDetection's tools/analysis_tools/get_flops.py asks for them."""
    config_file, keys = MODELS[kind]
    cfg = load_config(config_file, [*TINY, *keys])
    torch.save({"model": assemble_model(cfg).state_dict()}, tmp_path / "random.pth")
    to_mmdet.main(["--config-file", config_file, "--weights", str(tmp_path / "random.pth"), "--out", str(tmp_path), *TINY, *keys])
    model = REGISTRY.build(Config.fromfile(tmp_path / f"{config_file}.py").model).eval()
    inputs = model.data_preprocessor(demo_mm_inputs(2, [(3, 96, 128)] * 2), False)
    with torch.no_grad():
        logits, deltas, *masks = model(**inputs, mode="tensor")[-1]
    regions = [len(each) for each in deltas]
    assert [tuple(each.shape) for each in logits] == [(count, cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1) for count in regions]
    torch.testing.assert_close(logits[0].exp().sum(1), torch.ones(regions[0]))  # logarithms of mean probabilities
    mask = cfg.MODEL.ROI_MASK_HEAD
    side, kinds = 2 * mask.POOLER_RESOLUTION, 1 if mask.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert [tuple(each.shape) for each in masks] == [(100, kinds, side, side)] * cfg.MODEL.MASK_ON


def weights_of(model, optimizer, rate):
    """How many numbers are trained in each part of a model with which learning rate and weight decay."""
    parts = {"neck": "backbone", "proposal_generator": "rpn_head", "roi_heads": "roi_head"}
    names, counts = {parameter: name for name, parameter in model.named_parameters()}, Counter()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            part = names[parameter].partition(".")[0]
            counts[parts.get(part, part), group[rate], group["weight_decay"]] += parameter.numel()
    return counts


@pytest.mark.parametrize("kind, optimizer", [("mask", "SGD"), ("cascade mask, deformable", "MUON")])
def test_trains_there_and_comes_back(kind, optimizer, tmp_path):
    config_file, keys = MODELS[kind]
    run = {
        "SOLVER.MAX_ITER": 3,
        "SOLVER.IMS_PER_BATCH": 2,
        "INPUT.MIN_SIZE_TRAIN": (64, 96),
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "SOLVER.BASE_LR": 0.0001,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.OPTIMIZER": optimizer,
        "SOLVER.RPN_LR_FACTOR": 0.5,
        "SOLVER.HEAD_LR_FACTOR": 0.8,
        "SOLVER.BIAS_LR_FACTOR": 2.0,
        "SOLVER.WEIGHT_DECAY_NORM": 0.00001,
        "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    }
    keys = [*TINY, *keys, *typed(run)]
    model = assemble_model(load_config(config_file, keys))
    fill(model)
    torch.save({"model": model.state_dict()}, tmp_path / "filled.pth")
    to_mmdet.main(["--config-file", config_file, "--weights", str(tmp_path / "filled.pth"), "--out", str(tmp_path), *keys])
    config = Config.fromfile(tmp_path / f"{config_file}.py")
    work_in(tmp_path / "work", config)
    runner = Runner.from_cfg(config)
    runner.train()
    assert type(runner.optim_wrapper.optimizer).__name__.upper() == optimizer
    assert weights_of(runner.model, runner.optim_wrapper.optimizer, "initial_lr") == weights_of(
        model, build_optimizer(load_config(config_file, keys), model), "lr"
    )
    history = runner.message_hub.log_scalars
    names = {name for name in history if "loss" in name}
    assert len(names) >= 6 and all(torch.isfinite(torch.tensor(history[name].data[0])).all() for name in names)

    # What was learned there is the same detector here.
    learned = tmp_path / "work" / "iter_3.pth"
    to_mmdet.main(["--config-file", config_file, "--from", str(learned), "--out", str(tmp_path / "back"), *keys])
    back = tmp_path / "back" / f"{config_file}.pth"
    parameter = "roi_heads.mask_head.predictor.weight"
    assert not torch.equal(*(torch.load(path)["model"][parameter] for path in (tmp_path / "filled.pth", back)))
    own = own_results(load_config(config_file, [*keys, "MODEL.WEIGHTS", str(back)]), 3)
    count, found = matched(own, their_results(tmp_path / f"{config_file}.py", learned, own), 0.1)
    assert count > 20 and found >= 0.99 * count


@pytest.mark.parametrize(
    "keys, exact_from",
    [
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(20, 30)"], 0),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(20, 30)", "SOLVER.WARMUP_METHOD", "constant"], 0),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(20, 30)", "SOLVER.WARMUP_ITERS", "0"], 0),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.NUM_DECAYS", "2"], 0),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"], 6),  # the warm-up is named among the differences
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "0.001", "SOLVER.WARMUP_ITERS", "0"], 0),
    ],
)
def test_learning_rates_are_the_same(keys, exact_from):
    cfg = load_config(MASK, ["SOLVER.WARMUP_ITERS", "6", *keys, "SOLVER.MAX_ITER", "40"])
    rates = []
    for there in (False, True):
        groups = [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR * factor) for factor in (1, 0.25)]
        optimizer = torch.optim.SGD(groups)
        if there:
            wrapper = OptimWrapper(optimizer)
            schedulers = [
                PARAM_SCHEDULERS.build(dict(scheduler, optimizer=wrapper))
                for scheduler in schedule_config(cfg)["param_scheduler"]
            ]
        else:
            schedulers = [build_lr_scheduler(cfg, optimizer)]
        curve = []
        for _ in range(cfg.SOLVER.MAX_ITER):
            curve.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        rates.append(curve)
    own, their = map(np.array, rates)
    assert len(np.unique(own[:, 0])) > 2
    np.testing.assert_allclose(their[exact_from:], own[exact_from:], rtol=1e-6)
