"""What Python and the compiled kernels both speak: modes, packed arguments, sizes, layouts.

Enumerations have the numbers of ``csrc/kernels/params.h``, ``resample_math.h`` and ``dtypes.h``. An
operator call packs them into one integer, because a dispatcher call costs by its number of
arguments:

====== =====================================================
bits   meaning
====== =====================================================
0-31   mode of input ``i`` at bits ``4 i`` to ``4 i + 3``
32-35  activation
36     concatenate (else: sum)
37     the result is channels_last
38-39  dtype of the result, an index into :data:`DTYPES`
40     save the activation's bitmask
41     accumulate in float64
====== =====================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

MAX_INPUTS = 8

#: Names that ``mode`` takes; "linear" means linear, bilinear or trilinear by rank.
MODES = ("nearest", "nearest-exact", "linear")
LINEAR_NAMES = {1: "linear", 2: "bilinear", 3: "trilinear"}
ACTIVATIONS = (None, "relu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Mode(IntEnum):
    """One rule for source coordinates."""

    NEAREST = 0
    NEAREST_EXACT = 1
    LINEAR = 2
    LINEAR_ALIGN_CORNERS = 3


def _mode_table(rank: int) -> dict[tuple[str, bool | None], Mode]:
    table: dict[tuple[str, bool | None], Mode] = {
        ("nearest", None): Mode.NEAREST,
        ("nearest-exact", None): Mode.NEAREST_EXACT,
    }
    for name in ("linear", LINEAR_NAMES[rank]):
        table[name, None] = table[name, False] = Mode.LINEAR
        table[name, True] = Mode.LINEAR_ALIGN_CORNERS
    return table


#: rank -> (mode, align_corners) -> Mode
MODE_TABLES = {rank: _mode_table(rank) for rank in LINEAR_NAMES}

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


def pack(
    modes: Sequence[Mode],
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
        spec |= int(mode) << (4 * i)
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
