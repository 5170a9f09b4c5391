"""transformers: the all-MLP head of SegFormer."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from .._registry import register
from ._pointwise import is_plain, pointwise_reasons, project, sum_reasons


@register(SegformerDecodeHead, algebra=True, forward_fingerprints=["e41c5815efea7b1f"])
class ProjectedSegformerDecodeHead(SegformerDecodeHead):
    """Each level projected at its own size; resampling, sum, norm and ReLU in one pass."""

    @staticmethod
    def skip_reasons(module: SegformerDecodeHead) -> list[str]:
        """Another convolution than the head makes."""
        count = len(module.linear_projections)
        return pointwise_reasons(module.linear_fuse, "linear_fuse") + sum_reasons(count)

    @staticmethod
    def absorbed_modules(module: SegformerDecodeHead) -> list[nn.Module]:
        """Convolution, norm and activation."""
        return [module.linear_fuse, module.batch_norm, module.activation]

    def forward(self, encoder_hidden_states: Any, **kwargs: Any) -> Tensor:
        """As the original."""
        if not is_plain(self.linear_fuse, self.batch_norm):
            return super().forward(encoder_hidden_states, **kwargs)
        batch = encoder_hidden_states[-1].shape[0]
        maps = []
        for x, projection in zip(encoder_hidden_states, self.linear_projections, strict=False):
            if self.config.reshape_last_stage is False and x.ndim == 3:
                side = math.isqrt(x.shape[-1])
                x = x.reshape(batch, side, side, -1).permute(0, 3, 1, 2).contiguous()
            height, width = x.shape[2:]
            maps.append(projection(x).transpose(1, 2).reshape(batch, -1, height, width))
        y = project(
            self.linear_fuse, maps[::-1], encoder_hidden_states[0].shape[2:], mode="bilinear",
            align_corners=False, norm=self.batch_norm, activation=self.activation,
        )  # fmt: skip
        return self.classifier(self.dropout(y))
