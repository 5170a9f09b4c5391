"""Several results in one call: pyramids of one map, and independent sums."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import ROOT, missing
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import msr_cuda
from msr_cuda import Pool, _extension, _ops, _spec, testing

PYRAMIDS: dict[str, dict[str, Any]] = {
    "linear": dict(sizes=[(8, 10), (17, 21), (35, 45), 3], mode="bilinear"),
    "corners": dict(sizes=[(8, 10), 1, (20, 60)], mode="bilinear", align_corners=True),
    "factors": dict(scale_factors=[0.5, 0.3, 1.7, (1, 2)], mode="bilinear"),
    "nearest": dict(sizes=[(8, 10), 50, (17, 5)], mode="nearest"),
    "exact": dict(sizes=[(4, 5), 33], mode="nearest-exact"),
    "cubic": dict(sizes=[(9, 30), 20], mode="bicubic"),
    "area": dict(sizes=[(8, 7), (4, 3), (34, 42)], mode="area"),
    "antialias": dict(sizes=[(8, 10), (4, 5), (2, 2)], mode="bilinear", antialias=True),
    "lanczos": dict(scale_factors=[0.5, 0.25], mode="lanczos", antialias=True),
}
every_pyramid = pytest.mark.parametrize("name", PYRAMIDS)


def make_input(dtype: torch.dtype, device: str, channels_last: bool = False) -> Tensor:
    x = torch.randn(2, 3, 17, 21, dtype=torch.float64, device=device).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    return x.requires_grad_()


@every_pyramid
@pytest.mark.parametrize("channels_last", [False, True], ids=["planar", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_pyramid_has_the_values_of_single_levels_and_their_sum_of_gradients(
    dtype: torch.dtype, channels_last: bool, name: str, kernel: str
) -> None:
    x = make_input(dtype, kernel, channels_last)
    arguments = PYRAMIDS[name]
    levels = msr_cuda.resample_pyramid(x, **arguments, impl="kernel")
    x64 = x.detach().double().requires_grad_()
    truth = msr_cuda.resample_pyramid(x64, **arguments, impl="reference")
    grads = [torch.randn_like(level) for level in truth]
    for level, expected in zip(levels, truth, strict=True):
        testing.assert_within(level, expected, what=f"level {tuple(level.shape)}")
        assert level.dtype == dtype and level.stride() == expected.stride()
    (grad,) = torch.autograd.grad(levels, x, [g.to(dtype) for g in grads])
    (grad64,) = torch.autograd.grad(truth, x64, [g.to(dtype).double() for g in grads])
    call_modes = _modes(arguments)
    norms = [
        testing.gradient_term_norm(g, x.shape, mode, scale)
        for g, (mode, scale) in zip(grads, call_modes, strict=True)
    ]
    norm = torch.stack(norms).square().sum(0).sqrt()
    testing.assert_within(grad, grad64, term_norm=norm, what="gradient")
    assert grad.stride() == x.stride()


def _modes(arguments: dict[str, Any]) -> list[tuple[_spec.Mode, tuple[float, ...] | None]]:
    key = (
        arguments["mode"],
        arguments.get("align_corners"),
        arguments.get("antialias", False),
    )
    mode = _spec.MODE_TABLES[2][key]
    if "sizes" in arguments:
        return [(mode, None)] * len(arguments["sizes"])
    factors = [f if isinstance(f, tuple) else (f, f) for f in arguments["scale_factors"]]
    return [(mode, tuple(float(n) for n in f)) for f in factors]


@every_pyramid
def test_derivatives_of_pyramids(name: str, kernel: str) -> None:
    x = torch.randn(1, 2, 7, 9, dtype=torch.float64, device=kernel, requires_grad=True)
    arguments = dict(PYRAMIDS[name])
    if "sizes" in arguments:
        arguments["sizes"] = [(4, 5), 3, (11, 8)]

    def call(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(msr_cuda.resample_pyramid(x, **arguments, impl="kernel"))

    assert gradcheck(call, x, fast_mode=True)
    assert gradgradcheck(call, x, fast_mode=True)
    # A level that nobody uses has no gradient, and costs none.
    first = msr_cuda.resample_pyramid(x, **arguments, impl="kernel")[0]
    (grad,) = torch.autograd.grad(first.sum(), x)
    (alone,) = torch.autograd.grad(call(x)[0].sum(), x)
    assert torch.equal(grad, alone) and grad.abs().max() > 0


@pytest.mark.parametrize("rank", [1, 3])
def test_pyramids_of_other_ranks(rank: int, kernel: str) -> None:
    shape = (2, 3, 5, 6, 7)[: 2 + rank]
    x = torch.randn(shape, device=kernel, dtype=torch.float64, requires_grad=True)
    results = []
    for impl in ("kernel", "reference"):
        levels = msr_cuda.resample_pyramid(x, [3, 9], mode="linear", antialias=True, impl=impl)
        total = sum((level.pow(2).sum() for level in levels), x.new_zeros(()))
        results.append([*levels, *torch.autograd.grad(total, x)])
    for ours, truth in zip(*results, strict=True):
        testing.assert_within(ours, truth)


def jobs_of(a: Tensor, b: Tensor, weights: Tensor) -> list[dict[str, Any]]:
    """What an exchange unit and a neck do: the same maps in several sums."""
    return [
        dict(inputs=[a, b], mode="bilinear", activation="relu"),
        dict(inputs=[b, a], mode="area", activation="silu", weights=weights),
        dict(inputs=[a, b], mode="nearest", bias=weights[0]),
        dict(inputs=[b], size=(3, 3), mode=Pool("max", (3, 5), 1)),
        dict(inputs=[b, a], mode=["nearest", "bicubic"], weights=weights[:, :1].view(2)),
        dict(inputs=[a, b, b], mode="linear", weights=a.mean(1, keepdim=True).unsqueeze(1)
             .expand(-1, 3, -1, -1, -1), normalize="softmax"),
        dict(inputs=[b], scale_factors=[1.5], mode="bilinear", activation="relu6"),
    ]  # fmt: skip


def leaves(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    a = torch.randn(2, 6, 10, 14, dtype=torch.float64, device=device)
    b = torch.randn(2, 6, 5, 7, dtype=torch.float64, device=device)
    weights = torch.randn(2, 6, dtype=torch.float64, device=device)
    return tuple(t.to(dtype).requires_grad_() for t in (a, b, weights))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_many_sums_are_the_single_ones(dtype: torch.dtype, kernel: str) -> None:
    """Bit by bit, forward and backward."""
    inputs = leaves(dtype, kernel)
    together = msr_cuda.resample_sum_many(jobs_of(*inputs), impl="kernel")
    single = [msr_cuda.resample_sum(**job, impl="kernel") for job in jobs_of(*inputs)]
    grads = [torch.randn_like(y) for y in single]
    for y, z, g in zip(together, single, grads, strict=True):
        assert torch.equal(y, z) and y.stride() == z.stride()
        ours = torch.autograd.grad(y, inputs, g, retain_graph=True, allow_unused=True)
        alone = torch.autograd.grad(z, inputs, g, retain_graph=True, allow_unused=True)
        for p, q in zip(ours, alone, strict=True):
            assert (p is None and q is None) or torch.equal(p, q)
    with torch.no_grad():
        for y, z in zip(
            msr_cuda.resample_sum_many(jobs_of(*inputs), impl="kernel"), single, strict=True
        ):
            assert torch.equal(y, z)
    for y, z in zip(
        together, msr_cuda.resample_sum_many(jobs_of(*inputs), impl="reference"), strict=True
    ):
        testing.assert_within(y, z.double())


def test_derivatives_of_many_sums(kernel: str) -> None:
    inputs = leaves(torch.float64, kernel)

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(msr_cuda.resample_sum_many(jobs_of(*inputs), impl="kernel"))

    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


def test_many_sums_and_pyramids_compile_into_one_graph(kernel: str) -> None:
    inputs = leaves(torch.float32, kernel)

    def call(a: Tensor, b: Tensor, weights: Tensor) -> list[Tensor]:
        levels = msr_cuda.resample_pyramid(a, [5, 20], mode="bilinear", impl="kernel")
        return [*levels, *msr_cuda.resample_sum_many(jobs_of(a, b, weights), impl="kernel")]

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    eager, graph = call(*inputs), compiled(*inputs)
    for y, z in zip(eager, graph, strict=True):
        assert torch.equal(y, z)
    grads = [torch.randn_like(y) for y in eager]
    for y, z in zip(
        torch.autograd.grad(eager, inputs, grads),
        torch.autograd.grad(graph, inputs, grads),
        strict=True,
    ):
        torch.testing.assert_close(y, z)


def test_threads_do_not_change_the_bits(device: str) -> None:
    if device != "cpu":
        pytest.skip("about the CPU")
    if not _extension.has_kernels("cpu"):
        missing(f"no kernels: {_extension.WHY_NOT}")
    a, b, weights = leaves(torch.float32, "cpu")
    jobs = [job for job in jobs_of(a, b, weights) if "normalize" not in job]
    x = torch.randn(2, 8, 90, 70)

    def outcome() -> list[Tensor]:
        levels = msr_cuda.resample_pyramid(x, [45, 22, 120], mode="bilinear", impl="kernel")
        return [*levels, *msr_cuda.resample_sum_many(jobs, impl="kernel")]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = outcome()
        for count in (2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(y, z) for y, z in zip(first, outcome(), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_raw_operator_passes_opcheck(kernel: str) -> None:
    a, b, weights = (t.detach() for t in leaves(torch.float32, kernel))
    spec = _spec.pack([_spec.Mode.LINEAR] * 2, cat=False, activation="relu", channels_last=False,
                      dtype=torch.float32, accumulate_double=False) | _spec.SAVE  # fmt: skip
    pool = spec & ~15 | _spec.MAX_POOL | _spec.MAX
    torch.library.opcheck(
        _ops.gather_many,
        ([a, b, a, b], [2, 2], [weights.unsqueeze(0)], [], [10, 14, 5, 7],
         [spec | _spec.HAS_WEIGHTS, pool], [], [1, 1, 0] * 4 + [2, 2, 0] * 2 + [1, 1, 0] * 2),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="as many jobs"):
        _ops.gather_many([a], [1], [], [], [4, 4], [spec, spec], [], [])
    with pytest.raises(RuntimeError, match="as many inputs as the counts say"):
        _ops.gather_many([a], [2], [], [], [4, 4], [spec], [], [])
    with pytest.raises(RuntimeError, match="weights of every job"):
        _ops.gather_many([a], [1], [], [], [4, 4], [spec | _spec.HAS_WEIGHTS], [], [])


def test_errors_name_the_job() -> None:
    x, small, volume = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 2, 2), torch.zeros(2, 3, 4, 4, 4)
    calls: list[tuple[type[Exception], str, Any]] = [
        (TypeError, r"expected jobs to be a list of dicts, got dict", dict(inputs=[x])),
        (ValueError, r"expected at least one job", []),
        (TypeError, r"expected jobs\[0\] to be a dict, got list", [[x]]),
        (ValueError, r"expected jobs\[1\] to have inputs, got \['size'\]",
         [dict(inputs=[x]), dict(size=3)]),
        (ValueError, r"expected jobs\[0\] without out", [dict(inputs=[x], out=x)]),
        (ValueError, r"jobs\[1\]: expected inputs\[1\] to have 3 channels",
         [dict(inputs=[x]), dict(inputs=[x, small])]),
        (ValueError, r"expected the maps of jobs\[1\] on cpu with 4 dimensions .* got cpu and 5",
         [dict(inputs=[x]), dict(inputs=[volume])]),
        (TypeError, r"unexpected keyword", [dict(inputs=[x], colour=1)]),
    ]  # fmt: skip
    for error, message, jobs in calls:
        with pytest.raises(error, match=message):
            msr_cuda.resample_sum_many(jobs)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_short_rows_do_not_depend_on_the_number_of_threads(
    activation: str | None, kernel: str
) -> None:
    """Short rows are finished together: which ones must not follow from who does them."""
    maps = [torch.randn(2, 3, *size, device=kernel) for size in ((1, 1), (256, 21), (100, 21))]
    weights = torch.randn(1, 3, 1, 256, 21, device=kernel)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(
                msr_cuda.resample_sum(
                    maps, (256, 21), weights=weights, mode="linear", activation=activation,
                    impl="kernel",
                )
            )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


GUARDED = '''
import ctypes, math, mmap, sys
import torch
import msr_cuda
from test_many import PYRAMIDS

libc = ctypes.CDLL(None, use_errno=True)
kept = []

def guarded(x, at_end):
    """The values of x between two pages that cannot be read, next to one of them."""
    size = x.numel() * x.element_size()
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    kept.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        where = ctypes.c_void_p(address + page * mmap.PAGESIZE)
        assert libc.mprotect(where, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    begin = mmap.PAGESIZE + (pages * mmap.PAGESIZE - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=begin)
    return flat.view(x.shape).copy_(x)

for at_end in (False, True):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for name, arguments in PYRAMIDS.items():
            print(name, dtype, at_end, flush=True)
            plain = torch.randn(1, 1, 17, 21).to(dtype)
            x = guarded(plain, at_end).requires_grad_()
            levels = msr_cuda.resample_pyramid(x, **arguments, impl="kernel")
            grads = [guarded(torch.randn(y.shape).to(dtype), at_end) for y in levels]
            (grad,) = torch.autograd.grad(levels, x, grads)
            y = plain.requires_grad_()
            again = msr_cuda.resample_pyramid(y, **arguments, impl="kernel")
            assert all(map(torch.equal, levels, again))
            (expected,) = torch.autograd.grad(again, y, [g.clone() for g in grads])
            assert torch.equal(grad, expected)
print("finished")
'''


@pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded as on Linux")
@pytest.mark.usefixtures("kernels")
def test_nothing_is_read_beyond_the_ends_of_a_map() -> None:
    """In a process of its own, which a read of a guarded page would end."""
    done = subprocess.run(
        [sys.executable, "-c", GUARDED], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert done.stdout.endswith("finished\n"), (done.returncode, done.stdout[-200:], done.stderr)
