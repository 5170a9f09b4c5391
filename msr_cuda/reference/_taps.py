"""Which source elements each destination of one axis reads, and with what weights.

Sources of the formulas: ATen's ``UpSample.h`` (``nearest_neighbor_compute_source_index``,
``area_pixel_compute_source_index``, ``get_cubic_upsample_coefficients``), its
``UpSampleKernel.cpp`` for antialiasing (``_compute_indices_min_size_weights_aa`` and the
``aa_filter`` of each interpolation) and ``AdaptivePooling.h`` for area (``start_index``,
``end_index``). The nearest modes reproduce ATen's float32 rounding; all others evaluate its
coordinate exactly: as a ratio of integers where it follows from the sizes, else in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._spec import Mode

_FRACTION_BITS = {torch.float32: 24, torch.float64: 53}

_CUBIC = (Mode.CUBIC, Mode.CUBIC_ALIGN_CORNERS)
_CUBIC_ANTIALIAS = (Mode.CUBIC_ANTIALIAS, Mode.CUBIC_ANTIALIAS_ALIGN_CORNERS)
_ALIGN_CORNERS = (
    Mode.LINEAR_ALIGN_CORNERS,
    Mode.CUBIC_ALIGN_CORNERS,
    Mode.LINEAR_ANTIALIAS_ALIGN_CORNERS,
    Mode.CUBIC_ANTIALIAS_ALIGN_CORNERS,
)
#: The parameter of Keys' cubic convolution: OpenCV's without antialiasing, Pillow's with it.
_CUBIC_A = -0.75
_CUBIC_ANTIALIAS_A = -0.5


class Taps(NamedTuple):
    """The taps of one axis.

    Attributes:
        indices: int64 ``[out_size, T]``, each within the axis.
        weights: ``[out_size, T]``. An index that occurs several times in a row has the sum of its
            weights.
    """

    indices: Tensor
    weights: Tensor


def taps(
    mode: Mode,
    in_size: int,
    out_size: int,
    scale_factor: float | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Taps:
    """The taps of one axis. An axis that keeps its size is copied, in every mode.

    Args:
        mode: rule for coordinates and weights.
        in_size: size of the axis before, in elements.
        out_size: size after.
        scale_factor: ``out / in`` as the user gave it, where coordinates follow from it and not
            from the sizes. Ignored with ``align_corners`` and for area, as in ATen.
        dtype: float32 or float64, the accumulation type that the weights are narrowed to.
        device: where to put the tables.

    Returns:
        T = 1 for nearest, 2 for linear, 4 for cubic; for area and antialiasing as many as the
        widest window holds.
    """
    destination = torch.arange(out_size, device=device)
    if in_size == out_size:
        return Taps(destination.unsqueeze(1), _ones(destination, dtype))
    if mode in (Mode.NEAREST, Mode.NEAREST_EXACT):
        return _nearest(mode, destination, in_size, out_size, scale_factor, dtype)
    if mode is Mode.AREA:
        return _area(destination, in_size, out_size, dtype)
    if mode >= Mode.LINEAR_ANTIALIAS:
        return _antialiased(mode, destination, in_size, out_size, scale_factor, dtype)
    return _interpolated(mode, destination, in_size, out_size, scale_factor, dtype)


def pool_taps(
    in_size: int,
    out_size: int,
    window: tuple[int, int, int, int],
    count_include_pad: bool,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Taps:
    """The taps of average pooling along one axis; ``window`` is that of :meth:`Pool.window`."""
    kernel, stride, lo, _ = window
    start = torch.arange(out_size, device=device) * stride - lo
    first, end = start.clamp(min=0), (start + kernel).clamp(max=in_size)
    count = end - first
    divisor = torch.full_like(count, kernel) if count_include_pad else count
    return _means(first, count, divisor, min(kernel, in_size), dtype)


def _ones(destination: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ones(destination.shape[0], 1, dtype=dtype, device=destination.device)


def _nearest(
    mode: Mode,
    destination: Tensor,
    in_size: int,
    out_size: int,
    scale_factor: float | None,
    dtype: torch.dtype,
) -> Taps:
    """``min(floor((d + offset) * scale), in - 1)``, in float32."""
    # 0-d float32 tensors, so that each operation rounds as ATen's float code does.
    if scale_factor is None:
        numerator = torch.tensor(in_size, dtype=torch.float32)
        scale = numerator / torch.tensor(out_size, dtype=torch.float32)
    else:
        scale = torch.tensor(1.0 / scale_factor, dtype=torch.float32)
    offset = 0.5 if mode is Mode.NEAREST_EXACT else 0.0
    source = torch.floor((destination.float() + offset) * scale.to(destination.device))
    index = source.long().clamp(max=in_size - 1)
    return Taps(index.unsqueeze(1), _ones(destination, dtype))


def _interpolated(
    mode: Mode,
    destination: Tensor,
    in_size: int,
    out_size: int,
    scale_factor: float | None,
    dtype: torch.dtype,
) -> Taps:
    """Linear and cubic: taps around one coordinate, which is clamped at 0 for linear only."""
    cubic = mode in _CUBIC
    if mode in _ALIGN_CORNERS or scale_factor is None:
        if mode in _ALIGN_CORNERS:
            numerator, denominator = destination * (in_size - 1), max(out_size - 1, 1)
        else:
            numerator = (2 * destination + 1) * in_size - out_size
            denominator = 2 * out_size
        if not cubic:
            numerator = numerator.clamp(min=0)
        first = torch.div(numerator, denominator, rounding_mode="floor")
        fraction = (numerator - first * denominator).double() * (1.0 / denominator)
    else:
        position = (destination.double() + 0.5) * (1.0 / scale_factor) - 0.5
        if not cubic:
            position = position.clamp(min=0)
        first = position.floor().long().clamp(max=in_size - 1)
        fraction = position - first.double()
    if cubic:
        # Where a scale factor leads beyond the end, as in ATen.
        fraction = fraction.clamp(max=1.0)
        offsets = torch.arange(-1, 3, device=destination.device)
        index = (first.unsqueeze(1) + offsets).clamp(0, in_size - 1)
        distance = (offsets - fraction.unsqueeze(1)).abs()
        return Taps(index, _summing_to_one(_cubic_filter(distance, _CUBIC_A), dtype))
    # On this grid 1 - fraction is exact, so that the weights sum to one and constant maps stay
    # constant. Where both taps are the last element, halves keep its value, infinite ones too.
    grid = float(2 ** _FRACTION_BITS[dtype])
    fraction = torch.round(fraction * grid) / grid
    fraction = torch.where(first >= in_size - 1, 0.5, fraction)
    second = (first + 1).clamp(max=in_size - 1)
    return Taps(
        torch.stack((first, second), 1),
        torch.stack((1.0 - fraction, fraction), 1).to(dtype),
    )


def _area(destination: Tensor, in_size: int, out_size: int, dtype: torch.dtype) -> Taps:
    """The mean over ``[floor(d * in / out), ceil((d + 1) * in / out))``: adaptive pooling."""
    first = torch.div(destination * in_size, out_size, rounding_mode="floor")
    end = -torch.div(-(destination + 1) * in_size, out_size, rounding_mode="floor")
    # A window that does not divide the axis can reach into one element more at either end.
    width = in_size // out_size + (0 if in_size % out_size == 0 else 2)
    count = end - first
    return _means(first, count, count, min(width, in_size), dtype)


def _means(first: Tensor, count: Tensor, divisor: Tensor, width: int, dtype: torch.dtype) -> Taps:
    index, weight = _windows(first, count, (1.0 / divisor.double()).unsqueeze(1).expand(-1, width))
    return Taps(index, weight.to(dtype))


def _antialiased(
    mode: Mode,
    destination: Tensor,
    in_size: int,
    out_size: int,
    scale_factor: float | None,
    dtype: torch.dtype,
) -> Taps:
    """A filter that is stretched by the scale where that is above one, normalised per window.

    The scale is ``p / q`` source elements per destination element, the centre of a window
    ``(d + 1 / 2) p / q``, its half width ``support / 2 * max(p / q, 1)``.
    """
    p: float
    q: float
    if mode in _ALIGN_CORNERS:
        p, q = (in_size - 1, out_size - 1) if out_size > 1 else (0, 1)
    elif scale_factor is None:
        p, q = in_size, out_size
    else:
        p, q = 1.0 / scale_factor, 1.0
    support = 6 if mode is Mode.LANCZOS_ANTIALIAS else 4 if mode in _CUBIC_ANTIALIAS else 2
    stretch = max(p, q)
    if scale_factor is not None:
        destination = destination.double()
    centre = (2 * destination + 1) * p  # in units of 1 / (2 q) source elements

    def edge(offset: float) -> Tensor:
        return torch.div(centre + offset + q, 2 * q, rounding_mode="floor").long()

    first = edge(-support * stretch).clamp(min=0)
    end = edge(support * stretch).clamp(max=in_size)
    width = min(math.ceil(support * stretch / q) + 1, in_size)
    index = first.unsqueeze(1) + torch.arange(width, device=destination.device)
    distance = ((2 * index + 1) * q - centre.unsqueeze(1)).abs().double() / (2 * stretch)
    weight = _filter(mode, distance)
    weight = torch.where(index < end.unsqueeze(1), weight, 0.0)
    index, weight = _windows(first, end - first, weight / weight.sum(1, keepdim=True))
    return Taps(index, _summing_to_one(weight, dtype))


def _filter(mode: Mode, distance: Tensor) -> Tensor:
    if mode is Mode.LANCZOS_ANTIALIAS:
        weight = torch.sinc(distance) * torch.sinc(distance / 3)
        return torch.where(distance < 3, weight, 0.0)
    if mode in _CUBIC_ANTIALIAS:
        return _cubic_filter(distance, _CUBIC_ANTIALIAS_A)
    return (1.0 - distance).clamp(min=0)


def _cubic_filter(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution at non-negative distances, in elements."""
    x = distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _windows(first: Tensor, count: Tensor, weight: Tensor) -> Taps:
    """Taps of windows of different lengths, ``count`` elements from ``first`` on.

    Columns behind the end of a window repeat its last element and share that one's weight: with a
    weight of zero instead, they would turn an infinite element into NaN.
    """
    column = torch.arange(weight.shape[1], device=weight.device)
    last = (count - 1).unsqueeze(1)
    share = weight.gather(1, last) / (weight.shape[1] - last)
    return Taps(
        first.unsqueeze(1) + torch.minimum(column, last),
        torch.where(column < last, weight, share),
    )


def _summing_to_one(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Narrows float64 weights; the largest takes up what rounding left, for constant maps."""
    narrowed = weight.to(dtype)
    rest = 1.0 - narrowed.double().sum(1, keepdim=True)
    return narrowed.scatter_add(1, weight.argmax(1, keepdim=True), rest.to(dtype))
