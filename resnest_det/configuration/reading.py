"""Reading configurations: YAML files with `_BASE_` and Detectron2's keys, and overrides."""

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from resnest_det.configuration.checking import check_buildable, check_supported
from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.files import BASE_KEY, MOST_FILES, parse, read_with_bases
from resnest_det.configuration.nodes import leaves, value_of
from resnest_det.configuration.values import MOST_CHARACTERS, check_value, wrong_type
from resnest_det.errors import UserError, nearest, shown
from resnest_det.files import packaged


def load_config(config_file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration of a YAML file and `KEY VALUE` overrides, checked and frozen.

    Args:
        config_file: a path, or the name of a bundled configuration, see `find_config_file`.
        overrides: KEY1, VALUE1, KEY2, VALUE2, ... with values in YAML or Python notation.

    Raises:
        UserError: a file or key does not exist, or a value has the wrong type or cannot be honoured by the detector.
    """
    return _checked(files_of(config_file), overrides)


def load_config_text(text: str, source: str, overrides: Sequence[str] = ()) -> CfgNode:
    """`load_config` of a text that a run has written, such as that in a checkpoint.

    Args:
        source: where it is from; messages begin with it.
        overrides: see `load_config`.

    Raises:
        UserError: see `load_config`; or it leads to files by a `_BASE_`.
    """
    content = parse(text.encode("utf-8", "replace"), source)
    if BASE_KEY in content:
        raise UserError(f"{source}: it has a {BASE_KEY}, which the whole configuration of a run has not")
    return _checked([(source, content)], overrides)


def _checked(contents: Iterable[tuple[str, dict]], overrides: Sequence[str]) -> CfgNode:
    cfg = default_config()
    _merge_all(cfg, contents, overrides)
    check_supported(cfg)
    check_buildable(cfg)
    cfg.freeze()
    return cfg


def merge_file(cfg: CfgNode, config_file: str, overrides: Sequence[str] = ()) -> None:
    """Merge a YAML file with its bases, then `overrides`, into `cfg`.

    Args:
        config_file, overrides: see `load_config`.

    Raises:
        UserError: a file or key does not exist, or a value has the wrong type.
    """
    _merge_all(cfg, files_of(config_file), overrides)


def files_of(config_file: str) -> Iterator[tuple[str, dict]]:
    """(path, content) of a configuration's files, those of `_BASE_` first."""
    for number, (path, content) in enumerate(read_with_bases(find_config_file(config_file)), start=1):
        if number > MOST_FILES:
            raise UserError(f"{config_file}: its _BASE_ leads to more than {MOST_FILES} files")
        yield str(path), content


def _merge_all(cfg: CfgNode, contents: Iterable[tuple[str, dict]], overrides: Sequence[str]) -> None:
    defaults = dict(leaves(cfg))
    for source, content in contents:
        merge(cfg, leaves(content), source, defaults)
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE; {shown(overrides[-1])} has no value")
    merge(cfg, zip(overrides[::2], overrides[1::2]), "command line", defaults)
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", cfg.MODEL.DEVICE):
        raise UserError(f"MODEL.DEVICE {shown(cfg.MODEL.DEVICE)} is not supported; supported: 'auto', 'cpu', 'cuda', 'cuda:N'")


def named_keys(config_file: str, overrides: Sequence[str] = ()) -> set[str]:
    """The keys that a YAML file, its bases or overrides give a value; every other one has its default.

    Args:
        config_file, overrides: see `load_config`.
    """
    files = [content for _, content in read_with_bases(find_config_file(config_file))]
    return {key for content in files for key, _ in leaves(content)} | set(overrides[::2])


def find_config_file(name: str) -> Path:
    """The path of a configuration: `name` itself if there is such a file, else a bundled one.

    `mask_rcnn_ResNeSt50_FPN` is found from any working directory, with or without `.yaml` and folders before it. So are the
    configs for MMDetection, which end in `.py`.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if os.path.isfile(name):
        return Path(name)
    suffix = ".py" if name.endswith(".py") else ".yaml"
    bundled = {path.stem: path for path in sorted(packaged("configs").rglob(f"*{suffix}"))}
    wanted = Path(name).name.removesuffix(suffix)
    if wanted in bundled:
        return bundled[wanted]
    near = ", ".join(nearest(wanted, bundled, cutoff=0.3)) or "none"
    raise UserError(f"there is no config file {name[:300]}, neither here nor in the package; nearest: {near}")


def merge(cfg: CfgNode, values: Iterable[tuple[str, object]], source: str, known: dict[str, object]) -> None:
    """Set `values` (full key, value) in `cfg`; error messages begin with `source`, and `known` has each key's default.

    Raises:
        UserError: a key does not exist (the message names the nearest), or a value has another type than the default.
    """
    for key, value in values:
        if key not in known:
            section = any(name.startswith(f"{key}.") for name in known)
            if section and value != {}:
                raise UserError(f"{source}: {key} is a section of keys and takes no value, got {shown(value)}")
            if not section:
                raise UserError(f"{source}: unknown config key {key[:200]}{_nearest(key[:200], known)}")
            continue
        if isinstance(value, str) and len(value) > MOST_CHARACTERS:
            raise UserError(f"{source}: {key} {shown(value)} is too long; supported: {MOST_CHARACTERS} characters")
        if isinstance(known[key], float) and re.fullmatch(r"[+-]?\d{1,300}", shown(value, 300).strip("'")):
            value = float(value)
        try:
            with warnings.catch_warnings():  # a value is tried as Python, and an odd text is warned of
                warnings.simplefilter("ignore")
                cfg.merge_from_list([key, value])
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise wrong_type(key, value, known[key], source) from error
        check_value(key, value_of(cfg, key), known[key], source)


def _nearest(key: str, known: Iterable[str]) -> str:
    """A hint at the key probably meant: a similar one, or one with the same last name in another section."""
    last = key.rsplit(".", 1)[-1].upper()
    namesakes = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = nearest(key, namesakes or known, count=1, cutoff=0.3 if namesakes else 0.5)
    return f"; nearest known key: {near[0]}" if near else ""
