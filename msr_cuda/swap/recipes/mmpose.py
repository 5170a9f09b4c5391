"""mmpose: its necks, HRNet and Hourglass. The forwards are those of 1.3."""

from __future__ import annotations

from .._glue import upsampling_modules, upsampling_reasons
from .._rewrite import Rewrites
from ._openmmlab import (
    CONCATENATIONS,
    PLAIN_BRANCH_SUM,
    PLAIN_SUM,
    add_hrnet,
    add_pyramid,
    add_yolo_necks,
)
from ._openmmlab import branch_sum as branch_sum  # for rewritten code

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find
_NECKS = "mmpose.models.necks"

add_pyramid(
    REWRITES, f"{_NECKS}.fpn:FPN", resize="F.interpolate", fingerprints=["b7afda518da0cf8f"]
)
add_yolo_necks(
    REWRITES,
    f"{_NECKS}.yolox_pafpn:YOLOXPAFPN",
    feature="feat_heigh",
    fingerprints=["7712f3155b96bb54"],
)
add_yolo_necks(
    REWRITES,
    f"{_NECKS}.cspnext_pafpn:CSPNeXtPAFPN",
    feature="feat_high",
    fingerprints=["147d8fc4f81c64a9"],
)
REWRITES.add(
    f"{_NECKS}.hybrid_encoder:HybridEncoder",
    fingerprints=["c5dc06108a0cb363"],
    summary=CONCATENATIONS,
    edits={
        "F.interpolate": "msr.up",
        "torch.cat([upsample_feat, feat_low], axis=1)": "msr.cat([upsample_feat, feat_low])",
    },
)
add_hrnet(
    REWRITES,
    "mmpose.models.backbones.hrnet:HRModule",
    fingerprints=["e14ac87f1ddc3707"],
    old=PLAIN_SUM,
    new=PLAIN_BRANCH_SUM,
)
REWRITES.add(
    "mmpose.models.backbones.hourglass:HourglassModule",
    fingerprints=["a5b975d1ed5a0aa1"],
    summary="Upsampling and sum in one pass.",
    skip_reasons=lambda module: upsampling_reasons(module.up2, "up2"),
    absorbed_modules=lambda module: upsampling_modules(module.up2),
    edits={
        "self.up2(low3)": "msr.upsampled_by(self.up2, low3)",
        "up1 + up2": "msr.add(up1, up2)",
    },
)
