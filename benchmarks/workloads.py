"""The cases: multi-scale steps of real networks, at sizes they run at.

Each is defined once, as the plain PyTorch that people write (:attr:`Workload.eager`) and as calls
of msr_cuda (:attr:`Workload.fused`); tests and benchmarks take both from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import msr_cuda
from msr_cuda.functional import Impl

Shape = tuple[int, int, int, int]
Maps = Sequence[Tensor]


class Size(NamedTuple):
    """The finest map ``[N, C, H, W]``; the coarser ones follow from it."""

    batch: int
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


#: By kind of device: those of ``--quick``, and the others.
Sizes = dict[str, tuple[tuple[Size, ...], tuple[Size, ...]]]


def parse_size(text: str) -> Size:
    """``2x64x200x336`` -> Size(2, 64, 200, 336).

    Raises:
        ValueError: it is not four positive integers.
    """
    try:
        numbers = [int(part) for part in text.split("x")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or min(numbers) < 1:
        raise ValueError(f"size: expected NxCxHxW, got {text!r}")
    return Size(*numbers)


class Merge(NamedTuple):
    """One fusion, for counting bytes: elements of its maps that must be read and written."""

    output: int
    passed: int  # elements of the inputs that have the output's size already
    resampled: int  # of those that have not
    resampled_output: int  # output elements that those contribute to
    activation: bool

    def bytes(self, direction: str, element: int) -> int:
        """The fewest bytes of a direction: every map read once or written once.

        Args:
            direction: ``"inference"``, ``"forward"`` (which also keeps one bit per element for an
                activation) or ``"backward"`` (a map that passed through without activation gets the
                incoming gradient itself, which moves nothing).
            element: bytes per element.
        """
        mask = (self.output + 7) // 8 if self.activation else 0
        if direction == "inference":
            return element * (self.passed + self.resampled + self.output)
        if direction == "forward":
            return element * (self.passed + self.resampled + self.output) + mask
        if self.activation:
            masked = self.output if self.passed else 0  # the gradient that passed inputs share
            return element * (self.output + masked + self.resampled) + mask
        return element * (self.resampled_output + self.resampled)


@dataclass(frozen=True)
class Workload:
    """One case.

    Attributes:
        name: as on the command line.
        about: one line for people.
        shapes: of the inputs at a size.
        eager: in plain PyTorch.
        fused: with msr_cuda; the second argument is ``impl``.
        merges: what is counted for the fewest bytes.
        sizes: of the finest map.
    """

    name: str
    about: str
    shapes: Callable[[Size], list[Shape]]
    eager: Callable[[Maps], list[Tensor]]
    fused: Callable[[Maps, Impl], list[Tensor]]
    merges: Callable[[list[Shape]], list[Merge]]
    sizes: Sizes

    def minimum_bytes(self, size: Size, dtype: torch.dtype, direction: str) -> int:
        """The fewest bytes that a direction can move: see :meth:`Merge.bytes`."""
        merges = self.merges(self.shapes(size))
        return sum(merge.bytes(direction, dtype.itemsize) for merge in merges)


# ---------------------------------------------------------------------------- shapes and bytes


def _coarser(size: Size, levels: int, channels: int | None = None) -> Shape:
    """A map of the pyramid: each level halves, rounding up."""
    height, width = (-(-n // 2**levels) for n in (size.height, size.width))
    return (size.batch, size.channels if channels is None else channels, height, width)


def _count(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2] * shape[3]


def _sum_merge(target: Shape, inputs: Sequence[Shape], activation: bool = False) -> list[Merge]:
    """A sum at the size of ``target``."""
    passed = sum(_count(s) for s in inputs if s[2:] == target[2:])
    resampled = sum(map(_count, inputs)) - passed
    grown = _count(target) if resampled else 0
    return [Merge(_count(target), passed, resampled, grown, activation)]


def _cat_merge(shapes: list[Shape], target: Shape) -> list[Merge]:
    """A concat at the size of ``target``: a resampled input owns its channels of the output."""
    area = target[2] * target[3]
    passed = sum(_count(s) for s in shapes if s[2:] == target[2:])
    grown = sum(s[0] * s[1] * area for s in shapes if s[2:] != target[2:])
    return [Merge(passed + grown, passed, sum(map(_count, shapes)) - passed, grown, False)]


# ---------------------------------------------------------------------------- the expressions


def _interpolate(x: Tensor, like: Tensor, mode: str) -> Tensor:
    corners = None if mode == "nearest" else False
    return F.interpolate(x, size=like.shape[-2:], mode=mode, align_corners=corners)


def _double(size: Sequence[int]) -> list[int]:
    return [2 * n for n in size[-2:]]


def _resample(name: str, mode: str, large: Size, cuda: bool = True) -> Workload:
    def doubled(shapes: list[Shape]) -> list[Merge]:
        (batch, channels, height, width), *_ = shapes
        return _sum_merge((batch, channels, 2 * height, 2 * width), shapes)

    return Workload(
        name,
        f"one map, x2 {mode}: torch.nn.Upsample",
        lambda size: [_coarser(size, 1)],
        lambda maps: [F.interpolate(maps[0], size=_double(maps[0].shape), mode=mode)],
        lambda maps, impl: [
            msr_cuda.resample(maps[0], size=_double(maps[0].shape), mode=mode, impl=impl)
        ],
        doubled,
        _sizes(large) if cuda else _cpu_sizes(large),
    )


def _shrink(name: str, large: Size) -> Workload:
    def half(shape: Sequence[int]) -> tuple[int, int]:
        return -(-shape[-2] // 2), -(-shape[-1] // 2)

    def halved(shapes: list[Shape]) -> list[Merge]:
        (batch, channels, *_), *_ = shapes
        return _sum_merge((batch, channels, *half(shapes[0])), shapes)

    options: dict[str, Any] = dict(mode="bilinear", antialias=True)
    return Workload(
        name,
        "one map, half its size, antialiased bilinear: a level of an image pyramid",
        lambda size: [_coarser(size, 0)],
        lambda maps: [F.interpolate(maps[0], size=half(maps[0].shape), **options)],
        lambda maps, impl: [
            msr_cuda.resample(maps[0], size=half(maps[0].shape), **options, impl=impl)
        ],
        halved,
        _cpu_sizes(large),
    )


def _sum_relu(name: str, about: str, mode: str, levels: int, large: Sequence[Size]) -> Workload:
    def eager(maps: Maps) -> list[Tensor]:
        total = maps[0]
        for x in maps[1:]:
            total = total + _interpolate(x, maps[0], mode)
        return [F.relu(total)]

    return Workload(
        name,
        about,
        lambda size: [_coarser(size, level) for level in range(levels)],
        eager,
        lambda maps, impl: [
            msr_cuda.resample_sum(list(maps), mode=mode, activation="relu", impl=impl)
        ],
        lambda shapes: _sum_merge(shapes[0], shapes, activation=True),
        _sizes(*large),
    )


def _unet_cat(name: str, mode: str) -> Workload:
    def eager(maps: Maps) -> list[Tensor]:
        low, skip = maps
        return [torch.cat([_interpolate(low, skip, mode), skip], 1)]

    def fused(maps: Maps, impl: Impl) -> list[Tensor]:
        low, skip = maps
        return [msr_cuda.resample_cat([low, skip], skip.shape[-2:], mode=mode, impl=impl)]

    return Workload(
        name,
        f"x2 {mode} + concat with the skip: U-Net and YOLO necks",
        lambda size: [_coarser(size, 1), _coarser(size, 0)],
        eager,
        fused,
        lambda shapes: _cat_merge(shapes, shapes[1]),
        _sizes(Size(1, 64, 256, 256), cuda=Size(4, 64, 512, 512)),
    )


def _head_cat() -> Workload:
    def eager(maps: Maps) -> list[Tensor]:
        rest = [_interpolate(x, maps[0], "bilinear") for x in maps[1:]]
        return [torch.cat([maps[0], *rest], 1)]

    return Workload(
        "head-cat",
        "concat of 4 bilinear maps of C, 2C, 4C, 8C channels: segmentation heads",
        lambda size: [_coarser(size, level, size.channels * 2**level) for level in range(4)],
        eager,
        lambda maps, impl: [msr_cuda.resample_cat(list(maps), mode="bilinear", impl=impl)],
        lambda shapes: _cat_merge(shapes, shapes[0]),
        _sizes(Size(1, 18, 128, 256), cuda=Size(4, 48, 128, 256)),
    )


def _fpn() -> Workload:
    def eager(maps: Maps) -> list[Tensor]:
        levels = [maps[-1]]
        for lateral in reversed(maps[:-1]):
            levels.insert(0, lateral + _interpolate(levels[0], lateral, "nearest"))
        return levels[:-1]

    def fused(maps: Maps, impl: Impl) -> list[Tensor]:
        levels = [maps[-1]]
        for lateral in reversed(maps[:-1]):
            merged = msr_cuda.resample_sum([lateral, levels[0]], mode="nearest", impl=impl)
            levels.insert(0, merged)
        return levels[:-1]

    def merges(shapes: list[Shape]) -> list[Merge]:
        return [m for fine, coarse in pairwise(shapes) for m in _sum_merge(fine, [fine, coarse])]

    return Workload(
        "fpn",
        "top-down path of a feature pyramid: 3 times x2 nearest + add",
        lambda size: [_coarser(size, level) for level in range(4)],
        eager,
        fused,
        merges,
        _sizes(Size(2, 256, 100, 168), cuda=Size(2, 256, 200, 336)),
    )


# ---------------------------------------------------------------------------- sizes

#: Full channels, small maps: what batch 1 and the coarse levels of a network look like.
SMALL = Size(1, 64, 64, 64)
#: Nothing to compute: the time is that of the call.
TINY = Size(1, 16, 16, 16)


def _sizes(*large: Size, cuda: Size | None = None) -> Sizes:
    """By kind of device, the large sizes and the others. A GPU's maps must not fit its cache."""
    on_cuda = cuda or Size(8, large[-1].channels, 2 * large[-1].height, 2 * large[-1].width)
    return {"cpu": (large, (SMALL, TINY)), "cuda": ((on_cuda,), (large[0], SMALL, TINY))}


