"""transformers: the fusion layers of ZoeDepth."""

from __future__ import annotations

from torch import Tensor
from transformers.models.zoedepth.modeling_zoedepth import ZoeDepthFeatureFusionLayer

from .._registry import register
from ._depth import fuse_levels, projection_reasons


@register(ZoeDepthFeatureFusionLayer, algebra=True, forward_fingerprints=["ed722d01b8651605"])
class ProjectedZoeDepthFeatureFusionLayer(ZoeDepthFeatureFusionLayer):
    """Projected before the map is enlarged: as many operations as it has pixels there."""

    @staticmethod
    def skip_reasons(module: ZoeDepthFeatureFusionLayer) -> list[str]:
        """Another projection, or one that is watched."""
        return projection_reasons(module)

    def forward(self, hidden_state: Tensor, residual: Tensor | None = None) -> Tensor:
        """As the original."""
        return fuse_levels(self, hidden_state, residual, align_corners=self.align_corners)
