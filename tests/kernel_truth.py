"""Kernel calls with their true results, for the tests that run CUDA kernels on the CPU."""

from __future__ import annotations

from functools import reduce
from operator import mul

import numpy as np
import torch
from cases import Case
from harness import cases_io
from harness.cases_io import Expected
from torch import Tensor

from msr_cuda import Pool, _spec, reference, testing

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def packed_bits(positive: Tensor, channels_last: bool) -> np.ndarray:
    """The bitmask of a result: in its memory's order, padded to whole 32-bit words."""
    if channels_last:
        positive = positive.movedim(1, -1)
    bits = np.packbits(positive.flatten().numpy(), bitorder="little")
    return np.pad(bits, (0, -len(bits) % 4))


def within(truth: Tensor, dtype: torch.dtype, term_norm: Tensor | None = None) -> Expected:
    allowed = testing.allowed_error(truth, dtype, term_norm)
    return Expected(truth.detach().numpy(), 0.0, allowed.detach().numpy())


def empty(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> cases_io.ArrayLike:
    strides = _spec.dense_strides(shape, channels_last)
    return cases_io.from_torch(torch.empty_strided(shape, strides, dtype=dtype))


def with_gaps(values: Tensor) -> Tensor:
    """The same values in a view with gaps on every axis."""
    room = torch.zeros([2 * s + 1 for s in values.shape], dtype=values.dtype)
    view = room[tuple(slice(1, None, 2) for _ in values.shape)]
    return view.copy_(values)


def gate_factors(gate: Tensor, off: float) -> Tensor:
    """What a gate multiplies with, in float64; ``off`` where its bits are 0."""
    return torch.full(gate.shape, off, dtype=torch.float64).masked_fill(gate, 1.0)


def passes(z: Tensor, activation: str | None) -> Tensor:
    """Where the derivative of a ReLU-like activation is one."""
    if activation == "leaky_relu":
        return z > 0
    return ~(z <= 0) & ~(z >= 6) if activation == "relu6" else ~(z <= 0)


def taken_elements(x: Tensor, pool: Pool, size: tuple[int, ...]) -> np.ndarray:
    """The element of each window that a max-pooling takes, by a loop over the windows.

    NaN before any number, the last of several; of equal numbers the first. Elements are counted in
    rows, those in the padding included.
    """
    windows = [pool.window(axis, n)[:3] for axis, n in enumerate(x.shape[2:])]
    taken = np.zeros((*x.shape[:2], *size), np.int64)
    for at in np.ndindex(*size):
        best = torch.full(x.shape[:2], -torch.inf, dtype=x.dtype)
        number = torch.full(x.shape[:2], -1)
        for code, place in enumerate(np.ndindex(*[kernel for kernel, _, _ in windows])):
            element = [
                o * stride - lo + k
                for o, (_, stride, lo), k in zip(at, windows, place, strict=True)
            ]
            if not all(0 <= e < n for e, n in zip(element, x.shape[2:], strict=True)):
                continue
            value = x[(slice(None), slice(None), *element)]
            better = (value > best) | value.isnan() | (number < 0)
            best, number = torch.where(better, value, best), number.where(~better, code)
        taken[(slice(None), slice(None), *at)] = number.numpy()
    return taken


class Truth:
    """One case in float64 by the reference, with everything that a kernel call takes or gives."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        self.maps = case.maps(dtype, "cpu")
        self.call = case.prepared(self.maps)
        self.channels_last = bool(self.call.spec & _spec.CHANNELS_LAST)
        self.cat = bool(self.call.spec & _spec.CAT)
        self.maximum = bool(self.call.spec & _spec.MAX)
        self.activation = self.call.activation
        self.weights64: Tensor | None = None
        self.pixels64: Tensor | None = None
        self._set_factors()
        self.modes: list[_spec.Source] = [*self.call.modes]
        self.scale_factors = [*self.call.scale_factors]
        if len(self.maps) > len(self.modes):  # a bias: a map of one pixel
            self.modes.append(_spec.Mode.NEAREST)
            self.scale_factors.append(None)
        self.leaves = [x.detach().double().requires_grad_() for x in self.maps]
        self._resample()

    def _set_factors(self) -> None:
        """Maps, weights and pixel weights: scale is a factor of every map, bias one map more."""
        parameters = self.case.make_parameters(self.accumulate, "cpu")
        kwargs = self.case.kwargs
        count, rank = len(self.maps), len(self.call.size)
        self.scales, self.windows = list(self.call.flat_scales), list(self.call.windows)
        weights, pixels = parameters.get("weights"), None
        if weights is not None:
            weights = reference.normalized_weights(
                weights, kwargs.get("normalize"), kwargs.get("eps", 1e-4), self.accumulate
            )
        if weights is not None and weights.dim() > 3:
            weights, pixels = None, weights
        scale, bias = parameters.get("scale"), parameters.get("bias")
        factor = kwargs.get("out_scale", 1.0) * (1.0 if scale is None else scale)
        if weights is None and (isinstance(factor, Tensor) or factor != 1.0):
            weights = torch.ones(1, count, 1, dtype=self.accumulate)
        # With a bias, not all maps have weights: [S] is for all.
        if weights is not None and (weights.dim() == 2 or scale is not None or bias is not None):
            weights = weights if weights.dim() == 3 else weights.view(1, count, -1)
        self.weights = None if weights is None else (weights * factor).contiguous()
        self.pixel_weights = pixels
        if bias is not None:
            self.maps.append(bias.view(1, -1, *[1] * rank))
            self.scales += [0.0] * rank if self.scales else []
            self.windows += [1, 1, 0] * rank if self.windows else []
        if self.weights is not None:
            self.weights64 = self.weights.detach().double().requires_grad_()
        if pixels is not None:  # each image has its own gradient
            expanded = pixels.detach().double().expand(self.call.batch, *pixels.shape[1:])
            self.pixels64 = expanded.clone().requires_grad_()

    def _factor(self, i: int) -> Tensor:
        """What map ``i`` is multiplied with, in float64: broadcast to the result."""
        one = torch.ones([1] * self.maps[0].dim(), dtype=torch.float64)
        factors = [one]
        w, p, rank = self.weights64, self.pixels64, len(self.call.size)
        if w is not None and w.dim() == 1:
            factors.append(w[i] * one)
        elif w is not None and i < w.shape[1]:
            factors.append(w[:, i].view(w.shape[0], w.shape[2], *[1] * rank))
        if p is not None and i < p.shape[1]:
            factors.append(p[:, i])
        return reduce(mul, factors)

    def _resample(self) -> None:
        """Sets what is activated, and the parts of it that are each map's."""
        call = self.call
        self.resampled = [
            reference.resample_map(x, call.size, mode, scale)
            for x, mode, scale in zip(self.leaves, self.modes, self.scale_factors, strict=True)
        ]
        terms = [
            (r * self._factor(i)).expand(call.batch, *r.shape[1:])
            for i, r in enumerate(self.resampled)
        ]
        self.wins = [torch.ones_like(t, dtype=torch.bool) for t in terms]
        if self.cat:
            self.linear = torch.cat(terms, 1)
        elif not self.maximum:
            self.linear = reduce(torch.add, terms)
        else:
            winner = torch.stack(terms).detach().argmax(0)  # of equal values the first
            self.wins = [winner == i for i in range(len(terms))]
            self.linear = torch.where(torch.stack(self.wins), torch.stack(terms), 0.0).sum(0)
        self.terms = terms

    @property
    def kernel_type(self) -> str:
        return "double" if self.dtype == torch.float64 else "float"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.linear.shape)

    def slice_of(self, i: int, common: Tensor) -> Tensor:
        """The channels of a map of the result's size that branch ``i`` has."""
        if not self.cat:
            return common
        channels = [x.shape[1] for x in self.maps]
        return common.narrow(1, sum(channels[:i]), channels[i])

    def common(self) -> dict[str, cases_io.Argument]:
        pixels = self.pixel_weights
        return {
            "modes": np.array([_spec.mode_of(self.call.spec, i) for i in range(len(self.maps))]),
            "cat": int(self.cat),
            "reduction": int(self.maximum),
            "channels_last": int(self.channels_last),
            "acc_is_double": int(self.dtype == torch.float64),
            "scales": np.array(self.scales) if self.scales else None,
            "windows": np.array(self.windows) if self.windows else None,
            "weights": None if self.weights is None else self.weights.numpy(),
            "pixel_weights": None if pixels is None else pixels.flatten(2).numpy(),
        }

    def kernels(self, *names: str) -> list[str]:
        """Those that a call launches: ``names``, and what fills tables of windows if there are."""
        found = [f"msr::{name}<{self.kernel_type}>" for name in names]
        for x, mode in zip(self.maps, self.modes, strict=True):
            pools = isinstance(mode, Pool) and mode.kind == "avg"
            resized = tuple(x.shape[2:]) != tuple(self.call.size)
            listed = isinstance(mode, _spec.Mode) and mode > _spec.LAST_TWO_TAP_MODE
            if pools or (listed and resized):
                return [*found, f"msr::window_tables_kernel<{self.kernel_type}>"]
        return found

    def indices(self) -> list[Expected | None]:
        """Where each max-pooling found its values, in the order of the result's memory."""
        found: list[Expected | None] = []
        for x, mode in zip(self.leaves, self.modes, strict=True):
            if not (isinstance(mode, Pool) and mode.kind == "max"):
                found.append(None)
                continue
            taken = taken_elements(x.detach(), mode, self.call.size)
            kernel = [mode.window(axis, n)[0] for axis, n in enumerate(x.shape[2:])]
            if self.channels_last:
                taken = np.moveaxis(taken, 1, -1)
            dtype = np.int32 if np.prod(kernel) > 256 else np.uint8
            found.append(Expected(taken.flatten().astype(dtype)))
        return found

    def _case(
        self,
        what: str,
        arguments: dict[str, cases_io.Argument],
        expected: dict[str, Expected | list[Expected | None]],
        kernel: str = "gather_kernel",
        function: str = "gather",
    ) -> cases_io.Case:
        """A gather, or a call that takes its arguments."""
        return cases_io.Case(
            f"{what} {self.case.name} {self.dtype}",
            function,
            {
                **self.common(),
                "inputs": [cases_io.from_torch(x) for x in self.maps],
                "activation": 0,
                **arguments,
            },
            expected,  # type: ignore[arg-type]
            self.kernels(kernel),
        )

    def gather(self) -> cases_io.Case:
        output = reference.activate(self.linear, self.activation)
        expected: dict[str, Expected | list[Expected | None]] = {"out": within(output, self.dtype)}
        masks = []
        if self.maximum:
            has_zeros = self.activation in ("relu", "relu6")
            passing = passes(self.linear, self.activation) | (not has_zeros)
            masks = [packed_bits(wins & passing, self.channels_last) for wins in self.wins]
        elif self.activation in _spec.BIT_ACTIVATIONS:
            masks = [packed_bits(passes(self.linear, self.activation), self.channels_last)]
        if masks:
            expected["mask"] = Expected(np.concatenate(masks))
        indices = self.indices()
        if any(index is not None for index in indices):
            expected["index"] = indices
        return self._case(
            "gather",
            {
                "out": empty(self.shape, self.channels_last, self.dtype),
                "mask": np.zeros_like(np.concatenate(masks)) if masks else None,
                "index": [None if i is None else np.zeros_like(i.values) for i in indices]
                if "index" in expected
                else None,
                "activation": _spec.ACTIVATIONS.index(self.activation),
            },
            expected,
        )

    def gather_by_images(self) -> cases_io.Case:
        """Each image of the batch as an independent gather of one launch."""
        output = reference.activate(self.linear, self.activation)
        return self._case(
            "gather by images",
            {
                "out": empty(self.shape, self.channels_last, self.dtype),
                "activation": _spec.ACTIVATIONS.index(self.activation),
            },
            {"out": within(output, self.dtype)},
            kernel="gather_many_kernel",
            function="gather_many",
        )

    def gated_gather(self) -> cases_io.Case:
        """The second derivative's gather: no activation, a gate instead."""
        gate = torch.rand(self.shape) < 0.5
        off = _spec.LEAKY_SLOPE if self.activation == "leaky_relu" else 0.0
        return self._case(
            "gated gather",
            {
                "out": empty(self.shape, self.channels_last, self.dtype),
                "gate": packed_bits(gate, self.channels_last),
                "gate_off": off,
            },
            {"out": within(self.linear * gate_factors(gate, off), self.dtype)},
        )

    def gather_onto(self) -> cases_io.Case:
        """Adds to what a view with gaps holds, before the activation."""
        before = with_gaps(torch.randn(self.shape).to(self.dtype))
        output = reference.activate(self.linear + before.double(), self.activation)
        return self._case(
            "gather onto",
            {
                "out": cases_io.from_torch(with_gaps(torch.zeros(self.shape, dtype=self.dtype))),
                "before": cases_io.from_torch(before),
                "activation": _spec.ACTIVATIONS.index(self.activation),
            },
            {"out": within(output, self.dtype)},
        )

    def into_slice(self) -> cases_io.Case:
        """Into channels of a wider map, whose other channels are left alone."""
        call = self.gather()
        batch, channels, *rest = self.shape
        wider = (batch, 2 * channels, *rest)
        strides = _spec.dense_strides(wider, self.channels_last)
        out = torch.empty_strided(wider, strides, dtype=self.dtype).narrow(1, channels, channels)
        return cases_io.Case(
            f"into slice {call.name}", call.function,
            {**call.arguments, "out": cases_io.from_torch(out)}, call.expected, call.kernels,
        )  # fmt: skip

    def activation_gradient(self) -> cases_io.Case:
        """``grad * act'(z)``, computed again from the maps, in the accumulation type."""
        grad = torch.randn(self.shape).to(self.dtype)
        z = self.linear.detach().requires_grad_()
        (truth,) = torch.autograd.grad(reference.activate(z, self.activation), z, grad.double())
        return self._case(
            "activation gradient",
            {
                "out": empty(self.shape, self.channels_last, self.accumulate),
                "grad": cases_io.from_torch(grad),
                "activation": _spec.ACTIVATIONS.index(self.activation),
            },
            {"out": within(truth, self.accumulate)},
        )

    def pixel_weight_grads(self) -> cases_io.Case:
        """Of the branches that have them, behind a gate that lets a little through everywhere."""
        assert self.pixels64 is not None
        count, rank = self.pixels64.shape[1], len(self.call.size)
        grad = torch.randn(self.shape).to(self.dtype)
        gate = torch.rand(self.shape) < 0.5
        gated = grad.double() * gate_factors(gate, _spec.LEAKY_SLOPE)
        (truth,) = torch.autograd.grad(self.linear, self.pixels64, gated, retain_graph=True)
        squares = [
            ((t / p.unsqueeze(1) * gated) ** 2).sum(1)
            for t, p in zip(self.terms[:count], self.pixels64[:, :, 0].unbind(1), strict=True)
        ]
        norm = torch.stack(squares, 1).sqrt().flatten(2)
        case = self._case(
            "pixel weights of",
            {
                "inputs": [cases_io.from_torch(x) for x in self.maps[:count]],
                "scales": np.array(self.scales[: count * rank]) if self.scales else None,
                "windows": np.array(self.windows[: 3 * count * rank]) if self.windows else None,
                "pixel_weights": None,
                "grad": cases_io.from_torch(grad),
                "gate": packed_bits(gate, self.channels_last),
                "gate_off": _spec.LEAKY_SLOPE,
                "found": np.zeros(norm.shape, str(self.accumulate)[6:]),
            },
            {"found": within(truth.flatten(2), self.accumulate, norm)},
            "pixel_weight_grads_kernel",
        )
        return cases_io.Case(
            case.name, "pixel_weight_grads", case.arguments, case.expected, case.kernels
        )

    def spread(self) -> cases_io.Case:
        grad = torch.randn(self.shape).to(self.dtype)
        if self.channels_last and len(self.case.name) % 2:
            grad = grad.to(memory_format=_spec.memory_format(True, grad.dim()))
        gates: list[Tensor] = []
        off = _spec.LEAKY_SLOPE if self.activation == "leaky_relu" and not self.maximum else 0.0
        if self.maximum:
            gates = self.wins
        elif self.activation in _spec.BIT_ACTIVATIONS:
            gates = [passes(self.linear, self.activation)]
        parts = []
        for i in range(len(self.maps)):
            part = grad.double()
            if gates:
                part = part * gate_factors(gates[i if self.maximum else 0], off)
            parts.append(self.slice_of(i, part))
        total = sum((p * t).sum() for p, t in zip(parts, self.terms, strict=True))
        wanted = [*self.leaves, *([] if self.weights64 is None else [self.weights64])]
        truth = torch.autograd.grad(total, wanted, retain_graph=True)
        grads: list[cases_io.ArrayLike] = []
        expected: list[Expected | None] = []
        layouts = 0
        for i, x in enumerate(self.maps):
            layouts |= int(bool(_spec.is_channels_last(x))) << i
            grads.append(empty(tuple(x.shape), bool(_spec.is_channels_last(x)), x.dtype))
            norm = testing.gradient_term_norm(
                parts[i] * self._factor(i), x.shape, self.modes[i], self.scale_factors[i]
            )
            expected.append(within(truth[i], x.dtype, norm))
        outputs: dict[str, Expected | list[Expected | None]] = {"grads": expected}
        arguments: dict[str, cases_io.Argument] = {
            **self.common(),
            "grad": cases_io.from_torch(grad),
            "grads": grads,
            "grads_channels_last": layouts,
            "wanted": (1 << len(grads)) - 1,
            "gate": np.concatenate([packed_bits(g, self.channels_last) for g in gates])
            if gates
            else None,
            "gate_off": off,
        }
        indices = self.indices()
        if any(index is not None for index in indices):
            arguments["index"] = [None if index is None else index.values for index in indices]
        names = ["spread_kernel"]
        if self.weights is not None:
            norms = self._weight_norms(parts)
            outputs["dots"] = within(truth[-1], self.accumulate, norms)
            arguments["values"] = [cases_io.from_torch(x) for x in self.maps]
            arguments["dots"] = np.zeros(tuple(norms.shape), str(self.accumulate)[6:])
            names.append("sum_dots_kernel")
        return cases_io.Case(
            f"spread {self.case.name} {self.dtype}", "spread", arguments, outputs,
            self.kernels(*names),
        )  # fmt: skip

    def _weight_norms(self, parts: list[Tensor]) -> Tensor:
        """The root of the sum of the squared terms of each weight's gradient."""
        assert self.weights64 is not None
        weights = self.weights64
        norms = []
        for i in range(weights.shape[min(1, weights.dim() - 1)]):
            terms = parts[i] * self.resampled[i]
            if self.pixels64 is not None and i < self.pixels64.shape[1]:
                terms = terms * self.pixels64[:, i]
            squares = (terms.detach() ** 2).flatten(2).sum(2)  # [N, C]
            if weights.dim() == 1:
                norms.append(squares.sum())
                continue
            if weights.shape[0] == 1:
                squares = squares.sum(0, keepdim=True)
            norms.append(squares.sum(1, keepdim=True) if weights.shape[2] == 1 else squares)
        return torch.stack(norms, min(1, weights.dim() - 1)).sqrt()