def _cpu_sizes(large: Size) -> Sizes:
    """Of modes that have no CUDA kernel."""
    return {**_sizes(large), "cuda": ((), ())}


#: In the order in which they run: the most telling first, should the time run out.
WORKLOADS = {
    workload.name: workload
    for workload in (
        _sum_relu(
            "bilinear-add-relu",
            "skip + x2 bilinear, relu",
            "bilinear",
            2,
            (Size(1, 64, 200, 336), Size(2, 64, 200, 336), Size(4, 48, 128, 256)),
        ),
        _unet_cat("unet-cat-nearest", "nearest"),
        _unet_cat("unet-cat-bilinear", "bilinear"),
        _head_cat(),
        _fpn(),
        _sum_relu(
            "hrnet-nearest",
            "3 maps, x2 and x4 nearest, sum, relu: HRNet's fuse layer",
            "nearest",
            3,
            (Size(4, 48, 128, 256),),
        ),
        _sum_relu(
            "hrnet-bilinear",
            "3 maps, x2 and x4 bilinear, sum, relu: HRNet for segmentation",
            "bilinear",
            3,
            (Size(4, 48, 128, 256),),
        ),
        _resample("resample-nearest", "nearest", Size(1, 64, 200, 336)),
        _resample("resample-bilinear", "bilinear", Size(1, 64, 200, 336)),
        _resample("resample-bicubic", "bicubic", Size(1, 64, 200, 336), cuda=False),
        _shrink("shrink-antialias", Size(4, 16, 512, 512)),
    )
}

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class Cell(NamedTuple):
    """One point of the grid."""

    workload: str
    size: Size
    dtype: str
    layout: str

    def __str__(self) -> str:
        return f"{self.workload} {self.size} {self.dtype} {self.layout}"


