"""What Python and the compiled kernels both speak: modes, packed arguments, sizes, layouts.

Enumerations have the numbers of ``csrc/kernels/params.h``, ``resample_math.h`` and ``dtypes.h``. An
operator call packs them into one integer, because a dispatcher call costs by its number of
arguments:

====== ================================================================
bits   meaning
====== ================================================================
0-35   mode of branch ``i`` at bits ``4 i`` to ``4 i + 3``
36-39  activation
40     concatenate (else: sum)
41     the result is channels_last
42-43  dtype of the result, an index into :data:`DTYPES`
44     save what the derivative needs: bitmasks, indices of max-poolings
45     accumulate in float64
46     take the maximum (else: sum)
47     resample by the transposed operators
48     add to what the result's memory holds
49     a gate's bit of 0 multiplies with the slope of leaky_relu (else: with 0)
50-51  of many jobs: this one has weights, has pixel weights
====== ================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from ._pool import Pool

MAX_INPUTS = 8
#: The kernels' own limit: a bias is one map more.
MAX_BRANCHES = 9

LINEAR_NAMES = {1: "linear", 2: "bilinear", 3: "trilinear"}
#: The number of an activation is its place here.
ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid")
LEAKY_SLOPE = 0.01  # torch.nn.LeakyReLU's
#: Those whose derivative takes one bit per element. The others' is computed again.
BIT_ACTIVATIONS = ("relu", "relu6", "leaky_relu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Of class indices, in the order of the raw operators' numbers for them.
INDEX_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


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


#: Modes after this one have windows: more than two taps per axis.
LAST_TWO_TAP_MODE = Mode.LINEAR_ALIGN_CORNERS
#: Windows of a call without poolings: programs compiled ahead of time cannot pass empty lists.
NO_WINDOWS = (0,)
#: The numbers of pooling sources, which go on from those of the modes.
AVERAGE_POOL = 12  # windows are divided by their full size,
AVERAGE_POOL_INSIDE = 13  # or by the number of elements inside the map
MAX_POOL = 14
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


def batch_of(inputs: Sequence[Tensor]) -> int:
    """The batch size of a result: inputs with one entry are broadcast."""
    return next((x.shape[0] for x in inputs if x.shape[0] != 1), 1)


class Call(NamedTuple):
    """A validated call of a gather: what the reference takes, and what kernels are told."""

    inputs: Sequence[Tensor]
    size: tuple[int, ...]
    modes: list[Source]  # per input
    scale_factors: list[tuple[float, ...] | None]  # per input; None: from the sizes
    flat_scales: list[float]  # for the kernels: empty, or per input and axis, 0 where None
    windows: list[int]  # likewise of poolings: kernel size, stride and padding before each axis
    spec: int

    @property
    def batch(self) -> int:
        """The batch size of the result."""
        return batch_of(self.inputs)

    @property
    def activation(self) -> str | None:
        """The name of the activation."""
        return activation_of(self.spec)


SIZE_BITS = 21
ACTIVATION_SHIFT = 36
CAT = 1 << 40
CHANNELS_LAST = 1 << 41
DTYPE_SHIFT = 42
SAVE = 1 << 44
ACCUMULATE_DOUBLE = 1 << 45
MAX = 1 << 46
TRANSPOSED = 1 << 47
ADD_TO_RESULT = 1 << 48
LEAKY_GATE = 1 << 49
HAS_WEIGHTS = 1 << 50
HAS_PIXEL_WEIGHTS = 1 << 51
#: What the overloads with few arguments do not take: activations after ReLU, the maximum.
RARE = 14 << ACTIVATION_SHIFT | MAX

# A branch of a spread: four bits each.
REQUEST_WANTED = 1
REQUEST_CHANNELS_LAST = 2
REQUEST_DTYPE_SHIFT = 2


def mode_number(mode: Source) -> int:
    """The number that kernels know a source by."""
    if not isinstance(mode, Pool):
        return mode
    if mode.kind == "max":
        return MAX_POOL
    return AVERAGE_POOL if mode.count_include_pad else AVERAGE_POOL_INSIDE


def pack(
    modes: Sequence[Source],
    *,
    cat: bool,
    maximum: bool = False,
    activation: str | None,
    channels_last: bool,
    dtype: torch.dtype,
    accumulate_double: bool,
) -> int:
    """The integer described in the module's docstring; bits that are no argument are not set."""
    spec = ACTIVATIONS.index(activation) << ACTIVATION_SHIFT | DTYPES.index(dtype) << DTYPE_SHIFT
    for i, mode in enumerate(modes):
        spec |= mode_number(mode) << (4 * i)
    if cat:
        spec |= CAT
    if maximum:
        spec |= MAX
    if channels_last:
        spec |= CHANNELS_LAST
    if accumulate_double:
        spec |= ACCUMULATE_DOUBLE
    return spec


def replace_result(spec: int, dtype: torch.dtype) -> int:
    """The same linear map with another result dtype, without activation, behind its gate."""
    # The gates of a maximum say which map it is.
    leaky = LEAKY_GATE if activation_of(spec) == "leaky_relu" and not spec & MAX else 0
    keep = spec & ~(15 << ACTIVATION_SHIFT | 3 << DTYPE_SHIFT | SAVE)
    return keep | DTYPES.index(dtype) << DTYPE_SHIFT | leaky


def pack_size(size: Sequence[int]) -> int | None:
    """A spatial size as one integer, 21 bits per axis; None where one is longer, or a symbol."""
    packed = 0
    for i, n in enumerate(size):
        if type(n) is not int or n >> SIZE_BITS:
            return None
        packed |= n << (SIZE_BITS * i)
    return packed


def unpack_size(packed: int, rank: int) -> tuple[int, ...]:
    """The inverse of :func:`pack_size`."""
    return tuple(packed >> (SIZE_BITS * i) & ((1 << SIZE_BITS) - 1) for i in range(rank))


def mode_of(spec: int, branch: int) -> int:
    """The number of a branch's mode."""
    return spec >> (4 * branch) & 15


def window_elements(windows: Sequence[int], branch: int, rank: int) -> int:
    """The number of elements in a window of a pooled branch; ``windows`` as :class:`Call` has."""
    elements = 1
    for axis in range(rank):
        elements *= windows[3 * (branch * rank + axis)]
    return elements


def with_dtype(spec: int, dtype: torch.dtype) -> int:
    """The same call with another dtype of the result."""
    return spec & ~(3 << DTYPE_SHIFT) | DTYPES.index(dtype) << DTYPE_SHIFT


def activation_of(spec: int) -> str | None:
    """The name of the activation."""
    return ACTIVATIONS[spec >> ACTIVATION_SHIFT & 15]


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


#: Whether a torch.func transform is active.
in_functorch = torch._C._are_functorch_transforms_active


def is_channels_last(tensor: Tensor) -> bool | None:
    """Whether the map lies channels-last in memory; None where strides do not tell.

    They do not where the map is both (one channel, or one pixel) or neither (a strided view), and
    where torch.func hides them.
    """
    if in_functorch():
        return None
    contiguous = tensor.is_contiguous()
    dim = tensor.dim()
    if dim == 3:
        return False if contiguous else None
    channels_last = tensor.is_contiguous(memory_format=memory_format(True, dim))
    return None if contiguous == channels_last else channels_last


def has_channels_innermost(tensor: Tensor) -> bool:
    """Whether memory of any strides is walked pixel by pixel."""
    layout = is_channels_last(tensor)
    return tensor.dim() > 3 and tensor.stride(1) == 1 if layout is None else layout


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
