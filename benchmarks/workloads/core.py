"""What a workload is: shapes, two expressions, the bytes it must move, and the sizes it runs at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from msr_cuda.functional import Impl

Shape = tuple[int, ...]
Tensors = Sequence[Tensor]


class Size(tuple[int, ...]):
    """The finest map ``[N, C, *spatial]``, one to three spatial axes; the others follow from it."""

    def __new__(cls, *numbers: int) -> Size:
        return super().__new__(cls, numbers)

    @property
    def batch(self) -> int:
        return self[0]

    @property
    def channels(self) -> int:
        return self[1]

    @property
    def spatial(self) -> Shape:
        return tuple(self[2:])

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self) - 2

    def __str__(self) -> str:
        return "x".join(map(str, self))


class Sizes(NamedTuple):
    """Of one kind of device: those of ``--quick``, and the others."""

    large: tuple[Size, ...]
    others: tuple[Size, ...]


def parse_size(text: str) -> Size:
    """``2x64x200x336`` -> Size(2, 64, 200, 336).

    Raises:
        ValueError: it is not three to five positive integers.
    """
    try:
        numbers = [int(part) for part in text.split("x")]
    except ValueError:
        numbers = []
    if not 3 <= len(numbers) <= 5 or min(numbers) < 1:
        raise ValueError(f"size: expected NxCxL, NxCxHxW or NxCxDxHxW, got {text!r}")
    return Size(*numbers)


class Parameter(NamedTuple):
    """A learned tensor beside the maps: in float32 whatever their dtype, as optimizers keep it."""

    shape: Shape
    mean: float


class Traffic(NamedTuple):
    """What one fused step must move at least, in elements: each map read once or written once.

    Attributes:
        read: of the inputs, by the forward.
        written: of the output.
        bits: kept per element of the output for the backward.
        gradient_read: of the output's gradient, by the backward.
        gradient_written: of the inputs' gradients.
        read_again: of the inputs, by the backward.
    """

    read: int
    written: int
    bits: int
    gradient_read: int
    gradient_written: int
    read_again: int

    def bytes(self, direction: str, element: int) -> int:
        """Bytes of a direction, one of :data:`benchmarks.contenders.DIRECTIONS`.

        ``inference`` keeps nothing for a backward, ``step`` is forward and backward.
        """
        mask = (self.bits * self.written + 7) // 8
        inference = element * (self.read + self.written)
        forward = inference + mask
        moved = self.gradient_read + self.gradient_written + self.read_again
        backward = element * moved + mask
        return {
            "inference": inference,
            "forward": forward,
            "backward": backward,
            "step": forward + backward,
        }[direction]


def elements(shape: Shape) -> int:
    """Of a map."""
    return math.prod(shape)


def fused_traffic(
    target: Shape,
    inputs: Sequence[Shape],
    *,
    bits: int = 0,
    factors: bool = False,
    again: bool = False,
) -> Traffic:
    """Of one result at the size of ``target``.

    A map of the result's size that passed through with neither activation nor factors gets the
    incoming gradient itself, which moves nothing; behind an activation, such maps share one.

    Args:
        target: shape of the result.
        inputs: shapes of the maps.
        bits: kept per element: 1 for a ReLU, one per map for a maximum.
        factors: every map has a learned factor, whose gradient needs the map again.
        again: an activation whose derivative is computed again from the inputs.
    """
    passed = sum(elements(s) for s in inputs if s[2:] == target[2:])
    read, written = sum(map(elements, inputs)), elements(target)
    resampled = read - passed
    if not (bits or factors or again):
        return Traffic(read, written, 0, written if resampled else 0, resampled, 0)
    own = factors or bits > 1  # a gradient for each map
    shared = passed if own else min(passed, written)
    return Traffic(
        read, written, bits, written, resampled + shared, read if factors or again else 0
    )


@dataclass(frozen=True)
class Workload:
    """One case.

    Attributes:
        name: as on the command line.
        about: one line for people.
        shapes: of the maps at a size.
        eager: in plain PyTorch; it is given the maps, then the parameters.
        fused: with msr_cuda; the second argument is ``impl``.
        traffic: the least that must be moved, of maps of these shapes.
        cpu, cuda: sizes of the finest map.
        parameters: what is learned, at a size.
        quick: what ``--quick`` runs: ``"all"`` dtypes and layouts; both ``"layouts"`` in the first
            dtype; ``"one"``, contiguous in the first dtype; or nothing, because another is much
            like it.
    """

    name: str
    about: str
    shapes: Callable[[Size], list[Shape]]
    eager: Callable[[Tensors], list[Tensor]]
    fused: Callable[[Tensors, Impl], list[Tensor]]
    traffic: Callable[[list[Shape]], Traffic]
    cpu: Sizes
    cuda: Sizes
    parameters: Callable[[Size], list[Parameter]] = lambda size: []
    quick: str = "layouts"

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return self.cpu.large[0].rank

    @property
    def layouts(self) -> tuple[str, ...]:
        """Those that differ: maps with one spatial axis have only one."""
        return ("NCHW",) if self.rank == 1 else tuple(LAYOUTS)

    def sizes(self, device: str) -> Sizes:
        """Of a kind of device, ``"cpu"`` or ``"cuda"``."""
        return self.cuda if device == "cuda" else self.cpu

    def minimum_bytes(self, size: Size, dtype: torch.dtype, direction: str) -> int:
        """The fewest bytes that a direction can move: see :meth:`Traffic.bytes`.

        Parameters are not counted: they are small.
        """
        return self.traffic(self.shapes(size)).bytes(direction, dtype.itemsize)


# ---------------------------------------------------------------------------- layouts

#: "NCHW" means contiguous and "channels_last" channels_last_3d for maps of other ranks.
LAYOUTS = ("NCHW", "channels_last")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def memory_format(layout: str, rank: int) -> torch.memory_format:
    """Of a layout's name, for maps with this number of spatial axes."""
    if layout == "NCHW":
        return torch.contiguous_format
    return torch.channels_last if rank == 2 else torch.channels_last_3d


