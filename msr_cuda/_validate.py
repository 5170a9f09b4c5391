"""Checks the arguments of the public functions, and turns them into what runs.

Every message names the function, the argument, what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _spec
from ._pool import Pool

Size = int | Sequence[int] | None
ScaleFactor = float | Sequence[float]
ModeName = str | Pool

_SPATIAL = {1: "L", 2: "H, W", 3: "D, H, W"}
_REDUCTIONS = ("none", "mean", "sum")
_NORMALIZE = (None, "softmax", "fast")
#: Class indices that a loss takes, and argmax gives.
_ARGMAX_DTYPES = (torch.int64, torch.int32, torch.uint8)


def prepare(
    name: str,
    inputs: Sequence[Tensor],
    size: Size,
    mode: ModeName | Sequence[ModeName],
    align_corners: bool | Sequence[bool | None] | None,
    antialias: bool | Sequence[bool],
    scale_factors: float | Sequence[ScaleFactor | None] | None,
    activation: str | None,
    dtype: torch.dtype | None,
    *,
    cat: bool = False,
    maximum: bool = False,
    pooling: bool = True,
    keep_scales: bool = True,
    argument: str = "",
    out: Tensor | None = None,
) -> _spec.Call:
    """A validated call of a gather-sum.

    Args:
        name: of the public function, for messages.
        inputs, size, mode, align_corners, antialias, scale_factors, activation, dtype: as
            :func:`msr_cuda.resample_sum`.
        cat: the results are concatenated, not added.
        maximum: the largest of the results is taken.
        pooling: a :class:`Pool` is a mode of this function.
        keep_scales: coordinates follow from the scale factors, where they are given.
        argument: name of a single input, for messages.
        out: where the result goes; it decides dtype and layout.
    """
    rank = _check_maps(name, inputs, argument)
    count = len(inputs)
    modes = _resolve_modes(name, mode, align_corners, antialias, rank, count, pooling)
    scales = _resolve_scales(name, scale_factors, rank, count)
    target = _resolve_size(name, inputs, size, scales, rank)
    windows: list[int] = []
    for m in modes:
        if isinstance(m, Pool):
            windows = _check_pools(name, inputs, modes, scales, target)
            break
    flat_scales: list[float] = []
    if scale_factors is not None:
        scales = [
            _effective_scale(s, m) if keep_scales else None
            for s, m in zip(scales, modes, strict=True)
        ]
        if any(s is not None for s in scales):
            for scale in scales:
                flat_scales.extend((0.0,) * rank if scale is None else scale)
    if activation not in _spec.ACTIVATIONS:
        raise ValueError(
            f"{name}: expected activation to be one of {_spec.ACTIVATIONS}, got {activation!r}"
        )
    promoted = inputs[0].dtype
    for x in inputs:
        if x.dtype != promoted:
            promoted = torch.promote_types(promoted, x.dtype)
    if dtype is not None and dtype not in _spec.DTYPES:
        raise TypeError(f"{name}: expected dtype to be one of {_dtype_names()}, got {dtype}")
    if out is None:
        channels_last = _spec.result_is_channels_last(inputs)
    else:
        _check_out(name, out, inputs, target, dtype, cat)
        dtype, channels_last = out.dtype, _spec.has_channels_innermost(out)
    spec = _spec.pack(
        modes,
        cat=cat,
        maximum=maximum,
        activation=activation,
        channels_last=channels_last,
        dtype=dtype or promoted,
        accumulate_double=promoted == torch.float64 or dtype == torch.float64,
    )
    return _spec.Call(inputs, target, modes, scales, flat_scales, windows, spec)


def _check_out(
    name: str,
    out: Any,
    inputs: Sequence[Tensor],
    size: tuple[int, ...],
    dtype: torch.dtype | None,
    cat: bool,
) -> None:
    """Checks memory that a result is written to."""
    _check_parameter(name, "out", out, inputs[0].device, "inputs[0]")
    batch = _spec.batch_of(inputs)
    channels = sum(x.shape[1] for x in inputs) if cat else inputs[0].shape[1]
    if tuple(out.shape) != (batch, channels, *size):
        raise ValueError(
            f"{name}: expected out to be {(batch, channels, *size)}, got {tuple(out.shape)}"
        )
    if dtype is not None and dtype != out.dtype:
        raise ValueError(f"{name}: expected dtype {out.dtype} like out, got {dtype}")
    if torch.compiler.is_compiling():
        return  # there is no memory yet
    if any(stride == 0 and n > 1 for stride, n in zip(out.stride(), out.shape, strict=True)):
        raise ValueError(f"{name}: expected out with memory for each element, got an expanded map")
    for i, x in enumerate(inputs):
        if _may_overlap(out, x):
            raise ValueError(f"{name}: expected out to share no memory with inputs[{i}]")


def _may_overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two maps may share memory. Channels of one buffer are known to be apart."""
    if a.device.type == "meta" or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    if a.numel() == 0 or b.numel() == 0:
        return False

    def bounds(t: Tensor) -> tuple[int, int]:
        last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
        begin = int(t.storage_offset()) * t.element_size()
        return begin, begin + int(last + 1) * t.element_size()

    (a_begin, a_end), (b_begin, b_end) = bounds(a), bounds(b)
    if a_end <= b_begin or b_end <= a_begin:
        return False
    if a.dtype != b.dtype or a.stride() != b.stride() or a.shape[2:] != b.shape[2:]:
        return True
    first, second = (a, b) if a_begin <= b_begin else (b, a)
    apart = second.storage_offset() - first.storage_offset()
    channels, step = apart // a.stride(1), a.stride(1)
    # The next larger stride is where the following channels would begin again.
    larger = [s for s, n in zip(a.stride(), a.shape, strict=True) if s > step and n > 1]
    room = min(larger, default=(channels + second.shape[1]) * step)
    return (
        apart % step != 0 or channels < first.shape[1] or (channels + second.shape[1]) * step > room
    )


