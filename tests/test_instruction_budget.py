"""build_tools/instruction_budget.py: what it counts is what runs, and what is slow is reported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import test_expand_on_cpu as expand
import test_reduce_on_cpu as reduce
import torch
from harness import build, cases_io, instances, replay
from kernel_truth import Truth

BUILD_TOOLS = Path(__file__).resolve().parent.parent / "build_tools"
sys.path.insert(0, str(BUILD_TOOLS))
budget = importlib.import_module("instruction_budget")
sass = importlib.import_module("sass")
sass_machine = importlib.import_module("sass_machine")
nvcc_sweep = importlib.import_module("nvcc_sweep")
toolchain = importlib.import_module("toolchain")

HALF = torch.float16


def missing_tool() -> str | None:
    toolkit, found = toolchain.find_cuda_toolkit()
    if toolkit is None:
        return f"needs nvcc; found: {found}"
    return None if nvcc_sweep.find_disassembler(toolkit.nvcc) else "needs nvdisasm"


needs_compiler = pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    return build.load()


def compiled(
    folder: Path, kernels: Sequence[str], options: Sequence[str] = (), before: str = ""
) -> dict[str, Any]:
    """These instances alone, of the shipped headers: whole files take long."""
    by_header: dict[str, set[str]] = {}
    for kernel in kernels:
        template = instances.template_of(kernel)
        header = f"{template}.cuh" if (budget.KERNELS / f"{template}.cuh").is_file() else None
        by_header.setdefault(header or "spread_kernel.cuh", set()).add(kernel)
    sources = []
    for header, names in by_header.items():
        taken = ", ".join(f"(const void*)&{name}" for name in sorted(names))
        sources.append(folder / f"{header}.cu")
        sources[-1].write_text(
            f'{before}\n#include "kernels/{header}"\n'
            f"extern const void* const taken[] = {{{taken}}};\n"
        )
    codes: dict[str, Any] = budget.codes_of(budget.compile_kernels(sources, options))
    return codes


# ---- the machine ---------------------------------------------------------------------------------

# Each thread: out[tid] = 3 * min(tid, 5) by a loop of as many turns; threads from 48 on leave.
# Parameter: the address of out.
LOOP = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   ISETP.GE.U32.AND P0, PT, R0, 0x30, PT ;
        /*0020*/               @P0 EXIT ;
        /*0030*/                   VIMNMX R2, R0, 0x5, PT ;
        /*0040*/                   IMAD.MOV.U32 R3, RZ, RZ, RZ ;
        /*0050*/                   BSSY B0, `(.L_x_1) ;
        /*0060*/                   ISETP.NE.AND P1, PT, R2, RZ, PT ;
        /*0070*/              @!P1 BRA `(.L_x_2) ;
.L_x_0:
        /*0080*/                   VIADD R3, R3, 0x3 ;
        /*0090*/                   IADD3 R2, R2, -0x1, RZ ;
        /*00a0*/                   ISETP.NE.AND P1, PT, R2, RZ, PT ;
        /*00b0*/               @P1 BRA `(.L_x_0) ;
.L_x_2:
        /*00c0*/                   BSYNC B0 ;
.L_x_1:
        /*00d0*/                   LDC.64 R4, c[0x0][0x210] ;
        /*00e0*/                   IMAD.WIDE.U32 R4, R0, 0x4, R4 ;
        /*00f0*/                   STG.E desc[UR4][R4.64], R3 ;
        /*0100*/                   EXIT ;
""".splitlines()


def run(lines: list[str], threads: int, out: np.ndarray) -> Any:
    memory = out.view(np.uint8)
    parameters = np.array([out.ctypes.data], np.uint64).tobytes()
    block = sass_machine.Block(sass.parse(lines), threads, 0, 1, parameters, [memory], 0)
    block.run()
    return block


def test_a_loop_that_can_be_counted_by_hand() -> None:
    out = np.full(64, -1, np.int32)
    block = run(LOOP, 64, out)
    assert out.tolist() == [3 * min(i, 5) for i in range(48)] + [-1] * 16
    # Two warps begin; both have threads below 48. In the loop the first warp's threads take up to
    # five turns together, those of the second five.
    assert block.issued.tolist() == [2] * 8 + [10] * 4 + [2] * 5


