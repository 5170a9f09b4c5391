"""Image pyramids as the first layer of a network.

Example::

    >>> pyramid = msr_cuda.nn.ImagePyramid([1.0, 0.5, 0.25], filter="gaussian")
    >>> [tuple(level.shape[2:]) for level in pyramid(torch.rand(1, 3, 33, 47))]
    [(33, 47), (17, 24), (8, 12)]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ._layers import check_choice

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
#: A Gaussian is cut off at this many standard deviations; 0.3 % of it lies beyond.
_CUT = 3.0
_MOST_SCALES = 8  # what the operators take at once
FILTERS = ("antialias", "gaussian")


def check_scales(name: str, scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as a tuple of floats; raises ValueError for what a pyramid cannot have."""
    values = tuple(float(s) for s in scales)
    if not 1 <= len(values) <= _MOST_SCALES:
        raise ValueError(f"{name}: expected 1 to {_MOST_SCALES} scales, got {len(values)}")
    if not all(math.isfinite(s) and s > 0 for s in values):
        raise ValueError(f"{name}: expected scales to be positive, got {values}")
    return values


def scaled_size(size: Sequence[int], scale: float) -> tuple[int, ...]:
    """Each number times ``scale``, to the nearest integer (half up), at least 1."""
    # Not int(), which would make a number of what is a symbol while a graph is captured.
    return tuple(max(1, torch.sym_int(n * scale + 0.5)) for n in size)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    r"""Convolves each spatial axis with a sampled Gaussian; edges are repeated.

    .. math:: k_j = e^{-j^2 / 2\sigma^2} / \sum_i e^{-i^2 / 2\sigma^2}, \quad |j| \le
        \lceil 3\sigma \rceil

    Args:
        x (Tensor[N, C, *spatial]): 1 to 3 spatial axes.
        sigma: standard deviation in elements, positive.

    Returns:
        Tensor[N, C, *spatial]: of the same size.
    """
    rank, radius = x.dim() - 2, math.ceil(_CUT * sigma)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    position = torch.arange(-radius, radius + 1, device=x.device, dtype=compute)
    kernel = torch.exp(-position.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(x.dtype)
    channels = x.shape[1]
    for axis in range(rank):
        pad = [0, 0] * (rank - 1 - axis) + [radius, radius] + [0, 0] * axis  # last axis first
        shape = [1, 1, *[1] * rank]
        shape[2 + axis] = -1
        weight = kernel.view(shape).expand(channels, *[-1] * (rank + 1))
        x = _CONVOLVE[rank](F.pad(x, pad, mode="replicate"), weight, groups=channels)
    return x


class ImagePyramid(nn.Module):
    r"""The input at several scales, low-pass filtered before it gets smaller.

    A level has the size ``max(1, round(scale * n))`` on each axis. At scale 1 it is the input
    itself, above it is interpolated, and below there are two filters:

    - ``"antialias"``: :func:`msr_cuda.resample_pyramid` with ``antialias=True``, whose filter is
      widened by the scale; all levels in one call that reads the input once.
    - ``"gaussian"``: a Gaussian blur of :math:`\sigma = \sigma_0 \sqrt{1/s^2 - 1}` elements, then
      linear sampling. It takes an image of blur :math:`\sigma_0` to the same blur at the scale s.

    Args:
        scales: 1 to 8 positive factors on the size, in the order of the result.
        filter: ``"antialias"`` or ``"gaussian"``.
        mode: of the resampling, ``"linear"`` or ``"bicubic"``.
        blur: :math:`\sigma_0` of ``"gaussian"``, in elements.

    Shapes: ``[N, C, *spatial]`` to a list of ``[N, C, *size_i]``, 1 to 3 spatial axes.

    Raises:
        ValueError: a scale that is not positive, too many or none; an unknown filter or mode.

    Source: Burt and Adelson 1983, "The Laplacian Pyramid as a Compact Image Code"; the blur that is
    assumed of an image and what is added to it: Lowe 2004, "Distinctive Image Features from
    Scale-Invariant Keypoints", section 3.3.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 0.5),
        *,
        filter: str = "antialias",
        mode: str = "linear",
        blur: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("ImagePyramid", "filter", filter, FILTERS)
        check_choice("ImagePyramid", "mode", mode, ("linear", "bicubic"))
        if not blur > 0:
            raise ValueError(f"ImagePyramid: expected blur to be positive, got {blur}")
        self.scales = check_scales("ImagePyramid", scales)
        self.filter = filter
        self.mode = mode
        self.blur = blur

    def forward(self, x: Tensor) -> list[Tensor]:
        """The levels of ``x``."""
        resampled = [s for s in self.scales if s != 1.0]
        if not resampled:
            return [x for _ in self.scales]
        sizes = [scaled_size(x.shape[2:], s) for s in resampled]
        if self.filter == "antialias":
            made = functional.resample_pyramid(x, sizes, mode=self.mode, antialias=True)
        else:
            made = [
                functional.resample(
                    x if s > 1 else gaussian_blur(x, self.blur * math.sqrt(s**-2 - 1)),
                    size,
                    mode=self.mode,
                )
                for s, size in zip(resampled, sizes, strict=True)
            ]
        levels = iter(made)
        return [x if s == 1.0 else next(levels) for s in self.scales]

    def extra_repr(self) -> str:
        """The scales and the filter."""
        blur = f", blur={self.blur}" if self.filter == "gaussian" else ""
        return f"scales={self.scales}, filter={self.filter!r}, mode={self.mode!r}{blur}"