def check_no_grad(name: str, tensors: Sequence[Tensor | None]) -> None:
    """Checks that no gradient is wanted of a result that is written to given memory."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{name}: expected no tensor that requires grad with out=, which has no derivative; "
            "use torch.no_grad()"
        )


def _check_maps(name: str, inputs: Any, argument: str) -> int:
    """Checks what every map must be, and returns the number of spatial axes."""
    if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
        raise TypeError(
            f"{name}: expected inputs to be a list of tensors, got {type(inputs).__name__}"
        )
    if not 1 <= len(inputs) <= _spec.MAX_INPUTS:
        raise ValueError(f"{name}: expected 1 to {_spec.MAX_INPUTS} inputs, got {len(inputs)}")
    first = inputs[0]
    batch = 1
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name}: expected {argument or f'inputs[{i}]'} to be a Tensor, "
                f"got {type(x).__name__}"
            )
        if x.dtype not in _spec.DTYPES:
            raise TypeError(
                f"{name}: expected {argument or f'inputs[{i}]'} to be one of {_dtype_names()}, "
                f"got {x.dtype}"
            )
        if not 3 <= x.dim() <= 5:
            raise ValueError(
                f"{name}: expected {argument or f'inputs[{i}]'} to be [N, C, *spatial] with 1 to 3 "
                f"spatial axes, got {x.dim()} dimensions"
            )
        if x.dim() != first.dim():
            raise ValueError(
                f"{name}: expected inputs[{i}] to have {first.dim()} dimensions like inputs[0], "
                f"got {x.dim()}"
            )
        if x.device != first.device:
            raise ValueError(
                f"{name}: expected inputs[{i}] on {first.device} like inputs[0], got {x.device}"
            )
        for size in x.shape[2:]:
            if size == 0:
                raise ValueError(
                    f"{name}: expected {argument or f'inputs[{i}]'} to have no spatial axis "
                    f"of size 0, got shape {tuple(x.shape)}"
                )
        if x.shape[0] != batch:
            if batch == 1:
                batch = x.shape[0]
            elif x.shape[0] != 1:
                raise ValueError(
                    f"{name}: expected inputs[{i}] to have batch size {batch} or 1, "
                    f"got {x.shape[0]}"
                )
    return int(first.dim()) - 2


def _dtype_names(dtypes: Sequence[torch.dtype] = _spec.DTYPES) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def _resolve_modes(
    name: str,
    mode: ModeName | Sequence[ModeName],
    align_corners: bool | Sequence[bool | None] | None,
    antialias: bool | Sequence[bool],
    rank: int,
    count: int,
    pooling: bool,
) -> list[_spec.Source]:
    table = _spec.MODE_TABLES[rank]
    if (
        isinstance(mode, str)
        and isinstance(antialias, bool)
        and (align_corners is None or isinstance(align_corners, bool))
    ):
        found = table.get((mode, align_corners, antialias))
        if found is not None:
            return [found] * count
    modes = _one_per_input(name, "mode", mode, count)
    corners = _spread_over(name, "align_corners", align_corners, modes, None)
    smooth = _spread_over(name, "antialias", antialias, modes, False)
    resolved: list[_spec.Source] = []
    for m, a, s in zip(modes, corners, smooth, strict=True):
        if pooling and isinstance(m, Pool):
            _check_pool(name, m, a, s, rank)
            resolved.append(m)
            continue
        try:
            found = table.get((m, a, s))
        except TypeError:  # what cannot be hashed is no name either
            found = None
        if found is None:
            raise _wrong_mode(name, m, a, s, rank)
        resolved.append(found)
    return resolved


def _spread_over(
    name: str, argument: str, value: Any, modes: Sequence[object], other: object
) -> Sequence[Any]:
    """One value per input; a single one is meant for the modes that know it, if there are any."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _one_per_input(name, argument, value, len(modes))
    interpolates = [
        isinstance(m, str) and m not in ("nearest", "nearest-exact", "area") for m in modes
    ]
    return [value if i or not any(interpolates) else other for i in interpolates]


