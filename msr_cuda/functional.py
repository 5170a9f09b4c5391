"""Public operators: validate, promote, choose an implementation, call it.

Every function takes ``impl``: ``"auto"`` runs the compiled kernel unless there is a reason not to,
``"kernel"`` raises with all of the reasons, ``"reference"`` runs :mod:`msr_cuda.reference`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _extension, _spec, autograd, reference

Impl = Literal["auto", "kernel", "reference"]
Size = int | Sequence[int] | None
ScaleFactor = float | Sequence[float]

_SPATIAL = {1: "L", 2: "H, W", 3: "D, H, W"}


def resample(
    input: Tensor,
    size: Size = None,
    scale_factor: ScaleFactor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
    *,
    impl: Impl = "auto",
) -> Tensor:
    r"""Resamples a map as :func:`torch.nn.functional.interpolate`, with a gather backward.

    Args:
        input (Tensor[N, C, *spatial]): 1, 2 or 3 spatial axes; float32, float16, bfloat16 or
            float64; any strides.
        size: spatial size of the result, in elements; one number means all axes.
        scale_factor: factor on the spatial size, ``floor(in * scale_factor)``. Exactly one of
            ``size`` and ``scale_factor`` must be given.
        mode: ``"nearest"``, ``"nearest-exact"`` or ``"linear"`` (also by its names by rank,
            ``"bilinear"`` and ``"trilinear"``).
        align_corners: for linear: corner elements keep their values. Must be None for nearest.
        recompute_scale_factor: take coordinates from the sizes although ``scale_factor`` is given.
        antialias: must be False: no mode listed above has an antialiased form here.
        impl: ``"auto"``, ``"kernel"`` or ``"reference"``.

    Returns:
        Tensor[N, C, *size]: dtype of ``input``, also under autocast; channels_last where ``input``
        is, else contiguous. Never an alias of ``input``.

    Raises:
        ValueError: wrong rank, sizes, mode or scale factor. TypeError: not a floating-point tensor.
        RuntimeError: ``impl="kernel"`` and no kernel applies; the message lists every reason.

    Gradients of any order, deterministic on every device.

    Source: coordinates as ATen's ``UpSample.h``; linear ones evaluated exactly, not in float32.
    """
    name = "resample"
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: expected input to be a Tensor, got {type(input).__name__}")
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"{name}: expected exactly one of size and scale_factor, got "
            + ("neither" if size is None else "both")
        )
    if antialias:
        raise ValueError(f"{name}: expected antialias=False with mode {mode!r}, got True")
    if recompute_scale_factor and scale_factor is None:
        raise ValueError(f"{name}: recompute_scale_factor=True needs scale_factor, got size")
    call = _prepare(
        name, [input], size, mode, align_corners, [scale_factor], None, None,
        keep_scales=not recompute_scale_factor, argument="input",
    )  # fmt: skip
    return _sum(name, call, None, None, impl)


def resample_sum(
    inputs: Sequence[Tensor],
    size: Size = None,
    *,
    weights: Tensor | None = None,
    mode: str | Sequence[str] = "nearest",
    align_corners: bool | Sequence[bool | None] | None = None,
    scale_factors: float | Sequence[ScaleFactor | None] | None = None,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Resamples maps to one size and sums them: one pass, one write.

    .. math:: y = \mathrm{act}\Bigl(\sum_i w_i \, R_i(x_i)\Bigr)

    Equivalent to ``interpolate``, ``*``, ``+`` and the activation in float32, rounded once.

    Args:
        inputs (list of Tensor[N, C, *spatial_i]): 1 to 8 maps of one rank and device. A map of the
            result's size is read once and not interpolated; one with N = 1 is broadcast over the
            batch, one of a single pixel over the result. Float dtypes may be mixed.
        size: spatial size of the result; None: what ``scale_factors`` give, else that of
            ``inputs[0]``.
        weights (Tensor[S]): one factor per input, in any float dtype of its own; read as float32
            (float64 if a map is float64). Gets a gradient.
        mode: ``"nearest"``, ``"nearest-exact"`` or ``"linear"`` (``"bilinear"``, ``"trilinear"``);
            one for all, or one per input.
        align_corners: one for all linear inputs, or one per input (None for nearest).
        scale_factors: one for all, or one per input, None where coordinates follow from the sizes.
            Those that are given must lead to the result's size, ``floor(in * factor)``.
        activation: None or ``"relu"``, applied to the sum.
        dtype: of the result. Default: the promoted dtype of the maps, also under autocast.
        impl: ``"auto"``, ``"kernel"`` or ``"reference"``.

    Returns:
        Tensor[N, C, *size]: contiguous or channels_last as the first input whose strides tell.
        Never an alias of an input.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample`; the message names the argument.

    Gradients of any order, deterministic. Memory kept for backward: one bit per element for ReLU,
    the inputs if ``weights`` needs a gradient, else nothing. A map that passed through with weight
    1 and no activation gets the incoming gradient itself.
    """
    name = "resample_sum"
    call = _prepare(name, inputs, size, mode, align_corners, scale_factors, activation, dtype)
    channels = inputs[0].shape[1]
    for i, x in enumerate(inputs):
        if x.shape[1] != channels:
            raise ValueError(
                f"{name}: expected inputs[{i}] to have {channels} channels like inputs[0], "
                f"got {x.shape[1]}"
            )
    if weights is not None:
        _check_weights(name, weights, inputs)
    return _sum(name, call, weights, activation, impl)