def test_threads_that_part_are_issued_apart() -> None:
    lines = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   LOP3.LUT P0, RZ, R0, 0x1, RZ, 0xc0, !PT ;
        /*0020*/                   BSSY B0, `(.L_x_1) ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
        /*0040*/                   VIADD R0, R0, 0x64 ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_0:
        /*0060*/                   VIADD R0, R0, 0xc8 ;
        /*0070*/                   VIADD R0, R0, 0xc8 ;
.L_x_2:
        /*0080*/                   BSYNC B0 ;
.L_x_1:
        /*0090*/                   S2R R1, SR_TID.X ;
        /*00a0*/                   LDC.64 R4, c[0x0][0x210] ;
        /*00b0*/                   IMAD.WIDE.U32 R4, R1, 0x4, R4 ;
        /*00c0*/                   STG.E desc[UR4][R4.64], R0 ;
        /*00d0*/                   EXIT ;
""".splitlines()
    out = np.zeros(32, np.int32)
    block = run(lines, 32, out)
    assert out.tolist() == [i + (400 if i % 2 else 100) for i in range(32)]
    # The two ways come to BSYNC one after the other, and go on together.
    assert block.issued.tolist() == [1] * 8 + [1] * 6


def test_a_predicate_is_joined_with_one_before() -> None:
    """LOP3 sets its predicate where the result is not zero, or (PAND: and) the other one is set."""
    lines = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   LOP3.LUT P0, RZ, R0, 0x1, RZ, 0xc0, !PT ;
        /*0020*/                   LOP3.LUT P1, RZ, R0, 0x2, RZ, 0xc0, P0 ;
        /*0030*/                   LOP3.LUT.PAND P2, RZ, R0, 0x2, RZ, 0xc0, P0 ;
        /*0040*/                   SEL R2, R0, RZ, P1 ;
        /*0050*/               @P2 VIADD R2, R2, 0x64 ;
        /*0060*/                   LDC.64 R4, c[0x0][0x210] ;
        /*0070*/                   IMAD.WIDE.U32 R4, R0, 0x4, R4 ;
        /*0080*/                   STG.E desc[UR4][R4.64], R2 ;
        /*0090*/                   EXIT ;
""".splitlines()
    out = np.zeros(32, np.int32)
    run(lines, 32, out)
    assert out.tolist() == [(i if i & 3 else 0) + 100 * (i & 3 == 3) for i in range(32)]


def test_lanes_of_a_warp_vote() -> None:
    """Whether all lanes, or any, say yes: threads from 40 on do, some of the second warp."""
    lines = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   ISETP.GE.U32.AND P0, PT, R0, 0x28, PT ;
        /*0020*/                   VOTEU.ALL UP0, P0 ;
        /*0030*/                   VOTEU.ANY UP1, P0 ;
        /*0040*/                   VOTEU.ANY UR4, UPT, P0 ;
        /*0050*/                   SEL R2, RZ, 0x1, !UP0 ;
        /*0060*/                   SEL R3, RZ, 0x2, !UP1 ;
        /*0070*/                   IADD3 R2, R2, R3, UR4 ;
        /*0080*/                   LDC.64 R4, c[0x0][0x210] ;
        /*0090*/                   IMAD.WIDE.U32 R4, R0, 0x4, R4 ;
        /*00a0*/                   STG.E desc[UR4][R4.64], R2 ;
        /*00b0*/                   EXIT ;
""".splitlines()
    out = np.zeros(96, np.uint32)
    run(lines, 96, out)
    some, every = 2 + 0xFFFFFF00, 3 + 0xFFFFFFFF & 0xFFFFFFFF
    assert out.tolist() == [0] * 32 + [some] * 32 + [every] * 32


def test_what_is_not_known_or_not_allowed_is_an_error() -> None:
    out = np.zeros(32, np.int32)
    with pytest.raises(sass.MachineError, match=r"unknown instruction: .*QUUX"):
        run(["/*0000*/  QUUX R1 ;"], 32, out)
    with pytest.raises(sass.MachineError, match="outside of memory"):
        run(LOOP, 64, np.zeros(4, np.int32))
    misaligned = [line.replace("0x4, R4", "0x5, R4") for line in LOOP]
    with pytest.raises(sass.MachineError, match="not aligned"):
        run(misaligned, 64, out)
    with pytest.raises(sass.MachineError, match="no such label"):
        run(["/*0000*/  BRA `(.L_x_9) ;"], 32, out)
    with pytest.raises(sass.MachineError, match="beyond the end"):
        run(["/*0000*/  NOP ;"], 32, out)


def machine_outputs(
    harness: ModuleType, codes: dict[str, Any], case: cases_io.Case
) -> dict[str, Any]:
    """The outputs of a case, all blocks of which run in machine code."""
    fresh = {name: replay._replicas(value) for name, value in case.arguments.items()}
    fresh["workspace"] = np.zeros(1 << 16, np.uint8)
    for launch in budget.launches_of(harness, case.function, fresh):
        budget.run_launch(
            codes[launch.kernel], launch, budget.memory_of(fresh), range(launch.blocks)
        )
    return fresh


