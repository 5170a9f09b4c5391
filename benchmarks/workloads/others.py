"""Concatenations, single maps, image pyramids and maxima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import msr_cuda
from msr_cuda.functional import Impl

from .core import (
    Shape,
    Size,
    Sizes,
    Tensors,
    Traffic,
    Workload,
    coarser,
    elements,
    fused_traffic,
    interpolate,
    pyramid,
    sizes,
    spatial,
)

# ---------------------------------------------------------------------------- concatenations


def _cat_traffic(shapes: list[Shape], target: Shape) -> Traffic:
    """At the size of ``target``: a resampled input owns its channels of the output."""
    area = target[2:]
    passed = sum(elements(s) for s in shapes if s[2:] == area)
    grown = sum(elements((*s[:2], *area)) for s in shapes if s[2:] != area)
    read = sum(map(elements, shapes))
    return Traffic(read, passed + grown, 0, grown, read - passed, 0)


def skip_cat(name: str, about: str, mode: str, cpu: Sizes, cuda: Sizes, quick: str) -> Workload:
    """``cat([R low, skip])``: the step of every U-Net."""

    def eager(maps: Tensors) -> list[Tensor]:
        low, skip = maps
        return [torch.cat([interpolate(low, spatial(skip), mode), skip], 1)]

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        low, skip = maps
        return [msr_cuda.resample_cat([low, skip], spatial(skip), mode=mode, impl=impl)]

    return Workload(
        name, about, lambda size: [coarser(size, 1), coarser(size, 0)], eager, fused,
        lambda shapes: _cat_traffic(shapes, shapes[1]), cpu, cuda, quick=quick,
    )  # fmt: skip


def head_cat(name: str, about: str, growth: int, cpu: Sizes, cuda: Sizes, quick: str) -> Workload:
    """Four bilinear maps; each level has ``growth`` times the channels of the finer one."""

    def eager(maps: Tensors) -> list[Tensor]:
        rest = [interpolate(x, spatial(maps[0]), "linear") for x in maps[1:]]
        return [torch.cat([maps[0], *rest], 1)]

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        return [msr_cuda.resample_cat(list(maps), mode="bilinear", impl=impl)]

    return Workload(
        name, about,
        lambda size: [coarser(size, level, size.channels * growth**level) for level in range(4)],
        eager, fused, lambda shapes: _cat_traffic(shapes, shapes[0]), cpu, cuda, quick=quick,
    )  # fmt: skip


# ---------------------------------------------------------------------------- one map


def doubled(name: str, mode: str, quick: str) -> Workload:
    """``torch.nn.Upsample(scale_factor=2)``."""

    def twice(shape: Sequence[int]) -> Shape:
        return tuple(2 * n for n in shape[2:])

    def eager(maps: Tensors) -> list[Tensor]:
        return [interpolate(maps[0], twice(maps[0].shape), mode)]

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        return [msr_cuda.resample(maps[0], size=twice(maps[0].shape), mode=mode, impl=impl)]

    def traffic(shapes: list[Shape]) -> Traffic:
        (shape,) = shapes
        return fused_traffic((*shape[:2], *twice(shape)), shapes)

    return Workload(
        name, f"one map, x2 {mode}: torch.nn.Upsample",
        lambda size: [coarser(size, 1)], eager, fused, traffic,
        sizes(Size(1, 64, 200, 336)),
        sizes(Size(8, 64, 400, 672), batch_one=Size(1, 64, 200, 336)), quick=quick,
    )  # fmt: skip


_SHRINKING: dict[str, Any] = dict(mode="bilinear", antialias=True)


def _halves(shape: Sequence[int], level: int) -> Shape:
    return tuple(-(-n // 2**level) for n in shape[2:])


def image_pyramid(
    name: str, about: str, levels: int, cpu: Sizes, cuda: Sizes, quick: str = "one"
) -> Workload:
    """Antialiased halves, quarters and so on of one map."""

    def eager(maps: Tensors) -> list[Tensor]:
        (x,) = maps
        found = [_halves(x.shape, level) for level in range(1, levels + 1)]
        return [F.interpolate(x, size=size, **_SHRINKING) for size in found]

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        (x,) = maps
        found = [_halves(x.shape, level) for level in range(1, levels + 1)]
        if levels == 1:
            return [msr_cuda.resample(x, size=found[0], **_SHRINKING, impl=impl)]
        return msr_cuda.resample_pyramid(x, found, **_SHRINKING, impl=impl)

    def traffic(shapes: list[Shape]) -> Traffic:
        (shape,) = shapes
        results = [(*shape[:2], *_halves(shape, level)) for level in range(1, levels + 1)]
        # Where nothing is resampled, a level is a copy and its gradient the incoming one.
        smaller = [s for s in results if s != shape]
        written, gradients = sum(map(elements, results)), sum(map(elements, smaller))
        read = elements(shape)
        return Traffic(read, written, 0, gradients, read if smaller else 0, 0)

    return Workload(
        name, about, lambda size: [coarser(size, 0)], eager, fused, traffic, cpu, cuda, quick=quick
    )


# ---------------------------------------------------------------------------- maximum


def maximum() -> Workload:
    """The largest response over scales.

    Nearest, because a copy is exact in every dtype: with blended values, contenders that round
    differently would disagree about which map wins a near tie, and so about the gradients.
    """
    levels = 3

    def eager(maps: Tensors) -> list[Tensor]:
        size = spatial(maps[0])
        rest = [interpolate(x, size, "nearest") for x in maps[1:]]
        return [torch.stack([maps[0], *rest]).max(0).values]

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        return [msr_cuda.resample_max(list(maps), impl=impl)]

    return Workload(
        "max-over-scales",
        "3 nearest maps, maximum: locally scale-invariant networks",
        pyramid(levels), eager, fused,
        lambda shapes: fused_traffic(shapes[0], shapes, bits=levels),
        sizes(Size(1, 64, 128, 256)),
        sizes(Size(8, 64, 256, 512), batch_one=Size(1, 64, 256, 512)), quick="one",
    )  # fmt: skip
