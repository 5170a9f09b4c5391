"""CUDA on the CPU: does it run right kernels right, and report the faults of others?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from harness import build
from harness.cases_io import Carried
from harness.selftest import place

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


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "divergent_barrier",
            rf"waits in __syncthreads\(\) at \S*{place('divergent_barrier even')}, but thread "
            rf"\(1, 0, 0\) waits in the one at \S*{place('divergent_barrier odd')}",
        ),
        (
            "missing_lane",
            rf"block \(0, 0, 0\), thread \(0, 0, 0\): __shfl_sync at \S*{place('missing_lane')} "
            r"with mask 0xffffffff waits for lane 5 \(exited\)",
        ),
        (
            "lane_at_barrier",
            rf"__any_sync at \S*{place('lane_at_barrier')} .* lane 7 \(in __syncthreads\(\) at",
        ),
        ("masks_differ", r"waits for lane 16 \(in __shfl_sync at .* 0xffff0001"),
    ],
)
def test_threads_that_wait_for_each_other_in_vain(
    module: ModuleType, order: str, fibers: str, function: str, message: str
) -> None:
    # The elements of `out` are not written: only their number matters.
    out = np.empty(64, np.float32 if function == "divergent_barrier" else np.int32)
    with pytest.raises(RuntimeError, match=message):
        getattr(module.selftest, function)(out=out)


def test_lane_outside_its_mask(module: ModuleType) -> None:
    message = (
        rf"thread \(16, 0, 0\): __shfl_xor_sync at \S*{place('outside_mask')}: lane 16 is not in "
        "its own mask 0xffff"
    )
    with pytest.raises(RuntimeError, match=message):
        module.selftest.outside_mask(out=np.empty(64, np.int32))


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
