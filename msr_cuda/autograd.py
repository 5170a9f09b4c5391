"""Derivatives of the raw operators.

``gather`` and ``spread`` are linear in the maps and adjoint to each other, so each one's backward
calls the other's Function: derivatives of any order, all by gathering, without atomics. A ReLU's
bitmask is the only thing that an unweighted call saves; it is a constant of the second derivative.
A weighted call saves its inputs only where the weights need a gradient.

One ctx-style Function per operator over dispatcher operators: on the host this costs about half of
``torch.library.register_autograd``, and forward-mode AD is refused instead of silently zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops, _spec

Size = Sequence[int]


def gather(
    inputs: Sequence[Tensor], weights: Tensor | None, size: Size, spec: int, scales: Sequence[float]
) -> Tensor:
    """Differentiable gather-sum: the raw operator's arguments, ``weights`` in their own dtype."""
    if weights is not None:
        weights = weights.to(_spec.accumulation_dtype(spec)).contiguous()
    if torch.is_grad_enabled() and (
        any(x.requires_grad for x in inputs) or (weights is not None and weights.requires_grad)
    ):
        return GatherFunction.apply(size, spec, scales, weights, None, *inputs)
    if weights is None and not scales:
        return _ops.gather(inputs, size, spec)
    return _ops.gather_full(inputs, weights, None, size, spec, scales)[0]


