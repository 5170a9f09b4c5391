"""The list of workloads, and the cells that a run measures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from . import others, sums
from .core import DTYPES, Size, memory_format, sizes

_SUM_CPU = sizes(Size(1, 64, 200, 336), Size(2, 64, 200, 336), Size(4, 48, 128, 256))
_HRNET = (
    sizes(Size(1, 48, 128, 256)),
    sizes(Size(4, 48, 128, 256), batch_one=Size(1, 48, 128, 256)),
)
_HEAD = (
    sizes(Size(1, 256, 128, 128)),
    sizes(Size(4, 256, 128, 128), batch_one=Size(1, 256, 128, 128)),
)
_UNET = (
    sizes(Size(1, 64, 256, 256)),
    sizes(Size(4, 64, 512, 512), batch_one=Size(1, 64, 512, 512)),
)

#: In the order in which they run: the most telling first, should the time run out.
WORKLOADS = {
    workload.name: workload
    for workload in (
        sums.sum_relu(
            "bilinear-add-relu", "skip + x2 bilinear, relu", "linear", 2, _SUM_CPU,
            sizes(Size(8, 48, 256, 512), batch_one=Size(1, 64, 200, 336)), quick="all",
        ),
        others.skip_cat(
            "unet-cat-nearest", "x2 nearest + concat with the skip: U-Net and YOLO necks",
            "nearest", *_UNET, quick="layouts",
        ),
        others.skip_cat(
            "unet-cat-bilinear", "x2 bilinear + concat with the skip: U-Net and YOLO necks",
            "linear", *_UNET, quick="all",
        ),
        others.head_cat(
            "head-cat", "concat of 4 bilinear maps of C, 2C, 4C, 8C channels: HRNet's head", 2,
            sizes(Size(1, 18, 128, 256)),
            sizes(Size(4, 48, 128, 256), batch_one=Size(1, 48, 128, 256)), quick="layouts",
        ),
        sums.fpn(),
        sums.sum_relu(
            "hrnet-nearest", "4 maps, x2, x4 and x8 nearest, sum, relu: HRNet's fuse layer",
            "nearest", 4, *_HRNET,
        ),
        sums.sum_relu(
            "hrnet-bilinear", "4 maps, x2, x4 and x8 bilinear, sum, relu: HRNet for segmentation",
            "linear", 4, *_HRNET, quick="one",
        ),
        sums.bifpn_up(),
        sums.bifpn_down(),
        others.skip_cat(
            "unet3d-cat", "x2 trilinear + concat with the skip: 3-D U-Nets", "linear",
            sizes(Size(1, 16, 64, 64, 64)),
            sizes(Size(2, 32, 128, 128, 128), batch_one=Size(1, 32, 128, 128, 128)),
            quick="one",
        ),
        others.head_cat(
            "segformer-cat", "concat of 4 bilinear maps of equal channels: SegFormer, UPerNet", 1,
            *_HEAD, quick="",
        ),
        sums.sum_relu(
            "segmentation-sum", "4 maps, x2, x4 and x8 bilinear, sum, relu: semantic FPN", "linear",
            4, *_HEAD, quick="",
        ),
        sums.dpt(),
        sums.hrnet_unit(),
        sums.fpn_in_one_call(),
        sums.attention(),
        sums.affine(),
        others.maximum(),
        others.image_pyramid(
            "image-pyramid", "an image to a half, a quarter and an eighth, antialiased bilinear", 3,
            sizes(Size(1, 3, 1024, 2048)), sizes(Size(1, 3, 1024, 2048), Size(8, 3, 1024, 2048)),
        ),
        others.image_pyramid(
            "shrink-antialias", "one map, half its size, antialiased bilinear", 1,
            sizes(Size(4, 16, 512, 512)),
            sizes(Size(16, 64, 512, 512), batch_one=Size(1, 64, 512, 512)), quick="",
        ),
        others.doubled("resample-nearest", "nearest", quick="one"),
        others.doubled("resample-bilinear", "linear", quick="one"),
        others.doubled("resample-bicubic", "bicubic", quick=""),
        sums.signal_sum(),
    )
}  # fmt: skip


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
        quick: one large size of the workloads that have a ``quick``, in its dtypes and layouts.
        workloads, dtypes, layouts, sizes: what was asked for; empty: all that the grid has. A size
            is used for the workloads of its rank.

    Raises:
        ValueError: a workload was asked for, and no size fits it.
    """
    every = ("float32", "bfloat16") if device == "cpu" else ("float16", "bfloat16", "float32")
    asked_dtypes, asked_layouts, asked_sizes = tuple(dtypes), tuple(layouts), tuple(sizes)
    found = []
    named = tuple(workloads)
    for name in named or WORKLOADS:
        workload = WORKLOADS[name]
        large, others = workload.sizes(device)
        fitting = tuple(size for size in asked_sizes if size.rank == workload.rank)
        if named and asked_sizes and not fitting:
            raise ValueError(
                f"size: expected {workload.rank + 2} numbers for {name}, "
                f"got {' and '.join(map(str, asked_sizes))}"
            )
        chosen = fitting if asked_sizes else large[:1] if quick else large + others
        if quick and not workload.quick and not named:
            continue
        brief = every[:1] if quick and workload.quick != "all" else every
        ways = ("NCHW",) if quick and workload.quick in ("one", "") else workload.layouts
        found += [
            Cell(name, size, dtype, layout)
            for size in chosen
            for dtype in asked_dtypes or brief
            for layout in asked_layouts or ways
            if layout in workload.layouts
        ]
    return found


def make_inputs(cell: Cell, device: torch.device, seed: int = 0) -> list[Tensor]:
    """The maps of a cell, then its parameters.

    Maps have normal values (zeros would hide errors, and can run faster). Parameters are spread
    around their means, in float32, or in float64 beside float64 maps.
    """
    workload, dtype = WORKLOADS[cell.workload], DTYPES[cell.dtype]
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    layout = memory_format(cell.layout, workload.rank)
    maps = [
        normal(shape).to(dtype).contiguous(memory_format=layout)
        for shape in workload.shapes(cell.size)
    ]
    own = torch.float64 if dtype == torch.float64 else torch.float32
    return maps + [
        (mean + 0.25 * normal(shape)).to(own) for shape, mean in workload.parameters(cell.size)
    ]
