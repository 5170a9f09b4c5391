"""segmentation_models_pytorch: every decoder that interpolates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from segmentation_models_pytorch.decoders.unetplusplus.decoder import (
    DecoderBlock,
    UnetPlusPlusDecoder,
)
from torch import Tensor, nn

from ... import functional
from .._gather import MAX_MAPS, expect_size, mode_reasons
from .._glue import Upsampled, known_reasons, upsampling_modules, upsampling_reasons
from .._hooks import has_hooks
from .._registry import register
from .._rewrite import Rewrites

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find
_DECODERS = "segmentation_models_pytorch.decoders"


# The forward of segmentation_models_pytorch 0.5 and 0.6.
@register(UnetDecoderBlock, forward_fingerprints=["b4929e74fbb85c1a"])
class FusedUnetDecoderBlock(UnetDecoderBlock):
    """Upsampling straight into the concatenation with the skip."""

    @staticmethod
    def skip_reasons(module: UnetDecoderBlock) -> list[str]:
        """Interpolation modes without a kernel."""
        return mode_reasons(module.interpolation_mode)

    def forward(
        self,
        feature_map: Tensor,
        target_height: int,
        target_width: int,
        skip_connection: Tensor | None = None,
    ) -> Tensor:
        """As the original; the last block of a decoder has no skip, and just upsamples."""
        size = (target_height, target_width)
        if skip_connection is None:
            merged = functional.resample(feature_map, size, mode=self.interpolation_mode)
        else:
            expect_size("UnetDecoderBlock", [skip_connection], size, feature_map.shape[0])
            merged = functional.resample_cat(
                [feature_map, skip_connection], size, mode=self.interpolation_mode
            )
            merged = self.attention1(merged)
        return self.attention2(self.conv2(self.conv1(merged)))


# The forward of 0.5, and that of 0.6, which knows blocks without channels.
@register(DecoderBlock, forward_fingerprints=["ca87b1eae8e7a43c", "14db62ba9efdfb6b"])
class FusedDecoderBlock(DecoderBlock):
    """Upsampling straight into the concatenation with the skips."""

    @staticmethod
    def skip_reasons(module: DecoderBlock) -> list[str]:
        """Interpolation modes without a kernel."""
        return mode_reasons(module.interpolation_mode)

    def forward(self, x: Tensor, skip: Tensor | Sequence[Tensor] | None = None) -> Tensor:
        """As the original, with ``torch.cat(skip, 1)`` for several skips."""
        if getattr(self, "is_empty", False):
            return super().forward(x, None)  # does not read the skip
        if skip is None:
            merged = functional.resample(x, scale_factor=2.0, mode=self.interpolation_mode)
        else:
            skips = [skip] if isinstance(skip, Tensor) else list(skip)
            size = skips[0].shape[2:]
            expect_size("DecoderBlock", skips, size, x.shape[0])
            merged = functional.resample_cat(
                [x, *skips],
                size,
                mode=self.interpolation_mode,
                scale_factors=[2.0] + [None] * len(skips),
            )
            merged = self.attention1(merged)
        return self.attention2(self.conv2(self.conv1(merged)))


# The forward of 0.5 and 0.6.
@register(UnetPlusPlusDecoder, forward_fingerprints=["15f6ac258948f8a8"])
class FusedUnetPlusPlusDecoder(UnetPlusPlusDecoder):
    """Dense skips go to the blocks one by one: no concatenation before theirs."""

    @staticmethod
    def skip_reasons(module: UnetPlusPlusDecoder) -> list[str]:
        """Hooks that would see a list of skips, and more maps than an operator takes."""
        reasons = [
            f"a hook on blocks.{name} would see skips that are not concatenated"
            for name, block in module.blocks.items()
            if has_hooks(block)
        ]
        # The upsampled map, the encoder's, and one of each block before in the row.
        if module.depth + 1 > MAX_MAPS:
            reasons.append(f"{module.depth + 1} maps are more than one operator takes")
        return reasons

    def forward(self, features: list[Tensor]) -> Tensor:
        """As the original, without the concatenations of skips that a fused block does itself."""
        features = features[1:][::-1]  # coarsest first, without the one of the image's size
        dense: dict[tuple[int, int], Tensor] = {}
        for layer in range(self.depth):
            for row in range(self.depth - layer):
                column = row + layer
                below = dense[row, column - 1] if layer else features[row]
                skips = [dense[i, column] for i in range(row + 1, column + 1)]
                skips.append(features[column + 1])
                dense[row, column] = _merge(self.blocks[f"x_{row}_{column}"], below, skips)
        last: Tensor = self.blocks[f"x_0_{self.depth}"](dense[0, self.depth - 1])
        return last


def _merge(block: nn.Module, x: Tensor, skips: list[Tensor]) -> Tensor:
    """Calls a block, fused or (left out by a filter, say) not."""
    if len(skips) == 1:
        merged: Tensor = block(x, skips[0])
    elif isinstance(block, FusedDecoderBlock):
        merged = block(x, skips)
    else:
        # As a module that is none of ours gets them from the original.
        merged = block(x, torch.cat(skips, 1))
    return merged


# FPN.

#: The fingerprints of modules whose work is done by what they are part of.
_KNOWN = {
    "SegmentationBlock": ["a57a3bab1cbab8e4"],
    "Conv3x3GNReLU": ["dd5ffaa373e996d8"],
    "MergeBlock": ["1b25263161457911"],
    "PSPBlock": ["d7532df4d372e4c3"],
    "ASPPPooling": ["544a75830444ed64"],
}


def _interpolation_mode_reasons(module: Any) -> list[str]:
    return mode_reasons(module.interpolation_mode)


def _pyramid_reasons(module: Any) -> list[str]:
    reasons = known_reasons(module.merge, "merge", _KNOWN)
    for i, block in enumerate(module.seg_blocks):
        reasons += known_reasons(block, f"seg_blocks.{i}", _KNOWN)
        if not reasons:
            reasons += known_reasons(block.block[-1], f"the last of seg_blocks.{i}", _KNOWN)
    return reasons


def _pyramid_modules(module: Any) -> list[nn.Module]:
    absorbed: list[nn.Module] = [module.merge]
    for block in module.seg_blocks:
        absorbed += [block, block.block, block.block[-1]]
    return absorbed


def segment(block: Any, x: Tensor) -> Tensor | Upsampled:
    """A ``SegmentationBlock``, whose last interpolation waits for the sum."""
    *before, last = block.block
    for layer in before:
        x = layer(x)
    x = last.block(x)
    if not last.upsample:
        return x
    return Upsampled(x, scale_factor=2.0, mode="bilinear", align_corners=True)


REWRITES.add(
    f"{_DECODERS}.fpn.decoder:FPNBlock",
    fingerprints=["544f942feef1a898"],
    summary="Upsampling and lateral sum in one pass.",
    skip_reasons=_interpolation_mode_reasons,
    edits={"F.interpolate": "msr.up", "x + skip": "msr.add(x, skip)"},
)
REWRITES.add(
    f"{_DECODERS}.fpn.decoder:Conv3x3GNReLU",
    fingerprints=_KNOWN["Conv3x3GNReLU"],
    summary="One gather each way.",
    edits={"F.interpolate": "msr.resample"},
)
REWRITES.add(
    f"{_DECODERS}.fpn.decoder:FPNDecoder",
    fingerprints=["da985430414ec15f"],
    summary="The last upsampling of each level and the sum of the levels in one pass.",
    skip_reasons=_pyramid_reasons,
    absorbed_modules=_pyramid_modules,
    edits={
        "self.seg_blocks[0](p5)": "recipe.segment(self.seg_blocks[0], p5)",
        "self.seg_blocks[1](p4)": "recipe.segment(self.seg_blocks[1], p4)",
        "self.seg_blocks[2](p3)": "recipe.segment(self.seg_blocks[2], p3)",
        "self.seg_blocks[3](p2)": "recipe.segment(self.seg_blocks[3], p2)",
        "self.merge(feature_pyramid)": (
            "msr.add(*feature_pyramid) if self.merge.policy == 'add' else msr.cat(feature_pyramid)"
        ),
    },
)

# MAnet.


def _attention_reasons(module: Any) -> list[str]:
    # The mean over the pixels, which the attention begins with, is the same before and after.
    if module.interpolation_mode != "nearest":
        return [f"its attention needs the map that is upsampled by {module.interpolation_mode!r}"]
    first = module.SE_hl[0]
    if type(first) is not nn.AdaptiveAvgPool2d or first.output_size != 1:
        return ["SE_hl does not begin with the mean over all pixels"]
    return []


REWRITES.add(
    f"{_DECODERS}.manet.decoder:MFABBlock",
    fingerprints=["bab29ff3221aa9ed"],
    summary="Attention before the upsampling, and that straight into the concatenation.",
    skip_reasons=_attention_reasons,
    absorbed_modules=lambda module: [module.SE_hl, module.SE_hl[0]],
    edits={
        "x = F.interpolate(x, scale_factor=2.0, mode=self.interpolation_mode)": "pass",
        "torch.cat([x, skip], dim=1)": "msr.cat([msr.up(x, scale_factor=2.0), skip])",
        "x = self.conv1(x)": (
            "x = self.conv1(x if skip is not None else msr.resample(x, scale_factor=2.0))"
        ),
    },
)
REWRITES.add(
    f"{_DECODERS}.manet.decoder:DecoderBlock",
    twin="FusedMAnetDecoderBlock",
    fingerprints=["ebe4cb1ddd96101f"],
    summary="Upsampling straight into the concatenation with the skip.",
    skip_reasons=_interpolation_mode_reasons,
    edits={
        "x = F.interpolate(x, scale_factor=2.0, mode=self.interpolation_mode)": (
            "x = msr.up(x, scale_factor=2.0, mode=self.interpolation_mode)"
        ),
        "torch.cat([x, skip], dim=1)": "msr.cat([x, skip])",
        "x = self.conv1(x)": "x = self.conv1(x if skip is not None else msr.resample(*x))",
    },
)

# PAN.


def gated_sum(gate: Tensor, x: Tensor, branch: Upsampled) -> Tensor:
    """``gate * x + branch``, for a gate of one channel."""
    if gate.shape != (x.shape[0], 1, *x.shape[2:]) or not _is_like(branch, x):
        return gate * x + branch.computed()
    weights = torch.stack([gate, torch.ones_like(gate)], 1)
    return functional.resample_sum(
        [x, branch.input],
        x.shape[2:],
        weights=weights,
        mode=branch.mode,
        align_corners=branch.align_corners,
    )


def sum_with_scaled(branch: Upsampled, x: Tensor, factors: Tensor) -> Tensor:
    """``branch + x * factors``, for one factor per image and channel."""
    if factors.shape != (*x.shape[:2], 1, 1) or not _is_like(branch, x):
        return branch.computed() + x * factors
    factors = factors.flatten(1)
    return functional.resample_sum(
        [branch.input, x],
        x.shape[2:],
        weights=torch.stack([torch.ones_like(factors), factors], 1),
        mode=branch.mode,
        align_corners=branch.align_corners,
    )


def _is_like(branch: Upsampled, x: Tensor) -> bool:
    return branch.input.shape[:2] == x.shape[:2] and branch.target() == x.shape[2:]


REWRITES.add(
    f"{_DECODERS}.pan.decoder:FPABlock",
    fingerprints=["fa41dac68a84ed98"],
    summary="Upsampling and sum of each level in one pass; gate, pooled branch and sum in another.",
    skip_reasons=lambda module: mode_reasons(module.upscale_mode, module.align_corners),
    edits={
        "F.interpolate": "msr.up",
        "x2 + x3": "msr.add(x2, x3)",
        "x + x1": "msr.add(x, x1)",
        "x = torch.mul(x, middle_output)\nx = x + branch1_output": (
            "x = recipe.gated_sum(msr.resample(*x), middle_output, branch1_output)"
        ),
    },
)
REWRITES.add(
    f"{_DECODERS}.pan.decoder:GAUBlock",
    fingerprints=["4739ac9822adddfe"],
    summary="Upsampling, attention and sum in one pass.",
    skip_reasons=lambda module: mode_reasons(module.interpolation_mode, module.align_corners),
    edits={
        "F.interpolate": "msr.up",
        "z = torch.mul(x, y)\nreturn y_up + z": "return recipe.sum_with_scaled(y_up, x, y)",
    },
)

# PSPNet, UPerNet, SegFormer, DeepLab.


def pooled(block: Any, x: Tensor) -> Tensor | Upsampled:
    """A ``PSPBlock``, whose interpolation waits for the concatenation."""
    if torch.onnx.is_in_onnx_export():
        exported: Tensor = block(x)  # which pools in another way there
        return exported
    return Upsampled(block.pool(x), x.shape[2:], mode="bilinear", align_corners=True)


def _pooling_reasons(module: Any) -> list[str]:
    reasons = [] if len(module.blocks) < MAX_MAPS else ["more maps than one operator takes"]
    for i, block in enumerate(module.blocks):
        reasons += known_reasons(block, f"blocks.{i}", _KNOWN)
    return reasons


REWRITES.add(
    f"{_DECODERS}.pspnet.decoder:PSPModule",
    fingerprints=["5e361abbc2205217"],
    summary="Every pooled map is upsampled straight into the concatenation.",
    skip_reasons=_pooling_reasons,
    absorbed_modules=lambda module: list(module.blocks),
    edits={"block(x)": "recipe.pooled(block, x)", "torch.cat(xs, dim=1)": "msr.cat(xs)"},
)
REWRITES.add(
    f"{_DECODERS}.upernet.decoder:PSPModule",
    twin="FusedUPerNetPSPModule",
    fingerprints=["171b61e17d6e8d7e"],
    summary="Every pooled map is upsampled straight into the concatenation.",
    edits={
        "F.interpolate": "msr.up",
        "torch.cat(pyramid_features, dim=1)": "msr.cat(pyramid_features)",
    },
)
REWRITES.add(
    f"{_DECODERS}.upernet.decoder:FPNLateralBlock",
    fingerprints=["6924b73ad88b9661"],
    summary="Upsampling and lateral sum in one pass.",
    edits={
        "F.interpolate": "msr.up",
        "state_feature + lateral_feature": "msr.add(state_feature, lateral_feature)",
    },
)
REWRITES.add(
    f"{_DECODERS}.upernet.decoder:UPerNetDecoder",
    fingerprints=["b7e7184e2c28ad96"],
    summary="Every level is upsampled straight into the concatenation.",
    edits={
        "F.interpolate": "msr.up",
        "torch.cat(resized_fpn_features[::-1], dim=1)": "msr.cat(resized_fpn_features[::-1])",
    },
)
REWRITES.add(
    f"{_DECODERS}.segformer.decoder:SegformerDecoder",
    fingerprints=["a014920ff47e82dc"],
    summary="Every level is upsampled straight into the concatenation.",
    edits={
        "F.interpolate": "msr.up",
        "torch.cat(resized_features, dim=1)": "msr.cat(resized_features)",
    },
)
REWRITES.add(
    f"{_DECODERS}.deeplabv3.decoder:ASPP",
    fingerprints=["327ff82001f95fc0"],
    summary="The pooled branch is spread straight into the concatenation.",
    skip_reasons=lambda module: known_reasons(module.convs[-1], "the last of convs", _KNOWN),
    absorbed_modules=lambda module: [module.convs[-1]],
    edits={
        "for conv in self.convs:\n    res.append(conv(x))": (
            "*convs, pooling = self.convs\n"
            "for conv in convs:\n"
            "    res.append(conv(x))\n"
            "res.append(msr.pooled_branch(pooling, x))"
        ),
        "torch.cat(res, dim=1)": "msr.cat(res)",
    },
)
REWRITES.add(
    f"{_DECODERS}.deeplabv3.decoder:DeepLabV3PlusDecoder",
    fingerprints=["c9d7e6df6c2c3e2e"],
    summary="Upsampling straight into the concatenation.",
    skip_reasons=lambda module: upsampling_reasons(module.up, "up"),
    absorbed_modules=lambda module: upsampling_modules(module.up),
    edits={
        "self.up(aspp_features)": "msr.upsampled_by(self.up, aspp_features)",
        "torch.cat([aspp_features, high_res_features], dim=1)": (
            "msr.cat([aspp_features, high_res_features])"
        ),
    },
)

# DPT: nothing to fuse with, a convolution comes next.

for _name in ("FusionBlock", "DPTSegmentationHead"):
    REWRITES.add(
        f"{_DECODERS}.dpt.decoder:{_name}",
        fingerprints=["1423f16eff5f1738", "3853a7b3230d86bb"],
        summary="One gather each way.",
        edits={"nn.functional.interpolate": "msr.resample"},
    )
