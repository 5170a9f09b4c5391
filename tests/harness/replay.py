"""Replays cases of kernel calls, in three thread orders, and compares with what they expect.

    python tests/harness/replay.py cases.npz           under AddressSanitizer and UBSan
    python tests/harness/replay.py cases.npz --plain   without

prints each case's name before it runs (so that a sanitizer's report, which ends the process, comes
after the name of its case), then 'N passed, M failed'. Exits with 1 if a case failed. Tests that
need no sanitizer call :func:`run_case` or :func:`replay` with a loaded module instead.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

if __name__ == "__main__":
    # As a script, this file is in no package: make it find its neighbours as one.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from harness import build
from harness.cases_io import (
    Argument,
    Array,
    ArrayLike,
    Carried,
    Case,
    Expected,
    dtype_name,
    elements,
    like,
    memory,
    read_cases,
    replica,
)

ORDERS = (("forward", 0), ("reverse", 0), ("shuffled", 1))
POISON = 0xFF


class CaseError(AssertionError):
    """A case did not do what it should; the message says what it did."""


@dataclass(frozen=True)
class Failure:
    """A case that failed, and why."""

    case: Case
    message: str


def decoded(array: ArrayLike) -> Array:
    """Floating-point elements as float64, others as they are."""
    values = elements(array)
    dtype = dtype_name(array)
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if isinstance(array, Carried):
        values = np.ascontiguousarray(values).view(np.float16)
    return values.astype(np.float64) if dtype.startswith("float") else values


def _is_poison(array: Array) -> Array:
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, array.itemsize)
    return (raw == POISON).all(axis=-1)


def _poison(array: Array) -> None:
    memory(array).view(np.uint8)[...] = POISON


def _gaps(array: Array) -> Array:
    """Which elements of the array's memory are none of its own."""
    gap = np.ones(memory(array).shape, bool)
    own = [s // array.itemsize for s in array.strides]
    np.lib.stride_tricks.as_strided(gap, array.shape, own)[...] = False
    return gap


def compare(name: str, got: ArrayLike, expected: Expected) -> None:
    """Raises CaseError if an output is not what is expected."""
    values = decoded(got)
    want = expected.values
    if values.shape != want.shape:
        raise CaseError(f"output {name}: expected shape {want.shape}, got {values.shape}")
    if values.dtype.kind == "f":
        want = want.astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = np.abs(values - want)
            close = error <= expected.atol + expected.rtol * np.abs(want)
        # The difference of equal infinities is NaN.
        right = close & np.isfinite(want) | (values == want) | (np.isnan(values) & np.isnan(want))
    else:
        right = values == want
        error = (~right).astype(np.float64)
    if right.all():
        return
    # An error of NaN is the worst.
    badness = np.where(right, -1.0, np.where(np.isnan(error), np.inf, error))
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(badness), badness.shape))
    unwritten = int((_is_poison(elements(got)) & ~right).sum())
    message = (
        f"output {name}: {int((~right).sum())} of {right.size} elements differ, the worst at "
        f"{worst}: expected {want[worst]!r}, got {values[worst]!r}"
    )
    if unwritten:
        message += f"; {unwritten} still hold the poison and may not have been written"
    raise CaseError(message)


def _resolve(module: ModuleType, function: str) -> Callable[..., Any]:
    return functools.reduce(getattr, function.split("."), module)


def _replicas(value: Argument) -> Argument:
    if isinstance(value, (np.ndarray, Carried)):
        return like(value, replica(elements(value)))
    if isinstance(value, (list, tuple)):
        return [_replicas(item) for item in value]  # type: ignore[misc]
    return value


def _arrays(value: Argument) -> list[ArrayLike | None]:
    """The arrays of an argument, None for what is not there."""
    if isinstance(value, (np.ndarray, Carried)):
        return [value]
    if isinstance(value, (list, tuple)):
        return list(value)
    return []


def _launches(module: ModuleType) -> dict[str, int]:
    """By the names that launches gave, and by those of the compiled instances."""
    return {**module.compiled_kernels(), **module.launch_counts()}


