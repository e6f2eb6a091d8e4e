"""Parameter groups, clipping, schedules and scaling: Detectron2's semantics."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.nodes import with_values
from resnest_det.configuration.solver import (
    build_autocast,
    build_gradient_clipper,
    build_lr_scheduler,
    build_optimizer,
    build_scaler,
    scale_to_world_size,
)
from resnest_det.engine import solver
from resnest_det.engine.muon import Muon
from resnest_det.errors import UserError


class _Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.gn = nn.GroupNorm(2, 4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Linear(4, 4, bias=False)
        self.shared = nn.Linear(4, 4, bias=False)
        self.shared.weight = self.head.weight


def _config(**solver_keys):
    cfg = default_config()
    for key, value in solver_keys.items():
        cfg.SOLVER[key] = value
    return cfg


def _settings(cfg, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    flat = [(names[p], group["lr"], group["weight_decay"]) for group in groups for p in group["params"]]
    assert len(flat) == len(dict.fromkeys(name for name, *_ in flat))
    return {name: settings for name, *settings in flat}


def test_norm_and_bias_settings_by_parameter():
    cfg = _config(BASE_LR=0.1, WEIGHT_DECAY=1e-4, WEIGHT_DECAY_NORM=1e-5, WEIGHT_DECAY_BIAS=1e-6, BIAS_LR_FACTOR=2.0)
    assert _settings(cfg, _Toy()) == {
        "conv.weight": [0.1, 1e-4],
        "conv.bias": [0.2, 1e-6],
        "bn.weight": [0.1, 1e-5],
        "bn.bias": [0.2, 1e-6],
        "gn.weight": [0.1, 1e-5],
        "gn.bias": [0.2, 1e-6],
        "head.weight": [0.1, 1e-4],
    }


@pytest.mark.parametrize(
    "keys, device, dtype, enabled, scales",
    [
        ({}, "cpu", torch.bfloat16, False, False),
        ({"ENABLED": True}, "cpu", torch.bfloat16, True, False),
        ({"ENABLED": True}, "cuda", torch.float16, True, True),
        ({"ENABLED": True, "PRECISION": "fp16"}, "cuda", torch.float16, True, True),
        ({"ENABLED": True, "PRECISION": "bf16"}, "cuda", torch.bfloat16, True, False),
        ({"PRECISION": "fp16"}, "cuda", torch.float16, False, False),
    ],
)
def test_mixed_precision_of_the_keys(keys, device, dtype, enabled, scales, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: SimpleNamespace(fast_dtype=dtype, enabled=enabled))
    monkeypatch.setattr(torch.amp, "GradScaler", lambda kind, enabled: enabled)
    cfg = with_values(default_config(), {f"SOLVER.AMP.{key}": value for key, value in keys.items()})
    autocast = build_autocast(cfg, torch.device(device))
    assert (autocast.fast_dtype, autocast.enabled, build_scaler(cfg, torch.device(device))) == (dtype, enabled, scales)


def test_mixed_precision_that_a_device_does_not_have_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    for precision, device, message in (
        ("fp16", "cpu", "SOLVER.AMP.PRECISION 'fp16' is not supported on cpu; supported: 'bf16'"),
        ("bf16", "cuda", "SOLVER.AMP.PRECISION 'bf16' is not supported by this GPU; supported: 'fp16'"),
    ):
        cfg = with_values(default_config(), {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": precision})
        with pytest.raises(UserError) as error:
            build_autocast(cfg, torch.device(device))
        assert str(error.value) == message


def test_biases_follow_the_others_unless_told():
    cfg = _config(BASE_LR=0.1, WEIGHT_DECAY=1e-4, WEIGHT_DECAY_NORM=0.0, WEIGHT_DECAY_BIAS=None)
    settings = _settings(cfg, _Toy())
    assert settings["conv.bias"] == [0.1, 1e-4] and settings["bn.bias"] == [0.1, 0.0]


def test_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="no trainable parameter"):
        build_optimizer(_config(), nn.Linear(2, 2).requires_grad_(False))


def _learning_rates(cfg, start=0, count=None):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer, start)
    rates = []
    for _ in range(count or cfg.SOLVER.MAX_ITER - start):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


MULTI_STEP = dict(BASE_LR=0.02, MAX_ITER=10, STEPS=(6, 8), WARMUP_ITERS=4, WARMUP_FACTOR=0.001)
# Learning rates that Detectron2's build_lr_scheduler gives for these settings.
DETECTRON2 = [
    (MULTI_STEP, [2e-05, 0.005015, 0.01001, 0.015005, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002]),
    (
        MULTI_STEP | {"WARMUP_METHOD": "constant", "WARMUP_FACTOR": 0.1},
        [0.002, 0.002, 0.002, 0.002, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002],
    ),
    (
        dict(BASE_LR=0.02, BASE_LR_END=0.002, MAX_ITER=8, WARMUP_ITERS=2, WARMUP_FACTOR=0.5, LR_SCHEDULER_NAME="WarmupCosineLR"),
        [0.01, 0.01368198, 0.01736396, 0.01444415, 0.011, 0.00755585, 0.00463604, 0.00268508],
    ),
]


@pytest.mark.parametrize("keys, expected", DETECTRON2)
def test_schedule_equals_detectron2(keys, expected):
    assert _learning_rates(_config(**keys)) == pytest.approx(expected, abs=1e-8)


def test_rescale_interval_squeezes_the_schedule_into_what_remains():
    keys = dict(BASE_LR=1.0, BASE_LR_END=0.0, MAX_ITER=10, WARMUP_ITERS=5, LR_SCHEDULER_NAME="WarmupCosineLR")
    rates = _learning_rates(_config(**keys, RESCALE_INTERVAL=True))
    assert rates[5:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 5)) for k in range(5)])


def test_schedule_started_in_the_middle_goes_on():
    cfg = _config(**MULTI_STEP)
    assert _learning_rates(cfg, start=3) == _learning_rates(cfg)[3:]


def test_steps_beyond_the_end_are_ignored_with_a_warning(caplog):
    rates = _learning_rates(_config(**MULTI_STEP | {"STEPS": (6, 10, 60000)}))
    assert rates[6:] == pytest.approx([0.002] * 4)
    assert "beyond SOLVER.MAX_ITER 10" in caplog.text


@pytest.mark.parametrize(
    "keys, named",
    [
        ({"STEPS": (8, 6)}, "SOLVER.STEPS"),
        ({"LR_SCHEDULER_NAME": "Poly"}, "SOLVER.LR_SCHEDULER_NAME"),
        ({"WARMUP_METHOD": "burnin"}, "SOLVER.WARMUP_METHOD"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 1.0}, "SOLVER.BASE_LR_END"),
        ({"LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": 0}, "SOLVER.NUM_DECAYS"),
    ],
)
def test_wrong_schedule_keys_are_named(keys, named):
    with pytest.raises(UserError, match=named):
        _learning_rates(_config(**MULTI_STEP | keys))


def _clip(gradients, **keys):
    cfg = default_config()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    for key, value in keys.items():
        cfg.SOLVER.CLIP_GRADIENTS[key] = value
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = torch.tensor(gradient)
    build_gradient_clipper(cfg)(parameters)
    return [parameter.grad.tolist() for parameter in parameters]


def test_each_parameter_is_clipped_on_its_own():
    assert _clip([[3.0, -4.0], [0.3, 0.4]], CLIP_TYPE="value", CLIP_VALUE=1.0) == [[1.0, -1.0], pytest.approx([0.3, 0.4])]
    by_norm = _clip([[3.0, -4.0], [0.3, 0.4]], CLIP_TYPE="norm", CLIP_VALUE=1.0)
    assert by_norm == [pytest.approx([0.6, -0.8], rel=1e-5), pytest.approx([0.3, 0.4])]
    by_l1 = _clip([[3.0, -4.0]], CLIP_TYPE="norm", CLIP_VALUE=1.0, NORM_TYPE=1.0)
    assert by_l1 == [pytest.approx([3 / 7, -4 / 7], rel=1e-5)]


def test_clipping_is_off_by_default():
    assert build_gradient_clipper(default_config()) is None


@pytest.mark.parametrize(
    "keys, rates",
    [
        ({}, [2.0, 1.81906515, 1.63610429, 1.45083569, 1.26289173, 1.07177346, 0.87676658, 0.67676692, 0.46984758, 0.25178508]),
        (
            {"POLY_LR_POWER": 1.5, "POLY_LR_CONSTANT_ENDING": 0.3, "WARMUP_FACTOR": 0.2, "WARMUP_ITERS": 4},
            [0.4, 0.68305197, 0.8586501, 0.93705923, 0.929516, 0.70710678, 0.6, 0.6, 0.6, 0.6],
        ),
        (
            {"WARMUP_ITERS": 3, "WARMUP_FACTOR": 0.25, "WARMUP_METHOD": "constant", "POLY_LR_CONSTANT_ENDING": 0.05},
            [0.5, 0.45476629, 0.40902607, 1.45083569, 1.26289173, 1.07177346, 0.87676658, 0.67676692, 0.46984758, 0.25178508],
        ),
    ],
)
def test_poly_schedule(keys, rates):
    """Against what the scheduler of Detectron2's project DeepLab gave."""
    cfg = _config(**{"BASE_LR": 2.0, "MAX_ITER": 10, "WARMUP_ITERS": 0, "LR_SCHEDULER_NAME": "WarmupPolyLR"} | keys)
    optimizer = build_optimizer(cfg, _Toy())
    scheduler = build_lr_scheduler(cfg, optimizer)
    for rate in rates:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-8)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"POLY_LR_POWER": -1.0}, "SOLVER.POLY_LR_POWER is -1; it must be 0 or more"),
        ({"POLY_LR_CONSTANT_ENDING": 2.0}, "SOLVER.POLY_LR_CONSTANT_ENDING is 2; it must be from 0 to 1"),
        ({"WARMUP_METHOD": "cosine"}, "SOLVER.WARMUP_METHOD 'cosine' is not supported"),
        ({"RESCALE_INTERVAL": True}, "SOLVER.RESCALE_INTERVAL True is not supported with LR_SCHEDULER_NAME 'WarmupPolyLR'"),
    ],
)
def test_poly_schedule_refuses(keys, message):
    with pytest.raises(UserError, match=message):
        build_lr_scheduler(_config(LR_SCHEDULER_NAME="WarmupPolyLR", **keys), build_optimizer(_config(), _Toy()))


