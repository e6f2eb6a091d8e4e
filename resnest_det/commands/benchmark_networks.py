"""The networks that `resnest-det benchmark` measures: backbone, detector and training step, of this package and of others."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d

from resnest_det.backbone.loading import load_into
from resnest_det.backbone.resnest import BLOCKS_PER_STAGE, ResNeSt
from resnest_det.backbone.variants import VARIANTS
from resnest_det.commands.benchmark_measuring import Task
from resnest_det.configuration.model import build_model, check_batch_norm
from resnest_det.errors import UserError
from resnest_det.inference.prepared import prepare_for_inference, usable_precision
from resnest_det.weights.weights import weights_of

OURS = "resnest_det"
PREPARED = "resnest_det, prepared"
OBJECTS = 10  # in each image
CANDIDATES = 500  # pairs of region and class above the score threshold; a trained model has some hundreds


def make_samples(count: int, height: int, width: int, cfg: CfgNode) -> list[dict]:
    """Images of noise with boxes, polygons and pixel labels; the same in every run."""
    rng, samples = np.random.default_rng(0), []
    for seed in range(count):
        corner = rng.uniform(0, 0.6, (OBJECTS, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, (OBJECTS, 2))], 1) * (width, height, width, height)
        samples.append(
            {
                "image": torch.from_numpy(rng.integers(0, 256, (len(cfg.MODEL.PIXEL_MEAN), height, width), dtype=np.uint8)),
                "height": height,
                "width": width,
                "seed": seed,
                "target": {
                    "boxes": torch.from_numpy(boxes).float(),
                    "labels": torch.from_numpy(rng.integers(0, cfg.MODEL.ROI_HEADS.NUM_CLASSES, OBJECTS)),
                    "masks": [[box[[0, 1, 2, 1, 2, 3, 0, 3]]] for box in boxes],
                    "sem_seg": torch.from_numpy(rng.integers(0, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (height, width))),
                },
            }
        )
    return samples


@torch.no_grad()
def build_random_model(cfg: CfgNode, sample: dict) -> nn.Module:
    """The model with random weights and norms that have the statistics of `sample`, without which a deep ResNet overflows."""
    model = build_model(cfg)

    images = (sample["image"][None].to(model.pixel_mean.device) - model.pixel_mean) / model.pixel_std
    multiple = model.backbone.size_divisibility
    padding = [-images.shape[3] % multiple, -images.shape[2] % multiple]
    images = nn.functional.pad(images, (0, padding[0], 0, padding[1]))
    take_statistics(model.backbone, lambda: model.eval().backbone(images))
    return model


def take_statistics(network: nn.Module, run: Callable) -> None:
    """Give the norms of `network` the statistics of what `run` passes through it."""

    def note(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].shape[-1] > 1:  # except inside split attention, where there is one value
            variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

    kinds = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
    hooks = [each.register_forward_pre_hook(note) for each in network.modules() if isinstance(each, kinds)]
    run()
    for hook in hooks:
        hook.remove()


def candidates_threshold(model: nn.Module, samples: list[dict]) -> float | None:
    """The score that `CANDIDATES` pairs of region and class reach; random weights score all below the usual threshold."""
    if not hasattr(model, "roi_heads"):
        return None
    predictor, kept = model.roi_heads.final_predictor, []
    hook = predictor.register_forward_hook(lambda module, inputs, outputs: kept.append(outputs[0].softmax(1)[:, :-1].flatten()))
    with torch.no_grad():
        model.eval()(samples)
    hook.remove()
    return kept[-1].sort(descending=True).values[:CANDIDATES][-1].item()


def limit_candidates(model: nn.Module, threshold: float | None) -> None:
    """Make `model`, of any host, drop what scores below `threshold`; None does nothing."""
    if threshold is not None:
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            predictor.score_threshold = predictor.test_score_thresh = threshold


def build_detectron2(cfg: CfgNode, weights: Mapping) -> tuple[dict[str, nn.Module], Callable]:
    """Detectron2's models with the authors' wrapper and with this backbone, if installed, and a function that translates
    samples."""
    models = {}
    try:
        from detectron2.modeling import BACKBONE_REGISTRY
        from detectron2.structures import Boxes, Instances, PolygonMasks
    except ImportError:
        return models, None
    from resnest_det.integrations import detectron2 as own

    hosts = {"detectron2, this backbone": own}
    names = ("build_resnest_backbone", "build_resnest_fpn_backbone")
    registered = BACKBONE_REGISTRY._obj_map  # it cannot hold two builders of one name, and a module registers its own but once
    for name in names:
        registered.pop(name)
    with suppress(ImportError):
        from resnest import d2 as authors

        hosts = {"detectron2, authors' wrapper": authors} | hosts
    for title, module in hosts.items():
        registered.update((name, getattr(module, name)) for name in names)
        models[title] = _detectron2_model(module.add_resnest_config, cfg, weights)

    def translate(sample: dict) -> dict:
        target = sample["target"]
        instances = Instances(
            tuple(sample["image"].shape[1:]),
            gt_boxes=Boxes(target["boxes"]),
            gt_classes=target["labels"],
            gt_masks=PolygonMasks(target["masks"]),
        )
        return {
            "image": sample["image"],
            "height": sample["height"],
            "width": sample["width"],
            "instances": instances,
            "sem_seg": target["sem_seg"],
        }

    return models, translate


def _detectron2_model(add_resnest_config: Callable, cfg: CfgNode, weights: Mapping) -> nn.Module:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model as build

    theirs = get_cfg()
    add_resnest_config(theirs)
    _merge_known(theirs, cfg)
    model = build(theirs)
    missing, _ = model.load_state_dict(weights, strict=False)
    # Detectron2's frozen norms keep a counter of batches, on which no output depends.
    other = [name for name in missing if not re.search(r"pixel_mean|pixel_std|cell_anchors|num_batches_tracked", name)]
    if other:
        raise UserError(f"Detectron2's model of this configuration has another parameter: {other[0]}")
    return model


def _merge_known(target: CfgNode, source: CfgNode) -> None:
    for key in source.keys() & target.keys():
        if isinstance(source[key], CfgNode):
            _merge_known(target[key], source[key])
        else:
            target[key] = source[key]


def build_timm(bottom_up: ResNeSt, cfg: CfgNode) -> nn.Module | None:
    """timm's feature extractor of the variant that the configuration describes."""
    try:
        import timm
    except ImportError:
        return None
    resnets = cfg.MODEL.RESNETS
    if (resnets.WIDTH_PER_GROUP, resnets.RES2_OUT_CHANNELS) != (64, 256):  # narrower than any
        return None
    shape = (resnets.RADIX, resnets.NUM_GROUPS, resnets.BOTTLENECK_WIDTH, resnets.AVD_FIRST)
    for variant in VARIANTS.values():
        same = variant.blocks == BLOCKS_PER_STAGE[resnets.DEPTH] and shape == (
            variant.radix,
            variant.groups,
            variant.bottleneck_width,
            variant.avd_first,
        )
        if same and variant.published.aliases and not any(resnets.DEFORM_ON_PER_STAGE):
            indices = [i for i, name in enumerate(("stem", "res2", "res3", "res4", "res5")) if name in bottom_up.out_features]
            return timm.create_model(variant.published.aliases[0], features_only=True, out_indices=indices)
    return None


