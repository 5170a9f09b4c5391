"""Bounds that results are held to, for this package's tests, examples and benchmarks.

Truth is the float64 reference on the same inputs. :func:`allowed_error` is the one formula: results
accumulate in float32 (float64 for float64) and are rounded once, so one bound per dtype holds at
every size. It is never widened to make something pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _spec, reference
from ._pool import Pool

#: (rtol, atol) by dtype of the result.
TOLERANCES = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1.3e-6, 1e-5),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
}

#: The allowed difference of swapped models in float64, relative to a tensor's largest magnitude.
SWAPPED_RTOL = 1e-9
#: The allowed error of swapped models in lower precision, relative to the unswapped model's.
SWAPPED_ERROR_RATIO = 2.0


def allowed_error(expected: Tensor, dtype: torch.dtype, term_norm: Tensor | None = None) -> Tensor:
    """The largest error an element of a result may have.

    Args:
        expected (Tensor, float64): the truth.
        dtype: of the result.
        term_norm (Tensor, float64): where an element is a sum of terms ``t_k``, ``sqrt(sum
            t_k^2)``:
            adds ``4 eps`` of it, with eps that of the accumulation type.

    Returns:
        Tensor, float64, of the shape of ``expected``.
    """
    rtol, atol = TOLERANCES[dtype]
    allowed = rtol * expected.abs() + atol
    if term_norm is not None:
        accumulation = torch.float64 if dtype == torch.float64 else torch.float32
        allowed = allowed + 4 * torch.finfo(accumulation).eps * term_norm
    return allowed


def assert_within(
    actual: Tensor, expected: Tensor, *, term_norm: Tensor | None = None, what: str = "result"
) -> None:
    """Raises AssertionError, naming the worst element, unless every error is allowed.

    NaN must meet NaN, and infinities must be equal.
    """
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    value, truth = actual.detach().double().cpu(), expected.detach().double().cpu()
    allowed = allowed_error(truth, actual.dtype, None if term_norm is None else term_norm.cpu())
    wrong = ~((value - truth).abs() <= allowed) & ~(value == truth)
    wrong &= ~(value.isnan() & truth.isnan())
    if wrong.any():
        error = torch.where(wrong, (value - truth).abs() / allowed, 0.0).nan_to_num(nan=torch.inf)
        at = int(error.argmax())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are off; the worst, "
            f"number {at}, is {value.flatten()[at]:.9g}, expected {truth.flatten()[at]:.9g} "
            f"within {allowed.flatten()[at]:.3g} ({actual.dtype})"
        )


def axis_matrix(
    mode: _spec.Source,
    in_size: int,
    out_size: int,
    scale_factor: float | None = None,
    *,
    axis: int = 0,
) -> Tensor:
    """The reference's resampling of one axis, as a float64 matrix ``[out_size, in_size]``.

    Of a max-pooling: which elements each result may come from. ``axis`` is the number of the
    spatial axis, for a pooling's own sizes.
    """
    if isinstance(mode, Pool):
        window = mode.window(axis, in_size)
        counts = mode.count_include_pad or mode.kind == "max"
        index, weight = reference.pool_taps(in_size, out_size, window, counts)
        if mode.kind == "max":
            weight = weight * window[0]
    else:
        index, weight = reference.taps(mode, in_size, out_size, scale_factor)
    return torch.zeros(out_size, in_size, dtype=torch.float64).scatter_add_(1, index, weight)


def gradient_term_norm(
    grad: Tensor,
    shape: Sequence[int],
    mode: _spec.Source,
    scale_factors: Sequence[float] | None = None,
) -> Tensor:
    """``sqrt(sum t_k^2)`` of the terms ``weight * grad`` that make the gradient of one input map.

    Args:
        grad: gradient of the resampled map ``[N, C, *size]``.
        shape: of the input map.
        mode, scale_factors: of its resampling.
    """
    squares = grad.detach().double().cpu() ** 2
    for axis in range(2, grad.dim()):
        scale = None if scale_factors is None else scale_factors[axis - 2]
        matrix = axis_matrix(mode, shape[axis], grad.shape[axis], scale, axis=axis - 2) ** 2
        squares = torch.movedim(torch.tensordot(squares, matrix, dims=([axis], [0])), -1, axis)
    if shape[0] != grad.shape[0]:
        squares = squares.sum(0, keepdim=True)
    return squares.sqrt()
