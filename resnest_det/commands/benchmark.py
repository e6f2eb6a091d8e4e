"""Time a detector and its backbone beside other implementations, in one run, on random images.

    benchmark.py --config-file mask_rcnn_ResNeSt50_FPN --device cpu --runs 5

It also measures what is installed: timm's model of the same variant (backbone only), and Detectron2 with the authors' wrapper
(package `resnest`), both with the same weights. The contenders take turns, so that other load on the machine slows all of
them; the figures are medians. A training step is forward, backward and an update with learning rate 0.
"""

import argparse
import ctypes
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from resnest_det.backbone.folding import fold_norms
from resnest_det.backbone.resnest import BLOCKS_PER_STAGE, ResNeSt
from resnest_det.backbone.variants import VARIANTS
from resnest_det.configuration.model import build_model, check_batch_norm, resolve_device
from resnest_det.configuration.reading import load_config
from resnest_det.errors import UserError

OURS = "resnest_det"
OURS_FOLDED = "resnest_det, norms folded, channels last"
OBJECTS = 10  # in each image
CANDIDATES = 500  # pairs of region and class above the score threshold; a trained model has some hundreds


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="a YAML file, or the name of a bundled recipe")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--size", default="800x1216", help="HEIGHTxWIDTH of the images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images in a training step (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each contender (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures of every run to FILE")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys to set")
    return parser.parse_args(arguments)


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

    def take_statistics(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].shape[-1] > 1:  # except inside split attention, where there is one value
            variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

    norms = [each for each in model.backbone.modules() if isinstance(each, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d))]
    hooks = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    model.eval().backbone((sample["image"][None].to(model.pixel_mean.device) - model.pixel_mean) / model.pixel_std)
    for hook in hooks:
        hook.remove()
    return model


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
    try:
        import resnest.d2

        models["detectron2, authors' wrapper"] = _detectron2_model(resnest.d2.add_resnest_config, cfg, weights)
        # The registry cannot hold two builders of one name.
        for name in ("build_resnest_backbone", "build_resnest_fpn_backbone"):
            BACKBONE_REGISTRY._obj_map.pop(name)
    except ImportError:
        pass
    from resnest_det.integrations.detectron2 import add_resnest_config

    models["detectron2, this backbone"] = _detectron2_model(add_resnest_config, cfg, weights)

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


def contenders_of(cfg: CfgNode, samples: list[dict], device: torch.device) -> dict[str, dict[str, Callable]]:
    """For each task (backbone, inference, training step), a function by contender that runs it once."""
    model = build_random_model(cfg, samples[0])
    check_batch_norm(model, len(samples))
    threshold = candidates_threshold(model, samples[:1])
    folded = fold_norms(model).to(memory_format=torch.channels_last)
    models = {OURS: (model, samples), OURS_FOLDED: (folded, samples)}
    detectron2_models, translate = build_detectron2(cfg, model.state_dict())
    for name, each in detectron2_models.items():
        models[name] = (each, [translate(sample) for sample in samples])
    backbones = {name: getattr(each.backbone, "bottom_up", each.backbone) for name, (each, _) in models.items()}
    if (timm_model := build_timm(backbones[OURS], cfg)) is not None:
        backbones["timm"] = timm_model.to(device)

    images = torch.randn(1, *samples[0]["image"].shape, device=device)
    tasks = {
        "backbone, one image": {name: inference_run(each, images) for name, each in backbones.items()},
        "inference, one image": {},
        f"training step, batch of {len(samples)}": {},
    }
    _, inference, training = tasks.values()
    for name, (each, inputs) in models.items():
        limit_candidates(each, threshold)
        inference[name] = inference_run(each, inputs[:1])
        if name != OURS_FOLDED:
            training[name] = training_run(each, inputs)
    return tasks


def inference_run(model: nn.Module, inputs) -> Callable:
    @torch.no_grad()
    def run() -> None:
        model.eval()(inputs)

    return run


def training_run(model: nn.Module, batch: list[dict]) -> Callable:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        sum(model.train()(batch).values()).backward()
        optimizer.step()

    return run


def measure(runs: dict[str, Callable], count: int, device: torch.device) -> dict[str, dict]:
    """Seconds of each run, and the memory a run takes at its peak, in MiB."""
    figures = {}
    for name, run in runs.items():
        run()  # keeps one-time set-up out of the figures
        figures[name] = {"memory_mib": peak_memory(run, device), "seconds": []}
    for _ in range(count):
        for name, run in runs.items():
            figures[name]["seconds"].append(seconds_of(run, device))
    for each in figures.values():
        each["median_seconds"] = statistics.median(each["seconds"])
    return figures


def seconds_of(run: Callable, device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(run: Callable, device: torch.device) -> float | None:
    """MiB that `run` takes at its peak, beyond what was held before it; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # return freed memory to the system, so that it does not count as held
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
        before = _resident("VmRSS")
        run()
        return (_resident("VmHWM") - before) / 1024
    except OSError:
        return None


def _resident(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def main(arguments: list[str]) -> None:
    args = parse_arguments(arguments)
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", args.size)
    if not size:
        raise UserError(f"--size {args.size}: expected HEIGHTxWIDTH such as 800x1216")
    if args.runs < 1 or args.batch < 1:
        raise UserError(f"--runs {args.runs} --batch {args.batch}: both must be at least 1")
    device = resolve_device(args.device)
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", str(device)])
    samples = make_samples(args.batch, int(size[1]), int(size[2]), cfg)
    with ExitStack() as stack:
        tasks = contenders_of(cfg, samples, device)
        if any(name.startswith("detectron2") for name in tasks["backbone, one image"]):
            from detectron2.utils.events import EventStorage

            stack.enter_context(EventStorage())
        results = {task: measure(runs, args.runs, device) for task, runs in tasks.items()}

    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{args.config_file}, {args.size}, torch {torch.__version__}, {machine}{load}, medians of {args.runs}")
    for task, figures in results.items():
        print(f"\n{task:<42}{'seconds':>9}{'speed':>9}{'MiB':>9}")
        for name, each in figures.items():
            speed = figures[OURS]["median_seconds"] / each["median_seconds"]
            memory = "" if each["memory_mib"] is None else f"{each['memory_mib']:.0f}"
            print(f"  {name:<40}{each['median_seconds']:9.4f}{speed:8.2f}x{memory:>9}")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
