"""Detectors on a GPU against the CPU: precisions, memory formats, compiled, in a process group; how often it is waited for."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.detector.test_host_waits import INFERENCE_WAITS, TRAINING_WAITS, build, config_of, filled, four_images
from tests.helpers.cases import CASES, make_samples

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("exact_products"),
]

# Of losses and of the length of a gradient. A GPU adds in another order, and a region whose overlap is within rounding of a
# threshold may be matched otherwise. Half precision has 8 or 11 bits.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
MASK_DIFFERENCE = 1e-3  # part of the pixels


def seeded(case):
    return [sample | {"seed": seed} for seed, sample in enumerate(make_samples(case))]


def step(model, samples, precision=torch.float32):
    """Losses by name, and the length of the gradient."""
    model.train().zero_grad()
    with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
        losses = model(samples)
    sum(losses.values()).backward()
    gradients = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    return {name: loss.item() for name, loss in losses.items()} | {"gradient": torch.stack(gradients).norm().item()}


def assert_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-3 * tolerance), name


def assert_same_results(found, expected):
    """As far as a GPU's rounding allows: in order, and with the same classes."""
    for image, other in zip(found, expected, strict=True):
        assert image.keys() == other.keys()
        if "boxes" in other:
            assert torch.equal(image["classes"].cpu(), other["classes"])
            torch.testing.assert_close(image["scores"].cpu(), other["scores"], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(image["boxes"].cpu(), other["boxes"], rtol=1e-3, atol=0.05)
        if "masks" in other:
            assert (image["masks"].cpu() != other["masks"]).float().mean() < MASK_DIFFERENCE
        if "sem_seg" in other:
            torch.testing.assert_close(image["sem_seg"].cpu(), other["sem_seg"], rtol=1e-3, atol=1e-2)
        if "panoptic_seg" in other:
            assert (image["panoptic_seg"][0].cpu() != other["panoptic_seg"][0]).float().mean() < MASK_DIFFERENCE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", TOLERANCES, ids=str)
def test_training_step_is_the_cpus(case, precision):
    model = filled(config_of(case))
    expected = step(model, seeded(case))
    assert_near(step(filled(config_of(case)).to(DEVICE), seeded(case), precision), expected, TOLERANCES[precision])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_are_the_cpus(case, memory_format):
    model = filled(config_of(case)).eval()
    with torch.inference_mode():
        expected = model(make_samples(case))
        assert_same_results(model.to(DEVICE, memory_format=memory_format)(make_samples(case)), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_finds_what_full_precision_finds(case, precision):
    model = filled(config_of(case)).eval().to(DEVICE)
    with torch.inference_mode():
        expected = model(make_samples(case))
        with torch.autocast(DEVICE, precision):
            found = model(make_samples(case))
    for image, other in zip(found, expected, strict=True):
        if "scores" in other:
            count = min(len(image["scores"]), len(other["scores"]))
            assert count >= 0.5 * len(other["scores"])
            torch.testing.assert_close(image["scores"][:count].float(), other["scores"][:count], rtol=0.1, atol=0.1)
        if "sem_seg" in other:
            assert (image["sem_seg"].argmax(0) == other["sem_seg"].argmax(0)).float().mean() > 0.9


@pytest.mark.parametrize("case", ["mask_bn", "panoptic_gn"])
def test_training_in_channels_last_is_the_same(case):
    expected = step(filled(config_of(case)).to(DEVICE), seeded(case))
    model = filled(config_of(case)).to(DEVICE, memory_format=torch.channels_last)
    assert_near(step(model, seeded(case)), expected, TOLERANCES[torch.float32])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mask_bn", "semantic_fpn_bn"])
def test_a_compiled_backbone_gives_the_same(case):
    model = filled(config_of(case)).to(DEVICE)
    expected = step(model, seeded(case))
    model.backbone = torch.compile(model.backbone, dynamic=True)
    assert_near(step(model, seeded(case)), expected, TOLERANCES[torch.float32])


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/join", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES)
def test_a_process_group_of_one_gives_the_same(case, one_process_group):
    expected = step(filled(config_of(case)).to(DEVICE), seeded(case))
    model = DistributedDataParallel(filled(config_of(case)).to(DEVICE), device_ids=[0], broadcast_buffers=False)
    assert_near(step(model, seeded(case)), expected, TOLERANCES[torch.float32])


def waits_of(compute):
    """What torch warns of while it is computed; the waiting inside of torchvision's suppression is not seen."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            compute()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [str(each.message) for each in warned if "synchronizing" in str(each.message)]


@pytest.mark.parametrize("case", TRAINING_WAITS)
def test_a_gpu_is_waited_for_no_more_than_a_pretended_one(case):
    model, samples = build(case).to(DEVICE), four_images(case)
    model(samples)
    found = waits_of(lambda: model(samples))
    assert 0 < len(found) <= TRAINING_WAITS[case], found
    if case in INFERENCE_WAITS:
        model.eval()
        with torch.inference_mode():
            found = waits_of(lambda: model(samples[:1]))
        assert 0 < len(found) <= INFERENCE_WAITS[case], found
