"""Modules that resample, sum and concatenate feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import functional
from ..functional import ModeName, ScaleFactor, Size


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


#: Values of options that a module's representation leaves out.
_DEFAULTS = {"antialias": False, "eps": 1e-4, "out_scale": 1}


class _Gather(nn.Module):
    """The options that sum and concatenation share."""

    #: What a module's representation shows of its options.
    _OPTIONS: ClassVar[tuple[str, ...]] = (
        "mode", "align_corners", "antialias", "scale_factors", "activation", "dtype",
    )  # fmt: skip

    def __init__(
        self,
        mode: ModeName | Sequence[ModeName],
        align_corners: bool | Sequence[bool | None] | None,
        antialias: bool | Sequence[bool],
        scale_factors: float | Sequence[ScaleFactor | None] | None,
        activation: str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.align_corners = align_corners
        self.antialias = antialias
        self.scale_factors = scale_factors
        self.activation = activation
        self.dtype = dtype

    def extra_repr(self) -> str:
        """The mode, and every other option that was given."""
        options = {name: getattr(self, name) for name in self._OPTIONS}
        return ", ".join(
            f"{name}={value!r}"
            for name, value in options.items()
            if value is not None and value != _DEFAULTS.get(name)
        )


class ResampleSum(_Gather):
    r"""Resamples maps to one size and sums them. See :func:`msr_cuda.resample_sum`.

    Args:
        num_weights: None: an unweighted sum. Otherwise S, the number of inputs, each of which gets
            a learned factor: the parameter ``weight [S]``, which starts as ones.
        num_channels: C, of every input; needed by ``channel_weights``, ``scale`` and ``bias``.
        channel_weights: learn a factor for each channel of each input, ``weight [S, C]``.
        normalize, eps: how the weights are normalised over the inputs, as
            :func:`msr_cuda.resample_sum`; with None as they are. With ``"softmax"`` and
            ``"fast"`` weights of one, with which they start, give a mean.
        scale: learn a factor for each channel of the sum: the parameter ``scale [C]``, which starts
            as ones.
        bias: learn what is added to each channel after that: the parameter ``bias [C]``, which
            starts as zeros.
        out_scale: constant factor on the whole sum.
        mode, align_corners, antialias, scale_factors, activation, dtype: as
            :func:`msr_cuda.resample_sum`; ``dtype`` is that of the result.
        device: where the parameters are made.

    Raises:
        TypeError, ValueError: a number that is none or below one; an option without the number
            that it needs; ``num_channels`` that nothing needs.

    Example::

        >>> fuse = msr_cuda.nn.ResampleSum(2, normalize="fast", activation="relu")
        >>> fuse([torch.rand(1, 8, 20, 30), torch.rand(1, 8, 10, 15)]).shape
        torch.Size([1, 8, 20, 30])
    """

    _OPTIONS = (*_Gather._OPTIONS, "normalize", "eps", "out_scale")

    weight: nn.Parameter | None
    scale: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_weights: int | None = None,
        *,
        num_channels: int | None = None,
        channel_weights: bool = False,
        normalize: str | None = None,
        eps: float = 1e-4,
        scale: bool = False,
        bias: bool = False,
        out_scale: float = 1,
        mode: ModeName | Sequence[ModeName] = "nearest",
        align_corners: bool | Sequence[bool | None] | None = None,
        antialias: bool | Sequence[bool] = False,
        scale_factors: float | Sequence[ScaleFactor | None] | None = None,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(mode, align_corners, antialias, scale_factors, activation, dtype)
        _check_count("num_weights", num_weights)
        _check_count("num_channels", num_channels)
        per_channel = {"channel_weights": channel_weights, "scale": scale, "bias": bias}
        wanted = [name for name, value in per_channel.items() if value]
        if wanted and num_channels is None:
            raise ValueError(f"ResampleSum: expected num_channels with {wanted[0]}=True, got None")
        if num_channels is not None and not wanted:
            raise ValueError(
                f"ResampleSum: expected num_channels only with {', '.join(per_channel)}, "
                f"got {num_channels} without them"
            )
        if num_weights is None and (channel_weights or normalize is not None):
            option = "channel_weights=True" if channel_weights else f"normalize={normalize!r}"
            raise ValueError(f"ResampleSum: expected num_weights with {option}, got None")
        self.num_channels = num_channels
        self.normalize = normalize
        self.eps = eps
        self.out_scale = out_scale

        channels = () if num_channels is None else (num_channels,)
        shapes: dict[str, tuple[int, ...] | None] = {"weight": None}
        if num_weights is not None:
            shapes["weight"] = (num_weights, *channels) if channel_weights else (num_weights,)
        shapes["scale"] = channels if scale else None
        shapes["bias"] = channels if bias else None
        for name, shape in shapes.items():
            made = None if shape is None else nn.Parameter(torch.empty(shape, device=device))
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets weights and scale to ones and the bias to zeros: an unweighted sum, or a mean."""
        for factor in (self.weight, self.scale):
            if factor is not None:
                nn.init.ones_(factor)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, inputs: Sequence[Tensor], size: Size = None) -> Tensor:
        """Sums ``inputs`` at ``size``; None: as :func:`msr_cuda.resample_sum` has it."""
        return functional.resample_sum(
            inputs, size, weights=self._factor("weight"), normalize=self.normalize, eps=self.eps,
            scale=self._factor("scale"), bias=self._factor("bias"), out_scale=self.out_scale,
            mode=self.mode, align_corners=self.align_corners, antialias=self.antialias,
            scale_factors=self.scale_factors, activation=self.activation, dtype=self.dtype,
        )  # fmt: skip

    def _factor(self, name: str) -> Tensor | None:
        """A parameter. ``getattr`` finds it too, but takes as long as half a small kernel."""
        parameters = self._parameters
        if name in parameters:
            return parameters[name]
        factor: Tensor | None = getattr(self, name)  # parametrized, or replaced by a tensor
        return factor

    def extra_repr(self) -> str:
        """Which parameters there are, the mode, and every other option that was given."""
        parts = []
        if self.weight is not None:
            parts.append(f"num_weights={len(self.weight)}")
        if self.num_channels is not None:
            parts.append(f"num_channels={self.num_channels}")
        if self.weight is not None and self.weight.dim() == 2:
            parts.append("channel_weights=True")
        parts += [f"{name}=True" for name in ("scale", "bias") if getattr(self, name) is not None]
        return ", ".join([*parts, super().extra_repr()])


