"""Exported detectors, run from their files: every format against the model."""

import json

import pytest
import torch

from resnest_det.detector.postprocess import CompactMasks
from resnest_det.errors import UserError
from resnest_det.inference import detector_export
from resnest_det.inference.detector_export import compare_detections, export_detector
from resnest_det.inference.exported import ExportedDetector, exported_format
from tests.helpers.cases import CASES, make_samples
from tests.helpers.observe import build_builtin

SETTINGS = {"input_format": "RGB", "trained_on": {"thing_classes": ["cat", "Kühe <&>"]}}
NAMES = {"torchscript": "m.pt", "exported": "m.pt2", "onnx": "m.onnx", "openvino": "m.xml"}


@pytest.fixture(autouse=True)
def _needs(request):
    file_format = request.node.callspec.params.get("file_format") if hasattr(request.node, "callspec") else None
    for name in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}.get(file_format, ()):
        pytest.importorskip(name)


DEFORMABLE = {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, False, False]}


def model_and_samples(case: str):
    """A model, and images of two sizes, one blank and one of a single bright square.

    "deformable" is without a mask head; the other cases that find objects have one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CASES, "deformable", CASES["faster_frozenbn"] | DEFORMABLE)
        model = build_builtin(case).eval()
        samples = make_samples(case)
    if case == "deformable":
        model.roi_heads.mask_head = None
    blank = torch.full((3, 97, 131), 128, dtype=torch.uint8)
    square = blank.clone()
    square[:, 30:60, 40:80] = 250
    extra = [{"image": image, "height": 150, "width": 203} for image in (blank, square)]
    return model, [{**sample, "file_name": f"{i}.png"} for i, sample in enumerate(samples + extra)]


def assert_alike(expected: dict, got: dict) -> None:
    assert expected.keys() == got.keys()
    if "boxes" in expected:
        assert compare_detections(expected, got)[0] == []
        assert got["classes"].dtype == torch.int64 and got["boxes"].shape == (len(got["scores"]), 4)
    if "sem_seg" in expected:
        alike = expected["sem_seg"].argmax(dim=0) == got["sem_seg"].argmax(dim=0)
        assert alike.float().mean() > 0.999 and len(got["sem_seg"]) == len(expected["sem_seg"])
    if "panoptic_seg" in expected:
        (ids, segments), (got_ids, got_segments) = expected["panoptic_seg"], got["panoptic_seg"]
        assert (ids == got_ids).float().mean() > 0.999
        assert [(s["id"], s["isthing"], s["category_id"]) for s in segments] == [
            (s["id"], s["isthing"], s["category_id"]) for s in got_segments
        ]


FORMATS = [
    ("torchscript", "mask_radix4_predicted_boxes"),
    ("torchscript", "panoptic_cascade_bn"),
    ("torchscript", "semantic_output_stride_8"),
    ("torchscript", "semantic_deeplab_v3_plus"),
    pytest.param(
        "exported",
        "deformable",
        marks=pytest.mark.skipif(torch.__version__ < "2.14", reason="torch.export of this torch cannot express detectors"),
    ),
    pytest.param("openvino", "panoptic_gn", marks=pytest.mark.extras),
    pytest.param("onnx", "cascade_mask_gn_ciou", marks=pytest.mark.extras),
    pytest.param("onnx", "semantic_deeplab_v3", marks=pytest.mark.extras),
]


def test_a_torch_whose_export_is_too_old_is_told_before_anything_is_traced(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.11.0"))
    model, samples = model_and_samples("mask_radix4_predicted_boxes")
    with pytest.raises(UserError, match="detectors take torch 2.14 or later, and this is 2.11.0"):
        export_detector(model, tmp_path / "a.pt2", "exported", SETTINGS, samples)


@pytest.mark.parametrize("file_format, case", FORMATS)
@torch.no_grad()
def test_file_gives_the_models_results(tmp_path, file_format, case):
    model, samples = model_and_samples(case)
    path = tmp_path / NAMES[file_format]
    lines = export_detector(model, path, file_format, SETTINGS, samples)
    assert [line.split(":")[0] for line in lines] == [sample.get("file_name", "image") for sample in samples]

    assert exported_format(path) == file_format
    exported = ExportedDetector(path)
    assert exported.settings["trained_on"] == SETTINGS["trained_on"] and exported.settings["channels"] == 3
    # One call with images of several sizes, two of them of the same.
    expected = [model([sample])[0] for sample in samples]
    for one, other in zip(expected, exported(samples), strict=True):
        assert_alike(one, other)
    assert exported([]) == []

    if "boxes" in expected[0]:
        assert len(expected[0]["boxes"]) > 1
        exported.compact_masks = True
        compact = exported(samples[:1])[0]
        if "masks" in compact:
            assert isinstance(compact["masks"], CompactMasks)
            assert (compact["masks"].pixels() != expected[0]["masks"]).float().mean() < 1e-3
    with pytest.raises(UserError, match=r"gray.png: 1 channels, but .* takes 3"):
        exported([{"image": torch.zeros(1, 64, 64, dtype=torch.uint8), "file_name": "gray.png"}])


@pytest.mark.extras
@torch.no_grad()
def test_openvino_of_other_precisions_keeps_what_the_model_finds(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    nncf, told = pytest.importorskip("nncf"), []
    monkeypatch.setattr(nncf.common.logging.nncf_logger, "handle", told.append)
    model, samples = model_and_samples("mask_bn")
    sizes = {}
    for precision in ("fp16", "int8"):
        path = tmp_path / f"{precision}.xml"
        export_detector(model, path, "openvino", SETTINGS, samples, precision=precision, calibration=lambda: samples)
        sizes[precision] = path.with_suffix(".bin").stat().st_size
        exported = ExportedDetector(path)
        assert exported.settings["precision"] == precision
        assert exported(samples)[0]["masks"].shape[1:] == (150, 203)
    assert sizes["int8"] < 0.7 * sizes["fp16"] and told == []
    with pytest.raises(UserError, match="int8 needs images to measure its ranges on"):
        export_detector(model, tmp_path / "n.xml", "openvino", SETTINGS, samples, precision="int8", calibration=list)
    assert not (tmp_path / "n.xml").exists()


@pytest.mark.extras
def test_deformable_convolution_says_which_operators_it_needs(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    model, _ = model_and_samples("deformable")
    with pytest.raises(
        UserError, match=r"opset 18 has no deformable convolution, which backbone\.bottom_up\.res3\.0\.conv2\.conv is"
    ):
        export_detector(model, tmp_path / "m.onnx", "onnx", SETTINGS, [], opset=18)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_format", ["torchscript", pytest.param("onnx", marks=[pytest.mark.slow, pytest.mark.extras])])
def test_deformable_convolution(tmp_path, file_format):
    path = tmp_path / NAMES[file_format]
    export_detector(model_and_samples("deformable")[0], path, file_format, SETTINGS, make_samples("mask_bn"))
    assert json.loads(json.dumps(ExportedDetector(path).settings))["outputs"][0] == "boxes"


def test_a_file_with_other_results_is_refused_and_what_was_there_stays(tmp_path, monkeypatch):
    model, samples = model_and_samples("mask_bn")
    path = tmp_path / "m.pt"
    path.write_bytes(b"the last good one")

    write = detector_export._write_torchscript

    def write_wrongly(deployed, *rest):
        deployed.model.roi_heads.box_predictor.bbox_pred.bias += 0.05
        write(deployed, *rest)
        deployed.model.roi_heads.box_predictor.bbox_pred.bias -= 0.05

    monkeypatch.setattr(detector_export, "_write_torchscript", write_wrongly)
    with pytest.raises(
        UserError, match=r"the file does not give the model's results on 0.png: missing: class \d, score .*nothing was"
    ):
        export_detector(model, path, "torchscript", SETTINGS, samples)
    assert path.read_bytes() == b"the last good one" and list(tmp_path.iterdir()) == [path]

    def fail(*arguments):
        raise RuntimeError("\nUnsupported: aten::strange\nmore")

    monkeypatch.setattr(detector_export, "_write_torchscript", fail)
    with pytest.raises(UserError, match="torchscript cannot express this model: Unsupported: aten::strange$"):
        export_detector(model, path, "torchscript", SETTINGS, samples)
    assert path.read_bytes() == b"the last good one" and list(tmp_path.iterdir()) == [path]


def detections(*rows):
    boxes, scores, classes = zip(*rows)
    return {"boxes": torch.tensor(boxes).float(), "scores": torch.tensor(scores), "classes": torch.tensor(classes)}


def test_what_counts_as_alike():
    one = detections(((0, 0, 9, 9), 0.9, 1), ((5, 5, 20, 20), 0.5, 2), ((1, 1, 4, 4), 0.05, 0))
    swapped = {name: values[[1, 0, 2]] for name, values in one.items()}
    assert compare_detections(one, swapped)[0] == []
    assert "3 of 3 detections alike" in compare_detections(one, swapped)[1]
    # The last may fall on either side of the threshold.
    assert compare_detections(one, {name: values[:2] for name, values in one.items()})[0] == []
    for change, reason in (
        (((0, 0, 9.2, 9), 0.9, 1), "missing: class 1, score 0.900, box 0.0, 0.0, 9.0, 9.0"),
        (((0, 0, 9, 9), 0.902, 1), "missing: class 1"),
        (((0, 0, 9, 9), 0.9, 3), "missing: class 1"),
    ):
        problems, _ = compare_detections(one, detections(change, ((5, 5, 20, 20), 0.5, 2), ((1, 1, 4, 4), 0.05, 0)))
        assert problems[0].startswith(reason) and problems[1].startswith("not the model's")
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "classes": torch.zeros(0, dtype=torch.int64)}
    assert compare_detections(none, none) == ([], "0 of 0 detections alike (boxes to 0.1 pixels, scores to 0.001)")
    assert compare_detections(none, {name: values[:1] for name, values in one.items()})[0]


def test_what_cannot_be_written_or_read_is_named(tmp_path):
    model = build_builtin("mask_bn").eval()
    with pytest.raises(UserError, match="precision int8 is for openvino, the format is torchscript"):
        export_detector(model, tmp_path / "m.pt", "torchscript", SETTINGS, [], precision="int8")
    with pytest.raises(UserError, match="opset 19 is for onnx, the format is torchscript"):
        export_detector(model, tmp_path / "m.pt", "torchscript", SETTINGS, [], opset=19)
    with pytest.raises(UserError, match="its folder does not exist"):
        export_detector(model, tmp_path / "none" / "m.pt", "torchscript", SETTINGS, [])
    with pytest.raises(UserError, match="not a Linear"):
        export_detector(torch.nn.Linear(2, 2), tmp_path / "m.pt", "torchscript", SETTINGS, [])
    assert not list(tmp_path.iterdir())

    with pytest.raises(UserError, match="m.pth is no exported model; supported: .onnx, .xml, .pt2, .pt files"):
        ExportedDetector(tmp_path / "m.pth")
    with pytest.raises(UserError, match="gone.pt2 does not exist"):
        ExportedDetector(tmp_path / "gone.pt2")
    (tmp_path / "torn.pt2").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="torn.pt2 cannot be read"):
        ExportedDetector(tmp_path / "torn.pt2")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "other.pt"))
    with pytest.raises(UserError, match="other.pt is no detector that `resnest-det export` wrote"):
        ExportedDetector(tmp_path / "other.pt")
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    assert exported_format(tmp_path / "checkpoint.pt") is None
