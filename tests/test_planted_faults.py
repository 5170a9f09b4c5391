"""Faults planted in the shipped kernels: the harness finds each kind, and reports no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import Case
from harness import build, cases_io, replay
from harness.build import Fault
from kernel_truth import Truth
from test_losses_on_cpu import Logits, argmax, binary_cross_entropy, cross_entropy

from msr_cuda._spec import Mode

BILINEAR = Case("bilinear", "resample_sum", ((2, 8, 6, 8), (2, 8, 3, 4)), {"mode": "linear"})
CHANNELS_LAST = Case("channels_last", "resample", ((2, 8, 3, 4),),
                     {"mode": "linear", "size": (6, 8)}, layouts=("channels_last",))  # fmt: skip
WEIGHTED = Case("weighted", "resample_sum", ((2, 8, 5, 8),) * 2, weights=True)


def gathered(case: Case, choice: tuple[int, ...] | None = ()) -> Callable[[], cases_io.Case]:
    """A forward call. choice: as in the harness's gather(); empty lets the call choose, None is the
    general kernel."""

    def call() -> cases_io.Case:
        found = Truth(case, torch.float32).gather()
        if choice is None:
            return found
        arguments = {**found.arguments, "choice": np.array(choice, np.int64)}
        return replace(found, arguments=arguments, kernels=())

    return call


def logits() -> Logits:
    return Logits(torch.randn(1, 5, 3, 4), (12, 16), Mode.LINEAR)


def decision() -> cases_io.Case:
    return argmax(logits(), torch.int64, with_probability=False)[0]


def gradient_in_strips() -> cases_io.Case:
    one = logits()
    return cross_entropy(one, torch.randint(0, 5, one.pixels))[-1]


def gathered_gradient() -> cases_io.Case:
    one = logits()
    return binary_cross_entropy(one, torch.rand(1, 5, 12, 16), None, None, "mean", False)[-2]


@dataclass(frozen=True)
class Planted:
    """A fault, a call that meets it, and what is reported."""

    fault: Fault
    make: Callable[[], cases_io.Case]
    report: str
    sanitize: bool = True

    def call(self) -> cases_io.Case:
        torch.manual_seed(0)
        return self.make()


OVERFLOW = r"AddressSanitizer: heap-buffer-overflow .*{access} of size 4.*{file}"
UNWRITTEN = r"elements differ.*still hold the poison and may not have been written"
PLANTED = [
    Planted(Fault("MSR_FAULT_OUT_OF_BOUNDS_READ", "gather.cu"), gathered(BILINEAR, None),
            OVERFLOW.format(access="READ", file="dtypes.h")),
    Planted(Fault("MSR_FAULT_OUT_OF_BOUNDS_READ", "expand_float.cu"), gathered(BILINEAR),
            OVERFLOW.format(access="READ", file="expand_kernel.cuh")),
    Planted(Fault("MSR_FAULT_MISALIGNED_VECTOR", "expand_float.cu"), gathered(BILINEAR),
            r"runtime error: .* misaligned address .*, which requires 16 byte alignment"),
    Planted(Fault("MSR_FAULT_SHARED_OVERFLOW", "expand_float.cu"), gathered(CHANNELS_LAST),
            r"AddressSanitizer: heap-buffer-overflow .*WRITE of size .*expand_kernel.cuh"),
    Planted(Fault("MSR_FAULT_MISSING_BARRIER", "expand_float.cu"), gathered(WEIGHTED),
            r"output out depends on the order of threads", sanitize=False),
    Planted(Fault("MSR_FAULT_UNWRITTEN_OUTPUT", "gather.cu"), gathered(BILINEAR, None),
            UNWRITTEN, sanitize=False),
    Planted(Fault("MSR_FAULT_UNWRITTEN_OUTPUT", "expand_float.cu"), gathered(BILINEAR), UNWRITTEN,
            sanitize=False),
    Planted(Fault("MSR_FAULT_OUT_OF_BOUNDS_READ", "argmax.cu"), decision,
            OVERFLOW.format(access="READ", file="logit_device.cuh")),
    Planted(Fault("MSR_FAULT_SHARED_OVERFLOW", "cross_entropy.cu"), gradient_in_strips,
            r"logit_grads.cuh:\d+:\d+: runtime error: index 128 out of bounds"),
    Planted(Fault("MSR_FAULT_MISSING_BARRIER", "cross_entropy.cu"), gradient_in_strips,
            r"output logit_grads depends on the order of threads", sanitize=False),
    Planted(Fault("MSR_FAULT_UNWRITTEN_OUTPUT", "binary_cross_entropy.cu"), gathered_gradient,
            UNWRITTEN, sanitize=False),
]  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: f"{p.fault.macro[10:]}-{p.fault.file}")
def test_a_planted_fault_is_found(planted: Planted, tmp_path: Path) -> None:
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, [planted.call()])
    done = replay.replay_apart(path, sanitize=planted.sanitize, fault=planted.fault)
    said = done.stdout + done.stderr
    assert done.returncode not in (0, -11), said
    assert re.search(planted.report, said, re.DOTALL), said


@pytest.mark.parametrize("sanitize", [False, True])
def test_the_same_calls_are_clean_without_faults(sanitize: bool, tmp_path: Path) -> None:
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, [planted.call() for planted in PLANTED])
    done = replay.replay_apart(path, sanitize=sanitize)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{len(PLANTED)} passed, 0 failed\n")


def test_every_macro_is_planted() -> None:
    """Each fault that a kernel has is switched on by a test."""
    header = (build.KERNELS / "planted_faults.h").read_text(encoding="utf-8")
    macros = set(re.findall(r"defined\((MSR_FAULT_\w+)\)", header))
    assert macros == {planted.fault.macro for planted in PLANTED}
    for macro in macros:
        flag = "kFault" + macro.removeprefix("MSR_FAULT_").title().replace("_", "")
        assert re.search(rf"constexpr bool {flag} = true", header), flag
