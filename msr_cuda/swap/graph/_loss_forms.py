"""Reads the calls that end in a loss or a decision per pixel, however their code spells them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from .._hooks import has_hooks
from ._values import option_of, tensor_of, value_of


@dataclass(frozen=True)
class Buffer:
    """A tensor that a module of the graph keeps, by its path."""

    path: str


@dataclass(frozen=True)
class Loss:
    """A loss of upsampled logits.

    Attributes:
        operator: the public function that computes it from the logits before.
        input, target: arguments of the call.
        factors: its tensors of weights, by name.
        options: its other arguments.
        log_softmax: the input has to be that of logits.
        hook: the call is that of a module with hooks.
    """

    operator: Literal["resample_cross_entropy", "resample_binary_cross_entropy_with_logits"]
    input: Any
    target: Any
    factors: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    log_softmax: bool = False
    hook: bool = False


@dataclass(frozen=True)
class Decision:
    """The class of each pixel.

    Attributes:
        input: of the call.
        keepdim: the result keeps the axis of the classes, with one entry.
        pair: the call gives values and indices.
    """

    input: Any
    keepdim: bool
    pair: bool


@dataclass(frozen=True)
class Step:
    """What may lie between the upsampling and the end.

    ``"float"``: the same values in float32. ``"softmax"``, ``"log_softmax"``: over the classes.
    ``"squeeze"``: the axis of a single class goes. ``"detach"``: the gradient ends there.
    """

    input: Any
    kind: Literal["float", "softmax", "log_softmax", "squeeze", "detach"]


Ending = Loss | Decision
Reader = Callable[..., Any]


def read_ending(node: Node) -> Ending | None:
    """The loss or decision that a node computes; None: neither."""
    found: Ending | None = _call(node, _ENDINGS, _ENDING_METHODS)
    if found is not None or node.op != "call_module":
        return found
    module = _module(node)
    reader = _ENDING_MODULES.get(type(module))
    found = _apply(reader, module, str(node.target), *node.args, **node.kwargs)
    return replace(found, hook=_is_watched(module)) if isinstance(found, Loss) else None


def read_step(node: Node) -> Step | None:
    """What a node does to logits that are on their way; None: nothing of that kind."""
    found: Step | None = _call(node, _STEPS, _STEP_METHODS)
    if found is None and node.op == "call_module":
        module = _module(node)
        reader = None if _is_watched(module) else _STEP_MODULES.get(type(module))
        found = _apply(reader, *node.args, getattr(module, "dim", None), **node.kwargs)
    return found


def part_of_pair(node: Node) -> Literal["values", "indices"] | None:
    """Which result of ``torch.max`` or ``topk`` a node takes out of the pair."""
    if node.op == "call_function" and len(node.args) == 2:
        what = node.args[1]
        if node.target is operator.getitem and what in (0, 1):
            return "indices" if what else "values"
        if node.target is getattr and what in ("values", "indices"):
            return "indices" if what == "indices" else "values"
    return None


def _call(node: Node, functions: Mapping[Any, Reader], methods: Mapping[str, Reader]) -> Any:
    reader = None
    if node.op == "call_function":
        reader = functions.get(node.target)
    elif node.op == "call_method":
        reader = methods.get(str(node.target))
    return _apply(reader, *node.args, **node.kwargs)


def _apply(reader: Reader | None, *args: Any, **kwargs: Any) -> Any:
    if reader is None:
        return None
    try:
        return reader(*args, **kwargs)
    except TypeError:  # other arguments than those of the signature
        return None


def _module(node: Node) -> nn.Module:
    owner = node.graph.owning_module
    assert isinstance(owner, GraphModule)
    return owner.get_submodule(str(node.target))


def _is_watched(module: nn.Module) -> bool:
    """Whether more than its class's forward runs when it is called."""
    return has_hooks(module) or "forward" in vars(module)


# Losses.


def _cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: Any = -100,
    reduce: Any = None,
    reduction: Any = "mean",
    label_smoothing: Any = 0.0,
) -> Loss | None:
    if size_average is not None or reduce is not None:  # long deprecated
        return None
    options = {
        "ignore_index": int(value_of(ignore_index)),
        "label_smoothing": float(option_of(label_smoothing)),
        "reduction": reduction,
    }
    return Loss("resample_cross_entropy", input, target, _given(weight=weight), options)


def _nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: Any = -100,
    reduce: Any = None,
    reduction: Any = "mean",
) -> Loss | None:
    found = _cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction)
    return None if found is None else replace(found, log_softmax=True)


