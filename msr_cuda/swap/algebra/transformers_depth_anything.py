"""transformers: the fusion layers of Depth Anything."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.depth_anything.modeling_depth_anything import (
    DepthAnythingFeatureFusionLayer,
)

from .._registry import register
from ._depth import fuse_levels, projection_reasons


@register(DepthAnythingFeatureFusionLayer, algebra=True, forward_fingerprints=["42f8e5e18cdde723"])
class ProjectedDepthAnythingFeatureFusionLayer(DepthAnythingFeatureFusionLayer):
    """Projected before the map is enlarged: as many operations as it has pixels there."""

    @staticmethod
    def skip_reasons(module: DepthAnythingFeatureFusionLayer) -> list[str]:
        """Another projection, or one that is watched."""
        return projection_reasons(module)

    def forward(
        self, hidden_state: Tensor, residual: Tensor | None = None, size: Any = None
    ) -> Tensor:
        """As the original."""
        return fuse_levels(self, hidden_state, residual, size, align_corners=True)
