"""Whether transformers is installed, in a version whose backbones and configurations are those that are used here."""

import importlib

from resnest_det.errors import UserError
from resnest_det.integrations.installed import is_installed, with_version

_USED = {
    "transformers": ("AutoBackbone", "AutoConfig", "AutoImageProcessor", "PreTrainedModel", "Trainer"),
    "transformers.initialization": ("kaiming_normal_", "ones_", "zeros_"),
    "transformers.backbone_utils": ("BackboneConfigMixin", "BackboneMixin"),
    "transformers.modeling_outputs": ("BackboneOutput", "ImageClassifierOutputWithNoAttention"),
}
OLDEST, NEWEST = "5.5", "5.24"  # tested
_HINT = f'transformers {OLDEST} to {NEWEST} work: pip install "resnest_det[transformers]"'


def check_transformers() -> None:
    """Import of transformers what the integration uses.

    Raises:
        UserError: it is absent, cannot be imported, or is too old or too new; the message says which versions work.
    """
    if not is_installed("transformers"):
        raise UserError(f"transformers is not installed; {_HINT}")
    try:
        import transformers
    except (ImportError, RuntimeError) as error:  # it refuses versions of what it needs, with several lines
        reason = " ".join(str(error).split())
        raise UserError(f"{with_version('transformers')} cannot be imported: {reason}; {_HINT}") from None
    try:
        for module, names in _USED.items():
            found = importlib.import_module(module)
            for name in names:
                getattr(found, name)
    # A class whose own needs are absent is a RuntimeError; a package of another version anything of these.
    except (ImportError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"transformers {transformers.__version__} does not fit: {reason}; {_HINT}") from None
