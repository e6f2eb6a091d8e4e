"""Whether torchvision is one whose detectors take other backbones through the interfaces that are used here."""

import importlib

from resnest_det.errors import UserError
from resnest_det.integrations.installed import with_version

# What the integration takes from torchvision; some of it lies below the documented interface, and may move.
_USED = {
    "torchvision.models._api": ("register_model",),
    "torchvision.models.detection": ("FCOS", "FasterRCNN", "KeypointRCNN", "MaskRCNN", "RetinaNet"),
    "torchvision.models.detection.anchor_utils": ("AnchorGenerator",),
    "torchvision.models.detection.faster_rcnn": ("FastRCNNConvFCHead", "FastRCNNPredictor"),
    "torchvision.models.detection.mask_rcnn": ("MaskRCNNHeads", "MaskRCNNPredictor"),
    "torchvision.models.detection.rpn": ("RPNHead",),
    "torchvision.models.detection.transform": ("GeneralizedRCNNTransform",),
    "torchvision.models.segmentation": ("FCN", "DeepLabV3"),
    "torchvision.ops.feature_pyramid_network": ("FeaturePyramidNetwork", "LastLevelMaxPool", "LastLevelP6P7"),
}
OLDEST, NEWEST = "0.21", "0.29"  # tested
_HINT = (
    f'torchvision {OLDEST} to {NEWEST} work: pip install "torchvision>={OLDEST},<={NEWEST}.99" with the torch that belongs to it'
)


def check_torchvision() -> None:
    """See that torchvision has every name that the integration uses.

    Raises:
        UserError: it cannot be imported, or is too old or too new; the message says which versions work.
    """
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # operators of another torch are a RuntimeError
        raise UserError(f"{with_version('torchvision')} cannot be imported: {error}; {_HINT}") from None
    version = torchvision.__version__
    try:
        for module, names in _USED.items():
            found = importlib.import_module(module)
            for name in names:
                getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"torchvision {version} does not fit: {error}; {_HINT}") from None
    if _number(version) < _number(OLDEST):
        raise UserError(f"torchvision {version} is too old; {_HINT}")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2])
