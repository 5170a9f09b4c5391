"""torchvision: the neck of RetinaNet, FCOS, Faster, Mask and Keypoint R-CNN."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork

from ...nn.feature_pyramid import top_down_pyramid
from .._registry import register


# The forward of torchvision 0.25 to 0.28.
@register(FeaturePyramidNetwork, forward_fingerprints=["472964d08a83f0eb"])
class FusedFeaturePyramidNetwork(FeaturePyramidNetwork):
    """Upsampling and lateral sum of each level in one pass."""

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """As the original, with the top-down path of :class:`msr_cuda.nn.FeaturePyramidNetwork`."""
        names = list(x.keys())
        maps = list(x.values())
        levels = top_down_pyramid(
            maps, self.get_result_from_inner_blocks, self.get_result_from_layer_blocks
        )
        if self.extra_blocks is not None:
            levels, names = self.extra_blocks(levels, maps, names)
        return OrderedDict(zip(names, levels, strict=False))
