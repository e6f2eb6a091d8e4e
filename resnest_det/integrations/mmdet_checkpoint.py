"""A detector's parameters under MMDetection's names, and back.

| part | here, as in Detectron2 | MMDetection |
|---|---|---|
| backbone | `backbone.bottom_up.` | `backbone.`, see `resnest_det.weights.names` |
| pyramid | `backbone.fpn_lateral2`, `backbone.fpn_output2` | `neck.lateral_convs.0`, `neck.fpn_convs.0` |
| proposals | `proposal_generator.rpn_head.objectness_logits` | `rpn_head.rpn_cls` |
| box head | `roi_heads.box_head.fc1`, `roi_heads.box_predictor.cls_score` | `roi_head.bbox_head.shared_fcs.0`, `.fc_cls` |
| mask head | `roi_heads.mask_head.mask_fcn1`, `.predictor` | `roi_head.mask_head.convs.0`, `.conv_logits` |
| semantic head | `sem_seg_head.p3.0`, `.predictor` | `semantic_head.conv_upsample_layers.1.conv.0`, `.conv_logits` |

Classes have the same order except in the semantic head: the class of all things together is first here and last there.
"""

import re

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from resnest_det.backbone.loading import load_into
from resnest_det.configuration.model import assemble_model, shapes_only
from resnest_det.errors import UserError
from resnest_det.weights.downloads import resolve_weights
from resnest_det.weights.names import find_backbone, from_own_names, to_own_names
from resnest_det.weights.weights import errors_naming, read_state, weights_of

BACKBONE = "backbone.bottom_up."
NOT_PARAMETERS = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors")

# (here, there). Braces hold the first number of a counter, and its step if that is not 1. {stage} is a cascade's stage with a
# dot before it, or nothing. A convolution's norm is its child here and its sibling there.
_CONVOLUTIONS = (
    ("backbone.fpn_lateral{2}", "neck.lateral_convs.{0}"),
    ("backbone.fpn_output{2}", "neck.fpn_convs.{0}"),
    ("proposal_generator.rpn_head.conv.conv{0}", "rpn_head.rpn_conv.{0}"),
    ("roi_heads.box_head{stage}.conv{1}", "roi_head.bbox_head{stage}.shared_convs.{0}"),
    ("roi_heads.mask_head.mask_fcn{1}", "roi_head.mask_head.convs.{0}"),
    ("sem_seg_head.p{2}.{0:2}", "semantic_head.conv_upsample_layers.{0}.conv.{0}"),
)
_LAYERS = (
    ("proposal_generator.rpn_head.conv", "rpn_head.rpn_conv"),
    ("proposal_generator.rpn_head.objectness_logits", "rpn_head.rpn_cls"),
    ("proposal_generator.rpn_head.anchor_deltas", "rpn_head.rpn_reg"),
    ("roi_heads.box_head{stage}.fc{1}", "roi_head.bbox_head{stage}.shared_fcs.{0}"),
    ("roi_heads.box_predictor{stage}.cls_score", "roi_head.bbox_head{stage}.fc_cls"),
    ("roi_heads.box_predictor{stage}.bbox_pred", "roi_head.bbox_head{stage}.fc_reg"),
    ("roi_heads.mask_head.deconv", "roi_head.mask_head.upsample"),
    ("roi_heads.mask_head.predictor", "roi_head.mask_head.conv_logits"),
    ("sem_seg_head.predictor", "semantic_head.conv_logits"),
)
_PARAMETER = r"\.(?P<parameter>weight|bias|running_mean|running_var|num_batches_tracked)"
_COUNTER = re.compile(r"\{(\d+)(?::(\d+))?\}")


def read_for_mmdet(cfg: CfgNode, weights: str) -> dict[str, Tensor]:
    """The tensors of a trained detector's checkpoint under MMDetection's names.

    Args:
        cfg: the detector's configuration.
        weights: what MODEL.WEIGHTS takes.

    Raises:
        UserError: the file cannot be read, or does not hold the whole detector.
    """
    path = resolve_weights(weights)
    state = read_state(path)
    _check_fits(cfg, state, path)
    with errors_naming(path):
        return to_mmdet_names(state)


def read_from_mmdet(cfg: CfgNode, path: str) -> dict[str, Tensor]:
    """The tensors of an MMDetection checkpoint under Detectron2's names.

    Args:
        cfg: configuration of the same detector here.
        path: the file, or its address.

    Raises:
        UserError: the file cannot be read, or holds another detector.
    """
    path = resolve_weights(path)
    state = read_state(path)
    with errors_naming(path):
        state = from_mmdet_names(state)
    _check_fits(cfg, state, path)
    return state