class GatherFunction(torch.autograd.Function):
    """``act(gate * sum_i w_i R_i(x_i))``, or its concatenation."""

    @staticmethod
    def forward(
        ctx: Any,
        size: Size,
        spec: int,
        scales: Sequence[float],
        weights: Tensor | None,
        gate: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        mask = gate
        if _spec.has_activation(spec):
            output, mask = _ops.gather_full(
                inputs, weights, gate, size, spec | _spec.SAVE_MASK, scales
            )
        elif weights is None and gate is None and not scales:
            output = _ops.gather(inputs, size, spec)
        else:
            output = _ops.gather_full(inputs, weights, gate, size, spec, scales)[0]
        needs_values = weights is not None and ctx.needs_input_grad[3]
        ctx.save_for_backward(weights, mask, *(inputs if needs_values else ()))
        ctx.spec, ctx.scales = spec, scales
        ctx.shapes = [tuple(x.shape) for x in inputs]
        ctx.requests = [
            _spec.request(x, wanted)
            for x, wanted in zip(inputs, ctx.needs_input_grad[5:], strict=True)
        ]
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        weights, gate, *values = ctx.saved_tensors
        d_weights: Tensor | None = None
        if weights is None:
            grads = _spread(grad, gate, ctx.shapes, ctx.spec, ctx.requests, ctx.scales)
        elif _twice():
            grads, d_weights = _weighted_spread(ctx, grad, gate, weights, values)
        else:
            wanted, dots = _ops.spread_full(
                grad, gate, weights, values, _flat(ctx.shapes), ctx.spec, _packed(ctx.requests),
                ctx.scales,
            )  # fmt: skip
            grads = _spaced(wanted, ctx.requests)
            d_weights = dots if values else None
        return None, None, None, d_weights, None, *grads


class SpreadFunction(torch.autograd.Function):
    """``(R_i^T(gate * grad))_i`` for the wanted branches: linear in ``grad``."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        gate: Tensor | None,
        shapes: Sequence[Size],
        spec: int,
        requests: Sequence[int],
        scales: Sequence[float],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(gate)
        ctx.shapes, ctx.spec, ctx.requests, ctx.scales = shapes, spec, requests, scales
        ctx.size, ctx.dtype = tuple(grad.shape[2:]), grad.dtype
        return tuple(_raw_spread(grad, gate, shapes, spec, requests, scales))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gate,) = ctx.saved_tensors
        spec = _spec.replace_result(ctx.spec, ctx.dtype)
        remaining = iter(grad_outputs)
        # A branch that was not wanted contributes zeros; expanded, they take no memory.
        inputs = [
            next(remaining)
            if bits & _spec.REQUEST_WANTED
            else grad_outputs[0].new_zeros(()).expand(shape)
            for shape, bits in zip(ctx.shapes, ctx.requests, strict=True)
        ]
        d_grad = GatherFunction.apply(ctx.size, spec, ctx.scales, None, gate, *inputs)
        return d_grad, None, None, None, None, None


def _twice() -> bool:
    """Whether a backward that runs now may itself be differentiated.

    While a graph is compiled it is not (AOTAutograd has no double backward), although grad mode is
    on.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _flat(shapes: Sequence[Size]) -> list[int]:
    return [size for shape in shapes for size in shape]


def _packed(requests: Sequence[int]) -> int:
    return sum(bits << (4 * i) for i, bits in enumerate(requests))


def _spaced(grads: Sequence[Tensor], requests: Sequence[int]) -> list[Tensor | None]:
    """The wanted gradients at the places of their inputs, None elsewhere."""
    remaining = iter(grads)
    return [next(remaining) if bits & _spec.REQUEST_WANTED else None for bits in requests]


def _raw_spread(
    grad: Tensor,
    gate: Tensor | None,
    shapes: Sequence[Size],
    spec: int,
    requests: Sequence[int],
    scales: Sequence[float],
) -> Sequence[Tensor]:
    if gate is None and not scales:
        return _ops.spread(grad, _flat(shapes), spec, _packed(requests))
    return _ops.spread_full(grad, gate, None, [], _flat(shapes), spec, _packed(requests), scales)[0]


def _spread(
    grad: Tensor,
    gate: Tensor | None,
    shapes: Sequence[Size],
    spec: int,
    requests: Sequence[int],
    scales: Sequence[float],
) -> list[Tensor | None]:
    """Gradients of an unweighted gather; maps that passed through get views of ``grad``."""
    grads: list[Tensor | None] = [None] * len(shapes)
    left = list(requests)
    if gate is None:
        channel = 0
        for i, shape in enumerate(shapes):
            passes = shape[0] == grad.shape[0] and tuple(shape[2:]) == tuple(grad.shape[2:])
            if passes and requests[i] & _spec.REQUEST_WANTED:
                part = grad.narrow(1, channel, shape[1]) if spec & _spec.CAT else grad
                grads[i] = part.to(_spec.DTYPES[requests[i] >> _spec.REQUEST_DTYPE_SHIFT])
                left[i] &= ~_spec.REQUEST_WANTED
            channel += shape[1]
    if any(bits & _spec.REQUEST_WANTED for bits in left):
        run = SpreadFunction.apply if _twice() else _raw_spread
        for i, value in enumerate(_spaced(run(grad, gate, shapes, spec, left, scales), left)):
            if value is not None:
                grads[i] = value
    return grads


def _weighted_spread(
    ctx: Any, grad: Tensor, gate: Tensor | None, weights: Tensor, values: Sequence[Tensor]
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients of a weighted gather as a differentiable expression, for higher derivatives.

    ``dx_i = w_i u_i`` and ``dw_i = <u_i, x_i>`` with ``u_i = R_i^T(gate * grad)``.
    """
    requests = ctx.requests
    if values:
        requests = [bits | _spec.REQUEST_WANTED for bits in requests]
    unweighted = _spread(grad, gate, ctx.shapes, ctx.spec, requests, ctx.scales)
    grads: list[Tensor | None] = []
    for i, (u, bits) in enumerate(zip(unweighted, ctx.requests, strict=True)):
        wanted = bits & _spec.REQUEST_WANTED
        grads.append((u * weights[i]).to(u.dtype) if wanted and u is not None else None)
    if not values:
        return grads, None
    dots = [
        (u.to(weights.dtype) * x.to(weights.dtype)).sum()
        for u, x in zip(unweighted, values, strict=True)
        if u is not None
    ]
    return grads, torch.stack(dots)
