"""resnest_det.inference.export, run by the runtimes themselves."""

import pytest
import torch

from resnest_det.backbone.classifier import create_model
from resnest_det.errors import UserError
from resnest_det.inference import export
from resnest_det.inference.export import DeployedModel, export_model, load_exported
from tests.helpers.networks import randomise_norms

pytestmark = pytest.mark.extras

SHAPES = ((1, 3, 64, 64), (3, 3, 90, 131), (2, 3, 160, 96))


def small_model(name="resnest14", **arguments):
    torch.manual_seed(0)
    model = create_model(name, **arguments)
    randomise_norms(model)
    return model.eval()


def run_onnx(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_inputs()] == ["data"]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    names = [port.name for port in session.get_outputs()]
    return lambda images: dict(zip(names, map(torch.from_numpy, session.run(None, {"data": images.numpy()}))))


def run_openvino(path):
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(str(path))
    assert model.input("data").partial_shape.to_string() == "[?,3,?,?]"
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: {port.any_name: torch.from_numpy(value) for port, value in compiled({"data": images.numpy()}).items()}


def run_torchscript(path):
    module = torch.jit.load(str(path))
    return lambda images: dict(enumerate(_as_tuple(module(images))))


def run_exported(path):
    module = torch.export.load(str(path)).module()
    return lambda images: dict(enumerate(_as_tuple(module(images))))


def _as_tuple(outputs):
    return (outputs,) if isinstance(outputs, torch.Tensor) else outputs


RUNTIMES = {
    "torchscript": ("m.pt", run_torchscript),
    "exported": ("m.pt2", run_exported),
    "onnx": ("m.onnx", run_onnx),
    "openvino": ("m.xml", run_openvino),
}
BACK_ENDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def exported_to(tmp_path, file_format, model, **conventions):
    for name in BACK_ENDS.get(file_format, ()):
        pytest.importorskip(name)
    filename, run = RUNTIMES[file_format]
    differences = export_model(DeployedModel(model, **conventions), tmp_path / filename, file_format)
    assert len(differences) == 2 and max(differences.values()) < 1e-5
    return run(tmp_path / filename)


def assert_same(outputs, expected):
    assert len(outputs) == len(expected)
    for output, value in zip(outputs.values(), expected):
        torch.testing.assert_close(output, value, rtol=0, atol=1e-4 * max(value.abs().max().item(), 1))


@pytest.mark.parametrize("file_format", RUNTIMES)
@torch.no_grad()
def test_classifier_at_any_batch_and_size(tmp_path, file_format):
    model = small_model("resnest50_fast_4s2x40d" if file_format == "onnx" else "resnest14")
    run = exported_to(tmp_path, file_format, model)
    for shape in SHAPES:
        images = torch.randn(shape)
        outputs = run(images)
        assert_same(outputs, [model(images)])
        assert list(outputs) in (["logits"], [0])


@pytest.mark.parametrize("file_format", RUNTIMES)
@torch.no_grad()
def test_feature_maps(tmp_path, file_format):
    model = small_model(features_only=True, out_indices=(0, 2, 4))
    run = exported_to(tmp_path, file_format, model)
    for shape in SHAPES:
        images = torch.randn(shape)
        outputs = run(images)
        assert_same(outputs, model(images))
        assert list(outputs) in (["stem", "res3", "res5"], [0, 1, 2])


@pytest.mark.parametrize("file_format", ["exported", "openvino"])
@torch.no_grad()
def test_pixels_in_bgr_order_to_probabilities(tmp_path, file_format):
    model = small_model(num_classes=7)
    run = exported_to(tmp_path, file_format, model, bgr=True, pixels=True, probabilities=True)
    pixels = torch.randint(0, 256, (2, 3, 70, 80)).float()  # RGB
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    normalised = (pixels - mean[:, None, None]) / std[:, None, None]
    outputs = run(pixels[:, [2, 1, 0]])
    assert_same(outputs, [model(normalised).softmax(1)])
    assert list(outputs) in (["prob"], [0])


@torch.no_grad()
def test_embeddings_of_other_channels_and_bgr_alone(tmp_path):
    embedder = small_model(num_classes=0, in_chans=5)
    assert DeployedModel(embedder).output_names == ("embedding",)
    run, images = exported_to(tmp_path, "torchscript", embedder), torch.randn(2, 5, 64, 70)
    assert_same(run(images), [embedder(images)])

    model = small_model()
    run, images = exported_to(tmp_path, "torchscript", model, bgr=True), torch.randn(1, 3, 64, 64)
    assert_same(run(images.flip(1)), [model(images)])


