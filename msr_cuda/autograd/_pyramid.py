"""One map at several sizes: its adjoint is one gather of the levels, transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ops, _spec
from ._extended import Gather, gather_many
from ._linear import Size, twice


class Level:
    """How a level is made: its size, the packed integer of its gather, and its scales."""

    __slots__ = ("scales", "size", "spec")

    def __init__(self, size: Size, spec: int, scales: Sequence[float]) -> None:
        self.size, self.spec, self.scales = tuple(size), spec, list(scales)


def pyramid(input: Tensor, levels: Sequence[Level]) -> Sequence[Tensor]:
    """The levels, from one call of the raw operator."""
    jobs = [
        Gather([input], None, None, level.size, level.spec, level.scales, []) for level in levels
    ]
    return gather_many(jobs)[0]


def transposed(grads: Sequence[Tensor], levels: Sequence[Level], like: _Like) -> Tensor:
    """``sum_l R_l^T(grad_l)``, laid out like the map."""
    spec = _spec.TRANSPOSED | _spec.DTYPES.index(like.dtype) << _spec.DTYPE_SHIFT
    spec |= levels[0].spec & _spec.ACCUMULATE_DOUBLE
    if like.channels_last:
        spec |= _spec.CHANNELS_LAST
    for i, level in enumerate(levels):
        spec |= _spec.mode_of(level.spec, 0) << (4 * i)
    scales: list[float] = []
    if any(level.scales for level in levels):
        for level in levels:
            scales += level.scales or [0.0] * len(like.size)
    if not scales:
        found: Tensor = _ops.gather(grads, like.size, spec)
        return found
    return _ops.gather_full(grads, None, None, like.size, spec, scales)[0]


class _Like:
    """What the gradient of a map looks like."""

    def __init__(self, input: Tensor) -> None:
        self.size, self.dtype = tuple(input.shape[2:]), input.dtype
        self.channels_last = bool(_spec.is_channels_last(input))


class PyramidFunction(torch.autograd.Function):
    """``(R_l(x))_l`` for the levels ``l``."""

    @staticmethod
    def forward(ctx: Any, levels: Sequence[Level], input: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.levels, ctx.like = levels, _Like(input)
        return tuple(pyramid(input, levels))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        used = [
            (level, grad)
            for level, grad in zip(ctx.levels, grad_outputs, strict=True)
            if grad is not None
        ]
        levels = [level for level, _ in used]
        grads = [grad for _, grad in used]
        if not grads:
            return None, None
        if twice():
            return None, PyramidAdjointFunction.apply(levels, ctx.like, *grads)
        return None, transposed(grads, levels, ctx.like)


class PyramidAdjointFunction(torch.autograd.Function):
    """``sum_l R_l^T(g_l)``, the adjoint of :class:`PyramidFunction`."""

    @staticmethod
    def forward(ctx: Any, levels: Sequence[Level], like: _Like, *grads: Tensor) -> Tensor:
        ctx.levels = levels
        return transposed(grads, levels, like)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *PyramidFunction.apply(ctx.levels, grad_outputs[0])
