"""Pooling as a source of a sum or a concatenation, as the BiFPN uses it to go down a level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pool:
    """``mode`` of an input that is pooled to the size of the result instead of resampled.

    Along one axis, output ``o`` takes the window of ``kernel_size`` elements that begins at
    ``o * stride - lo``, where ``lo`` and ``hi`` elements of padding lie before and behind the axis:
    ``floor((in + lo + hi - kernel_size) / stride) + 1`` outputs, which must be the result's size.
    The input is always pooled, also if it already has that size.

    The BiFPN's max-pooling, kernel 3 and stride 2, exists in two forms that differ by up to a
    pixel: ``Pool("max", 3, 2, 1)`` is symmetric (``nn.MaxPool2d(3, 2, 1)``: PyTorch ports trained
    in PyTorch), ``Pool("max", 3, 2, "same")`` is TensorFlow's (EfficientDet's published weights,
    the ``tf_`` models of PyTorch ports), which pads an even axis at its end only.

    Args:
        kind: ``"max"`` or ``"avg"``.
        kernel_size: of the window, in elements; one number, or one per spatial axis.
        stride: between windows, in elements; one number, or one per spatial axis. None:
            ``kernel_size``.
        padding: one number of elements for both ends of every axis; or ``(lo, hi)`` per spatial
            axis; or ``"same"``: ``ceil(in / stride)`` outputs, ``max((out - 1) * stride +
            kernel_size - in, 0)`` elements of padding in all, the smaller half before the axis.
            Less than ``kernel_size`` at each end. Never seen by a maximum.
        count_include_pad: for ``"avg"``: padding counts as zeros and windows are divided by their
            full size, as PyTorch's pooling does by default; False: the mean of the elements
            inside, as in TensorFlow, where a constant map stays constant.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type.

    Source: ``pool_output_shape`` of ATen's ``Pool.h``; TensorFlow's padding as documented for
    ``tf.nn``.
    """

    kind: Literal["max", "avg"]
    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None = None
    padding: int | Literal["same"] | tuple[tuple[int, int], ...] = 0
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("max", "avg"):
            raise ValueError(f'Pool: expected kind to be "max" or "avg", got {self.kind!r}')
        if not isinstance(self.count_include_pad, bool):
            raise TypeError(
                "Pool: expected count_include_pad to be a bool, "
                f"got {type(self.count_include_pad).__name__}"
            )
        # Tuples instead of lists, so that equal pools are equal and can be hashed.
        self._set("kernel_size", _sizes("kernel_size", self.kernel_size))
        stride = self.kernel_size if self.stride is None else self.stride
        self._set("stride", _sizes("stride", stride))
        if self.padding != "same":
            self._set("padding", _paddings(self.padding, self.kernel_size))
        ranks = {len(value) for value in self._entries() if isinstance(value, tuple)}
        if len(ranks) > 1:
            raise ValueError(
                "Pool: expected kernel_size, stride and padding for one number of spatial axes, "
                f"got {self._entries()}"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _entries(self) -> tuple[object, object, object]:
        return self.kernel_size, self.stride, self.padding

    @property
    def rank(self) -> int | None:
        """The number of spatial axes that values were given for; None if all are single numbers."""
        return next((len(value) for value in self._entries() if isinstance(value, tuple)), None)

    def window(self, axis: int, in_size: int) -> tuple[int, int, int, int]:
        """``(kernel_size, stride, lo, hi)`` of one axis, 0 the first, of ``in_size`` elements."""
        kernel = _entry(self.kernel_size, axis)
        stride = _entry(self.stride, axis)
        if self.padding == "same":
            outputs = -(-in_size // stride)
            total = max((outputs - 1) * stride + kernel - in_size, 0)
            return kernel, stride, total // 2, total - total // 2
        if isinstance(self.padding, tuple):
            lo, hi = self.padding[axis]
            return kernel, stride, lo, hi
        return kernel, stride, self.padding, self.padding

    def output_size(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The spatial size after pooling; entries below 1 where no window fits."""
        found = []
        for axis, in_size in enumerate(sizes):
            kernel, stride, lo, hi = self.window(axis, in_size)
            found.append((in_size + lo + hi - kernel) // stride + 1)
        return tuple(found)


def _entry(value: int | tuple[int, ...] | None, axis: int) -> int:
    if isinstance(value, tuple):
        return value[axis]
    assert value is not None  # __post_init__ filled it in
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sizes(name: str, value: object) -> int | tuple[int, ...]:
    """A positive number, or a tuple of one per axis."""
    entries = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(map(_is_integer, entries)):
        raise TypeError(f"Pool: expected {name} to be integers, got {value!r}")
    if not 1 <= len(entries) <= 3 or min(entries) < 1:
        raise ValueError(
            f"Pool: expected {name} to be at least 1, one number or one per axis, got {value!r}"
        )
    return entries if isinstance(value, (list, tuple)) else entries[0]


def _paddings(
    value: object, kernel_size: int | tuple[int, ...]
) -> int | tuple[tuple[int, int], ...]:
    """A number, or a ``(lo, hi)`` for each axis."""
    kernels = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * 3
    if isinstance(value, int) and _is_integer(value):
        result: int | tuple[tuple[int, int], ...] = value
        pairs = [(value, value)] * len(kernels)
    elif (
        isinstance(value, (list, tuple))
        and 1 <= len(value) <= 3
        and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in value)
        and all(_is_integer(n) for p in value for n in p)
    ):
        pairs = [(lo, hi) for lo, hi in value]
        result = tuple(pairs)
    else:
        raise TypeError(
            'Pool: expected padding to be an integer, "same" or one (lo, hi) per spatial axis, '
            f"got {value!r}"
        )
    for kernel, pair in zip(kernels, pairs, strict=False):
        if not all(0 <= n < kernel for n in pair):
            raise ValueError(
                f"Pool: expected padding from 0 to below kernel_size {kernel}, got {value!r}"
            )
    return result
