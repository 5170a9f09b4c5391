"""What Python and the compiled kernels both speak: modes, packed arguments, sizes, layouts.

Enumerations have the numbers of ``csrc/kernels/params.h``, ``resample_math.h`` and ``dtypes.h``. An
operator call packs them into one integer, because a dispatcher call costs by its number of
arguments:

====== ================================================================
bits   meaning
====== ================================================================
0-31   mode of input ``i`` at bits ``4 i`` to ``4 i + 3``; 15: a pooling source
32-35  activation
36     concatenate (else: sum)
37     the result is channels_last
38-39  dtype of the result, an index into :data:`DTYPES`
40     save the activation's bitmask
41     accumulate in float64
====== ================================================================

CPU kernels exist for all modes, CUDA kernels for those up to :data:`LAST_CUDA_MODE`, both for the
activations of :data:`KERNEL_ACTIVATIONS`; they refuse all other numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from ._pool import Pool

MAX_INPUTS = 8

LINEAR_NAMES = {1: "linear", 2: "bilinear", 3: "trilinear"}
#: The number of an activation is its place here.
ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid")
KERNEL_ACTIVATIONS = (None, "relu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Mode(IntEnum):
    """One rule for the taps of an axis."""

    NEAREST = 0
    NEAREST_EXACT = 1
    LINEAR = 2
    LINEAR_ALIGN_CORNERS = 3
    CUBIC = 4
    CUBIC_ALIGN_CORNERS = 5
    AREA = 6
    LINEAR_ANTIALIAS = 7
    LINEAR_ANTIALIAS_ALIGN_CORNERS = 8
    CUBIC_ANTIALIAS = 9
    CUBIC_ANTIALIAS_ALIGN_CORNERS = 10
    LANCZOS_ANTIALIAS = 11


#: CUDA kernels know the modes up to this one: nothing with more than two taps.
LAST_CUDA_MODE = Mode.LINEAR_ALIGN_CORNERS
#: Modes whose coordinates do not follow a scale factor, but the sizes alone.
SIZE_MODES = frozenset(
    {
        Mode.LINEAR_ALIGN_CORNERS,
        Mode.CUBIC_ALIGN_CORNERS,
        Mode.AREA,
        Mode.LINEAR_ANTIALIAS_ALIGN_CORNERS,
        Mode.CUBIC_ANTIALIAS_ALIGN_CORNERS,
    }
)

#: How one input gets to the size of the result.
Source = Mode | Pool


def _mode_table(rank: int) -> dict[tuple[str, bool | None, bool], Mode]:
    table: dict[tuple[str, bool | None, bool], Mode] = {
        ("nearest", None, False): Mode.NEAREST,
        ("nearest-exact", None, False): Mode.NEAREST_EXACT,
        ("area", None, False): Mode.AREA,
    }
    for name in dict.fromkeys(("linear", LINEAR_NAMES[rank])):
        table[name, None, False] = table[name, False, False] = Mode.LINEAR
        table[name, True, False] = Mode.LINEAR_ALIGN_CORNERS
        table[name, None, True] = table[name, False, True] = Mode.LINEAR_ANTIALIAS
        table[name, True, True] = Mode.LINEAR_ANTIALIAS_ALIGN_CORNERS
    for name in ("cubic", "bicubic"):
        table[name, None, False] = table[name, False, False] = Mode.CUBIC
        table[name, True, False] = Mode.CUBIC_ALIGN_CORNERS
        table[name, None, True] = table[name, False, True] = Mode.CUBIC_ANTIALIAS
        table[name, True, True] = Mode.CUBIC_ANTIALIAS_ALIGN_CORNERS
    table["lanczos", None, True] = table["lanczos", False, True] = Mode.LANCZOS_ANTIALIAS
    return table


#: rank -> (mode, align_corners, antialias) -> Mode
MODE_TABLES = {rank: _mode_table(rank) for rank in LINEAR_NAMES}


def mode_names(rank: int) -> tuple[str, ...]:
    """Names that ``mode`` takes; "linear" means linear, bilinear or trilinear by rank."""
    return tuple(dict.fromkeys(name for name, _, _ in MODE_TABLES[rank]))


class Call(NamedTuple):
    """A validated call of a gather-sum: what the reference takes, and what kernels are told."""

    inputs: Sequence[Tensor]
    size: tuple[int, ...]
    modes: list[Source]  # per input
    scale_factors: list[tuple[float, ...] | None]  # per input; None: from the sizes
    flat_scales: list[float]  # for the kernels: empty, or per input and axis, 0 where None
    spec: int
    reasons: list[str]  # why there is no kernel for these modes and this activation

    @property
    def batch(self) -> int:
        """The batch size of the result: inputs with one entry are broadcast."""
        return next((x.shape[0] for x in self.inputs if x.shape[0] != 1), 1)

    @property
    def activation(self) -> str | None:
        """The name of the activation."""
        return ACTIVATIONS[self.spec >> ACTIVATION_SHIFT & 15]


ACTIVATION_SHIFT = 32
CAT = 1 << 36
CHANNELS_LAST = 1 << 37
DTYPE_SHIFT = 38
SAVE_MASK = 1 << 40
ACCUMULATE_DOUBLE = 1 << 41

# A branch of a spread: four bits each.
REQUEST_WANTED = 1
REQUEST_CHANNELS_LAST = 2
REQUEST_DTYPE_SHIFT = 2

#: Stands for the mode of a pooling source.
POOL_BITS = 15


def pack(
    modes: Sequence[Source],
    *,
    cat: bool,
    activation: str | None,
    channels_last: bool,
    dtype: torch.dtype,
    accumulate_double: bool,
) -> int:
    """The integer described in the module's docstring, without ``SAVE_MASK``."""
    spec = ACTIVATIONS.index(activation) << ACTIVATION_SHIFT | DTYPES.index(dtype) << DTYPE_SHIFT
    for i, mode in enumerate(modes):
        spec |= (POOL_BITS if isinstance(mode, Pool) else mode) << (4 * i)
    if cat:
        spec |= CAT
    if channels_last:
        spec |= CHANNELS_LAST
    if accumulate_double:
        spec |= ACCUMULATE_DOUBLE
    return spec


