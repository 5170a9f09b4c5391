"""Sums: pyramids, exchange units, heads, weighted nodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import msr_cuda
from msr_cuda.functional import Impl

from .core import (
    Parameter,
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


def sum_relu(
    name: str, about: str, mode: str, levels: int, cpu: Sizes, cuda: Sizes, quick: str = "layouts"
) -> Workload:
    """``relu(x_0 + R x_1 + ...)``: each map coarser than the one before."""

    def eager(maps: Tensors) -> list[Tensor]:
        total = maps[0]
        for x in maps[1:]:
            total = total + interpolate(x, spatial(maps[0]), mode)
        return [F.relu(total)]

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        return [msr_cuda.resample_sum(list(maps), mode=mode, activation="relu", impl=impl)]

    return Workload(
        name, about, pyramid(levels), eager, fused,
        lambda shapes: fused_traffic(shapes[0], shapes, bits=1), cpu, cuda, quick=quick,
    )  # fmt: skip


# ---------------------------------------------------------------------------- feature pyramids


def _pyramid_traffic(shapes: list[Shape]) -> Traffic:
    """Every map read once, every sum written once; the finest map shares its sum's gradient."""
    read, written = sum(map(elements, shapes)), sum(map(elements, shapes[:-1]))
    return Traffic(read, written, 0, written, sum(map(elements, shapes[1:])), 0)


def _top_down(maps: Tensors) -> list[Tensor]:
    """Finest first; without the coarsest, which stays as it is."""
    levels = [maps[-1]]
    for lateral in reversed(maps[:-1]):
        levels.insert(0, lateral + interpolate(levels[0], spatial(lateral), "nearest"))
    return levels[:-1]


def fpn() -> Workload:
    """One call for each level."""

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        levels = [maps[-1]]
        for lateral in reversed(maps[:-1]):
            merged = msr_cuda.resample_sum([lateral, levels[0]], mode="nearest", impl=impl)
            levels.insert(0, merged)
        return levels[:-1]

    return Workload(
        "fpn",
        "top-down path of a feature pyramid: 3 times x2 nearest + add",
        pyramid(4), _top_down, fused, _pyramid_traffic,
        sizes(Size(2, 256, 100, 168)),
        sizes(Size(2, 256, 200, 336), Size(16, 256, 200, 336), batch_one=Size(1, 256, 200, 336)),
    )  # fmt: skip