def _call(module: ModuleType, case: Case) -> dict[str, Argument]:
    """One call on fresh memory; checks what it must leave alone, and returns its arguments."""
    unknown = set(case.expected) - set(case.arguments)
    if unknown:
        raise CaseError(f"expected outputs {sorted(unknown)} are no arguments")
    arguments = {name: _replicas(value) for name, value in case.arguments.items()}
    for name in case.expected:
        for array in _arrays(arguments[name]):
            if array is not None:
                _poison(elements(array))
    before = _launches(module)
    _resolve(module, case.function)(**arguments)
    after = _launches(module)
    for kernel in case.kernels:
        if after.get(kernel, 0) == before.get(kernel, 0):
            launched = sorted(k for k in after if after[k] != before.get(k, 0))
            raise CaseError(f"expected kernel {kernel!r} to be launched, got {launched}")
    for name, value in arguments.items():
        for array, original in zip(_arrays(value), _arrays(case.arguments[name]), strict=True):
            if array is None or original is None:
                continue
            there = memory(elements(array)).view(np.uint8)
            if name not in case.expected:
                if not np.array_equal(there, memory(elements(original)).view(np.uint8)):
                    raise CaseError(f"argument {name} is no output, but was written to")
                continue
            stray = _gaps(elements(array)) & ~_is_poison(memory(elements(array)))
            if stray.any():
                raise CaseError(
                    f"output {name}: {int(stray.sum())} elements between its own were written, "
                    f"the first {int(np.argmax(stray))} elements after its beginning"
                )
    return arguments


def run_case(
    module: ModuleType, case: Case, orders: Sequence[tuple[str, int]] = ORDERS
) -> dict[str, Argument]:
    """Runs one case in each (thread order, seed); returns the outputs by argument.

    Raises:
        CaseError: an output depends on the order, is not what is expected, something else was
            written to, or a kernel that should have been launched was not.
        RuntimeError: a kernel broke a rule of CUDA that the harness checks.
    """
    first: dict[str, Argument] | None = None
    try:
        for order, seed in orders:
            module.set_thread_order(order, seed)
            arguments = _call(module, case)
            outputs = {name: arguments[name] for name in case.expected}
            if first is None:
                first = outputs
            for name, value in outputs.items():
                for one, other in zip(_arrays(first[name]), _arrays(value), strict=True):
                    if one is None or other is None:
                        continue
                    differ = memory(elements(one)).view(np.uint8) != (
                        memory(elements(other)).view(np.uint8)
                    )
                    if differ.any():
                        raise CaseError(
                            f"output {name} depends on the order of threads: {int(differ.sum())} "
                            f"bytes differ between {orders[0][0]} and {order} (a race)"
                        )
    finally:
        module.set_thread_order("forward", 0)
    assert first is not None
    for name, expected in case.expected.items():
        wanted = [expected] if isinstance(expected, Expected) else list(expected)
        got = _arrays(first[name])
        if len(wanted) != len(got):
            raise CaseError(f"output {name}: expected {len(wanted)} arrays, got {len(got)}")
        for i, (array, want) in enumerate(zip(got, wanted, strict=True)):
            if want is None:
                continue
            label = name if isinstance(expected, Expected) else f"{name}[{i}]"
            if array is None:
                raise CaseError(f"output {label}: expected values, got no array")
            compare(label, array, want)
    return first


def replay(
    module: ModuleType,
    cases: Iterable[Case],
    progress: Callable[[str], None] | None = None,
    orders: Sequence[tuple[str, int]] = ORDERS,
) -> list[Failure]:
    """Runs every case; returns those that failed."""
    failures = []
    for case in cases:
        if progress is not None:
            progress(case.name)
        try:
            run_case(module, case, orders)
        except Exception as error:  # whatever it is, the other cases are to run too
            failures.append(Failure(case, f"{type(error).__name__}: {error}"))
    return failures


def replay_apart(
    path: str | Path,
    *,
    sanitize: bool = True,
    fault: build.Fault | None = None,
    orders: int = len(ORDERS),
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Runs this script on a file of cases in a process of its own."""
    build.build([sanitize], fault)
    command = [sys.executable, __file__, str(path), "--orders", str(orders)]
    if not sanitize:
        command.append("--plain")
    if fault is not None:
        command += ["--fault", *fault]
    return subprocess.run(
        command,
        env=build.sanitizer_environment() if sanitize else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path, help="a file that write_cases wrote")
    parser.add_argument("--plain", action="store_true", help="without sanitizers")
    parser.add_argument(
        "--fault", nargs=2, metavar=("MACRO", "FILE"), help="plant a fault in a file of kernels"
    )
    parser.add_argument(
        "--orders", type=int, default=len(ORDERS), help="thread orders to run each case in"
    )
    arguments = parser.parse_args()
    fault = build.Fault(*arguments.fault) if arguments.fault else None
    if not arguments.plain and not build.sanitizers_preloaded():
        build.build([True], fault)  # here, where the compiler runs unhindered
        command = [sys.executable, *sys.argv]
        os.execve(command[0], command, build.sanitizer_environment())
    module = build.load(not arguments.plain, fault)
    cases = read_cases(arguments.cases)
    failures = replay(
        module,
        cases,
        progress=lambda name: print(f"{name} ...", flush=True),
        orders=ORDERS[: arguments.orders],
    )
    for failure in failures:
        print(f"FAILED {failure.case.name} ({failure.case.function}): {failure.message}")
    print(f"{len(cases) - len(failures)} passed, {len(failures)} failed", flush=True)
    return 1 if failures or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
