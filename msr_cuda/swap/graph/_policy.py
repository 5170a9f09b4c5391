"""Which sites are worth it, of those that can be fused."""

from __future__ import annotations

from typing import Literal

import torch

from ... import _spec
from ._sites import Site
from ._values import tensor_of

Fuse = Literal["auto", "all"]


def objection(site: Site, inner: str | None, fuse: Fuse) -> str | None:
    """Why a site is better left alone; None: it is not.

    Inductor makes one kernel of pointwise code and gathers, so it fuses the forward of a sum by
    itself. It does not fuse a concatenation into the kernels that compute its maps, it computes
    every tap of every element anew, and the backward of every interpolation becomes scatters with
    atomics. So with ``fuse="auto"`` it keeps what ``benchmarks/results`` does not show it to be
    slower at: sums of maps that are upsampled by ``nearest``, two of them or channels_last, where
    no gradient is asked for; sums with factors per pixel; training with pooled maps. Other
    compilers fuse nothing.

    An interpolation without a partner moves the same bytes either way. The operator is there for
    its backward, which gathers instead of scattering, and for CUDA autocast, where PyTorch's would
    run and write in float32.
    """
    if fuse == "all":
        return None
    gradient = site.value.requires_grad
    if site.operator == "resample":
        if gradient or (site.autocast and site.value.is_cuda):
            return None
        return 'it has no partner, and no gradient is asked for (fuse="all" fuses it)'
    if inner != "inductor" or site.operator != "resample_sum":
        return None
    why = _done_by_inductor(site, gradient)
    return None if why is None else f'Inductor fuses {why} as well itself (fuse="all" fuses it)'


def _done_by_inductor(site: Site, gradient: bool) -> str | None:
    """What a sum is that Inductor is not slower at; None: it is."""
    if site.weight_kind == "pixel":
        return "a sum with factors per pixel"
    if gradient:
        return "training with pooled maps" if any(s.is_pooled for s in site.sources) else None
    halved = site.autocast and site.value.dtype == torch.float32 and site.value.is_cuda
    modes = {source.mode for source in site.sources if source.is_resampled}
    if halved or modes != {"nearest"}:
        return None
    if len(site.terms) <= 2:
        return "a sum of two nearest-neighbour maps without gradient"
    maps = [x for s in site.sources if (x := tensor_of(s.map)) is not None]
    if _spec.result_is_channels_last(maps):
        return "a channels_last sum of nearest-neighbour maps without gradient"
    return None
