"""ResNeSt inside Hugging Face's transformers: importing this module registers it with the Auto classes.

    from resnest_det.integrations.transformers import ResNeStBackbone, ResNeStConfig
    ResNeStBackbone.from_variant("resnest50", weights="DEFAULT").save_pretrained("folder")
    ResNeStBackbone.from_pretrained("folder", out_features=["stage2", "stage3", "stage4"])

A `ResNeStConfig` is also the `backbone_config` of DETR, Deformable DETR, RT-DETR, D-FINE, Mask2Former, UperNet and others.
"""

from collections.abc import Sequence

from resnest_det.integrations.transformers_version import check_transformers

check_transformers()

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torchvision.models import ResNet50_Weights  # noqa: E402
from transformers import (  # noqa: E402
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init  # noqa: E402
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin  # noqa: E402
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutputWithNoAttention  # noqa: E402

from resnest_det.backbone.layers import NORMS  # noqa: E402
from resnest_det.backbone.loading import LoadReport, load_weights  # noqa: E402
from resnest_det.backbone.resnest import STAGES, ResNeSt  # noqa: E402
from resnest_det.backbone.variants import find_variant  # noqa: E402
from resnest_det.errors import UserError, naming, shown  # noqa: E402
from resnest_det.weights.downloads import resolve_weights  # noqa: E402
from resnest_det.weights.published import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402

__all__ = ["ResNeStBackbone", "ResNeStConfig", "ResNeStForImageClassification", "image_processor", "load_backbone_weights"]

STAGE_NAMES = ("stem", "stage1", "stage2", "stage3", "stage4")  # as of transformers' own ResNet
FEATURES = dict(zip(STAGE_NAMES, ("stem", *STAGES)))
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


class ResNeStConfig(BackboneConfigMixin, PreTrainedConfig):
    """The shape of a ResNeSt; by default that of resnest50.

    Args:
        depths: blocks of each stage; the other arguments of that name are `ResNeSt`'s.
        num_channels: of the images.
        norm: "BN", "SyncBN", "FrozenBN", "GN" or "". Some models of transformers freeze "BN" themselves.
        freeze_at: this many of stem and stages are not trained.
        drop_rate: dropout before the linear layer of a classifier.
        out_features, out_indices: of a backbone, which of `STAGE_NAMES` (strides 4, 4, 8, 16 and 32) it gives.

    Raises:
        UserError: a stage that there is not, or an unknown norm.
    """

    model_type = "resnest"

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        stem_width: int = 32,
        radix: int = 2,
        groups: int = 1,
        bottleneck_width: int = 64,
        avd_first: bool = False,
        bottleneck_channels: int = 64,
        res2_out_channels: int = 256,
        num_channels: int = 3,
        norm: str = "BN",
        output_stride: int = 32,
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in NORMS:
            raise UserError(f"norm is {norm!r}; supported: {', '.join(map(repr, NORMS))}")
        for argument, value, kind in (
            ("depths", depths, int),
            ("out_features", out_features, str),
            ("out_indices", out_indices, int),
        ):
            if value is not None and not (isinstance(value, (list, tuple)) and all(type(each) is kind for each in value)):
                what = "names of stages" if kind is str else "whole numbers"
                raise UserError(f"{argument} is {shown(value)}, expected a list of {what}")
        self.depths = list(depths)
        self.stem_width, self.radix, self.groups, self.bottleneck_width = stem_width, radix, groups, bottleneck_width
        self.avd_first, self.bottleneck_channels, self.res2_out_channels = avd_first, bottleneck_channels, res2_out_channels
        self.num_channels, self.norm, self.output_stride, self.freeze_at = num_channels, norm, output_stride, freeze_at
        self.drop_path_rate, self.drop_rate = drop_path_rate, drop_rate
        self.stage_names = list(STAGE_NAMES)
        try:
            self.set_output_features_output_indices(
                out_features=None if out_features is None else list(out_features),
                out_indices=None if out_indices is None else list(out_indices),
            )
        except ValueError as error:
            raise UserError(
                f"{error}; supported: some of {', '.join(STAGE_NAMES)}, which are 0 to {len(STAGE_NAMES) - 1}"
            ) from None

    @classmethod
    def from_variant(cls, name: str, **kwargs) -> "ResNeStConfig":
        """The configuration of a variant by its name, the authors' or timm's.

        Raises:
            UserError: there is none; the nearest names are listed.
        """
        shape = find_variant(name).network
        return cls(depths=shape.pop("blocks"), **shape | kwargs)

    def network(self) -> dict:
        """The arguments of `ResNeSt`, but for the features that are wanted."""
        names = ("stem_width", "radix", "groups", "bottleneck_width", "avd_first", "bottleneck_channels", "res2_out_channels")
        names += ("norm", "output_stride", "freeze_at", "drop_path_rate")
        own = {name: getattr(self, name) for name in names}
        return dict(blocks=tuple(self.depths), in_channels=self.num_channels, dilation_style="timm", **own)


class ResNeStPreTrainedModel(PreTrainedModel):
    """What both models share: the network, `resnest`, and how it is initialised and filled."""

    config_class = ResNeStConfig
    config: ResNeStConfig
    base_model_prefix = "resnest"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def _init_weights(self, module: nn.Module) -> None:
        # As the network initialises itself, for what a saved folder does not have.
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.01)
            init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm) or "BatchNorm" in type(module).__name__:
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if hasattr(module, "running_mean"):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
            if getattr(module, "num_batches_tracked", None) is not None:
                init.zeros_(module.num_batches_tracked)

    @staticmethod
    def _network(config: ResNeStConfig, *stages: str) -> ResNeSt:
        with naming({"blocks": "depths", "in_channels": "num_channels"}):
            return ResNeSt(out_features=stages, **config.network())

    @classmethod
    def from_variant(cls, name: str, weights: str | None = None, **kwargs):
        """A model of the family by its name.

        Args:
            name: the authors' or timm's.
            weights: None; "DEFAULT", the published ones; or a file or address of any known layout, see `resolve_weights`
                (`hf://timm/resnest50d.in1k`).
            kwargs: of `ResNeStConfig`; with `num_labels` a classifier's linear layer is new where the weights' has others.

        Raises:
            UserError: an unknown variant, or weights that cannot be had or are of another one.
        """
        variant = find_variant(name)
        model = cls(ResNeStConfig.from_variant(name, **cls._classes(kwargs)))
        if weights is not None:
            load_weights(
                model.network_with_head(), resolve_weights(f"resnest://{variant.name}" if weights == "DEFAULT" else weights)
            )
        return model.eval()

    @staticmethod
    def _classes(kwargs: dict) -> dict:
        return kwargs

    def network_with_head(self) -> nn.Module:
        """What weights are loaded into."""
        return self.resnest