def _check_pool(name: str, pool: Pool, align_corners: object, antialias: object, rank: int) -> None:
    if align_corners is not None:
        raise ValueError(f"{name}: expected align_corners=None with a Pool, got {align_corners!r}")
    if antialias is not False:
        raise ValueError(f"{name}: expected antialias=False with a Pool, got {antialias!r}")
    if pool.rank not in (None, rank):
        raise ValueError(
            f"{name}: expected a Pool for {rank} spatial axes [{_SPATIAL[rank]}], got {pool}"
        )


def _wrong_mode(
    name: str, mode: object, align_corners: object, antialias: object, rank: int
) -> Exception:
    names = _spec.mode_names(rank)
    if mode not in names:
        return ValueError(
            f"{name}: expected mode to be one of {names} for {rank} spatial axes "
            f"[N, C, {_SPATIAL[rank]}], got {mode!r}"
        )
    if not isinstance(antialias, bool):
        return TypeError(f"{name}: expected antialias to be True or False, got {antialias!r}")
    if align_corners not in (None, True, False):
        return ValueError(
            f"{name}: expected align_corners to be None, True or False, got {align_corners!r}"
        )
    allowed = [key for key in _spec.MODE_TABLES[rank] if key[0] == mode]
    if antialias not in {key[2] for key in allowed}:
        return ValueError(
            f"{name}: expected antialias={not antialias} with mode {mode!r}, got {antialias}"
        )
    return ValueError(
        f"{name}: expected align_corners=None with mode {mode!r}, got {align_corners!r}"
    )


def _check_pools(
    name: str,
    inputs: Sequence[Tensor],
    modes: Sequence[_spec.Source],
    scales: Sequence[tuple[float, ...] | None],
    target: tuple[int, ...],
) -> list[int]:
    """Checks what only poolings need, and returns all windows as kernels take them."""
    windows: list[int] = []
    for i, (x, mode) in enumerate(zip(inputs, modes, strict=True)):
        if not isinstance(mode, Pool):
            windows += [1, 1, 0] * len(target)
            continue
        if scales[i] is not None:
            raise ValueError(
                f"{name}: expected scale_factors[{i}]=None with a Pool, got {scales[i]}"
            )
        pooled = mode.output_size(x.shape[2:])
        if pooled != tuple(target):
            raise ValueError(
                f"{name}: expected inputs[{i}] to have the result's size {tuple(target)} after "
                f"{mode}, got {pooled} from {tuple(x.shape[2:])}"
            )
        for axis, size in enumerate(x.shape[2:]):
            windows += mode.window(axis, size)[:3]
    return windows


