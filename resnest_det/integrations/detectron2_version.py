"""Whether Detectron2 is installed and recent enough."""

from resnest_det.errors import UserError
from resnest_det.integrations.installed import is_installed

_HINT = (
    "install its current main branch as https://detectron2.readthedocs.io/tutorials/install.html says, or use the built-in "
    "detector, which needs nothing more: --engine builtin"
)


def check_detectron2() -> None:
    """Import Detectron2.

    Raises:
        UserError: it is absent, cannot be imported, or is too old; the message says what to do.
    """
    if not is_installed("detectron2"):
        raise UserError(f"Detectron2 is not installed; {_HINT}")
    try:
        import detectron2
        from detectron2.modeling import Backbone
    # An old release fails on names that the installed Pillow or NumPy no longer has.
    except (ImportError, AttributeError) as error:
        raise UserError(f"Detectron2 is installed but cannot be imported: {error}; {_HINT}") from error
    # The release 0.6 of 2021 and the main branch report the same version.
    if not hasattr(Backbone, "padding_constraints"):
        where = f"{detectron2.__version__} in {detectron2.__path__[0]}"
        raise UserError(f"Detectron2 {where} is too old: its Backbone has no padding_constraints; {_HINT}")
