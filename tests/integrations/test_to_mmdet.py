"""Translating configurations and checkpoints to MMDetection and back, as far as that can be seen without MMDetection."""

import json

import pytest
import torch

from resnest_det.commands import to_mmdet
from resnest_det.configuration.model import assemble_model
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.standalone import whole_configuration, with_datasets
from resnest_det.data.catalog import CocoFiles, get_dataset
from resnest_det.data.semantic import SemanticMetadata
from resnest_det.data.shapes import write_shapes
from resnest_det.errors import UserError
from resnest_det.integrations.mmdet_checkpoint import from_mmdet_names, to_mmdet_names
from resnest_det.integrations.mmdet_config import config_text, mmdet_config
from tests.helpers.configs import narrow, typed
from tests.helpers.fill import fill
from tests.helpers.labels import voc, write_voc

MASK, PANOPTIC = "mask_rcnn_ResNeSt14_FPN_shapes", "panoptic_ResNeSt14_FPN_shapes"
CASCADE = "cascade_mask_rcnn_ResNeSt14_FPN_dcn_shapes"
SMALL = typed(narrow(8, 32))
MODELS = {
    "faster": (MASK, ["MODEL.MASK_ON", "False"]),
    "mask": (MASK, []),
    "mask, bare": (
        MASK,
        typed(
            {
                "MODEL.FPN.NORM": "",
                "MODEL.ROI_BOX_HEAD.NORM": "",
                "MODEL.ROI_MASK_HEAD.NORM": "",
                "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
                "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
                "MODEL.RESNETS.NORM": "FrozenBN",
            }
        ),
    ),
    "mask, group norm": (MASK, ["MODEL.FPN.NORM", "GN", "MODEL.ROI_BOX_HEAD.NORM", "GN", "MODEL.ROI_MASK_HEAD.NORM", "GN"]),
    "mask, frozen, two convolutions": (MASK, ["MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.RPN.CONV_DIMS", "[-1, -1]"]),
    "mask, plain ResNet": ("mask_rcnn_ResNet50_FPN", ["DATASETS.TEST", "('shapes_val',)", "MODEL.ROI_HEADS.NUM_CLASSES", "4"]),
    "cascade, deformable": (CASCADE, []),
    "panoptic": (PANOPTIC, []),
    "panoptic cascade": (
        PANOPTIC,
        [
            "MODEL.ROI_HEADS.NAME",
            "CascadeROIHeads",
            "MODEL.ROI_HEADS.IOU_THRESHOLDS",
            "[0.5]",
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
            "True",
        ],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    """A folder of datasets with a few shapes."""
    folder = tmp_path_factory.mktemp("datasets")
    write_shapes(folder / "shapes", {"train": 3, "val": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield folder


def configuration(name: str):
    config_file, keys = MODELS[name]
    return load_config(config_file, [*(SMALL if "plain" not in name else []), *keys])


def translated(cfg, **values) -> dict:
    train = [get_dataset(name).metadata for name in cfg.DATASETS.TRAIN if name.startswith("shapes")]
    arguments = dict(test=get_dataset(cfg.DATASETS.TEST[0]).metadata, train=train, num_processes=1, checkpoint="model.pth")
    return mmdet_config(cfg, **arguments | values)


@pytest.mark.parametrize("name", MODELS)
def test_names_go_there_and_back(name):
    model = assemble_model(configuration(name))
    fill(model)
    state = model.state_dict()
    there = to_mmdet_names(state)
    assert len(there) == len(state)
    assert all(key.split(".")[0] in ("backbone", "neck", "rpn_head", "roi_head", "semantic_head") for key in there)
    back = from_mmdet_names(there)
    assert set(back) == set(state)
    for key, value in state.items():
        assert torch.equal(back[key], value), key


def test_names_are_mmdetections():
    model = assemble_model(configuration("panoptic cascade"))
    fill(model)
    state = model.state_dict()
    there = to_mmdet_names(state)
    for own, other in {
        "backbone.bottom_up.stem.conv1_3.weight": "backbone.stem.6.weight",
        "backbone.bottom_up.res3.0.conv2.fc1.weight": "backbone.layer2.0.conv2.fc1.weight",
        "backbone.fpn_lateral2.weight": "neck.lateral_convs.0.conv.weight",
        "backbone.fpn_output5.norm.running_var": "neck.fpn_convs.3.bn.running_var",
        "proposal_generator.rpn_head.conv.bias": "rpn_head.rpn_conv.bias",
        "proposal_generator.rpn_head.objectness_logits.weight": "rpn_head.rpn_cls.weight",
        "proposal_generator.rpn_head.anchor_deltas.weight": "rpn_head.rpn_reg.weight",
        "roi_heads.box_head.2.conv1.norm.bias": "roi_head.bbox_head.2.shared_convs.0.bn.bias",
        "roi_heads.box_head.0.fc1.weight": "roi_head.bbox_head.0.shared_fcs.0.weight",
        "roi_heads.box_predictor.1.cls_score.weight": "roi_head.bbox_head.1.fc_cls.weight",
        "roi_heads.box_predictor.1.bbox_pred.bias": "roi_head.bbox_head.1.fc_reg.bias",
        "roi_heads.mask_head.mask_fcn2.weight": "roi_head.mask_head.convs.1.conv.weight",
        "roi_heads.mask_head.deconv.weight": "roi_head.mask_head.upsample.weight",
        "roi_heads.mask_head.predictor.bias": "roi_head.mask_head.conv_logits.bias",
        "sem_seg_head.p2.0.weight": "semantic_head.conv_upsample_layers.0.conv.0.conv.weight",
        "sem_seg_head.p5.4.norm.weight": "semantic_head.conv_upsample_layers.3.conv.2.bn.weight",
    }.items():
        assert torch.equal(there[other], state[own]), other
    # All things together are the first class here and the last one there.
    own, other = state["sem_seg_head.predictor.weight"], there["semantic_head.conv_logits.weight"]
    assert torch.equal(other[-1], own[0]) and torch.equal(other[:-1], own[1:])


@pytest.mark.parametrize("name", MODELS)
def test_text_is_the_configuration(name):
    config = translated(configuration(name))
    scope = {}
    exec(config_text(config, name), scope)
    assert {key: scope[key] for key in config} == config


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"a": {"print(1), x": 1}}, "cannot be the name of a setting"),
        ({"import": 1}, "cannot be the name of a setting"),
        ({"a": {1: 2}}, "cannot be the name of a setting"),
        ({"a": float("nan")}, "cannot be written"),
        ({"a": [float("inf")]}, "cannot be written"),
        ({"a": {1, 2}}, "cannot be written"),
        ({"a": ["{{ fileDirname }}"]}, "MMEngine replaces"),
    ],
)
def test_only_literals_are_written(config, expected):
    with pytest.raises(UserError, match=expected):
        config_text(config, "a.yaml")


