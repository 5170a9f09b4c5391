"""The harness that runs CUDA kernels on the CPU: is it right, and does it catch each fault?"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from harness import build, cases_io, replay
from harness.cases_io import Carried, Case, Expected

KERNELS = build.HARNESS / "selftest_kernels.cuh"
ORDERS = ("forward", "reverse", "shuffled")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the harness reads ELF symbol tables"
)


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return build.load()


@pytest.fixture(autouse=True)
def defaults(module: ModuleType) -> Iterator[None]:
    yield
    module.set_thread_order("forward")
    module.set_portable_fibers(False)
    module.set_os_threads(2)


@pytest.fixture(params=["assembly", "ucontext"])
def fibers(request: pytest.FixtureRequest, module: ModuleType) -> str:
    module.set_portable_fibers(request.param == "ucontext")
    return request.param


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest, module: ModuleType) -> str:
    module.set_thread_order(request.param, 7)
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def line_of(fault: str) -> int:
    """The line of selftest_kernels.cuh that has this FAULT comment."""
    lines = KERNELS.read_text().splitlines()
    (line,) = [i for i, text in enumerate(lines, 1) if text.endswith(f"// FAULT {fault}")]
    return line


# ---- right kernels -------------------------------------------------------------------------------


def test_block_sum_uses_shared_memory_and_barriers(
    module: ModuleType, order: str, fibers: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal(1000).astype(np.float32)
    partial = np.empty(8, np.float32)
    module.selftest.block_sum(x=x, partial=partial)
    tree = np.zeros((8, 128), np.float32)
    tree.reshape(-1)[:1000] = x
    while tree.shape[1] > 1:
        half = tree.shape[1] // 2
        tree = tree[:, :half] + tree[:, half:]
    np.testing.assert_array_equal(partial, tree[:, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shuffle_sum(
    module: ModuleType, order: str, fibers: str, dtype: str, rng: np.random.Generator
) -> None:
    x = rng.integers(-50, 50, 500).astype(dtype)  # integers: exact in any order of summation
    partial = np.empty(6, dtype)
    module.selftest.shuffle_sum(x=x, partial=partial)
    padded = np.concatenate([x, np.zeros(76, dtype)])
    np.testing.assert_array_equal(partial, padded.reshape(6, 96).sum(1))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("argument", [0, 1, 3, 7, 16, 31])
@pytest.mark.parametrize("threads", [64, 40])
def test_shuffles_follow_the_cuda_rules(
    module: ModuleType, width: int, argument: int, threads: int
) -> None:
    out = np.empty((4, threads), np.int32)
    module.selftest.shuffle_kinds(argument=argument, width=width, threads=threads, out=out)
    for thread in range(threads):
        lane = thread % 32
        begin = lane // width * width
        up = lane - argument if lane - argument >= begin else lane
        down = lane + argument if lane + argument < begin + width else lane
        xor = lane ^ argument if lane ^ argument < begin + width else lane
        for kind, source in enumerate([begin + argument % width, up, down, xor]):
            from_thread = thread - lane + source
            # A lane that the block doesn't have gives no value: the harness makes it all ones.
            want = 100 + from_thread if from_thread < threads else -1
            assert out[kind, thread] == want, (kind, thread)


def test_diverged_half_warps_have_collectives_of_their_own(
    module: ModuleType, order: str, fibers: str, rng: np.random.Generator
) -> None:
    x = rng.integers(-9, 9, 32).astype(np.int32)
    out = np.empty(32, np.int32)
    module.selftest.half_warps(x=x, out=out)
    value = x.copy()
    value[:16] = x[:16].sum()
    value[16:] = x[16:].reshape(8, 2).max(1).repeat(2)
    value[16:] += value[31]
    np.testing.assert_array_equal(out, value + value[0])


def test_votes(module: ModuleType, order: str, rng: np.random.Generator) -> None:
    x = rng.integers(-1, 2, 96).astype(np.int32)
    x[32:64] = 1
    ballot, any_, all_ = np.empty(96, np.uint32), np.empty(96, np.int32), np.empty(96, np.int32)
    module.selftest.vote(x=x, threads=48, ballot=ballot, any=any_, all=all_)
    for start, stop in ((0, 32), (32, 48), (48, 80), (80, 96)):
        bits = sum(1 << i for i, v in enumerate(x[start:stop]) if v > 0)
        assert (ballot[start:stop] == bits).all()
        assert ((any_[start:stop] != 0) == (x[start:stop] > 0).any()).all()
        assert ((all_[start:stop] != 0) == (x[start:stop] > 0).all()).all()


def test_dynamic_shared_memory(
    module: ModuleType, order: str, fibers: str, rng: np.random.Generator
) -> None:
    x = rng.standard_normal(1024)
    out = np.empty(1024)
    module.selftest.reverse(x=x, threads=256, out=out)
    np.testing.assert_array_equal(out, x.reshape(4, 256)[:, ::-1].reshape(-1))


def indices(module: ModuleType, grid: tuple[int, ...], block: tuple[int, ...], **more: Any) -> Any:
    shape = [g * b for g, b in zip(grid, block, strict=True)]
    out = np.empty(shape[::-1] if np.prod(shape) < 10**6 else 1, np.int32)
    axes = dict(zip(("grid_x", "grid_y", "grid_z"), grid, strict=True))
    axes |= dict(zip(("block_x", "block_y", "block_z"), block, strict=True))
    module.selftest.indices(**axes, out=out, **more)
    return out


def test_indices_of_three_dimensional_grids(module: ModuleType, order: str) -> None:
    grid, block = (3, 2, 4), (5, 3, 2)
    out = indices(module, grid, block)
    z, y, x = np.indices(out.shape)
    in_grid = (z // 2 * 2 + y // 3) * 3 + x // 5
    in_block = (z % 2 * 3 + y % 3) * 5 + x % 5
    np.testing.assert_array_equal(out, in_grid * 10000 + in_block)


@pytest.mark.parametrize("os_threads", [1, 2, 5])
def test_results_do_not_depend_on_os_threads(
    module: ModuleType, order: str, os_threads: int, rng: np.random.Generator
) -> None:
    module.set_os_threads(os_threads)
    x = rng.integers(-5, 5, 20000).astype(np.int32)
    count = np.empty(1, np.int32)
    module.selftest.count_positive(x=x, count=count)
    assert count[0] == (x > 0).sum()
    partial = np.empty(157, np.float32)
    module.selftest.block_sum(x=x.astype(np.float32), partial=partial)
    padded = np.concatenate([x, np.zeros(157 * 128 - x.size, np.int32)])
    np.testing.assert_array_equal(partial, padded.reshape(157, 128).sum(1))


def test_half_to_float_is_exact_for_every_half(module: ModuleType) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    widened, out = np.empty(bits.size, np.float32), np.empty_like(bits)
    half, result = Carried(bits, "float16"), Carried(out, "float16")
    module.selftest.round_trip(x=half, widened=widened, out=result)
    want = bits.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(widened, want)
    nan = np.isnan(want)
    np.testing.assert_array_equal(out[~nan], bits[~nan])
    assert (out[nan] == 0x7FFF).all()


def test_bfloat16_to_float_is_exact_for_every_bfloat16(module: ModuleType) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    widened, out = np.empty(bits.size, np.float32), np.empty_like(bits)
    module.selftest.round_trip(
        x=Carried(bits, "bfloat16"), widened=widened, out=Carried(out, "bfloat16")
    )
    nan = np.isnan(widened)
    np.testing.assert_array_equal(widened.view(np.uint32), bits.astype(np.uint32) << 16)
    np.testing.assert_array_equal(out[~nan], bits[~nan])


def test_rounding_to_half_and_bfloat16(module: ModuleType, rng: np.random.Generator) -> None:
    bits = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    # Half's own range, ties and neighbours of ties, and its limits.
    ties = np.arange(0x0000, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (ties[1:] + ties[:-1]) / 2
    near = [np.nextafter(middles, np.float32(side)) for side in (0, np.inf)]
    limits = np.array([65519.99, 65520, np.inf], np.float32)
    x = np.concatenate([bits.view(np.float32), ties, middles, *near, limits])
    x = x[~np.isnan(x)]
    out = np.empty(x.size, np.uint16)
    module.selftest.round_to_half(x=x, out=Carried(out, "float16"))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, x.astype(np.float16).view(np.uint16))
    module.selftest.round_to_half(x=x, out=Carried(out, "bfloat16"))
    low = x.view(np.uint32) >> 16  # and low + 1: the neighbours of x, by magnitude
    neighbours = (np.stack([low, low + 1]) << 16).view(np.float32)
    finite = np.isfinite(neighbours).all(0)
    error = np.zeros(neighbours.shape)
    error[:, finite] = np.abs(neighbours[:, finite].astype(np.float64) - x[finite])
    even = np.where(low % 2 == 0, low, low + 1)
    want = np.where(error[0] == error[1], even, np.where(error[0] < error[1], low, low + 1))
    np.testing.assert_array_equal(out[finite], want[finite])
    assert np.isinf(x).any()
    np.testing.assert_array_equal(out[np.isinf(x)], low[np.isinf(x)])


def test_shared_memory_is_poisoned_for_every_block(module: ModuleType, order: str) -> None:
    out = np.empty((6, 12), np.uint32)
    for write in (True, False):
        module.selftest.unwritten_shared(write=write, blocks=6, out=out)
        assert (out == 0xFFFFFFFF).all()


def test_launches_are_counted_by_kernel_name(module: ModuleType) -> None:
    module.reset_launch_counts()
    x32, x64 = np.ones(96, np.float32), np.ones(96)
    module.selftest.shuffle_sum(x=x32, partial=np.empty(1, np.float32))
    module.selftest.shuffle_sum(x=x64, partial=np.empty(1))
    module.selftest.shuffle_sum(x=x64, partial=np.empty(1))
    bits = np.zeros(8, np.uint16)
    module.selftest.round_trip(
        x=Carried(bits, "float16"), widened=np.empty(8, np.float32), out=Carried(bits, "float16")
    )
    want = {"shuffle_sum_float32": 1, "shuffle_sum_float64": 2, "round_trip_kernel<T>": 1}
    assert module.launch_counts() == want
    module.reset_launch_counts()
    assert module.launch_counts() == {}


def test_bindings_see_arrays_as_they_are(module: ModuleType) -> None:
    base = np.zeros((2, 3, 4, 1), np.float32)
    array = base.transpose(0, 3, 1, 2)[:, :, 1:]
    seen = module.describe(array)
    assert seen["address"] == array.ctypes.data
    assert seen["size"] == [2, 1, 2, 4]
    assert seen["stride"] == [s // 4 for s in array.strides]
    assert (seen["dtype"], seen["code"], seen["writable"]) == ("float32", 0, True)
    base.flags.writeable = False
    assert not module.describe(base)["writable"]
    seen = module.describe(Carried(np.zeros(4, np.uint16), "bfloat16"))
    assert (seen["dtype"], seen["code"]) == ("bfloat16", 2)


def test_bindings_refuse_wrong_arguments(module: ModuleType) -> None:
    out = np.empty(1, np.float32)
    with pytest.raises(ValueError, match="expected an array of float32, got float64"):
        module.selftest.block_sum(x=np.zeros(4), partial=out)
    with pytest.raises(ValueError, match="argument x is missing"):
        module.selftest.block_sum(partial=out)
    with pytest.raises(ValueError, match="no kernel takes elements of type complex64"):
        module.selftest.block_sum(x=np.zeros(4, np.complex64), partial=out)
    with pytest.raises(TypeError, match="bfloat16 is carried as uint16, got float32"):
        module.describe((out, "bfloat16"))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writable output"):
        module.selftest.block_sum(x=np.zeros(4, np.float32), partial=out)


# ---- launch configurations -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((1, 1, 1), (1025, 1, 1), "expected a block of 1 to 1024 threads"),
        ((1, 1, 1), (32, 33, 1), "expected a block of 1 to 1024 threads"),
        ((1, 1, 1), (1, 1, 65), r"expected a block .* got \(1, 1, 65\)"),
        ((1, 1, 1), (0, 1, 1), "expected a block of 1 to 1024 threads"),
        ((0, 1, 1), (1, 1, 1), "expected a grid from"),
        ((1, 65536, 1), (1, 1, 1), r"expected a grid .* got \(1, 65536, 1\)"),
        ((1, 1, 65536), (1, 1, 1), "expected a grid from"),
    ],
)
def test_invalid_launch_configurations(
    module: ModuleType, grid: tuple[int, ...], block: tuple[int, ...], message: str
) -> None:
    module.reset_launch_counts()
    with pytest.raises(RuntimeError, match=f"^kernel 'indices_kernel': invalid launch.*{message}"):
        indices(module, grid, block)
    assert module.launch_counts() == {}


def test_largest_launch_configurations_work(module: ModuleType) -> None:
    assert indices(module, (1, 1, 1), (16, 1, 64)).max() == 1023
    out = indices(module, (1, 65535, 1), (1, 1, 1))
    np.testing.assert_array_equal(out.reshape(-1), np.arange(65535) * 10000)


def test_shared_memory_limits(module: ModuleType) -> None:
    def run(dynamic: int, allowed: int) -> None:
        out = np.empty(32, np.float32)
        module.selftest.large_static_shared(dynamic_bytes=dynamic, allowed_bytes=allowed, out=out)
        assert (out == 1).all()

    static = 44 << 10
    run((48 << 10) - static, 0)
    with pytest.raises(RuntimeError, match="45056 static \\+ 4097 dynamic bytes"):
        run((48 << 10) - static + 1, 0)
    run((227 << 10) - static, (227 << 10) - static)
    with pytest.raises(RuntimeError, match="expected at most 232448 bytes of shared memory"):
        run((227 << 10) - static + 1, 227 << 10)
    with pytest.raises(RuntimeError, match="cudaFuncSetAttribute: expected 0 to 232448 bytes"):
        run(0, (227 << 10) + 1)
    with pytest.raises(RuntimeError, match="expected at most 232448 bytes of shared memory"):
        indices(module, (1, 1, 1), (1, 1, 1), dynamic_bytes=(227 << 10) + 1)


# ---- faults the harness reports ------------------------------------------------------------------


def place(fault: str) -> str:
    return rf"selftest_kernels\.cuh:{line_of(fault)}"


def test_barrier_after_an_early_return(module: ModuleType, order: str, fibers: str) -> None:
    destroyed = np.zeros(1, np.int32)
    message = (
        r"kernel 'early_return_kernel', block \(0, 0, 0\), thread \(0, 0, 0\): waits in "
        rf"__syncthreads\(\) at \S*{place('early_return')}, but 121 of 128 threads have exited, "
        r"the first thread \(7, 0, 0\)"
    )
    for runs in (1, 2):
        with pytest.raises(RuntimeError, match=message):
            module.selftest.early_return(n=7, out=np.empty(128, np.float32), destroyed=destroyed)
        # Suspended threads were unwound too.
        assert destroyed[0] == 128 * runs
    out = np.empty(128, np.float32)
    module.selftest.early_return(n=128, out=out, destroyed=destroyed)
    assert (out == 1).all()


def test_divergent_barrier(module: ModuleType, order: str, fibers: str) -> None:
    message = (
        rf"waits in __syncthreads\(\) at \S*{place('divergent_barrier even')}, but thread "
        rf"\(1, 0, 0\) waits in the one at \S*{place('divergent_barrier odd')}"
    )
    with pytest.raises(RuntimeError, match=message):
        module.selftest.divergent_barrier(out=np.empty(64, np.float32))


def test_lane_missing_from_a_shuffle(module: ModuleType, order: str, fibers: str) -> None:
    message = (
        rf"block \(0, 0, 0\), thread \(0, 0, 0\): __shfl_sync at \S*{place('missing_lane')} with "
        r"mask 0xffffffff waits for lane 5 \(exited\)"
    )
    with pytest.raises(RuntimeError, match=message):
        module.selftest.missing_lane(out=np.empty(64, np.int32))


def test_lane_that_waits_at_a_barrier(module: ModuleType, order: str) -> None:
    message = rf"__any_sync at \S*{place('lane_at_barrier')} .* lane 7 \(in __syncthreads\(\) at"
    with pytest.raises(RuntimeError, match=message):
        module.selftest.lane_at_barrier(out=np.empty(64, np.int32))


def test_lane_outside_its_mask(module: ModuleType) -> None:
    message = (
        rf"thread \(16, 0, 0\): __shfl_xor_sync at \S*{place('outside_mask')}: lane 16 is not in "
        "its own mask 0xffff"
    )
    with pytest.raises(RuntimeError, match=message):
        module.selftest.outside_mask(out=np.empty(64, np.int32))


def test_lanes_that_disagree_on_the_mask(module: ModuleType, order: str) -> None:
    with pytest.raises(RuntimeError, match=r"waits for lane 16 \(in __shfl_sync at .* 0xffff0001"):
        module.selftest.masks_differ(out=np.empty(64, np.int32))


def test_shuffle_width_that_is_no_power_of_two(module: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="power of two up to 32, got 12"):
        module.selftest.shuffle_width(out=np.empty(64, np.int32))


@pytest.mark.parametrize("os_threads", [1, 2])
def test_error_in_one_of_many_blocks(
    module: ModuleType, order: str, fibers: str, os_threads: int
) -> None:
    module.set_os_threads(os_threads)
    with pytest.raises(RuntimeError, match=r"block \(77, 0, 0\), thread \(3, 0, 0\): __trap"):
        module.selftest.trap(blocks=100, block=77, thread=3, out=np.empty(1, np.int32))


def test_dynamic_shared_overflow_without_a_sanitizer(module: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="byte 512 of dynamic shared memory was written"):
        module.selftest.dynamic_shared_overflow(index=128, out=np.empty(128, np.float32))


def test_missing_barrier_shows_in_the_thread_order(module: ModuleType) -> None:
    x = np.arange(128, dtype=np.float32)
    results = []
    for order in ORDERS:
        module.set_thread_order(order, 1)
        out = np.empty_like(x)
        module.selftest.missing_barrier(x=x, out=out)
        results.append(out)
    assert all(np.isnan(out).any() for out in results)  # from the poison
    bits = [out.view(np.uint32) for out in results]
    assert not np.array_equal(bits[0], bits[1])
    assert not np.array_equal(bits[0], bits[2])


def test_race_between_blocks_shows_in_the_order(module: ModuleType) -> None:
    results = []
    for order in ORDERS:
        module.set_thread_order(order, 1)
        out = np.empty(20, np.int32)
        module.selftest.block_race(blocks=20, out=out)
        results.append(out.tolist())
    assert results[0] == list(range(1, 21))
    assert results[1] == [1] + [0] * 19
    assert results[2] not in results[:2]


def test_shuffled_order_depends_on_the_seed(module: ModuleType) -> None:
    x = np.arange(128, dtype=np.float32)

    def run(seed: int) -> bytes:
        module.set_thread_order("shuffled", seed)
        out = np.empty_like(x)
        module.selftest.missing_barrier(x=x, out=out)
        return out.tobytes()

    assert run(1) == run(1)
    assert run(1) != run(2)


# ---- cases ---------------------------------------------------------------------------------------


def block_sum_case(rng: np.random.Generator, **changes: Any) -> Case:
    x = rng.integers(-9, 9, 256).astype(np.float32)
    record: dict[str, Any] = {
        "name": "block_sum",
        "function": "selftest.block_sum",
        "arguments": {"x": x, "partial": np.empty(2, np.float32)},
        "expected": {"partial": Expected(x.reshape(2, 128).sum(1).astype(np.float64))},
        "kernels": ["block_sum_kernel"],
    }
    return Case(**(record | changes))


def strided(rows: int, columns: int, stride: int) -> Any:
    base = np.zeros(rows * stride, np.float32)
    return np.lib.stride_tricks.as_strided(base, (rows, columns), (4 * stride, 4))


def test_replayed_case_passes(module: ModuleType, rng: np.random.Generator) -> None:
    outputs = replay.run_case(module, block_sum_case(rng))
    assert isinstance(outputs["partial"], np.ndarray)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"expected": {"partial": Expected(np.array([1e9, 0.0]), rtol=0.5)}},
            r"output partial: \d of 2 elements differ, the worst at \(0,\): expected .*1000000000",
        ),
        ({"kernels": ["other"]}, r"expected kernel 'other' .* got \['block_sum_kernel'\]"),
        ({"expected": {"nothing": Expected(np.zeros(2))}}, "are no arguments"),
        (
            {
                "function": "selftest.missing_barrier",
                "arguments": {
                    "x": np.arange(128, dtype=np.float32),
                    "out": np.empty(128, np.float32),
                },
                "expected": {"out": Expected(np.arange(128.0)[::-1].copy())},
                "kernels": [],
            },
            "output out depends on the order of threads: .* between forward and reverse",
        ),
        (
            {
                "function": "selftest.unwritten_output",
                "arguments": {"out": np.empty(200, np.float32)},
                "expected": {"out": Expected(np.ones(200))},
                "kernels": [],
            },
            r"1 of 200 elements differ, the worst at \(199,\): .*; 1 still hold the poison",
        ),
        (
            {
                "function": "selftest.stray_write",
                "arguments": {"out": strided(3, 4, 6)},
                "expected": {"out": Expected(np.ones((3, 4)))},
                "kernels": [],
            },
            "output out: 1 elements between its own were written, the first 4 elements after",
        ),
        (
            {"arguments": {"x": np.ones(8, np.float32), "partial": np.zeros(1, np.float32)},
             "expected": {}},
            "argument partial is no output, but was written to",
        ),
    ],
)  # fmt: skip
def test_replayed_case_fails(
    module: ModuleType, rng: np.random.Generator, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(replay.CaseError, match=message):
        replay.run_case(module, block_sum_case(rng, **changes))


def test_tolerances() -> None:
    want = np.array([1.0, -2.0, np.nan, np.inf, 0.0])
    got = np.array([1.001, -2.0, np.nan, np.inf, 1e-6])
    replay.compare("y", got, Expected(want, rtol=2e-3, atol=2e-6))
    each = np.array([0.0, 0.0, 0.0, 0.0, 2e-6])
    replay.compare("y", got, Expected(want, rtol=2e-3, atol=each))
    for wrong in (
        Expected(want, rtol=5e-4, atol=2e-6),
        Expected(want, rtol=2e-3),
        Expected(np.where(np.isnan(want), 0.0, want), rtol=2e-3, atol=2e-6),
        Expected(np.where(np.isinf(want), -want, want), rtol=2e-3, atol=2e-6),
        Expected(np.where(np.isinf(want), 1.0, want), rtol=2e-3, atol=2e-6),
    ):
        with pytest.raises(replay.CaseError, match="1 of 5 elements differ"):
            replay.compare("y", got, wrong)
    half = Carried(np.array([0x3C00, 0xC000], np.uint16), "float16")
    replay.compare("y", half, Expected(np.array([1.0, -2.0])))
    bfloat16 = Carried(np.array([0x3F80, 0xC000], np.uint16), "bfloat16")
    replay.compare("y", bfloat16, Expected(np.array([1.0, -2.0])))
    with pytest.raises(replay.CaseError, match="1 of 2 elements differ"):
        replay.compare("y", np.array([1, 2]), Expected(np.array([1, 3]), atol=9.0))


def test_cases_survive_the_file(tmp_path: Path, rng: np.random.Generator) -> None:
    base = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    channels_last = base.transpose(0, 3, 1, 2)
    arguments = {
        "channels_last": channels_last,
        "sliced": base[:, 1:4, ::2, 1:],
        "expanded": np.broadcast_to(base[:1], (3, 5, 6, 4)),
        "empty": base[:0],
        "scalar": np.array(3, np.int64),
        "half": Carried(np.arange(6, dtype=np.uint16)[1:], "bfloat16"),
        "several": [base[0], None, Carried(np.zeros(2, np.uint16), "float16")],
        "integer": 3,
        "number": 0.5,
        "flag": True,
        "text": "bilinear",
        "nothing": None,
    }
    expected = {
        "channels_last": Expected(channels_last.astype(np.float64), 1e-3, np.abs(channels_last)),
        "several": [Expected(np.ones(3)), None, Expected(np.array([True, False]))],
    }
    case = Case("name", "function", arguments, expected, ["kernel"])
    cases_io.write_cases(tmp_path / "cases.npz", [case])
    (back,) = cases_io.read_cases(tmp_path / "cases.npz")
    assert (back.name, back.function, list(back.kernels)) == ("name", "function", ["kernel"])
    assert list(back.arguments) == list(arguments)

    def same(one: Any, other: Any) -> None:
        if isinstance(one, list):
            assert len(one) == len(other)
            for a, b in zip(one, other, strict=True):
                same(a, b)
        elif isinstance(one, (np.ndarray, Carried)):
            assert type(one) is type(other)
            assert cases_io.dtype_name(one) == cases_io.dtype_name(other)
            a, b = cases_io.elements(one), cases_io.elements(other)
            np.testing.assert_array_equal(a, b)
            assert a.strides == b.strides or a.size == 0
            assert a.ctypes.data % 16 == b.ctypes.data % 16 or a.size == 0
            np.testing.assert_array_equal(cases_io.memory(a), cases_io.memory(b))
        else:
            assert one == other
            assert type(one) is type(other)

    for name, value in arguments.items():
        same(value, back.arguments[name])
        if isinstance(value, np.ndarray) and value.size:
            same(value, cases_io.replica(value))
    whole = back.expected["channels_last"]
    assert isinstance(whole, Expected)
    np.testing.assert_array_equal(whole.values, channels_last)
    np.testing.assert_array_equal(whole.atol, np.abs(channels_last))
    assert whole.rtol == 1e-3
    first, none, last = back.expected["several"]  # type: ignore[misc]
    assert none is None
    assert first.values.tolist() == [1, 1, 1]
    assert last.values.tolist() == [True, False]


def test_arrays_from_torch_keep_their_memory() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    array = cases_io.from_torch(tensor)
    assert isinstance(array, np.ndarray)
    assert array.ctypes.data == tensor.data_ptr()
    assert [s // 4 for s in array.strides] == list(tensor.stride())
    for dtype in (torch.float16, torch.bfloat16):
        carried = cases_io.from_torch(tensor.to(dtype).requires_grad_())
        assert isinstance(carried, Carried)
        assert carried.dtype == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(replay.decoded(carried), tensor.numpy())


# ---- under sanitizers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized() -> None:
    try:
        build.sanitizer_libraries()
    except build.BuildError as error:
        pytest.skip(str(error))
    build.build([True])


def run_sanitized(code: str) -> subprocess.CompletedProcess[str]:
    prelude = f"""
        import sys
        sys.path.insert(0, {str(build.HARNESS.parent)!r})
        import numpy as np
        from harness import build
        module = build.load(sanitize=True)
        selftest = module.selftest
        assert module.sanitized and "torch" not in sys.modules
    """
    program = textwrap.dedent(prelude) + textwrap.dedent(code) + "\nprint('finished')\n"
    return subprocess.run(
        [sys.executable, "-c", program],
        env=build.sanitizer_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.usefixtures("sanitized")
@pytest.mark.parametrize(
    ("fault", "call", "report"),
    [
        (
            "read_past_end",
            "read_past_end(x=np.ones(100, np.float32), out=np.empty(1, np.float32))",
            "AddressSanitizer: heap-buffer-overflow .*READ of size 4",
        ),
        (
            "write_past_end",
            "write_past_end(out=np.empty(100, np.float32))",
            "AddressSanitizer: heap-buffer-overflow .*WRITE of size 4",
        ),
        (
            "static_shared_overflow",
            "static_shared_overflow(index=128, out=np.empty(128, np.float32))",
            "AddressSanitizer: global-buffer-overflow .*WRITE of size 4",
        ),
        (
            "dynamic_shared_overflow",
            "dynamic_shared_overflow(index=128, out=np.empty(128, np.float32))",
            "AddressSanitizer: heap-buffer-overflow .*WRITE of size 4",
        ),
        (
            "misaligned_load",
            "misaligned_load(x=np.ones(16, np.float32), offset=1, out=np.empty(1, np.float32))",
            "runtime error: .* misaligned address .*, which requires 16 byte alignment",
        ),
        (
            "signed_overflow",
            "signed_overflow(x=2**31 - 1, out=np.empty(1, np.int32))",
            "runtime error: signed integer overflow",
        ),
    ],
)
def test_sanitizers_find(fault: str, call: str, report: str) -> None:
    done = run_sanitized(f"selftest.{call}")
    assert done.returncode != 0
    assert "finished" not in done.stdout
    assert re.search(report, done.stderr, re.DOTALL), done.stderr
    assert re.search(place(fault) + r"\b", done.stderr), done.stderr


@pytest.mark.usefixtures("sanitized")
def test_sanitizers_accept_right_kernels_and_caught_errors() -> None:
    done = run_sanitized(
        """
        def fails(function, **arguments):
            try:
                function(**arguments)
            except RuntimeError:
                return
            raise AssertionError(function)

        for portable in (False, True):
            module.set_portable_fibers(portable)
            for order in ("forward", "reverse", "shuffled"):
                module.set_thread_order(order)
                x = np.arange(1000, dtype=np.float32)
                partial = np.empty(8, np.float32)
                selftest.block_sum(x=x, partial=partial)
                assert partial.sum() == x.sum()
                shared = np.empty((3, 12), np.uint32)
                selftest.unwritten_shared(write=True, blocks=3, out=shared)
                assert (shared == 0xFFFFFFFF).all()
                destroyed = np.zeros(1, np.int32)
                out = np.empty(128, np.float32)
                fails(selftest.early_return, n=7, out=out, destroyed=destroyed)
                assert destroyed[0] == 128
                fails(selftest.missing_lane, out=np.empty(64, np.int32))
                fails(selftest.divergent_barrier, out=np.empty(64, np.float32))
                fails(selftest.trap, blocks=9, block=5, thread=3, out=np.empty(1, np.int32))
        """
    )
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "ERROR" not in done.stderr
    assert "runtime error" not in done.stderr


@pytest.mark.usefixtures("sanitized")
def test_sanitized_replay(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "cases.npz"
    good = block_sum_case(rng)
    cases_io.write_cases(path, [good, good])
    done = replay.replay_sanitized(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("2 passed, 0 failed\n")

    bad = block_sum_case(rng, name="bad", expected={"partial": Expected(np.zeros(2))})
    cases_io.write_cases(path, [bad, good])
    # Started plainly, the script gets itself the sanitizers.
    command = [sys.executable, replay.__file__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED bad (selftest.block_sum): CaseError: output partial: " in done.stdout
    assert done.stdout.endswith("1 passed, 1 failed\n")

    overflow = {"out": np.empty(100, np.float32)}
    crash = Case(
        "crash", "selftest.write_past_end", overflow, {"out": Expected(np.ones(100))}
    )  # fmt: skip
    cases_io.write_cases(path, [good, crash, good])
    done = replay.replay_sanitized(path)
    assert done.returncode == 97
    assert done.stdout.splitlines()[-1] == "crash ..."
    assert "heap-buffer-overflow" in done.stderr


# ---- the build -----------------------------------------------------------------------------------


def test_sanitized_module_needs_its_environment() -> None:
    with pytest.raises(RuntimeError, match="expected a process started with sanitizer_environm"):
        build.load(sanitize=True)


def test_build_error_has_the_compilers_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main() { return no_such_name; }\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "BUILD", tmp_path / "build")
    monkeypatch.setattr(build, "HARNESS", tmp_path)
    monkeypatch.setattr(build, "KERNELS", tmp_path)
    with pytest.raises(build.BuildError, match=r"(?s)broken\.cpp.*no_such_name"):
        build.build()


def test_bindings_cannot_contain_kernels(tmp_path: Path) -> None:
    source = build.HARNESS / "binding.cpp"
    flags = build._flags(source, sanitize=True)
    test = tmp_path / "bind.cpp"
    test.write_text('#include "selftest_kernels.cuh"\n')
    with pytest.raises(build.BuildError, match="compile with nvcc, or with -DMSR_CUDA_ON_CPU"):
        build._run([*build.compiler(), *flags, "-fsyntax-only", str(test)])


def test_a_change_of_any_source_or_header_makes_another_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, kernels = tmp_path / "harness", tmp_path / "kernels"
    harness.mkdir()
    kernels.mkdir()
    (harness / "bind.cpp").write_text('#include "bind.h"\n')
    (harness / "bind.h").write_text("")
    (kernels / "sum.cu").write_text('#include "sum.cuh"\n')
    (kernels / "sum.cuh").write_text("")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "HARNESS", harness)
    monkeypatch.setattr(build, "KERNELS", kernels)
    seen = {build.module_path(False), build.module_path(True)}
    assert len(seen) == 2
    for changed in (harness / "bind.h", kernels / "sum.cuh", kernels / "sum.cu"):
        objects = [build._object_path(source, False) for source in build.sources()]
        changed.write_text(changed.read_text() + "// changed\n")
        assert build.module_path(False) not in seen
        seen.add(build.module_path(False))
        # Only what includes it is compiled again.
        again = [build._object_path(source, False) for source in build.sources()]
        differs = [a != b for a, b in zip(objects, again, strict=True)]
        assert differs == [changed.suffix == ".h", changed.suffix != ".h"]
