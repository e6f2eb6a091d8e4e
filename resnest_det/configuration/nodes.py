"""Trees of keys: walking them, and copies with other values."""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import getitem

from fvcore.common.config import CfgNode


def leaves(section: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    """(full key, value) of everything in nested sections."""
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def value_of(cfg: CfgNode, key: str) -> object:
    """The value of a full key."""
    return reduce(getitem, key.split("."), cfg)


def with_values(cfg: CfgNode, values: Mapping[str, object]) -> CfgNode:
    """A frozen copy of `cfg` in which the full keys of `values` have those values."""
    copy = cfg.clone()
    copy.defrost()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        node = copy
        for part in section.split(".") if section else []:
            node = node[part]
        node[name] = value
    copy.freeze()
    return copy
