"""Whether MMDetection is installed, in versions that work together.

Two sets of distributions share its import names: the original, last released in January 2024, and its maintained continuation.
"""

import importlib
import importlib.util
from types import ModuleType

from resnest_det.errors import UserError
from resnest_det.integrations.installed import is_installed

# Tested together. mmdet 3.3 itself refuses mmcv 2.2; mmdet 3.5 refuses nothing.
ORIGINAL = {"mmcv": "2.1", "mmengine": "0.10", "mmdet": "3.3"}
CONTINUATION = {"mmcv": "2.3", "mmengine": "0.10", "mmdet": "3.5"}
_HINT = (
    "these work together: onedl-mmcv 2.3, onedl-mmengine 0.10 and onedl-mmdetection 3.5 (the maintained continuation), or mmcv "
    "2.1, mmengine 0.10 and mmdet 3.3 (the original); docs/mmdetection.md shows how to install them"
)


def check_mmdet() -> None:
    """Import MMDetection with mmcv, its compiled operators, and mmengine.

    Raises:
        UserError: one of them is absent, cannot be imported, or does not work with the others; the message says which, and
            names versions that work.
    """
    absent = [name for name in ORIGINAL if not is_installed(name)]
    if absent:
        raise UserError(f"MMDetection needs {_listed(absent)}, not installed here; {_HINT}")
    versions = {}
    for name in ORIGINAL:
        versions[name] = _import(name).__version__
        if not any(_fits(release, {name: versions[name]}) for release in (ORIGINAL, CONTINUATION)):
            raise UserError(f"{name} {versions[name]} does not fit; {_HINT}")
        if name == "mmcv":
            _import_operators(versions[name])
    if not any(_fits(release, versions) for release in (ORIGINAL, CONTINUATION)):
        raise UserError(f"mmcv {versions['mmcv']} and mmdet {versions['mmdet']} do not work together; {_HINT}")


def _fits(release: dict[str, str], versions: dict[str, str]) -> bool:
    return all(version.startswith(f"{release[name]}.") for name, version in versions.items())


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    # mmdet 3.3 asserts the others' versions; a name missing from a newer NumPy or torch is an AttributeError.
    except (ImportError, AttributeError, AssertionError) as error:
        raise UserError(f"{name} is installed but cannot be imported: {error}; {_HINT}") from error


def _import_operators(mmcv_version: str) -> None:
    import torch  # its libraries must be loaded before the operators

    if importlib.util.find_spec("mmcv._ext") is None:
        raise UserError(f"mmcv {mmcv_version} has no compiled operators (mmcv._ext); mmcv-lite has none; {_HINT}")
    try:
        importlib.import_module("mmcv._ext")
    except ImportError as error:
        raise UserError(
            f"the compiled operators of mmcv {mmcv_version} cannot be loaded with torch {torch.__version__}: {error}; compile "
            "them with this torch (pip's cache may hold others: pip install --no-cache-dir); docs/mmdetection.md has the "
            "commands and the versions of torch that work"
        ) from error


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
