"""Whether a package is there, without importing it."""

import importlib.util


def is_installed(name: str) -> bool:
    """Whether there is a package `name` to import; importing some takes seconds."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a folder of that name alone is no package
