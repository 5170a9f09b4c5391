"""What segmentation networks end with: plain PyTorch, and the same with msr_cuda."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import msr_cuda
from msr_cuda.functional import Impl

from ..workloads import Size

Shape = tuple[int, ...]
#: Of the sides of the patches in which labels lie, as those of real images do.
_PATCH = 8


@dataclass(frozen=True)
class Case:
    """One way to end.

    Attributes:
        name: as on the command line.
        about: one line for people.
        eager: in plain PyTorch, of the logits, the target and the size.
        fused: with msr_cuda; the last argument is ``impl``.
        trains: whether there is a loss, that is, a backward.
        target: makes it, of the logits' shape and the size; empty for a decision.
        exponentials: per class and pixel: of the forward, and of forward and backward.
    """

    name: str
    about: str
    eager: Callable[[Tensor, Tensor, Shape], Tensor]
    fused: Callable[[Tensor, Tensor, Shape, Impl], Tensor]
    trains: bool
    target: Callable[[Shape, Shape], Tensor]
    exponentials: tuple[int, int]


def _interpolate(logits: Tensor, size: Shape) -> Tensor:
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(logits, size=size, mode=mode)


def _upsampled(logits: Tensor, size: Shape) -> Tensor:
    """For a loss: in float32 at least, as autocast has it."""
    found = _interpolate(logits, size)
    return found.float() if found.dtype.itemsize == 2 else found


def _patches(shape: Shape, low: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = (shape[0], *(-(-n // _PATCH) for n in shape[1:]))
    found = torch.randint(low, high, coarse, generator=generator)
    for axis in range(1, len(shape)):
        found = found.repeat_interleave(_PATCH, axis).narrow(axis, 0, shape[axis])
    return found.contiguous()


def _labels(logits: Shape, size: Shape) -> Tensor:
    """Classes in patches, of which a tenth are 255: ignored."""
    labels = _patches((logits[0], *size), 0, logits[1])
    return labels.masked_fill_(_patches((logits[0], *size), 0, 10) == 0, 255)


def _masks(logits: Shape, size: Shape) -> Tensor:
    return _patches((logits[0] * logits[1], *size), 0, 2).view(*logits[:2], *size).float()


def _nothing(logits: Shape, size: Shape) -> Tensor:
    return torch.empty(0)


def _eager_cross_entropy(logits: Tensor, target: Tensor, size: Shape) -> Tensor:
    return F.cross_entropy(_upsampled(logits, size), target, ignore_index=255)


def _fused_cross_entropy(logits: Tensor, target: Tensor, size: Shape, impl: Impl) -> Tensor:
    return msr_cuda.resample_cross_entropy(logits, target, ignore_index=255, impl=impl)


def _eager_masks(logits: Tensor, target: Tensor, size: Shape) -> Tensor:
    upsampled = _upsampled(logits, size)
    return F.binary_cross_entropy_with_logits(upsampled, target.to(upsampled.dtype))


def _fused_masks(logits: Tensor, target: Tensor, size: Shape, impl: Impl) -> Tensor:
    return msr_cuda.resample_binary_cross_entropy_with_logits(logits, target, impl=impl)


def _eager_argmax(logits: Tensor, target: Tensor, size: Shape) -> Tensor:
    return _interpolate(logits, size).argmax(1)


def _fused_argmax(logits: Tensor, target: Tensor, size: Shape, impl: Impl) -> Tensor:
    return msr_cuda.resample_argmax(logits, size, impl=impl)


CASES = {
    case.name: case
    for case in (
        Case("cross-entropy", "loss of class indices", _eager_cross_entropy,
             _fused_cross_entropy, True, _labels, (1, 2)),
        Case("binary-cross-entropy", "loss of a mask per class", _eager_masks, _fused_masks,
             True, _masks, (1, 2)),
        Case("argmax", "the class of each pixel, int64", _eager_argmax, _fused_argmax, False,
             _nothing, (0, 0)),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A case at a size.

    Attributes:
        case: one of :data:`CASES`.
        size: of the logits.
        growth: how many times as large the labels are, per axis.
        dtype: of the logits, one of :data:`benchmarks.workloads.DTYPES`.
        layout: of the logits, one of :data:`benchmarks.workloads.LAYOUTS`.
    """

    case: str
    size: Size
    growth: int
    dtype: str
    layout: str

    @property
    def result(self) -> Shape:
        """The labels' size."""
        return tuple(self.growth * n for n in self.size.spatial)

    def __str__(self) -> str:
        return f"{self.case} {self.size} x{self.growth} {self.dtype} {self.layout}"


#: Per case and kind of device: the logits and the growth; the first is what --quick measures.
SIZES = {
    "cpu": {
        "cross-entropy": (
            (Size(2, 150, 128, 128), 4), (Size(2, 19, 128, 256), 4), (Size(4, 2, 128, 128), 4),
            (Size(1, 1000, 64, 64), 4), (Size(1, 14, 32, 48, 48), 2),
        ),
        "binary-cross-entropy": ((Size(2, 100, 64, 64), 4), (Size(4, 1, 128, 128), 4)),
        "argmax": (
            (Size(1, 150, 128, 128), 4), (Size(1, 19, 256, 512), 4), (Size(1, 2, 256, 256), 4),
            (Size(1, 1000, 64, 64), 4), (Size(1, 105, 32, 48, 48), 2),
        ),
    },
    "cuda": {
        "cross-entropy": (
            (Size(8, 150, 128, 128), 4), (Size(8, 19, 256, 512), 4), (Size(16, 2, 128, 128), 4),
            (Size(4, 1000, 64, 64), 8), (Size(2, 14, 64, 96, 96), 2), (Size(2, 150, 128, 128), 4),
        ),
        "binary-cross-entropy": ((Size(8, 100, 128, 128), 4), (Size(16, 1, 128, 128), 4)),
        "argmax": (
            (Size(8, 150, 128, 128), 4), (Size(8, 19, 256, 512), 4), (Size(8, 2, 256, 256), 4),
            (Size(4, 1000, 64, 64), 8), (Size(1, 105, 96, 128, 128), 2),
        ),
    },
}  # fmt: skip
