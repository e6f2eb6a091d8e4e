#!/usr/bin/env python
"""Write MODEL_ZOO.md from the configs, the table of published detectors and docs/model_zoo_measurements.json.

    make_model_zoo.py                                          # count, and write the page
    make_model_zoo.py --measure mask_rcnn_ResNeSt50_FPN ...    # time these first, and save their figures

Recipes are timed on the CPU, one after the other; other load on the machine distorts the figures.
"""

from resnest_det.commands import run_tool  # isort: skip (must come before torch)

import argparse
import json
import math
import re
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d

from resnest_det.backbone.variants import VARIANTS
from resnest_det.commands import benchmark_networks as benchmark
from resnest_det.commands.benchmark_measuring import peak_memory, seconds_of
from resnest_det.configuration.model import assemble_model, shapes_only
from resnest_det.configuration.reading import load_config
from resnest_det.configuration.tables import tasks_of
from resnest_det.files import atomic_write
from resnest_det.inference.prepared import prepare_for_inference
from resnest_det.integrations.torchvision import BUILDERS
from resnest_det.model_zoo import TRAINED_DETECTORS
from resnest_det.weights.published import WEIGHT_FILES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "MODEL_ZOO.md"
MEASUREMENTS = ROOT / "docs" / "model_zoo_measurements.json"
SIZE = (800, 1216)
SOURCE = "https://github.com/zhanghang1989/ResNeSt/blob/master/d2/README.md"
OF_PIXELS = "https://github.com/zhanghang1989/PyTorch-Encoding/blob/master/docs/source/model_zoo/segmentation.rst"

GROUPS = {
    "Boxes": ("faster_rcnn", "cascade_rcnn"),
    "Boxes and masks": ("mask_rcnn", "cascade_mask_rcnn"),
    "Panoptic and semantic segmentation": ("panoptic", "semantic"),
    "Semantic segmentation on dilated networks": ("fcn", "deeplabv3_", "deeplabv3plus"),
}
CLASSIFIERS = """Published accuracy on ImageNet's validation images, in percent, of the weights that
`create_model(NAME, pretrained=True)` loads. The recipes train them ([docs/imagenet.md](docs/imagenet.md)):
`resnest-det train-classifier --config-file imagenet/NAME`. This project ran none of them on ImageNet.
"""
# Columns of time and memory: the name in the measurements, and the heading.
MEASURED = {"inference_seconds": "inference, s", "training_seconds": "training step, s", "training_memory_gib": "memory, GiB"}

INTRODUCTION = f"""# Model zoo

Written by `tools/make_model_zoo.py`; a test compares. Every recipe is a file of that name in `configs/` and is found by name from
any folder: `python tools/train_net.py --config-file NAME`, `resnest_det.model_zoo.get_config("NAME")`,
`get("NAME", trained=True)`.

- **AP, PQ**: *published* by the authors for COCO val2017 with their own code, in percent ([source][authors]). This project
  measured none of them. A dash: the authors published none.
- **pixel accuracy, mIoU**: likewise, of the validation images of ADE20K and PASCAL-Context in several sizes and mirrored
  ([source][pixels]); `TEST.AUG.ENABLED True` evaluates so.
- **params, GMACs**: counted by this package for one image of {SIZE[0]}x{SIZE[1]} pixels and the maximum number of regions.
- **inference, training step, memory**: measured by this project on images of {SIZE[0]}x{SIZE[1]} pixels: inference of one
  image; forward pass, backward pass and update with two; and the most memory that step takes. {{setup}}
- **weights**: what training starts from, `MODEL.WEIGHTS`. **trained**: the authors' detector, `get(..., trained=True)`. If one
  of their links is dead, put the file of that name into the cache folder that the error message names.

[authors]: {SOURCE}
[pixels]: {OF_PIXELS}
"""


def recipes() -> list[str]:
    return [path.stem for path in sorted((ROOT / "configs").glob("*.yaml")) if not path.stem.startswith("Base-")]


