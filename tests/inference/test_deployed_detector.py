"""resnest_det.inference.deployed_detector: the same results as the ordinary model, before any exporter touches it."""

import pytest
import torch

from resnest_det.inference.deployed_detector import DeployedDetector
from resnest_det.inference.exported import segments_info
from tests.helpers.cases import CASES, make_samples
from tests.helpers.observe import build_builtin


def deployed_case(case: str):
    model = build_builtin(case).eval()
    return model, DeployedDetector(model)


def run(deployed: DeployedDetector, images: list[torch.Tensor], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    return dict(zip(deployed.output_names, deployed(torch.stack(images), torch.tensor(size)), strict=True))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_results_are_the_models_to_the_last_bit(case):
    model, deployed = deployed_case(case)
    for sample in make_samples(case):
        expected = model([sample])[0]
        outputs = run(deployed, [sample["image"]], (sample["height"], sample["width"]))
        for name in {"boxes", "scores", "classes"} & expected.keys():
            assert torch.equal(outputs[name], expected[name]), name
            assert len(expected[name])
        if "sem_seg" in expected:
            assert torch.equal(outputs["labels"][0], expected["sem_seg"].argmax(dim=0))
        if "panoptic_seg" in expected:
            assert torch.equal(outputs["panoptic"][0].int(), expected["panoptic_seg"][0])
            stuff = (outputs["stuff_segments"][0].tolist(), outputs["stuff_areas"][0].tolist())
            assert segments_info(expected, outputs["segments"].tolist(), *stuff) == expected["panoptic_seg"][1]
        assert ("masks" in outputs) == ("masks" in expected)


@pytest.mark.parametrize("case", ["mask_bn", "panoptic_gn"])
@torch.no_grad()
def test_images_of_a_batch_are_kept_apart(case):
    _, deployed = deployed_case(case)
    first = make_samples(case)[0]["image"]
    images = [first, torch.full_like(first, 128), first.flip(-1), first]
    together = run(deployed, images, (150, 203))
    assert set(together["image"].tolist()) >= {0, 2, 3} and together["image"].diff().min() >= 0
    for position, image in enumerate(images):
        alone, own = run(deployed, [image], (150, 203)), together["image"] == position
        for name in ("boxes", "scores", "classes", "masks"):
            torch.testing.assert_close(together[name][own], alone[name], rtol=1e-4, atol=1e-4)
        if "panoptic" in alone:
            assert torch.equal(together["panoptic"][position], alone["panoptic"][0])
            assert torch.equal(together["segments"][own], alone["segments"])


@torch.no_grad()
def test_nothing_found_gives_empty_results():
    model, deployed = deployed_case("mask_bn")
    model.roi_heads.box_predictor.score_threshold = 1.0
    outputs = run(deployed, [make_samples("mask_bn")[0]["image"]], (97, 131))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "classes": (0,),
        "image": (0,),
        "masks": (0, 28, 28),
    }
