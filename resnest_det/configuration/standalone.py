"""What makes a run's folder and each of its checkpoints stand alone: the datasets and classes inside its configuration.

A checkpoint has, beside the parameters, `config`, the text of the run's `config.yaml`, and `trained_on`, see
`resnest_det.configuration.data.RunData`. Nothing in either is believed before it was checked.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import msgspec
from fvcore.common.config import CfgNode

from resnest_det.configuration.defaults import default_config
from resnest_det.configuration.files import MOST_BYTES, MOST_VALUES
from resnest_det.configuration.nodes import leaves, with_values
from resnest_det.configuration.reading import load_config_text
from resnest_det.configuration.values import MOST_CHARACTERS_OF_CLASSES
from resnest_det.data.catalog import CocoFiles, DatasetFiles, PanopticFiles, datasets_root, register, use_root
from resnest_det.data.formats.labels import LabelFiles
from resnest_det.data.semantic import SemanticFiles
from resnest_det.engine.checkpoint import newest_checkpoint
from resnest_det.errors import UserError, shown

CONFIG_NAME = "config.yaml"

# By a key that no other kind has.
_KINDS = {"panoptic_json": PanopticFiles, "label_root": SemanticFiles, "json_file": CocoFiles, "kind": LabelFiles}
_PATHS = ("path", "json_file", "image_root", "panoptic_json", "panoptic_root", "instances_json", "label_root", "list_file")


def datasets_of(cfg: CfgNode) -> dict[str, DatasetFiles]:
    """DATASETS.REGISTERED as files by name.

    Raises:
        UserError: an entry is none of a dataset; the message names the key.
    """
    found = {}
    for entry in cfg.DATASETS.REGISTERED:
        kind = next((kind for key, kind in _KINDS.items() if key in entry), None)
        if kind is None or not isinstance(entry.get("name"), str):
            raise UserError(f"DATASETS.REGISTERED has {shown(entry)}; each entry has a name and one of {', '.join(_KINDS)}")
        given = {key: value for key, value in entry.items() if key != "name"}
        try:
            if unknown := sorted(set(given) - {field.name for field in fields(kind)}, key=str):
                raise UserError(f"{shown(unknown[0])} is not known")
            found[entry["name"]] = msgspec.convert(given, kind)
        except (msgspec.ValidationError, UserError) as error:
            raise UserError(f"DATASETS.REGISTERED: dataset {entry['name'][:80]}: {error}") from None
    return found


def with_datasets(cfg: CfgNode, datasets: Mapping[str, DatasetFiles]) -> CfgNode:
    """`cfg` with these datasets beside its own, every path made absolute, and the root of those that are known by name.

    Raises:
        UserError: see `datasets_of`.
    """
    known = datasets_of(cfg) | dict(datasets)
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    return with_values(
        cfg,
        {
            "DATASETS.REGISTERED": [{"name": name} | _with_absolute_paths(files) for name, files in known.items()],
            "DATASETS.ROOT": "" if names <= set(known) else os.path.abspath(datasets_root(cfg.DATASETS.ROOT)),
        },
    )


def _with_absolute_paths(files: DatasetFiles) -> dict:
    values = {
        key: list(value) if isinstance(value, tuple) else value for key, value in asdict(files).items() if value not in (None, ())
    }
    paths = (*_PATHS, *(["classes"] if isinstance(values.get("classes"), str) else []))
    return values | {key: os.path.abspath(os.path.expanduser(values[key])) for key in paths if key in values}


def register_datasets_of(cfg: CfgNode) -> None:
    """Make the datasets of a configuration known in this process.

    Raises:
        UserError: see `datasets_of` and `resnest_det.data.catalog.register`.
    """
    use_root(cfg.DATASETS.ROOT)
    for name, files in datasets_of(cfg).items():
        register(name, files)


def whole_configuration(cfg: CfgNode, trained_on: Mapping) -> str:
    """The text of `config.yaml`: everything that a run was told or found out, so that it means the same in any folder.

    Args:
        cfg: of a run, see `with_datasets`.
        trained_on: see `resnest_det.configuration.data.RunData`.
    """
    # What epochs came to is among the keys that count iterations.
    defaults = dict(leaves(default_config()))
    values = {key: defaults[key] for key, _ in leaves(cfg) if key.endswith("_EPOCHS") and key in defaults}
    values["OUTPUT_DIR"] = os.path.abspath(cfg.OUTPUT_DIR)
    if os.path.isfile(cfg.MODEL.WEIGHTS):
        values["MODEL.WEIGHTS"] = os.path.abspath(cfg.MODEL.WEIGHTS)
    lists = {f"DATASETS.{name.upper()}": list(trained_on.get(name, [])) for name in _LISTS}
    text = with_values(cfg, values | lists).dump()
    entries = sum(map(len, lists.values()))
    if entries > MOST_VALUES // 2 or len(text) > MOST_BYTES or len(repr(lists)) > MOST_CHARACTERS_OF_CLASSES:
        # Names of thousands of classes are in the checkpoint alone: reading them as YAML would take long.
        text = with_values(cfg, values).dump()
    return text


_LISTS = ("thing_classes", "thing_ids", "stuff_classes", "stuff_ids")


def configuration_of(checkpoint: Mapping, path: str | os.PathLike, overrides: tuple[str, ...] = ()) -> CfgNode:
    """The configuration that a checkpoint carries, checked as that of a file is.

    Args:
        checkpoint: what `resnest_det.weights.checkpoint_files.read_checkpoint` has read.
        path: the file, for messages.
        overrides: see `resnest_det.configuration.reading.load_config`.

    Raises:
        UserError: it has none, or one that cannot be used.
    """
    text = checkpoint.get("config")
    if text is None:
        raise UserError(
            f"checkpoint {path} has no configuration in it (another program or an earlier version wrote it): give "
            "the YAML file or the name of the recipe that it was trained with, too"
        )
    if not isinstance(text, str):
        raise UserError(f"checkpoint {path}: 'config' is a {type(text).__name__}, expected the text of a configuration")
    return load_config_text(text, f"configuration in checkpoint {path}", overrides)


def run_folder(config_file: str) -> str:
    """The folder of a run whose `config.yaml` this is, "" where there is no checkpoint beside it, or it is another file."""
    path = Path(config_file)
    folder = os.path.dirname(os.path.abspath(path))
    return folder if path.name == CONFIG_NAME and path.is_file() and Path(folder, "last_checkpoint").is_file() else ""


def in_run_folder(cfg: CfgNode, config_file: str, overrides: tuple[str, ...] = (), *, use: bool) -> CfgNode:
    """`cfg` of a run's `config.yaml`, with the folder it lies in now as OUTPUT_DIR; any other is returned as it is.

    Args:
        overrides: keys that were set besides are left alone.
        use: take the run's newest checkpoint as MODEL.WEIGHTS, not what the training started from.

    Raises:
        UserError: the folder's `last_checkpoint` is damaged.
    """
    folder = run_folder(config_file)
    if not folder:
        return cfg
    values = {"OUTPUT_DIR": folder}
    if use:
        values["MODEL.WEIGHTS"] = newest_checkpoint(folder)
    return with_values(cfg, {key: value for key, value in values.items() if key not in overrides[::2]})
