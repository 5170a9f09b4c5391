"""What is known of a node's value before it is computed: shapes, dtypes, storages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import SymFloat, SymInt, Tensor
from torch.fx import Node

#: Where Dynamo and :func:`msr_cuda.swap.rewrite` keep a node's fake value.
EXAMPLE_VALUE = "example_value"


def value_of(argument: Any) -> Any:
    """The fake value of a node, also of a number; None where nothing is known."""
    return argument.meta.get(EXAMPLE_VALUE) if isinstance(argument, Node) else argument


def tensor_of(argument: Any) -> Tensor | None:
    """The fake tensor that a node gives; None: it gives none, or nothing is known."""
    value = value_of(argument)
    return value if isinstance(value, Tensor) else None


def number_of(argument: Any) -> float | None:
    """A number that is the same at every call; None: it is none, or a symbol that may change."""
    value = value_of(argument)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, (SymFloat, SymInt)) and value.node.is_constant():
        return float(value) if isinstance(value, SymFloat) else int(value)
    return None


def option_of(argument: Any) -> Any:
    """The value of an option, such as a scale factor.

    With ``dynamic=True``, the floats that a module keeps are symbols: asking for this one's value
    makes the compiled graph one for this value.
    """
    value = value_of(argument)
    if isinstance(value, SymFloat):
        return float(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(option_of, value))
    return value


def same(a: int | SymInt, b: int | SymInt) -> bool:
    """Whether two sizes are known to be equal; of symbols, nothing is assumed for it."""
    if type(a) is int and type(b) is int:
        return a == b
    # Imported late: it brings along sympy.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(a == b)


def same_sizes(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes, or parts of them, are known to be equal."""
    return len(a) == len(b) and all(map(same, a, b))


def agree(a: int | SymInt, b: int | SymInt) -> bool:
    """Whether two sizes are equal, that PyTorch broadcasts or demands to be equal.

    Where both are expressions, capturing the call has made sure that they are equal, because it
    took neither for 1; only cannot every such fact be derived again (``s // 2 == 2 * t``). To ask
    for it once more adds nothing to what the graph is limited to.
    """
    if same(a, b):
        return True
    if type(a) is int or type(b) is int:
        return False
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(a == b)


def sizes_agree(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """:func:`agree` for shapes, or parts of them."""
    return len(a) == len(b) and all(map(agree, a, b))


def storages(value: Any) -> set[int]:
    """Which memory the tensors of a (nested) value lie in. Fake views share that of their base."""
    return {tensor.untyped_storage()._cdata for tensor in _tensors(value)}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.layout == torch.strided:
            yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
