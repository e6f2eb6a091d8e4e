"""ResNeSt inside torchvision: importing this registers detectors and segmentation models for `torchvision.models.get_model`.

    import resnest_det.integrations.torchvision
    model = torchvision.models.get_model("maskrcnn_resnest50_fpn", weights_backbone="DEFAULT", num_classes=5)

`resnest_fpn_backbone` is the backbone for torchvision's own classes; `to_torchvision`, in `torchvision_detector.py`, makes one of
those of a detector trained here.
"""

import inspect
import warnings
from collections.abc import Callable, Collection, Sequence

from resnest_det.integrations.torchvision_version import check_torchvision

check_torchvision()

from torch import Tensor, nn  # noqa: E402
from torchvision.models import list_models  # noqa: E402
from torchvision.models._api import register_model  # noqa: E402
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet  # noqa: E402
from torchvision.models.detection.transform import GeneralizedRCNNTransform  # noqa: E402
from torchvision.models.segmentation import FCN, DeepLabV3  # noqa: E402
from torchvision.models.segmentation.deeplabv3 import DeepLabHead  # noqa: E402
from torchvision.models.segmentation.fcn import FCNHead  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7  # noqa: E402

from resnest_det.backbone.loading import load_weights  # noqa: E402
from resnest_det.backbone.resnest import STAGES, ResNeSt  # noqa: E402
from resnest_det.backbone.variants import find_variant  # noqa: E402
from resnest_det.errors import UserError, nearest, shown  # noqa: E402
from resnest_det.weights.checkpoint_files import read_checkpoint  # noqa: E402
from resnest_det.weights.downloads import resolve_weights  # noqa: E402
from resnest_det.weights.weights import check_numbers, errors_naming  # noqa: E402

__all__ = ["NamedFeatures", "ResNeStWithFPN", "dilated_resnest", "resnest_fpn_backbone"]

PYRAMID_CHANNELS = 256
PUBLISHED = ("DEFAULT", "IMAGENET1K_V1")  # what the weights of a backbone are called in torchvision
NormLayer = Callable[[int], nn.Module]


class NamedFeatures(ResNeSt):
    """`ResNeSt` whose `forward` gives its maps under the names that a host has for them.

    Args:
        names: from "stem", "res2", ..., "res5" to the host's name, for the maps that are wanted.
        arguments: of `ResNeSt`.
    """

    def __init__(self, *, names: dict[str, str], **arguments):
        super().__init__(out_features=tuple(names), **arguments)
        self.names = {name: names[name] for name in self.out_features}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps (N, channels, H / stride, W / stride), the largest first, for normalised images (N, in_channels, H, W)."""
        maps = self.feature_maps(x, self.wanted)
        return {self.names[name]: feature for name, feature in maps.items()}


class ResNeStWithFPN(nn.Module):
    """A pyramid over a ResNeSt, with the attributes that torchvision's detectors ask of a backbone.

    Args:
        body: the network.
        norm_layer: of the pyramid's convolutions; None for none.
        extra_blocks: makes levels above the last.
        out_channels: of every level.

    Levels are "0", "1", ... in the order of the body's maps, then what `extra_blocks` adds ("pool", or "p6" and "p7").
    """

    def __init__(
        self,
        body: NamedFeatures,
        *,
        norm_layer: NormLayer | None = None,
        extra_blocks: ExtraFPNBlock | None = None,
        out_channels: int = PYRAMID_CHANNELS,
    ):
        super().__init__()
        self.body = body
        channels = list(body.out_feature_channels.values())
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks or LastLevelMaxPool(), norm_layer)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Levels (N, out_channels, H / stride, W / stride) by name for normalised images (N, 3, H, W)."""
        return self.fpn(self.body(x))


def resnest_fpn_backbone(
    name: str,
    *,
    weights: str | None = None,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    trainable_layers: int = 3,
    returned_layers: Sequence[int] | None = None,
    extra_blocks: ExtraFPNBlock | None = None,
) -> ResNeStWithFPN:
    """The counterpart of torchvision's `resnet_fpn_backbone`.

    Args:
        name: of a variant: `resnest50`, timm's `resnest50d`, ...
        weights: None; "DEFAULT" or "IMAGENET1K_V1", the published ones; or a file or address, see `resolve_weights`.
        norm_layer: of the backbone; the pyramid has none.
        trainable_layers: stages that are trained, from the last on, 0 to 5; the fifth is the stem. The others take no gradient.
        returned_layers: 1 to 4, of the strides 4, 8, 16 and 32; all by default.
        extra_blocks: levels above; `LastLevelMaxPool` by default.

    Raises:
        UserError: an unknown variant, weights that cannot be had or are of another one, or layers that there are not.
    """
    layers = [1, 2, 3, 4] if returned_layers is None else returned_layers
    whole = isinstance(layers, (list, tuple)) and all(type(layer) is int for layer in layers)
    if not whole or not layers or sorted(set(layers) & {1, 2, 3, 4}) != list(layers):
        raise UserError(f"returned_layers is {returned_layers!r}, expected some of 1, 2, 3, 4, in this order")
    names = {STAGES[layer - 1]: str(index) for index, layer in enumerate(layers)}
    body = _body(name, weights, norm_layer, names)
    freeze_all_but(body, trainable_layers)
    return ResNeStWithFPN(body, extra_blocks=extra_blocks)