def _binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    reduce: Any = None,
    reduction: Any = "mean",
    pos_weight: Any = None,
) -> Loss | None:
    if size_average is not None or reduce is not None:
        return None
    return Loss(
        "resample_binary_cross_entropy_with_logits",
        input,
        target,
        _given(weight=weight, pos_weight=pos_weight),
        {"reduction": reduction},
    )


def _given(**factors: Any) -> dict[str, Any]:
    return {name: factor for name, factor in factors.items() if factor is not None}


def _buffer(module: nn.Module, path: str, name: str) -> Buffer | None:
    return None if getattr(module, name) is None else Buffer(f"{path}.{name}")


def _cross_entropy_module(module: Any, path: str, input: Any, target: Any) -> Loss | None:
    return _cross_entropy(
        input,
        target,
        _buffer(module, path, "weight"),
        ignore_index=module.ignore_index,
        reduction=module.reduction,
        label_smoothing=module.label_smoothing,
    )


def _nll_loss_module(module: Any, path: str, input: Any, target: Any) -> Loss | None:
    return _nll_loss(
        input,
        target,
        _buffer(module, path, "weight"),
        ignore_index=module.ignore_index,
        reduction=module.reduction,
    )


def _binary_cross_entropy_module(module: Any, path: str, input: Any, target: Any) -> Loss | None:
    return _binary_cross_entropy(
        input,
        target,
        _buffer(module, path, "weight"),
        reduction=module.reduction,
        pos_weight=_buffer(module, path, "pos_weight"),
    )


# Decisions.


def _argmax(input: Any, dim: Any = None, keepdim: bool = False) -> Decision | None:
    return Decision(input, keepdim, pair=False) if _is_class_axis(input, dim) else None


def _max(input: Any, dim: Any = None, keepdim: bool = False) -> Decision | None:
    return Decision(input, keepdim, pair=True) if _is_class_axis(input, dim) else None


def _topk(
    input: Any, k: Any, dim: Any = -1, largest: bool = True, sorted: bool = True
) -> Decision | None:
    return _max(input, dim, keepdim=True) if type(k) is int and k == 1 and largest else None


def _is_class_axis(input: Any, dim: Any) -> bool:
    tensor = tensor_of(input)
    return tensor is not None and type(dim) is int and dim % tensor.dim() == 1


# Steps.


def _softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Step | None:
    return Step(input, "softmax") if dtype is None and _is_class_axis(input, dim) else None


def _log_softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return Step(input, "log_softmax") if dtype is None and _is_class_axis(input, dim) else None


def _torch_softmax(input: Any, dim: Any, dtype: Any = None) -> Any:
    return _softmax(input, dim, dtype=dtype)


def _torch_log_softmax(input: Any, dim: Any, dtype: Any = None) -> Any:
    return _log_softmax(input, dim, dtype=dtype)


def _float(input: Any) -> Step | None:
    # From float64 it rounds.
    tensor = tensor_of(input)
    return None if tensor is None or tensor.dtype == torch.float64 else Step(input, "float")


def _to(input: Any, dtype: Any) -> Step | None:
    return _float(input) if dtype == torch.float32 else None


def _detach(input: Any) -> Step:
    return Step(input, "detach")


def _squeeze(input: Any, dim: Any) -> Step | None:
    return Step(input, "squeeze") if _is_class_axis(input, dim) else None


_ENDINGS: dict[Any, Reader] = {
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _nll_loss,
    F.binary_cross_entropy_with_logits: _binary_cross_entropy,
    torch.argmax: _argmax,
    torch.max: _max,
    torch.topk: _topk,
}
_ENDING_METHODS: dict[str, Reader] = {"argmax": _argmax, "max": _max, "topk": _topk}
_ENDING_MODULES: dict[type, Reader] = {
    nn.CrossEntropyLoss: _cross_entropy_module,
    nn.NLLLoss: _nll_loss_module,
    nn.BCEWithLogitsLoss: _binary_cross_entropy_module,
}
_STEPS: dict[Any, Reader] = {
    F.softmax: _softmax,
    torch.softmax: _torch_softmax,
    F.log_softmax: _log_softmax,
    torch.log_softmax: _torch_log_softmax,
    torch.squeeze: _squeeze,
    torch.detach: _detach,
}
_STEP_METHODS: dict[str, Reader] = {
    "float": _float,
    "to": _to,
    "type": _to,
    "softmax": _torch_softmax,
    "log_softmax": _torch_log_softmax,
    "squeeze": _squeeze,
    "detach": _detach,
}
_STEP_MODULES: dict[type, Reader] = {nn.Softmax: _softmax, nn.LogSoftmax: _log_softmax}