class ResNeStBackbone(BackboneMixin, ResNeStPreTrainedModel):
    """Feature maps, for the models of transformers that take a backbone."""

    has_attentions = False

    def __init__(self, config: ResNeStConfig):
        super().__init__(config)
        self.resnest = self._network(config, *(FEATURES[name] for name in config.out_features))
        channels = [config.res2_out_channels * 2**stage for stage in range(len(STAGES))]
        self.num_features = [self.resnest.stem.out_channels, *channels]
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BackboneOutput | tuple:
        """Maps (N, channels, H / stride, W / stride) in the order of `out_features`, for images (N, C, H, W).

        `hidden_states`, where asked for, are the maps of all stages that the network has.
        """
        if output_hidden_states is None:
            output_hidden_states = getattr(self.config, "output_hidden_states", False)
        wanted = self.resnest.out_features
        maps = self.resnest.feature_maps(pixel_values, list(self.resnest.parts if output_hidden_states else wanted))
        features = tuple(maps[name] for name in wanted)
        hidden = tuple(maps.values()) if output_hidden_states else None
        if return_dict is False:
            return (features,) if hidden is None else (features, hidden)
        return BackboneOutput(feature_maps=features, hidden_states=hidden, attentions=None)


class _WithHead(nn.Module):
    """A classifier's parts under the names that files have for them."""

    def __init__(self, backbone: ResNeSt, linear: nn.Module):
        super().__init__()
        for name, part in backbone.named_children():
            self.add_module(name, part)
        self.linear = linear


class ResNeStForImageClassification(ResNeStPreTrainedModel):
    """The network with global pooling and a linear layer, `classifier`, of `config.num_labels` outputs."""

    def __init__(self, config: ResNeStConfig):
        super().__init__(config)
        self.resnest = self._network(config, "res5")
        if config.num_labels < 1:
            raise UserError(f"num_labels is {config.num_labels}, expected at least 1")
        if not 0 <= config.drop_rate <= 1:
            raise UserError(f"drop_rate is {config.drop_rate!r}, expected 0 to 1")
        self.classifier = nn.Linear(self.resnest.out_feature_channels["res5"], config.num_labels)
        self.post_init()

    @staticmethod
    def _classes(kwargs: dict) -> dict:
        if "num_labels" in kwargs or "id2label" in kwargs:
            return kwargs
        names = dict(enumerate(ResNet50_Weights.DEFAULT.meta["categories"]))  # torchvision's list of the 1000 ImageNet classes
        return kwargs | {"id2label": names, "label2id": {name: label for label, name in names.items()}}

    def network_with_head(self) -> nn.Module:
        return _WithHead(self.resnest, self.classifier)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutputWithNoAttention | tuple:
        """`logits` (N, num_labels) for normalised images (N, C, H, W), and given `labels` (N,) the `loss`."""
        maps = self.resnest.feature_maps(pixel_values, list(self.resnest.parts))
        pooled = F.dropout(F.adaptive_avg_pool2d(maps["res5"], 1).flatten(1), self.config.drop_rate, self.training)
        logits = self.classifier(pooled)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        hidden = tuple(maps.values()) if output_hidden_states else None
        if return_dict is False:
            return tuple(each for each in (loss, logits, hidden) if each is not None)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=hidden)


def load_backbone_weights(model: nn.Module, weights: str) -> LoadReport:
    """Load a file or address, see `resolve_weights`, into the ResNeSt that is somewhere in a model of transformers.

    Raises:
        UserError: there is none in it, or the weights cannot be had or are of another variant.
    """
    backbone = next((module for module in model.modules() if isinstance(module, ResNeSt)), None)
    if backbone is None:
        raise UserError(f"a {type(model).__name__} has no ResNeSt to load weights {weights} into")
    return load_weights(backbone, resolve_weights(weights))


def image_processor(name: str) -> BitImageProcessor:
    """The processor of a variant's published evaluation: resize the short side, crop the centre, normalise.

    Raises:
        UserError: there is no such variant.
    """
    published = find_variant(name).published
    size = published.image_size
    return BitImageProcessor(
        size={"shortest_edge": int(size / published.crop)},
        crop_size={"height": size, "width": size},
        resample=RESAMPLING[published.interpolation],
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )


AutoConfig.register(ResNeStConfig.model_type, ResNeStConfig, exist_ok=True)
AutoBackbone.register(ResNeStConfig, ResNeStBackbone, exist_ok=True)
AutoModelForImageClassification.register(ResNeStConfig, ResNeStForImageClassification, exist_ok=True)
AutoImageProcessor.register(ResNeStConfig, fast_image_processor_class=BitImageProcessor, exist_ok=True)