def dilated_resnest(name: str, *, weights: str | None = None, aux: bool = False) -> NamedFeatures:
    """The backbone of torchvision's segmentation models: res5 at stride 8 as "out", with `aux` res4 as well, as "aux".

    Args:
        name, weights: see `resnest_fpn_backbone`.

    Raises:
        UserError: an unknown variant, or weights that cannot be had or are of another one.
    """
    names = {"res4": "aux", "res5": "out"} if aux else {"res5": "out"}
    return _body(name, weights, nn.BatchNorm2d, names, output_stride=8, dilation_style="timm")


def freeze_all_but(body: ResNeSt, trainable_layers: int, argument: str = "trainable_layers") -> None:
    """Take the gradients from all but the last `trainable_layers` of stem and stages; `argument` names it in the message.

    Raises:
        UserError: it is not 0 to 5.
    """
    _check_trainable_layers(trainable_layers, argument)
    for part in ("stem", *STAGES)[: 5 - trainable_layers]:
        if part in body.parts:
            getattr(body, part).requires_grad_(False)


def _check_trainable_layers(layers: int, argument: str) -> None:
    if type(layers) is not int or layers not in range(6):
        raise UserError(f"{argument} is {shown(layers)}, expected a whole number from 0 (all frozen) to 5 (all trained)")


def _check_call(num_classes: int, arguments: dict, known: Collection[str]) -> None:
    """torchvision's classes swallow arguments that they do not know."""
    if type(num_classes) is not int or num_classes < 1:
        raise UserError(f"num_classes is {shown(num_classes)}, expected a whole number from 1 on, the background counted")
    for name in arguments:
        if name not in known and not name.startswith("_"):
            near = nearest(name, known)
            raise UserError(f"the model has no argument {name!r}" + (f"; nearest: {', '.join(near)}" if near else ""))


def _body(name: str, weights: str | None, norm_layer: NormLayer, names: dict[str, str], **arguments) -> NamedFeatures:
    variant = find_variant(name)
    body = NamedFeatures(names=names, norm=norm_layer, **variant.network, **arguments)
    if weights is not None:
        if isinstance(weights, str) and _is_published(weights):
            weights = f"resnest://{variant.name}"
        load_weights(body, resolve_weights(weights))
    return body


def _is_published(weights: str) -> bool:
    return weights.rpartition("_Weights.")[2] in PUBLISHED


def _detector_builder(kind: str, variant: str) -> Callable[..., nn.Module]:
    detector = DETECTORS[kind]
    one_stage = kind in ("retinanet", "fcos")
    classes = (*detector.__mro__[: detector.__mro__.index(nn.Module)], GeneralizedRCNNTransform)
    known = {name for each in classes for name in inspect.signature(each.__init__).parameters} - {"self", "kwargs"}
    known |= {"progress", "weights", "weights_backbone", "trainable_backbone_layers"}

    def build(
        *,
        weights: str | None = None,
        num_classes: int | None = None,
        weights_backbone: str | None = "DEFAULT",
        trainable_backbone_layers: int | None = None,
        **kwargs,
    ) -> nn.Module:
        weights_backbone = weights_backbone if weights is None else None
        trained = weights is not None or weights_backbone is not None
        if trainable_backbone_layers is not None:
            _check_trainable_layers(trainable_backbone_layers, "trainable_backbone_layers")
        if not trained and trainable_backbone_layers not in (None, 5):
            warnings.warn("trainable_backbone_layers has no effect without weights: all layers are trained", stacklevel=2)
            trainable_backbone_layers = 5
        layers = (3 if trained else 5) if trainable_backbone_layers is None else trainable_backbone_layers
        backbone = resnest_fpn_backbone(
            variant,
            weights=weights_backbone,
            norm_layer=FrozenBatchNorm2d if trained else nn.BatchNorm2d,
            trainable_layers=5,
            returned_layers=[2, 3, 4] if one_stage else None,
            extra_blocks=LastLevelP6P7(PYRAMID_CHANNELS, PYRAMID_CHANNELS) if one_stage else None,
        )
        freeze_all_but(backbone.body, layers, "trainable_backbone_layers")
        if num_classes is None:
            num_classes = 2 if kind == "keypointrcnn" else 91
        _check_call(num_classes, kwargs, known)
        if kind == "keypointrcnn":
            kwargs.setdefault("num_keypoints", 17)
        return _with_weights(detector(backbone, num_classes, **kwargs), weights)

    return _described(
        build,
        f"{kind}_{variant}_fpn",
        f"""{detector.__name__} with a {variant} backbone and a pyramid.

        Args:
            weights: a file of such a detector, as torchvision's reference training writes it; None for none.
            num_classes: with the background; COCO's 91 by default, 2 of a keypoint detector.
            weights_backbone: see `resnest_fpn_backbone`.
            trainable_backbone_layers: see there; 3 by default with weights, else all 5.
            kwargs: of torchvision's class and its transform; `progress` is not used.
        """,
    )


