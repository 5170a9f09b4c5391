"""Public operators: validate, promote, choose an implementation, call it.

Every function takes ``impl``: ``"auto"`` runs the compiled kernel unless there is a reason not to,
``"kernel"`` raises with all of the reasons, ``"reference"`` runs :mod:`msr_cuda.reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _dispatch, _plans, _spec, _validate, autograd, reference
from ._dispatch import Impl, unsupported_reasons
from ._losses import (
    check_errors,
    resample_argmax,
    resample_binary_cross_entropy_with_logits,
    resample_cross_entropy,
)
from ._validate import ModeName, ScaleFactor, Size

__all__ = [
    "Impl",
    "ModeName",
    "Observation",
    "ScaleFactor",
    "Size",
    "check_errors",
    "observers",
    "resample",
    "resample_argmax",
    "resample_binary_cross_entropy_with_logits",
    "resample_cat",
    "resample_cross_entropy",
    "resample_max",
    "resample_pyramid",
    "resample_sum",
    "resample_sum_many",
    "unsupported_reasons",
]


def resample(
    input: Tensor,
    size: Size = None,
    scale_factor: ScaleFactor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
    *,
    out: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Resamples a map as :func:`torch.nn.functional.interpolate`, with a gather backward.

    Args:
        input (Tensor[N, C, *spatial]): 1, 2 or 3 spatial axes; float32, float16, bfloat16 or
            float64 (PyTorch's function takes uint8 too); any strides.
        size: spatial size of the result, in elements; one number means all axes.
        scale_factor: factor on the spatial size, ``floor(in * scale_factor)``. Exactly one of
            ``size`` and ``scale_factor`` must be given.
        mode: ``"nearest"``, ``"nearest-exact"``, ``"linear"`` (also by its names by rank,
            ``"bilinear"`` and ``"trilinear"``), ``"bicubic"`` (or ``"cubic"``, at any rank),
            ``"area"``, ``"lanczos"`` (antialiased only).
        align_corners: for linear and cubic: corner elements keep their values. Must be None for
            nearest and area.
        recompute_scale_factor: take coordinates from the sizes although ``scale_factor`` is given.
        antialias: for linear and cubic: widen the filter by the scale where the map gets smaller,
            at any rank (PyTorch: 2-D only).
        out (Tensor[N, C, *size]): memory for the result, of any strides: it decides dtype and
            layout, and is returned. Not differentiable.
        impl: ``"auto"``, ``"kernel"`` or ``"reference"``.

    Returns:
        Tensor[N, C, *size]: dtype of ``input``, also under autocast; channels_last where ``input``
        is, else contiguous. Never an alias of ``input``. An axis that keeps its size is copied.

    Raises:
        ValueError: wrong rank, sizes, mode or scale factor.
        TypeError: not a floating-point tensor.
        RuntimeError: ``impl="kernel"`` and no kernel applies; the message lists every reason.

    Gradients of any order, deterministic on every device.

    Source: coordinates and filters as ATen's ``UpSample.h`` and ``UpSampleKernel.cpp``; those that
    are not nearest are evaluated exactly, not in float32.
    """
    name = "resample"
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: expected input to be a Tensor, got {type(input).__name__}")
    if (size is None) == (scale_factor is None):
        raise ValueError(
            f"{name}: expected exactly one of size and scale_factor, got "
            + ("neither" if size is None else "both")
        )
    if recompute_scale_factor and scale_factor is None:
        raise ValueError(f"{name}: recompute_scale_factor=True needs scale_factor, got size")
    inputs = [input]
    planned = _plans.find(
        name, _plans.ONE_MAP, inputs, size, mode, align_corners, antialias,
        None if scale_factor is None else [scale_factor], None, None, not recompute_scale_factor,
        out,
    )  # fmt: skip
    return _run(name, planned, inputs, impl, reference.resample_sum, out=out)