def fpn_in_one_call() -> Workload:
    """Whole factors of nearest compose, so that every level is a sum of laterals alone."""

    def shapes(size: Size) -> list[Shape]:
        whole = Size(size.batch, size.channels, *(8 * -(-n // 8) for n in size.spatial))
        return pyramid(4)(whole)

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        jobs = [{"inputs": list(maps[level:])} for level in range(len(maps) - 1)]
        return msr_cuda.resample_sum_many(jobs, impl=impl)

    return Workload(
        "fpn-many",
        "the same pyramid by one resample_sum_many; the finest map in multiples of 8",
        shapes, _top_down, fused, _pyramid_traffic,
        sizes(Size(2, 256, 104, 168)),
        sizes(Size(2, 256, 200, 336), batch_one=Size(1, 256, 200, 336)), quick="",
    )  # fmt: skip


# ---------------------------------------------------------------------------- exchange units


def hrnet_unit() -> Workload:
    """All four outputs of HRNet's exchange unit.

    An output at level ``i`` sums four maps of its channels: those of finer levels came through
    strided convolutions and have its size already, those of coarser levels are resampled.
    """
    branches = 4

    def shapes(size: Size) -> list[Shape]:
        return [
            coarser(size, max(i, j), size.channels * 2**i)
            for i in range(branches)
            for j in range(branches)
        ]

    def groups(maps: Sequence[Tensor]) -> list[list[Tensor]]:
        return [list(maps[i : i + branches]) for i in range(0, len(maps), branches)]

    def eager(maps: Tensors) -> list[Tensor]:
        outputs = []
        for own in groups(maps):
            size = spatial(own[0])  # of the finest branch: it came down to this level
            total = own[0]
            for x in own[1:]:
                total = total + (x if spatial(x) == size else interpolate(x, size, "nearest"))
            outputs.append(F.relu(total))
        return outputs

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        jobs = [{"inputs": own, "activation": "relu"} for own in groups(maps)]
        return msr_cuda.resample_sum_many(jobs, impl=impl)

    def traffic(found: list[Shape]) -> Traffic:
        units = [found[i : i + branches] for i in range(0, len(found), branches)]
        parts = [fused_traffic(own[0], own, bits=1) for own in units]
        total = [sum(column) for column in zip(*parts, strict=True)]
        return Traffic(*total)._replace(bits=1)

    return Workload(
        "hrnet-many",
        "an exchange unit of HRNet, 4 outputs of 4 nearest maps, relu, by one resample_sum_many",
        shapes, eager, fused, traffic,
        sizes(Size(1, 48, 128, 256)),
        sizes(Size(4, 48, 128, 256), batch_one=Size(1, 48, 128, 256)), quick="one",
    )  # fmt: skip


# ---------------------------------------------------------------------------- heads


def dpt() -> Workload:
    """The fusion step of dense prediction transformers."""

    def eager(maps: Tensors) -> list[Tensor]:
        skip, low = maps
        return [skip + interpolate(low, spatial(skip), "linear", corners=True)]

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        return [
            msr_cuda.resample_sum(
                list(maps), mode="bilinear", align_corners=[None, True], impl=impl
            )
        ]

    return Workload(
        "dpt-fusion",
        "skip + x2 bilinear, align_corners: DPT and its kin",
        pyramid(2), eager, fused, lambda shapes: fused_traffic(shapes[0], shapes),
        sizes(Size(1, 256, 96, 96)),
        sizes(Size(8, 256, 192, 192), batch_one=Size(1, 256, 192, 192)), quick="one",
    )  # fmt: skip


def signal_sum() -> Workload:
    """One spatial axis."""

    def eager(maps: Tensors) -> list[Tensor]:
        return [maps[0] + interpolate(maps[1], spatial(maps[0]), "linear")]

    def fused(maps: Tensors, impl: Impl) -> list[Tensor]:
        return [msr_cuda.resample_sum(list(maps), mode="linear", impl=impl)]

    return Workload(
        "signal-sum",
        "skip + x2 linear, one spatial axis",
        pyramid(2), eager, fused, lambda shapes: fused_traffic(shapes[0], shapes),
        sizes(Size(4, 128, 8192)),
        sizes(Size(32, 256, 16384), batch_one=Size(1, 256, 16384)), quick="",
    )  # fmt: skip


# ---------------------------------------------------------------------------- learned factors


def _normalized(weights: Tensor, dtype: torch.dtype, eps: float = 1e-4) -> Tensor:
    """The BiFPN's fast normalisation, then in the maps' dtype, as its implementations have it."""
    positive = F.relu(weights)
    return (positive / (positive.sum() + eps)).to(dtype)


def bifpn_up() -> Workload:
    """A top-down node."""

    def eager(tensors: Tensors) -> list[Tensor]:
        fine, low, weights = tensors
        w = _normalized(weights, fine.dtype)
        return [F.silu(w[0] * fine + w[1] * interpolate(low, spatial(fine), "nearest"))]

    def fused(tensors: Tensors, impl: Impl) -> list[Tensor]:
        fine, low, weights = tensors
        return [
            msr_cuda.resample_sum(
                [fine, low], weights=weights, normalize="fast", activation="silu", impl=impl
            )
        ]

    return Workload(
        "bifpn-up",
        "BiFPN: learned fast-normalised weights, x2 nearest, SiLU",
        pyramid(2), eager, fused,
        lambda shapes: fused_traffic(shapes[0], shapes, factors=True, again=True),
        sizes(Size(4, 64, 64, 64), Size(1, 224, 128, 128)),
        sizes(
            Size(16, 64, 64, 64), Size(8, 224, 128, 128), batch_one=Size(1, 64, 64, 64)
        ),
        parameters=lambda size: [Parameter((2,), 1.0)],
        quick="one",
    )  # fmt: skip


def bifpn_down() -> Workload:
    """A bottom-up node: the input, the top-down result and the finer level, pooled."""
    pool = msr_cuda.Pool("max", 3, 2, 1)

    def shapes(size: Size) -> list[Shape]:
        half = coarser(size, 1)
        return [half, half, coarser(size, 0)]

    def eager(tensors: Tensors) -> list[Tensor]:
        own, top_down, finer, weights = tensors
        w = _normalized(weights, own.dtype)
        pooled = F.max_pool2d(finer, 3, 2, 1)
        return [F.silu(w[0] * own + w[1] * top_down + w[2] * pooled)]

    def fused(tensors: Tensors, impl: Impl) -> list[Tensor]:
        *maps, weights = tensors
        return [
            msr_cuda.resample_sum(
                maps, weights=weights, normalize="fast", mode=["nearest", "nearest", pool],
                activation="silu", impl=impl,
            )
        ]  # fmt: skip

    return Workload(
        "bifpn-down",
        "BiFPN: two maps and one max-pooled 3/2, learned fast-normalised weights, SiLU",
        shapes, eager, fused,
        lambda shapes: fused_traffic(shapes[0], shapes, factors=True, again=True),
        sizes(Size(4, 64, 64, 64), Size(1, 224, 128, 128)),
        sizes(
            Size(16, 64, 64, 64), Size(8, 224, 128, 128), batch_one=Size(1, 64, 64, 64)
        ),
        parameters=lambda size: [Parameter((3,), 1.0)],
        quick="one",
    )  # fmt: skip


def attention() -> Workload:
    """Adaptively spatial feature fusion: a weight per pixel and map, softmax over the maps."""
    maps = 3

    def shapes(size: Size) -> list[Shape]:
        return [*pyramid(maps)(size), coarser(size, 0, maps)]

    def eager(tensors: Tensors) -> list[Tensor]:
        fine, *rest, logits = tensors
        w = logits.softmax(1)
        total = w[:, :1] * fine
        for i, x in enumerate(rest, 1):
            total = total + w[:, i : i + 1] * interpolate(x, spatial(fine), "nearest")
        return [total]

    def fused(tensors: Tensors, impl: Impl) -> list[Tensor]:
        *inputs, logits = tensors
        return [
            msr_cuda.resample_sum(
                inputs, weights=logits.unsqueeze(2), normalize="softmax", impl=impl
            )
        ]

    def traffic(found: list[Shape]) -> Traffic:
        *inputs, logits = found
        own = fused_traffic(inputs[0], inputs, factors=True)
        count = elements(logits)
        return own._replace(
            read=own.read + count,
            gradient_written=own.gradient_written + count,
            read_again=own.read_again + count,
        )

    return Workload(
        "attention-to-scale",
        "3 nearest maps, softmax weights per pixel: ASFF, attention to scale",
        shapes, eager, fused, traffic,
        sizes(Size(1, 256, 80, 80)),
        sizes(Size(16, 256, 80, 80), batch_one=Size(1, 256, 80, 80)), quick="one",
    )  # fmt: skip


def affine() -> Workload:
    """A frozen batch norm behind the sum."""

    def eager(tensors: Tensors) -> list[Tensor]:
        skip, low, scale, bias = tensors
        total = skip + interpolate(low, spatial(skip), "linear")
        scale, bias = (p.to(total.dtype).view(1, -1, 1, 1) for p in (scale, bias))
        return [F.leaky_relu(total * scale + bias)]

    def fused(tensors: Tensors, impl: Impl) -> list[Tensor]:
        skip, low, scale, bias = tensors
        return [
            msr_cuda.resample_sum(
                [skip, low], scale=scale, bias=bias, mode="bilinear", activation="leaky_relu",
                impl=impl,
            )
        ]  # fmt: skip

    return Workload(
        "affine-leaky",
        "skip + x2 bilinear, learned scale and bias per channel, leaky relu: a folded batch norm",
        pyramid(2), eager, fused,
        lambda shapes: fused_traffic(shapes[0], shapes, bits=1, factors=True),
        sizes(Size(1, 64, 128, 256)),
        sizes(Size(8, 64, 256, 512), batch_one=Size(1, 64, 256, 512)),
        parameters=lambda size: [
            Parameter((size.channels,), 1.0), Parameter((size.channels,), 0.0)
        ],
        quick="one",
    )  # fmt: skip