def test_a_file_name_with_a_line_break_stays_a_comment():
    scope = {}
    exec(config_text({"a": "x\n'\"\\"}, "m\nb = 1\r\u2028#.yaml"), scope)
    assert scope["a"] == "x\n'\"\\" and "b" not in scope


def test_values_that_the_recipes_share():
    cfg = load_config("mask_rcnn_ResNeSt50_FPN", ["DATASETS.TEST", "('shapes_val',)"])
    model = translated(cfg)["model"]
    anchors = model["rpn_head"]["anchor_generator"]
    assert anchors["base_sizes"] == [32, 64, 128, 256, 512] and anchors["scales"] == [1.0]
    assert anchors["strides"] == [4, 8, 16, 32, 64]
    assert model["roi_head"]["bbox_head"]["bbox_coder"]["target_stds"] == [0.1, 0.1, 0.2, 0.2]
    assert model["roi_head"]["bbox_head"]["num_shared_convs"] == 4 and model["roi_head"]["mask_head"]["num_convs"] == 4
    assert model["backbone"]["frozen_stages"] == 1 and model["backbone"]["stem_channels"] == 64
    assert model["data_preprocessor"]["bgr_to_rgb"] and model["data_preprocessor"]["mean"] == [123.68, 116.779, 103.939]
    assert model["test_cfg"]["rcnn"] == dict(
        score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5
    )
    deformable = load_config("cascade_mask_rcnn_ResNeSt269_FPN_dcn_3x", ["DATASETS.TEST", "('shapes_val',)"])
    backbone = translated(deformable)["model"]["backbone"]
    assert (backbone["depth"], backbone["stem_channels"]) == (269, 128)
    assert backbone["dcn"] == dict(type="DCNv2", deform_groups=2) and backbone["stage_with_dcn"] == (False, True, True, True)


