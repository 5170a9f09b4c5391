"""What the recipes share: options that kernels take, and sizes that must agree as in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

#: Maps that one operator takes.
MAX_MAPS = 8

_WITHOUT_CORNERS = ("nearest", "nearest-exact", "area")
_WITH_CORNERS = ("linear", "bilinear", "trilinear", "bicubic")


def mode_reasons(mode: str, align_corners: bool | None = None) -> list[str]:
    """Why an interpolation of that mode has to be left alone; empty: it need not."""
    reasons = []
    if mode not in _WITHOUT_CORNERS + _WITH_CORNERS:
        reasons.append(f"unknown mode {mode!r}")
    if mode in _WITHOUT_CORNERS and align_corners is not None:
        reasons.append(f"align_corners={align_corners} means nothing in {mode!r}")
    return reasons


def upsample_reasons(module: nn.Upsample) -> list[str]:
    """Options of an ``nn.Upsample`` that :func:`msr_cuda.resample` refuses for any map."""
    reasons = mode_reasons(module.mode, module.align_corners)
    if (module.size is None) == (module.scale_factor is None):
        reasons.append("needs exactly one of size and scale_factor")
    if module.recompute_scale_factor and module.scale_factor is None:
        reasons.append("recompute_scale_factor=True means nothing without scale_factor")
    return reasons


def absorbed_upsample_reasons(module: nn.Upsample, name: str) -> list[str]:
    """Why an operator of several maps cannot do the work of an ``nn.Upsample``.

    Its ``scale_factor`` alone may say what it does: that is what the recipes hand to the operators.
    """
    reasons = [f"{name}: {reason}" for reason in upsample_reasons(module)]
    if module.size is not None:
        reasons.append(f"{name} has a size of its own")
    if module.recompute_scale_factor:
        reasons.append(f"{name} recomputes its scale factor")
    return reasons


def gather_options(upsamples: Sequence[nn.Upsample | None]) -> dict[str, Any]:
    """Keyword arguments that make an operator do the work of ``nn.Upsample`` modules.

    Args:
        upsamples: one per input; None: it has the result's size already.
    """
    present = [up for up in upsamples if up is not None]
    if not present:
        return {}
    mode: Any = present[0].mode
    align_corners: Any = present[0].align_corners
    if any(up.mode != mode or up.align_corners != align_corners for up in present):
        mode = ["nearest" if up is None else up.mode for up in upsamples]
        align_corners = [None if up is None else up.align_corners for up in upsamples]
    scale_factors = [None if up is None else up.scale_factor for up in upsamples]
    return {"mode": mode, "align_corners": align_corners, "scale_factors": scale_factors}


def expect_size(function: str, maps: Sequence[Tensor], size: Sequence[int], batch: int) -> None:
    """Raises where ``torch.cat`` and ``+`` do: on maps of another size.

    The operators would resample such a map, or broadcast it over the batch.

    Args:
        function: name for the message.
        maps: those that are not resampled.
        size: spatial size of the result.
        batch: its first dimension.
    """
    for i, x in enumerate(maps):
        if x.shape[2:] != size or x.shape[0] != batch:
            raise ValueError(
                f"{function}: expected maps that are not resampled to be "
                f"[{batch}, C, {', '.join(map(str, size))}], got {tuple(x.shape)} as number {i}"
            )
