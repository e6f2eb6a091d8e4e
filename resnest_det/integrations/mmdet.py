"""ResNeSt inside MMDetection: importing this module registers the backbone `ResNeStDet`, the optimizer `ResNeStDetMuon`, and
`ResNeStDetOptimWrapperConstructor`, which gives parameters the rates and decays that they have in Detectron2.

    custom_imports = dict(imports=["resnest_det.integrations.mmdet"])
    model = dict(backbone=dict(type="ResNeStDet", depth=50, stem_channels=64, ...))

It replaces MMDetection's own `ResNeSt`, with the same arguments and the same parameter names in checkpoints.
"""

import logging
import re
from collections.abc import Callable, Sequence

from resnest_det.integrations.mmdet_version import check_mmdet

check_mmdet()

from mmcv.cnn import build_norm_layer  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmengine.logging import print_log  # noqa: E402
from mmengine.model import BaseModule  # noqa: E402
from mmengine.optim import DefaultOptimWrapperConstructor  # noqa: E402
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS  # noqa: E402
from mmengine.runner.checkpoint import get_external_models  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: E402

from resnest_det.backbone.loading import LoadReport, load_weights  # noqa: E402
from resnest_det.backbone.resnest import BLOCKS_PER_STAGE, STAGES, ResNeSt  # noqa: E402
from resnest_det.backbone.split_attention import Deformable  # noqa: E402
from resnest_det.distributed import get_world_size  # noqa: E402
from resnest_det.engine.muon import Muon  # noqa: E402
from resnest_det.engine.solver import parameter_groups  # noqa: E402
from resnest_det.errors import UserError  # noqa: E402
from resnest_det.weights.downloads import resolve_weights  # noqa: E402
from resnest_det.weights.names import find_backbone, from_own_names, to_own_names  # noqa: E402

__all__ = ["ResNeStDet"]

# (strides, dilations) of the four stages: the stride of the last.
_OUTPUT_STRIDES = {((1, 2, 2, 2), (1, 1, 1, 1)): 32, ((1, 2, 2, 1), (1, 1, 1, 2)): 16, ((1, 2, 1, 1), (1, 1, 2, 4)): 8}
_NETWORK = "network."
# mmcv copies it.
_BATCH_NORM = dict(type="BN", requires_grad=True)

