"""Modules of PyTorch itself."""

from __future__ import annotations

from torch import nn

from ...nn import Resample
from .._registry import register


@register(nn.Upsample, forward_fingerprints=["608d9f1e057982f5"])
class FusedUpsample(Resample):
    """One gather each way: deterministic backward, result in the input's dtype under autocast."""

    @staticmethod
    def skip_reasons(module: nn.Upsample) -> list[str]:
        """Options that :func:`msr_cuda.resample` refuses for maps of every rank."""
        reasons = []
        nearest = module.mode in ("nearest", "nearest-exact")
        if not nearest and module.mode not in ("linear", "bilinear", "trilinear"):
            reasons.append(f"no kernel for mode {module.mode!r}")
        if nearest and module.align_corners is not None:
            reasons.append(f"align_corners={module.align_corners} means nothing in {module.mode!r}")
        if (module.size is None) == (module.scale_factor is None):
            reasons.append("needs exactly one of size and scale_factor")
        if module.recompute_scale_factor and module.scale_factor is None:
            reasons.append("recompute_scale_factor=True means nothing without scale_factor")
        return reasons
