"""The CPU kernels with every instruction set that this machine has.

The binary chooses one when it first runs a kernel, so each is forced in a process of its own, which
runs :func:`main`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import test_operators
import torch
from cases import CASES, EXTENDED_CASES, WINDOW_CASES, Case
from conftest import ROOT, missing
from torch import Tensor
from truth import in_float64, leaves

import msr_cuda
from msr_cuda import _extension, testing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last")
#: Around the lanes of a vector, the bits of a byte and the two vectors of a wide window.
WIDTHS = (1, 3, 8, 15, 16, 17, 33, 64, 67)
CHANNELS = (1, 7, 8, 9, 16, 17, 35)
MODES = {
    "nearest": dict(mode="nearest"),
    "linear": dict(mode="linear"),
    "corners": dict(mode="linear", align_corners=True),
}
RATIOS = {"x2": 2.0, "x1.1": 1.1, "x0.4": 0.4}
NOT_HERE = "MSR_CUDA_CPU_ISA: this machine does not have what it asks for"
UNKNOWN = "MSR_CUDA_CPU_ISA: expected avx512, avx2 or generic"
#: Sums in float32 of what normal values give are off by less.
NEAR_ZERO = 1e-6
#: What PyTorch calls the same instruction sets; its other ones are those of other processors.
ISA_OF_TORCH = {"AVX2": "avx2", "AVX512": "avx512"}
ISAS = ("generic", *ISA_OF_TORCH.values())


def width_cases() -> Iterator[Case]:
    for label, mode in MODES.items():
        # How a finished sum is stored has nothing to do with the mode.
        activations = (None, "relu") if label == "linear" else ("relu",)
        for width in WIDTHS:
            name = f"{label}-{width}"
            for ratio, factor in RATIOS.items():
                size = (5, max(1, round(factor * width)))
                yield Case(
                    f"{ratio}-{name}", "resample", ((2, 3, 4, width),), {**mode, "size": size}
                )
            half = (width + 1) // 2
            summed = ((2, 3, 5, width), (2, 3, 3, half), (2, 3, 7, 2 * width + 1))
            joined = ((2, 3, 5, width), (2, 5, 3, half))
            for activation in activations:
                kwargs = {**mode, "activation": activation}
                yield Case(f"sum-{activation}-{name}", "resample_sum", summed, kwargs)
                yield Case(f"cat-{activation}-{name}", "resample_cat", joined, kwargs)


def channel_cases() -> Iterator[Case]:
    for label in ("nearest", "linear"):
        kwargs = {**MODES[label], "activation": "relu"}
        for channels in CHANNELS:
            name = f"{label}-{channels}-channels"
            summed = ((2, channels, 4, 5), (2, channels, 3, 3))
            joined = ((2, 3, 4, 5), (2, channels, 3, 3))
            yield Case(f"sum-{name}", "resample_sum", summed, kwargs, weights=True)
            yield Case(f"cat-{name}", "resample_cat", joined, kwargs)


def large_cases() -> Iterator[Case]:
    """Maps that are shared out among threads."""
    for label in ("nearest", "linear"):
        relu = {**MODES[label], "activation": "relu"}
        fpn = ((2, 5, 80, 67), (2, 5, 40, 33))
        yield Case(f"large-sum-{label}", "resample_sum", fpn, relu)
        yield Case(f"large-weights-{label}", "resample_sum", fpn, relu, weights=True)
        yield Case(f"large-cat-{label}", "resample_cat", ((2, 3, 90, 67), (2, 4, 45, 34)), relu)
        yield Case(
            f"large-x1.1-{label}", "resample", ((1, 3, 130, 111),),
            {**MODES[label], "size": (143, 122)},
        )  # fmt: skip


#: Rows longer than what is worked on at once.
LONG_ROWS = Case(
    "long-rows",
    "resample_sum",
    ((1, 1, 2, 2100), (1, 1, 3, 1051)),
    {"mode": "linear", "activation": "relu"},
)


def in_layouts(case: Case) -> Iterator[Case]:
    """The case in both layouts, unless it tells its own or has no other."""
    if case.layouts or len(case.shapes[0]) == 3:
        yield case
        return
    for layout in LAYOUTS:
        yield dataclasses.replace(
            case, name=f"{case.name} {layout}", layouts=(layout,) * len(case.shapes)
        )


def seed_cpu(seed: int) -> None:
    # torch.manual_seed takes longer than most checks: it remembers the stack for other devices.
    torch.default_generator.manual_seed(seed)


def clear_seed(case: Case, dtype: torch.dtype) -> int:
    """A seed with which no sum is so near to zero that its rounding decides what its ReLU does."""
    if case.kwargs.get("activation") != "relu":
        return 0
    kwargs = {name: value for name, value in case.kwargs.items() if name != "activation"}
    linear = dataclasses.replace(case, kwargs=kwargs)
    for seed in range(50):
        seed_cpu(seed)
        with torch.no_grad():
            sums = linear.call(*in_float64(*leaves(linear, dtype)), "reference").abs()
        if not ((sums > 0) & (sums < NEAR_ZERO)).any():
            return seed
    raise AssertionError(f"{case.name}: every seed gives a sum below {NEAR_ZERO}")


def check_second_derivative(case: Case, dtype: torch.dtype) -> None:
    """The gate of a ReLU: the derivative of the gradients by the gradient that came in."""
    maps = case.maps(dtype, "cpu", requires_grad=True)
    maps64, _ = in_float64(maps, {})
    output, expected = case.call(maps, impl="kernel"), case.call(maps64, impl="reference")
    grad = torch.randn_like(expected).to(dtype).requires_grad_()
    grad64 = grad.detach().double().requires_grad_()
    first = torch.autograd.grad(output, maps, grad, create_graph=True)
    first64 = torch.autograd.grad(expected, maps64, grad64, create_graph=True)
    directions = [torch.randn_like(g) for g in first]
    (second,) = torch.autograd.grad(first, grad, directions)
    (truth,) = torch.autograd.grad(first64, grad64, [d.double() for d in directions])
    testing.assert_within(second, truth, what="second derivative")


def check_threads(case: Case, dtype: torch.dtype) -> None:
    """One thread and two compute the same bits."""
    maps, parameters = leaves(case, dtype)

    def outcome() -> list[Tensor]:
        return test_operators.outcome(lambda m, p: case.call(m, p, "kernel"), maps, parameters)

    alone = outcome()
    torch.set_num_threads(2)
    try:
        test_operators.assert_same_bits(alone, outcome())
    finally:
        torch.set_num_threads(1)


def check_values(case: Case, dtype: torch.dtype) -> None:
    test_operators.test_values_and_gradients(case, dtype, "cpu", "kernel")


Check = Callable[[Case, torch.dtype], None]


def checks() -> Iterator[tuple[Case, list[Check]]]:
    large = list(large_cases())
    for case in (
        *CASES,
        *WINDOW_CASES,
        *EXTENDED_CASES,
        *width_cases(),
        *channel_cases(),
        LONG_ROWS,
        *large,
    ):
        wanted: list[Check] = [check_values]
        numel = torch.Size(case.shapes[0]).numel()
        if case.kwargs.get("activation") == "relu" and case in CASES and not case.weights and numel:
            wanted.append(check_second_derivative)
        if case in large:
            wanted.append(check_threads)
        for laid_out in in_layouts(case):
            yield laid_out, wanted


def main() -> int:
    """Runs all checks with the instruction set that the environment names."""
    asked, got = os.environ["MSR_CUDA_CPU_ISA"], msr_cuda.info()["cpu"]["isa"]
    if asked != got:
        print(f"asked for {asked}, got {got}")
        return 1
    torch.set_num_threads(1)
    done = failed = 0
    for (case, wanted), dtype in itertools.product(checks(), DTYPES):
        seed = clear_seed(case, dtype)
        for check in wanted:
            seed_cpu(seed)
            done += 1
            try:
                check(case, dtype)
            except AssertionError as error:
                failed += 1
                print(f"{check.__name__} {case.name} {dtype}: {error}")
    print(f"{failed} of {done} checks failed")
    return 1 if failed else 0


CHECKED = "import sys; sys.path.append('tests'); import test_cpu_isa; sys.exit(test_cpu_isa.main())"


def start(program: str, isa: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "MSR_CUDA_CPU_ISA": isa},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


#: Prints the errors of both calls of a kernel, and what info says.
REFUSED = """
import torch, msr_cuda
for _ in range(2):
    try:
        msr_cuda.resample(torch.ones(1, 1, 2, 2), size=3)
    except RuntimeError as error:
        print(error)
