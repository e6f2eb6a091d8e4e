"""The layers of a detector that have outputs for each class, known by their names in Detectron2's layout."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Names in a model, to the classes that the layer tells apart and how many of its outputs belong to one.
_LAYERS = (
    (re.compile(r"(^|\.)box_predictor(\.\d+)?\.cls_score$"), "thing_classes", 1),  # with one more output, of the background
    (re.compile(r"(^|\.)box_predictor(\.\d+)?\.bbox_pred$"), "thing_classes", 4),
    (re.compile(r"(^|\.)mask_head\.predictor$"), "thing_classes", 1),
    (re.compile(r"(^|\.)(sem_seg_head|auxiliary_head)\.predictor$"), "stuff_classes", 1),
)
_WORDS = {"thing_classes": "classes", "stuff_classes": "classes of pixels"}


@dataclass(frozen=True)
class ClassLayer:
    """A layer with outputs for each class, those of a class side by side.

    Attributes:
        kind: "thing_classes" or "stuff_classes".
        classes: how many it tells apart.
        outputs: of each class.
        shared: whether they might as well be one box or mask for whatever is found.
    """

    kind: str
    classes: int
    outputs: int
    shared: bool

    def reorder(self, value: Tensor, order: Sequence[int]) -> Tensor:
        """A parameter of the layer, (rows, ...), with its classes in another order: number i is what `order[i]` was."""
        of_classes, others = value[: self.classes * self.outputs], value[self.classes * self.outputs :]
        return torch.cat((of_classes.unflatten(0, (self.classes, self.outputs))[list(order)].flatten(0, 1), others))


def fit_classes(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    found_names: Mapping[str, list[str]],
    wanted_names: Mapping[str, list[str]],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What to do with the parameters of a file in a model that is to learn classes of its own.

    Args:
        found, wanted: the file's and the model's parameters, all of them.
        found_names, wanted_names: "thing_classes" and "stuff_classes" of both, as far as they are known.

    Returns:
        parameters in the order of the model's classes where the file has the same ones in another order, by name; and layer to
        the reason why it has to begin anew.
    """
    found_layers, wanted_layers = (class_layers({name: value.shape for name, value in each.items()}) for each in (found, wanted))
    reordered, fresh = {}, {}
    for layer, own in wanted_layers.items():
        theirs = found_layers.get(layer)
        names = [name for name in wanted if name.rpartition(".")[0] == layer]
        if theirs is None or not all(_differ_in_rows(found, wanted, name, layer) for name in names):
            continue  # fits as it is, or not at all
        old, new = found_names.get(own.kind, []), wanted_names.get(own.kind, [])
        if theirs.classes != own.classes:
            fresh[layer] = _counts(own.kind, theirs.classes, own.classes)
        elif not len(old) == len(new) == own.classes or old == new or own.shared:
            continue
        elif sorted(old) == sorted(new):
            order = [old.index(name) for name in new]
            reordered |= {name: theirs.reorder(found[name], order) for name in names}
        else:
            fresh[layer] = f"{_counts(own.kind, own.classes, own.classes)}: {_listed(old)} there, {_listed(new)} here"
    return reordered, fresh


def _differ_in_rows(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str, layer: str) -> bool:
    """Whether a parameter can be that of a layer with the outputs that the layer's weight has, and is otherwise the model's."""
    return (
        name in found
        and found[name].shape[1:] == wanted[name].shape[1:]
        and found[name].shape[:1] == found[f"{layer}.weight"].shape[:1]
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def class_layers(shapes: Mapping[str, Sequence[int]]) -> dict[str, ClassLayer]:
    """The layers by name among parameters of these shapes; not those with one box or mask for all of several classes."""
    rows = {}
    for name, shape in shapes.items():
        layer, _, part = name.rpartition(".")
        if part == "weight" and len(shape) > 1:
            rows[layer] = shape[0]
    counts, found = class_counts(shapes), {}
    for layer, count in rows.items():
        for pattern, kind, outputs in _LAYERS:
            is_score = layer.endswith(".cls_score")
            if pattern.search(layer) and count - is_score == outputs * counts.get(kind, 0):
                found[layer] = ClassLayer(kind, counts[kind], outputs, counts[kind] == 1 and not is_score)
    return found


def class_counts(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """How many "thing_classes" and "stuff_classes" a detector's parameters of these shapes tell apart; {} without its heads."""
    counts = {}
    for name, shape in shapes.items():
        layer, _, part = name.rpartition(".")
        for pattern, kind, _ in (_LAYERS[0], _LAYERS[-1]):
            if part == "weight" and len(shape) > 1 and pattern.search(layer):
                counts.setdefault(kind, shape[0] - (kind == "thing_classes"))
    return counts


def other_counts(in_file: Mapping[str, Sequence[int]], in_model: Mapping[str, Sequence[int]]) -> str:
    """In words, of how many classes a file and a model are, by the shapes of their parameters; "" if of as many."""
    file_counts, model_counts = class_counts(in_file), class_counts(in_model)
    return ", ".join(
        _counts(kind, file_counts[kind], model_counts[kind])
        for kind in _WORDS
        if kind in file_counts and kind in model_counts and file_counts[kind] != model_counts[kind]
    )


def _counts(kind: str, in_file: int, in_model: int) -> str:
    return f"{in_file} {_WORDS[kind]} in the file, {in_model} in the model"
