"""mmseg: its necks and heads, and HRNet. The forwards are those of 1.2.

Its ``resize`` is ``F.interpolate``, and may warn where corners are aligned. A twin does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._gather import MAX_MAPS, mode_reasons
from .._glue import Part, Upsampled, add, cat, known_reasons
from .._rewrite import Rewrites
from ._openmmlab import ONE_CONCATENATION, add_hrnet, add_pyramid
from ._openmmlab import branch_sum as branch_sum  # for rewritten code

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find
_HEADS = "mmseg.models.decode_heads"

#: The fingerprints of what the recipes of heads absorb or call in another way.
_TRANSFORM = {"_transform_inputs": ["d365ce693e6c5a58"]}
_POOLING = {"PPM": ["04d063f5865c7139"]}
_UPSAMPLE = {"Upsample": ["585ae6d2ecae56a9"]}


def scaled(path: nn.Module, x: Tensor, size: Sequence[int], align_corners: bool) -> Upsampled:
    """``resize(path(x), size)``, bilinear, not computed yet.

    Args:
        path: a Sequential that may end in mmseg's ``Upsample``. Where that leads to ``size``, the
            ``resize`` changes nothing, and the ``Upsample`` waits in its place.
        x: its input.
        size: of the result.
        align_corners: of the ``resize``.
    """
    layers: list[Any] = list(path.children())
    last = layers.pop()
    for layer in layers:
        x = layer(x)
    if type(last).__name__ in _UPSAMPLE:
        assert isinstance(last.scale_factor, float)  # as `_upsample_reasons` has it
        if [int(n * last.scale_factor) for n in x.shape[2:]] == list(size):
            return Upsampled(x, tuple(size), None, last.mode, last.align_corners)
    return Upsampled(last(x), tuple(size), None, "bilinear", align_corners)


def _upsample_reasons(path: nn.Module, name: str) -> list[str]:
    """Why :func:`scaled` cannot stand for a path; empty: it can."""
    if type(path).forward is not nn.Sequential.forward or not len(path._modules):
        return [f"{name} is no Sequential, but a {type(path).__name__}"]
    last: Any = list(path.children())[-1]
    if type(last).__name__ not in _UPSAMPLE:
        return []
    reasons = known_reasons(last, name, _UPSAMPLE) + mode_reasons(last.mode, last.align_corners)
    if last.size or not isinstance(last.scale_factor, float):
        reasons.append(f"{name} ends in an Upsample without a single scale factor")
    return reasons


def hrnet_path(layers: nn.Module, x: Tensor, size: Sequence[int]) -> Upsampled:
    """A path of HRNet, which upsamples by a factor, and then resizes to what it is added to."""
    return scaled(layers, x, size, False)


add_pyramid(
    REWRITES, "mmseg.models.necks.fpn:FPN", resize="resize", fingerprints=["8c21596c799b2afd"]
)
REWRITES.add(
    "mmseg.models.necks.jpu:JPU",
    fingerprints=["bba5673738a2e585"],
    summary=ONE_CONCATENATION,
    edits={"resize": "msr.up", "torch.cat(feats, dim=1)": "msr.cat(feats)"},
)
add_hrnet(
    REWRITES,
    "mmseg.models.backbones.hrnet:HRModule",
    fingerprints=["4e64c7af67bd507a"],
    path_reasons=_upsample_reasons,
    old="""\
y = 0
for j in range(self.num_branches):
    if i == j:
        y += x[j]
    elif j > i:
        y = y + resize(
            self.fuse_layers[i][j](x[j]),
            size=x[i].shape[2:],
            mode='bilinear',
            align_corners=False)
    else:
        y += self.fuse_layers[i][j](x[j])
