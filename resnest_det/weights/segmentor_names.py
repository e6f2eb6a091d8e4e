"""The names that the heads of semantic models have in other libraries.

| | this package | the authors (PyTorch-Encoding) | MMSegmentation |
|---|---|---|---|
| backbone | `backbone.` | `pretrained.` | `backbone.` |
| FCN | `sem_seg_head.convs.0` | `head.conv5.0` | `decode_head.convs.0.conv`, `.conv_cat.conv` |
| DeepLabV3 | `sem_seg_head.aspp.convs.0` | `head.aspp.b0.0` | `decode_head.aspp_modules.0.conv` |
| its projection | `sem_seg_head.aspp.project` | `head.aspp.project.0` | `decode_head.bottleneck.conv` |
| its pooled branch | `sem_seg_head.aspp.convs.4.1` | `head.aspp.b4.gap.1` | `decode_head.image_pool.1.conv` |
| DeepLabV3+ | `sem_seg_head.decoder.res2.fuse_conv.0` | | `decode_head.sep_bottleneck.0` |
| PSPNet | `sem_seg_head.pyramid.grids.0.1` | | `decode_head.psp_modules.0.1.conv` |
| classification | `sem_seg_head.predictor` | `head.block.4`, `head.conv5.4` | `decode_head.conv_seg` |
| auxiliary head | `auxiliary_head.convs.0` | `auxlayer.conv5.0` | `auxiliary_head.convs.0.conv` |
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Patterns of a module's name to this package's name of it; a norm that follows a convolution is the child `norm`.
_AUTHORS = (
    (r"head\.aspp\.b([0-3])\.0", r"sem_seg_head.aspp.convs.\1"),
    (r"head\.aspp\.b([0-3])\.1", r"sem_seg_head.aspp.convs.\1.norm"),
    (r"head\.aspp\.b4\.gap\.1", "sem_seg_head.aspp.convs.4.1"),
    (r"head\.aspp\.b4\.gap\.2", "sem_seg_head.aspp.convs.4.1.norm"),
    (r"head\.aspp\.project\.0", "sem_seg_head.aspp.project"),
    (r"head\.aspp\.project\.1", "sem_seg_head.aspp.project.norm"),
    (r"head\.(?:block|conv5)\.0", "sem_seg_head.convs.0"),
    (r"head\.(?:block|conv5)\.1", "sem_seg_head.convs.0.norm"),
    (r"head\.(?:block|conv5)\.4", "sem_seg_head.predictor"),
    (r"auxlayer\.conv5\.0", "auxiliary_head.convs.0"),
    (r"auxlayer\.conv5\.1", "auxiliary_head.convs.0.norm"),
    (r"auxlayer\.conv5\.4", "auxiliary_head.predictor"),
)
_NORM = {"conv": "", "bn": ".norm", "gn": ".norm"}
_MMSEG = (
    (r"(decode_head|auxiliary_head)\.conv_seg", "{head}.predictor"),
    (r"(decode_head|auxiliary_head)\.convs\.(\d+)\.(conv|bn|gn)", "{head}.convs.{1}{norm}"),
    (r"(decode_head|auxiliary_head)\.conv_cat\.(conv|bn|gn)", "{head}.conv_cat{norm}"),
    (r"(decode_head)\.aspp_modules\.(\d)\.(conv|bn|gn)", "{head}.{aspp}.convs.{1}{norm}"),
    (r"(decode_head)\.aspp_modules\.(\d)\.(depthwise|pointwise)_conv\.(conv|bn|gn)", "{head}.{aspp}.convs.{1}.{2}{norm}"),
    (r"(decode_head)\.image_pool\.1\.(conv|bn|gn)", "{head}.{aspp}.convs.{pooled}.1{norm}"),
    (r"(decode_head)\.psp_modules\.(\d)\.1\.(conv|bn|gn)", "{head}.pyramid.grids.{1}.1{norm}"),
    (r"(decode_head)\.bottleneck\.(conv|bn|gn)", "{head}.{pyramid}.project{norm}"),
    (r"(decode_head)\.c1_bottleneck\.(conv|bn|gn)", "{head}.decoder.res2.project_conv{norm}"),
    (
        r"(decode_head)\.sep_bottleneck\.(\d)\.(depthwise|pointwise)_conv\.(conv|bn|gn)",
        "{head}.decoder.res2.fuse_conv.{1}.{2}{norm}",
    ),
)


def segmentor_heads(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """The heads of a semantic model of another library among the tensors of a file.

    Args:
        state: tensors by name, see `state_dict_of`.

    Returns:
        The heads' parameters under this package's names, `sem_seg_head.` and `auxiliary_head.`; the name that each had; and whose
        they are, "authors" or "mmseg". Nothing, "" for a file of neither.
    """
    if "decode_head.conv_seg.weight" in state:
        renamed, family = _mmseg_names(state), "mmseg"
    elif any(f"pretrained.{name}" in state for name in ("conv1.0.weight", "conv1.weight")):
        renamed, family = {name: _first_match(name, _AUTHORS) for name in state}, "authors"
    else:
        return {}, {}, ""
    origin = {own: name for name, own in renamed.items() if own}
    heads = {own: state[name] for own, name in origin.items()}
    return (_reordered(heads) if family == "mmseg" else heads), origin, family


def _first_match(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    module, _, parameter = name.rpartition(".")
    for pattern, own in patterns:
        if found := re.fullmatch(pattern, module):
            return f"{found.expand(own)}.{parameter}"
    return ""


def _mmseg_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    plus = any(name.startswith("decode_head.sep_bottleneck.") for name in state)
    aspp = "decoder.res5.project_conv" if plus else "aspp"
    pyramid = "pyramid" if any(name.startswith("decode_head.psp_modules.") for name in state) else aspp
    pooled = 1 + max(
        (int(found[1]) for name in state if (found := re.match(r"decode_head\.aspp_modules\.(\d)", name))), default=0
    )
    renamed = {}
    for name in state:
        module, _, parameter = name.rpartition(".")
        for pattern, own in _MMSEG:
            if found := re.fullmatch(pattern, module):
                head, *parts = found.groups()
                head = "sem_seg_head" if head == "decode_head" else head
                norm = _NORM[parts[-1]] if parts else ""
                own = own.format(head, *parts, head=head, norm=norm, aspp=aspp, pyramid=pyramid, pooled=pooled)
                renamed[name] = f"{own}.{parameter}"
    return renamed


def _reordered(heads: dict[str, Tensor]) -> dict[str, Tensor]:
    """MMSegmentation puts the pooled branch before the others, and the coarser map before the finer one; here it is reverse."""
    heads = dict(heads)
    for name, value in heads.items():
        if re.search(r"(aspp|res5\.project_conv)\.project\.weight$", name):
            channels = heads[name.replace("project.weight", "convs.0.weight")].shape[0]
            heads[name] = torch.roll(value, -channels, dims=1)
        elif ".fuse_conv.0.depthwise." in name and value.dim():
            heads[name] = torch.roll(value, _finer_channels(heads), dims=0)
        elif name.endswith(".fuse_conv.0.pointwise.weight"):
            heads[name] = torch.roll(value, _finer_channels(heads), dims=1)
    return heads


def _finer_channels(heads: Mapping[str, Tensor]) -> int:
    return heads["sem_seg_head.decoder.res2.project_conv.weight"].shape[0]