def count(cfg: CfgNode, size: tuple[int, int]) -> tuple[int, int]:
    """Learned values, and multiply-adds for an image of `size` (height, width), from shapes alone."""
    with shapes_only(), torch.no_grad():
        model = assemble_model(cfg).eval()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        _drop_norms(model)
        features, flops = _features(cfg, model, size)
        with FlopCounterMode(display=False) as counter:
            if hasattr(model, "sem_seg_head"):
                model.sem_seg_head(features)
            if hasattr(model, "roi_heads"):
                rpn, heads = model.proposal_generator, model.roi_heads
                rpn.rpn_head([features[name] for name in rpn.in_features])
                channels = features[heads.in_features[0]].shape[1]
                regions = torch.empty(cfg.MODEL.RPN.POST_NMS_TOPK_TEST, channels, *[heads.box_pooler.output_size] * 2)
                for head, predictor in zip(_stages(heads.box_head), _stages(heads.box_predictor)):
                    predictor(head(regions))
                if heads.mask_head is not None:
                    detections = torch.empty(cfg.TEST.DETECTIONS_PER_IMAGE, channels, *[heads.mask_pooler.output_size] * 2)
                    heads.mask_head(detections, torch.zeros(len(detections), dtype=torch.int64))
    return parameters, (flops + counter.get_total_flops()) // 2


_known: dict[str, tuple[dict[str, Tensor], int]] = {}


def _features(cfg: CfgNode, model: nn.Module, size: tuple[int, int]) -> tuple[dict[str, Tensor], int]:
    """The backbone's maps, without values, and its floating-point operations; recipes share backbones, each is counted once."""
    channels = len(cfg.MODEL.PIXEL_MEAN)
    key = repr((cfg.MODEL.BACKBONE, cfg.MODEL.RESNETS, cfg.MODEL.FPN, channels, size))
    if key not in _known:
        with FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv_flops}) as counter:
            features = model.backbone(torch.empty(1, channels, *size))
        _known[key] = features, counter.get_total_flops()
    return _known[key]


