"""A convolution that sees its input at several scales.

Example::

    >>> conv = msr_cuda.nn.ScaleConvolution(3, 8, 3, scales=[1.0, 0.7, 1.4])
    >>> conv(torch.rand(1, 3, 21, 34)).shape
    torch.Size([1, 8, 21, 34])
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ._layers import check_dims, convolution
from .fusion import make_fusion
from .image_pyramid import ImagePyramid


class ScaleConvolution(nn.Module):
    r"""One filter bank at several scales; responses are brought back to one size and fused.

    .. math:: y = \max_i \; T_i^{-1}\bigl(W * T_i(x) + b\bigr)

    :math:`T_i` resamples to the scale :math:`s_i`, :math:`T_i^{-1}` back. The filters are the same
    at all scales, so that the response to a pattern depends little on its size, and there are no
    more parameters than in one convolution (but those of a learned fusion). A monotone activation
    belongs after the block.

    Args:
        in_channels, out_channels: as :class:`torch.nn.Conv2d`.
        kernel_size: odd; padding keeps the size at stride 1.
        scales: 1 to 8 factors on the size of the input.
        fusion: ``"max"`` as in the paper, or what else :func:`msr_cuda.nn.make_fusion` makes.
        stride, groups, bias: of the convolution.
        dims: number of spatial axes.
        filter: of the resampling to a smaller scale, see :class:`msr_cuda.nn.ImagePyramid`.
        mode: of the resampling back.

    Shapes: ``[N, in_channels, *spatial]`` to ``[N, out_channels, *size]``, where ``size`` is what
    the convolution alone gives, ``(n - 1) // stride + 1``.

    Source: Kanazawa, Sharma and Jacobs 2014, "Locally Scale-Invariant Convolutional Neural
    Networks".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        scales: Sequence[float] = (1.0, 0.5),
        fusion: str = "max",
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        dims: int = 2,
        filter: str = "antialias",
        mode: str = "linear",
    ) -> None:
        super().__init__()
        check_dims("ScaleConvolution", dims)
        self.stride = stride
        self.pyramid = ImagePyramid(scales, filter=filter)
        self.conv = convolution(
            dims, in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias
        )
        self.fusion = make_fusion(fusion, scales, out_channels, dims=dims, mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        """The fused responses to ``x``."""
        responses = [self.conv(level) for level in self.pyramid(x)]
        size = tuple((n - 1) // self.stride + 1 for n in x.shape[2:])
        result: Tensor = self.fusion(responses, size)
        return result
