"""Every variant on a GPU against the same one on the CPU."""

import pytest
import torch

from resnest_det import create_model
from resnest_det.backbone.variants import VARIANTS
from tests.helpers.networks import small_backbone
from tests.helpers.timm_reference import images, randomise

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("exact_products"),
]
TOLERANCES = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}  # of the length of a map


def relative(value, expected):
    return ((value.float().cpu() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("precision", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_maps_are_the_cpus(name, precision, memory_format):
    model = randomise(create_model(name, features_only=True)).eval()
    x = images(1)
    with torch.inference_mode():
        expected = model(x)
        model.to(DEVICE, memory_format=memory_format)
        with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
            maps = model(x.to(DEVICE, memory_format=memory_format))
    for value, map_expected in zip(maps, expected, strict=True):
        assert relative(value, map_expected) < TOLERANCES[precision]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"radix": 1}, {"groups": 2}, {"norm": "GN"}], ids=str)
def test_a_compiled_training_step_gives_the_same_gradients(settings):
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    gradients = []
    for compiled in (False, True):
        model = small_backbone(**settings).to(DEVICE).train()
        run = torch.compile(model) if compiled else model
        sum(value.square().mean() for value in run(x).values()).backward()
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]).cpu()
        )
    assert relative(*gradients) < 1e-3