def resample_cat(
    inputs: Sequence[Tensor],
    size: Size = None,
    *,
    mode: str | Sequence[str] = "nearest",
    align_corners: bool | Sequence[bool | None] | None = None,
    scale_factors: float | Sequence[ScaleFactor | None] | None = None,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Resamples maps to one size, each straight into its channels of one result.

    Equivalent to ``act(torch.cat([interpolate(x, size) for x in inputs], 1))``, without the maps in
    between.

    Args:
        inputs (list of Tensor[N, C_i, *spatial_i]): 1 to 8 maps; any number of channels each,
            also 0.
        size, mode, align_corners, scale_factors, activation, dtype, impl: as
            :func:`resample_sum`.

    Returns:
        Tensor[N, sum C_i, *size]: layout as :func:`resample_sum`.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample`; the message names the argument.

    Gradients of any order, deterministic. A map that passed through without activation gets a view
    of the incoming gradient.
    """
    name = "resample_cat"
    call = _prepare(
        name, inputs, size, mode, align_corners, scale_factors, activation, dtype, cat=True
    )
    if _use_reference(name, impl, call.inputs):
        output = reference.resample_cat(
            call.inputs, call.size, call.modes, call.scale_factors, activation,
            _spec.result_dtype(call.spec), _spec.accumulation_dtype(call.spec),
            bool(call.spec & _spec.CHANNELS_LAST),
        )  # fmt: skip
    else:
        output = autograd.gather(call.inputs, None, call.size, call.spec, call.flat_scales)
    if observers:
        _tell(Observation(name, tuple(inputs), output, False, activation))
    return output


class Observation(NamedTuple):
    """What :data:`observers` are told of one call of a public function."""

    function: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    weighted: bool
    activation: str | None


#: Called after every public function, outside of compiled graphs. For reports and benchmarks.
observers: list[Callable[[Observation], None]] = []


def _tell(observation: Observation) -> None:
    if not torch.compiler.is_compiling():
        for observer in observers:
            observer(observation)


class _Call(NamedTuple):
    """A validated call."""

    inputs: Sequence[Tensor]
    size: tuple[int, ...]
    modes: list[_spec.Mode]
    scale_factors: list[tuple[float, ...] | None]  # per input; None: from the sizes
    flat_scales: list[float]  # for the kernels: empty, or per input and axis, 0 where None
    spec: int


def _sum(
    name: str, call: _Call, weights: Tensor | None, activation: str | None, impl: Impl
) -> Tensor:
    if _use_reference(name, impl, call.inputs):
        output = reference.resample_sum(
            call.inputs, call.size, call.modes, call.scale_factors, weights, activation,
            _spec.result_dtype(call.spec), _spec.accumulation_dtype(call.spec),
            bool(call.spec & _spec.CHANNELS_LAST),
        )  # fmt: skip
    else:
        output = autograd.gather(call.inputs, weights, call.size, call.spec, call.flat_scales)
    if observers:
        _tell(Observation(name, tuple(call.inputs), output, weights is not None, activation))
    return output


def _prepare(
    name: str,
    inputs: Sequence[Tensor],
    size: Size,
    mode: str | Sequence[str],
    align_corners: bool | Sequence[bool | None] | None,
    scale_factors: float | Sequence[ScaleFactor | None] | None,
    activation: str | None,
    dtype: torch.dtype | None,
    *,
    cat: bool = False,
    keep_scales: bool = True,
    argument: str = "",
) -> _Call:
    rank = _check_maps(name, inputs, argument)
    count = len(inputs)
    modes = _resolve_modes(name, mode, align_corners, rank, count)
    scales = _resolve_scales(name, scale_factors, rank, count)
    target = _resolve_size(name, inputs, size, scales, rank)
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
    spec = _spec.pack(
        modes,
        cat=cat,
        activation=activation,
        channels_last=not _in_functorch() and _spec.result_is_channels_last(inputs),
        dtype=dtype or promoted,
        accumulate_double=promoted == torch.float64 or dtype == torch.float64,
    )
    return _Call(inputs, target, modes, scales, flat_scales, spec)


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


def _dtype_names() -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in _spec.DTYPES)


def _resolve_modes(
    name: str,
    mode: str | Sequence[str],
    align_corners: bool | Sequence[bool | None] | None,
    rank: int,
    count: int,
) -> list[_spec.Mode]:
    table = _spec.MODE_TABLES[rank]
    if isinstance(mode, str) and (align_corners is None or isinstance(align_corners, bool)):
        found = table.get((mode, align_corners))
        if found is not None:
            return [found] * count
    modes = _one_per_input(name, "mode", mode, count)
    if isinstance(align_corners, Sequence):
        corners = _one_per_input(name, "align_corners", align_corners, count)
    else:
        # One value is meant for the linear inputs, if there are any.
        linear = [isinstance(m, str) and "nearest" not in m for m in modes]
        corners = [align_corners if a or not any(linear) else None for a in linear]
    resolved = []
    for m, a in zip(modes, corners, strict=True):
        found = table.get((m, a))
        if found is None:
            raise ValueError(_explain_mode(name, m, a, rank))
        resolved.append(found)
    return resolved


def _explain_mode(name: str, mode: object, align_corners: object, rank: int) -> str:
    names = tuple(dict.fromkeys((*_spec.MODES, _spec.LINEAR_NAMES[rank])))
    if mode not in names:
        return (
            f"{name}: expected mode to be one of {names} for {rank} spatial axes "
            f"[N, C, {_SPATIAL[rank]}], got {mode!r}"
        )
    if align_corners not in (None, True, False):
        return f"{name}: expected align_corners to be None, True or False, got {align_corners!r}"
    return f"{name}: expected align_corners=None with mode {mode!r}, got {align_corners!r}"


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
            if isinstance(factor, bool) or not isinstance(factor, (int, float)):
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
            math.floor(n * factor) for n, factor in zip(inputs[i].shape[2:], scale, strict=True)
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


def _effective_scale(scale: tuple[float, ...] | None, mode: _spec.Mode) -> tuple[float, ...] | None:
    """None where the sizes give the same coordinates, so that hot calls carry no scales."""
    if scale is None or mode is _spec.Mode.LINEAR_ALIGN_CORNERS:
        return None
    return None if all(factor.is_integer() for factor in scale) else scale


def _check_weights(name: str, weights: Tensor, inputs: Sequence[Tensor]) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name}: expected weights to be a Tensor, got {type(weights).__name__}")
    if weights.dtype not in _spec.DTYPES:
        raise TypeError(
            f"{name}: expected weights to be one of {_dtype_names()}, got {weights.dtype}"
        )
    if weights.dim() != 1 or weights.shape[0] != len(inputs):
        raise ValueError(
            f"{name}: expected weights [{len(inputs)}], one per input, got {tuple(weights.shape)}"
        )
    if weights.device != inputs[0].device:
        raise ValueError(
            f"{name}: expected weights on {inputs[0].device} like inputs[0], got {weights.device}"
        )


def _in_functorch() -> bool:
    return bool(torch._C._are_functorch_transforms_active())


def unsupported_reasons(inputs: Sequence[Tensor]) -> list[str]:
    """Why no kernel can take these (valid) inputs; empty if one can."""
    reasons = []
    device = inputs[0].device.type
    if not _extension.has_kernels(device):
        reasons.append(_extension.WHY_NOT or f"the extension was built without {device} kernels")
    if _in_functorch():
        reasons.append("a torch.func transform is active")
    if forward_ad._current_level >= 0:
        reasons.append("forward-mode AD is active")
    return reasons


_warned: set[str] = set()


def _use_reference(name: str, impl: str, inputs: Sequence[Tensor]) -> bool:
    if impl == "reference":
        return True
    if impl not in ("auto", "kernel"):
        raise ValueError(
            f'{name}: expected impl to be "auto", "kernel" or "reference", got {impl!r}'
        )
    reasons = unsupported_reasons(inputs)
    if not reasons:
        return False
    if impl == "kernel":
        raise RuntimeError(f'{name}: impl="kernel", but ' + "; ".join(reasons))
    # A warning would break the capture of a full graph.
    if inputs[0].is_cuda and not torch.compiler.is_compiling():
        reason = "; ".join(reasons)
        if reason not in _warned:
            _warned.add(reason)
            warnings.warn(f"msr_cuda.{name} runs in plain PyTorch: {reason}", stacklevel=4)
    return True
