"""Resampled maps, their sum, concatenation and maximum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _spec
from .._pool import Pool
from .._spec import Call, Source
from ._taps import Taps, pool_taps, taps

#: With more taps than this, one gather reads them all: a program of thousands of single reads would
#: take longer to compile than to run.
_MAX_UNROLLED_TAPS = 16


def resample_map(
    input: Tensor,
    size: Sequence[int],
    mode: Source,
    scale_factor: Sequence[float] | None = None,
) -> Tensor:
    """``R(input)`` in the dtype of ``input``, which is float32 or float64; width first."""
    if isinstance(mode, Pool) and mode.kind == "max":
        return _max_pool(input, mode)
    output = input
    for axis in range(input.dim() - 1, 1, -1):
        in_size, out_size = input.shape[axis], size[axis - 2]
        if isinstance(mode, Pool):
            window = mode.window(axis - 2, in_size)
            table = pool_taps(
                in_size, out_size, window, mode.count_include_pad,
                dtype=input.dtype, device=input.device,
            )  # fmt: skip
        elif in_size == out_size:
            continue
        else:
            scale = None if scale_factor is None else scale_factor[axis - 2]
            table = taps(mode, in_size, out_size, scale, dtype=input.dtype, device=input.device)
        output = _apply(output, axis, table, weighs=isinstance(mode, Pool))
    return output


def _apply(input: Tensor, axis: int, table: Taps, *, weighs: bool) -> Tensor:
    """The weighted sum of the taps along one axis; ``weighs``: also single taps have weights."""
    index, weight = table
    width = index.shape[1]
    if width == 1 and not weighs:
        return input.index_select(axis, index.flatten())
    broadcast = [1] * (input.dim() - axis - 1)
    if width > _MAX_UNROLLED_TAPS:
        terms = input.index_select(axis, index.flatten()).unflatten(axis, index.shape)
        return (terms * weight.view(*weight.shape, *broadcast)).sum(axis + 1)
    output: Tensor | None = None
    for column, factor in zip(index.unbind(1), weight.unbind(1), strict=True):
        term = input.index_select(axis, column) * factor.view(-1, *broadcast)
        output = term if output is None else output + term
    assert output is not None
    return output


def _max_pool(input: Tensor, pool: Pool) -> Tensor:
    """Max-pooling; of equal elements the first gets the gradient."""
    rank = input.dim() - 2
    windows = [pool.window(axis, n) for axis, n in enumerate(input.shape[2:])]
    kernel = [w[0] for w in windows]
    stride = [w[1] for w in windows]
    padding = [0] * rank
    if all(lo == hi and 2 * lo <= k for k, _, lo, hi in windows):
        padding = [w[2] for w in windows]
    else:
        # What PyTorch's pooling cannot pad. F.pad counts axes from the last.
        both_ends = [n for _, _, lo, hi in reversed(windows) for n in (lo, hi)]
        input = F.pad(input, both_ends, value=-torch.inf)
    if rank == 1:
        return F.max_pool1d(input, kernel, stride, padding)
    return (F.max_pool2d if rank == 2 else F.max_pool3d)(input, kernel, stride, padding)


def normalized_weights(
    weights: Tensor, normalize: str | None, eps: float, accumulate: torch.dtype
) -> Tensor:
    """The weights in the accumulation type; their axis S is the first for [S] and [S, C], else 1.

    ``"fast"`` is the BiFPN's fast normalised fusion (Tan et al., EfficientDet, 2020, section 3.3).
    """
    if weights.dtype != accumulate:
        weights = weights.to(accumulate)
    axis = 0 if weights.dim() <= 2 else 1
    if normalize == "softmax":
        return weights.softmax(axis)
    if normalize == "fast":
        positive = weights.relu()
        return positive / (positive.sum(axis, keepdim=True) + eps)
    return weights


def _branch_weight(weights: Tensor, branch: int, dim: int) -> Tensor:
    """What one input of ``dim`` dimensions is multiplied with."""
    if weights.dim() <= 2:  # [S] or [S, C]
        weight = weights.select(0, branch)
        return weight if weight.dim() == 0 else _per_channel(weight, dim)
    weight = weights.select(1, branch)  # [N, C] or [N, 1, *size]
    return weight.view(*weight.shape, *[1] * (dim - 2)) if weight.dim() == 2 else weight


def _per_channel(values: Tensor, dim: int) -> Tensor:
    return values.view(-1, *[1] * (dim - 2))


def _terms(call: Call) -> list[Tensor]:
    accumulate = _spec.accumulation_dtype(call.spec)
    return [
        resample_map(x.to(accumulate), call.size, mode, scale)
        for x, mode, scale in zip(call.inputs, call.modes, call.scale_factors, strict=True)
    ]


def resample_sum(
    call: Call,
    weights: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_scale: float = 1.0,
    before: Tensor | None = None,
) -> Tensor:
    """``act(before + scale * out_scale * sum_i w_i R_i(x_i) + bias)``."""
    accumulate = _spec.accumulation_dtype(call.spec)
    terms = _terms(call)
    dim = terms[0].dim()
    if weights is not None:
        weights = weights.to(accumulate)
        terms = [term * _branch_weight(weights, i, dim) for i, term in enumerate(terms)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    if out_scale != 1.0:
        total = total * out_scale
    if scale is not None:
        total = total * _per_channel(scale.to(accumulate), dim)
    if bias is not None:
        total = total + _per_channel(bias.to(accumulate), dim)
    if before is not None:
        total = total + before.to(accumulate)
    return _finish(total, call)


def resample_cat(call: Call) -> Tensor:
    """``act(cat_i R_i(x_i))`` along the channels."""
    terms = [term.expand(call.batch, *term.shape[1:]) for term in _terms(call)]
    return _finish(torch.cat(terms, 1), call)


def resample_max(call: Call) -> Tensor:
    """``act(max_i R_i(x_i))``; of equal values the first input's is taken, and NaN before any."""
    terms = _terms(call)
    best = terms[0]
    for term in terms[1:]:
        better = (term > best) | (term.isnan() & ~best.isnan())
        best = torch.where(better, term, best)
    return _finish(best, call)


def activate(z: Tensor, activation: str | None) -> Tensor:
    """The activation; keeps masks or its input for backward, never its result.

    So an in-place layer may follow. At NaN, gradients pass as they do in PyTorch.
    """
    if activation == "relu":
        return z.masked_fill(z <= 0, 0)
    if activation == "relu6":
        return z.masked_fill(z <= 0, 0).masked_fill(z >= 6, 6)
    if activation == "leaky_relu":
        return torch.where(z > 0, z, z * _spec.LEAKY_SLOPE)
    if activation == "silu":
        return F.silu(z)
    if activation == "gelu":
        return F.gelu(z)
    if activation == "hardswish":
        return F.hardswish(z)
    if activation == "sigmoid":
        # It does keep its result: the copy is what may be overwritten.
        return torch.sigmoid(z).clone()
    return z


def _finish(output: Tensor, call: Call) -> Tensor:
    """Activation, rounding, layout."""
    output = activate(output, call.activation).to(_spec.result_dtype(call.spec))
    channels_last = bool(call.spec & _spec.CHANNELS_LAST)
    aliases = any(output is x for x in call.inputs)
    if not aliases and output.stride() == _spec.dense_strides(output.shape, channels_last):
        return output
    # clone, because contiguous() leaves the strides of degenerate sizes as they are.
    return output.clone(memory_format=_spec.memory_format(channels_last, output.dim()))