def _one_per_input(name: str, argument: str, value: Any, count: int) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name}: expected {argument} to have one entry per input ({count}), got {len(value)}"
        )
    return value


def _resolve_scales(
    name: str, scale_factors: object, rank: int, count: int
) -> list[tuple[float, ...] | None]:
    """Scale factors as one tuple per input, of one factor per spatial axis."""
    if scale_factors is None:
        return [None] * count
    argument = "scale_factor" if name == "resample" else "scale_factors"
    resolved: list[tuple[float, ...] | None] = []
    for value in _one_per_input(name, argument, scale_factors, count):
        if value is None:
            resolved.append(None)
            continue
        factors = tuple(value) if isinstance(value, Sequence) else (value,) * rank
        if len(factors) != rank:
            raise ValueError(
                f"{name}: expected {argument} to have one factor per spatial axis ({rank}), "
                f"got {len(factors)}"
            )
        for factor in factors:
            if not _is_number(factor):
                raise TypeError(
                    f"{name}: expected {argument} to be numbers, got {type(factor).__name__}"
                )
            if not (math.isfinite(factor) and factor > 0):
                raise ValueError(
                    f"{name}: expected {argument} to be positive and finite, got {factor}"
                )
        resolved.append(tuple(float(f) for f in factors))
    return resolved


def _resolve_size(
    name: str,
    inputs: Sequence[Tensor],
    size: Size,
    scales: Sequence[tuple[float, ...] | None],
    rank: int,
) -> tuple[int, ...]:
    target: tuple[int, ...] | None = None
    source = "size"
    if size is not None:
        target = tuple(size) if isinstance(size, Sequence) else (size,) * rank
        if len(target) != rank:
            raise ValueError(
                f"{name}: expected size to have {rank} entries [{_SPATIAL[rank]}], "
                f"got {len(target)}"
            )
        for entry in target:
            if isinstance(entry, (bool, float, str)):
                raise TypeError(f"{name}: expected size to be integers, got {entry!r}")
            if entry < 1:
                raise ValueError(f"{name}: expected size to be at least 1, got {tuple(target)}")
    for i, scale in enumerate(scales):
        if scale is None:
            continue
        scaled = tuple(
            torch.sym_int(n * factor) for n, factor in zip(inputs[i].shape[2:], scale, strict=True)
        )
        if target is None:
            target, source = scaled, f"scale_factors[{i}]"
            for entry in target:
                if entry < 1:
                    raise ValueError(
                        f"{name}: expected a result of at least one element per axis, got "
                        f"{target} from {tuple(inputs[i].shape[2:])} by scale factors {scale}"
                    )
        elif scaled != target:
            raise ValueError(
                f"{name}: expected scale_factors[{i}] to give the size {tuple(target)} of "
                f"{source}, got {scaled} from {tuple(inputs[i].shape[2:])} by {scale}"
            )
    return tuple(inputs[0].shape[2:]) if target is None else target


def _effective_scale(
    scale: tuple[float, ...] | None, mode: _spec.Source
) -> tuple[float, ...] | None:
    """None where the sizes give the same coordinates, so that hot calls carry no scales."""
    if scale is None or mode in _spec.SIZE_MODES:
        return None
    return None if all(factor.is_integer() for factor in scale) else scale