def transposed_cases(
    shape: tuple[int, ...], others: list[tuple[int, ...]], mode: _spec.Source, dtype: torch.dtype
) -> list[cases_io.Case]:
    """A gather by the transposed operators into ``shape``, and the spread that is its adjoint.

    The operators resample a map of ``shape`` to those of ``others``.
    """
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    leaf = torch.randn(shape).to(dtype).double().requires_grad_()
    windows: list[int] = []
    number = int(mode) if isinstance(mode, _spec.Mode) else _spec.AVERAGE_POOL
    if isinstance(mode, Pool):
        numbers = [n for axis, n in enumerate(shape[2:]) for n in mode.window(axis, n)[:3]]
        windows = numbers * len(others)
    maps = [torch.randn(other).to(dtype) for other in others]
    common: dict[str, cases_io.Argument] = {
        "modes": np.full(len(others), number),
        "cat": 0,
        "transposed": 1,
        "channels_last": 0,
        "acc_is_double": int(dtype == torch.float64),
        "windows": np.array(windows) if windows else None,
    }
    image = (1, *shape[1:])
    total = torch.zeros(shape, dtype=torch.float64)
    squares = torch.zeros(shape, dtype=torch.float64)
    forward, norms = [], []
    for x in maps:
        own = image if x.shape[0] == 1 else shape
        start = torch.zeros(own, dtype=torch.float64, requires_grad=True)
        resampled = reference.resample_map(start, x.shape[2:], mode)
        total = total + torch.autograd.grad(resampled, start, x.double())[0]
        squares = squares + testing.gradient_term_norm(x, own, mode) ** 2
        value = reference.resample_map(leaf.detach(), x.shape[2:], mode)
        forward.append(value.sum(0, keepdim=True) if x.shape[0] == 1 else value)
        norms.append(torch.full_like(forward[-1], float(leaf.detach().abs().max())))
    name = "double" if dtype == torch.float64 else "float"
    what = f"{mode} {shape} {dtype}"
    gather = cases_io.Case(
        f"transposed gather {what}",
        "gather",
        {
            **common,
            "inputs": [cases_io.from_torch(x) for x in maps],
            "out": empty(shape, False, dtype),
        },
        {"out": within(total, dtype, squares.sqrt())},
        [f"msr::gather_kernel<{name}>"],
    )
    spread = cases_io.Case(
        f"transposed spread {what}",
        "spread",
        {
            **common,
            "grad": cases_io.from_torch(leaf.detach().to(dtype)),
            "grads": [empty(other, False, accumulate) for other in others],
            "grads_channels_last": 0,
            "wanted": (1 << len(others)) - 1,
        },
        {"grads": [within(v, accumulate, n) for v, n in zip(forward, norms, strict=True)]},
        [f"msr::spread_kernel<{name}>"],
    )
    return [gather, spread]