def test_training_keys():
    keys = [
        "INPUT.MIN_SIZE_TRAIN",
        "(96, 128)",
        "INPUT.MIN_SIZE_TRAIN_SAMPLING",
        "range",
        "INPUT.CROP.ENABLED",
        "True",
        "INPUT.CROP.TYPE",
        "absolute",
        "INPUT.CROP.SIZE",
        "[90, 120]",
        "SOLVER.CLIP_GRADIENTS.ENABLED",
        "True",
        "SOLVER.RPN_LR_FACTOR",
        "0.5",
        "SOLVER.HEAD_LR_FACTOR",
        "2.0",
        "SOLVER.AMP.ENABLED",
        "True",
        "MODEL.RPN.BBOX_REG_LOSS_TYPE",
        "giou",
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
        "0.5",
    ]
    config = translated(load_config(MASK, keys), num_processes=4)
    loader = config["train_dataloader"]
    assert loader["batch_size"] == 2
    steps = {step["type"]: step for step in loader["dataset"]["pipeline"]}
    assert steps["RandomCrop"]["crop_size"] == (120, 90)  # width first
    assert list(steps["RandomChoiceResize"]["scales"]) == list(range(96, 129))
    assert config["optim_wrapper"]["type"] == "AmpOptimWrapper"
    assert config["optim_wrapper"]["clip_grad"] == dict(type="value", clip_value=1.0)
    assert config["optim_wrapper"]["paramwise_cfg"] == dict(
        weight_decay_norm=0.0,
        weight_decay_bias=None,
        bias_lr_factor=1.0,
        lr_factors=dict(rpn_head=1.0, roi_head=2.0, semantic_head=2.0),
    )
    rpn, box = config["model"]["rpn_head"], config["model"]["roi_head"]["bbox_head"]
    assert rpn["reg_decoded_bbox"] and rpn["loss_bbox"]["type"] == "GIoULoss"
    assert box["loss_bbox"] == dict(type="SmoothL1Loss", beta=0.5, loss_weight=1.0)
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH is 8; it must be a multiple of the number of processes, 3"):
        translated(load_config(MASK), num_processes=3)


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.FPN.FUSE_TYPE", "avg"),
        ("MODEL.FPN.NORM", "FrozenBN"),
        ("MODEL.RPN.IN_FEATURES", "['p3', 'p4', 'p5', 'p6']"),
        ("MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4']"),
        ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "True"),
        ("MODEL.RPN.CONV_DIMS", "[-1, 32]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 20], [32, 48], [64, 80], [128, 160], [256, 320]]"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5], [1.0], [1.0], [1.0], [1.0]]"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "96"),
        ("MODEL.RESNETS.DEEP_STEM", "False"),
        ("SOLVER.RESCALE_INTERVAL", "True"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("INPUT.MIN_SIZE_TRAIN", "(0,)"),
        ("SOLVER.MAX_EPOCHS", "12"),
        ("SOLVER.EMA.ENABLED", "True"),
        ("TEST.BEST_METRIC", "segm/AP50"),
    ],
)
def test_what_mmdetection_cannot_do_is_named(key, value):
    sizes = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]"] if key == "MODEL.RPN.IN_FEATURES" else []  # that fit four levels
    with pytest.raises(UserError, match=f"{key} "):
        translated(load_config(MASK, [key, value, *sizes]))