def _check_parameter(name: str, argument: str, value: Any, device: torch.device, like: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected {argument} to be a Tensor, got {type(value).__name__}")
    if value.dtype not in _spec.DTYPES:
        raise TypeError(
            f"{name}: expected {argument} to be one of {_dtype_names()}, got {value.dtype}"
        )
    if value.device != device:
        raise ValueError(f"{name}: expected {argument} on {device} like {like}, got {value.device}")


def check_channels(name: str, inputs: Sequence[Tensor]) -> None:
    """Checks that all maps have the channels of the first."""
    channels = inputs[0].shape[1]
    for i, x in enumerate(inputs):
        if x.shape[1] != channels:
            raise ValueError(
                f"{name}: expected inputs[{i}] to have {channels} channels like inputs[0], "
                f"got {x.shape[1]}"
            )


def check_weights(
    name: str, weights: Tensor, inputs: Sequence[Tensor], size: tuple[int, ...]
) -> None:
    """Checks the factors of a sum: [S], [S, C], [N, S, C] or [N, S, 1, *size]."""
    _check_parameter(name, "weights", weights, inputs[0].device, "inputs[0]")
    count, shape = len(inputs), tuple(weights.shape)
    # Tuples are compared entry by entry even if their lengths differ: a batch size that is a symbol
    # would be compared with the number of maps, and a compiled graph limited to what came out.
    if len(shape) == 1 and shape == (count,):
        return
    channels, batch = inputs[0].shape[1], _spec.batch_of(inputs)
    if len(shape) == 2:
        fits = shape == (count, channels)
    elif len(shape) == 3:
        fits = shape[0] in (1, batch) and shape[1:] == (count, channels)
    else:
        fits = shape[:1] in ((1,), (batch,)) and shape[1:] == (count, 1, *size)
    if not fits:
        raise ValueError(
            f"{name}: expected weights to be [S], [S, C], [N, S, C] or [N, S, 1, *size] with "
            f"S = {count}, C = {channels}, N = {batch} and size {tuple(size)}, got {shape}"
        )


def check_normalize(name: str, normalize: str | None, eps: float, weights: Tensor | None) -> None:
    """Checks how weights are normalised."""
    if normalize not in _NORMALIZE:
        raise ValueError(f"{name}: expected normalize to be one of {_NORMALIZE}, got {normalize!r}")
    if normalize is not None and weights is None:
        raise ValueError(f"{name}: expected weights with normalize={normalize!r}, got None")
    if not _is_number(eps):
        raise TypeError(f"{name}: expected eps to be a number, got {type(eps).__name__}")
    # While a graph is captured for any sizes, numbers may be symbols: those cannot be asked.
    if not torch.compiler.is_compiling() and not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{name}: expected eps to be finite and at least 0, got {eps}")


def check_out_scale(name: str, out_scale: float) -> None:
    """Checks the factor of a whole result."""
    if not _is_number(out_scale):
        raise TypeError(
            f"{name}: expected out_scale to be a number, got {type(out_scale).__name__}"
        )


def check_per_channel(
    name: str, argument: str, value: Tensor, x: Tensor, like: str = "inputs[0]"
) -> None:
    """Checks one value per channel [C] of the map ``x``, which messages call ``like``."""
    _check_parameter(name, argument, value, x.device, like)
    channels = x.shape[1]
    if tuple(value.shape) != (channels,):
        raise ValueError(
            f"{name}: expected {argument} [{channels}], one per channel, got {tuple(value.shape)}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def levels(
    name: str, sizes: Sequence[Size] | None, scale_factors: Sequence[ScaleFactor] | None
) -> list[tuple[Size, ScaleFactor | None]]:
    """``(size, scale factor)`` of each level of a pyramid, one of which is None."""
    if (sizes is None) == (scale_factors is None):
        raise ValueError(
            f"{name}: expected exactly one of sizes and scale_factors, got "
            + ("neither" if sizes is None else "both")
        )
    argument, given = ("sizes", sizes) if sizes is not None else ("scale_factors", scale_factors)
    if not isinstance(given, (list, tuple)):
        raise TypeError(
            f"{name}: expected {argument} to be a list with one entry per level, "
            f"got {type(given).__name__}"
        )
    if not 1 <= len(given) <= _spec.MAX_INPUTS:
        raise ValueError(
            f"{name}: expected 1 to {_spec.MAX_INPUTS} levels in {argument}, got {len(given)}"
        )
    for i, entry in enumerate(given):
        if entry is None:
            raise TypeError(f"{name}: expected {argument}[{i}] to be given, got None")
    if sizes is not None:
        return [(size, None) for size in sizes]
    assert scale_factors is not None
    return [(None, factor) for factor in scale_factors]


_OF_ONE_JOB = ("out", "accumulate", "impl")


def check_jobs(name: str, jobs: Any) -> None:
    """Checks a list of jobs, but for their arguments."""
    if isinstance(jobs, (str, Mapping)) or not isinstance(jobs, Sequence):
        raise TypeError(f"{name}: expected jobs to be a list of dicts, got {type(jobs).__name__}")
    if not jobs:
        raise ValueError(f"{name}: expected at least one job, got none")
    for i, job in enumerate(jobs):
        if not isinstance(job, Mapping):
            raise TypeError(f"{name}: expected jobs[{i}] to be a dict, got {type(job).__name__}")
        if "inputs" not in job:
            raise ValueError(f"{name}: expected jobs[{i}] to have inputs, got {sorted(job)}")
        for argument in _OF_ONE_JOB:
            if argument in job:
                raise ValueError(f"{name}: expected jobs[{i}] without {argument}")


def check_reduction(name: str, reduction: str) -> None:
    """Checks how losses are reduced."""
    if reduction not in _REDUCTIONS:
        raise ValueError(
            f"{name}: expected reduction to be one of {_REDUCTIONS}, got {reduction!r}"
        )


def check_target(name: str, logits: Any, target: Any, *, per_channel: bool) -> tuple[int, ...]:
    """Checks a target against the logits it belongs to, and returns its spatial size.

    Args:
        name: of the public function.
        logits: ``[N, C, *spatial]``.
        target: ``[N, C, *size]`` if it has one value per channel, else ``[N, *size]``.
        per_channel: which of both is meant.
    """
    for argument, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name}: expected {argument} to be a Tensor, got {type(value).__name__}"
            )
    if target.device != logits.device:
        raise ValueError(
            f"{name}: expected target on {logits.device} like logits, got {target.device}"
        )
    lead = tuple(logits.shape[: 2 if per_channel else 1])
    dim = logits.dim() - (0 if per_channel else 1)
    if target.dim() != dim or tuple(target.shape[: len(lead)]) != lead:
        wanted = ", ".join([*map(str, lead), "*size"])
        raise ValueError(
            f"{name}: expected target [{wanted}] of {dim} dimensions for logits "
            f"{tuple(logits.shape)}, got {tuple(target.shape)}"
        )
    return tuple(target.shape[len(lead) :])