# "Muon" is torch's there, which takes matrices only.
OPTIMIZERS.register_module(name="ResNeStDetMuon", module=Muon)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ResNeStDetOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's, with `parameter_groups` for its own: `paramwise_cfg` holds that function's arguments.

    MMEngine's makes a group of each parameter, so that Muon cannot compute those of one shape together, and gives a part with a
    rate of its own (`custom_keys`) one weight decay for all of its parameters.
    """

    def add_params(self, params: list[dict], module: nn.Module, **_) -> None:
        """Append the groups of `module` to `params`."""
        params += parameter_groups(module, base_lr=self.base_lr, weight_decay=self.base_wd, **self.paramwise_cfg)


@MODELS.register_module()
class ResNeStDet(BaseModule):
    """`ResNeSt` with the arguments of MMDetection's `ResNeSt`, and its parameter names in every checkpoint.

    Args:
        depth: 14, 26, 50, 101, 152, 200 or 269.
        groups, base_width, radix: cardinality K, width B and splits R; as in MMDetection, B has no effect with one group.
            `radix=4, groups=2, base_width=40, avd_first=True` at depth 50 is `resnest50_fast_4s2x40d`. Radix 0 is a plain
            convolution.
        reduction_factor: of the attention's hidden layer.
        avg_down_stride: a 3x3 average pool takes the stride of the 3x3 convolution, after it or, with `avd_first`, before it.
        in_channels: of the image.
        stem_channels: of the stem's last convolution, twice as many as in the earlier ones; None for `base_channels`. The
            published models have 64 up to depth 50, then 128.
        base_channels: bottleneck channels of the first stage.
        num_stages, strides, dilations: of the stages; output strides 32, 16 and 8 are possible.
        out_indices: stages (0 to 3, of stride 4 to 32) to return. Later stages are not built.
        style: "pytorch", or "caffe" for the stride in the first 1x1 convolution.
        frozen_stages: what is not trained and keeps its batch norm: -1 nothing, 0 the stem, k the stem and k stages.
        norm_cfg: norm layers as mmcv builds them. With group norm, the attention's hidden layer is one group.
        norm_eval: batch norm uses its running statistics in training too, and does not update them.
        dcn: `dict(type="DCN" or "DCNv2", deform_groups=1)` makes 3x3 convolutions deformable in the stages of
            `stage_with_dcn`. With several groups, each computes its offsets from its own channels.
        with_cp: recompute the activations of the stages in the backward pass to save memory.
        zero_init_residual: without `init_cfg`, start the last norm of every block at zero.
        init_cfg: `dict(type="Pretrained", checkpoint=...)` takes whatever `resolve_weights` takes, and `open-mmlab://NAME`, in
            any layout; weights that do not fit are refused. Other types are MMEngine's.

    Raises:
        UserError: an argument that makes no such network.
    """

    def __init__(
        self,
        depth: int,
        groups: int = 1,
        base_width: int = 4,
        radix: int = 2,
        reduction_factor: int = 4,
        avg_down_stride: bool = True,
        avd_first: bool = False,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = "pytorch",
        frozen_stages: int = -1,
        norm_cfg: dict = _BATCH_NORM,
        norm_eval: bool = True,
        dcn: dict | None = None,
        stage_with_dcn: Sequence[bool] = (False,) * 4,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        if depth not in BLOCKS_PER_STAGE:
            raise UserError(f"depth {depth} is not supported; supported: {', '.join(map(str, BLOCKS_PER_STAGE))}")
        if style not in ("pytorch", "caffe"):
            raise UserError(f"style {style!r} is not supported; supported: 'pytorch', 'caffe'")
        if not out_indices or not set(out_indices) <= set(range(num_stages)):
            raise UserError(f"out_indices {tuple(out_indices)} are not stages of {num_stages} (num_stages), counted from 0")
        if not -1 <= frozen_stages <= num_stages:
            raise UserError(f"frozen_stages {frozen_stages} is not possible with {num_stages} stages; -1 freezes nothing")
        stem_channels = stem_channels or base_channels
        if stem_channels % 2:
            raise UserError(f"stem_channels {stem_channels} is odd; the stem's first convolutions have half as many")
        self.zero_init_residual = zero_init_residual
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.network = ResNeSt(
            BLOCKS_PER_STAGE[depth],
            stem_channels // 2,
            in_channels=in_channels,
            radix=radix,
            groups=groups,
            reduction_factor=reduction_factor,
            bottleneck_width=64 if groups == 1 else base_width,
            bottleneck_channels=base_channels if groups == 1 else 64,
            res2_out_channels=4 * base_channels,
            avd=avg_down_stride and style == "pytorch",
            avd_first=avd_first,
            stride_in_1x1=style == "caffe",
            norm=_norm_function(norm_cfg),
            output_stride=_output_stride(num_stages, strides, dilations),
            checkpoint_stages=STAGES if with_cp else (),
            out_features=tuple(STAGES[index] for index in sorted(out_indices)),
            **_deformable(dcn, stage_with_dcn, num_stages),
        )
        self._register_state_dict_hook(_use_checkpoint_names)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps (N, channels, H / stride, W / stride) of the stages in `out_indices`, for images (N, in_channels, H, W).

        Raises:
            UserError: training batch norm on one image, where the attention's hidden layer has one value per channel.
        """
        if len(x) == 1 and self._needs_several_images and get_world_size() == 1:
            raise UserError(
                "one image cannot train batch norm inside split attention: set train_dataloader.batch_size to 2 or "
                "more, or the backbone's norm_eval to True"
            )
        return tuple(self.network(x).values())

    def train(self, mode: bool = True) -> "ResNeStDet":
        """Training mode, except for the parts that `frozen_stages` and `norm_eval` keep fixed."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        for name in self.network.parts[: self.frozen_stages + 1]:
            getattr(self.network, name).eval().requires_grad_(False)
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        if self.norm_eval:
            for norm in norms:
                norm.eval()
        self._needs_several_images = any(norm.training for norm in norms)

    def init_weights(self) -> None:
        """Initialise as `init_cfg` says; without it, keep the constructor's He initialisation, with `zero_init_residual`.

        Raises:
            UserError: the weights cannot be found or read, or do not fit.
        """
        if isinstance(self.init_cfg, dict) and self.init_cfg.get("type") == "Pretrained":
            report = load_pretrained(self.network, self.init_cfg["checkpoint"])
            print_log(f"Backbone: {report}", logger="current", level=logging.INFO)
            self.is_init = True
            return
        super().init_weights()
        if not self.init_cfg and self.zero_init_residual:
            for name, module in self.network.named_modules():
                if re.fullmatch(r"res\d\.\d+\.conv3\.norm", name):
                    nn.init.zeros_(module.weight)

    def _load_from_state_dict(self, state_dict, prefix, *others) -> None:
        """Rename a checkpoint's parameters, of MMDetection's or any other layout, to the network's before PyTorch loads them."""
        given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
        found = find_backbone(given)
        if found and found[1] == "":
            targets = self.network.state_dict()
            backbone, origin, *_ = to_own_names(given)
            for name, value in backbone.items():
                del state_dict[prefix + origin[name]]
                if name in targets and value.shape != targets[name].shape:
                    raise UserError(
                        f"the checkpoint's {prefix}{origin[name]} {tuple(value.shape)} does not fit the model's "
                        f"{tuple(targets[name].shape)}"
                    )
                state_dict[f"{prefix}{_NETWORK}{name}"] = value
        super()._load_from_state_dict(state_dict, prefix, *others)


