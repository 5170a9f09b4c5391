"""Layers for 1, 2 or 3 spatial axes, chosen by their number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _spec

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_NORMS: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
_MAX_POOLS: dict[int, type[nn.MaxPool1d] | type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {
    1: nn.MaxPool1d,
    2: nn.MaxPool2d,
    3: nn.MaxPool3d,
}


def check_dims(name: str, dims: int) -> None:
    """Checks a number of spatial axes."""
    if dims not in _CONVOLUTIONS:
        raise ValueError(f"{name}: expected dims to be 1, 2 or 3, got {dims!r}")


def check_choice(name: str, argument: str, value: object, choices: Sequence[str]) -> None:
    """Checks an option that is one of a few names."""
    if value not in choices:
        raise ValueError(
            f"{name}: expected {argument} to be one of {tuple(choices)}, got {value!r}"
        )


def check_maps(name: str, maps: Sequence[Tensor], count: int) -> None:
    """Checks how many maps a block was called with."""
    if len(maps) != count:
        raise ValueError(f"{name}: expected {count} maps, got {len(maps)}")


def convolution(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> nn.Module:
    """A convolution whose padding keeps the size at stride 1."""
    if kernel_size % 2 != 1 or kernel_size < 1:
        raise ValueError(f"convolution: expected kernel_size to be odd, got {kernel_size}")
    return _CONVOLUTIONS[dims](
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=bias,
    )


def batch_norm(dims: int, channels: int) -> nn.Module:
    """Batch normalization."""
    return _NORMS[dims](channels)


def norm_jointly(layer: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """A layer on maps of several sizes; batch norms have one set of statistics.

    A batch norm that is called on one map after another takes each map's own mean and variance in
    training, but their running average in evaluation: the network would be evaluated as it never
    was trained. Here the statistics are over all positions of all maps.

    Args:
        layer: a batch norm, or a sequence of layers, of which each is taken so. In evaluation, for
            one map, and if it is another layer, which keeps no running statistics, it is called on
            each map.
        maps (list[Tensor[N, C, *spatial_i]]): of several sizes.

    Returns:
        list[Tensor]: what the layer makes of each.
    """
    if len(maps) > 1 and isinstance(layer, nn.Sequential):
        for part in layer:
            maps = norm_jointly(part, maps)
        return list(maps)
    is_batch_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    if len(maps) == 1 or not is_batch_norm or not layer.training:
        return [layer(x) for x in maps]
    last = _spec.result_is_channels_last(maps)
    pixels = 1 if last else 2  # the axis that they have in a row
    flat = [(x.movedim(1, -1) if last else x).flatten(pixels, -2 if last else -1) for x in maps]
    joined = torch.cat(flat, pixels)
    # The layer wants channels where they always are, and as many axes as ever.
    joined = joined.movedim(-1, 1) if last else joined
    normalized: Tensor = layer(joined.unflatten(2, [-1, *[1] * (maps[0].dim() - 3)])).flatten(2)
    parts = normalized.split([x.shape[2:].numel() for x in maps], 2)
    # Copies, for a part cannot be changed in place, as ReLUs do.
    return [
        part.unflatten(2, x.shape[2:]).clone(memory_format=_spec.memory_format(last, x.dim()))
        for part, x in zip(parts, maps, strict=True)
    ]


def max_pool(dims: int, kernel_size: int = 3, stride: int = 2) -> nn.Module:
    """Max-pooling with the padding of a convolution of that size."""
    return _MAX_POOLS[dims](kernel_size, stride, kernel_size // 2)


def conv_norm_relu(
    dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution without bias, batch norm and, unless ``relu=False``, ReLU."""
    layers = [
        convolution(dims, in_channels, out_channels, kernel_size, stride=stride, bias=False),
        batch_norm(dims, out_channels),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def spatial_mean(x: Tensor) -> Tensor:
    """``[N, C]``: the mean over all spatial axes of ``[N, C, *spatial]``."""
    return x.flatten(2).mean(2)


def initialize(module: nn.Module) -> None:
    """Kaiming's weights for convolutions (He et al. 2015), as torchvision's ResNet has them.

    Batch norms start as ones and zeros by themselves.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