x_fuse.append(self.relu(y))
""",
    new="x_fuse.append(recipe.branch_sum(self.fuse_layers[i], x, i, recipe.hrnet_path))",
)


# Heads. Their work is in methods that the forward calls.


def transformed(head: Any, inputs: Sequence[Tensor]) -> Any:
    """``head._transform_inputs(inputs)``."""
    if head.input_transform != "resize_concat":
        return head._transform_inputs(inputs)
    levels = [inputs[i] for i in head.in_index]
    size = levels[0].shape[2:]
    return cat([Upsampled(x, size, None, "bilinear", head.align_corners) for x in levels])


def _transform_reasons(head: Any) -> list[str]:
    if head.input_transform == "resize_concat":
        return []
    return ["it takes one level of the pyramid: there is nothing to fuse"]


def pooled(head: Any, x: Tensor) -> Tensor:
    """A map and its pooled maps, through the bottleneck of a head with pyramid pooling."""
    pooling = head.psp_modules
    parts: list[Part] = [x]
    for branch in pooling:
        parts.append(Upsampled(branch(x), x.shape[2:], None, "bilinear", pooling.align_corners))
    merged: Tensor = head.bottleneck(cat(parts))
    return merged


def _pooling_reasons(head: Any) -> list[str]:
    if len(head.psp_modules) >= MAX_MAPS:
        return [f"{len(head.psp_modules)} pooled maps are more than one operator takes"]
    return known_reasons(head.psp_modules, "psp_modules", _POOLING)


def _pooling_modules(head: Any) -> list[nn.Module]:
    return [head.psp_modules]


def pyramid_features(head: Any, inputs: Sequence[Tensor]) -> Tensor:
    """``_forward_feature`` of a ``UPerHead``."""
    maps = head._transform_inputs(inputs)
    laterals = [layer(maps[i]) for i, layer in enumerate(head.lateral_convs)]
    laterals.append(pooled(head, maps[-1]))

    def at(x: Tensor, other: Tensor) -> Upsampled:
        return Upsampled(x, other.shape[2:], None, "bilinear", head.align_corners)

    for i in range(len(laterals) - 1, 0, -1):
        laterals[i - 1] = add(laterals[i - 1], at(laterals[i], laterals[i - 1]))
    levels = [head.fpn_convs[i](x) for i, x in enumerate(laterals[:-1])] + laterals[-1:]
    merged: Tensor = head.fpn_bottleneck(cat([levels[0], *(at(x, levels[0]) for x in levels[1:])]))
    return merged


def pooled_features(head: Any, inputs: Sequence[Tensor]) -> Tensor:
    """``_forward_feature`` of a ``PSPHead``."""
    return pooled(head, transformed(head, inputs))


def atrous_features(head: Any, inputs: Sequence[Tensor]) -> Tensor:
    """``_forward_feature`` of an ``ASPPHead``."""
    x = transformed(head, inputs)
    pool = Upsampled(head.image_pool(x), x.shape[2:], None, "bilinear", head.align_corners)
    merged: Tensor = head.bottleneck(cat([pool, *head.aspp_modules(x)]))
    return merged


def plain_features(head: Any, inputs: Sequence[Tensor]) -> Tensor:
    """``_forward_feature`` of an ``FCNHead``."""
    x = transformed(head, inputs)
    features: Tensor = head.convs(x)
    if head.concat_input:
        features = head.conv_cat(torch.cat([x, features], 1))
    return features


def _add_head(
    head: str, features: str, fingerprint: str, *, summary: str = ONE_CONCATENATION, **recipe: Any
) -> None:
    """The recipe of a head whose ``forward`` classifies what ``_forward_feature`` returns."""
    methods = {**_TRANSFORM, "_forward_feature": [fingerprint], **recipe.pop("methods", {})}
    REWRITES.add(
        f"{_HEADS}.{head}",
        fingerprints=["e2468ba050ba9ef2"],
        methods=methods,
        summary=summary,
        edits={"self._forward_feature(inputs)": f"recipe.{features}(self, inputs)"},
        **recipe,
    )


_add_head(
    "uper_head:UPerHead",
    "pyramid_features",
    "2e94585b4e333e5e",
    methods={"psp_forward": ["c0efa70e8416b302"]},
    summary="Pooled maps and levels are upsampled straight into concatenations and sums.",
    skip_reasons=_pooling_reasons,
    absorbed_modules=_pooling_modules,
)
_add_head(
    "psp_head:PSPHead",
    "pooled_features",
    "b040d1de993ca767",
    summary="Pooled maps are upsampled straight into the concatenation.",
    skip_reasons=_pooling_reasons,
    absorbed_modules=_pooling_modules,
)
_add_head(
    "aspp_head:ASPPHead",
    "atrous_features",
    "966eace8cedf34f4",
    summary="The pooled branch is spread straight into the concatenation.",
)
_add_head("fcn_head:FCNHead", "plain_features", "b841e9cbb0a3d9e6", skip_reasons=_transform_reasons)
REWRITES.add(
    f"{_HEADS}.ocr_head:OCRHead",
    fingerprints=["0e406bff8ca89e80"],
    methods=_TRANSFORM,
    summary=ONE_CONCATENATION,
    skip_reasons=_transform_reasons,
    edits={"self._transform_inputs(inputs)": "recipe.transformed(self, inputs)"},
)
REWRITES.add(
    f"{_HEADS}.sep_aspp_head:DepthwiseSeparableASPPHead",
    fingerprints=["52b7bf1768139670"],
    methods=_TRANSFORM,
    summary="Pooled branch and coarser map are upsampled straight into concatenations.",
    edits={
        "self._transform_inputs(inputs)": "recipe.transformed(self, inputs)",
        "resize": "msr.up",
        "torch.cat(aspp_outs, dim=1)": "msr.cat(aspp_outs)",
        "torch.cat([output, c1_output], dim=1)": "msr.cat([output, c1_output])",
    },
)
REWRITES.add(
    f"{_HEADS}.segformer_head:SegformerHead",
    fingerprints=["c2dd9b92436675a9"],
    summary=ONE_CONCATENATION,
    edits={"resize": "msr.up", "torch.cat(outs, dim=1)": "msr.cat(outs)"},
)
REWRITES.add(
    f"{_HEADS}.ham_head:LightHamHead",
    fingerprints=["73d60987b3c85406"],
    summary=ONE_CONCATENATION,
    edits={"resize": "msr.up", "torch.cat(inputs, dim=1)": "msr.cat(inputs)"},
)


def _scale_heads(head: Any) -> list[tuple[str, nn.Module]]:
    """What resizes a level, by name."""
    return [(f"scale_heads.{i}", path) for i, path in enumerate(head.scale_heads) if i > 0]


REWRITES.add(
    f"{_HEADS}.fpn_head:FPNHead",
    fingerprints=["0cd45b2dc3b92e44"],
    summary="Upsampling and sum of all levels in one pass.",
    skip_reasons=lambda head: [
        reason for name, path in _scale_heads(head) for reason in _upsample_reasons(path, name)
    ],
    absorbed_modules=lambda head: [
        module for _, path in _scale_heads(head) for module in (path, list(path.children())[-1])
    ],
    edits={
        "for i in range(1, len(self.feature_strides)):\n"
        "    output = output + resize(\n"
        "        self.scale_heads[i](x[i]), size=output.shape[2:], mode='bilinear',\n"
        "        align_corners=self.align_corners)": (
            "output = msr.add(output, *[\n"
            "    recipe.scaled(\n"
            "        self.scale_heads[i], x[i], output.shape[2:], self.align_corners)\n"
            "    for i in range(1, len(self.feature_strides))])"
        )
    },
)
