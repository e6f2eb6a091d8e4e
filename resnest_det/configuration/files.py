"""Configuration files as plain data: YAML with `_BASE_`, within limits that no recipe comes near.

Some hundred bytes of YAML stand for 10^9 values by aliases, and 24 files for 2^24 by `_BASE_`: both are refused by counting.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from resnest_det.errors import UserError, shown

MOST_BYTES = 200_000  # PyYAML reads some 100 kB a second
MOST_VALUES = 10_000  # aliases written out
MOST_LEVELS = 50
MOST_FILES = 50
BASE_KEY = "_BASE_"


def read_with_bases(path: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict]]:
    """The files that a configuration consists of, (path, its nested sections), a file after those in its `_BASE_`.

    Args:
        above: the files whose `_BASE_` led here.

    Raises:
        UserError: a file is absent, no configuration or too large, or `_BASE_` leads back or to too many files.
    """
    content = _read_yaml(path)
    bases = content.pop(BASE_KEY, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base:
            raise UserError(f"{path}: its _BASE_ must be a path, or a list of paths, not {shown(base)}")
        base_path = path.parent / os.path.expanduser(base)
        if not os.path.isfile(base_path):
            raise UserError(f"{path}: its _BASE_ {str(base_path)[:300]} does not exist")
        if any(os.path.samefile(base_path, file) for file in (*above, path)):
            raise UserError(f"{path}: its _BASE_ {str(base_path)[:300]} leads back to itself")
        if len(above) >= MOST_FILES:
            raise UserError(f"{path}: its _BASE_ is the last of a chain of more than {MOST_FILES} files")
        yield from read_with_bases(base_path, (*above, path))
    yield path, content


def _read_yaml(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse(text, str(path))


def parse(text: bytes, path: str) -> dict:
    """The nested sections of a configuration's text; messages begin with `path`, where it is from.

    Raises:
        UserError: it is no configuration, or a larger one than any recipe.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"{path}: not a configuration: larger than {MOST_BYTES} bytes")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _size(node, {}, path)
        content = None if node is None else loader.construct_document(node)
    except UserError:
        raise
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a configuration: more than {MOST_LEVELS} levels") from error
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError, IndexError) as error:
        # Numbers and dates that PyYAML's patterns take and Python does not, such as 2001-99-99 or one of 5,000 digits.
        raise UserError(f"{path}: not valid YAML: a value that is none: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a configuration (sections of keys in YAML): found {type(content).__name__}")
    return content


def _size(node: yaml.Node | None, known: dict[int, tuple[int, int]], path: str) -> tuple[int, int]:
    """(values, levels) of a node with its aliases written out; `known` has those of nodes seen before, (0, 0) within one."""
    if id(node) in known:
        if known[id(node)] == (0, 0):
            raise UserError(f"{path}: not a configuration: it has a section or list within itself")
        return known[id(node)]
    known[id(node)] = values, levels = 0, 0
    if isinstance(node, yaml.CollectionNode):
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        for part in parts:
            more, deep = _size(part, known, path)
            values, levels = values + more, max(levels, deep)
    known[id(node)] = values + 1, levels + 1
    if values + 1 > MOST_VALUES or levels + 1 > MOST_LEVELS:
        raise UserError(
            f"{path}: not a configuration: more than {MOST_VALUES} values or {MOST_LEVELS} levels, aliases written out"
        )
    return known[id(node)]
