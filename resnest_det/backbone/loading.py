"""Loading weights: into a classifier or a detector, from a file of any known layout, all of it or not at all."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from resnest_det.backbone.variants import looks_like
from resnest_det.errors import UserError
from resnest_det.weights.class_layers import fit_classes, other_counts
from resnest_det.weights.names import find_backbone
from resnest_det.weights.weights import Weights, errors_naming, other_kind, read_weights

# What detectors of earlier versions saved beside their parameters; the configuration decides these.
_NOT_PARAMETERS = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors", "num_batches_tracked", "n_averaged")
_AUXILIARY = "auxiliary_head."  # of a semantic model: only training uses it
# Heads that a configuration adds to a model or leaves out.
_OPTIONAL_HEADS = {
    _AUXILIARY: "auxiliary head",
    "roi_heads.mask_head.": "mask head",
    "sem_seg_head.": "head for classes of pixels",
}


@dataclass
class LoadReport:
    """What `load_weights` did.

    Attributes:
        path: the file.
        layout: "detectron2", "timm", "mmdet", "gluon" or "caffe2".
        taken_off: in words, the key and the prefix of the names that stood around the parameters in the file; "" for none.
        loaded: names of the model's parameters and buffers that were set.
        left: parameter of the file that was not used, to the reason.
        fresh: parameter of the model that the file has nothing for, to the reason.
        new_classes: layer that stays as the model has it because the file's classes are others, to what differs.
        reordered: names of parameters that were put into the order of the model's classes.
        mismatched: one text for each parameter that should have fitted; empty unless mismatches were allowed.
    """

    path: str
    layout: str
    taken_off: str = ""
    loaded: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    new_classes: dict[str, str] = field(default_factory=dict)
    reordered: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def require_whole(self, why: str) -> None:
        """Refuse a file that leaves parameters of the model as they were; `why` says what needs all of them.

        Raises:
            UserError: it does.
        """
        missed = {name: reason for name, reason in self.fresh.items() if not name.startswith(_AUXILIARY)}
        if missed:
            first, reason = next(iter(missed.items()))
            raise UserError(
                f"weights {self.path} has nothing for {len(missed)} parameters of the model ({first}, …): {reason}; {why}"
            )

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} parameters and buffers from {self.path} ({self.layout} layout)"]
        if self.taken_off:
            parts.append(f"without {self.taken_off}")
        for reason in dict.fromkeys(self.new_classes.values()):
            layers = ", ".join(layer for layer, why in self.new_classes.items() if why == reason)
            parts.append(f"freshly initialised for other classes ({reason}): {layers}")
        if self.reordered:
            parts.append(f"put into the order of the model's classes: {_brief(self.reordered)}")
        for title, names in (("left in the file", self.left), ("freshly initialised", self.fresh)):
            for reason in dict.fromkeys(names.values()):
                parts.append(f"{title}: {_brief([name for name in names if names[name] == reason])}: {reason}")
        if self.mismatched:
            parts.append(f"did not fit: {_brief(self.mismatched)}")
        return "; ".join(parts)


def _brief(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def load_weights(model: nn.Module, path: str | os.PathLike, *, allow_mismatch: bool = False, use_ema: bool = True) -> LoadReport:
    """Load a checkpoint into a classifier, a feature extractor, a backbone or a detector.

    The file's layout (the authors' and timm's, Detectron2's, MMDetection's) is recognised by its parameter names, under whatever
    key and prefix training code put them. A file without detector heads sets a detector's backbone; a file of a detector sets
    all of it. Either everything that has to fit is copied, a classifier's head included, or nothing is.

    Args:
        model: on any device.
        path: a local file, see `read_checkpoint`; `resolve_weights` makes one of an address or a published name.
        allow_mismatch: load what fits, and report the rest in `LoadReport.mismatched`.
        use_ema: where the file has averaged weights beside the others, take those.

    Returns:
        What was loaded, left and freshly initialised, and why.

    Raises:
        UserError: the file cannot be used, or its parameters do not fit the model's (both shapes are listed).
    """
    return load_into(model, read_weights(path, use_ema), allow_mismatch=allow_mismatch)


def load_into(
    model: nn.Module,
    weights: Weights,
    *,
    allow_mismatch: bool = False,
    new_head: bool = False,
    classes: Mapping[str, list[str]] | None = None,
) -> LoadReport:
    """`load_weights` for weights that were read already.

    Args:
        new_head: a classifier's head need not be among them.
        classes: if a detector may learn other classes than the file's, its "thing_classes" and "stuff_classes" as far as they
            are known: layers with outputs for each class then stay as they are where the file has other classes, and are put
            into the order of these where the file has the same ones in another. A mask head, and one for classes of pixels,
            then stay as they are where the file has none.

    Raises:
        UserError: see `load_weights`.
    """
    targets = model.state_dict()
    found = find_backbone(targets)
    if found is None:
        raise UserError(f"a {type(model).__name__} has no ResNeSt backbone to load weights {weights.path} into")
    report = LoadReport(weights.path, weights.layout, weights.taken_off)

    prefix = found[1]
    wanted = {
        name if name.startswith("linear.") else prefix + name: (value, weights.origin[name])
        for name, value in weights.backbone.items()
    }
    same_detector = weights.is_detector and prefix == weights.prefix
    segments = weights.heads and prefix == "backbone." and any(name.startswith("sem_seg_head.") for name in targets)
    if segments:
        wanted |= {name: (value, weights.origin[name]) for name, value in weights.heads.items()}
    has_heads, placed = bool(segments), {name for _, name in wanted.values()}
    for name, value in weights.rest.items():
        if name in placed:
            continue
        elif any(part in name for part in _NOT_PARAMETERS):
            report.left[name] = "set by the configuration or counted anew"
        elif same_detector:
            wanted[name] = (value, name)
            has_heads = True
        else:
            report.left[name] = "not a part of the backbone"

    if has_heads and classes is not None:
        values = {name: value for name, (value, _) in wanted.items()}
        reordered, report.new_classes = fit_classes(values, targets, weights.class_names, classes)
        wanted |= {name: (value, wanted[name][1]) for name, value in reordered.items()}
        report.reordered = list(reordered)
    missing = [head for head in _OPTIONAL_HEADS if has_heads and not any(name.startswith(head) for name in wanted)]
    learned = [head for head in missing if head == _AUXILIARY or classes is not None]
    copies = _match(targets, wanted, prefix, report, has_heads, new_head, learned)
    if report.mismatched and not allow_mismatch:
        counts = other_counts(
            *({name: value.shape for name, value in each.items()} for each in (weights.state | weights.heads, targets))
        )
        with errors_naming(weights.path):
            raise UserError(_mismatch_message(report.mismatched, weights.backbone, targets, prefix, counts if has_heads else ""))
    with torch.no_grad():
        for name, value in copies.items():
            targets[name].copy_(value)
    report.loaded = list(copies)
    return report


def _match(
    targets: dict[str, Tensor], wanted: dict, prefix: str, report: LoadReport, has_heads: bool, new_head: bool, learned: list[str]
) -> dict[str, Tensor]:
    """What to copy where; everything else goes into the report. `learned`: of _OPTIONAL_HEADS, those that may begin anew."""
    copies = {}
    for head, title in _OPTIONAL_HEADS.items():
        if not any(name.startswith(head) for name in targets):
            for name in [name for name in wanted if name.startswith(head)]:
                report.left[wanted.pop(name)[1]] = f"the model has no {title}"
    built = {name.removeprefix(prefix).split(".")[0] for name in targets if name.startswith(prefix)}
    for name, (value, name_in_file) in wanted.items():
        part = name.removeprefix(prefix).split(".")[0]
        if name.rpartition(".")[0] in report.new_classes:
            continue
        elif name in targets:
            if value.shape == targets[name].shape:
                if problem := other_kind(value, targets[name]):
                    report.mismatched.append(f"{name} {problem}")
                else:
                    copies[name] = value
            else:
                report.mismatched.append(f"{name} {tuple(value.shape)} in the file, {tuple(targets[name].shape)} in the model")
        elif name.startswith("linear."):
            report.left[name_in_file] = "the model has no classification head"
        elif name.startswith(prefix) and part in ("res3", "res4", "res5") and part not in built:
            report.left[name_in_file] = "the model ends before this stage"
        elif name.endswith("num_batches_tracked"):
            report.left[name_in_file] = "the model's norms do not count batches"
        else:
            report.mismatched.append(f"{name} is not in the model")
    for name in targets:
        if name in wanted or any(part in name for part in _NOT_PARAMETERS):
            continue
        if name.startswith("linear.") and new_head:
            report.fresh[name] = "a new head was asked for"
        elif head := next((each for each in learned if name.startswith(each)), ""):
            report.fresh[name] = f"the file has no {_OPTIONAL_HEADS[head]}"
        elif "conv2_offset." in name:
            report.fresh[name] = "the file has no deformable convolutions; offsets start at zero"
        elif _is_backbone(name, prefix) or name.startswith("linear.") or has_heads:
            report.mismatched.append(f"{name} is not in the file")
        else:
            report.fresh[name] = "the file has only a backbone"
    return copies


def _is_backbone(name: str, prefix: str) -> bool:
    return name.startswith((prefix + "stem.", prefix + "res"))


def _mismatch_message(
    mismatched: list[str], backbone: dict[str, Tensor], targets: dict[str, Tensor], prefix: str, counts: str
) -> str:
    of_model = {name.removeprefix(prefix): value for name, value in targets.items() if _is_backbone(name, prefix)}
    in_file, in_model = looks_like(backbone), looks_like(of_model)
    message = f"they do not fit the model: {_brief(mismatched)}"
    if counts:
        message += f"; {counts}"
    if in_file and in_file != in_model:
        message += f"; the file looks like {' or '.join(in_file)}, the model like {' or '.join(in_model) or 'none of the family'}"
    return message
