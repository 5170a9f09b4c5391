"""Modules of PyTorch itself."""

from __future__ import annotations

from torch import nn

from ...nn import Resample
from .._gather import upsample_reasons
from .._registry import register


@register(nn.Upsample, forward_fingerprints=["608d9f1e057982f5"])
class FusedUpsample(Resample):
    """One gather each way: deterministic backward, result in the input's dtype under autocast."""

    @staticmethod
    def skip_reasons(module: nn.Upsample) -> list[str]:
        """Options that :func:`msr_cuda.resample` refuses for maps of every rank."""
        return upsample_reasons(module)
