"""The feature pyramid network of object detectors (https://arxiv.org/abs/1612.03144)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .. import functional


def merge_top_down(lateral: Tensor, top: Tensor) -> Tensor:
    """One step of the top-down path: ``lateral + interpolate(top, lateral.shape[2:])``."""
    return functional.resample_sum([lateral, top], lateral.shape[2:], mode="nearest")


def top_down_pyramid(
    maps: Sequence[Tensor],
    inner_block: Callable[[Tensor, int], Tensor],
    layer_block: Callable[[Tensor, int], Tensor],
) -> list[Tensor]:
    """The levels of a pyramid, finest first.

    Args:
        maps: feature maps, finest first.
        inner_block: lateral convolution of the map with that index.
        layer_block: convolution of the merged level with that index.

    Returns:
        One level per map. The coarsest has index -1 for the blocks, as in torchvision, so that
        fewer maps than blocks mean the same there and here.
    """
    last = inner_block(maps[-1], -1)
    levels = [layer_block(last, -1)]
    for i in range(len(maps) - 2, -1, -1):
        last = merge_top_down(inner_block(maps[i], i), last)
        levels.insert(0, layer_block(last, i))
    return levels


class FeaturePyramidNetwork(nn.Module):
    r"""Twin of ``torchvision.ops.FeaturePyramidNetwork``, without torchvision.

    The constructor, the initial weights, the names of the parameters and the result are
    torchvision's, so that its checkpoints load. A level of the top-down path is one
    :func:`msr_cuda.resample_sum` of the lateral map and the coarser level.

    Args:
        in_channels_list: channels of each map, finest first.
        out_channels: channels of every level.
        extra_blocks: module called as ``extra_blocks(results, x, names)`` with the levels, the
            input maps and the names of the levels, which returns the extended lists of levels and
            names: torchvision's ``ExtraFPNBlock``, or anything with its signature.
        norm_layer: makes the normalization after each convolution, which then has no bias.

    Example::

        >>> fpn = msr_cuda.nn.FeaturePyramidNetwork([16, 32], 8)
        >>> levels = fpn(OrderedDict(a=torch.rand(1, 16, 25, 31), b=torch.rand(1, 32, 13, 16)))
        >>> {name: tuple(level.shape) for name, level in levels.items()}
        {'a': (1, 8, 25, 31), 'b': (1, 8, 13, 16)}
    """

    _version = 2  # torchvision's: version 1 had no Sequential around each convolution

    def __init__(
        self,
        in_channels_list: Sequence[int],
        out_channels: int,
        extra_blocks: nn.Module | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList()
        self.layer_blocks = nn.ModuleList()
        for channels in in_channels_list:
            if channels == 0:
                raise ValueError(
                    "FeaturePyramidNetwork: expected in_channels_list to be positive, got 0"
                )
            self.inner_blocks.append(_convolution(channels, out_channels, 1, norm_layer))
            self.layer_blocks.append(_convolution(out_channels, out_channels, 3, norm_layer))
        # Before extra_blocks is a child: it has its own initial weights.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if extra_blocks is not None and not isinstance(extra_blocks, nn.Module):
            raise TypeError(
                "FeaturePyramidNetwork: expected extra_blocks to be a Module or None, "
                f"got {type(extra_blocks).__name__}"
            )
        self.extra_blocks = extra_blocks

    def forward(self, x: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Computes the levels, finest first, from maps by name, finest first."""
        names = list(x.keys())
        maps = list(x.values())
        levels = top_down_pyramid(
            maps,
            lambda map_, i: self.inner_blocks[i](map_),
            lambda map_, i: self.layer_blocks[i](map_),
        )
        if self.extra_blocks is not None:
            levels, names = self.extra_blocks(levels, maps, names)
        # An extra block may return more levels than names; torchvision drops those too.
        return OrderedDict(zip(names, levels, strict=False))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            for block in ("inner_blocks", "layer_blocks"):
                for i in range(len(self.inner_blocks)):
                    for name in ("weight", "bias"):
                        value = state_dict.pop(f"{prefix}{block}.{i}.{name}", None)
                        if value is not None:
                            state_dict[f"{prefix}{block}.{i}.0.{name}"] = value
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm_layer: Callable[..., nn.Module] | None,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=norm_layer is None,
        )
    ]
    if norm_layer is not None:
        layers.append(norm_layer(out_channels))
    return nn.Sequential(*layers)