def cells(
    device: str,
    *,
    quick: bool,
    workloads: Iterable[str] = (),
    dtypes: Iterable[str] = (),
    layouts: Iterable[str] = (),
    sizes: Iterable[Size] = (),
) -> list[Cell]:
    """The grid, or a part of it.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        quick: large maps only, and the second dtype only where it is telling: one sum and the
            concats.
        workloads, dtypes, layouts, sizes: what was asked for; empty: all that the grid has.
    """
    first = "float32" if device == "cpu" else "float16"
    every = ("float32", "bfloat16") if device == "cpu" else ("float16", "bfloat16", "float32")
    asked = tuple(dtypes)
    found = []
    for name in tuple(workloads) or WORKLOADS:
        large, others = WORKLOADS[name].sizes[device]
        telling = name == "bilinear-add-relu" or "cat" in name
        for number, size in enumerate(tuple(sizes) or large + (() if quick else others)):
            brief = quick and (not telling or number > 0)
            chosen = asked or ((first,) if brief else every)
            found += [
                Cell(name, size, dtype, layout)
                for dtype in chosen
                for layout in tuple(layouts) or LAYOUTS
            ]
    return found


def make_maps(cell: Cell, device: torch.device, seed: int = 0) -> list[Tensor]:
    """The inputs of a cell: normal values (zeros would hide errors, and can run faster)."""
    generator = torch.Generator(device).manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, device=device)
        .to(DTYPES[cell.dtype])
        .contiguous(memory_format=LAYOUTS[cell.layout])
        for shape in WORKLOADS[cell.workload].shapes(cell.size)
    ]