@pytest.mark.parametrize("opset", [11, 17, 21])
@torch.no_grad()
def test_onnx_of_older_and_newer_operators(tmp_path, opset):
    for name in BACK_ENDS["onnx"]:
        pytest.importorskip(name)
    import onnx

    model = small_model("resnest50_fast_1s2x40d", output_stride=8) if opset == 11 else small_model(global_pool="avgmax")
    export_model(DeployedModel(model), tmp_path / "m.onnx", "onnx", opset=opset)
    assert onnx.load(str(tmp_path / "m.onnx")).opset_import[0].version == opset
    run, images = run_onnx(tmp_path / "m.onnx"), torch.randn(3, 3, 90, 131)
    assert_same(run(images), [model(images)])


@pytest.mark.parametrize("opset", [11])
@torch.no_grad()
def test_onnx_feature_maps_of_older_operators(tmp_path, opset):
    for name in BACK_ENDS["onnx"]:
        pytest.importorskip(name)
    model, images = small_model(features_only=True), torch.randn(3, 3, 90, 131)
    export_model(DeployedModel(model), tmp_path / "m.onnx", "onnx", opset=opset)
    assert_same(run_onnx(tmp_path / "m.onnx")(images), model(images))


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda model: model.half(), r"takes float32 models, stem.conv1_1.weight is float16: call model.float\(\) first"),
        (lambda model: model.bfloat16(), "is bfloat16: call"),
        (lambda model: model.double(), "is float64: call"),
        (lambda model: model.to("meta"), "is on the meta device and has none"),
        (torch.nn.DataParallel, "not a DataParallel: give its .module"),
        (torch.compile, "not a OptimizedModule: give its ._orig_mod"),
        (lambda model: torch.jit.script(model.eval()), "not a RecursiveScriptModule"),
        (lambda model: model.res2, "not a Sequential"),
    ],
)
def test_models_of_other_types_are_named(change, reason):
    with pytest.raises(UserError, match=reason) as error:
        DeployedModel(change(small_model()))
    assert "\n" not in str(error.value)


def test_models_that_were_changed_later_are_named(tmp_path):
    with pytest.raises(UserError, match=r"is float16: call model.float\(\) first"):
        export_model(DeployedModel(small_model()).half(), tmp_path / "m.pt", "torchscript")
    with pytest.raises(UserError, match=r"takes a DeployedModel, not a Classifier: give it DeployedModel\(model\)"):
        export_model(small_model(), tmp_path / "m.pt", "torchscript")
    assert not list(tmp_path.iterdir())


def test_opsets_that_are_not_written_are_named(tmp_path):
    for opset in (10, 22):
        with pytest.raises(UserError, match=f"opset {opset} is not supported; supported: 11 to 21"):
            export.check_opset(opset, "onnx")
    with pytest.raises(UserError, match="opset 13 is for onnx, the format is torchscript"):
        export_model(DeployedModel(small_model()), tmp_path / "m.pt", "torchscript", opset=13)
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_numbers_is_refused_and_what_was_there_stays(tmp_path, monkeypatch):
    path, model = tmp_path / "m.pt", DeployedModel(small_model())
    path.write_bytes(b"the last good one")

    def fold_wrongly(deployed):
        wrong = DeployedModel(small_model())
        wrong.model.linear.bias.data[3] += 0.1
        return wrong

    monkeypatch.setattr(export, "fold_norms", fold_wrongly)
    with pytest.raises(
        UserError, match=r"torchscript file does not give the model's numbers: for input \(1, 3, 224, 224\) they differ by "
    ):
        export_model(model, path, "torchscript")
    assert path.read_bytes() == b"the last good one" and list(tmp_path.iterdir()) == [path]

    monkeypatch.undo()
    export_model(model, path, "torchscript")
    assert list(tmp_path.iterdir()) == [path]
    assert load_exported(path, "torchscript")(torch.zeros(1, 3, 64, 64))[0].shape == (1, 1000)


def test_what_cannot_be_exported_is_named(tmp_path, monkeypatch):
    model = small_model()
    with pytest.raises(UserError, match="tflite"):
        export_model(DeployedModel(model), tmp_path / "m.tflite", "tflite")
    with pytest.raises(UserError, match="its folder does not exist"):
        export_model(DeployedModel(model), tmp_path / "none" / "m.pt", "torchscript")
    with pytest.raises(UserError, match="it is a folder"):
        export_model(DeployedModel(model), tmp_path, "torchscript")
    with pytest.raises(UserError, match="3 channels; this model takes 1"):
        DeployedModel(small_model(in_chans=1), bgr=True)
    with pytest.raises(UserError, match="this model gives embedding"):
        DeployedModel(small_model(num_classes=0), probabilities=True)
    with pytest.raises(UserError, match="this model gives stem, res2"):
        DeployedModel(small_model(features_only=True), probabilities=True)

    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'resnest_det\[export\]'"):
        export_model(DeployedModel(model), tmp_path / "m.onnx", "onnx")
    with pytest.raises(UserError, match=r"needs openvino: pip install 'resnest_det\[export\]'"):
        export_model(DeployedModel(model), tmp_path / "m.xml", "openvino")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"must end in \.xml"):
        export.check_path(tmp_path / "m.onnx", "openvino")
    assert not list(tmp_path.iterdir())
