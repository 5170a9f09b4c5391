"""Reads the calls of a graph: what a node computes, however its code spells it.

Each reader has the signature of PyTorch's own function, and the tables at the end say which
functions, methods and modules it reads. A call that does not fit is none of ours.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from ..._pool import Pool
from .._hooks import has_hooks
from ._values import number_of, option_of, tensor_of


@dataclass(frozen=True)
class Form:
    """What a node computes.

    Attributes:
        target: the node whose memory gets the result, of a call that works in place.
        stack: the ``torch.stack`` that is part of what is computed.
        hook: the call is that of a module with hooks, which its replacement would not run.
    """

    target: Node | None = None
    stack: Node | None = None
    hook: bool = False


@dataclass(frozen=True)
class Resampling(Form):
    """``interpolate``; ``size`` and ``scale_factor`` as the call has them, one is None."""

    input: Any = None
    size: Any = None
    scale_factor: Any = None
    mode: Any = "nearest"
    align_corners: Any = None
    recompute: bool = False
    antialias: Any = False


@dataclass(frozen=True)
class Pooling(Form):
    """A pooling that a :class:`msr_cuda.Pool` describes."""

    input: Any = None
    pool: Pool | None = None


@dataclass(frozen=True)
class Expansion(Form):
    """A map that is repeated, if it is one of a single pixel that is repeated over the image."""

    input: Any = None


@dataclass(frozen=True)
class Sum(Form):
    """Addends with their signs and factors."""

    addends: tuple[tuple[Any, float], ...] = ()


@dataclass(frozen=True)
class Product(Form):
    """``a * b``, or ``a / b``."""

    a: Any = None
    b: Any = None
    divides: bool = False


@dataclass(frozen=True)
class Concatenation(Form):
    """Of maps along their channels."""

    maps: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Maximum(Form):
    """Of two maps, or of all."""

    maps: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Activation(Form):
    """One that the operators have."""

    input: Any = None
    name: str = ""


Reader = Callable[..., Form | None]


def read(node: Node) -> Form | None:
    """What a node computes; None: nothing that belongs to a site."""
    reader: Reader | None = None
    hook = False
    if node.op == "call_function":
        reader = _FUNCTIONS.get(node.target)
    elif node.op == "call_method":
        reader = _METHODS.get(str(node.target))
    elif node.op == "call_module":
        owner = node.graph.owning_module
        assert isinstance(owner, GraphModule)
        module = owner.get_submodule(str(node.target))
        # A subclass may do anything.
        options = _MODULES.get(type(module))
        if options is not None:
            reader = lambda input: options(module, input)
            hook = has_hooks(module) or "forward" in vars(module)
    if reader is None:
        return None
    try:
        form = reader(*node.args, **node.kwargs)
    except TypeError:  # other arguments than those of the signature
        return None
    return replace(form, hook=True) if form is not None and hook else form


# Resampling.


def _interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: Any = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: Any = False,
) -> Form:
    return Resampling(
        input=input,
        size=size,
        scale_factor=option_of(scale_factor),
        mode=mode,
        align_corners=align_corners,
        recompute=bool(recompute_scale_factor),
        antialias=antialias,
    )


def _upsample_nearest(input: Any, size: Any = None, scale_factor: Any = None) -> Form:
    return _interpolate(input, size, scale_factor)


def _upsample_bilinear(input: Any, size: Any = None, scale_factor: Any = None) -> Form:
    return _interpolate(input, size, scale_factor, "bilinear", True)


def _upsample_module(module: Any, input: Any) -> Form:
    return _interpolate(
        input,
        module.size,
        module.scale_factor,
        module.mode,
        module.align_corners,
        module.recompute_scale_factor,
    )


def _max_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Form | None:
    dense = dilation in (1, [1] * len(_spatial(input)), (1,) * len(_spatial(input)))
    if ceil_mode or return_indices or not dense:
        return None
    return _pooling("max", input, kernel_size, stride, padding, True)


def _avg_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Form | None:
    if ceil_mode or divisor_override is not None:
        return None
    return _pooling("avg", input, kernel_size, stride, padding, count_include_pad)


def _pooling(
    kind: Any, input: Any, kernel_size: Any, stride: Any, padding: Any, count_include_pad: bool
) -> Form | None:
    rank = len(_spatial(input))
    kernels, strides, paddings = (
        _per_axis(value, rank) for value in (kernel_size, stride or kernel_size, padding)
    )
    if not kernels or strides is None or paddings is None:  # no rank: the shape is not known
        return None
    pairs = tuple((n, n) for n in paddings)
    return Pooling(input=input, pool=Pool(kind, kernels, strides, pairs, count_include_pad))


def _per_axis(value: Any, rank: int) -> tuple[int, ...] | None:
    """One number per axis; None: some may change from call to call."""
    entries = tuple(value) if isinstance(value, (list, tuple)) else (value,) * rank
    if len(entries) == 1:
        entries *= rank
    return entries if len(entries) == rank and all(type(n) is int for n in entries) else None


def _spatial(input: Any) -> tuple[int, ...]:
    tensor = tensor_of(input)
    return () if tensor is None else tuple(tensor.shape[2:])


def _max_pool_module(module: Any, input: Any) -> Form | None:
    return _max_pool(
        input,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.ceil_mode,
        module.return_indices,
    )


def _avg_pool_module(module: Any, input: Any) -> Form | None:
    return _avg_pool(
        input,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        getattr(module, "divisor_override", None),  # 1-D has none
    )


def _expand(self: Any, *sizes: Any) -> Form:
    return Expansion(input=self)


# Sums.


def _add(input: Any, other: Any, *, alpha: Any = 1) -> Form | None:
    return _sum(input, other, alpha, 1)


def _sub(input: Any, other: Any, *, alpha: Any = 1) -> Form | None:
    return _sum(input, other, alpha, -1)


def _sum(input: Any, other: Any, alpha: Any, sign: int) -> Form | None:
    factor = number_of(alpha)
    return None if factor is None else Sum(addends=((input, 1), (other, sign * factor)))


def _neg(input: Any) -> Form:
    return Sum(addends=((input, -1),))


def _sum_of_stack(input: Any, dim: Any = None, keepdim: bool = False, **other: Any) -> Form | None:
    maps = _stacked(input, dim, keepdim, other)
    return None if maps is None else Sum(stack=input, addends=tuple((x, 1) for x in maps))


def _mean_of_stack(input: Any, dim: Any = None, keepdim: bool = False, **other: Any) -> Form | None:
    maps = _stacked(input, dim, keepdim, other)
    if maps is None:
        return None
    return Sum(stack=input, addends=tuple((x, 1 / len(maps)) for x in maps))


def _maximum_of_stack(input: Any, dim: Any = (), keepdim: bool = False) -> Form | None:
    maps = _stacked(input, dim, keepdim, {})
    return None if maps is None else Maximum(stack=input, maps=maps)


def _stacked(
    input: Any, dim: Any, keepdim: bool, other: Mapping[str, Any]
) -> tuple[Any, ...] | None:
    """The maps of a ``torch.stack`` that is reduced along the axis that it made."""
    if not (
        isinstance(input, Node) and input.op == "call_function" and input.target is torch.stack
    ):
        return None
    tensors, stack_dim = _tensors_and_dim(*input.args, **input.kwargs)
    value = tensor_of(input)
    if isinstance(dim, (list, tuple)) and len(dim) == 1:
        (dim,) = dim
    if value is None or type(dim) is not int or keepdim or other or len(input.users) != 1:
        return None
    same_axis = dim % value.dim() == stack_dim % value.dim()
    return tuple(tensors) if same_axis and isinstance(tensors, (list, tuple)) else None


def _tensors_and_dim(tensors: Any, dim: Any = 0) -> tuple[Any, Any]:
    return tensors, dim


def _mul(input: Any, other: Any) -> Form:
    return Product(a=input, b=other)


def _div(input: Any, other: Any) -> Form:  # with a rounding mode it is not read
    return Product(a=input, b=other, divides=True)


# Concatenation and maximum.


def _cat(tensors: Any, dim: Any = 0, axis: Any = None) -> Form | None:
    dim = dim if axis is None else axis
    if not (isinstance(tensors, (list, tuple)) and tensors and type(dim) is int):
        return None
    first = tensor_of(tensors[0])
    if first is None or dim % first.dim() != 1:
        return None
    return Concatenation(maps=tuple(tensors))


def _maximum(input: Any, other: Any) -> Form:
    return Maximum(maps=(input, other))


# Activations.


def _plain_activation(name: str) -> Reader:
    def reader(input: Any, inplace: bool = False) -> Form:
        return Activation(_target(input, inplace), input=input, name=name)

    return reader


def _leaky_relu(input: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Form | None:
    if option_of(negative_slope) != 0.01:  # the operators' only slope
        return None
    return Activation(_target(input, inplace), input=input, name="leaky_relu")


def _hardtanh(
    input: Any, min_val: Any = -1, max_val: Any = 1, inplace: bool = False
) -> Form | None:
    if (option_of(min_val), option_of(max_val)) != (0, 6):
        return None
    return Activation(_target(input, inplace), input=input, name="relu6")


def _gelu(input: Any, approximate: str = "none") -> Form | None:
    return Activation(input=input, name="gelu") if approximate == "none" else None


def _target(input: Any, inplace: bool) -> Node | None:
    return input if inplace else None


def _in_place(reader: Reader) -> Reader:
    """The reader of a function's variant that works in place on its first argument."""

    def read_in_place(input: Any, *args: Any, **kwargs: Any) -> Form | None:
        form = reader(input, *args, **kwargs)
        return None if form is None else replace(form, target=input)

    return read_in_place


