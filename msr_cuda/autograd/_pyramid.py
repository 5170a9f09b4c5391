"""One map at several sizes: its adjoint is one gather of the levels, transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ops, _spec
from ._extended import Gather, gather_many
from ._linear import Plan, PlanNumbers, made, twice


def pyramid(input: Tensor, levels: Sequence[Plan]) -> Sequence[Tensor]:
    """The levels, from one call of the raw operator."""
    return gather_many([Gather(level, [input]) for level in levels])[0]


def transposed(grads: Sequence[Tensor], levels: Sequence[Plan]) -> Tensor:
    """``sum_l R_l^T(grad_l)``, laid out like the map."""
    (shape,), (layout,) = levels[0].shapes, levels[0].layouts
    size = shape[2:]
    spec = _spec.TRANSPOSED | layout >> _spec.REQUEST_DTYPE_SHIFT << _spec.DTYPE_SHIFT
    spec |= levels[0].spec & _spec.ACCUMULATE_DOUBLE
    if layout & _spec.REQUEST_CHANNELS_LAST:
        spec |= _spec.CHANNELS_LAST
    for i, level in enumerate(levels):
        spec |= _spec.mode_of(level.spec, 0) << (4 * i)
    scales: list[float] = []
    if any(level.scales for level in levels):
        for level in levels:
            scales += level.scales or [0.0] * len(size)
    if not scales:
        found: Tensor = _ops.gather(grads, size, spec)
        return found
    return _ops.gather_full(grads, None, None, size, spec, scales)[0]


class PyramidFunction(torch.autograd.Function):
    """``(R_l(x))_l`` for the levels ``l``."""

    @staticmethod
    def forward(
        ctx: Any, levels: Sequence[Plan | PlanNumbers], input: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.levels = [made(level, [input]) for level in levels]
        return tuple(pyramid(input, ctx.levels))

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
            return None, PyramidAdjointFunction.apply(levels, *grads)
        return None, transposed(grads, levels)


class PyramidAdjointFunction(torch.autograd.Function):
    """``sum_l R_l^T(g_l)``, the adjoint of :class:`PyramidFunction`."""

    @staticmethod
    def forward(ctx: Any, levels: Sequence[Plan], *grads: Tensor) -> Tensor:
        ctx.levels = levels
        return transposed(grads, levels)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, *PyramidFunction.apply(ctx.levels, grad_outputs[0])
