"""transformers: the fusion layers of CHMv2."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.chmv2.modeling_chmv2 import CHMv2FeatureFusionLayer

from .._registry import register
from ._depth import fuse_levels, projection_reasons


@register(CHMv2FeatureFusionLayer, algebra=True, forward_fingerprints=["87ac72ce50e7804a"])
class ProjectedCHMv2FeatureFusionLayer(CHMv2FeatureFusionLayer):
    """Projected before the map is enlarged: as many operations as it has pixels there."""

    @staticmethod
    def skip_reasons(module: CHMv2FeatureFusionLayer) -> list[str]:
        """Another projection, or one that is watched."""
        return projection_reasons(module)

    def forward(
        self, hidden_state: Tensor, residual: Tensor | None = None, size: Any = None
    ) -> Tensor:
        """As the original."""
        return fuse_levels(
            self, hidden_state, None if self.is_first_layer else residual, size, align_corners=True
        )