def _check_count(name: str, value: int | None) -> None:
    """Checks a number of inputs or channels that may be left out."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"ResampleSum: expected {name} to be an int or None, got {type(value).__name__}"
        )
    if value < 1:
        raise ValueError(f"ResampleSum: expected {name} to be at least 1, got {value}")


class _Unweighted(_Gather):
    """What has no parameters."""

    def __init__(
        self,
        *,
        mode: ModeName | Sequence[ModeName] = "nearest",
        align_corners: bool | Sequence[bool | None] | None = None,
        antialias: bool | Sequence[bool] = False,
        scale_factors: float | Sequence[ScaleFactor | None] | None = None,
        activation: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(mode, align_corners, antialias, scale_factors, activation, dtype)


class ResampleCat(_Unweighted):
    r"""Resamples maps to one size and concatenates them. See :func:`msr_cuda.resample_cat`.

    Args:
        mode, align_corners, antialias, scale_factors, activation, dtype: as
            :func:`msr_cuda.resample_cat`.

    Example::

        >>> cat = msr_cuda.nn.ResampleCat(mode="bilinear")
        >>> cat([torch.rand(1, 8, 20, 30), torch.rand(1, 4, 10, 15)]).shape
        torch.Size([1, 12, 20, 30])
    """

    def forward(self, inputs: Sequence[Tensor], size: Size = None) -> Tensor:
        """Concatenates ``inputs`` at ``size``; None: as :func:`msr_cuda.resample_cat` has it."""
        return functional.resample_cat(
            inputs, size, mode=self.mode, align_corners=self.align_corners,
            antialias=self.antialias, scale_factors=self.scale_factors,
            activation=self.activation, dtype=self.dtype,
        )  # fmt: skip


class ResampleMax(_Unweighted):
    r"""Resamples maps to one size and takes the largest. See :func:`msr_cuda.resample_max`.

    Args:
        mode, align_corners, antialias, scale_factors, activation, dtype: as
            :func:`msr_cuda.resample_max`.

    Example::

        >>> largest = msr_cuda.nn.ResampleMax(mode="bilinear")
        >>> largest([torch.rand(1, 8, 20, 30), torch.rand(1, 8, 10, 15)]).shape
        torch.Size([1, 8, 20, 30])
    """

    def forward(self, inputs: Sequence[Tensor], size: Size = None) -> Tensor:
        """The maximum of ``inputs`` at ``size``; None: as :func:`msr_cuda.resample_max` has it."""
        return functional.resample_max(
            inputs, size, mode=self.mode, align_corners=self.align_corners,
            antialias=self.antialias, scale_factors=self.scale_factors,
            activation=self.activation, dtype=self.dtype,
        )  # fmt: skip


class ResamplePyramid(nn.Module):
    r"""Resamples one map to several sizes. See :func:`msr_cuda.resample_pyramid`.

    Args:
        sizes, scale_factors, mode, align_corners, antialias: as :func:`msr_cuda.resample_pyramid`.

    Example::

        >>> pyramid = msr_cuda.nn.ResamplePyramid(
        ...     scale_factors=[0.5, 0.25], mode="bilinear", antialias=True)
        >>> [level.shape[-1] for level in pyramid(torch.rand(1, 3, 64, 64))]
        [32, 16]
    """

    def __init__(
        self,
        sizes: Sequence[Size] | None = None,
        scale_factors: Sequence[ScaleFactor] | None = None,
        *,
        mode: str = "nearest",
        align_corners: bool | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        if (sizes is None) == (scale_factors is None):
            raise ValueError(
                "ResamplePyramid: expected exactly one of sizes and scale_factors, got "
                + ("neither" if sizes is None else "both")
            )
        self.sizes = sizes
        self.scale_factors = scale_factors
        self.mode = mode
        self.align_corners = align_corners
        self.antialias = antialias

    def forward(self, input: Tensor) -> list[Tensor]:
        """The levels of ``input``."""
        return functional.resample_pyramid(
            input, self.sizes, self.scale_factors, mode=self.mode,
            align_corners=self.align_corners, antialias=self.antialias,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The levels and the mode."""
        given = ("sizes", "scale_factors", "mode", "align_corners", "antialias")
        return ", ".join(
            f"{name}={getattr(self, name)!r}"
            for name in given
            if getattr(self, name) not in (None, False)
        )
