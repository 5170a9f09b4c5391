"""Values and derivatives of every operator, over the table of cases."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import support
import torch
from cases import CASES, EXTENDED_CASES, WINDOW_CASES, Case, every_case, make_map
from conftest import missing
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from truth import assert_values_and_gradients, leaves

import msr_cuda
from msr_cuda import _extension, _ops, _spec, autograd, functional, testing

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@every_dtype
@every_case
def test_values_and_gradients(case: Case, dtype: torch.dtype, device: str, impl: str) -> None:
    maps, parameters = leaves(case, dtype, device)
    if impl == "kernel":
        support.record_case(case, maps, device, 0, 1)
    output = assert_values_and_gradients(case, maps, parameters, impl)
    assert output.dtype == dtype


@every_case
def test_gradcheck(case: Case, kernel: str) -> None:
    maps, parameters = leaves(case, torch.float64, kernel)
    if sum(x.numel() for x in maps) > 2000:
        maps = [x[:, :4].detach().requires_grad_() for x in maps]
    # Numerical differentiation writes to its inputs: no element may be seen twice.
    maps = [x.detach().contiguous().requires_grad_() if 0 in x.stride() else x for x in maps]
    support.record_case(case, maps, kernel, 2)
    inputs = (*maps, *parameters.values())

    def call(*leaves: Tensor) -> Tensor:
        named = dict(zip(parameters, leaves[len(maps) :], strict=True))
        return case.call(list(leaves[: len(maps)]), named, "kernel")

    output = call(*inputs)
    if output.numel() == 0:
        assert all(g.numel() == 0 for g in torch.autograd.grad(output.sum(), inputs))
        return
    assert gradcheck(call, inputs, fast_mode=True)
    # gradgradcheck alone passes vacuously where the first gradient does not require grad.
    grad = torch.randn_like(output).requires_grad_()
    first = torch.autograd.grad(output, inputs, grad, create_graph=True)
    assert all(g.requires_grad for g in first)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("case", [*CASES, *WINDOW_CASES], ids=lambda case: case.name)
def test_raw_operators_pass_opcheck(case: Case, kernel: str) -> None:
    maps = case.maps(torch.float32, kernel)
    weights = case.make_weights(torch.float32, kernel)
    call = case.prepared(maps)
    size, spec, scales = list(call.size), call.spec, call.flat_scales
    saving = spec | (_spec.SAVE if _spec.has_activation(spec) else 0)
    torch.library.opcheck(_ops.gather_full, (maps, weights, None, size, saving, scales))
    output, mask = _ops.gather_full(maps, weights, None, size, saving, scales)
    grad = torch.randn_like(output)
    gate = mask if mask.numel() else None
    shapes = [n for x in maps for n in x.shape]
    requests = sum(_spec.request(x, True) << (4 * i) for i, x in enumerate(maps))
    values = maps if weights is not None else []
    torch.library.opcheck(
        _ops.spread_full, (grad, gate, weights, values, shapes, spec, requests, scales)
    )
    if not scales:
        torch.library.opcheck(_ops.gather, (maps, size, spec))
        torch.library.opcheck(_ops.spread, (grad, shapes, spec, requests))


@pytest.mark.parametrize("case", EXTENDED_CASES, ids=lambda case: case.name)
def test_raw_extended_operators_pass_opcheck(case: Case, kernel: str) -> None:
    maps = case.maps(torch.float32, kernel)
    given = case.make_parameters(torch.float32, kernel)
    call = case.prepared(maps)
    factors = functional._Factors(
        given.get("weights"), given.get("scale"), given.get("bias"),
        case.kwargs.get("out_scale", 1.0),
    )  # fmt: skip
    plan = autograd.Plan(maps, call.size, call.spec, call.flat_scales, call.windows)
    f = functional._gather(plan, maps, factors)
    weights = f.weights
    if weights is not None and weights.dim() == 1:
        weights = weights.view(1, -1, 1)
    size, scales, windows = list(call.size), f.plan.scales, f.plan.windows
    inputs, pixels = list(f.inputs), f.pixel_weights
    arguments = (inputs, weights, pixels, None, None, size, call.spec | _spec.SAVE, scales, windows)
    torch.library.opcheck(_ops.gather_extended, arguments)
    output, mask, indices = _ops.gather_extended(*arguments)
    torch.library.opcheck(
        _ops.gather_out, (inputs, weights, pixels, call.spec, scales, windows), {"out": output}
    )
    grad = torch.randn_like(output)
    gate = mask if mask.numel() else None
    spec = _spec.replace_result(call.spec, torch.float32)
    shapes = [n for x in inputs for n in x.shape]
    requests = sum(_spec.request(x, True) << (4 * i) for i, x in enumerate(inputs))
    values = inputs if weights is not None else []
    torch.library.opcheck(
        _ops.spread_extended,
        (grad, gate, weights, pixels, values, indices, shapes, spec, requests, scales, windows),
    )
    if pixels is not None:
        count, rank = pixels.shape[1], len(size)
        torch.library.opcheck(
            _ops.pixel_weight_grads,
            (grad, inputs[:count], weights, gate, spec, scales[: count * rank],
             windows[: 3 * count * rank]),
        )  # fmt: skip


def outcome(
    function: Callable[..., Tensor], maps: list[Tensor], parameters: dict[str, Tensor]
) -> list[Tensor]:
    """Output and gradients of one call, for comparisons bit by bit."""
    # Fresh leaves with the same values and strides.
    maps, parameters = copy.deepcopy((maps, parameters))
    output = function(maps, parameters)
    grad = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    inputs = [*maps, *parameters.values()]
    return [output, *torch.autograd.grad(output, inputs, grad.to(output.dtype))]


def assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def in_rows(x: Tensor) -> Tensor:
    """The same values, each row with a gap behind it."""
    return torch.cat([x, torch.full_like(x[..., :1], math.nan)], -1)[..., :-1]


@every_case
def test_small_planes_are_their_rows(case: Case, kernel: str) -> None:
    """CPU kernels take small maps plane by plane, unless their rows have gaps; CUDA has one way."""
    maps, parameters = leaves(case, torch.float32, kernel)
    maps = [x.detach().contiguous() for x in maps]

    def outcome_of(maps: list[Tensor], layout: Callable[[Tensor], Tensor]) -> list[Tensor]:
        maps = [x.requires_grad_() for x in maps]
        output = case.call(maps, parameters, "kernel")
        grad = torch.linspace(-1, 1, output.numel(), device=kernel).view(output.shape)
        inputs = [*maps, *parameters.values()]
        return [output, *torch.autograd.grad(output, inputs, layout(grad))]

    planes = outcome_of([x.clone() for x in maps], lambda grad: grad)
    rows = outcome_of([in_rows(x) for x in maps], in_rows)
    for a, b in zip(planes, rows, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_wide_pixels(
    dtype: torch.dtype, mode: str, weighted: bool, kernel: str
) -> None:
    """Rows that CPU kernels walk in several tiles, of images that they share among threads."""
    generator = torch.Generator().manual_seed(0)
    # Of the last map not every row and column is read where it is nearest.
    sizes = [(26, 150), (13, 75), (7, 38), (3, 19), (1, 1), (23, 149)]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(kernel, dtype)

    maps = [random(2, 64, *size).contiguous(memory_format=torch.channels_last) for size in sizes]
    weights = torch.linspace(-1, 2, len(maps), device=kernel) if weighted else None
    grad = random(2, 64, *sizes[0]).contiguous(memory_format=torch.channels_last)

    def gradients(impl: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in maps]
        own = None if weights is None else weights.clone().requires_grad_()
        output = msr_cuda.resample_sum(
            leaves, sizes[0], weights=own, mode=mode, activation="relu", dtype=dtype, impl=impl
        )
        wanted = leaves if own is None else [*leaves, own]
        return list(torch.autograd.grad(output, wanted, grad.to(dtype)))

    truth = gradients("reference", torch.float64)
    found = gradients("kernel", dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for value, expected in zip(found[: len(maps)], truth[: len(maps)], strict=True):
        # Where rounding decides on which side of the ReLU a sum is, its gradient differs.
        close = torch.isclose(value.double(), expected, rtol=tolerance, atol=tolerance)
        assert close.double().mean() > (0.999 if dtype == torch.float32 else 0.95)
    assert_same_bits(found, gradients("kernel", dtype))
    if weighted and dtype == torch.float32:
        torch.testing.assert_close(found[-1].double(), truth[-1].double(), rtol=1e-3, atol=1e-1)


def test_maps_behind_one_mask_share_their_gradient(kernel: str) -> None:
    """As the two terms of ``relu(a + b)`` do in PyTorch: it is written once."""
    first, second, other = (torch.randn(2, 3, 8, 8, device=kernel) for _ in range(3))
    low = torch.randn(2, 3, 4, 4, device=kernel)
    other = other.contiguous(memory_format=torch.channels_last)
    maps = [x.requires_grad_() for x in (first, low, second, other)]
    grad = torch.randn(2, 3, 8, 8, device=kernel)
    expected = torch.autograd.grad(
        msr_cuda.resample_sum(maps, activation="relu", impl="reference"), maps, grad
    )
    job = {"inputs": maps, "activation": "relu"}
    for output in (
        msr_cuda.resample_sum(**job, impl="kernel"),
        *msr_cuda.resample_sum_many([job], impl="kernel"),
    ):
        found = torch.autograd.grad(output, maps, grad)
        assert found[0].data_ptr() == found[2].data_ptr()
        assert found[0].data_ptr() != found[3].data_ptr()  # it has another layout
        for value, truth, x in zip(found, expected, maps, strict=True):
            torch.testing.assert_close(value, truth)
            assert value.stride() == x.stride()


@every_case
def test_compiled_is_bitwise_equal(case: Case, kernel: str) -> None:
    maps, parameters = leaves(case, torch.float32, kernel)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda m, p: case.call(m, p, "kernel"), fullgraph=True, backend="aot_eager"
    )
    eager = outcome(lambda m, p: case.call(m, p, "kernel"), maps, parameters)
    graph = outcome(compiled, maps, parameters)
    assert_same_bits(eager, graph)
    assert eager[0].stride() == graph[0].stride()


@pytest.mark.parametrize("name", ["2d-linear", "sum-weights-relu", "cat-mixed-layouts", "sum-fpn"])
def test_inductor_is_bitwise_equal(name: str, kernel: str) -> None:
    case = next(c for c in CASES if c.name == name)
    maps, parameters = leaves(case, torch.float32, kernel)
    torch._dynamo.reset()
    compiled = torch.compile(lambda m, p: case.call(m, p, "kernel"), fullgraph=True)
    eager = outcome(lambda m, p: case.call(m, p, "kernel"), maps, parameters)
    assert_same_bits(eager, outcome(compiled, maps, parameters))


def _fuse(low: Tensor, high: Tensor, weights: Tensor) -> Tensor:
    fused = msr_cuda.resample_sum(
        [high, low], weights=weights, mode="bilinear", activation="relu", impl="kernel"
    )
    doubled = msr_cuda.resample(fused, scale_factor=2.0, impl="kernel")
    stretched = msr_cuda.resample(low, scale_factor=1.5, mode="bilinear", impl="kernel")
    return msr_cuda.resample_cat([low, doubled, stretched], size=doubled.shape[2:], impl="kernel")


def test_one_graph_serves_all_sizes(kernel: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_fuse, fullgraph=True, backend=counter, dynamic=True)
    weights = torch.randn(2, device=kernel, requires_grad=True)
    # Sizes differ from each other and from batch and channels: equal ones would be taken for one
    # symbol.
    for height, width in ((10, 14), (11, 17), (23, 19), (40, 31), (13, 50)):
        low = torch.randn(3, 5, height, width, device=kernel, requires_grad=True)
        high = torch.randn(3, 5, 2 * height + 1, 3 * width, device=kernel, requires_grad=True)
        leaves = (low, high, weights)
        eager, graph = _fuse(*leaves), compiled(*leaves)
        grad = torch.randn_like(eager)
        assert torch.equal(eager, graph)
        assert_same_bits(
            list(torch.autograd.grad(eager, leaves, grad)),
            list(torch.autograd.grad(graph, leaves, grad)),
        )
    assert counter.frame_count == 1


def test_one_graph_of_a_normalised_sum_serves_all_sizes(kernel: str) -> None:
    """Numbers become symbols there, too."""

    def fuse(high: Tensor, low: Tensor, weights: Tensor) -> Tensor:
        return msr_cuda.resample_sum(
            [high, low], weights=weights, normalize="fast", out_scale=0.5, mode="bilinear",
            activation="silu", impl="kernel",
        )  # fmt: skip

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fuse, fullgraph=True, backend=counter, dynamic=True)
    weights = torch.rand(2, device=kernel, requires_grad=True)
    for height in (10, 13, 21):
        high = torch.randn(2, 3, height, height + 5, device=kernel, requires_grad=True)
        low = torch.randn(2, 3, height // 2, height + 1, device=kernel, requires_grad=True)
        leaves = (high, low, weights)
        eager, graph = fuse(*leaves), compiled(*leaves)
        grad = torch.randn_like(eager)
        assert torch.equal(eager, graph)
        assert_same_bits(
            list(torch.autograd.grad(eager, leaves, grad)),
            list(torch.autograd.grad(graph, leaves, grad)),
        )
    assert counter.frame_count == 1


@every_case
def test_two_runs_and_any_number_of_threads_agree_bitwise(case: Case, kernel: str) -> None:
    maps, parameters = leaves(case, torch.float32, kernel)
    first = outcome(lambda m, p: case.call(m, p, "kernel"), maps, parameters)
    threads = torch.get_num_threads()
    # PyTorch normalises the weights. Where a thread's part of many begins decides how it rounds.
    pixels = any(p.dim() > 3 for p in parameters.values())
    counts = (1, 2, 3) if not (pixels and case.kwargs.get("normalize")) else (1,)
    try:
        for count in counts:
            torch.set_num_threads(count)
            again = outcome(lambda m, p: case.call(m, p, "kernel"), maps, parameters)
            assert_same_bits(first, again)
    finally:
        torch.set_num_threads(threads)


def test_deterministic_algorithms_are_no_problem(device: str, impl: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        x = torch.randn(2, 3, 8, 9, device=device, requires_grad=True)
        msr_cuda.resample(x, size=(13, 21), mode="bilinear", impl=impl).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert x.grad is not None and x.grad.abs().sum() > 0


@every_case
def test_layout_of_result_and_gradients(case: Case, device: str, impl: str) -> None:
    maps, parameters = leaves(case, torch.float32, device)
    output = case.call(maps, parameters, impl)
    layout = next((a for a in map(_spec.is_channels_last, maps) if a is not None), False)
    assert output.stride() == _spec.dense_strides(output.shape, layout)
    assert output.is_contiguous(memory_format=_spec.memory_format(layout, output.dim())) or (
        output.dim() == 3
    )
    if output.numel():
        bases = {x.untyped_storage().data_ptr() for x in maps}
        assert output.untyped_storage().data_ptr() not in bases
    if impl == "kernel":
        # The fake operator must promise the same strides, or compiled code reads the wrong memory.
        call = case.prepared(maps)
        fakes = [torch.empty_strided(x.shape, x.stride(), device="meta") for x in maps]
        plan = autograd.Plan(fakes, call.size, call.spec, call.flat_scales, call.windows)
        fake = autograd.gather(plan, fakes)
        assert (fake.shape, fake.stride(), fake.dtype) == (
            output.shape, output.stride(), output.dtype
        )  # fmt: skip
        if _spec.has_activation(call.spec) or parameters:
            # No map passes through: each gradient is written, in its own map's layout.
            grads = torch.autograd.grad(output, maps, torch.randn_like(output))
            for x, grad in zip(maps, grads, strict=True):
                own = bool(_spec.is_channels_last(x))
                assert grad.stride() == _spec.dense_strides(x.shape, own)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("operator", ["resample_sum", "resample_cat"])
def test_mixed_dtypes_promote(operator: str, layout: str, device: str, impl: str) -> None:
    shapes = ((2, 9, 4, 4), (2, 9, 2, 2))
    weights = {"weights": (2,)} if operator == "resample_sum" else {}
    for first, second in itertools.permutations(DTYPES, 2):
        for mode in ("nearest", "linear", "cubic", "area"):
            case = Case("mixed", operator, shapes, {"mode": mode}, parameters=weights)
            maps = [
                make_map(shape, layout, dtype, device).requires_grad_()
                for shape, dtype in zip(shapes, (first, second), strict=True)
            ]
            parameters = case.make_parameters(torch.float32, device, requires_grad=True)
            output = assert_values_and_gradients(case, maps, parameters, impl)
            assert output.dtype == torch.promote_types(first, second)


def test_result_dtype_on_request(device: str, impl: str) -> None:
    x = torch.randn(2, 3, 4, 4, device=device, dtype=torch.float16)
    for dtype in DTYPES:
        output = msr_cuda.resample_sum(
            [x, x[:, :, ::2, ::2]], mode="linear", dtype=dtype, impl=impl
        )
        assert output.dtype == dtype
        truth = msr_cuda.resample_sum(
            [x.double(), x[:, :, ::2, ::2].double()], mode="linear", impl="reference"
        )
        testing.assert_within(
            output, truth
        ) if dtype != torch.float64 else torch.testing.assert_close(
            output, truth, rtol=1e-10, atol=1e-10
        )


def test_cpu_autocast_keeps_the_dtype(impl: str) -> None:
    if impl == "kernel" and not _extension.has_kernels("cpu"):
        missing("no cpu kernels")
    x = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for mode in ("nearest", "linear"):
            assert msr_cuda.resample(x, size=7, mode=mode, impl=impl).dtype == torch.bfloat16
            assert (
                msr_cuda.resample_cat([x, x.float()], mode=mode, impl=impl).dtype == torch.float32
            )


_CUDA_AUTOCAST = """
import torch, torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
import msr_cuda
from msr_cuda import _ops, _spec

