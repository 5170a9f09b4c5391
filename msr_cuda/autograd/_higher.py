"""The backward of the extended gather as a differentiable expression, for higher derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _ops, _spec
from ..reference import activate
from ._linear import GatherFunction, Plan, Size, spread


class TakeFunction(torch.autograd.Function):
    """The elements of a map that a max-pooling took: linear in the map."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, index: Tensor, flat: Tensor, spec: int, windows: Sequence[int]
    ) -> Tensor:
        ctx.save_for_backward(index, flat)
        ctx.shape, ctx.spec, ctx.windows = tuple(input.shape), spec, windows
        return input.flatten(2).gather(2, flat.flatten(2)).view(flat.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        index, flat = ctx.saved_tensors
        grad = PutBackFunction.apply(grad_outputs[0], index, flat, ctx.shape, ctx.spec, ctx.windows)
        return grad, None, None, None, None


class PutBackFunction(torch.autograd.Function):
    """The adjoint of :class:`TakeFunction`."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        index: Tensor,
        flat: Tensor,
        shape: Size,
        spec: int,
        windows: Sequence[int],
    ) -> Tensor:
        ctx.save_for_backward(index, flat)
        ctx.spec, ctx.windows = spec, windows
        request = _spec.DTYPES.index(grad.dtype) << _spec.REQUEST_DTYPE_SHIFT
        return _ops.spread_extended(
            grad, None, None, None, [], [index], list(shape), spec,
            request | _spec.REQUEST_WANTED, [], windows,
        )[0][0]  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        index, flat = ctx.saved_tensors
        grad = TakeFunction.apply(grad_outputs[0], index, flat, ctx.spec, ctx.windows)
        return grad, None, None, None, None, None


def gradients(
    job: Any,
    grad: Tensor,
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    gate: Tensor | None,
    indices: Sequence[Tensor],
    values: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients of the weights, of the pixel weights and of the maps, differentiable.

    The resamplings run on kernels; products, activations and their derivatives are PyTorch's.

    Args:
        job: what the backward of this gather knows (``_extended.Backward``).
        grad: of the result.
        weights, pixel_weights, gate, indices, values: what the forward kept.
    """
    accumulate = _spec.accumulation_dtype(job.spec)
    grad = grad.to(accumulate)
    remaining = iter(indices)
    branches = [_Branch(job, i, accumulate, remaining) for i in range(len(job.shapes))]
    gates = _gates(gate, grad.shape, job.spec, len(branches))
    of_weights = [_of_weights(weights, i, len(job.size)) for i in range(len(branches))]
    of_pixels = [_of_pixels(pixel_weights, i) for i in range(len(branches))]
    resampled = [b.resample(x.to(accumulate)) for b, x in zip(branches, values, strict=False)]
    if job.recomputes:
        z = _before_activation(job, grad, resampled, of_weights, of_pixels, gates)
        (grad,) = torch.autograd.grad(
            activate(z, _spec.activation_of(job.spec)), z, grad, create_graph=True
        )
    d_maps: list[Tensor | None] = []
    d_weights: list[Tensor] = []
    d_pixels: list[Tensor] = []
    channel = 0
    for i, branch in enumerate(branches):
        part = _product(grad, gates[i])
        if job.spec & _spec.CAT:
            part = part.narrow(1, channel, branch.shape[1])
            channel += branch.shape[1]
        bits = job.requests[i]
        d_map = None
        if bits & _spec.REQUEST_WANTED:
            d_map = branch.put_back(_product(part, of_weights[i], of_pixels[i]))
            d_map = d_map.to(_spec.DTYPES[bits >> _spec.REQUEST_DTYPE_SHIFT])
        d_maps.append(d_map)
        if job.wants_weights and weights is not None and i < weights.shape[1]:
            share = _product(part, resampled[i], of_pixels[i]).flatten(2).sum(2)
            d_weights.append(share.sum_to_size(weights.shape[0], weights.shape[2]))
        if job.wants_pixels and pixel_weights is not None and i < pixel_weights.shape[1]:
            share = _product(part, resampled[i], of_weights[i])
            d_pixels.append(share.sum_to_size(pixel_weights.shape[0], 1, *job.size))
    return [
        torch.stack(d_weights, 1) if job.wants_weights else None,
        torch.stack(d_pixels, 1) if job.wants_pixels else None,
        *d_maps,
    ]


def _before_activation(
    job: Any,
    like: Tensor,
    resampled: Sequence[Tensor],
    of_weights: Sequence[Tensor | None],
    of_pixels: Sequence[Tensor | None],
    gates: Sequence[Tensor | None],
) -> Tensor:
    """The sum, the concatenation, or (by its gates) the maximum."""
    factors = zip(resampled, of_weights, of_pixels, gates, strict=True)
    terms = [_product(*branch) for branch in factors]
    if job.spec & _spec.CAT:
        return torch.cat([term.expand(like.shape[0], *term.shape[1:]) for term in terms], 1)
    z = torch.zeros_like(like)
    for term in terms:
        z = z + term
    return z


def _gates(
    gate: Tensor | None, shape: Sequence[int], spec: int, count: int
) -> Sequence[Tensor | None]:
    """The bits that were kept as factors of each branch."""
    if gate is None:
        return [None] * count
    if spec & _spec.MAX:
        return [_unpacked(bits, shape, spec) for bits in gate.chunk(count)]
    return [_unpacked(gate, shape, spec)] * count


def _of_weights(weights: Tensor | None, branch: int, rank: int) -> Tensor | None:
    if weights is None or branch >= weights.shape[1]:
        return None
    return weights[:, branch].view(-1, weights.shape[2], *[1] * rank)


def _of_pixels(pixel_weights: Tensor | None, branch: int) -> Tensor | None:
    if pixel_weights is None or branch >= pixel_weights.shape[1]:
        return None
    return pixel_weights[:, branch]


def _product(first: Tensor, *others: Tensor | None) -> Tensor:
    for other in others:
        if other is not None:
            first = first * other
    return first


def _unpacked(mask: Tensor, shape: Sequence[int], spec: int) -> Tensor:
    """A bitmask as factors on each element of a result of that shape."""
    bits = mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    numel = 1
    for size in shape:
        numel *= size
    strides = _spec.dense_strides(shape, bool(spec & _spec.CHANNELS_LAST))
    factors = bits.flatten()[:numel].as_strided(tuple(shape), strides)
    factors = factors.to(_spec.accumulation_dtype(spec))
    if _spec.activation_of(spec) == "leaky_relu" and not spec & _spec.MAX:
        factors = factors + (1 - factors) * _spec.LEAKY_SLOPE
    return factors


class _Branch:
    """One map of an extended gather: its resampling alone, and the adjoint."""

    def __init__(
        self, job: Any, number: int, accumulate: torch.dtype, indices: Iterator[Tensor]
    ) -> None:
        rank = len(job.size)
        mode = _spec.mode_of(job.spec, number)
        self.size = tuple(job.size)
        self.shape = job.shapes[number]
        self.scales = list(job.scales[number * rank : (number + 1) * rank])
        self.windows = list(job.windows[3 * number * rank : 3 * (number + 1) * rank])
        self.index: Tensor | None = next(indices) if mode == _spec.MAX_POOL else None
        layout = job.spec & _spec.CHANNELS_LAST if self.index is not None else 0
        self.spec = (
            mode
            | layout
            | _spec.DTYPES.index(accumulate) << _spec.DTYPE_SHIFT
            | (_spec.ACCUMULATE_DOUBLE if accumulate == torch.float64 else 0)
        )
        self.request = (
            _spec.DTYPES.index(accumulate) << _spec.REQUEST_DTYPE_SHIFT | _spec.REQUEST_WANTED
        )

    def resample(self, value: Tensor) -> Tensor:
        if self.index is not None:
            flat = self._taken(value.device)
            return TakeFunction.apply(value, self.index, flat, self.spec, self.windows)
        plan = Plan([value], self.size, self.spec, self.scales, self.windows)
        return GatherFunction.apply(plan, None, None, value)

    def put_back(self, grad: Tensor) -> Tensor:
        """The adjoint; the gradient of a map that was broadcast over the batch is the sum."""
        if grad.shape[0] != self.shape[0]:
            grad = grad.sum(0, keepdim=True)
        if self.index is not None:
            flat = self._taken(grad.device)
            return PutBackFunction.apply(
                grad, self.index, flat, self.shape, self.spec, self.windows
            )
        found = spread(
            grad, None, [self.shape], self.spec, [self.request], self.scales, self.windows
        )[0]
        assert found is not None
        return found

    def _taken(self, device: torch.device) -> Tensor:
        """Of every element of the pooled map: the number of the one that was taken in its plane."""
        assert self.index is not None
        shape = (*self.shape[:2], *self.size)
        strides = _spec.dense_strides(shape, bool(self.spec & _spec.CHANNELS_LAST))
        code = self.index.as_strided(shape, strides).long()
        rank = len(self.size)
        flat = torch.zeros_like(code)
        step = 1
        for axis in range(rank - 1, -1, -1):
            kernel, stride, padding = self.windows[3 * axis : 3 * axis + 3]
            corner = torch.arange(self.size[axis], device=device) * stride - padding
            corner = corner.view(-1, *[1] * (rank - 1 - axis))
            flat = flat + step * (corner + code % kernel)
            code = code // kernel
            step *= self.shape[2 + axis]
        return flat