def test_norm_of_all_gradients_together_is_not_the_norm_of_each():
    cfg = load_config(MASK, ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"])
    with pytest.raises(UserError, match="SOLVER.CLIP_GRADIENTS.CLIP_TYPE 'norm'"):
        translated(cfg)


def test_labels_of_pixels_that_mmdetection_does_not_read_are_refused():
    with pytest.raises(UserError, match="MODEL.SEM_SEG_HEAD.IGNORE_VALUE 0 "):
        translated(load_config(PANOPTIC, ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"]))
    labels = SemanticMetadata("labels", "i.json", "images", ["a"], {1: 0}, ["things", "sky"], [(1, 2, 3), (4, 5, 6)])
    with pytest.raises(UserError, match="dataset labels has no panoptic PNG files, which MMDetection reads"):
        translated(load_config(PANOPTIC), test=labels)


def test_panoptic_without_fusion_and_semantic_models_are_refused():
    with pytest.raises(UserError, match="MODEL.PANOPTIC_FPN.COMBINE.ENABLED False"):
        translated(load_config(PANOPTIC, ["MODEL.PANOPTIC_FPN.COMBINE.ENABLED", "False"]))
    with pytest.raises(UserError, match="MODEL.META_ARCHITECTURE 'SemanticSegmentor'"):
        translated(load_config("semantic_ResNeSt50_FPN", ["DATASETS.TEST", "('shapes_val_panoptic',)"]))


def test_classes_in_another_order_are_refused(tmp_path, datasets):
    content = json.loads((datasets / "shapes" / "annotations" / "instances_val.json").read_text())
    content["categories"].reverse()
    (tmp_path / "reversed.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'reversed.json: MMDetection numbers classes in the order of the list "categories"'):
        run(
            "mask",
            tmp_path,
            "--weights",
            "x.pth",
            "--register",
            f"reversed={tmp_path}/reversed.json,{datasets}/shapes/val",
            keys=["DATASETS.TEST", "('reversed',)"],
        )


def test_labels_of_another_format_are_refused_with_what_to_do(tmp_path):
    shapes = ("circle", "square", "triangle", "star")
    objects = [(name, 1 + place, 2, 20, 30) for place, name in enumerate(shapes)]
    write_voc(tmp_path / "in", {"a": voc(*objects)})
    with pytest.raises(UserError, match=r"dataset voc: MMDetection reads COCO's files; write one by `resnest-det convert-data "):
        keys = ["DATASETS.TRAIN", "('voc',)", "DATASETS.TEST", "('voc',)"]
        run("mask", tmp_path, "--weights", "x.pth", "--register", f"voc={tmp_path}/in", keys=keys)


def run(name: str, out, *flags: str, keys=()) -> None:
    config_file, own_keys = MODELS[name]
    to_mmdet.main(["--config-file", config_file, "--out", str(out), *flags, *SMALL, *own_keys, *keys])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of the model "mask"."""
    model = assemble_model(configuration("mask"))
    fill(model)
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    torch.save({"model": model.state_dict(), "iteration": 9}, path)
    return path


def test_tool_there_and_back(weights, tmp_path, capsys):
    run("mask", tmp_path / "there", "--weights", str(weights))
    checkpoint, config = (tmp_path / "there" / f"{MASK}{suffix}" for suffix in (".pth", ".py"))
    content = torch.load(checkpoint, weights_only=True)
    assert content["meta"]["dataset_meta"]["classes"] == ("circle", "square", "triangle", "star")
    scope = {}
    exec(config.read_text(), scope)
    assert scope["load_from"] == str(checkpoint) and "what is not the same" in capsys.readouterr().out

    run("mask", tmp_path / "back", "--from", str(checkpoint))
    back = torch.load(tmp_path / "back" / f"{MASK}.pth", weights_only=True)["model"]
    state = torch.load(weights, weights_only=True)["model"]
    assert set(back) == set(state) and all(torch.equal(back[key], state[key]) for key in state)

    with pytest.raises(UserError, match=f"{MASK}.pth exists; add --overwrite"):
        run("mask", tmp_path / "there", "--weights", str(weights))
    run("mask", tmp_path / "there", "--weights", str(weights), "--overwrite")


def test_a_runs_configuration_knows_its_data(weights, tmp_path):
    shapes = get_dataset("shapes_val").metadata
    names = ["DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"]
    cfg = with_datasets(load_config(MASK, [*SMALL, *names]), {"mine": CocoFiles(shapes.json_file, shapes.image_root)})
    (tmp_path / "config.yaml").write_text(whole_configuration(cfg, {}))
    to_mmdet.main(["--config-file", str(tmp_path / "config.yaml"), "--weights", str(weights), "--out", str(tmp_path / "out")])
    assert repr(shapes.json_file) in (tmp_path / "out" / "config.py").read_text()


def test_without_training_data_there_is_no_training(weights, tmp_path, capsys):
    run("mask", tmp_path, "--weights", str(weights), keys=["DATASETS.TRAIN", "('coco_2017_train',)"])
    assert "without DATASETS.TRAIN the configuration can only be evaluated: dataset coco_2017_train" in capsys.readouterr().out
    text = (tmp_path / f"{MASK}.py").read_text()
    assert "\ntest_dataloader" in text and "\ntrain_dataloader" not in text and "\noptim_wrapper" not in text


def test_checkpoints_that_do_not_fit(weights, tmp_path):
    with pytest.raises(
        UserError, match=r"model_final.pth: they do not fit the model: roi_heads.box_.*256\S* .*in the file, .*128"
    ):
        run("mask", tmp_path, "--weights", str(weights), keys=["MODEL.ROI_BOX_HEAD.FC_DIM", "128"])
    backbone = {key: value for key, value in torch.load(weights)["model"].items() if key.startswith("backbone.bottom_up.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=r"backbone.pth has nothing for \d+ parameters .* only a whole detector"):
        run("mask", tmp_path, "--weights", str(tmp_path / "backbone.pth"))
    with pytest.raises(UserError, match="model_final.pth: not a checkpoint of an MMDetection detector: .*backbone.stem.0.weight"):
        run("mask", tmp_path, "--from", str(weights))
    assert not list(tmp_path.glob("*.py"))


def test_parts_of_mmdetection_that_have_no_counterpart(weights):
    there = to_mmdet_names(torch.load(weights)["model"])
    head = there["roi_head.mask_head.conv_logits.bias"]
    with pytest.raises(UserError, match="roi_head.mask_head.0.conv_logits.bias has no name .* one of several mask heads"):
        from_mmdet_names({**there, "roi_head.mask_head.0.conv_logits.bias": head})
    with pytest.raises(UserError, match="bbox_head.cls_convs.0.conv.weight has no name in Detectron2"):
        from_mmdet_names({**there, "roi_head.bbox_head.cls_convs.0.conv.weight": head})