def of_backbone(cfg: CfgNode, image_size: tuple[int, int], device: torch.device) -> Task:
    """Features of one image, with timm's weights where timm is installed and has the variant."""
    torch.manual_seed(0)
    images = torch.randn(1, len(cfg.MODEL.PIXEL_MEAN), *image_size, device=device)
    model = build_model(cfg).backbone
    model = getattr(model, "bottom_up", model)
    runs, skipped, reference = {}, [], OURS
    theirs = build_timm(model, cfg)
    if theirs is None:
        skipped.append("timm is not installed, or does not have the variant: skipped")
        with torch.no_grad():
            take_statistics(model, lambda: model.eval()(images))
    else:
        theirs = theirs.to(device).eval()
        with torch.no_grad():
            take_statistics(theirs, lambda: theirs(images))
        state = {name: value for name, value in theirs.state_dict().items() if name.split(".")[0] != "fc"}
        load_into(model, weights_of(state, "timm"))
        reference = "timm"
        runs["timm"] = inference_run(theirs, images)
    runs[OURS] = inference_run(model, images)
    runs[PREPARED] = inference_run(prepare_for_inference(model, "fp32"), images)
    if (precision := usable_precision("auto", device)) != "fp32":
        runs[f"{PREPARED}, {precision}"] = inference_run(prepare_for_inference(model, precision), images)
    else:
        skipped.append(f"bf16: this {device.type} has no instructions for it: skipped")
    return Task(
        f"backbone, one image of {images.shape[2]}x{images.shape[3]}", runs, reference, far_maps, operations(runs[OURS]), skipped
    )


