"""Plans of calls: what validation made of them, kept from call to call.

To validate a call and to pack its arguments takes more host time than to run a small one. What
comes out depends on options, shapes, strides and dtypes alone, and networks repeat theirs: so it is
worked out once for each. Only calls that passed are kept, and no tensor is.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _spec, _validate, autograd
from ._validate import ModeName, ScaleFactor, Size


class Rules:
    """What the calls of a function have in common."""

    __slots__ = ("options", "same_channels")

    def __init__(self, *, same_channels: bool = False, **options: Any) -> None:
        """``options``: of :func:`msr_cuda._validate.prepare`."""
        self.same_channels, self.options = same_channels, options


ONE_MAP = Rules(pooling=False, argument="input")
LOGITS = Rules(pooling=False, argument="logits")
SUM = Rules(same_channels=True)
CAT = Rules(cat=True)
MAX = Rules(same_channels=True, maximum=True)


class Planned(NamedTuple):
    """A validated call without its maps."""

    plan: autograd.Plan  # as kernels take it
    call: _spec.Call  # as the reference takes it; it has no inputs
    device_type: str

    def with_maps(self, inputs: Sequence[Tensor]) -> _spec.Call:
        """The call, of maps like those that were validated."""
        return self.call._replace(inputs=inputs)


#: So many are kept. They are small: a few lists of a few numbers.
LIMIT = 1024
_kept: dict[tuple[Any, ...], Planned] = {}
_lock = threading.Lock()


def find(
    name: str,
    rules: Rules,
    inputs: Sequence[Tensor],
    size: Size,
    mode: ModeName | Sequence[ModeName],
    align_corners: bool | Sequence[bool | None] | None,
    antialias: bool | Sequence[bool],
    scale_factors: float | Sequence[ScaleFactor | None] | None,
    activation: str | None,
    dtype: torch.dtype | None,
    keep_scales: bool = True,
    out: Tensor | None = None,
) -> Planned:
    """The plan of a call; arguments and errors are those of :func:`msr_cuda._validate.prepare`."""
    key: tuple[Any, ...] | None = None
    # Graphs have symbols for sizes, batched maps have no strides, and memory that is given has to
    # be looked at each time.
    if out is None and not is_compiling() and not _spec.in_functorch():
        try:
            key = _key(
                rules, inputs, size, mode, align_corners, antialias, scale_factors, activation,
                dtype, keep_scales,
            )  # fmt: skip
            found = _kept.get(key)
            if found is not None:
                return found
        except (AttributeError, RuntimeError, TypeError):
            key = None  # what is wrong, if anything is, validation says best
    call = _validate.prepare(
        name, inputs, size, mode, align_corners, antialias, scale_factors, activation, dtype,
        keep_scales=keep_scales, out=out, **rules.options,
    )  # fmt: skip
    if rules.same_channels:
        _validate.check_channels(name, inputs)
    plan = autograd.Plan(inputs, call.size, call.spec, call.flat_scales, call.windows)
    planned = Planned(plan, call._replace(inputs=()), inputs[0].device.type)
    if key is not None:
        _keep(key, planned)
    return planned


def _key(
    rules: Rules,
    inputs: Sequence[Tensor],
    size: Size,
    mode: ModeName | Sequence[ModeName],
    align_corners: bool | Sequence[bool | None] | None,
    antialias: bool | Sequence[bool],
    scale_factors: float | Sequence[ScaleFactor | None] | None,
    activation: str | None,
    dtype: torch.dtype | None,
    keep_scales: bool,
) -> tuple[Any, ...]:
    """Equal keys mean equal calls.

    Raises:
        TypeError: an argument of a type that is not usual, or that cannot be told from another by
            comparison, as True from 1.
    """
    if type(inputs) is not list and type(inputs) is not tuple:
        raise TypeError
    if size is not None and type(size) is not torch.Size:
        size = _numbers(size, _INTEGERS)
    if type(mode) is list:
        mode = tuple(mode)
    if align_corners is not None:
        align_corners = _flags(align_corners)
    if antialias is not False:
        antialias = _flags(antialias)
    if scale_factors is not None:
        scale_factors = _numbers(scale_factors, _REALS)
    key: list[Any] = [
        rules, size, mode, align_corners, antialias, scale_factors, activation, dtype, keep_scales,
    ]  # fmt: skip
    for x in inputs:
        # Of a contiguous map, strides tell nothing more.
        key += (type(x), x.dtype, x.device, x.shape, x.is_contiguous() or x.stride())
    return tuple(key)


_INTEGERS = (int,)
_REALS = (float, int, type(None))


def _numbers(value: Any, types: tuple[type, ...]) -> Any:
    """A number, or a tuple of numbers and of tuples of them."""
    if type(value) in types:
        return value
    if type(value) is not list and type(value) is not tuple:
        raise TypeError
    return tuple([_numbers(entry, types) for entry in value])


def _flags(value: Any) -> Any:
    """True, False or None, or a tuple of them."""
    if value is True or value is False or value is None:
        return value
    if type(value) is not list and type(value) is not tuple:
        raise TypeError
    return tuple([_flags(entry) for entry in value])


def _keep(key: tuple[Any, ...], planned: Planned) -> None:
    sizes = [*planned.plan.size, *(n for shape in planned.plan.shapes for n in shape)]
    if not all(type(n) is int for n in sizes):  # torch.jit.trace has tensors for sizes
        return
    with _lock:
        while len(_kept) >= LIMIT:
            del _kept[next(iter(_kept))]  # the oldest
        _kept[key] = planned
