"""The command analyze_model, against fvcore on timm's models, published figures, and counts done by hand."""

import json
import warnings

import pytest
import timm
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

from resnest_det.commands.analyze_model import main
from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.errors import UserError

# Parameters and 10^9 multiply-adds. The figures of two models with three decimals, 13.322 and 4.330, were rounded twice.
FAMILY = {
    "resnest14": (10_611_688, 2.749),
    "resnest26": (17_069_448, 3.623),
    "resnest50": (27_483_240, 5.371),
    "resnest101": (48_275_016, 13.3215),
    "resnest200": (70_201_544, 35.520),
    "resnest269": (110_929_480, 77.349),
    "resnest50_fast_1s1x64d": (26_217_896, 4.3295),
    "resnest50_fast_2s1x64d": (27_483_240, 4.331),
    "resnest50_fast_4s1x64d": (31_912_712, 4.335),
    "resnest50_fast_1s2x40d": (25_946_680, 4.365),
    "resnest50_fast_2s2x40d": (26_943_792, 4.366),
    "resnest50_fast_4s2x40d": (30_417_592, 4.369),
    "resnest50_fast_1s4x24d": (25_677_000, 4.400),
}


def analyze(tmp_path, *arguments):
    main([*arguments, "--json", str(tmp_path / "counts.json")])
    return json.loads((tmp_path / "counts.json").read_text())


@pytest.mark.slow
def test_family_has_the_published_figures(tmp_path, capsys):
    family = {variant["model"]: variant for variant in analyze(tmp_path, "--all")}
    assert list(family) == list(FAMILY)
    table = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    for name, (parameters, billions) in FAMILY.items():
        counts = family[name]["total"]
        assert counts["parameters"] == parameters, name
        assert abs(counts["multiply_adds"] / 1e9 - billions) <= 0.0005, name
        assert table[name][2] == f"{parameters:,}" and table[name][3] == f"{counts['multiply_adds'] / 1e9:.4f}"
    assert [variant["size"] for variant in family.values()][3:6] == [[256, 256], [320, 320], [416, 416]]

    card = family["resnest101"]["total"]  # the model card of resnest101e.in1k
    assert round(card["parameters"] / 1e6, 1) == 48.3
    assert round((card["multiply_adds"] + card["norm_operations"]) / 1e9, 1) == 13.4
    assert round(card["activations"] / 1e6, 1) == 28.7


def test_norms_folded_as_in_the_open_model_zoo(tmp_path):
    counts = analyze(tmp_path, "--model", "resnest50", "--size", "224", "--fold-norms")["total"]
    assert counts["norm_operations"] == 0
    assert abs(2 * counts["multiply_adds"] / 1e9 / 10.8148 - 1) < 0.01
    # Every norm's scale and shift go, a bias comes for each of its channels, except where there was one: in fc1.
    fc1_channels = 3 * 32 + 4 * 64 + 6 * 128 + 3 * 256
    assert counts["parameters"] == 27_450_952 - fc1_channels
    assert abs(counts["parameters"] / 27.4493e6 - 1) < 1e-4


def test_a_model_equals_fvcore_on_timms(tmp_path):
    reference, images = timm.create_model("resnest14d").eval(), torch.zeros(1, 3, 96, 64)
    result = analyze(tmp_path, "--model", "resnest14d", "--size", "96x64")
    assert result["size"] == [96, 64] and result["model"] == "resnest14d"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flops, activations = FlopCountAnalysis(reference, images), ActivationCountAnalysis(reference, images)
        flops.unsupported_ops_warnings(False), activations.unsupported_ops_warnings(False)
        by_module, outputs = flops.by_module_and_operator(), activations.by_module()
    stages = {
        "res2": ["layer1"],
        "res3": ["layer2"],
        "res4": ["layer3"],
        "res5": ["layer4"],
        "stem": ["conv1", "bn1"],
        "head": ["fc"],
    }
    assert set(result["parts"]) == set(stages)
    for part, modules in stages.items():
        counts = result["parts"][part]
        assert counts["multiply_adds"] == sum(by_module[m]["conv"] + by_module[m]["linear"] for m in modules), part
        assert counts["norm_operations"] == sum(by_module[m]["batch_norm"] for m in modules), part
        assert counts["activations"] == sum(outputs[m] for m in modules), part
        assert counts["parameters"] == sum(p.numel() for m in modules for p in reference.get_submodule(m).parameters()), part