def of_detector(cfg: CfgNode, samples: list[dict], device: torch.device) -> Task:
    """Objects of one image."""
    models, skipped = _models(cfg, samples)
    runs = {name: inference_run(each, inputs[:1]) for name, (each, inputs) in models.items()}
    model = models[OURS][0]
    runs[PREPARED] = inference_run(prepare_for_inference(model, "fp32"), samples[:1])
    if (precision := usable_precision("auto", device)) != "fp32":
        runs[f"{PREPARED}, {precision}"] = inference_run(prepare_for_inference(model, precision), samples[:1])
    reference = next((name for name in runs if name.startswith("detectron2")), OURS)
    height, width = samples[0]["image"].shape[1:]
    return Task(f"detector, one image of {height}x{width}", runs, reference, far_scores, operations(runs[OURS]), skipped)


def of_step(cfg: CfgNode, samples: list[dict], device: torch.device) -> Task:
    """A training step: forward, backward and an update with learning rate 0."""
    models, skipped = _models(cfg, samples)
    check_batch_norm(models[OURS][0].train(), len(samples))
    runs = {name: training_run(each, inputs) for name, (each, inputs) in models.items()}
    reference = next((name for name in runs if name.startswith("detectron2")), OURS)
    height, width = samples[0]["image"].shape[1:]
    title = f"training step, {len(samples)} images of {height}x{width}"
    # Proposals are sampled at random: losses are near each other, not the same.
    return Task(title, runs, reference, far_losses, operations(runs[OURS]), skipped)


def _models(cfg: CfgNode, samples: list[dict]) -> tuple[dict[str, tuple[nn.Module, list]], list[str]]:
    """The detectors of all hosts, with the same weights, and the samples as each takes them."""
    model = build_random_model(cfg, samples[0])
    threshold = candidates_threshold(model, samples[:1])
    models, skipped = {OURS: (model, samples)}, []
    theirs, translate = build_detectron2(cfg, model.state_dict())
    if not theirs:
        skipped.append("Detectron2 is not installed: skipped")
    elif len(theirs) < 2:
        skipped.append("the authors' wrapper (package resnest) is not installed: skipped")
    for name, each in theirs.items():
        models[name] = (each, [translate(sample) for sample in samples])
    for each, _ in models.values():
        limit_candidates(each, threshold)
    return models, skipped


def operations(run: Callable) -> float:
    """Floating point operations of a run: those of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def far_maps(found, expected) -> float:
    """The largest difference of two contenders' last maps, as a part of the largest value."""
    found, expected = (list(each.values() if isinstance(each, Mapping) else each)[-1] for each in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max())


def far_scores(found, expected) -> float:
    """The largest difference of the scores of two contenders' best objects; of classes of pixels the part that differs."""
    found, expected = (_scores(each[0]) for each in (found, expected))
    count = min(len(found), len(expected))
    return float((found[:count] - expected[:count]).abs().max()) if count else 0.0


def _scores(result) -> torch.Tensor:
    result = result.get("instances", result)
    scores = result["scores"] if isinstance(result, Mapping) else result.scores
    return scores.sort(descending=True).values


def far_losses(found: float, expected: float) -> float:
    """The difference of two losses, as a part of the second."""
    return abs(found - expected) / abs(expected)


def inference_run(model: nn.Module, inputs) -> Callable:
    @torch.no_grad()
    def run():
        return model.eval()(inputs)

    return run


def training_run(model: nn.Module, batch: list[dict]) -> Callable:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def run() -> float:
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = sum(model.train()(batch).values())
        loss.backward()
        optimizer.step()
        return loss.item()

    return run
