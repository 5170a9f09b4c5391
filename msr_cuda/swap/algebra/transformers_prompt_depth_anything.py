"""transformers: the fusion layers of Prompt Depth Anything."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.prompt_depth_anything.modeling_prompt_depth_anything import (
    PromptDepthAnythingFeatureFusionLayer,
)

from .._registry import register
from ._depth import fuse_levels, projection_reasons


@register(
    PromptDepthAnythingFeatureFusionLayer, algebra=True, forward_fingerprints=["26c23606b71ffa1f"]
)
class ProjectedPromptDepthAnythingFeatureFusionLayer(PromptDepthAnythingFeatureFusionLayer):
    """Projected before the map is enlarged: as many operations as it has pixels there."""

    @staticmethod
    def skip_reasons(module: PromptDepthAnythingFeatureFusionLayer) -> list[str]:
        """Another projection, or one that is watched."""
        return projection_reasons(module)

    def forward(
        self,
        hidden_state: Tensor,
        residual: Tensor | None = None,
        size: Any = None,
        prompt_depth: Tensor | None = None,
    ) -> Tensor:
        """As the original."""
        return fuse_levels(
            self, hidden_state, residual, size, align_corners=True, prompt_depth=prompt_depth
        )