OPTIONS = ["MODEL.RPN.POST_NMS_TOPK_TEST", "30", "TEST.DETECTIONS_PER_IMAGE", "10"]


def test_a_detector_part_by_part(tmp_path, capsys):
    config = "mask_rcnn_ResNeSt14_FPN_overfit"
    result = analyze(tmp_path, "--config-file", config, "--size", "64x128", *OPTIONS)
    parts = result["parts"]
    assert list(parts) == ["stem", "res2", "res3", "res4", "res5", "fpn", "rpn", "box head", "mask head"]
    assert (result["num_proposals"], result["num_detections"]) == (30, 10)
    printed = capsys.readouterr().out
    assert "30 regions in each stage of the box head" in printed and "10 regions in the mask head" in printed
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu"]))
    assert result["total"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())

    cells = [64 * 128 // stride**2 for stride in (4, 8, 16, 32)]  # of p2 to p5
    channels, classes = 64, 80
    lateral_and_output = [cell * channels * (width + 9 * channels) for cell, width in zip(cells, (128, 256, 512, 1024))]
    assert parts["fpn"]["multiply_adds"] == sum(lateral_and_output)
    cells_of_rpn = sum(cells) + 2  # and p6
    assert parts["rpn"]["multiply_adds"] == cells_of_rpn * channels * (9 * channels + 3 * 5)
    box_head = 49 * 9 * channels**2 + 49 * channels * 256 + 256 * (classes + 1 + 4 * classes)
    assert parts["box head"]["multiply_adds"] == 30 * box_head
    assert parts["box head"]["activations"] == 30 * (49 * channels + 256 + classes + 1 + 4 * classes)
    mask_head = 2 * 196 * 9 * channels**2 + 196 * 4 * channels**2 + 784 * channels * classes
    assert parts["mask head"]["multiply_adds"] == 10 * mask_head


def test_cascade_and_deformable_convolutions_are_counted(tmp_path):
    cascade = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    deformable = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, False, False, True]", "MODEL.RESNETS.DEFORM_MODULATED", "True"]
    arguments = ["--config-file", "mask_rcnn_ResNeSt14_FPN_overfit", "--size", "64", *OPTIONS, "MODEL.MASK_ON", "False"]
    plain = analyze(tmp_path, *arguments)["parts"]
    both = analyze(tmp_path, *arguments, *cascade, *deformable)["parts"]
    assert "mask head" not in plain
    # The offsets' convolution has 27 outputs and runs, like the deformable one, before the stride.
    assert both["res5"]["multiply_adds"] - plain["res5"]["multiply_adds"] == 4 * 4 * 27 * 9 * 256
    stage = 49 * 9 * 64**2 + 49 * 64 * 256 + 256 * (81 + 4)
    assert both["box head"]["multiply_adds"] == 3 * 30 * stage


def test_semantic_head_alone(tmp_path):
    result = analyze(tmp_path, "--config-file", "semantic_ResNeSt50_FPN", "--size", "64", "MODEL.RESNETS.DEPTH", "14")
    assert list(result["parts"]) == ["stem", "res2", "res3", "res4", "res5", "fpn", "semantic head"]
    assert "num_proposals" not in result
    assert result["parts"]["semantic head"]["multiply_adds"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "resnest15"], "unknown model 'resnest15'"),
        (["--model", "resnest14", "MODEL.MASK_ON", "False"], "MODEL.MASK_ON False: overrides of config keys need --config-file"),
        (
            ["--model", "resnest14", "--json", "no_such_folder/counts.json"],
            "no_such_folder/counts.json: the folder does not exist",
        ),
        (["--all", "--size", "224"], "--all counts each variant at its own size"),
        (["--config-file", "mask_rcnn_ResNeSt50_FPM"], "nearest: mask_rcnn_ResNeSt50_FPN"),
        (
            ["--config-file", "mask_rcnn_ResNeSt14_FPN_shapes", "--size", "100x128"],
            "100x128: the detector pads images to multiples of 32",
        ),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_a_size_that_is_none_is_a_usage_error(capsys):
    for size in ("0", "12x", "big", "-3"):
        with pytest.raises(SystemExit):
            main(["--model", "resnest14", "--size", size])
    assert "'big' is not a size: use 224 or 800x1216 (height x width)" in capsys.readouterr().err