def resample_sum(
    inputs: Sequence[Tensor],
    size: Size = None,
    *,
    weights: Tensor | None = None,
    normalize: str | None = None,
    eps: float = 1e-4,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_scale: float = 1,  # Dynamo makes a default of 1.0 a symbol, and compiles twice for it
    mode: ModeName | Sequence[ModeName] = "nearest",
    align_corners: bool | Sequence[bool | None] | None = None,
    antialias: bool | Sequence[bool] = False,
    scale_factors: float | Sequence[ScaleFactor | None] | None = None,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    accumulate: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    r"""Resamples maps to one size and sums them: one pass, one write.

    .. math::
        y = \mathrm{act}\Bigl(scale_c \cdot out\_scale \cdot \sum_i w_i \, R_i(x_i) + bias_c\Bigr)

    Equivalent to ``interpolate``, ``*``, ``+`` and the activation in float32, rounded once.

    Args:
        inputs (list of Tensor[N, C, *spatial_i]): 1 to 8 maps of one rank and device. A map of the
            result's size is read once and not interpolated; one with N = 1 is broadcast over the
            batch, one of a single pixel over the result. Float dtypes may be mixed.
        size: spatial size of the result; None: what ``scale_factors`` give, else that of
            ``inputs[0]``.
        weights (Tensor): factors of the S inputs: ``[S]``; ``[S, C]`` per channel; ``[N, S, C]``
            per image and channel; ``[N, S, 1, *size]`` per pixel (attention to scale). N may be 1.
        normalize: how weights are normalised over the inputs: None; ``"softmax"``; ``"fast"``,
            ``relu(w) / (sum(relu(w)) + eps)``, as the BiFPN does.
        eps: of ``"fast"``.
        scale (Tensor[C]): factor on each channel of the sum.
        bias (Tensor[C]): added to each channel after that.
        out_scale: factor on the whole sum.
        mode: as :func:`resample` has it; or a :class:`msr_cuda.Pool` for an input that is pooled to
            the result's size. One for all, or one per input.
        align_corners: one for all linear and cubic inputs, or one per input (None for others).
        antialias: one for all linear and cubic inputs, or one per input.
        scale_factors: one for all, or one per input, None where coordinates follow from the sizes.
            Those that are given must lead to the result's size, ``floor(in * factor)``.
        activation: None, ``"relu"``, ``"relu6"``, ``"leaky_relu"`` (slope 0.01), ``"silu"``,
            ``"gelu"`` (exact), ``"hardswish"`` or ``"sigmoid"``, applied last.
        dtype: of the result. Default: the promoted dtype of the maps, also under autocast.
        out (Tensor[N, C, *size]): memory for the result, of any strides (a slice of a larger
            buffer): it decides dtype and layout, and is returned. It must not overlap an input.
            Not differentiable.
        accumulate: add to what ``out`` holds, before the activation.
        impl: ``"auto"``, ``"kernel"`` or ``"reference"``.

    ``weights``, ``scale`` and ``bias`` may have any float dtype of their own, are read as float32
    (float64 if a map or the result is float64), do not take part in promotion and get gradients.

    Returns:
        Tensor[N, C, *size]: contiguous or channels_last as the first input whose strides tell.
        Never an alias of an input.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample`; the message names the argument.

    Gradients of any order, deterministic. What a kernel keeps for backward: one bit per element for
    ``"relu"``, ``"relu6"`` and ``"leaky_relu"``; the inputs if ``weights`` or ``scale`` need a
    gradient, or for the other activations, whose derivative is computed again; the place of the
    largest element in each window of a max-pooling; else nothing. A map that passed through with
    weight 1 and no activation gets the incoming gradient itself.
    """
    name = "resample_sum"
    if accumulate and out is None:
        raise ValueError(f"{name}: expected out with accumulate=True, got None")
    planned = _plans.find(
        name, _plans.SUM, inputs, size, mode, align_corners, antialias, scale_factors, activation,
        dtype, out=out,
    )  # fmt: skip
    factors = _NO_FACTORS
    if (
        weights is not None
        or normalize is not None
        or scale is not None
        or bias is not None
        or out_scale != 1.0
    ):
        factors = _check_factors(
            name, planned.plan, inputs, weights, normalize, eps, scale, bias, out_scale
        )
    return _run(name, planned, inputs, impl, reference.resample_sum, factors, out, accumulate)


class _Factors(NamedTuple):
    """The factors and the bias of a sum, the weights normalised; what the reference takes."""

    weights: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    out_scale: float = 1

    def are_simple(self) -> bool:
        """Whether there are none but weights [S]."""
        return (
            self.scale is None
            and self.bias is None
            and self.out_scale == 1.0
            and (self.weights is None or self.weights.dim() == 1)
        )


_NO_FACTORS = _Factors()


def _gather(plan: autograd.Plan, inputs: Sequence[Tensor], factors: _Factors) -> autograd.Gather:
    """The call as kernels know it.

    ``scale`` and ``out_scale`` are factors of every map, ``bias`` is one more map, of one pixel.
    """
    weights, scale, bias, out_scale = factors
    accumulate = _spec.accumulation_dtype(plan.spec)
    count, rank = len(inputs), len(plan.size)
    pixel_weights: Tensor | None = None
    if weights is not None and weights.dim() > 3:
        pixel_weights, weights = weights, None
    if weights is not None:
        if weights.dim() == 2 or (weights.dim() == 1 and (scale is not None or bias is not None)):
            weights = weights.view(1, count, -1)
    elif scale is not None or out_scale != 1.0:
        alone = scale is None and bias is None and pixel_weights is None
        shape = (count,) if alone else (1, count, 1)
        weights = inputs[0].new_ones(shape, dtype=accumulate)
    if weights is not None:
        if scale is not None:
            weights = weights.to(accumulate) * scale.to(accumulate)
        if out_scale != 1.0:
            weights = weights.to(accumulate) * out_scale
    if bias is not None:
        inputs = [*inputs, bias.to(accumulate).view(1, -1, *[1] * rank)]
        plan = plan.keep("with a bias", _with_one_more, inputs)
    return autograd.Gather(plan, inputs, weights, pixel_weights)


def _with_one_more(plan: autograd.Plan, inputs: Sequence[Tensor]) -> autograd.Plan:
    """The plan for these maps, of which the last is new: it has neither scale nor window."""
    rank = len(plan.size)
    scales = [*plan.scales, *[0.0] * rank] if plan.scales else ()
    windows = [*plan.windows, *[1, 1, 0] * rank] if plan.windows else ()
    return autograd.Plan(inputs, plan.size, plan.spec, scales, windows)


def resample_cat(
    inputs: Sequence[Tensor],
    size: Size = None,
    *,
    mode: ModeName | Sequence[ModeName] = "nearest",
    align_corners: bool | Sequence[bool | None] | None = None,
    antialias: bool | Sequence[bool] = False,
    scale_factors: float | Sequence[ScaleFactor | None] | None = None,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Resamples maps to one size, each straight into its channels of one result.

    Equivalent to ``act(torch.cat([interpolate(x, size) for x in inputs], 1))``, without the maps in
    between.

    Args:
        inputs (list of Tensor[N, C_i, *spatial_i]): 1 to 8 maps; any number of channels each,
            also 0.
        size, mode, align_corners, antialias, scale_factors, activation, dtype, out, impl: as
            :func:`resample_sum`.

    Returns:
        Tensor[N, sum C_i, *size]: layout as :func:`resample_sum`.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample`; the message names the argument.

    Gradients of any order, deterministic. A map that passed through without activation gets a view
    of the incoming gradient.
    """
    name = "resample_cat"
    planned = _plans.find(
        name, _plans.CAT, inputs, size, mode, align_corners, antialias, scale_factors, activation,
        dtype, out=out,
    )  # fmt: skip
    return _run(name, planned, inputs, impl, reference.resample_cat, out=out)


def resample_max(
    inputs: Sequence[Tensor],
    size: Size = None,
    *,
    mode: ModeName | Sequence[ModeName] = "nearest",
    align_corners: bool | Sequence[bool | None] | None = None,
    antialias: bool | Sequence[bool] = False,
    scale_factors: float | Sequence[ScaleFactor | None] | None = None,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Resamples maps to one size and takes the largest value of each element.

    .. math:: y = \mathrm{act}\bigl(\max_i R_i(x_i)\bigr)

    What locally scale-invariant CNNs do over scales (Kanazawa et al., 2014).

    Args:
        inputs (list of Tensor[N, C, *spatial_i]): 1 to 8 maps.
        size, mode, align_corners, antialias, scale_factors, activation, dtype, out, impl: as
            :func:`resample_sum`.

    Returns:
        Tensor[N, C, *size]: layout as :func:`resample_sum`. NaN where any of the values is NaN.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample_sum`.

    Gradients go to the input with the largest value, of equal ones to the first. A kernel keeps one
    bit per input and element for them.
    """
    name = "resample_max"
    planned = _plans.find(
        name, _plans.MAX, inputs, size, mode, align_corners, antialias, scale_factors, activation,
        dtype, out=out,
    )  # fmt: skip
    return _run(name, planned, inputs, impl, reference.resample_max, out=out)


def resample_pyramid(
    input: Tensor,
    sizes: Sequence[Size] | None = None,
    scale_factors: Sequence[ScaleFactor] | None = None,
    *,
    mode: str = "nearest",
    align_corners: bool | None = None,
    antialias: bool = False,
    impl: Impl = "auto",
) -> list[Tensor]:
    r"""Resamples one map to several sizes, in one call that reads it once.

    Levels are computed side by side, so that all of them find the rows of the map in the cache; the
    backward writes the map's gradient in one pass over the levels'.

    Args:
        input (Tensor[N, C, *spatial]): as :func:`resample`.
        sizes: spatial size of each level, one number or one per axis; 1 to 8 levels.
        scale_factors: factor on the spatial size of each level. Exactly one of ``sizes`` and
            ``scale_factors`` must be given.
        mode, align_corners, antialias, impl: of all levels, as :func:`resample`.

    Returns:
        list of Tensor[N, C, *size]: one per level, each as :func:`resample` gives it.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample`.

    Gradients of any order, deterministic.
    """
    name = "resample_pyramid"
    inputs = [input]
    levels = []
    for size, factor in _validate.levels(name, sizes, scale_factors):
        factors = None if factor is None else [factor]
        level = _plans.find(
            name, _plans.ONE_MAP, inputs, size, mode, align_corners, antialias, factors, None, None
        )
        levels.append(level)
    reasons = _dispatch.reasons_for_reference(name, impl, inputs)
    if reasons:
        results = [reference.resample_sum(level.with_maps(inputs)) for level in levels]
    else:
        results = autograd.resample_levels(input, [level.plan for level in levels])
    for level, result in zip(levels, results, strict=True):
        _tell(name, level.with_maps(inputs), result, False, reasons)
    return results


def resample_sum_many(jobs: Sequence[Mapping[str, Any]], *, impl: Impl = "auto") -> list[Tensor]:
    r"""Independent :func:`resample_sum` calls in one.

    For many small fusions at once: all outputs of an exchange unit (HRNet), all levels of a neck.
    Each alone may be too small for all threads, or for the cost of its launch.

    Args:
        jobs: keyword arguments of :func:`resample_sum` for each, ``inputs`` among them, but not
            ``out``, ``accumulate`` and ``impl``. All maps of one device and one number of spatial
            axes; the same map may take part in several jobs.
        impl: as :func:`resample_sum`.

    Returns:
        list of Tensor: one per job, as :func:`resample_sum` gives it.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample_sum`; the message names the job.

    Gradients of any order, deterministic. The backward is one call per job.

    Example::

        >>> high, low = torch.rand(1, 8, 20, 30), torch.rand(1, 8, 10, 15)
        >>> up, down = msr_cuda.resample_sum_many([
        ...     {"inputs": [high, low], "mode": "bilinear", "activation": "relu"},
        ...     {"inputs": [low, high], "mode": "area", "activation": "relu"},
        ... ])
        >>> up.shape, down.shape
        (torch.Size([1, 8, 20, 30]), torch.Size([1, 8, 10, 15]))
    """
    name = "resample_sum_many"
    _validate.check_jobs(name, jobs)
    prepared = []
    for i, job in enumerate(jobs):
        prepared.append(_prepare_job(f"{name}: jobs[{i}]", **job))
    first = jobs[0]["inputs"][0]
    for i, job in enumerate(jobs):
        x = job["inputs"][0]
        if x.device != first.device or x.dim() != first.dim():
            raise ValueError(
                f"{name}: expected the maps of jobs[{i}] on {first.device} with {first.dim()} "
                f"dimensions like those of jobs[0], got {x.device} and {x.dim()}"
            )
    reasons = _dispatch.reasons_for_reference(name, impl, [first])
    if reasons:
        results = [reference.resample_sum(call, *factors) for _, call, factors in prepared]
    else:
        results = autograd.many(
            [_gather(plan, call.inputs, factors) for plan, call, factors in prepared]
        )
    for (_, call, factors), result in zip(prepared, results, strict=True):
        _tell(name, call, result, factors.weights is not None, reasons)
    return results


def _prepare_job(
    name: str,
    inputs: Sequence[Tensor],
    size: Size = None,
    *,
    weights: Tensor | None = None,
    normalize: str | None = None,
    eps: float = 1e-4,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_scale: float = 1,
    mode: ModeName | Sequence[ModeName] = "nearest",
    align_corners: bool | Sequence[bool | None] | None = None,
    antialias: bool | Sequence[bool] = False,
    scale_factors: float | Sequence[ScaleFactor | None] | None = None,
    activation: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[autograd.Plan, _spec.Call, _Factors]:
    """A sum's arguments, checked."""
    planned = _plans.find(
        name, _plans.SUM, inputs, size, mode, align_corners, antialias, scale_factors, activation,
        dtype,
    )  # fmt: skip
    factors = _check_factors(
        name, planned.plan, inputs, weights, normalize, eps, scale, bias, out_scale
    )
    return planned.plan, planned.with_maps(inputs), factors


def _check_factors(
    name: str,
    plan: autograd.Plan,
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    normalize: str | None,
    eps: float,
    scale: Tensor | None,
    bias: Tensor | None,
    out_scale: float,
) -> _Factors:
    """The factors of a sum, checked, the weights normalised."""
    if weights is not None:
        _validate.check_weights(name, weights, inputs, plan.size)
    if scale is None and bias is None and normalize is None and out_scale == 1.0:
        return _Factors(weights)
    _validate.check_normalize(name, normalize, eps, weights)
    _validate.check_out_scale(name, out_scale)
    if weights is not None and normalize is not None:
        accumulate = _spec.accumulation_dtype(plan.spec)
        weights = reference.normalized_weights(weights, normalize, eps, accumulate)
    for argument, value in (("scale", scale), ("bias", bias)):
        if value is not None:
            _validate.check_per_channel(name, argument, value, inputs[0])
    return _Factors(weights, scale, bias, out_scale)


class Observation(NamedTuple):
    """What :data:`observers` are told of one resampling.

    Attributes:
        function: name of the public function.
        inputs: the maps.
        output: the result; a pyramid tells of each level.
        weighted: the inputs were multiplied with weights.
        activation: of the result.
        reasons: why it ran in plain PyTorch; empty: on a kernel.
    """

    function: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    weighted: bool
    activation: str | None
    reasons: tuple[str, ...] = ()


#: Called after every function whose result is a map, outside of compiled graphs. For reports and
#: benchmarks.
observers: list[Callable[[Observation], None]] = []


def _run(
    name: str,
    planned: _plans.Planned,
    inputs: Sequence[Tensor],
    impl: Impl,
    plain: Callable[..., Tensor],
    factors: _Factors = _NO_FACTORS,
    out: Tensor | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Runs a call on a kernel, or by the reference ``plain``, and tells the observers."""
    plan, _, device_type = planned
    reasons = _dispatch.reasons_for_reference(name, impl, inputs, (), device_type)
    if out is None and not reasons and factors is _NO_FACTORS:
        output = autograd.gather(plan, inputs)
    elif out is not None:
        _validate.check_no_grad(name, [*inputs, *factors[:3], out])
        if not reasons:
            autograd.gather_into(out, _gather(plan, inputs, factors), accumulate)
        elif accumulate:
            out.copy_(plain(planned.with_maps(inputs), *factors, out))
        else:
            out.copy_(_run_plain(plain, planned.with_maps(inputs), factors))
        output = out
    elif reasons:
        output = _run_plain(plain, planned.with_maps(inputs), factors)
    elif factors.are_simple():
        output = autograd.gather(plan, inputs, factors.weights)
    else:
        output = autograd.gather(*_gather(plan, inputs, factors))
    if observers:
        _tell(name, planned.with_maps(inputs), output, factors.weights is not None, reasons)
    return output


def _run_plain(plain: Callable[..., Tensor], call: _spec.Call, factors: _Factors) -> Tensor:
    """The reference: that of a sum takes factors."""
    return plain(call) if factors is _NO_FACTORS else plain(call, *factors)


def _tell(
    name: str, call: _spec.Call, output: Tensor, weighted: bool, reasons: Sequence[str]
) -> None:
    if observers and not torch.compiler.is_compiling():
        observation = Observation(
            name, tuple(call.inputs), output, weighted, call.activation, tuple(reasons)
        )
        for observer in observers:
            observer(observation)
