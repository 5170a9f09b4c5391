"""Random calls of every operator on kernels: values and gradients against the float64 reference.

Every run takes the same few hundred calls. ``MSR_CUDA_EXAMPLES=5000`` takes that many of each
operator, others on every run. What fails is shrunk and printed as a call of ``Drawn``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import support
import torch
import torch.nn.functional as F
from cases import Case, Shape, make_map
from conftest import require_or_skip
from torch import Tensor
from truth import ACTIVATIONS, assert_values_and_gradients, in_float64

import msr_cuda
from msr_cuda import Pool, _spec, reference, testing

hypothesis = require_or_skip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

Draw = Callable[[Any], Any]

EXAMPLES = int(os.environ.get("MSR_CUDA_EXAMPLES", "0"))


def examples(by_default: int) -> Callable[[Any], Any]:
    """How many calls a test draws, and that it draws the same ones unless it was told a number."""
    return hypothesis.settings(
        max_examples=EXAMPLES or by_default,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=False,
        # Devices are the same for all examples, and each example sets its own seed.
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """One thread for the small maps of every run: where the machine is busy, two wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if EXAMPLES else 1)
    yield
    torch.set_num_threads(threads)


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PARAMETER_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Elements of the largest map of a call, more or less.
ROOM = 20_000
#: By rank: the largest short axis; the largest of the one axis that may be long.
SHORT = {1: 64, 2: 24, 3: 7}
LONG = {1: 480, 2: 257, 3: 64}
NUMBERS = (1, 2, 3, 5, 7, 8, 13, 16, 31, 32, 33, 64, 97, 128, 199, 256, 257, 480)
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 130)
LAYOUTS = ("contiguous", "channels_last", "strided", "tokens", "expanded", "narrowed", "swapped")
#: Sizes of an axis before and after.
EXTREMES = ((7, 64), (1, 128), (256, 1), (480, 1), (1, 480), (3, 257), (199, 200), (251, 5))
INTERPOLATIONS = (
    ("nearest", None, False), ("nearest-exact", None, False), ("area", None, False),
    *[(mode, corners, antialias) for mode in ("linear", "cubic")
      for corners in (None, False, True) for antialias in (False, True)],
    ("lanczos", None, True),
)  # fmt: skip
#: Where the derivative of an activation jumps.
KINKS = {"relu": (0,), "relu6": (0, 6), "leaky_relu": (0,), "hardswish": (-3, 3)}
#: How far from a jump, or a tie of two maps, rounding decides nothing.
CLEAR = 1e-2


