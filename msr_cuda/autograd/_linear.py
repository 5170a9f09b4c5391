"""Weighted sums and concatenations, their adjoint, and what all Functions share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import _ops, _spec

Size = Sequence[int]
_Made = TypeVar("_Made")


class Plan:
    """What a gather does with maps of given shapes, strides and dtypes: all but its tensors.

    Public functions keep plans from call to call, and a plan keeps what was worked out for a
    backward.

    Attributes:
        size, spec, scales, windows: of the raw operator.
        shapes: of the maps.
        layouts: what a spread is told about their gradients, but for which of them are wanted.
        num_max_pools: how many maps are max-pooled.
        extended: only the extended operator takes the call.
        plain: where there are no other tensors, the operator with the fewest arguments takes it.
        packed_size: of such a call, outside of graphs; or None.
        traced: it is part of a graph.
        saves: the forward keeps bits for the backward.
    """

    __slots__ = (
        "_kept", "extended", "layouts", "num_max_pools", "packed_size", "plain", "saves",
        "scales", "shapes", "size", "spec", "traced", "windows",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Sequence[Tensor],
        size: Size,
        spec: int,
        scales: Sequence[float] = (),
        windows: Sequence[int] = (),
    ) -> None:
        self.size, self.spec = tuple(size), spec
        self.scales, self.windows = list(scales), list(windows)
        self.shapes = [tuple(x.shape) for x in inputs]
        self.layouts = [_spec.request(x, False) for x in inputs]
        modes = [_spec.mode_of(spec, i) for i in range(len(self.shapes))]
        self.num_max_pools = modes.count(_spec.MAX_POOL)
        self.extended = bool(spec & _spec.RARE) or self.num_max_pools > 0
        self.plain = not (scales or windows or spec & _spec.LEAKY_GATE)
        self.packed_size: int | None = None
        self.traced = torch.compiler.is_compiling()
        if self.plain and not self.traced:
            self.packed_size = _spec.pack_size(self.size)
        self.saves = _spec.has_activation(spec)
        self._kept: dict[Hashable, Any] = {}

    def numbers(self) -> PlanNumbers:
        """What the plan was made of, but for the maps."""
        return PlanNumbers(self.size, self.spec, self.scales, self.windows)

    def keep(self, key: Hashable, make: Callable[..., _Made], *arguments: Any) -> _Made:
        """``make(self, *arguments)``, from an earlier call with this key if there was one."""
        if self.traced:
            return make(self, *arguments)  # a graph has sizes of its own, and no side effects
        found: _Made | None = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make(self, *arguments)
        return found

    def requests(self, needs: Sequence[bool]) -> list[int]:
        """What a spread is told, of the maps whose gradients are needed."""
        return [
            bits | _spec.REQUEST_WANTED if wanted else bits
            for bits, wanted in zip(self.layouts, needs, strict=True)
        ]


class PlanNumbers(NamedTuple):
    """What a graph passes instead of a plan: Dynamo takes symbols in tuples, not in objects."""

    size: Size
    spec: int
    scales: Sequence[float]
    windows: Sequence[int]


def made(plan: Plan | PlanNumbers, inputs: Sequence[Tensor]) -> Plan:
    """The plan; in a graph it is made where it is used, of the Function's own arguments."""
    return Plan(inputs, *plan) if isinstance(plan, PlanNumbers) else plan


class Adjoint:
    """The backward of an unweighted gather, but for its tensors."""

    __slots__ = (
        "arguments", "none", "passing", "places", "rare", "scales", "shared", "traced", "windows",
    )  # fmt: skip

    def __init__(self, plan: Plan, needs: Sequence[bool], gated: bool) -> None:
        """``needs``: whether gradients are needed of the maps; ``gated``: by way of a mask."""
        requests = plan.requests(needs)
        passed, left = passing(plan.shapes, plan.size, plan.spec, requests)
        self.passing: list[Passing] = []
        self.shared: list[tuple[int, int]] = []  # places of maps that have another's gradient
        if not gated:
            self.passing, requests = passed, left
        elif not plan.spec & (_spec.CAT | _spec.MAX):
            first: dict[int, int] = {}
            for one in passed:
                place = first.setdefault(requests[one.place], one.place)
                if place != one.place:
                    self.shared.append((one.place, place))
                    requests[one.place] &= ~_spec.REQUEST_WANTED
        self.places = [i for i, bits in enumerate(requests) if bits & _spec.REQUEST_WANTED]
        spec = _spec.replace_result(plan.spec, _spec.result_dtype(plan.spec))
        self.arguments = flat(plan.shapes), spec, packed(requests)
        self.none: list[Tensor | None] = [None] * len(needs)
        self.scales, self.windows = plan.scales, plan.windows
        self.rare = bool(self.windows or spec & _spec.LEAKY_GATE)
        self.traced = plan.traced

    def gradients(self, grad: Tensor, gate: Tensor | None) -> list[Tensor | None]:
        """Of the maps; those of maps that passed through are views of ``grad``.

        Maps that passed through a mask together have one gradient, as those of ``a + b`` have.
        """
        grads = self.none.copy()
        for one in self.passing:
            grads[one.place] = one.converted(one.view(grad))
        if not self.places:
            return grads
        found: Sequence[Tensor]
        if self.traced or self.rare:
            found = raw_spread(grad, gate, None, (), *self.arguments, self.scales, self.windows)[0]
        elif gate is None and not self.scales:
            found = _ops.spread_short(grad, *self.arguments)
        else:
            found = _ops.spread_full_short(grad, gate, None, (), *self.arguments, self.scales)[0]
        for place, value in zip(self.places, found, strict=True):
            grads[place] = value
        for place, other in self.shared:
            grads[place] = grads[other]
        return grads


