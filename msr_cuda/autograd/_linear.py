"""Weighted sums and concatenations, their adjoint, and what all Functions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ops, _spec

Size = Sequence[int]


class GatherFunction(torch.autograd.Function):
    """``relu(gate * sum_i w_i R_i(x_i))`` with weights [S], or its concatenation."""

    @staticmethod
    def forward(
        ctx: Any,
        size: Size,
        spec: int,
        scales: Sequence[float],
        windows: Sequence[int],
        weights: Tensor | None,
        gate: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        mask = gate
        if _spec.has_activation(spec):
            output, mask = raw_gather(
                inputs, weights, gate, size, spec | _spec.SAVE, scales, windows
            )
        else:
            output = raw_gather(inputs, weights, gate, size, spec, scales, windows)[0]
        needs_values = weights is not None and ctx.needs_input_grad[4]
        ctx.save_for_backward(weights, mask, *(inputs if needs_values else ()))
        ctx.spec, ctx.scales, ctx.windows = spec, scales, windows
        ctx.shapes = [tuple(x.shape) for x in inputs]
        ctx.requests = [
            _spec.request(x, wanted)
            for x, wanted in zip(inputs, ctx.needs_input_grad[6:], strict=True)
        ]
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        weights, gate, *values = ctx.saved_tensors
        d_weights: Tensor | None = None
        if weights is None:
            grads = spread(grad, gate, ctx.shapes, ctx.spec, ctx.requests, ctx.scales, ctx.windows)
        elif twice():
            grads, d_weights = _weighted_spread(ctx, grad, gate, weights, values)
        else:
            wanted, dots = raw_spread(
                grad, gate, weights, values, ctx.shapes, ctx.spec, ctx.requests, ctx.scales,
                ctx.windows,
            )  # fmt: skip
            grads = spaced(wanted, ctx.requests)
            d_weights = dots if values else None
        return None, None, None, None, d_weights, None, *grads


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
        windows: Sequence[int],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(gate)
        ctx.shapes, ctx.spec, ctx.requests = shapes, spec, requests
        ctx.scales, ctx.windows = scales, windows
        ctx.size, ctx.dtype = tuple(grad.shape[2:]), grad.dtype
        return tuple(raw_spread(grad, gate, None, (), shapes, spec, requests, scales, windows)[0])

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
        d_grad = GatherFunction.apply(ctx.size, spec, ctx.scales, ctx.windows, None, gate, *inputs)
        return d_grad, None, None, None, None, None, None


def twice() -> bool:
    """Whether a backward that runs now may itself be differentiated.

    While a graph is compiled it is not (AOTAutograd has no double backward), although grad mode is
    on.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def flat(shapes: Sequence[Size]) -> list[int]:
    return [size for shape in shapes for size in shape]


def packed(requests: Sequence[int]) -> int:
    return sum(bits << (4 * i) for i, bits in enumerate(requests))


def spaced(grads: Sequence[Tensor], requests: Sequence[int]) -> list[Tensor | None]:
    """The wanted gradients at the places of their inputs, None elsewhere."""
    remaining = iter(grads)
    return [next(remaining) if bits & _spec.REQUEST_WANTED else None for bits in requests]


def raw_gather(
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    gate: Tensor | None,
    size: Size,
    spec: int,
    scales: Sequence[float],
    windows: Sequence[int],
) -> tuple[Tensor, Tensor | None]:
    """The result and its mask, by the overload with the fewest arguments."""
    if windows or spec & _spec.LEAKY_GATE:
        output, mask, _ = _ops.gather_extended(
            inputs, weights, None, gate, None, size, spec, scales, windows
        )
        return output, mask
    if weights is None and gate is None and not scales and not spec & _spec.SAVE:
        return _ops.gather(inputs, size, spec), None
    return _ops.gather_full(inputs, weights, gate, size, spec, scales)


def raw_spread(
    grad: Tensor,
    gate: Tensor | None,
    weights: Tensor | None,
    values: Sequence[Tensor],
    shapes: Sequence[Size],
    spec: int,
    requests: Sequence[int],
    scales: Sequence[float],
    windows: Sequence[int],
) -> tuple[Sequence[Tensor], Tensor | None]:
    """The wanted gradients and those of the weights [S], likewise."""
    sizes, bits = flat(shapes), packed(requests)
    if windows or spec & _spec.LEAKY_GATE:
        return _ops.spread_extended(
            grad, gate, weights, None, values, [], sizes, spec, bits, scales, windows
        )
    if gate is None and weights is None and not scales:
        return _ops.spread(grad, sizes, spec, bits), None
    return _ops.spread_full(grad, gate, weights, values, sizes, spec, bits, scales)


def passed(
    grad: Tensor,
    shapes: Sequence[Size],
    spec: int,
    requests: Sequence[int],
    weighted: int = 0,
    in_layout: bool = False,
) -> tuple[list[Tensor | None], list[int]]:
    """Gradients of maps that passed through, views of ``grad``, and the other requests.

    Args:
        grad: of the result, before the activation.
        shapes, spec, requests: of the maps.
        weighted: how many of the first maps have weights.
        in_layout: only gradients in their map's own layout.
    """
    grads: list[Tensor | None] = [None] * len(shapes)
    left = list(requests)
    channel = 0
    for i, shape in enumerate(shapes):
        passes = shape[0] == grad.shape[0] and tuple(shape[2:]) == tuple(grad.shape[2:])
        # A pooling may change a map and keep its size.
        passes = passes and i >= weighted and _spec.mode_of(spec, i) < _spec.AVERAGE_POOL
        if passes and requests[i] & _spec.REQUEST_WANTED:
            part = grad.narrow(1, channel, shape[1]) if spec & _spec.CAT else grad
            channels_last = bool(requests[i] & _spec.REQUEST_CHANNELS_LAST)
            if in_layout and part.stride() != _spec.dense_strides(shape, channels_last):
                passes = False
        if passes and requests[i] & _spec.REQUEST_WANTED:
            grads[i] = part.to(_spec.DTYPES[requests[i] >> _spec.REQUEST_DTYPE_SHIFT])
            left[i] &= ~_spec.REQUEST_WANTED
        channel += shape[1]
    return grads, left


def spread(
    grad: Tensor,
    gate: Tensor | None,
    shapes: Sequence[Size],
    spec: int,
    requests: Sequence[int],
    scales: Sequence[float],
    windows: Sequence[int],
) -> list[Tensor | None]:
    """Gradients of an unweighted gather; maps that passed through get views of ``grad``."""
    grads: list[Tensor | None] = [None] * len(shapes)
    left = list(requests)
    if gate is None:
        grads, left = passed(grad, shapes, spec, requests)
    if any(bits & _spec.REQUEST_WANTED for bits in left):
        if twice():
            found = SpreadFunction.apply(grad, gate, shapes, spec, left, scales, windows)
        else:
            found = raw_spread(grad, gate, None, (), shapes, spec, left, scales, windows)[0]
        for i, value in enumerate(spaced(found, left)):
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
    unweighted = spread(grad, gate, ctx.shapes, ctx.spec, requests, ctx.scales, ctx.windows)
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
