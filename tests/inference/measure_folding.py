"""How far detections of the copy that evaluation runs are from the model's own; `--help` says how. Not a test."""

import argparse

import torch
from torchvision.ops import box_iou

from resnest_det.configuration.data import build_test_loader, read_run_data
from resnest_det.configuration.model import build_model
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.weights import load_initial_weights
from resnest_det.inference.prepared import prepare_for_inference


def main() -> None:
    """Compare both on every image of the first dataset of DATASETS.TEST, and print the largest differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config_file")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="MODEL.WEIGHTS model_final.pth, for instance")
    arguments = parser.parse_args()
    cfg = load_config(arguments.config_file, arguments.overrides)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    load_initial_weights(cfg, model, whole=True)
    folded = prepare_for_inference(model, "fp32")
    boxes, scores, pixels, alone = [], [], [], 0
    with torch.inference_mode():
        for batch in build_test_loader(cfg, read_run_data(cfg, train=False).test[0]):
            for expected, actual in zip(model(batch), folded(batch)):
                # A panoptic model's detections are a part of its output.
                expected, actual = (each.get("instances", each) for each in (expected, actual))
                overlaps = box_iou(expected["boxes"], actual["boxes"])
                overlaps[expected["classes"][:, None] != actual["classes"]] = 0
                pairs = []
                for i, row in enumerate(overlaps):
                    j = int(row.argmax()) if len(row) else -1
                    if j >= 0 and row[j] >= 0.9:
                        pairs.append((i, j))
                        overlaps[:, j] = 0
                alone += len(expected["boxes"]) + len(actual["boxes"]) - 2 * len(pairs)
                for i, j in pairs:
                    boxes.append(float((expected["boxes"][i] - actual["boxes"][j]).abs().max()))
                    scores.append(float((expected["scores"][i] - actual["scores"][j]).abs()))
                    if "masks" in expected:
                        pixels.append(int((expected["masks"][i] != actual["masks"][j]).sum()))
    print(
        f"{len(boxes)} pairs of IoU 0.9 and more: {max(boxes, default=0):.1e} pixels, {max(scores, default=0):.1e} of score, "
        f"{max(pixels, default=0)} pixels of a mask; {alone} detections without a partner"
    )


if __name__ == "__main__":
    main()
