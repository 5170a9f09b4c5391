"""mmdet: its necks, pixel decoders, HRNet and Hourglass. The forwards are those of 3.3."""

from __future__ import annotations

import torch.nn.functional as F

from .._rewrite import Rewrites
from ._openmmlab import (
    CONCATENATIONS,
    ONE_CONCATENATION,
    PLAIN_BRANCH_SUM,
    PLAIN_SUM,
    SUMS,
    add_hrnet,
    add_pyramid,
    add_yolo_necks,
    top_down,
)
from ._openmmlab import branch_sum as branch_sum  # for rewritten code

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find
_NECKS = "mmdet.models.necks"
_LAYERS = "mmdet.models.layers"

add_pyramid(
    REWRITES,
    f"{_NECKS}.fpn:FPN",
    f"{_NECKS}.fpn_dropblock:FPN_DropBlock",
    resize="F.interpolate",
    fingerprints=["d7650589115a7235", "2302da21862fdbd0"],
)
REWRITES.add(
    f"{_NECKS}.pafpn:PAFPN",
    fingerprints=["1ec072b97927ba7e"],
    summary=SUMS,
    edits=top_down("F.interpolate", "size=prev_shape, mode='nearest'"),
)
REWRITES.add(
    f"{_NECKS}.bfp:BFP",
    fingerprints=["8e36e575fcc6c839"],
    summary="Upsampling and mean of all levels in one pass, and the sum of each in another.",
    edits={
        "F.interpolate": "msr.up",
        "sum(feats) / len(feats)": "msr.add(*feats, out_scale=1 / len(feats))",
        "residual + inputs[i]": "msr.add(residual, inputs[i])",
    },
)
REWRITES.add(
    f"{_NECKS}.hrfpn:HRFPN",
    fingerprints=["f31d99a4f6f55919"],
    summary=ONE_CONCATENATION,
    edits={"F.interpolate": "msr.up", "torch.cat(outs, dim=1)": "msr.cat(outs)"},
)
REWRITES.add(
    f"{_LAYERS}.pixel_decoder:PixelDecoder",
    f"{_LAYERS}.pixel_decoder:TransformerEncoderPixelDecoder",
    fingerprints=["e775ba04d2d68fad", "db56a649947eb328"],
    summary=SUMS,
    edits={
        "cur_feat + F.interpolate(y, size=cur_feat.shape[-2:], mode='nearest')": (
            "msr.add(cur_feat, msr.up(y, size=cur_feat.shape[-2:], mode='nearest'))"
        )
    },
)
REWRITES.add(
    f"{_LAYERS}.msdeformattn_pixel_decoder:MSDeformAttnPixelDecoder",
    fingerprints=["23cc3ce45ca84198"],
    summary=SUMS,
    edits={
        "cur_feat + F.interpolate("
        "outs[-1], size=cur_feat.shape[-2:], mode='bilinear', align_corners=False)": (
            "msr.add(cur_feat, msr.up("
            "outs[-1], size=cur_feat.shape[-2:], mode='bilinear', align_corners=False))"
        )
    },
)
add_yolo_necks(
    REWRITES,
    f"{_NECKS}.yolox_pafpn:YOLOXPAFPN",
    f"{_NECKS}.cspnext_pafpn:CSPNeXtPAFPN",
    feature="feat_heigh",
    fingerprints=["7712f3155b96bb54"],
)
REWRITES.add(
    f"{_NECKS}.yolo_neck:YOLOV3Neck",
    fingerprints=["af795e47a34ea266"],
    summary=CONCATENATIONS,
    edits={"F.interpolate": "msr.up", "torch.cat((tmp, x), 1)": "msr.cat((tmp, x))"},
)
add_hrnet(
    REWRITES,
    "mmdet.models.backbones.hrnet:HRModule",
    fingerprints=["e14ac87f1ddc3707"],
    old=PLAIN_SUM,
    new=PLAIN_BRANCH_SUM,
)
REWRITES.add(
    "mmdet.models.backbones.hourglass:HourglassModule",
    fingerprints=["24915e1aba100bb7"],
    summary="Upsampling and sum in one pass.",
    # The function is an attribute there.
    skip_reasons=lambda module: [] if module.up2 is F.interpolate else ["up2 is not F.interpolate"],
    edits={"self.up2": "msr.up", "up1 + up2": "msr.add(up1, up2)"},
)
