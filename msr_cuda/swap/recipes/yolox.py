"""YOLOX: its necks. The forwards are those of 0.1 to 0.3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._glue import cat, upsampled_by, upsampling_modules, upsampling_reasons
from .._rewrite import Rewrites

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find


def _upsample_reasons(module: Any) -> list[str]:
    return upsampling_reasons(module.upsample, "upsample")


def _upsample_modules(module: Any) -> list[nn.Module]:
    return upsampling_modules(module.upsample)


def pafpn(self: Any, input: Tensor) -> tuple[Tensor, ...]:
    """The new forward of ``YOLOPAFPN``."""
    found = self.backbone(input)
    fine, middle, coarse = (found[name] for name in self.in_features)
    lateral0 = self.lateral_conv0(coarse)
    merged = self.C3_p4(cat([upsampled_by(self.upsample, lateral0), middle]))
    lateral1 = self.reduce_conv1(merged)
    out2 = self.C3_p3(cat([upsampled_by(self.upsample, lateral1), fine]))
    out1 = self.C3_n3(torch.cat([self.bu_conv2(out2), lateral1], 1))
    out0 = self.C3_n4(torch.cat([self.bu_conv1(out1), lateral0], 1))
    return out2, out1, out0


def fpn(self: Any, inputs: Tensor) -> tuple[Tensor, ...]:
    """The new forward of ``YOLOFPN``."""
    found = self.backbone(inputs)
    fine, middle, coarse = (found[name] for name in self.in_features)
    out1 = self.out1(cat([upsampled_by(self.upsample, self.out1_cbl(coarse)), middle]))
    out2 = self.out2(cat([upsampled_by(self.upsample, self.out2_cbl(out1)), fine]))
    return out2, out1, coarse


# The second of each pair is that of the model that the tests have for the package.
for _target, _forward, _fingerprints in (
    ("yolo_pafpn:YOLOPAFPN", pafpn, ["3729491e22566e87", "1fba59503a75ea5d"]),
    ("yolo_fpn:YOLOFPN", fpn, ["45f2da156c8636e5", "d9b1f2a985d60059"]),
):
    REWRITES.add(
        f"yolox.models.{_target}",
        fingerprints=_fingerprints,
        summary="Upsampling straight into the concatenation of each level.",
        forward=_forward,
        skip_reasons=_upsample_reasons,
        absorbed_modules=_upsample_modules,
    )
