"""What the tests of the harness have in common: its own kernels' faults and cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import build
from .cases_io import Case, Expected

KERNELS = build.HARNESS / "selftest_kernels.cuh"


def line_of(fault: str) -> int:
    """The line of selftest_kernels.cuh that has this FAULT comment."""
    lines = KERNELS.read_text().splitlines()
    (line,) = [i for i, text in enumerate(lines, 1) if text.endswith(f"// FAULT {fault}")]
    return line


def place(fault: str) -> str:
    """The same as a pattern for messages."""
    return rf"selftest_kernels\.cuh:{line_of(fault)}"


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