def test_adamw_takes_a_step_of_torch_with_the_groups_of_sgd():
    """Of the first step the size is the learning rate, whatever the gradient (arXiv:1711.05101, algorithm 2)."""
    model = nn.Linear(2, 2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    cfg = _config(OPTIMIZER="ADAMW", BASE_LR=0.1, WEIGHT_DECAY=0.5, WEIGHT_DECAY_BIAS=0.0, MOMENTUM=0.8)
    optimizer = build_optimizer(cfg, model)
    settings = {(group["betas"], group["weight_decay"]) for group in optimizer.param_groups}
    assert settings == {((0.8, 0.999), 0.5), ((0.8, 0.999), 0.0)}
    (model(torch.ones(1, 2)).sum() * 3).backward()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before["weight"] * (1 - 0.1 * 0.5) - 0.1)
    torch.testing.assert_close(model.bias.detach(), before["bias"] - 0.1)


def test_muon_has_the_groups_of_sgd():
    cfg = _config(OPTIMIZER="MUON", BASE_LR=0.1, WEIGHT_DECAY=0.5, WEIGHT_DECAY_NORM=0.0, MOMENTUM=0.8)
    optimizer = build_optimizer(cfg, nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert isinstance(optimizer, Muon)
    assert {(group["lr"], group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (0.1, 0.8, 0.5),
        (0.1, 0.8, 0.0),
    }
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER MUON, BASE_LR 0.1, MOMENTUM 1.5"):
        build_optimizer(_config(OPTIMIZER="MUON", BASE_LR=0.1, MOMENTUM=1.5), nn.Linear(2, 2))


def test_parts_learn_at_rates_of_their_own():
    parts = ("backbone", "backbone_head", "proposal_generator")
    model = nn.ModuleDict({part: nn.Conv2d(3, 4, 1) for part in parts})
    settings = _settings(_config(BASE_LR=0.1, HEAD_LR_FACTOR=10.0, RPN_LR_FACTOR=0.5, BIAS_LR_FACTOR=2.0), model)
    assert {name: rate for name, (rate, _) in settings.items()} == {
        "backbone.weight": 0.1,
        "backbone.bias": 0.2,
        "backbone_head.weight": 1.0,
        "backbone_head.bias": 2.0,
        "proposal_generator.weight": 0.5,
        "proposal_generator.bias": 1.0,
    }


def test_scaling_to_another_number_of_processes():
    cfg = _config(
        IMS_PER_BATCH=16,
        BASE_LR=0.1,
        REFERENCE_WORLD_SIZE=8,
        MAX_ITER=5000,
        STEPS=(4000,),
        CHECKPOINT_PERIOD=1000,
        WARMUP_ITERS=500,
    )
    cfg.TEST.EVAL_PERIOD = 200
    cfg.freeze()
    scaled = scale_to_world_size(cfg, 16)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR) == (32, 0.2)
    assert (scaled.SOLVER.MAX_ITER, scaled.SOLVER.STEPS) == (2500, (2000,))
    assert (scaled.SOLVER.CHECKPOINT_PERIOD, scaled.SOLVER.WARMUP_ITERS, scaled.TEST.EVAL_PERIOD) == (500, 250, 100)
    assert scaled.SOLVER.REFERENCE_WORLD_SIZE == 16 and cfg.SOLVER.IMS_PER_BATCH == 16
    assert scale_to_world_size(cfg, 8) is cfg


def test_reference_world_size_has_to_divide_the_batch():
    with pytest.raises(UserError, match="REFERENCE_WORLD_SIZE is 3.*IMS_PER_BATCH 16"):
        scale_to_world_size(_config(IMS_PER_BATCH=16, REFERENCE_WORLD_SIZE=3), 1)


@pytest.mark.detectron2
@pytest.mark.parametrize(
    "keys",
    [
        MULTI_STEP,
        MULTI_STEP | {"RESCALE_INTERVAL": True},
        MULTI_STEP | {"WARMUP_ITERS": 0},
        MULTI_STEP | {"WARMUP_ITERS": 100},
        MULTI_STEP | {"STEPS": (6, 8, 20), "WARMUP_METHOD": "constant"},
        dict(BASE_LR=0.02, MAX_ITER=90000, STEPS=(60000, 80000), WARMUP_ITERS=1000),
        dict(BASE_LR=0.02, BASE_LR_END=0.001, MAX_ITER=137, WARMUP_ITERS=11, LR_SCHEDULER_NAME="WarmupCosineLR"),
        dict(BASE_LR=0.02, MAX_ITER=137, WARMUP_ITERS=11, LR_SCHEDULER_NAME="WarmupCosineLR", RESCALE_INTERVAL=True),
        dict(
            BASE_LR=0.02, MAX_ITER=137, WARMUP_ITERS=11, NUM_DECAYS=4, GAMMA=0.3, LR_SCHEDULER_NAME="WarmupStepWithFixedGammaLR"
        ),
    ],
)
def test_solver_equals_detectron2_live(keys):
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler as d2_scheduler
    from detectron2.solver import build_optimizer as d2_optimizer

    reference = get_cfg()
    for key, value in keys.items():
        reference.SOLVER[key] = value
    reference.SOLVER.BIAS_LR_FACTOR, reference.SOLVER.WEIGHT_DECAY_BIAS = 2.0, 1e-6
    cfg = _config(**keys, BIAS_LR_FACTOR=2.0, WEIGHT_DECAY_BIAS=1e-6)

    model = _Toy()
    optimizer, expected = build_optimizer(cfg, model), d2_optimizer(reference, model)
    for group, other in zip(optimizer.param_groups, expected.param_groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in other["params"]]
        assert all(group[key] == other[key] for key in ("lr", "weight_decay", "momentum", "nesterov", "dampening"))
    scheduler, expected_scheduler = build_lr_scheduler(cfg, optimizer), d2_scheduler(reference, expected)
    for iteration in range(cfg.SOLVER.MAX_ITER):
        assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in expected.param_groups]
        if iteration == cfg.SOLVER.MAX_ITER - 1:
            break  # Detectron2 fails on the step after the last with WarmupStepWithFixedGammaLR
        for each, its_scheduler in ((optimizer, scheduler), (expected, expected_scheduler)):
            each.step()
            its_scheduler.step()


@pytest.mark.detectron2
def test_poly_schedule_equals_detectron2_live():
    from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR

    cfg = _config(
        BASE_LR=0.01,
        MAX_ITER=90,
        WARMUP_ITERS=20,
        LR_SCHEDULER_NAME="WarmupPolyLR",
        POLY_LR_POWER=0.8,
        POLY_LR_CONSTANT_ENDING=0.1,
    )
    model = _Toy()
    optimizer, expected = build_optimizer(cfg, model), build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    reference = WarmupPolyLR(
        expected, 90, warmup_factor=cfg.SOLVER.WARMUP_FACTOR, warmup_iters=20, power=0.8, constant_ending=0.1
    )
    for _ in range(90):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected.param_groups[0]["lr"], rel=1e-12)
        for each, its_scheduler in ((optimizer, scheduler), (expected, reference)):
            each.step()
            its_scheduler.step()


def test_norms_are_told_from_other_layers():
    assert isinstance(nn.SyncBatchNorm(2), solver.NORM_LAYERS) and not isinstance(nn.Conv2d(1, 1, 1), solver.NORM_LAYERS)
