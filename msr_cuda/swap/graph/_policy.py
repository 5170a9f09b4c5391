"""Which sites are worth it, of those that can be fused."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ... import _spec, functional
from ._loss_match import LossSite
from ._sites import Site
from ._values import tensor_of

Fuse = Literal["auto", "all"]


def objection(site: Site, inner: str | None, fuse: Fuse) -> str | None:
    """Why a site is better left alone; None: it is not.

    With ``fuse="auto"``, three kinds of sites are.

    Those without a kernel: in plain PyTorch the operators are slower than what they replace.

    Those that Inductor is as fast at. It makes one kernel of pointwise code and gathers, so it
    fuses the forward of a sum by itself. But it does not fuse a concatenation into the kernels that
    compute its maps, computes every tap of every element anew, and the backward of every
    interpolation becomes scatters with atomics. By ``benchmarks/results``, on a CPU, there is
    little or nothing to gain on it in inference for sums of nearest-neighbour maps, if they are two
    or lie channels_last; for sums with factors per pixel; in training for sums with pooled maps.
    Other compilers fuse nothing.

    Interpolations without a partner, in inference: they move the same bytes either way. In training
    the operator's backward gathers instead of scattering; and under CUDA autocast PyTorch's
    function would run in float32, and so would all that follows.
    """
    if fuse == "all":
        return None
    missing = _without_kernel(site.value)
    if missing is not None:
        return missing
    gradient = site.value.requires_grad
    if site.operator == "resample":
        if gradient or site.autocast:
            return None
        return 'it has no partner, and no gradient is asked for (fuse="all" fuses it)'
    if inner != "inductor" or site.operator != "resample_sum":
        return None
    why = _done_by_inductor(site, gradient)
    return None if why is None else f'Inductor fuses {why} as well itself (fuse="all" fuses it)'


def loss_objection(site: LossSite, fuse: Fuse) -> str | None:
    """Why a loss or decision of upsampled logits is better left alone; None: it is not.

    It saves the upsampled logits wherever there are kernels, and no compiler does.
    """
    if fuse == "all":
        return None
    return _without_kernel(site.logits)


def _without_kernel(x: Tensor) -> str | None:
    missing = functional.unsupported_reasons([x])
    return f'{"; ".join(missing)} (fuse="all" fuses it)' if missing else None


def _done_by_inductor(site: Site, gradient: bool) -> str | None:
    """What a sum is that Inductor is not slower at; None: it is."""
    if site.weight_kind == "pixel":
        return "a sum with factors per pixel"
    if gradient:
        return "training with pooled maps" if any(s.is_pooled for s in site.sources) else None
    modes = {source.mode for source in site.sources if source.is_resampled}
    if site.autocast or modes != {"nearest"}:
        return None
    if len(site.terms) <= 2:
        return "a sum of two nearest-neighbour maps without gradient"
    maps = [x for s in site.sources if (x := tensor_of(s.map)) is not None]
    if _spec.result_is_channels_last(maps):
        return "a channels_last sum of nearest-neighbour maps without gradient"
    return None