class GatherFunction(torch.autograd.Function):
    """``relu(gate * sum_i w_i R_i(x_i))`` with weights [S], or its concatenation."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan | PlanNumbers,
        weights: Tensor | None,
        gate: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        if isinstance(plan, PlanNumbers):
            plan = made(plan, inputs)
        ctx.plan = plan
        if plan.saves:
            output, gate = raw_gather(plan, inputs, weights, gate, plan.spec | _spec.SAVE)
        else:
            output = raw_gather(plan, inputs, weights, gate, plan.spec)[0]
        if weights is not None and ctx.needs_input_grad[1]:
            ctx.save_for_backward(weights, gate, *inputs)
        elif weights is not None or gate is not None:
            ctx.save_for_backward(weights, gate)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        plan, needs = ctx.plan, ctx.needs_input_grad[3:]
        saved = ctx.saved_tensors
        weights, gate, *values = saved if saved else (None, None)
        d_weights: Tensor | None = None
        if twice():
            grads, d_weights = _higher_gradients(plan, needs, grad, gate, weights, values)
        elif weights is None:
            gated = gate is not None
            grads = plan.keep((needs, gated), Adjoint, needs, gated).gradients(grad, gate)
        else:
            requests = plan.requests(needs)
            wanted, dots = raw_spread(
                grad, gate, weights, values, flat(plan.shapes), plan.spec, packed(requests),
                plan.scales, plan.windows,
            )  # fmt: skip
            grads = spaced(wanted, requests)
            d_weights = dots if values else None
        return None, d_weights, None, *grads


class SpreadFunction(torch.autograd.Function):
    """``(R_i^T(gate * grad))_i`` for the wanted branches: linear in ``grad``."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        gate: Tensor | None,
        shapes: Sequence[Size],
        spec: int,
        requests: Sequence[int],
        scales: Sequence[float],
        windows: Sequence[int],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(gate)
        ctx.shapes, ctx.spec, ctx.requests = shapes, spec, requests
        ctx.scales, ctx.windows = scales, windows
        ctx.size, ctx.dtype = tuple(grad.shape[2:]), grad.dtype
        sizes, bits = flat(shapes), packed(requests)
        return tuple(raw_spread(grad, gate, None, (), sizes, spec, bits, scales, windows)[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gate,) = ctx.saved_tensors
        spec = _spec.replace_result(ctx.spec, ctx.dtype)
        remaining = iter(grad_outputs)
        # A branch that was not wanted contributes zeros; expanded, they take no memory.
        inputs = [
            next(remaining)
            if bits & _spec.REQUEST_WANTED
            else grad_outputs[0].new_zeros(()).expand(shape)
            for shape, bits in zip(ctx.shapes, ctx.requests, strict=True)
        ]
        plan = Plan(inputs, ctx.size, spec, ctx.scales, ctx.windows)
        d_grad = GatherFunction.apply(plan, None, gate, *inputs)
        return d_grad, None, None, None, None, None, None


def twice() -> bool:
    """Whether a backward that runs now may itself be differentiated.

    While a graph is compiled it is not (AOTAutograd has no double backward), although grad mode is
    on.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def flat(shapes: Sequence[Size]) -> list[int]:
    return [size for shape in shapes for size in shape]


def packed(requests: Sequence[int]) -> int:
    return sum(bits << (4 * i) for i, bits in enumerate(requests))


def spaced(grads: Sequence[Tensor], requests: Sequence[int]) -> list[Tensor | None]:
    """The wanted gradients at the places of their inputs, None elsewhere."""
    remaining = iter(grads)
    return [next(remaining) if bits & _spec.REQUEST_WANTED else None for bits in requests]


def raw_gather(
    plan: Plan, inputs: Sequence[Tensor], weights: Tensor | None, gate: Tensor | None, spec: int
) -> tuple[Tensor, Tensor | None]:
    """The result and its mask, by the overload with the fewest arguments.

    ``spec``: the plan's, perhaps with more bits.
    """
    size, saves = plan.packed_size, bool(spec & _spec.SAVE)
    if size is not None and weights is None and gate is None:
        if saves:
            return _ops.gather_saving(inputs, size, spec)
        if len(inputs) == 1:
            return _ops.gather_one(inputs[0], size, spec), None
        return _ops.gather_packed(inputs, size, spec), None
    if plan.windows or spec & _spec.LEAKY_GATE:
        output, mask, _ = _ops.gather_extended(
            inputs, weights, None, gate, None, plan.size, spec, plan.scales, plan.windows
        )
        return output, mask
    if plan.plain and weights is None and gate is None and not saves:
        return _ops.gather(inputs, plan.size, spec), None
    return _ops.gather_full(inputs, weights, gate, plan.size, spec, plan.scales)


def raw_spread(
    grad: Tensor,
    gate: Tensor | None,
    weights: Tensor | None,
    values: Sequence[Tensor],
    sizes: Sequence[int],
    spec: int,
    requests: int,
    scales: Sequence[float],
    windows: Sequence[int],
) -> tuple[Sequence[Tensor], Tensor | None]:
    """The wanted gradients and those of the weights [S], likewise."""
    if windows or spec & _spec.LEAKY_GATE:
        return _ops.spread_extended(
            grad, gate, weights, None, values, [], sizes, spec, requests, scales, windows
        )
    if gate is None and weights is None and not scales:
        return _ops.spread(grad, sizes, spec, requests), None
    return _ops.spread_full(grad, gate, weights, values, sizes, spec, requests, scales)


class Passing:
    """A map that passed through: its gradient is part of the result's."""

    __slots__ = ("begin", "channels", "dtype", "place")

    def __init__(self, place: int, begin: int, channels: int | None, dtype: torch.dtype) -> None:
        """The map's place among the inputs; its channels in a concatenation; its dtype."""
        self.place, self.begin, self.channels, self.dtype = place, begin, channels, dtype

    def view(self, grad: Tensor) -> Tensor:
        return grad if self.channels is None else grad.narrow(1, self.begin, self.channels)

    def converted(self, view: Tensor) -> Tensor:
        """In the map's dtype: itself if it has it."""
        return view if view.dtype == self.dtype else view.to(self.dtype)


def passing(
    shapes: Sequence[Size], size: Size, spec: int, requests: Sequence[int], weighted: int = 0
) -> tuple[list[Passing], list[int]]:
    """The maps that passed through, and what is requested of the others.

    Args:
        shapes, spec, requests: of the maps.
        size: of the result.
        weighted: how many of the first maps have weights.
    """
    batch = next((shape[0] for shape in shapes if shape[0] != 1), 1)
    found: list[Passing] = []
    left = list(requests)
    channel = 0
    for i, shape in enumerate(shapes):
        passes = shape[0] == batch and tuple(shape[2:]) == tuple(size) and i >= weighted
        # A pooling may change a map and keep its size.
        passes = passes and _spec.mode_of(spec, i) < _spec.AVERAGE_POOL
        if passes and requests[i] & _spec.REQUEST_WANTED:
            dtype = _spec.DTYPES[requests[i] >> _spec.REQUEST_DTYPE_SHIFT]
            found.append(Passing(i, channel, shape[1] if spec & _spec.CAT else None, dtype))
            left[i] &= ~_spec.REQUEST_WANTED
        channel += shape[1]
    return found, left


def spread(
    grad: Tensor,
    gate: Tensor | None,
    shapes: Sequence[Size],
    spec: int,
    requests: Sequence[int],
    scales: Sequence[float],
    windows: Sequence[int],
) -> list[Tensor | None]:
    """Gradients of an unweighted gather that can be differentiated again."""
    grads: list[Tensor | None] = [None] * len(shapes)
    left = list(requests)
    if gate is None:
        passed, left = passing(shapes, grad.shape[2:], spec, requests)
        for one in passed:
            grads[one.place] = one.converted(one.view(grad))
    if any(bits & _spec.REQUEST_WANTED for bits in left):
        found = SpreadFunction.apply(grad, gate, shapes, spec, left, scales, windows)
        for i, value in enumerate(spaced(found, left)):
            if value is not None:
                grads[i] = value
    return grads


def _higher_gradients(
    plan: Plan,
    needs: Sequence[bool],
    grad: Tensor,
    gate: Tensor | None,
    weights: Tensor | None,
    values: Sequence[Tensor],
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients of the maps and the weights as a differentiable expression.

    ``dx_i = w_i u_i`` and ``dw_i = <u_i, x_i>`` with ``u_i = R_i^T(gate * grad)``.
    """
    requests = plan.requests(needs)
    if values:
        requests = [bits | _spec.REQUEST_WANTED for bits in requests]
    unweighted = spread(grad, gate, plan.shapes, plan.spec, requests, plan.scales, plan.windows)
    if weights is None:
        return unweighted, None
    grads: list[Tensor | None] = []
    for i, (u, wanted) in enumerate(zip(unweighted, needs, strict=True)):
        grads.append((u * weights[i]).to(u.dtype) if wanted and u is not None else None)
    if not values:
        return grads, None
    dots = [
        (u.to(weights.dtype) * x.to(weights.dtype)).sum()
        for u, x in zip(unweighted, values, strict=True)
        if u is not None
    ]
    return grads, torch.stack(dots)