print(msr_cuda.info()["cpu"]["why_not"])
"""


def assert_refused(process: subprocess.Popen[str], message: str) -> None:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    first, second, info = output.splitlines()[-3:]
    assert first.endswith(message)
    assert second.endswith(message)
    assert info == message


def best_isa() -> str:
    """What PyTorch finds this machine to have."""
    return ISA_OF_TORCH.get(torch.backends.cpu.get_cpu_capability(), "generic")


def is_here(isa: str) -> bool:
    return ISAS.index(isa) <= ISAS.index(best_isa())


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One for each instruction set, side by side."""
    if not _extension.has_kernels("cpu"):
        missing(f"no cpu kernels: {_extension.WHY_NOT}")
    started = {isa: start(CHECKED if is_here(isa) else REFUSED, isa) for isa in ISAS}
    started["sse"] = start(REFUSED, "sse")
    yield started
    for process in started.values():
        with process:  # closes its pipe
            process.kill()


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_with_each_instruction_set(
    processes: dict[str, subprocess.Popen[str]], isa: str
) -> None:
    process = processes[isa]
    if not is_here(isa):
        assert_refused(process, NOT_HERE)
        pytest.skip(f"this machine does not have {isa}")
    output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]


@pytest.mark.skipif(
    "MSR_CUDA_CPU_ISA" in os.environ or "ATEN_CPU_CAPABILITY" in os.environ,
    reason="the environment chooses an instruction set",
)
def test_the_best_instruction_set_is_the_default() -> None:
    if not _extension.has_kernels("cpu"):
        missing(f"no cpu kernels: {_extension.WHY_NOT}")
    assert torch.ops.msr_cuda.cpu_isa() == msr_cuda.info()["cpu"]["isa"] == best_isa()


def test_an_unknown_instruction_set_is_an_error(
    processes: dict[str, subprocess.Popen[str]],
) -> None:
    assert_refused(processes["sse"], UNKNOWN)
