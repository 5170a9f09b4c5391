"""segmentation_models_pytorch: the decoders of U-Net and U-Net++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from segmentation_models_pytorch.decoders.unetplusplus.decoder import (
    DecoderBlock,
    UnetPlusPlusDecoder,
)
from torch import Tensor, nn

from ... import functional
from .._gather import MAX_MAPS, expect_size, mode_reasons
from .._hooks import has_hooks
from .._registry import register


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
