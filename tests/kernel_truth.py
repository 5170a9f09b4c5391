"""Kernel calls with their true results, for the tests that run CUDA kernels on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from cases import Case
from harness import cases_io
from harness.cases_io import Expected
from torch import Tensor

from msr_cuda import _spec, reference, testing

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


class Truth:
    """One case in float64 by the reference, with everything that a kernel call takes or gives."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case, self.dtype = case, dtype
        self.accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        self.maps = case.maps(dtype, "cpu")
        self.weights = case.make_weights(self.accumulate, "cpu")
        self.call = case.prepared(self.maps)
        self.leaves = [x.detach().double().requires_grad_() for x in self.maps]
        self.weights64 = (
            None if self.weights is None else self.weights.detach().double().requires_grad_()
        )
        self.channels_last = bool(self.call.spec & _spec.CHANNELS_LAST)
        self.relu = _spec.has_activation(self.call.spec)
        linear = Case("", case.operator, (), {**case.kwargs}, case.weights)
        linear.kwargs.pop("activation", None)
        self.linear = linear.call(self.leaves, self.weights64, "reference")

    def common(self) -> dict[str, cases_io.Argument]:
        scales = None
        if self.call.flat_scales:
            scales = np.array(self.call.flat_scales)
        weights = None if self.weights is None else self.weights.numpy()
        return {
            "modes": self.call.spec & 0x7FFFFFFF,
            "cat": int(bool(self.call.spec & _spec.CAT)),
            "channels_last": int(self.channels_last),
            "acc_is_double": int(self.dtype == torch.float64),
            "scales": scales,
            "weights": weights,
        }

    def gather(self) -> cases_io.Case:
        output = self.linear.relu() if self.relu else self.linear
        shape = tuple(output.shape)
        bits = packed_bits(~(self.linear <= 0), self.channels_last)
        name = "double" if self.dtype == torch.float64 else "float"
        expected: dict[str, Expected] = {"out": within(output, self.dtype)}
        if self.relu:
            expected["mask"] = Expected(bits)
        return cases_io.Case(
            f"gather {self.case.name} {self.dtype}",
            "gather",
            {
                **self.common(),
                "inputs": [cases_io.from_torch(x) for x in self.maps],
                "out": empty(shape, self.channels_last, self.dtype),
                "mask": np.zeros_like(bits) if self.relu else None,
                "activation": int(self.relu),
            },
            expected,
            [f"gather_kernel<{name}>"],
        )

    def gated_gather(self) -> cases_io.Case:
        """The second derivative's gather: no activation, a gate instead."""
        gate = torch.rand(self.linear.shape) < 0.5
        name = "double" if self.dtype == torch.float64 else "float"
        return cases_io.Case(
            f"gated gather {self.case.name} {self.dtype}",
            "gather",
            {
                **self.common(),
                "inputs": [cases_io.from_torch(x) for x in self.maps],
                "out": empty(tuple(self.linear.shape), self.channels_last, self.dtype),
                "gate": packed_bits(gate, self.channels_last),
                "activation": 0,
            },
            {"out": within(self.linear * gate, self.dtype)},
            [f"gather_kernel<{name}>"],
        )

    def spread(self) -> cases_io.Case:
        grad = torch.randn_like(self.linear).to(self.dtype)
        if self.channels_last and len(self.case.name) % 2:
            grad = grad.to(memory_format=_spec.memory_format(True, grad.dim()))
        gated = grad.double()
        gate = None
        if self.relu:
            positive = ~(self.linear <= 0)
            gated = gated * positive
            gate = packed_bits(positive, self.channels_last)
        wanted = [*self.leaves, *([] if self.weights64 is None else [self.weights64])]
        truth = torch.autograd.grad(self.linear, wanted, gated, retain_graph=True)
        grads: list[cases_io.ArrayLike] = []
        expected: list[Expected] = []
        layouts, channel, norms = 0, 0, []
        for i, x in enumerate(self.maps):
            layouts |= int(bool(_spec.is_channels_last(x))) << i
            grads.append(empty(tuple(x.shape), bool(_spec.is_channels_last(x)), self.dtype))
            part = gated
            if self.case.operator == "resample_cat":
                part = gated.narrow(1, channel, x.shape[1])
                channel += x.shape[1]
            factor = 1.0 if self.weights is None else self.weights[i].item()
            mode, scale = self.call.modes[i], self.call.scale_factors[i]
            norm = testing.gradient_term_norm(part * factor, x.shape, mode, scale)
            expected.append(within(truth[i], self.dtype, norm))
            resampled = reference.resample_map(self.leaves[i], self.call.size, mode, scale)
            norms.append(((part * resampled) ** 2).sum().sqrt())
        outputs: dict[str, Expected | list[Expected | None]] = {"grads": list(expected)}
        name = "double" if self.dtype == torch.float64 else "float"
        launched = [f"spread_kernel<{name}>"]
        if self.weights is not None:
            outputs["dots"] = within(truth[-1], self.accumulate, torch.stack(norms))
            launched.append(f"sum_dots_kernel<{name}>")
        return cases_io.Case(
            f"spread {self.case.name} {self.dtype}",
            "spread",
            {
                **self.common(),
                "grad": cases_io.from_torch(grad),
                "grads": grads,
                "grads_channels_last": layouts,
                "wanted": (1 << len(grads)) - 1,
                "gate": gate,
                "values": None
                if self.weights is None
                else [cases_io.from_torch(x) for x in self.maps],
                "dots": None
                if self.weights is None
                else np.zeros(len(grads), str(self.accumulate)[6:]),
            },
            outputs,
            launched,
        )
