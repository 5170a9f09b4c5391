"""Every CUDA kernel, run on the CPU by the harness, against the float64 reference.

The sources are those that nvcc compiles. Outputs are poisoned; three orders of threads must agree
bit for bit; the same cases run again under AddressSanitizer and UBSan, in a process without torch.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from cases import CASES
from harness import build, cases_io, instances, replay
from harness.cases_io import Expected
from kernel_truth import DTYPES, Truth


def unwanted_branch() -> cases_io.Case:
    """A map that needs no gradient beside one that does; its weight still gets one."""
    case = next(c for c in CASES if c.name == "sum-weights")
    whole = Truth(case, torch.float32).spread()
    grads = whole.expected["grads"]
    assert isinstance(grads, list)
    expected = {**whole.expected, "grads": [None, grads[1]]}
    return cases_io.Case("spread, one map unwanted", whole.function,
                         {**whole.arguments, "wanted": 2}, expected, whole.kernels)  # fmt: skip


def kernel_cases() -> list[cases_io.Case]:
    torch.manual_seed(0)
    found = [unwanted_branch()]
    for number, case in enumerate(CASES):
        if 0 in case.shapes[0]:
            continue  # nothing is launched for an empty result
        # float32 for every case, each other type for a third of them.
        for dtype in (DTYPES[0], DTYPES[1 + number % 3]):
            truth = Truth(case, dtype)
            found += [truth.gather(), truth.spread()]
            if dtype == torch.float32 and number % 2:
                found.append(truth.gated_gather())
    return found


@pytest.fixture(scope="module")
def cases() -> list[cases_io.Case]:
    return kernel_cases()


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return build.load()


def test_every_kernel_matches_the_reference(module: ModuleType, cases: list[cases_io.Case]) -> None:
    module.reset_launch_counts()
    failures = replay.replay(module, cases)
    assert not failures, "\n".join(f"{f.case.name}: {f.message}" for f in failures[:10])
    assert len(instances.instances(module, __file__)) == 6  # three kernels, two accumulators
    never = instances.never_launched(module, __file__)
    assert not never, f"never launched: {never}"


def test_every_kernel_is_clean_under_sanitizers(cases: list[cases_io.Case], tmp_path: Path) -> None:
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, cases)
    done = replay.replay_apart(path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert re.search(rf"^{len(cases)} passed, 0 failed", done.stdout, re.MULTILINE)


def test_a_wrong_expectation_fails(module: ModuleType, cases: list[cases_io.Case]) -> None:
    """The comparison sees errors just beyond the bound."""
    case = next(c for c in cases if c.function == "gather")
    good = case.expected["out"]
    assert isinstance(good, Expected)
    values = good.values.copy()
    values.flat[-1] += 3 * np.asarray(good.atol).flat[-1]
    wrong = cases_io.Case(case.name, case.function, case.arguments, {**case.expected,
                          "out": Expected(values, good.rtol, good.atol)})  # fmt: skip
    with pytest.raises(replay.CaseError, match="1 of"):
        replay.run_case(module, wrong)


@pytest.mark.parametrize("channels_last", [False, True])
def test_positions_beyond_2_31_elements(module: ModuleType, channels_last: bool) -> None:
    """Offsets decode and encode exactly for maps far beyond what fits into memory."""
    generator = random.Random(0)
    sizes = [
        (3, 5, 1, 70_000, 80_001), (1, 1, 1, 1, 2**31 - 2), (7, 2**20 + 1, 3, 1111, 999),
        (2, 3, 2**15, 2**15, 2**15 + 1), (1, 2**33, 1, 2, 3), (2**33, 1, 1, 1, 1),
    ]  # fmt: skip
    for size in sizes:
        total = int(np.prod(size, dtype=object))
        offsets = [0, 1, total - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1]
        offsets += [generator.randrange(total) for _ in range(200)]
        offsets = [o for o in offsets if o < total]
        found = np.zeros((len(offsets), 6), np.int64)
        module.positions(size=np.array(size), offsets=np.array(offsets), found=found,
                         channels_last=channels_last)  # fmt: skip
        order = (0, 2, 3, 4, 1) if channels_last else (0, 1, 2, 3, 4)
        for offset, row in zip(offsets, found.tolist(), strict=True):
            expected, rest = [0] * 5, offset
            for axis in reversed(order):
                rest, expected[axis] = divmod(rest, size[axis])
            assert row == [*expected, offset], (size, offset)