@needs_compiler
def test_machine_code_gives_what_the_compiled_source_gives(
    harness: ModuleType, tmp_path: Path
) -> None:
    """Bit for bit: so the counts are those of the ways that are really taken."""
    table = reduce.any_ratio()
    wanted = ("up", "sum", "nearest down", "cat", "broadcast", "corners", "3-D", "factors")
    cases = [
        reduce.kernel_case(f"{kernel} {name}", table[name], kernel, HALF, [])
        for name in wanted
        for kernel in (reduce.PLANAR, reduce.CHANNELS_LAST)
    ]
    extended = {case.name: case for case in reduce.extended_cases()}
    cases += [
        reduce.table_case(extended[name], kernel, 8, HALF)
        for name in ("channels", "leaky", "pixels")
        for kernel in (reduce.PLANAR, reduce.CHANNELS_LAST)
    ]
    for number, case in enumerate(expand.expand_cases()):
        if number % 9 == 0:
            torch.manual_seed(number)
            call = Truth(case, torch.float32).gather()
            arguments = {**call.arguments, "choice": np.zeros(0, np.int64)}
            call = cases_io.Case(call.name, call.function, arguments, call.expected)
            if all("expand" in kernel for kernel in launched(harness, call)):
                cases.append(call)
    assert len(cases) > 20
    kernels = [kernel for case in cases for kernel in launched(harness, case)]
    codes = compiled(tmp_path, kernels)
    for case in cases:
        found = machine_outputs(harness, codes, case)
        expected = replay._call(harness, case)
        for name, checked in case.expected.items():
            whole = isinstance(checked, cases_io.Expected)
            parts = [checked] if whole else checked
            ones, others = replay._arrays(found[name]), replay._arrays(expected[name])
            for part, one, other in zip(parts, ones, others, strict=True):
                if part is not None and one is not None and other is not None:
                    same = np.array_equal(cases_io.elements(one), cases_io.elements(other))
                    assert same, f"{case.name}: {name}"


def launched(harness: ModuleType, case: cases_io.Case) -> list[str]:
    return [
        launch.kernel for launch in budget.launches_of(harness, case.function, dict(case.arguments))
    ]


# ---- the check -----------------------------------------------------------------------------------

SMALL = (2, 8, 32, 32)
X2 = budget.Workload("x2", "spread", SMALL, (SMALL, (2, 8, 16, 16)), budget.CORNERS, 1e3)


def test_blocks_are_sampled_at_equal_distances() -> None:
    assert budget.sampled(1, 3) == [0]
    assert budget.sampled(2, 3) == [0, 1]
    assert budget.sampled(600, 3) == [100, 300, 500]


def test_names_are_those_of_the_harness(harness: ModuleType) -> None:
    name = budget.instance_name
    assert name("void msr::f<msr::Half, 8, true>(msr::P, int)") == "msr::f<msr::Half, 8, true>"
    assert name("void msr::f<msr::Half, (int)8, (bool)0>(msr::P)") == "msr::f<msr::Half, 8, false>"
    assert name("msr::f(msr::P)") == "msr::f"
    (launch,) = budget.launches_of(harness, "spread", budget.arguments_of(X2))
    assert launch.kernel == name(
        "void msr::reduce_planar_kernel<msr::Half, (int)8, (int)8, (int)2>(int)"
    )


def test_an_instance_that_is_not_there_fails(harness: ModuleType) -> None:
    row = budget.check(harness, {}, X2)
    assert not row.is_good
    assert "reduce_planar_kernel<msr::Half, 8, 8, 2> is launched, but not in the machine code" in (
        row.verdict
    )


def test_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    def row(count: float, spilled: int = 0, ceiling: float | None = None) -> Any:
        workload = replace(X2, budget=20.0)
        return budget.Row(workload, [("msr::k", 64, spilled, count)], ceiling)

    assert row(20.0).verdict == "ok"
    assert row(20.5).verdict == "OVER"
    assert row(20.5, ceiling=20.5).is_good
    assert row(21.5, ceiling=20.5).verdict == "OVER the 20.5 that it is held to"
    assert row(5.0, spilled=8).verdict == "SPILLS"
    assert budget.report([row(20.0), row(20.5), row(5.0, 8), row(25.0, ceiling=25.0)]) == 2
    printed = capsys.readouterr().out
    assert "8 B spilled" in printed and "held to 25.0" in printed


@needs_compiler
def test_a_kernel_made_worse_is_reported(harness: ModuleType, tmp_path: Path) -> None:
    """On purpose: the optimiser held back, and too few registers."""
    kernels = ["msr::reduce_planar_kernel<msr::Half, 8, 8, 2>"]
    good = budget.check(harness, compiled(tmp_path, kernels), X2)
    assert good.verdict == "ok" and good.per_element > 10
    # Held to what the shipped kernel costs.
    held = replace(X2, budget=good.per_element)
    slow = compiled(tmp_path, kernels, ["-Xptxas=-O1"])
    row = budget.check(harness, slow, held)
    assert row.verdict == "OVER" and row.per_element > good.per_element
    crowded = (
        "#include <cuda_runtime.h>\n#undef __launch_bounds__\n"
        "#define __launch_bounds__(threads, blocks) __attribute__((launch_bounds(threads, 12)))"
    )
    spilling = compiled(tmp_path, kernels, before=crowded)
    assert budget.check(harness, spilling, X2).verdict == "SPILLS"


def test_ceilings_are_those_of_workloads_over_their_budgets() -> None:
    held = budget.json.loads(budget.CEILINGS.read_text(encoding="utf-8"))
    budgets = {workload.title: workload.budget for workload in budget.workloads()}
    assert len(budgets) == len(budget.workloads())
    assert set(held) <= set(budgets)
    assert all(ceiling > budgets[title] for title, ceiling in held.items())
