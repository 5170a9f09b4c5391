"""Gates: factors between 0 and 1 on channels or positions.

Example::

    >>> gate = msr_cuda.nn.AttentionGate(16, 32, hidden=8)
    >>> gate(torch.rand(1, 16, 21, 30), torch.rand(1, 32, 11, 15)).shape
    torch.Size([1, 16, 21, 30])
"""

from __future__ import annotations

from torch import Tensor, nn

from .. import functional
from ._layers import check_dims, convolution, spatial_mean


class SqueezeGate(nn.Module):
    r"""A factor on each channel, from the means of all channels.

    .. math:: y = x \cdot \sigma(W_2 \, \mathrm{relu}(W_1 \bar x + b_1) + b_2)

    Args:
        channels: C.
        reduction: the hidden layer has ``max(1, C // reduction)`` units.

    Shapes: ``[N, C, *spatial]`` to the same; 1 or more spatial axes.

    Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", section 3.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The gated map."""
        gate = self.excite(self.squeeze(spatial_mean(x)).relu()).sigmoid()
        return x * gate.view(*gate.shape, *[1] * (x.dim() - 2))


class AttentionGate(nn.Module):
    r"""A factor on each position of a map, from that map and a coarser one.

    .. math::
        y = x \cdot \sigma\bigl(\psi * \mathrm{relu}(W_x * x + R(W_g * g) + b)\bigr)

    The resampling, the sum, the bias and the ReLU are one :func:`msr_cuda.resample_sum`.

    Args:
        channels: of x.
        gate_channels: of g.
        hidden: channels in which both are compared. Default: ``max(1, channels // 2)``.
        dims: number of spatial axes.
        mode: how g is resampled.

    Shapes: x ``[N, channels, *size]`` and g ``[N, gate_channels, *spatial]`` to the shape of x.

    Source: Oktay et al. 2018, "Attention U-Net", section 2 (additive attention); here x keeps its
    size, and g comes to it.
    """

    def __init__(
        self,
        channels: int,
        gate_channels: int,
        *,
        hidden: int | None = None,
        dims: int = 2,
        mode: str = "linear",
    ) -> None:
        super().__init__()
        check_dims("AttentionGate", dims)
        hidden = max(1, channels // 2) if hidden is None else hidden
        self.mode = mode
        self.map = convolution(dims, channels, hidden)  # its bias is b
        self.gate = convolution(dims, gate_channels, hidden, bias=False)
        self.score = convolution(dims, hidden, 1)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """The gated map."""
        compared = functional.resample_sum(
            [self.map(x), self.gate(gate)], x.shape[2:], mode=self.mode, activation="relu"
        )
        return x * self.score(compared).sigmoid()
