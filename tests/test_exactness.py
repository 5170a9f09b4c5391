"""What holds exactly, or to rounding: sums of weights, constant maps, adjoints."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import CASES, EXTENDED_CASES, WINDOW_CASES, Case
from torch import Tensor

import msr_cuda
from msr_cuda import Pool, _spec, testing

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
every_rank = pytest.mark.parametrize("rank", [1, 2, 3], ids=["1d", "2d", "3d"])

#: All that resamples by weights which sum to one: arguments by name.
MODES: dict[str, dict[str, Any]] = {
    "nearest": dict(mode="nearest"),
    "nearest-exact": dict(mode="nearest-exact"),
    "linear": dict(mode="linear"),
    "linear-corners": dict(mode="linear", align_corners=True),
    "cubic": dict(mode="cubic"),
    "cubic-corners": dict(mode="cubic", align_corners=True),
    "area": dict(mode="area"),
    "linear-antialias": dict(mode="linear", antialias=True),
    "linear-antialias-corners": dict(mode="linear", antialias=True, align_corners=True),
    "cubic-antialias": dict(mode="cubic", antialias=True),
    "cubic-antialias-corners": dict(mode="cubic", antialias=True, align_corners=True),
    "lanczos-antialias": dict(mode="lanczos", antialias=True),
}
every_mode = pytest.mark.parametrize("mode", MODES)
#: Sizes of an axis before and after: up and down; odd, whole and extreme ratios.
AXES = (
    (5, 11), (11, 5), (13, 7), (4, 8), (8, 4), (9, 3), (6, 6), (1, 9), (9, 1), (31, 32),
    (7, 64), (1, 128), (256, 1), (480, 1), (3, 257), (480, 7), (97, 13),
)  # fmt: skip


def sizes(rank: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Sizes of maps before and after; beyond one axis, long ones are beside short ones."""
    if rank == 1:
        return [((n,), (m,)) for n, m in AXES]
    short = [pair for pair in AXES if max(pair) <= 13]
    found = []
    for i, first in enumerate(AXES):
        others = [short[(i + k) % len(short)] for k in range(1, rank)]
        axes = [first, *others][i % rank :] + [first, *others][: i % rank]
        found.append((tuple(n for n, _ in axes), tuple(m for _, m in axes)))
    return found


@every_dtype
@every_mode
@pytest.mark.parametrize("rank", [2, 3], ids=["2d", "3d"])
def test_gradient_of_one_pixel_counts_the_result(
    mode: str, dtype: torch.dtype, rank: int, device: str, impl: str
) -> None:
    """16384 ones: float16 sums end at 2048, bfloat16 ones at 256."""
    size = (128, 128) if rank == 2 else (8, 32, 64)
    for layout in (False, True):
        x = torch.randn(2, 3, *[1] * rank, dtype=dtype, device=device)
        x = x.to(memory_format=_spec.memory_format(layout, rank + 2)).requires_grad_()
        y = msr_cuda.resample(x, size, **MODES[mode], impl=impl)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        if impl == "kernel" or dtype in (torch.float16, torch.bfloat16):
            assert torch.equal(grad, torch.full_like(grad, 16384)), layout
        else:  # PyTorch adds up the reference's in another order
            testing.assert_within(grad, torch.full_like(grad, 16384, dtype=torch.float64))


def rounding(modes: list[_spec.Source], shape: Tensor | tuple[int, ...], size: Any) -> float:
    """How far a constant may move, in units of eps times its value.

    Two per result where no axis has more than two taps. Else ``3 sqrt(n) u`` times the sum of the
    weights' absolute values, for n taps over all axes and u of half a unit (Higham and Mary, A New
    Approach to Probabilistic Rounding Error Analysis, 2019): weights sum to one, but partial sums
    round, and with negative lobes they are larger than the result.
    """
    taps, total, most = 0, 1.0, 0
    for axis, (n, m) in enumerate(zip(shape, size, strict=True)):
        matrix = testing.axis_matrix(modes[0], int(n), m, axis=axis)
        count = int((matrix != 0).sum(1).max())
        taps, most = taps + count, max(most, count)
        total *= float(matrix.abs().sum(1).max())
    return 2.0 if most <= 2 else max(2.0, 1.5 * math.sqrt(taps) * total)


