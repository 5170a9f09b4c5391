"""Public losses and decisions of upsampled logits; :mod:`msr_cuda.functional` has their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _dispatch, _ops, _plans, _spec, _validate, autograd, reference
from ._dispatch import Impl, unsupported_reasons
from ._validate import Size


class Observation(NamedTuple):
    """What :data:`observers` are told of one loss.

    Attributes:
        function: name of the public function.
        logits: before they are resampled.
        target: what their pixels should be, of the size that they are resampled to.
        factors: further tensors that are read.
        output: the loss.
        reasons: why the upsampled logits were written; empty: they were not.
    """

    function: str
    logits: Tensor
    target: Tensor
    factors: tuple[Tensor, ...]
    output: Tensor
    reasons: tuple[str, ...] = ()


#: Called after every loss, outside of compiled graphs. For reports and benchmarks.
observers: list[Callable[[Observation], None]] = []


def resample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str = "linear",
    align_corners: bool | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Cross entropy of logits that are resampled to the size of the target.

    Equivalent to ``cross_entropy(interpolate(logits, size), target)`` in float32. On kernels the
    upsampled logits are never written: a forward pass keeps one number per pixel, the log-sum-exp,
    and the backward makes the logits again. Differentiable once, in the logits. For targets that
    need a gradient the upsampled logits are materialised.

    Args:
        logits (Tensor[N, C, *spatial]): scores of C classes, before softmax.
        target (Tensor[N, *size] or Tensor[N, C, *size]): class indices (any integer dtype of 8 to
            64 bits but int8), or class probabilities (floating point).
        mode, align_corners: of the resampling, as :func:`resample`.
        weight (Tensor[C]): of each class; gets no gradient.
        ignore_index: class index that counts nothing; with probabilities it must be negative.
        label_smoothing: from 0 to 1, as :func:`torch.nn.functional.cross_entropy`.
        reduction: ``"none"``, ``"mean"`` (weighted by the classes' weights) or ``"sum"``.
        impl: ``"auto"``, ``"kernel"`` or ``"reference"``.

    Returns:
        Tensor: ``[N, *size]`` without reduction, else a scalar; float32 (float64 for float64
        logits), also for half logits.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample`.
        RuntimeError: a class index out of range. On CUDA nothing waits for the kernel, so it makes
            the loss NaN (and the gradient of the logits that its pixel reads), and the error is
            raised by a later call, or by :func:`check_errors`.
        IndexError: the same in plain PyTorch, by PyTorch's own cross entropy.

    Source: :func:`torch.nn.functional.cross_entropy`; the gradient of a pixel's class c is
    ``p_c sum_k t_k w_k - t_c w_c`` for probabilities t, weights w and the softmax p of the logits.
    """
    name = "resample_cross_entropy"
    per_channel = isinstance(target, Tensor) and target.is_floating_point()
    size = _validate.check_target(name, logits, target, per_channel=per_channel)
    _validate.check_classes(name, logits, target, weight, ignore_index, label_smoothing)
    _validate.check_reduction(name, reduction)
    planned = _plan(name, logits, size, mode, align_corners)
    reasons = _dispatch.reasons_for_reference(name, impl, [logits], _reasons(target))
    if reasons:
        resampled = _resampled(planned, logits, impl)
        loss = reference.cross_entropy(
            resampled, target, weight, ignore_index, label_smoothing, reduction
        )
    else:
        if weight is not None:
            weight = weight.detach().to(_accumulation_dtype(logits)).contiguous()
        loss = autograd.cross_entropy(
            logits, target, weight, planned.plan.spec, ignore_index, label_smoothing, reduction
        )
    _tell(name, logits, target, (weight,), loss, reasons)
    return loss


