"""Cases of kernel calls: what replaying them notices, and the file that carries them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from harness import build, cases_io, instances, replay
from harness.cases_io import Carried, Case, Expected
from harness.selftest import block_sum_case

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the harness reads ELF symbol tables"
)


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return build.load()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


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
        ({"kernels": ["other"]},
         r"kernel 'other' .* got \['block_sum_kernel', 'msr::selftest::block_sum_kernel'\]"),
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


# ---- which kernels ran ---------------------------------------------------------------------------


def test_each_instance_of_a_kernel_counts_by_itself(module: ModuleType) -> None:
    module.reset_launch_counts()
    x = np.ones(96)
    module.selftest.shuffle_sum(x=x, partial=np.empty(1))
    counts = module.compiled_kernels()
    (double,) = [n for n in counts if n.startswith("msr::selftest::shuffle_sum") and "<double" in n]
    assert counts[double] == 1
    assert counts[double.replace("<double", "<float")] == 0


def test_an_instance_that_never_ran_is_reported() -> None:
    compiled = {
        "msr::gather_kernel<float>": 3,
        "msr::expand_kernel<msr::Half, 8, 1, false>": 1,
        "msr::expand_kernel<msr::Half, 8, 1, true>": 0,
        "msr::selftest::trap_kernel": 0,
    }
    module = ModuleType("compiled")
    module.compiled_kernels = lambda: compiled  # type: ignore[attr-defined]
    never = instances.never_launched(module, "tests/test_expand_on_cpu.py")
    assert never == ["msr::expand_kernel<msr::Half, 8, 1, true>"]
    assert instances.never_launched(module, "tests/test_kernels_on_cpu.py") == []
    compiled["msr::new_kernel<float>"] = 7
    with pytest.raises(KeyError, match="new_kernel"):
        instances.never_launched(module, "tests/test_kernels_on_cpu.py")


def test_every_kernel_has_a_test_file_that_checks_it(module: ModuleType) -> None:
    folder = Path(__file__).parent
    for name in module.compiled_kernels():
        if not name.startswith("msr::selftest::"):
            file = folder / instances.COVERED_BY[instances.template_of(name)]
            assert "instances.never_launched(module, __file__)" in file.read_text(encoding="utf-8")