@dataclass(frozen=True)
class Drawn:
    """A random call: beside the case the maps' dtypes and layouts, and what requires a gradient."""

    case: Case
    dtypes: tuple[torch.dtype, ...]
    layouts: tuple[str, ...]
    parameter_dtype: torch.dtype
    constants: frozenset[int]
    seed: int

    def leaves(self, device: str) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Maps and parameters; all require grad but the maps in ``constants``."""
        torch.manual_seed(self.seed)
        maps = [
            lay_out(shape, layout, dtype, device).requires_grad_(i not in self.constants)
            for i, (shape, layout, dtype) in enumerate(
                zip(self.case.shapes, self.layouts, self.dtypes, strict=True)
            )
        ]
        double = torch.float64 in (*self.dtypes, self.case.kwargs.get("dtype"))
        parameters = self.case.make_parameters(
            torch.float64 if double else self.parameter_dtype, device, requires_grad=True
        )
        for name in {"weights", "scale"} & set(parameters):
            # Products of large ones: a sum's own rounding would decide its activation's slope.
            parameters[name].detach().mul_(0.5)
        if self.case.kwargs.get("normalize") == "fast":
            # Of one positive weight the derivative would be a difference that cancels.
            weights = parameters["weights"].detach()
            first_two = weights.narrow(0 if weights.dim() < 3 else 1, 0, 2)
            first_two.copy_(first_two.abs() + 0.25)
        return maps, parameters

    @property
    def result_dtype(self) -> torch.dtype:
        return self.case.kwargs.get("dtype", functools.reduce(torch.promote_types, self.dtypes))


def lay_out(shape: Shape, layout: str, dtype: torch.dtype, device: str) -> Tensor:
    """A map in one of :data:`LAYOUTS`; those of one axis less than two have no such thing."""
    if layout == "narrowed":  # some channels of more
        wide = (shape[0], shape[1] + 3, *shape[2:])
        return make_map(wide, "contiguous", dtype, device)[:, 1 : 1 + shape[1]]
    if layout == "swapped":  # columns lie together
        swapped = (*shape[:-2], shape[-1], shape[-2]) if len(shape) > 3 else shape
        base = make_map(swapped, "contiguous", dtype, device)
        return base.transpose(-1, -2) if len(shape) > 3 else base
    if layout == "channels_last" and len(shape) == 3:
        layout = "tokens"
    return make_map(shape, layout, dtype, device)


def pick(draw: Draw, *among: Any) -> Any:
    return draw(st.sampled_from(among))


def number(draw: Draw, most: int) -> int:
    """A size: any, or one that is easily got wrong."""
    if pick(draw, False, True):
        return int(draw(st.integers(1, most)))
    return int(pick(draw, *[n for n in NUMBERS if n <= most]))


def source_number(draw: Draw, out: int, most: int) -> int:
    """The size of an axis that is resampled to ``out``."""
    kind = pick(draw, "any", "same", "whole", "odd", "near", "one")
    if kind == "any":
        return number(draw, most)
    if kind == "whole":
        ratio = pick(draw, 2, 3, 4, 8)
        found = out * ratio if pick(draw, False, True) else out // ratio
    elif kind == "odd":
        numerator, denominator = pick(draw, (2, 3), (3, 2), (5, 3), (3, 7), (7, 4), (1, 6))
        found = out * numerator // denominator
    else:
        found = {"same": out, "near": out + pick(draw, -1, 1), "one": 1}[kind]
    return min(max(found, 1), most)


def pooling(draw: Draw, size: Sequence[int]) -> tuple[Pool, tuple[int, ...]]:
    """A pooling, and a size that it leads from to ``size``."""
    rank = len(size)
    kernels = [pick(draw, 1, 2, 3, 4, 5) for _ in size]
    strides = [pick(draw, 1, 2, 3) for _ in size]
    same = pick(draw, False, True)
    ends = [(0, 0) if same else (pick(draw, *range(k)), pick(draw, *range(k))) for k in kernels]
    sizes = []
    for axis, (out, k, s) in enumerate(zip(size, kernels, strides, strict=True)):
        beyond = pick(draw, *range(s))
        if same:
            sizes.append((out - 1) * s + 1 + beyond)
            continue
        found = (out - 1) * s + k - sum(ends[axis]) + beyond
        if found < 1:
            ends[axis], found = (0, 0), (out - 1) * s + k + beyond
        sizes.append(found)
    kind = pick(draw, "max", "avg")
    pool = Pool(kind, tuple(kernels), tuple(strides), "same" if same else tuple(ends),
                count_include_pad=kind == "max" or pick(draw, False, True))  # fmt: skip
    assert pool.rank == rank and pool.output_size(sizes) == tuple(size)
    return pool, tuple(sizes)


def factors(draw: Draw, sizes: Sequence[int], size: Sequence[int]) -> tuple[float, ...] | None:
    """Scale factors that lead from ``sizes`` to ``size``, not exactly."""
    found = tuple(
        (out + draw(st.floats(0, 0.96875, width=16))) / n
        for n, out in zip(sizes, size, strict=True)
    )
    leads = tuple(math.floor(n * f) for n, f in zip(sizes, found, strict=True))
    return found if leads == tuple(size) else None


def parameters(
    draw: Draw, count: int, batch: int, channels: int, size: Sequence[int]
) -> tuple[dict[str, Shape], dict[str, Any]]:
    """Shapes of the parameters of a sum, and what is said beside them."""
    shapes: dict[str, Shape] = {}
    kwargs: dict[str, Any] = {}
    form = pick(draw, None, "S", "SC", "NSC", "pixels")
    if form is not None:
        images = pick(draw, 1, batch)
        shapes["weights"] = {
            "S": (count,), "SC": (count, channels), "NSC": (images, count, channels),
            "pixels": (images, count, 1, *size),
        }[form]  # fmt: skip
        # How large the terms of a normalised weight's gradient are takes a matrix of them.
        if math.prod(shapes["weights"]) <= 300 and count > 1:
            kwargs["normalize"] = pick(draw, None, "softmax", "fast")
    for name in ("scale", "bias"):
        if pick(draw, False, False, True):
            shapes[name] = (channels,)
    kwargs["out_scale"] = pick(draw, 1.0, 1.0, 0.5, -2.0)
    return shapes, kwargs


def one_axis(draw: Draw, rank: int) -> tuple[list[int], list[tuple[int, int] | None]]:
    """The largest size of each axis, of which one may be long; what it must be before and after."""
    long_axis = pick(draw, None, *range(rank))
    most = [LONG[rank] if axis == long_axis else SHORT[rank] for axis in range(rank)]
    fixed: list[tuple[int, int] | None] = [None] * rank
    if long_axis is not None and pick(draw, False, True):
        fixed[long_axis] = pick(draw, *[pair for pair in EXTREMES if max(pair) <= LONG[rank]])
    return most, fixed


@st.composite
def calls(draw: Draw, operator: str, most_inputs: int, ranks: Sequence[int] = (1, 2, 3)) -> Drawn:
    """A call whose largest map has some thousand elements."""
    rank = pick(draw, *ranks)
    count = pick(draw, *[n for n in (1, 2, 2, 3, 3, 4, 5, 6, 7, 8) if n <= most_inputs])
    most, fixed = one_axis(draw, rank)
    size = tuple(
        number(draw, n) if pair is None else pair[1] for n, pair in zip(most, fixed, strict=True)
    )
    common = pick(draw, False, True)
    mode: Any = None
    sources, sizes, scales = [], [], []
    for _ in range(count):
        if operator != "resample" and pick(draw, *[False] * 5, True):
            pool, found = pooling(draw, size)
            sources.append((pool, None, False))
            sizes.append(found)
            scales.append(None)
            continue
        if mode is None or not common:
            mode = pick(draw, *INTERPOLATIONS)
        sources.append(mode)
        sizes.append(
            tuple(
                pair[0] if pair is not None and not sizes else source_number(draw, n, m)
                for n, m, pair in zip(size, most, fixed, strict=True)
            )
        )
        wanted = pick(draw, False, False, True)
        scales.append(factors(draw, sizes[-1], size) if wanted else None)

    batch = pick(draw, 1, 2, 3)
    largest = max(math.prod(n) for n in (*sizes, size))
    room = max(1, ROOM // (batch * largest))
    allowed = [n for n in CHANNELS if n <= room]
    channels = pick(draw, *allowed)
    shapes = []
    for n in sizes:
        own = pick(draw, channels, *allowed[:5]) if operator == "resample_cat" else channels
        images = batch if operator == "resample" else pick(draw, batch, batch, 1)
        shapes.append((images, own, *n))
    batch = max(shape[0] for shape in shapes)

    kwargs: dict[str, Any] = {}
    given: dict[str, Shape] = {}
    if operator == "resample":
        kwargs["mode"], kwargs["align_corners"], kwargs["antialias"] = sources[0]
        if scales[0] is not None:
            kwargs["scale_factor"] = scales[0]
            kwargs["recompute_scale_factor"] = pick(draw, None, None, True)
        else:
            kwargs["size"] = size
    else:
        kwargs["size"] = size
        kwargs["mode"], kwargs["align_corners"], kwargs["antialias"] = map(
            list, zip(*sources, strict=True)
        )
        if any(scale is not None for scale in scales):
            kwargs["scale_factors"] = scales
        kwargs["activation"] = pick(draw, None, *ACTIVATIONS)
    if operator == "resample_sum":
        given, more = parameters(draw, count, batch, channels, size)
        kwargs |= more
    first = pick(draw, *DTYPES)
    second = pick(draw, first, *DTYPES) if count > 1 else first
    dtypes = [pick(draw, first, second) for _ in shapes]
    if operator != "resample" and pick(draw, *[False] * 4, True):
        kwargs["dtype"] = pick(draw, *DTYPES)
    layout = pick(draw, *LAYOUTS[:2], *LAYOUTS)
    alike = pick(draw, True, True, False)
    layouts = [layout if alike else pick(draw, *LAYOUTS) for _ in shapes]
    constants = frozenset(i for i in range(count) if count > 1 and pick(draw, *[False] * 5, True))
    if len(constants) == count:
        constants = frozenset()
    return Drawn(
        Case("random", operator, tuple(shapes), kwargs, parameters=given), tuple(dtypes),
        tuple(layouts), pick(draw, torch.float32, *PARAMETER_DTYPES), constants,
        draw(st.integers(0, 2**31)),
    )  # fmt: skip


def decided(case: Case, maps: list[Tensor], parameters: dict[str, Tensor]) -> Tensor:
    """Where neither a jump of the activation's derivative nor a tie of maps is near, in float64."""
    kwargs = {k: v for k, v in case.kwargs.items() if k not in ("activation", "dtype")}
    bare = Case(case.name, case.operator, case.shapes, kwargs)
    maps64, parameters64 = in_float64(maps, parameters)
    z = bare.call(maps64, parameters64, "reference").detach()
    clear = torch.ones_like(z, dtype=torch.bool)
    for kink in KINKS.get(case.kwargs.get("activation"), ()):
        clear &= (z - kink).abs() > CLEAR
    if case.operator == "resample_max" and len(maps) > 1:
        call = case.prepared(maps64)
        terms = [
            reference.resample_map(x.detach(), call.size, mode, scale).expand_as(z)
            for x, mode, scale in zip(maps64, call.modes, call.scale_factors, strict=True)
        ]
        best = torch.stack(terms).topk(2, 0).values
        clear &= best[0] - best[1] > CLEAR
    return clear