# ---------------------------------------------------------------------------- sizes

#: Full channels, small maps: what batch 1 and the coarse levels of a network look like.
SMALL = {1: Size(1, 64, 4096), 2: Size(1, 64, 64, 64), 3: Size(1, 32, 16, 32, 32)}
#: Nothing to compute: the time is that of the call.
TINY = {1: Size(1, 16, 256), 2: Size(1, 16, 16, 16), 3: Size(1, 16, 8, 8, 8)}


def sizes(*large: Size, batch_one: Size | None = None) -> Sizes:
    """These large ones; the others are small and tiny, and one image at full size."""
    rank = large[0].rank
    one = () if batch_one is None else (batch_one,)
    return Sizes(large, (*one, SMALL[rank], TINY[rank]))


# ---------------------------------------------------------------------------- shapes, expressions


def coarser(size: Size, level: int, channels: int | None = None) -> Shape:
    """A map of the pyramid: each level halves, rounding up."""
    spatial = (-(-n // 2**level) for n in size.spatial)
    return (size.batch, size.channels if channels is None else channels, *spatial)


def pyramid(levels: int) -> Callable[[Size], list[Shape]]:
    """The finest map and coarser ones, of equal channels."""
    return lambda size: [coarser(size, level) for level in range(levels)]


def spatial(x: Tensor) -> Shape:
    """Of a map."""
    return tuple(x.shape[2:])


def interpolate(x: Tensor, size: Sequence[int], mode: str, corners: bool = False) -> Tensor:
    """PyTorch's, with ``"linear"`` for any rank."""
    if mode == "nearest":
        return F.interpolate(x, size=tuple(size))
    names = {1: "linear", 2: "bilinear", 3: "trilinear"}
    name = names[x.dim() - 2] if mode == "linear" else mode
    return F.interpolate(x, size=tuple(size), mode=name, align_corners=corners)
