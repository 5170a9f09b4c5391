"""transformers: the fusion layers of TIPS v2 with a DPT head."""

from __future__ import annotations

from torch import Tensor
from transformers.models.tipsv2_dpt.modeling_tipsv2_dpt import Tipsv2DptFeatureFusionLayer

from .._registry import register
from ._depth import fuse_levels, projection_reasons


@register(Tipsv2DptFeatureFusionLayer, algebra=True, forward_fingerprints=["ed722d01b8651605"])
class ProjectedTipsv2DptFeatureFusionLayer(Tipsv2DptFeatureFusionLayer):
    """Projected before the map is enlarged: as many operations as it has pixels there."""

    @staticmethod
    def skip_reasons(module: Tipsv2DptFeatureFusionLayer) -> list[str]:
        """Another projection, or one that is watched."""
        return projection_reasons(module)

    def forward(self, hidden_state: Tensor, residual: Tensor | None = None) -> Tensor:
        """As the original."""
        return fuse_levels(self, hidden_state, residual, align_corners=self.align_corners)