def _segmentation_builder(kind: str, variant: str) -> Callable[..., nn.Module]:
    model, head = SEGMENTATION_MODELS[kind]

    def build(
        *,
        weights: str | None = None,
        num_classes: int = 21,
        aux_loss: bool | None = None,
        weights_backbone: str | None = "DEFAULT",
        **kwargs,
    ) -> nn.Module:
        _check_call(num_classes, kwargs, ("progress",))
        backbone = dilated_resnest(variant, weights=weights_backbone if weights is None else None, aux=bool(aux_loss))
        channels = backbone.out_feature_channels
        aux = FCNHead(channels["res4"], num_classes) if aux_loss else None
        return _with_weights(model(backbone, head(channels["res5"], num_classes), aux), weights)

    return _described(
        build,
        f"{kind}_{variant}",
        f"""{model.__name__} with a {variant} backbone, dilated to stride 8.

        Args:
            weights: a file of such a model; None for none.
            num_classes: with the background.
            aux_loss: whether there is an auxiliary head over res4.
            weights_backbone: see `resnest_fpn_backbone`.
            kwargs: `progress`, which is not used.
        """,
    )


def _with_weights(model: nn.Module, weights: str | None) -> nn.Module:
    if weights is None:
        return model
    if isinstance(weights, str) and _is_published(weights):
        raise UserError(f"weights {weights}: nobody has published a whole model; give a file that the reference training wrote")
    path = resolve_weights(weights)
    checkpoint = read_checkpoint(path)
    state = checkpoint.get("model", checkpoint)  # the reference training's key
    with errors_naming(path):
        check_numbers(state)
        targets = {name: value.shape for name, value in model.state_dict().items()}
        # Frozen norms count no batches.
        names = [name for name in {**targets, **state} if not name.endswith("num_batches_tracked")]
        wrong = [name for name in names if name not in state or state[name].shape != targets.get(name)]
        if wrong:
            name = wrong[0]
            in_file = tuple(state[name].shape) if name in state else "absent"
            in_model = tuple(targets[name]) if name in targets else "absent"
            raise UserError(
                f"{len(wrong)} parameters do not fit the model, as {name}: {in_file} in the file, {in_model} in the model"
            )
    model.load_state_dict(state)
    return model


def _described(build: Callable[..., nn.Module], name: str, text: str) -> Callable[..., nn.Module]:
    build.__name__ = build.__qualname__ = name
    build.__doc__ = text
    return build


DETECTORS = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "keypointrcnn": KeypointRCNN, "retinanet": RetinaNet, "fcos": FCOS}
SEGMENTATION_MODELS = {"deeplabv3": (DeepLabV3, DeepLabHead), "fcn": (FCN, FCNHead)}
BUILDERS = {
    builder.__name__: builder
    for builder in (
        *(_detector_builder(kind, f"resnest{depth}") for kind in DETECTORS for depth in (14, 50, 101, 200, 269)),
        *(_segmentation_builder(kind, f"resnest{depth}") for kind in SEGMENTATION_MODELS for depth in (50, 101)),
    )
}
for _name, _builder in BUILDERS.items():
    if _name not in list_models():  # it is there where a notebook imports this module anew
        register_model(_name)(_builder)


def __getattr__(name: str):
    if name in BUILDERS:
        return BUILDERS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *BUILDERS])
