"""Which producers of a map an operator can do the work of, and why not of others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ... import _spec
from .._gather import mode_reasons
from ._forms import Expansion, Pooling, Resampling, read
from ._sites import Source
from ._values import same, same_sizes, tensor_of


def source_of(node: Node, *, pooling: bool) -> tuple[Source, list[str]]:
    """How the value of a node comes about, and why not by an operator's own resampling.

    Args:
        node: what gives a map.
        pooling: poolings can be done by the operator, too.

    Returns:
        The source, which is ``node`` as it is where there are reasons, or nothing to resample.
    """
    form = read(node)
    plain = Source(node)
    if isinstance(form, Resampling):
        reasons = resampling_reasons(node, form)
        if len(node.users) > 1:
            reasons.append(f"the resampled map has {len(node.users)} users: {_users(node)}")
        return (plain, reasons) if reasons else (_resampled(node, form), [])
    if len(node.users) > 1 or form is None or form.hook:
        return plain, []
    if pooling and isinstance(form, Pooling) and is_map(tensor_of(form.input)):
        assert form.pool is not None
        return Source(form.input, node, form.pool), []
    if isinstance(form, Expansion) and _repeats_pixels(node, form):
        return Source(form.input, node, repeated=True), []
    return plain, []


def _resampled(node: Node, form: Resampling) -> Source:
    scale = form.scale_factor
    return Source(
        form.input,
        node,
        form.mode,
        form.align_corners,
        form.antialias,
        None if scale is None or form.recompute else _as_tuple(scale),
        form.size,
    )


def _as_tuple(scale: object) -> float | tuple[float, ...]:
    return tuple(map(float, scale)) if isinstance(scale, (list, tuple)) else float(scale)  # type: ignore[arg-type]


def resampling_reasons(node: Node, form: Resampling) -> list[str]:
    """Why an interpolation cannot be done by an operator, whatever becomes of its result."""
    if form.hook:
        return [f"a hook on {node.target} would be bypassed"]
    x, y = tensor_of(form.input), tensor_of(node)
    if x is None or y is None:
        return ["the shapes of its maps are not known"]
    if not is_map(x):
        return [f"its map is {x.dtype} of {x.dim()} dimensions"]
    if not isinstance(form.mode, str) or not isinstance(form.antialias, bool):
        return ["its options are no constants"]
    reasons = mode_reasons(form.mode, form.align_corners)
    if (form.size is None) == (form.scale_factor is None):
        reasons.append("needs exactly one of size and scale_factor")
    if form.scale_factor is not None and not form.recompute:
        factors = _as_tuple(form.scale_factor)
        for axis, (before, after) in enumerate(zip(x.shape[2:], y.shape[2:], strict=True)):
            factor = factors[axis] if isinstance(factors, tuple) else factors
            if factor != 1 and same(before, after):
                reasons.append(f"scale factor {factor} keeps the size, and PyTorch resamples then")
                break
    return reasons


def is_map(tensor: Tensor | None) -> bool:
    """Whether the operators take it."""
    return (
        tensor is not None
        and 3 <= tensor.dim() <= 5
        and tensor.dtype in _spec.DTYPES
        and tensor.layout == torch.strided
        and not is_traceable_wrapper_subclass(tensor)  # such as a DTensor
    )


def is_pixel(tensor: Tensor) -> bool:
    """Whether a map has a single pixel."""
    return all(same(n, 1) for n in tensor.shape[2:])


def _repeats_pixels(node: Node, form: Expansion) -> bool:
    x, y = tensor_of(form.input), tensor_of(node)
    if x is None or y is None or not is_map(x) or x.dim() != y.dim():
        return False
    return is_pixel(x) and same_sizes(tuple(x.shape[:2]), tuple(y.shape[:2]))


def describe_users(node: Node) -> str:
    """Why an interpolation has no partner."""
    if len(node.users) > 1:
        return f"the resampled map has {len(node.users)} users: {_users(node)}"
    if not node.users:
        return "its result is not used"
    return (
        f"its result goes to {_users(node)}, not to a sum, a concatenation, a maximum, a loss or "
        "an argmax"
    )


def _users(node: Node) -> str:
    return ", ".join(map(name_of, node.users))


def name_of(node: Node) -> str:
    """How a report calls a node: by its name, and by that of what it calls."""
    if node.op == "output":
        return "the output"
    called = str(getattr(node.target, "__name__", node.target))
    return node.name if node.name.startswith(called) else f"{node.name} ({called})"
