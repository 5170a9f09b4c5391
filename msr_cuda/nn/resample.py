"""Modules that resample, sum and concatenate feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..functional import ScaleFactor, Size


class Resample(nn.Upsample):
    r"""Twin of :class:`torch.nn.Upsample` that runs :func:`msr_cuda.resample`.

    The constructor, the attributes and the result are those of :class:`torch.nn.Upsample`; modes
    are those of :func:`msr_cuda.resample`. The backward is a deterministic gather, and the result
    has the dtype of the input, also under autocast.

    Maps that are not floating point (uint8 masks) have no gradient and go to PyTorch's own
    function.

    Example::

        >>> up = msr_cuda.nn.Resample(scale_factor=2, mode="bilinear")
        >>> up(torch.rand(1, 3, 5, 7)).shape
        torch.Size([1, 3, 10, 14])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Resamples ``input``."""
        if not input.is_floating_point():
            return super().forward(input)
        return functional.resample(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            self.recompute_scale_factor,
        )


class _Gather(nn.Module):
    """The options that sum and concatenation share."""

    def __init__(
        self,
        mode: str | Sequence[str],
        align_corners: bool | Sequence[bool | None] | None,
        scale_factors: float | Sequence[ScaleFactor | None] | None,
        activation: str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.align_corners = align_corners
        self.scale_factors = scale_factors
        self.activation = activation
        self.dtype = dtype

    def _options(self) -> dict[str, Any]:
        """The keyword arguments of the operator."""
        return {
            "mode": self.mode,
            "align_corners": self.align_corners,
            "scale_factors": self.scale_factors,
            "activation": self.activation,
            "dtype": self.dtype,
        }

    def extra_repr(self) -> str:
        """The mode, and every other option that was given."""
        given = {name: value for name, value in self._options().items() if value is not None}
        return ", ".join(f"{name}={value!r}" for name, value in given.items())


class ResampleSum(_Gather):
    r"""Resamples maps to one size and sums them. See :func:`msr_cuda.resample_sum`.

    Args:
        num_weights: None: an unweighted sum. Otherwise the number of inputs, each of which gets a
            learned factor: the parameter ``weight`` of that length, which starts as ones.
        mode, align_corners, scale_factors, activation, dtype: as :func:`msr_cuda.resample_sum`;
            ``dtype`` is that of the result.
        device: where ``weight`` is made.

    Example::

        >>> fuse = msr_cuda.nn.ResampleSum(2, activation="relu")
        >>> fuse([torch.rand(1, 8, 20, 30), torch.rand(1, 8, 10, 15)]).shape
        torch.Size([1, 8, 20, 30])
    """

    def __init__(
        self,
        num_weights: int | None = None,
        *,
        mode: str | Sequence[str] = "nearest",
        align_corners: bool | Sequence[bool | None] | None = None,
        scale_factors: float | Sequence[ScaleFactor | None] | None = None,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(mode, align_corners, scale_factors, activation, dtype)
        if num_weights is None:
            self.register_parameter("weight", None)
            return
        if isinstance(num_weights, bool) or not isinstance(num_weights, int):
            raise TypeError(
                "ResampleSum: expected num_weights to be an int or None, "
                f"got {type(num_weights).__name__}"
            )
        if num_weights < 1:
            raise ValueError(
                f"ResampleSum: expected num_weights to be at least 1, got {num_weights}"
            )
        self.weight = nn.Parameter(torch.empty(num_weights, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets all weights to one, an unweighted sum."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, inputs: Sequence[Tensor], size: Size = None) -> Tensor:
        """Sums ``inputs`` at ``size``; None: as :func:`msr_cuda.resample_sum` has it."""
        return functional.resample_sum(inputs, size, weights=self.weight, **self._options())

    def extra_repr(self) -> str:
        """The number of weights, the mode, and every other option that was given."""
        rest = super().extra_repr()
        return rest if self.weight is None else f"num_weights={len(self.weight)}, {rest}"


class ResampleCat(_Gather):
    r"""Resamples maps to one size and concatenates them. See :func:`msr_cuda.resample_cat`.

    Args:
        mode, align_corners, scale_factors, activation, dtype: as :func:`msr_cuda.resample_cat`.

    Example::

        >>> cat = msr_cuda.nn.ResampleCat(mode="bilinear")
        >>> cat([torch.rand(1, 8, 20, 30), torch.rand(1, 4, 10, 15)]).shape
        torch.Size([1, 12, 20, 30])
    """

    def __init__(
        self,
        *,
        mode: str | Sequence[str] = "nearest",
        align_corners: bool | Sequence[bool | None] | None = None,
        scale_factors: float | Sequence[ScaleFactor | None] | None = None,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(mode, align_corners, scale_factors, activation, dtype)

    def forward(self, inputs: Sequence[Tensor], size: Size = None) -> Tensor:
        """Concatenates ``inputs`` at ``size``; None: as :func:`msr_cuda.resample_cat` has it."""
        return functional.resample_cat(inputs, size, **self._options())