@every_dtype
@every_rank
@every_mode
def test_constant_maps_stay_constant(
    mode: str, rank: int, dtype: torch.dtype, device: str, impl: str
) -> None:
    for i, (before, after) in enumerate(sizes(rank)):
        value = (1.0, 0.1, -3.14159, 1000.7, 1.9999)[i % 5]
        x = torch.full((1, 3, *before), value, device=device, dtype=dtype)
        if i % 2:
            x = x.transpose(1, -1).contiguous().transpose(1, -1)
        call = Case(mode, "resample", (), {**MODES[mode], "size": after}).prepared([x])
        y = msr_cuda.resample(x, after, **MODES[mode], impl=impl)
        # The CPU's long sums of float32 make up for what rounding loses.
        makes_up = impl == "kernel" and device == "cpu" and dtype == torch.float32
        units = 2.0 if makes_up else rounding(call.modes, before, after)
        assert_constant(y, x, units, (before, after, value))


@every_dtype
@every_rank
def test_constant_maps_stay_constant_under_pooling(
    rank: int, dtype: torch.dtype, device: str, impl: str
) -> None:
    """Where the padding does not count."""
    pools = [
        Pool("avg", 2), Pool("avg", 3, 2), Pool("avg", 7, 7), Pool("avg", 20, 3),
        Pool("avg", 3, 2, "same", count_include_pad=False),
        Pool("avg", 5, 1, 4, count_include_pad=False),
    ]  # fmt: skip
    for pool in pools:
        x = torch.full((1, 3, *(22, 21, 20)[:rank]), -3.14159, device=device, dtype=dtype)
        size = pool.output_size(x.shape[2:])
        y = msr_cuda.resample_sum([x], size, mode=pool, impl=impl)
        assert_constant(y, x, rounding([pool], x.shape[2:], size), pool)


def assert_constant(y: Tensor, x: Tensor, units: float, what: object) -> None:
    """Exactly in half and bfloat16, else within some units of eps times the value."""
    value = float(x.flatten()[0])
    error = float((y.double() - value).abs().max())
    unit = abs(value) * torch.finfo(x.dtype).eps
    allowed = 0.0 if x.dtype in (torch.float16, torch.bfloat16) else units * unit
    assert error <= allowed, f"{what}: {error / unit:.3g} units, expected {units:.3g}"


def assert_adjoint(output: Tensor, maps: list[Tensor], what: object) -> None:
    """``<R x, y> = <x, R^T y>`` to 1e-10, relative to the norms."""
    y = torch.randn_like(output)
    grads = torch.autograd.grad(output, maps, y)
    left = (output.detach() * y).sum()
    right = sum((x.detach() * g).sum() for x, g in zip(maps, grads, strict=True))
    norms = output.detach().norm() * y.norm()
    norms += sum(x.detach().norm() * g.norm() for x, g in zip(maps, grads, strict=True))
    assert abs(float(left - right)) <= 1e-10 * float(norms), what
    assert output.numel() == 0 or float(norms) > 0


@every_rank
@every_mode
def test_adjoint_identity(mode: str, rank: int, kernel: str) -> None:
    for i, (before, after) in enumerate(sizes(rank)):
        x = torch.randn(2, 3, *before, dtype=torch.float64, device=kernel)
        if i % 2:
            x = x.transpose(1, -1).contiguous().transpose(1, -1)
        x.requires_grad_()
        y = msr_cuda.resample(x, after, **MODES[mode], impl="kernel")
        assert_adjoint(y, [x], (before, after))


@every_rank
def test_adjoint_identity_of_poolings(rank: int, kernel: str) -> None:
    for pool in (
        Pool("avg", 2), Pool("avg", 3, 2, 1), Pool("avg", 3, 2, "same", count_include_pad=False),
        Pool("avg", 20, 3), Pool("avg", 3, 4), Pool("avg", 5, 1, 4),
    ):  # fmt: skip
        x = torch.randn(2, 3, *(22, 21, 20)[:rank], dtype=torch.float64, device=kernel)
        size = pool.output_size(x.shape[2:])
        y = msr_cuda.resample_sum([x.requires_grad_()], size, mode=pool, impl="kernel")
        assert_adjoint(y, [x], pool)


LINEAR_CASES = [
    case for case in (*CASES, *WINDOW_CASES, *EXTENDED_CASES) if case.operator != "resample_max"
]


@pytest.mark.parametrize("case", LINEAR_CASES, ids=lambda case: case.name)
def test_adjoint_identity_of_calls(case: Case, kernel: str) -> None:
    """Of the linear part of a call, weights left out."""
    options = {"activation", "normalize", "eps", "out_scale"}
    kwargs = {name: value for name, value in case.kwargs.items() if name not in options}
    linear = Case(case.name, case.operator, case.shapes, kwargs, False, case.layouts)
    maps = linear.maps(torch.float64, kernel, requires_grad=True)
    assert_adjoint(linear.call(maps, None, "kernel"), maps, case.name)