def resample_binary_cross_entropy_with_logits(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str = "linear",
    align_corners: bool | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Binary cross entropy of logits that are resampled to the size of the target.

    Equivalent to ``binary_cross_entropy_with_logits(interpolate(logits, size), target)`` in
    float32. On kernels the upsampled logits are never written, and the backward makes them again;
    differentiable once, in the logits. For targets that need a gradient they are materialised.

    Args:
        logits (Tensor[N, C, *spatial]): scores before the sigmoid.
        target (Tensor[N, C, *size]): probabilities, of any dtype (masks may be bool or uint8).
        mode, align_corners: of the resampling, as :func:`resample`.
        weight (Tensor): factor on each loss, broadcast to ``[N, C, *size]``; gets no gradient.
        pos_weight (Tensor): factor on the positive part, broadcast to ``[N, C, *size]`` (one per
            channel: ``[C, 1, 1]``); gets no gradient.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        impl: ``"auto"``, ``"kernel"`` or ``"reference"``.

    Returns:
        Tensor: ``[N, C, *size]`` without reduction, else a scalar; float32 (float64 for float64
        logits), also for half logits.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample`.

    Source: :func:`torch.nn.functional.binary_cross_entropy_with_logits`.
    """
    name = "resample_binary_cross_entropy_with_logits"
    size = _validate.check_target(name, logits, target, per_channel=True)
    _validate.check_reduction(name, reduction)
    for argument, value in (("weight", weight), ("pos_weight", pos_weight)):
        if value is not None:
            _validate.check_factor(name, argument, value, logits, size)
    planned = _plan(name, logits, size, mode, align_corners)
    reasons = _dispatch.reasons_for_reference(name, impl, [logits], _reasons(target))
    if reasons:
        resampled = _resampled(planned, logits, impl)
        loss = reference.binary_cross_entropy_with_logits(
            resampled, target, weight, pos_weight, reduction
        )
    else:
        dtype = _accumulation_dtype(logits)
        if not target.is_floating_point() and target.dtype not in (torch.bool, torch.uint8):
            target = target.to(dtype)
        weight, pos_weight = (
            None if factor is None else factor.detach().to(dtype).expand(target.shape)
            for factor in (weight, pos_weight)
        )
        loss = autograd.binary_cross_entropy(
            logits, target, weight, pos_weight, planned.plan.spec, reduction
        )
    _tell(name, logits, target, (weight, pos_weight), loss, reasons)
    return loss


def resample_argmax(
    logits: Tensor,
    size: Size = None,
    *,
    mode: str = "linear",
    align_corners: bool | None = None,
    dtype: torch.dtype = torch.int64,
    return_max: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The class with the largest logit after resampling, for every pixel.

    Equivalent to ``interpolate(logits, size).argmax(1)`` in float32. On kernels the upsampled
    logits are never written. Not differentiable.

    Args:
        logits (Tensor[N, C, *spatial]): scores of C classes.
        size: spatial size of the result; None: that of ``logits``.
        mode, align_corners: of the resampling, as :func:`resample`.
        dtype: of the indices: int64, int32 or (up to 256 classes) uint8.
        return_max: also return the probability of that class, softmax over the classes.
        impl: ``"auto"``, ``"kernel"`` or ``"reference"``.

    Returns:
        Tensor[N, *size]: class indices, of equal logits the first. With ``return_max`` also
        Tensor[N, *size]: probabilities in float32 (float64 for float64 logits).

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`resample`.
    """
    name = "resample_argmax"
    _validate.check_argmax(name, logits, dtype)
    planned = _plan(name, logits, size, mode, align_corners)
    with torch.no_grad():
        if _dispatch.reasons_for_reference(name, impl, [logits]):
            resampled = _resampled(planned, logits, impl)
            index, probability = reference.argmax(resampled, dtype)
        else:
            number = _spec.INDEX_DTYPES.index(dtype)
            index, probability = _ops.argmax(
                logits.detach(), planned.plan.size, planned.plan.spec, number, return_max
            )
    return (index, probability) if return_max else index


def check_errors(device: torch.device | str | int | None = None) -> None:
    """Raises what a CUDA kernel met and could not raise: a target that is no class.

    Kernels of :func:`resample_cross_entropy` run on while Python goes on, so a class index out of
    range can only be told afterwards. This waits for all work on the device, then raises if there
    was one since the last time; the next cross entropy on that device does so without waiting, if
    the kernel has run by then. Where there are no CUDA kernels, it does nothing: those of the CPU
    raise at once.

    Args:
        device: a CUDA device; None: the current one.

    Raises:
        RuntimeError: it names the index.
        ValueError: ``device`` is no CUDA device.
    """
    if device is not None and torch.device(device).type != "cuda":
        raise ValueError(f"check_errors: expected a CUDA device, got {device}")
    if _ops.check_targets is None or not torch.cuda.is_initialized():
        return
    torch.cuda.synchronize(device)
    index = torch.cuda.current_device() if device is None else torch.device(device).index
    _ops.check_targets(torch.cuda.current_device() if index is None else index)


def _tell(
    name: str,
    logits: Tensor,
    target: Tensor,
    factors: Sequence[Tensor | None],
    loss: Tensor,
    reasons: Sequence[str],
) -> None:
    if observers and not torch.compiler.is_compiling():
        given = tuple(x for x in factors if x is not None)
        observation = Observation(name, logits, target, given, loss, tuple(reasons))
        for observer in observers:
            observer(observation)


def _accumulation_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _plan(
    name: str, logits: Tensor, size: Size, mode: str, align_corners: bool | None
) -> _plans.Planned:
    """The resampling of the logits, in the accumulation type."""
    dtype = _accumulation_dtype(logits)
    return _plans.find(
        name, _plans.LOGITS, [logits], size, mode, align_corners, False, None, None, dtype
    )


def _reasons(target: Tensor) -> list[str]:
    """Why there is no kernel that spares the upsampled logits."""
    return ["the target requires a gradient"] if target.requires_grad else []


def _resampled(planned: _plans.Planned, logits: Tensor, impl: Impl) -> Tensor:
    """The logits at another size: on a kernel where there is one."""
    if impl == "reference" or unsupported_reasons([logits]):
        return reference.resample_sum(planned.with_maps([logits]))
    return autograd.gather(planned.plan, [logits])
