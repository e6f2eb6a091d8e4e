"""What a host makes of a case, as flat arrays: the content of the golden files, and how two of them are compared."""

from collections.abc import Callable, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import nn

from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.model import build_model
from tests.helpers.cases import make_samples, overrides
from tests.helpers.fill import fill, uniform

LEARNING_RATE = 0.01
SAMPLES_PER_MAP = 200
SAMPLES_OF_LOGITS = 2000

# Largest difference allowed, by what the array is; relative ones are fractions of the reference.
BOX_TOLERANCE = 0.01  # pixels
SCORE_TOLERANCE = 1e-4
FEATURE_TOLERANCE = 1e-4  # relative to the largest value of the map
LOSS_TOLERANCE = 1e-4  # relative
# Relative to the length of the parameter's change. Another processor rounds otherwise, and one activation that falls on the other
# side of a ReLU moves a small layer's change by up to 0.6 % (seen with scalar and AVX2 kernels). In one process it is 1e-4.
STEP_TOLERANCE = 1e-2
SAME_PROCESS = 0.1  # fraction of every tolerance that is enough beside Detectron2 in one process
MASK_AGREEMENT = 0.999  # of the pixels, in masks and panoptic maps


def observe_builtin(case: str) -> dict[str, np.ndarray]:
    """The built-in detector's answers to `case`."""
    model = build_builtin(case)
    samples = make_samples(case)

    def propose(features):
        return [tuple(image) for image in model.proposal_generator(features, model.preprocess(samples)[1])[0]]

    return observe(
        model,
        features=lambda: model.backbone(model.preprocess(samples)[0]),
        propose=propose if hasattr(model, "proposal_generator") else None,
        predict=lambda: model(samples),
        losses=lambda: model(samples),
    )


def build_builtin(case: str) -> nn.Module:
    """The built-in detector of `case`, filled."""
    cfg = default_config()
    cfg.merge_from_list(overrides(case))
    model = build_model(cfg)
    fill(model)
    return model


def observe(
    model: nn.Module, *, features: Callable, propose: Callable | None, predict: Callable, losses: Callable
) -> dict[str, np.ndarray]:
    """Run a host's model in evaluation and for one training step.

    Args:
        features: gives pyramid maps by name.
        propose: of these maps, (boxes, logits) for each image; None where the model proposes nothing.
        predict: gives for each image a dict of what there is of `boxes`, `scores`, `classes`, `masks`, `sem_seg`, `panoptic_seg`.
        losses: gives the losses by name.
    """
    result = {}
    model.eval()
    with torch.no_grad():
        maps = features()
        for name, values in maps.items():
            flat = values.flatten().numpy()
            result[f"features/{name}"] = flat[np.linspace(0, flat.size - 1, min(flat.size, SAMPLES_PER_MAP)).astype(int)]
        for image, (boxes, logits) in enumerate(propose(maps) if propose else ()):
            result[f"proposals/{image}/boxes"] = boxes.numpy()
            result[f"proposals/{image}/logits"] = logits.numpy()
        for image, prediction in enumerate(predict()):
            for name in {"boxes", "scores", "classes"} & prediction.keys():
                result[f"detections/{image}/{name}"] = prediction[name].numpy()
            if "masks" in prediction:
                result |= pack_masks(f"detections/{image}", prediction["masks"])
            if "sem_seg" in prediction:
                flat = prediction["sem_seg"].flatten().numpy()
                result[f"semantic/{image}/logits"] = flat[np.linspace(0, flat.size - 1, SAMPLES_OF_LOGITS).astype(int)]
                result[f"semantic/{image}/size"] = np.array(prediction["sem_seg"].shape)
            if "panoptic_seg" in prediction:
                panoptic, segments = prediction["panoptic_seg"]
                result[f"panoptic/{image}/map"] = panoptic.numpy().astype(np.uint8)
                result[f"panoptic/{image}/segments"] = np.array(
                    [[s["id"], s["isthing"], s["category_id"], s.get("instance_id", -1)] for s in segments]
                )
                result[f"panoptic/{image}/areas"] = np.array([s["area"] for s in segments if not s["isthing"]])
    model.train()
    named_losses = losses()
    for name, loss in named_losses.items():
        result[f"losses/{name}"] = loss.detach().numpy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    sum(named_losses.values()).backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        change = (tensor - before[name]).double().numpy()
        # Length, and the component along a fixed direction: a change of another direction does not pass as the same.
        result[f"step/{name}"] = np.array([np.linalg.norm(change), (change * uniform(name, change.shape)).sum()])
    return result


def pack_masks(prefix: str, masks: torch.Tensor) -> dict[str, np.ndarray]:
    """Run lengths of (D, height, width) masks as one array of bytes, with the lengths of its parts."""
    encoded = [mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"] for mask in masks]
    return {
        f"{prefix}/mask_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        f"{prefix}/mask_lengths": np.array([len(counts) for counts in encoded]),
        f"{prefix}/mask_size": np.array(masks.shape[1:]),
    }


def unpack_masks(prefix: str, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The inverse of `pack_masks`: one (height, width) array for each mask."""
    data, size = arrays[f"{prefix}/mask_bytes"].tobytes(), arrays[f"{prefix}/mask_size"].tolist()
    ends = np.cumsum(arrays[f"{prefix}/mask_lengths"]).tolist()
    return [mask_util.decode({"size": size, "counts": data[start:end]}) for start, end in zip([0, *ends], ends)]


def differences(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """For each kind of array the largest difference as a fraction of what is allowed; below 1 means equal.

    Names and shapes must be the same, otherwise an assertion fails.
    """
    assert sorted(actual) == sorted(expected)
    worst: dict[str, float] = {}
    for name, reference in expected.items():
        kind, last = name.split("/")[0], name.split("/")[-1]
        if last in ("mask_bytes", "mask_lengths"):
            continue
        assert actual[name].shape == reference.shape, f"{name}: {actual[name].shape} for {reference.shape}"
        if last == "mask_size":
            kind, ratio = "masks", _mask_difference(name.rsplit("/", 1)[0], actual, expected)
        elif reference.size == 0:
            continue
        elif last == "map":
            ratio = (actual[name] != reference).mean() / (1 - MASK_AGREEMENT)
        else:
            ratio = np.abs(actual[name].astype(np.float64) - reference).max() / _allowed(name, reference)
        what = f"{kind}/{last}" if kind in ("proposals", "detections", "semantic", "panoptic") else kind
        worst[what] = max(worst.get(what, 0.0), float(ratio))
    return worst


def _allowed(name: str, reference: np.ndarray) -> float:
    kind, last = name.split("/")[0], name.split("/")[-1]
    if kind == "features":
        return FEATURE_TOLERANCE * np.abs(reference).max()
    if kind == "losses":
        return LOSS_TOLERANCE * abs(float(reference)) + 1e-7
    if kind == "step":
        return STEP_TOLERANCE * reference[0] + 1e-6
    if last == "boxes":
        return BOX_TOLERANCE
    if last == "areas":
        return (1 - MASK_AGREEMENT) * reference.sum()
    return 0.5 if last in ("classes", "segments", "size") else SCORE_TOLERANCE * max(1.0, np.abs(reference).max())


def _mask_difference(prefix: str, actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    pairs: Sequence = list(zip(unpack_masks(prefix, actual), unpack_masks(prefix, expected), strict=True))
    return max(((a != b).mean() for a, b in pairs), default=0.0) / (1 - MASK_AGREEMENT)