_relu, _relu6 = _plain_activation("relu"), _plain_activation("relu6")
_silu, _hardswish = _plain_activation("silu"), _plain_activation("hardswish")
_sigmoid = _plain_activation("sigmoid")

_FUNCTIONS: dict[Any, Reader] = {
    F.interpolate: _interpolate,
    F.upsample: _interpolate,
    F.upsample_nearest: _upsample_nearest,
    F.upsample_bilinear: _upsample_bilinear,
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d), _max_pool),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), _max_pool),
    F.avg_pool1d: _avg_pool,
    F.avg_pool2d: _avg_pool,
    F.avg_pool3d: _avg_pool,
    operator.add: _add,
    torch.add: _add,
    operator.iadd: _in_place(_add),
    operator.sub: _sub,
    torch.sub: _sub,
    torch.subtract: _sub,
    operator.isub: _in_place(_sub),
    operator.neg: _neg,
    torch.neg: _neg,
    torch.sum: _sum_of_stack,
    torch.mean: _mean_of_stack,
    operator.mul: _mul,
    torch.mul: _mul,
    torch.multiply: _mul,
    operator.imul: _in_place(_mul),
    operator.truediv: _div,
    torch.div: _div,
    torch.true_divide: _div,
    operator.itruediv: _in_place(_div),
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    torch.maximum: _maximum,
    torch.max: _maximum,  # of a map and a dimension it is another function, but then none of ours
    torch.amax: _maximum_of_stack,
    F.relu: _relu,
    torch.relu: _relu,
    torch.relu_: _in_place(_relu),
    F.relu_: _in_place(_relu),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: _in_place(_leaky_relu),
    F.silu: _silu,
    F.gelu: _gelu,
    F.hardswish: _hardswish,
    F.sigmoid: _sigmoid,
    torch.sigmoid: _sigmoid,
    torch.sigmoid_: _in_place(_sigmoid),
}

