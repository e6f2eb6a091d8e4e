"""Whether a package is installed, and in which version, without importing it."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version


def is_installed(name: str) -> bool:
    """Whether a package `name` can be imported; finding out by importing it may take seconds."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a bare folder of that name is no package


def with_version(name: str) -> str:
    """`name` and the version that is installed, for a message about a package that cannot say so itself."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:  # on the path, but not installed by a package manager
        return name
