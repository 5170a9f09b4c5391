"""Branches of several resolutions side by side that exchange what they have found.

Example::

    >>> stage = msr_cuda.nn.ParallelBranches([8, 16], blocks=1)
    >>> [tuple(y.shape) for y in stage([torch.rand(1, 8, 21, 33), torch.rand(1, 16, 11, 17)])]
    [(1, 8, 21, 33), (1, 16, 11, 17)]
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import functional
from ._layers import check_dims, check_maps, conv_norm_relu
from .residual_block import BasicBlock


class ExchangeUnit(nn.Module):
    r"""Every branch gets the sum of all branches, each brought to its resolution.

    .. math:: y_i = \mathrm{relu}\Bigl(\sum_j F_{ij}(x_j)\Bigr)

    :math:`F_{ij}` is the identity for :math:`i = j`; a 1×1 convolution, batch norm and upsampling
    to branch i's size from a coarser branch; a chain of strided 3×3 convolutions, batch norms and,
    but for the last, ReLUs from a finer one. All sums run in one
    :func:`msr_cuda.resample_sum_many`.

    Args:
        channels: of each branch, finest first; at most 8 branches. Each branch has half the size of
            the one before, rounded up.
        dims: number of spatial axes.
        mode: of the upsampling.

    Shapes: maps ``[N, channels_i, *size_i]`` to maps of the same shapes.

    The parameters are named as in timm's ``HighResolutionModule``: its ``fuse_layers`` load.

    Source: Wang et al. 2020, "Deep High-Resolution Representation Learning for Visual Recognition"
    (HRNet), section 3.2.
    """

    def __init__(self, channels: Sequence[int], *, dims: int = 2, mode: str = "nearest") -> None:
        super().__init__()
        check_dims("ExchangeUnit", dims)
        self.channels = tuple(channels)
        self.mode = mode
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(
                _transfer(dims, self.channels, source, target) for source in range(len(channels))
            )
            for target in range(len(channels))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps after the exchange."""
        check_maps("ExchangeUnit", maps, len(self.channels))
        jobs = []
        for layers, own in zip(self.fuse_layers, maps, strict=True):
            assert isinstance(layers, nn.ModuleList)
            inputs = [layer(x) for layer, x in zip(layers, maps, strict=True)]
            jobs.append(
                {
                    "inputs": inputs,
                    "size": own.shape[2:],
                    "mode": self.mode,
                    "activation": "relu",
                }
            )
        return functional.resample_sum_many(jobs)


def _transfer(dims: int, channels: Sequence[int], source: int, target: int) -> nn.Module:
    """What takes a branch to another, but for the upsampling."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_norm_relu(dims, channels[source], channels[target], 1, relu=False)
    steps = target - source
    return nn.Sequential(
        *[
            conv_norm_relu(
                dims,
                channels[source],
                channels[target] if step == steps - 1 else channels[source],
                stride=2,
                relu=step < steps - 1,
            )
            for step in range(steps)
        ]
    )


class ParallelBranches(nn.Module):
    """Residual blocks on each branch, then an :class:`ExchangeUnit`: a module of HRNet's.

    Args:
        channels: of each branch, finest first.
        blocks: how many :class:`BasicBlock` each branch has.
        dims: number of spatial axes.
        mode: of the upsampling.

    Shapes: maps ``[N, channels_i, *size_i]`` to maps of the same shapes.

    Source: Wang et al. 2020, "Deep High-Resolution Representation Learning for Visual Recognition".
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        blocks: int = 4,
        dims: int = 2,
        mode: str = "nearest",
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*[BasicBlock(c, c, dims=dims) for _ in range(blocks)]) for c in channels
        )
        self.exchange = ExchangeUnit(channels, dims=dims, mode=mode)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps after the blocks and the exchange."""
        check_maps("ParallelBranches", maps, len(self.branches))
        found = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        result: list[Tensor] = self.exchange(found)
        return result
