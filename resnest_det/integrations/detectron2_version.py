"""Whether Detectron2 is there, and new enough."""

import importlib.util

from resnest_det.errors import UserError

_HINT = ("install its current main branch as https://detectron2.readthedocs.io/tutorials/install.html says, or use the built-in "
         "detector, which needs nothing more: --engine builtin")


def detectron2_is_installed() -> bool:
    """Whether there is a Detectron2 to import; it is not imported, which takes seconds."""
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None  # a folder of that name alone is no package


def check_detectron2() -> None:
    """Import Detectron2.

    Raises:
        UserError: it is absent, cannot be imported, or is older than what this package needs, and what to do then.
    """
    if not detectron2_is_installed():
        raise UserError(f"Detectron2 is not installed; {_HINT}")
    try:
        import detectron2
        from detectron2.modeling import Backbone
    # Releases that are older than an installed Pillow or NumPy fail on names these no longer have.
    except (ImportError, AttributeError) as error:
        raise UserError(f"Detectron2 is installed but cannot be imported: {error}; {_HINT}") from error
    # The release 0.6 of 2021 and the main branch have the same number.
    if not hasattr(Backbone, "padding_constraints"):
        where = f"{detectron2.__version__} in {detectron2.__path__[0]}"
        raise UserError(f"Detectron2 {where} is too old: its Backbone has no padding_constraints; {_HINT}")
