"""resnest_det.prepare_for_inference: every path gives the model's own numbers, within what its precision allows."""

import copy
import logging

import pytest
import torch
from torch import nn

from resnest_det import UserError, create_model, prepare_for_inference
from resnest_det.backbone.split_attention import Deformable
from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.inference import prepared
from tests.helpers.configs import HERE, narrow, typed
from tests.helpers.networks import randomise_norms, small_backbone
from tests.helpers.timm_reference import images, randomise

RELATIVE = {"fp32": 1e-5, "bf16": 0.05}  # of the largest value, after some twenty layers; bfloat16 has 8 bits


@pytest.fixture
def any_precision(monkeypatch):
    """Whatever the processor has: without the instructions torch is slow, and the numbers are the same."""
    monkeypatch.setattr(prepared, "has_precision", lambda precision, device: True)


def assert_close(actual, expected, precision):
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == torch.float32 and actual.shape == expected.shape
        assert (actual - expected).abs().max() <= RELATIVE[precision] * expected.abs().max()
    else:
        pairs = zip(actual, expected, strict=True) if isinstance(expected, list) else ((actual[k], expected[k]) for k in expected)
        for each, wanted in pairs:
            assert_close(each, wanted, precision)


@pytest.mark.parametrize("precision", RELATIVE)
@pytest.mark.parametrize(
    "model",
    [
        lambda: randomise(create_model("resnest14", num_classes=10)),
        lambda: randomise(create_model("resnest14", features_only=True)),
        small_backbone,
        lambda: small_backbone(norm="GN", bottleneck_channels=32, stem_width=32, bottleneck_width=64),
        lambda: small_backbone(deform_on_per_stage=(False, True, True, True), deformable=Deformable(True)),
    ],
    ids=["classifier", "features", "backbone", "group norm", "deformable"],
)
def test_networks_give_their_numbers(model, precision, any_precision):
    model = randomise_norms(model := model()) or model
    before, x = copy.deepcopy(model.state_dict()), images(2)
    ready = prepare_for_inference(model, precision)
    with torch.no_grad():
        assert_close(ready(x), model.eval()(x), precision)
        assert_close(copy.deepcopy(ready)(x), ready(x), "fp32")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("precision", RELATIVE)
def test_a_detector_finds_the_same(precision, any_precision):
    torch.manual_seed(0)
    model = build_model(load_config("mask_rcnn_ResNeSt14_FPN_shapes", typed(HERE | narrow(16, 32)))).eval()
    randomise_norms(model.backbone)
    samples = [{"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "height": 64, "width": 96}]
    ready = prepare_for_inference(model, precision)
    with torch.no_grad():
        expected = model.backbone(samples[0]["image"][None] / 255)
        assert_close(ready.backbone(samples[0]["image"][None] / 255), expected, precision)
        boxes = ready(samples)[0]
    assert boxes["boxes"].dtype == boxes["scores"].dtype == torch.float32
    if precision == "fp32":
        with torch.no_grad():
            wanted = model(samples)[0]
        torch.testing.assert_close(boxes["scores"], wanted["scores"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(boxes["boxes"], wanted["boxes"], atol=1e-2, rtol=1e-4)


def test_the_processor_says_which_precision_it_has(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(prepared.platform, "machine", lambda: "x86_64")
    for flags, capability, expected in [
        ({"avx2"}, "AVX2", "fp32"),
        ({"avx512f", "avx512_bf16"}, "AVX512", "bf16"),
        ({"avx512f", "amx_bf16"}, "AMX", "bf16"),
        ({"avx512f", "avx512_bf16"}, "AVX2", "fp32"),  # ATEN_CPU_CAPABILITY
        ({"avx512f"}, "AVX512", "fp32"),  # where bf16 is emulated, and slow
        ({"avx512f", "avx512_fp16"}, "AVX512", "fp32"),
    ]:
        monkeypatch.setattr(prepared, "processor_instructions", lambda flags=flags: flags)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert prepared.usable_precision("auto", cpu) == expected, flags
    assert prepared.has_precision("fp16", cpu) and not prepared.has_precision("bf16", cpu)


def test_a_precision_that_the_device_lacks_is_replaced_and_told(monkeypatch, caplog):
    monkeypatch.setattr(prepared, "has_precision", lambda precision, device: precision == "fp32")
    with caplog.at_level(logging.WARNING):
        ready = prepare_for_inference(small_backbone(), "bf16")
    assert [record.message for record in caplog.records] == ["precision bf16: this CPU has no instructions for it; fp32 is used"]
    assert all(parameter.dtype == torch.float32 for parameter in ready.parameters())


def test_without_a_compiler_nothing_is_compiled_and_a_line_says_so(monkeypatch, caplog):
    def none_there(function, **arguments):
        raise RuntimeError("Failed to find C++ compiler. Please specify via CXX environment variable.\nmore lines")

    monkeypatch.setattr(torch, "compile", none_there)
    model = small_backbone()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        ready = prepare_for_inference(model, "fp32", compile=True)
        assert_close(ready(images(1)), model.eval()(images(1)), "fp32")
    assert len(caplog.records) == 1 and "Failed to find C++ compiler" in caplog.text and "more lines" not in caplog.text


@pytest.mark.slow
def test_a_compiled_network_takes_all_sizes_without_a_break(monkeypatch):
    """The compiler's graphs are run by torch: to make code of them takes minutes."""
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile(self, backend="eager", **options))
    monkeypatch.setattr(prepared, "can_compile", lambda device: True)
    model = small_backbone()
    ready = prepare_for_inference(model, "fp32", compile=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.eval()
    with torch.no_grad():
        for size in [(2, 3, 64, 64), (2, 3, 96, 64), (3, 3, 64, 128)]:
            x = torch.rand(size)
            assert_close(ready(x), model(x), "fp32")
    # fullgraph=True makes a break an error; beside square images, for which torch makes one, one graph of any size serves all.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("fp8",), "precision 'fp8' is not supported; supported: 'auto', 'fp32', 'bf16', 'fp16'"),
        ((torch.bfloat16,), "precision torch.bfloat16 is not supported"),
        ((None,), "precision None is not supported"),
        (("fp32", "yes"), "compile is 'yes', expected True or False"),
        (("fp32", 1), "compile is 1, expected True or False"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError) as error:
        prepare_for_inference(small_backbone(), *arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("model", ["resnest50", None, {"model": 1}])
def test_what_is_no_module_is_refused(model):
    with pytest.raises(UserError, match="takes a torch.nn.Module, not a "):
        prepare_for_inference(model)


def test_a_module_without_parameters():
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(prepare_for_inference(nn.Sequential(nn.ReLU()), "fp32")(x), x)