def _check_fits(cfg: CfgNode, state: dict[str, Tensor], path: str) -> None:
    with shapes_only():
        report = load_into(assemble_model(cfg), weights_of(state, path))
    report.require_whole("only a whole detector can be translated")


def to_mmdet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A detector's parameters and buffers under MMDetection's names.

    Args:
        state: the whole state dict of a built-in or Detectron2 model.

    Raises:
        UserError: one of them has no name in MMDetection.
    """
    backbone = {name[len(BACKBONE) :]: value for name, value in state.items() if name.startswith(BACKBONE)}
    translated = {f"backbone.{name}": value for name, value in from_own_names(backbone, "mmdet").items()}
    for name, value in state.items():
        if name.startswith(BACKBONE) or name.endswith(NOT_PARAMETERS):
            continue
        other = _to_mmdet(name, state)
        if other is None:
            raise UserError(f"parameter {name} has no name in MMDetection")
        translated[other] = _shift_classes(value, -1) if name.startswith("sem_seg_head.predictor.") else value
    return translated


def from_mmdet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_mmdet_names`.

    Args:
        state: the whole state dict of an MMDetection model with a ResNeSt or ResNet, a pyramid and R-CNN heads.

    Raises:
        UserError: the backbone is not in MMDetection's layout, or a parameter belongs to a part that no model here has.
    """
    found = find_backbone(state)
    if found != ("mmdet", "backbone.") and not (found == ("timm", "backbone.") and "backbone.conv1.weight" in state):
        raise UserError(
            "not a checkpoint of an MMDetection detector: it has no backbone.stem.0.weight (ResNeSt) and no "
            "backbone.conv1.weight (ResNet)"
        )
    backbone, origin, _, _ = to_own_names(state)
    translated = {BACKBONE + name: value for name, value in backbone.items()}
    for name in state.keys() - set(origin.values()):
        other = _from_mmdet(name)
        if other is None:
            hint = ""
            if name.startswith("roi_head.mask_head.0."):
                hint = ": it belongs to one of several mask heads, and a cascade in Detectron2 has only one"
            raise UserError(f"parameter {name} has no name in Detectron2{hint}")
        translated[other] = _shift_classes(state[name], 1) if name.startswith("semantic_head.conv_logits.") else state[name]
    return translated


def _shift_classes(value: Tensor, by: int) -> Tensor:
    return torch.roll(value, by, dims=0)


def _to_mmdet(name: str, state: dict[str, Tensor]) -> str | None:
    for own, other in _CONVOLUTIONS:
        found = re.fullmatch(_pattern(own) + r"(?P<norm>\.norm)?" + _PARAMETER, name)
        if found:
            child = "conv"
            if found["norm"]:
                # MMDetection names a norm by its kind.
                child = "bn" if f"{name[: -len(found['parameter'])]}running_mean" in state else "gn"
            return f"{_fill(own, other, found)}.{child}.{found['parameter']}"
    return _layer(name, _LAYERS)


def _from_mmdet(name: str) -> str | None:
    for own, other in _CONVOLUTIONS:
        found = re.fullmatch(_pattern(other) + r"\.(?P<child>conv|bn|gn)" + _PARAMETER, name)
        if found:
            norm = "" if found["child"] == "conv" else ".norm"
            return f"{_fill(other, own, found)}{norm}.{found['parameter']}"
    return _layer(name, tuple((other, own) for own, other in _LAYERS))


def _layer(name: str, pairs: tuple[tuple[str, str], ...]) -> str | None:
    for template, target in pairs:
        found = re.fullmatch(_pattern(template) + _PARAMETER, name)
        if found:
            return f"{_fill(template, target, found)}.{found['parameter']}"
    return None


def _pattern(template: str) -> str:
    pattern = _COUNTER.sub("COUNTER", template)
    pattern = re.escape(pattern).replace("COUNTER", r"(\d+)")
    return pattern.replace(r"\{stage\}", r"(?P<stage>\.\d+)?")


def _fill(template: str, target: str, found: re.Match) -> str:
    """`target` with the numbers found for `template`, converted to its own counting."""
    named = set(found.re.groupindex.values())
    numbers = [int(group) for i, group in enumerate(found.groups(), start=1) if i not in named and group is not None]
    positions = [(number - int(first)) // int(step or 1) for number, (first, step) in zip(numbers, _COUNTER.findall(template))]
    for position, counter in zip(positions, list(_COUNTER.finditer(target))):
        first, step = counter.groups()
        target = target.replace(counter[0], str(int(first) + position * int(step or 1)), 1)
    return target.replace("{stage}", found.groupdict().get("stage") or "")