def _use_checkpoint_names(module: ResNeStDet, state_dict: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    prefix_in_model = prefix + _NETWORK
    own = {name[len(prefix_in_model) :]: name for name in state_dict if name.startswith(prefix_in_model)}
    values = {name: state_dict.pop(name_in_model) for name, name_in_model in own.items()}
    state_dict.update({prefix + name: value for name, value in from_own_names(values, "mmdet").items()})


def load_pretrained(network: ResNeSt, checkpoint: str) -> LoadReport:
    """Load the backbone of a checkpoint of any layout; whatever else the checkpoint holds is ignored.

    Args:
        checkpoint: see `resolve_weights`; also `open-mmlab://NAME`, for a name whose address MMEngine knows.

    Raises:
        UserError: the name is unknown, or see `resolve_weights` and `load_weights`.
    """
    scheme, _, name = checkpoint.partition("://")
    if scheme in ("open-mmlab", "openmmlab"):
        addresses = get_external_models()
        if name not in addresses:
            near = ", ".join(other for other in addresses if "resnest" in other)
            raise UserError(f"init_cfg: MMEngine has no address for {checkpoint}; of ResNeSt it knows {near}")
        checkpoint = addresses[name]
    return load_weights(network, resolve_weights(checkpoint))


def _norm_function(norm_cfg: dict) -> Callable[[int], nn.Module]:
    """mmcv's norm layer for a number of channels."""

    def norm(channels: int) -> nn.Module:
        try:
            return build_norm_layer(norm_cfg, channels)[1]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"norm_cfg {norm_cfg} is not possible with {channels} channels: {error}") from None

    return norm


def _output_stride(num_stages: int, strides: Sequence[int], dilations: Sequence[int]) -> int:
    for (all_strides, all_dilations), output_stride in _OUTPUT_STRIDES.items():
        if (tuple(strides), tuple(dilations)) == (all_strides[:num_stages], all_dilations[:num_stages]):
            return output_stride
    known = "; ".join(f"{strides[:num_stages]} with {dilations[:num_stages]}" for strides, dilations in _OUTPUT_STRIDES)
    raise UserError(
        f"strides {tuple(strides)} with dilations {tuple(dilations)} are not supported in {num_stages} stages "
        f"(num_stages); supported: {known}"
    )


def _deformable(dcn: dict | None, stage_with_dcn: Sequence[bool], num_stages: int) -> dict:
    """The arguments of `ResNeSt` for MMDetection's `dcn` and `stage_with_dcn`."""
    if dcn is None:
        return {}
    if dcn.get("type") not in ("DCN", "DCNv2"):
        raise UserError(f"dcn type {dcn.get('type')!r} is not supported; supported: 'DCN', 'DCNv2'")
    unknown = dcn.keys() - {"type", "deform_groups", "fallback_on_stride"}
    if unknown or dcn.get("fallback_on_stride"):
        raise UserError(f"dcn {dcn} is not supported; supported: type, deform_groups, and fallback_on_stride=False")
    if len(stage_with_dcn) != num_stages:
        raise UserError(f"stage_with_dcn {tuple(stage_with_dcn)} needs one value for each of {num_stages} stages (num_stages)")
    return {
        "deform_on_per_stage": tuple(stage_with_dcn) + (False,) * (len(STAGES) - num_stages),
        "deformable": Deformable(dcn["type"] == "DCNv2", dcn.get("deform_groups", 1)),
    }
