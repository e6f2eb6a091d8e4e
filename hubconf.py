"""Entry points for `torch.hub.load(repository, "resnest50", pretrained=True)`: one for each model,
by the authors' names and by timm's."""

dependencies = ["torch", "torchvision", "fvcore", "iopath", "huggingface_hub", "safetensors", "tqdm"]

from resnest_det.backbone.classifier import create_model as _create_model  # noqa: E402
from resnest_det.backbone.variants import list_models as _list_models  # noqa: E402
from resnest_det.weights.published import ALIASES as _ALIASES  # noqa: E402


def _entry(name):
    def build(pretrained=False, **arguments):
        return _create_model(name, pretrained=pretrained, **arguments)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name}; pretrained (bool) loads ImageNet weights, other arguments are those of resnest_det.create_model."
    return build


for _name in (*_list_models(), *_ALIASES):
    globals()[_name] = _entry(_name)