with FakeTensorMode():
    x = torch.empty(2, 4, 8, 8, device="cuda", dtype=torch.float16)
    y = torch.empty(2, 4, 16, 16, device="cuda", dtype=torch.float16)
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    try:
        assert F.interpolate(x, scale_factor=2).dtype == torch.float32  # what users lose today
        for mode in (_spec.Mode.NEAREST, _spec.Mode.LINEAR):
            for cat in (False, True):
                spec = _spec.pack([mode, mode], cat=cat, activation="relu", channels_last=False,
                                  dtype=torch.float16, accumulate_double=False)
                assert _ops.gather([y, x], [16, 16], spec).dtype == torch.float16
        # Here, without CUDA kernels, the public functions fall back: same dtype.
        assert msr_cuda.resample(x, scale_factor=2, mode="bilinear").dtype == torch.float16
        assert msr_cuda.resample_sum([y, x]).dtype == torch.float16
        assert msr_cuda.resample_cat([y, x]).dtype == torch.float16
    finally:
        torch.set_autocast_enabled("cuda", False)
print("ok")
"""


def test_cuda_autocast_keeps_the_dtype() -> None:
    """Under CUDA autocast PyTorch makes every interpolate float32; ours stays as it came."""
    if not _extension.LOADED:
        missing(f"no kernels: {_extension.WHY_NOT}")
    # In a process of its own: mistakes with fake CUDA tensors abort.
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_CUDA_AUTOCAST)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.strip() == "ok", run.stderr


@every_case
def test_torch_func_and_forward_ad(case: Case, device: str) -> None:
    maps, parameters = leaves(case, torch.float64, device)
    if maps[0].numel() == 0:
        return
    # Forward-mode AD refuses maps whose elements overlap.
    primals = [x.detach().contiguous() if 0 in x.stride() else x.detach() for x in maps]
    constants = {name: p.detach() for name, p in parameters.items()}
    tangents = [torch.randn_like(x) for x in primals]

    def call(*leaves: Tensor) -> Tensor:
        return case.call(list(leaves), constants)

    step = 1e-6
    ahead = call(*[x + step * t for x, t in zip(primals, tangents, strict=True)])
    behind = call(*[x - step * t for x, t in zip(primals, tangents, strict=True)])
    numeric = (ahead - behind) / (2 * step)
    assert numeric.abs().max() > 0.001

    _, jvp = torch.func.jvp(call, tuple(primals), tuple(tangents))
    torch.testing.assert_close(jvp, numeric, rtol=1e-5, atol=1e-6)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(primals, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(call(*duals)).tangent
    torch.testing.assert_close(tangent, numeric, rtol=1e-5, atol=1e-6)

    expected = torch.autograd.grad(case.call(maps, constants, "reference").pow(2).sum(), maps[0])[0]
    grad = torch.func.grad(lambda x: call(x, *primals[1:]).pow(2).sum())(primals[0])
    assert grad.abs().max() > 0.001
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)

    stacked = [torch.stack([x, 2 * x]) for x in primals]
    mapped = torch.func.vmap(call)(*stacked)
    torch.testing.assert_close(mapped[1], call(*[2 * x for x in primals]), rtol=1e-9, atol=1e-9)


def test_compiled_torch_func(device: str) -> None:
    x = torch.randn(2, 3, 4, 5, device=device)

    def loss(x: Tensor) -> Tensor:
        return msr_cuda.resample(x, size=(7, 9), mode="bilinear").pow(2).sum()

    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), torch.func.grad(loss)(x))


def test_columns_that_no_window_reads(kernel: str) -> None:
    x = torch.rand(1, 4096, 2, 4, device=kernel).to(memory_format=torch.channels_last)
    pool = msr_cuda.Pool("max", 1, 2)
    x.requires_grad_()
    msr_cuda.resample_sum([x], (1, 2), mode=[pool], impl="kernel").sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0, 0], torch.tensor([[1.0, 0, 1, 0], [0] * 4], device=kernel))
    assert torch.equal(x.grad[0], x.grad[0, :1].expand(4096, 2, 4))


def test_infinite_weights_of_maps(kernel: str) -> None:
    x = torch.rand(1, 2, 9, 9, 9, device=kernel) + 1
    y = msr_cuda.resample_sum(
        [x], (3, 3, 3), weights=torch.tensor([torch.inf], device=kernel), mode="area", impl="kernel"
    )
    assert torch.isposinf(y).all()


def test_not_a_number_and_infinity_pass_through(device: str, impl: str) -> None:
    """Non-finite results stand where F.interpolate has them, and NaN stays NaN."""
    x = torch.randn(1, 1, 6, 7, device=device)
    x[0, 0, 1, 2], x[0, 0, 4, 5] = torch.nan, torch.inf
    for mode, corners in (("nearest", None), ("nearest-exact", None), ("bilinear", False),
                          ("bilinear", True)):  # fmt: skip
        for size in ((11, 13), (3, 4), (6, 14), (12, 7)):
            ours = msr_cuda.resample(x, size, mode=mode, align_corners=corners, impl=impl)
            aten = torch.nn.functional.interpolate(x, size, mode=mode, align_corners=corners)
            assert torch.equal(ours.isfinite(), aten.isfinite()), (mode, corners, size)
    z = torch.tensor([[[-1.0, torch.nan, 2.0]]], device=device, requires_grad=True)
    y = msr_cuda.resample_sum([z], activation="relu", impl=impl)
    assert y.isnan().tolist() == [[[False, True, False]]]
    y.sum().backward()
    assert z.grad is not None and z.grad.tolist() == [[[0.0, 1.0, 1.0]]]  # as torch.relu


def test_gradients_that_pass_through_are_not_copied(kernel: str) -> None:
    a = torch.randn(2, 3, 4, 4, device=kernel, requires_grad=True)
    b = torch.randn(2, 3, 2, 2, device=kernel, requires_grad=True)
    output = msr_cuda.resample_sum([a, b], impl="kernel")
    grad = torch.randn_like(output)
    assert torch.autograd.grad(output, a, grad)[0].data_ptr() == grad.data_ptr()
    output = msr_cuda.resample_cat([b, a], size=(4, 4), impl="kernel")
    grad = torch.randn_like(output)
    assert torch.autograd.grad(output, a, grad)[0].data_ptr() == grad[:, 3:].data_ptr()


def test_what_is_kept_for_backward(kernel: str) -> None:
    """Nothing; bits; the inputs where weights need a gradient or something is computed again."""
    maps = [torch.randn(2, 3, 8, 8, device=kernel, requires_grad=True),
            torch.randn(2, 3, 4, 4, device=kernel, requires_grad=True)]  # fmt: skip
    weights = torch.randn(2, device=kernel)

    def saved(function: Callable[..., Tensor] = msr_cuda.resample_sum, **kwargs: Any) -> int:
        sizes: list[int] = []
        inputs = kwargs.pop("maps", maps)
        kwargs.setdefault("mode", "linear")
        pack = torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t
        )
        with pack:
            function(inputs, impl="kernel", **kwargs)
        return sum(sizes)

    output_elements = 2 * 3 * 8 * 8
    assert saved() == 0
    assert saved(activation="relu") == output_elements // 8
    assert saved(weights=weights) == weights.numel() * 4
    both = sum(x.numel() for x in maps)
    assert saved(weights=weights.clone().requires_grad_()) == (both + weights.numel()) * 4
    # Bits for other ReLU-like activations; what is computed again needs the inputs.
    for activation in ("relu6", "leaky_relu"):
        assert saved(activation=activation) == output_elements // 8
    assert saved(activation="silu") == both * 4
    bias = torch.randn(3, device=kernel)
    assert saved(bias=bias.requires_grad_(), activation="relu") == output_elements // 8
    # Places in the windows of a max-pooling; a bit per map of a maximum.
    pool = msr_cuda.Pool("max", 2)
    assert saved(mode=["nearest", pool], size=(2, 2), maps=[maps[1][:, :, :2, :2], maps[1]]) == (
        2 * 3 * 2 * 2
    )
    assert saved(msr_cuda.resample_max) == 2 * output_elements // 8


def test_an_in_place_layer_after_the_call_is_legal(device: str, impl: str) -> None:
    x = torch.randn(2, 3, 4, 4, device=device, requires_grad=True)
    y = msr_cuda.resample_sum([x, x[:, :, ::2, ::2]], activation="relu", impl=impl)
    torch.nn.functional.relu_(y.add_(0.5)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_gradient_penalty_matches_the_reference(kernel: str) -> None:
    """Second derivatives with respect to maps and weights, through ReLU and weights together."""
    a = torch.randn(2, 3, 6, 6, device=kernel, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 3, 3, 4, device=kernel, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, device=kernel, dtype=torch.float64, requires_grad=True)
    results = []
    for impl in ("kernel", "reference"):
        output = msr_cuda.resample_sum(
            [a, b], weights=weights, mode="linear", activation="relu", impl=impl
        )
        first = torch.autograd.grad(output.pow(3).sum(), (a, b, weights), create_graph=True)
        penalty = torch.stack([g.pow(2).sum() for g in first]).sum()
        results.append(torch.autograd.grad(penalty, (a, b, weights)))
    for ours, truth in zip(*results, strict=True):
        assert truth.abs().max() > 0
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("normalize", [None, "softmax", "fast"])
@pytest.mark.parametrize("out_scale", [1.0, -0.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_normalised_weights_and_a_common_factor_run_on_kernels(
    weighted: bool, out_scale: float, normalize: str | None, kernel: str
) -> None:
    """With the reference's values and derivatives, first and second."""
    if normalize is not None and not weighted:
        return
    a = torch.randn(2, 3, 6, 5, device=kernel, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 3, 3, 4, device=kernel, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.7, 1.3], device=kernel, dtype=torch.float64, requires_grad=True)
    options = {"weights": weights, "normalize": normalize} if weighted else {}
    wanted = (a, b, weights) if weighted else (a, b)
    results = []
    for impl in ("kernel", "reference"):
        output = msr_cuda.resample_sum(
            [a, b], mode="linear", activation="relu", out_scale=out_scale, impl=impl, **options
        )
        first = torch.autograd.grad(output.pow(3).sum(), wanted, create_graph=True)
        penalty = torch.stack([g.pow(2).sum() for g in first]).sum()
        results.append([output, *first, *torch.autograd.grad(penalty, wanted)])
    for ours, truth in zip(*results, strict=True):
        assert truth.abs().max() > 0
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    half = msr_cuda.resample_sum(
        [a.half(), b.half()], mode="linear", out_scale=out_scale, impl="kernel", **options
    )
    assert half.dtype == torch.float16
