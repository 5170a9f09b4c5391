"""The executable specification of every operator, in plain PyTorch; also the fallback.

A resampling is separable. Along one axis, :func:`taps` gives for every destination the source
indices it reads and their weights; an operator gathers with them axis by axis, accumulates in
float32 (float64 if any map is float64) and rounds once, at the end. Everything here is made of
differentiable PyTorch operators, so derivatives of any order, ``torch.func`` and forward-mode AD
work.

Functions of this module take arguments that :mod:`msr_cuda.functional` has validated: modes as
:class:`msr_cuda._spec.Mode`, one per input, and scale factors as one tuple per input or None.

Sources of the formulas: ATen's ``UpSample.h`` (``nearest_neighbor_compute_source_index``,
``area_pixel_compute_source_index``). The nearest modes reproduce its float32 rounding; the linear
ones evaluate its coordinate exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._spec import Mode, dense_strides, memory_format

_FRACTION_BITS = {torch.float32: 24, torch.float64: 53}


def taps(
    mode: Mode,
    in_size: int,
    out_size: int,
    scale_factor: float | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The taps of one axis.

    Args:
        mode: rule for the source coordinate.
        in_size: size of the axis before, in elements.
        out_size: size after.
        scale_factor: ``out / in`` as the user gave it, where coordinates follow from it and not
            from
            the sizes. Ignored with ``align_corners``, as in ATen.
        dtype: float32 or float64, the accumulation type that the weights are narrowed to.
        device: where to put the tables.

    Returns:
        ``(index, weight)``: int64 ``[out_size, T]`` and ``dtype`` ``[out_size, T]``, T = 1 for
        nearest and 2 for linear. An index that occurs twice in a row of ``index`` has both weights.
    """
    destination = torch.arange(out_size, device=device)
    if mode in (Mode.NEAREST, Mode.NEAREST_EXACT) or in_size == out_size:
        if in_size == out_size:
            index = destination
        else:
            # 0-d float32 tensors, so that each operation rounds as ATen's float code does.
            if scale_factor is None:
                scale = torch.tensor(in_size, dtype=torch.float32) / torch.tensor(
                    out_size, dtype=torch.float32
                )
            else:
                scale = torch.tensor(1.0 / scale_factor, dtype=torch.float32)
            offset = 0.5 if mode is Mode.NEAREST_EXACT else 0.0
            source = torch.floor((destination.float() + offset) * scale.to(destination.device))
            index = source.long().clamp(max=in_size - 1)
        return index.unsqueeze(1), torch.ones(out_size, 1, dtype=dtype, device=device)

    if mode is Mode.LINEAR_ALIGN_CORNERS or scale_factor is None:
        if mode is Mode.LINEAR_ALIGN_CORNERS:
            numerator, denominator = destination * (in_size - 1), max(out_size - 1, 1)
        else:
            numerator = ((2 * destination + 1) * in_size - out_size).clamp(min=0)
            denominator = 2 * out_size
        first = torch.div(numerator, denominator, rounding_mode="floor")
        fraction = (numerator - first * denominator).double() * (1.0 / denominator)
    else:
        position = ((destination.double() + 0.5) * (1.0 / scale_factor) - 0.5).clamp(min=0)
        first = position.long().clamp(max=in_size - 1)
        fraction = position - first.double()
    # On this grid 1 - fraction is exact, so that the weights sum to one and constant maps stay
    # constant. Where both taps are the last element, halves keep its value, infinite ones too.
    grid = float(2 ** _FRACTION_BITS[dtype])
    fraction = torch.round(fraction * grid) / grid
    fraction = torch.where(first >= in_size - 1, 0.5, fraction)
    second = (first + 1).clamp(max=in_size - 1)
    return (
        torch.stack((first, second), 1),
        torch.stack((1.0 - fraction, fraction), 1).to(dtype),
    )


def resample_map(
    input: Tensor,
    size: Sequence[int],
    mode: Mode,
    scale_factor: Sequence[float] | None = None,
) -> Tensor:
    """``R(input)`` in the dtype of ``input``, which is float32 or float64; width first."""
    output = input
    for axis in range(input.dim() - 1, 1, -1):
        in_size, out_size = input.shape[axis], size[axis - 2]
        if in_size == out_size:
            continue
        scale = None if scale_factor is None else scale_factor[axis - 2]
        index, weight = taps(mode, in_size, out_size, scale, dtype=input.dtype, device=input.device)
        terms = [output.index_select(axis, column) for column in index.unbind(1)]
        if len(terms) == 1:
            output = terms[0]
            continue
        shape = [-1 if a == axis else 1 for a in range(input.dim())]
        factors = [column.view(shape) for column in weight.unbind(1)]
        output = terms[0] * factors[0]
        for term, factor in zip(terms[1:], factors[1:], strict=True):
            output = output + term * factor
    return output


def _finish(
    output: Tensor,
    activation: str | None,
    dtype: torch.dtype,
    channels_last: bool,
    inputs: Sequence[Tensor],
) -> Tensor:
    if activation == "relu":
        # Not relu(), which keeps its output for backward: an in-place layer may follow.
        output = output.masked_fill(output <= 0, 0)
    output = output.to(dtype)
    aliases = any(output is x for x in inputs)
    if not aliases and output.stride() == dense_strides(output.shape, channels_last):
        return output
    # clone, because contiguous() leaves the strides of degenerate sizes as they are.
    return output.clone(memory_format=memory_format(channels_last, output.dim()))


def resample_sum(
    inputs: Sequence[Tensor],
    size: Sequence[int],
    modes: Sequence[Mode],
    scale_factors: Sequence[Sequence[float] | None],
    weights: Tensor | None,
    activation: str | None,
    dtype: torch.dtype,
    accumulate: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """``act(sum_i w_i R_i(x_i))``."""
    terms = [
        resample_map(x.to(accumulate), size, mode, scale)
        for x, mode, scale in zip(inputs, modes, scale_factors, strict=True)
    ]
    if weights is not None:
        factors = weights.to(accumulate).unbind(0)
        terms = [term * factor for term, factor in zip(terms, factors, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return _finish(total, activation, dtype, channels_last, inputs)


def resample_cat(
    inputs: Sequence[Tensor],
    size: Sequence[int],
    modes: Sequence[Mode],
    scale_factors: Sequence[Sequence[float] | None],
    activation: str | None,
    dtype: torch.dtype,
    accumulate: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """``act(cat_i R_i(x_i))`` along the channels."""
    batch = max(x.shape[0] for x in inputs) if all(x.shape[0] for x in inputs) else 0
    parts = []
    for x, mode, scale in zip(inputs, modes, scale_factors, strict=True):
        part = resample_map(x.to(accumulate), size, mode, scale)
        parts.append(part.expand(batch, *part.shape[1:]))
    return _finish(torch.cat(parts, 1), activation, dtype, channels_last, inputs)
