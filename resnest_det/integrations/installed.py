"""Whether a package is installed, without importing it."""

import importlib.util


def is_installed(name: str) -> bool:
    """Whether a package `name` can be imported; finding out by importing it may take seconds."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a bare folder of that name is no package