def check(drawn: Drawn, device: str) -> None:
    maps, parameters = drawn.leaves(device)
    case = drawn.case
    support.record_case(case, maps, device, 0, 1)
    keep = decided(case, maps, parameters)
    output = assert_values_and_gradients(case, maps, parameters, "kernel", keep=keep)
    assert output.dtype == drawn.result_dtype
    layout = _spec.result_is_channels_last(maps)
    assert output.stride() == _spec.dense_strides(output.shape, layout)


@given(drawn=calls("resample", 1))
@examples(400)
def test_resample(drawn: Drawn, kernel: str) -> None:
    check(drawn, kernel)


@given(drawn=calls("resample_sum", 8))
@examples(500)
def test_resample_sum(drawn: Drawn, kernel: str) -> None:
    check(drawn, kernel)


@given(drawn=calls("resample_cat", 8))
@examples(500)
def test_resample_cat(drawn: Drawn, kernel: str) -> None:
    check(drawn, kernel)


@given(drawn=calls("resample_max", 8))
@examples(300)
def test_resample_max(drawn: Drawn, kernel: str) -> None:
    check(drawn, kernel)


def given_memory(draw: Draw, shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    """A map to write to; its neighbours in memory are not to be touched."""
    layout = pick(draw, *[layout for layout in LAYOUTS if layout != "expanded"])
    return lay_out(shape, layout, dtype, device)


def whole_memory(x: Tensor) -> Tensor:
    """All bytes that a map is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


@given(data=st.data())
@examples(150)
def test_out(data: Any, kernel: str) -> None:
    """Results written, or added, to memory that is given: nothing beside it changes."""
    operator = pick(data.draw, "resample", "resample_sum", "resample_cat", "resample_max")
    drawn = data.draw(calls(operator, 1 if operator == "resample" else 8))
    maps, parameters = drawn.leaves(kernel)
    kwargs = {k: v for k, v in drawn.case.kwargs.items() if k != "dtype"}
    if operator == "resample_sum":
        kwargs["accumulate"] = pick(data.draw, False, True)
    function = getattr(msr_cuda, operator)
    arguments = maps[0] if operator == "resample" else maps
    with torch.no_grad():
        shape = drawn.case.call(maps, parameters, "reference").shape
        dtype = pick(data.draw, drawn.result_dtype, *DTYPES)
        if parameters and dtype == torch.float64:
            parameters = {name: p.double() for name, p in parameters.items()}
        out = given_memory(data.draw, tuple(shape), dtype, kernel)
        before, memory = out.clone(), whole_memory(out).clone()
        result = function(arguments, **parameters, **kwargs, out=out, impl="kernel")
        assert result is out

        maps64, parameters64 = in_float64(maps, parameters)
        arguments64 = maps64[0] if operator == "resample" else maps64
        expected = before.to(torch.float64, copy=True)
        function(arguments64, **parameters64, **kwargs, out=expected, impl="reference")
        testing.assert_within(out, expected)
        out.copy_(before)
    assert torch.equal(whole_memory(out), memory)


@given(data=st.data())
@examples(75)
def test_resample_sum_many(data: Any, kernel: str) -> None:
    """Each job's result and gradients are those of a call of its own, bit by bit."""
    rank = pick(data.draw, 1, 2, 3)
    jobs = [data.draw(calls("resample_sum", 8, (rank,))) for _ in range(pick(data.draw, 1, 2, 4))]
    leaves = [job.leaves(kernel) for job in jobs]
    if len(jobs) > 1 and pick(data.draw, False, True):
        # A map of two jobs: the order of two gradients does not matter to their sum.
        first, second = leaves[0][0], leaves[1][0]
        if first[0].shape == second[0].shape:
            second[0] = first[0]
    arguments = [
        {"inputs": maps, **parameters, **job.case.kwargs}
        for job, (maps, parameters) in zip(jobs, leaves, strict=True)
    ]
    together = msr_cuda.resample_sum_many(arguments, impl="kernel")
    alone = [msr_cuda.resample_sum(**a, impl="kernel") for a in arguments]
    grads = [torch.randn_like(y) for y in alone]
    wanted = {id(x): x for maps, ps in leaves for x in (*maps, *ps.values()) if x.requires_grad}
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(
        torch.autograd.grad(together, list(wanted.values()), grads),
        torch.autograd.grad(alone, list(wanted.values()), grads),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@given(data=st.data())
@examples(300)
def test_resample_pyramid(data: Any, kernel: str) -> None:
    draw = data.draw
    rank, count = pick(draw, 1, 2, 3), draw(st.integers(1, 8))
    most, fixed = one_axis(draw, rank)
    shape = tuple(
        number(draw, n) if pair is None else pair[0] for n, pair in zip(most, fixed, strict=True)
    )
    mode, corners, antialias = pick(draw, *INTERPOLATIONS)
    levels: dict[str, Any]
    if pick(draw, False, True):
        levels = {"sizes": [
            tuple(
                pair[1] if pair is not None and i == 0 else source_number(draw, n, m)
                for n, m, pair in zip(shape, most, fixed, strict=True)
            )
            for i in range(count)
        ]}  # fmt: skip
        arguments = [{"size": size} for size in levels["sizes"]]
    else:
        least = 1.001 / min(shape)
        levels = {"scale_factors": [
            tuple(draw(st.floats(least, max(least, m / n, 1.5))) for n, m in
                  zip(shape, most, strict=True))
            for _ in range(count)
        ]}  # fmt: skip
        arguments = [{"scale_factor": factor} for factor in levels["scale_factors"]]
    options = {"mode": mode, "align_corners": corners, "antialias": antialias}
    room = max(1, ROOM // math.prod(max(n, m) for n, m in zip(shape, most, strict=True)))
    channels = pick(draw, *[n for n in CHANNELS if n <= room])
    dtype, layout = pick(draw, *DTYPES), pick(draw, *LAYOUTS)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    batch = pick(draw, 1, 2)
    x = lay_out((batch, channels, *shape), layout, dtype, kernel).requires_grad_()
    found = msr_cuda.resample_pyramid(x, **levels, **options, impl="kernel")
    x64 = x.detach().double().requires_grad_()
    expected = msr_cuda.resample_pyramid(x64, **levels, **options, impl="reference")
    used = [pick(draw, True, True, False) for _ in found]
    used[0] |= not any(used)
    squares = torch.zeros(x.shape, dtype=torch.float64)
    grads = []
    for given, ours, truth in zip(arguments, found, expected, strict=True):
        testing.assert_within(ours, truth)
        assert ours.dtype == dtype
        own = _spec.result_is_channels_last([x])
        assert ours.stride() == _spec.dense_strides(ours.shape, own)
        grads.append(torch.randn_like(ours))
        if used[len(grads) - 1]:
            call = Case("level", "resample", (), {**given, **options}).prepared([x64])
            squares += (
                testing.gradient_term_norm(grads[-1], x.shape, call.modes[0], call.scale_factors[0])
                ** 2
            )

    def of_used(values: Sequence[Tensor]) -> list[Tensor]:
        return [value for value, wanted in zip(values, used, strict=True) if wanted]

    (ours,) = torch.autograd.grad(of_used(found), x, of_used(grads))
    (truth,) = torch.autograd.grad(of_used(expected), x64, [g.double() for g in of_used(grads)])
    testing.assert_within(ours, truth, term_norm=squares.sqrt(), what="gradient")
    assert ours.dtype == dtype


@given(data=st.data())
@examples(150)
def test_antialias_is_pytorchs(data: Any, kernel: str) -> None:
    """Values and gradients in every dtype against F.interpolate in float64."""
    draw = data.draw
    mode, corners = pick(draw, "bilinear", "bicubic"), pick(draw, None, False, True)
    most, fixed = one_axis(draw, 2)
    sizes = [
        number(draw, n) if pair is None else pair[0] for n, pair in zip(most, fixed, strict=True)
    ]
    given: dict[str, Any] = {"mode": mode, "align_corners": corners, "antialias": True}
    if pick(draw, False, True):
        given["size"] = [
            source_number(draw, n, m) if pair is None else pair[1]
            for n, m, pair in zip(sizes, most, fixed, strict=True)
        ]
    else:
        scales = [draw(st.floats(1.001 / n, 3)) for n in sizes]
        # One that keeps the size gives a copy, other than ATen's.
        given["scale_factor"] = [
            1.0 if math.floor(n * f) == n else f for n, f in zip(sizes, scales, strict=True)
        ]
    torch.manual_seed(draw(st.integers(0, 2**31)))
    dtype, layout = pick(draw, *DTYPES), pick(draw, *LAYOUTS)
    shape = (pick(draw, 1, 2), pick(draw, 1, 2, 3, 9), *sizes)
    x = lay_out(shape, layout, dtype, kernel).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    output = msr_cuda.resample(x, **given, impl="kernel")
    if output.shape[-1] > 1:
        expected = F.interpolate(x64, **given)
    else:  # ATen's CPU kernels repeat the first row in a result of one column: rows for columns
        swapped = {k: v[::-1] if isinstance(v, list) else v for k, v in given.items()}
        expected = F.interpolate(x64.mT, **swapped).mT
    testing.assert_within(output, expected)
    grad = torch.randn_like(output)
    (ours,) = torch.autograd.grad(output, x, grad)
    (truth,) = torch.autograd.grad(expected, x64, grad.double())
    call = Case("antialias", "resample", (), given).prepared([x64])
    norm = testing.gradient_term_norm(grad, x.shape, call.modes[0], call.scale_factors[0])
    testing.assert_within(ours, truth, term_norm=norm, what="gradient")