def replace_result(spec: int, dtype: torch.dtype) -> int:
    """The same linear map with another result dtype, and without activation or mask."""
    keep = spec & ~(15 << ACTIVATION_SHIFT | 3 << DTYPE_SHIFT | SAVE_MASK)
    return keep | DTYPES.index(dtype) << DTYPE_SHIFT


def has_activation(spec: int) -> bool:
    return spec >> ACTIVATION_SHIFT & 15 != 0


def result_dtype(spec: int) -> torch.dtype:
    return DTYPES[spec >> DTYPE_SHIFT & 3]


def accumulation_dtype(spec: int) -> torch.dtype:
    return torch.float64 if spec & ACCUMULATE_DOUBLE else torch.float32


def memory_format(channels_last: bool, dim: int) -> torch.memory_format:
    """The memory format of a result of ``dim`` dimensions."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last if dim == 4 else torch.channels_last_3d


def dense_strides(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """Strides of a result, also those of axes of size 1."""
    axes = [0, *range(2, len(shape)), 1] if channels_last else list(range(len(shape)))
    strides = [1] * len(shape)
    step = 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def is_channels_last(tensor: Tensor) -> bool | None:
    """Whether the map lies channels-last in memory; None where strides do not tell.

    They do not where the map is both (one channel, or one pixel) or neither (a strided view).
    """
    contiguous = tensor.is_contiguous()
    dim = tensor.dim()
    if dim == 3:
        return False if contiguous else None
    channels_last = tensor.is_contiguous(memory_format=memory_format(True, dim))
    return None if contiguous == channels_last else channels_last


def result_is_channels_last(inputs: Sequence[Tensor]) -> bool:
    """The layout of a result: that of the first input whose strides tell, else contiguous."""
    for tensor in inputs:
        layout = is_channels_last(tensor)
        if layout is not None:
            return layout
    return False


def request(tensor: Tensor, wanted: bool) -> int:
    """What a spread is told about the gradient of ``tensor``: wanted, layout, dtype."""
    bits = DTYPES.index(tensor.dtype) << REQUEST_DTYPE_SHIFT
    if wanted:
        bits |= REQUEST_WANTED
    if is_channels_last(tensor):
        bits |= REQUEST_CHANNELS_LAST
    return bits


def mask_bytes(numel: int) -> int:
    """Size of an activation bitmask: one bit per element, in whole 32-bit words."""
    return 4 * ((numel + 31) // 32)