def _drop_norms(model: nn.Module) -> None:
    """Without shapes of their own or multiply-adds that are counted, they take half of the counter's time."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.BatchNorm2d, nn.GroupNorm, FrozenBatchNorm2d)):
                setattr(module, name, nn.Identity())


def _deform_conv_flops(images, weight, *others, out_shape, **more) -> int:
    # The convolution without the interpolation, as this package makes fvcore count it.
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _stages(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def measure(name: str) -> dict[str, float]:
    """Seconds of the second inference and of the first training step, and the GiB that step takes, for images of `SIZE`."""
    cpu = torch.device("cpu")
    cfg = load_config(name, ["MODEL.DEVICE", "cpu"])
    samples = benchmark.make_samples(2, *SIZE, cfg)
    model = benchmark.build_random_model(cfg, samples[0])
    benchmark.limit_candidates(model, benchmark.candidates_threshold(model, samples[:1]))
    step, infer = (
        benchmark.training_run(model, samples),
        benchmark.inference_run(prepare_for_inference(model, "fp32"), samples[:1]),
    )
    infer()
    seconds = seconds_of(infer, cpu)
    del infer
    steps = []
    memory = peak_memory(lambda: steps.append(seconds_of(step, cpu)), cpu)
    figures = {"inference_seconds": seconds, "training_seconds": steps[0]}
    if memory is not None:
        figures["training_memory_gib"] = memory / 1024
    return {key: float(f"{figure:.3g}") for key, figure in figures.items()}


def page(measurements: dict) -> str:
    """The text of MODEL_ZOO.md."""
    parts = [INTRODUCTION.replace("{setup}", measurements["setup"])]
    for title, beginnings in GROUPS.items():
        names = [recipe for beginning in beginnings for recipe in sorted(recipes(), key=_depth) if recipe.startswith(beginning)]
        parts.append(f"## {title}\n\n{table(names, measurements['recipes'])}")
    parts.append("\\* With multi-scale testing on test-dev the authors published 53.30 box AP and 47.10 mask AP for it.\n")
    parts.append(f"## Classifiers\n\n{CLASSIFIERS}\n{classifiers_table()}")
    parts.append(f"## What can be built in other hosts\n\n{hosts_table()}")
    return "\n".join(parts)


def classifiers_table() -> str:
    """The published weights, and the recipes of `configs/imagenet` that their networks are trained with."""
    rows = [["model", "top-1", "top-5", "crop", "recipes"], ["---"] * 5]
    for name, variant in VARIANTS.items():
        published = variant.published
        files = sorted((ROOT / "configs" / "imagenet").glob(f"{name}.yaml")) + sorted(
            (ROOT / "configs" / "imagenet").glob(f"{name}_pytorch.yaml")
        )
        top5 = "–" if published.top5 is None else f"{published.top5:.2f}"
        rows.append([name, f"{published.top1:.2f}", top5, str(published.image_size), _linked(files)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def hosts_table() -> str:
    """Hosts and what is built in them, by the names under which it is found there."""
    folders = {host: sorted((ROOT / "configs" / host).glob("[a-z]*")) for host in ("detectron2", "mmdet", "transformers")}
    rows = [["host", "by", "name"], ["---"] * 3]
    rows += [
        [
            "[Detectron2](docs/detectron2.md)",
            "`train_net.py --engine detectron2`",
            "every recipe above but `fcn_*` and `deeplabv3_*`",
        ]
    ]
    rows += [["", "Detectron2's own heads", _linked(folders["detectron2"])]]
    rows += [["[MMDetection](docs/mmdetection.md)", "its `train.py`", _linked(folders["mmdet"])]]
    builders = [f"`{name}`" for name in sorted(BUILDERS)]
    rows += [["[torchvision](docs/torchvision.md)", "`torchvision.models.get_model`", ", ".join(builders)]]
    rows += [["", "`to_torchvision`", "every recipe of Faster and Mask R-CNN above, trained"]]
    rows += [["[transformers](docs/transformers.md)", "`train_transformers.py`", _linked(folders["transformers"])]]
    rows += [["", "`AutoModelForImageClassification`, `AutoBackbone`", ", ".join(f"`{name}`" for name in VARIANTS)]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _linked(paths: list[Path]) -> str:
    return ", ".join(f"[{path.stem}]({path.relative_to(ROOT)})" for path in paths)


def table(names: list[str], measured: dict[str, dict]) -> str:
    configs = {name: load_config(name) for name in names}
    masks = any(cfg.MODEL.MASK_ON for cfg in configs.values())
    panoptic = any(tasks_of(cfg).panoptic for cfg in configs.values())
    objects = any(tasks_of(cfg).objects for cfg in configs.values())
    headings = [
        "recipe",
        "params, M",
        "GMACs",
        *(["box AP"] if objects else ["pixel accuracy", "mIoU"]),
        *(["mask AP"] if masks else []),
        *(["PQ"] if panoptic else []),
        *MEASURED.values(),
        "weights",
        "trained",
    ]
    rows = [headings, ["---"] * len(headings)]
    for name in names:
        own, trained = measured.get(name, {}), TRAINED_DETECTORS.get(name)
        figures = [
            *([trained and trained.box_ap] if objects else [trained and trained.pixel_accuracy, trained and trained.mean_iou]),
            *([trained and trained.mask_ap] if masks else []),
            *([trained and trained.panoptic_quality] if panoptic else []),
        ]
        star = "\\*" if name == "cascade_mask_rcnn_ResNeSt200_FPN_dcn_3x" else ""
        parameters, multiply_adds = count(configs[name], SIZE)
        rows.append(
            [
                f"[{name}](configs/{name}.yaml){star}",
                f"{parameters / 1e6:.2f}",
                f"{multiply_adds / 1e9:.1f}",
                *(f"{figure:.2f}" if figure else "–" for figure in figures),
                *(f"{own[key]:.3g}" if key in own else "not measured" for key in MEASURED),
                f"`{configs[name].MODEL.WEIGHTS}`",
                f"[file]({WEIGHT_FILES[trained.weights].mirrors[0]})" if trained else "–",
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _depth(recipe: str) -> tuple:
    """A sorting key: plain ResNets first, then by dataset and depth, deformable convolution last."""
    network, depth, rest = re.fullmatch(r".*_(ResNeS?t)([0-9]+)(.*)", recipe).groups()
    return network == "ResNeSt", "" if "FPN" in rest else rest, int(depth), "dcn" in recipe


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", default=[], choices=recipes(), metavar="RECIPE", help="recipes to time first")
    names = parser.parse_args(arguments).measure
    measurements = json.loads(MEASUREMENTS.read_text())
    for name in names:
        measurements["recipes"][name] = measure(name)
        print(name, measurements["recipes"][name], flush=True)
        with atomic_write(MEASUREMENTS) as file:
            file.write(json.dumps(measurements, indent=2, sort_keys=True) + "\n")
    with atomic_write(PAGE) as file:
        file.write(page(measurements))


if __name__ == "__main__":
    run_tool(main)
