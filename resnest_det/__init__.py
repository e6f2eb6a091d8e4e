"""ResNeSt for classification and dense prediction.

>>> import resnest_det
>>> model = resnest_det.create_model("resnest50", pretrained=True).eval()
"""

import importlib
import warnings

# fvcore compiles a loss function when it is imported, in a way that newer torch deprecates.
warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated", category=FutureWarning)

__version__ = "0.1.0"

_LAZY = {
    "create_model": "resnest_det.backbone.classifier",
    "list_models": "resnest_det.backbone.variants",
    "transforms_for": "resnest_det.backbone.classifier",
    "load_weights": "resnest_det.backbone.loading",
    "resolve_weights": "resnest_det.weights.downloads",
    "add_resnest_config": "resnest_det.configuration.defaults",
    "prepare_for_inference": "resnest_det.inference.prepared",
    "Predictor": "resnest_det.inference.predictor",
    "UserError": "resnest_det.errors",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    # Loaded on first use, so that importing the package stays cheap.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