_METHODS: dict[str, Reader] = {
    "add": _add,
    "add_": _in_place(_add),
    "__add__": _add,
    "__radd__": _add,
    "__iadd__": _in_place(_add),
    "sub": _sub,
    "sub_": _in_place(_sub),
    "neg": _neg,
    "sum": _sum_of_stack,
    "mean": _mean_of_stack,
    "mul": _mul,
    "mul_": _in_place(_mul),
    "div": _div,
    "div_": _in_place(_div),
    "maximum": _maximum,
    "amax": _maximum_of_stack,
    "expand": _expand,
    "expand_as": _expand,
    "repeat": _expand,
    "relu": _relu,
    "relu_": _in_place(_relu),
    "sigmoid": _sigmoid,
    "sigmoid_": _in_place(_sigmoid),
}


def _module(reader: Reader, *options: str) -> Reader:
    """A reader of modules that hand some of their attributes to a function."""
    return lambda module, input: reader(input, *(getattr(module, name) for name in options))


_MODULES: dict[type, Reader] = {
    nn.Upsample: _upsample_module,
    nn.UpsamplingNearest2d: _upsample_module,
    nn.UpsamplingBilinear2d: _upsample_module,
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max_pool_module),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _avg_pool_module),
    nn.ReLU: _module(_relu, "inplace"),
    nn.ReLU6: _module(_relu6, "inplace"),
    nn.Hardtanh: _module(_hardtanh, "min_val", "max_val", "inplace"),
    nn.LeakyReLU: _module(_leaky_relu, "negative_slope", "inplace"),
    nn.SiLU: _module(_silu, "inplace"),
    nn.GELU: _module(_gelu, "approximate"),
    nn.Hardswish: _module(_hardswish, "inplace"),
    nn.Sigmoid: _module(_sigmoid),
}
