"""torchvision: the neck of its detectors, and its models of segmentation."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork

from ...nn.feature_pyramid import top_down_pyramid
from .._glue import known_reasons
from .._registry import register
from .._rewrite import Rewrites

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find
_MODELS = "torchvision.models"


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


REWRITES.add(
    f"{_MODELS}.segmentation.deeplabv3:ASPP",
    fingerprints=["9cf2c843a2214144"],
    summary="The pooled branch is spread straight into the concatenation.",
    skip_reasons=lambda module: known_reasons(
        module.convs[-1], "the last of convs", {"ASPPPooling": ["544a75830444ed64"]}
    ),
    absorbed_modules=lambda module: [module.convs[-1]],
    edits={
        "for conv in self.convs:\n    _res.append(conv(x))": (
            "*convs, pooling = self.convs\n"
            "for conv in convs:\n"
            "    _res.append(conv(x))\n"
            "_res.append(msr.pooled_branch(pooling, x))"
        ),
        "torch.cat(_res, dim=1)": "msr.cat(_res)",
    },
)

# Logits, and what a convolution comes after: LRASPPHead would sum, but for a 1x1 convolution in
# between.

for _target, _edit in {
    "segmentation._utils:_SimpleSegmentationModel": "F.interpolate",
    "segmentation.lraspp:LRASPP": "F.interpolate",
    "segmentation.lraspp:LRASPPHead": "F.interpolate",
    "detection.keypoint_rcnn:KeypointRCNNPredictor": "torch.nn.functional.interpolate",
}.items():
    REWRITES.add(
        f"{_MODELS}.{_target}",
        fingerprints=[
            "744790cd80809757",
            "eba8f3f380a03fcc",
            "142bcf0dd549c9df",
            "10126298a173e09f",
        ],
        summary="One gather each way.",
        edits={_edit: "msr.resample"},
    )
REWRITES.leave(
    f"{_MODELS}.optical_flow.raft:RAFT",
    reason="a function upsamples its flow, times a number: there is nothing to fuse with",
)