def check_classes(
    name: str,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    """Checks what belongs to class indices or probabilities."""
    if not target.is_floating_point() and target.dtype not in _spec.INDEX_DTYPES:
        raise TypeError(
            f"{name}: expected target to be class indices ({_dtype_names(_spec.INDEX_DTYPES)}) or "
            f"floating-point probabilities, got {target.dtype}"
        )
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(
            f"{name}: expected ignore_index to be an integer, got {type(ignore_index).__name__}"
        )
    if target.is_floating_point() and ignore_index >= 0:
        raise ValueError(
            f"{name}: expected ignore_index below 0 with class probabilities, got {ignore_index}"
        )
    if not (_is_number(label_smoothing) and 0.0 <= label_smoothing <= 1.0):
        raise ValueError(f"{name}: expected label_smoothing from 0 to 1, got {label_smoothing!r}")
    if weight is not None:
        check_per_channel(name, "weight", weight, logits, "logits")


def check_factor(
    name: str, argument: str, value: Tensor, logits: Tensor, size: Sequence[int]
) -> None:
    """Checks factors that are broadcast to the upsampled logits, ``[N, C, *size]``."""
    _check_parameter(name, argument, value, logits.device, "logits")
    shape = (*logits.shape[:2], *size)
    tail = shape[len(shape) - value.dim() :] if value.dim() <= len(shape) else ()
    if len(tail) != value.dim() or any(
        n not in (1, m) for n, m in zip(value.shape, tail, strict=True)
    ):
        raise ValueError(
            f"{name}: expected {argument} that can be broadcast to {shape}, "
            f"got {tuple(value.shape)}"
        )


def check_argmax(name: str, logits: Any, dtype: torch.dtype) -> None:
    """Checks that there is a largest logit, and that its index fits the dtype."""
    if dtype not in _ARGMAX_DTYPES:
        raise TypeError(
            f"{name}: expected dtype to be one of {_dtype_names(_ARGMAX_DTYPES)}, got {dtype}"
        )
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name}: expected logits to be a Tensor, got {type(logits).__name__}")
    if logits.dim() < 2:
        return  # the checks of a map say what is wrong
    limit = 256 if dtype == torch.uint8 else 2**31
    if not 1 <= logits.shape[1] <= limit:
        raise ValueError(
            f"{name}: expected 1 to {limit} channels for dtype {str(dtype).removeprefix('torch.')},"
            f" got {logits.shape[1]}"
        )
