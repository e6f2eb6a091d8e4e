"""What the classes of a model are called: by its checkpoint, else by its configuration, else by number."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from resnest_det.configuration.tables import tasks_of
from resnest_det.data.annotation_files import check_text
from resnest_det.data.semantic import class_color
from resnest_det.errors import UserError, nearest, shown

logger = logging.getLogger(__name__)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """The classes of objects, or those of pixels, in the order of the model's outputs.

    Attributes:
        names: one of each.
        ids: of each as the data had them, `category_id` in COCO's files.
        colors: (R, G, B) of each.
    """

    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    colors: tuple[Color, ...] = ()


@dataclass(frozen=True)
class Classes:
    """The classes of objects (`things`) and of pixels (`stuff`); a panoptic model has class 0 of the latter for all things."""

    things: Kind = Kind()
    stuff: Kind = Kind()


def classes_of(cfg: CfgNode, trained_on: object, source: str) -> Classes:
    """The classes of a configured model.

    Args:
        trained_on: what a checkpoint has under this name; None where there is none.
        source: the checkpoint, for messages.

    Raises:
        UserError: what the checkpoint has is no list of classes, or not of as many as the model has.
    """
    tasks = tasks_of(cfg)
    counts = {
        "thing": cfg.MODEL.ROI_HEADS.NUM_CLASSES if tasks.objects else 0,
        "stuff": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES if tasks.pixels else 0,
    }
    said = trained_on if isinstance(trained_on, Mapping) else {}
    kinds = {}
    for kind, count in counts.items():
        names = said.get(f"{kind}_classes")
        ids, colors = said.get(f"{kind}_ids"), said.get(f"{kind}_colors")
        if names is None:
            names = getattr(cfg.DATASETS, f"{kind.upper()}_CLASSES")
            ids = getattr(cfg.DATASETS, f"{kind.upper()}_IDS") or None
            if len(names) != count:  # of the data of an earlier run, say
                names = ids = None
        kinds[kind] = _kind(kind, count, names, ids, colors, source) if count else Kind()
    return Classes(kinds["thing"], kinds["stuff"])


def _kind(kind: str, count: int, names: object, ids: object, colors: object, source: str) -> Kind:
    where = f"{source}: 'trained_on'"
    if names is None:
        logger.warning("%s: nothing says what its classes are called, so they are called by number", source)
        names, ids = [f"{kind} {index}" for index in range(count)], list(range(count))
    if not _list_of(names, str) or len(names) != count:
        raise UserError(f"{where}: {kind}_classes {shown(names)} are not the names of {count} classes, as many as the model has")
    for name in names:
        check_text(name, f"{where}: {kind}_classes:")
    # Of a panoptic model class 0 of the pixels, all things together, has no id.
    if ids is None:
        ids = list(range(count))
    elif kind == "stuff" and isinstance(ids, (list, tuple)) and len(ids) == count - 1:
        ids = [0, *ids]
    if not _list_of(ids, int) or len(ids) != count:
        raise UserError(f"{where}: {kind}_ids {shown(ids)} are not the ids of {count} classes, as many as the model has")
    if not isinstance(colors, (list, tuple)) or len(colors) != count:
        colors = [None] * count
    colors = [class_color(color, index, f"{where}: {kind}_colors") for index, color in enumerate(colors)]
    return Kind(tuple(names), tuple(ids), tuple(colors))


def _list_of(values: object, kind: type) -> bool:
    return isinstance(values, (list, tuple)) and all(type(value) is kind for value in values)


def indices_of(wanted: Sequence[str], classes: Classes) -> list[int]:
    """The classes of objects with these names, or ids in digits.

    Raises:
        UserError: there is none of that name; the message lists some.
    """
    names, ids = classes.things.names, [str(each) for each in classes.things.ids]
    found = []
    for name in wanted:
        if name not in names and name not in ids:
            near = nearest(name, names) or list(names[:10])
            raise UserError(f"the model has no class {name!r}; nearest: {', '.join(near)}")
        found.append(names.index(name) if name in names else ids.index(name))
    return found
