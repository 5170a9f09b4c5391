"""The instruction counts of build_tools/nvcc_sweep.py, on a listing that can be counted by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BUILD_TOOLS = Path(__file__).resolve().parent.parent / "build_tools"


@pytest.fixture(scope="module")
def sass() -> ModuleType:
    sys.path.insert(0, str(BUILD_TOOLS))
    return importlib.import_module("sass")


@pytest.fixture(scope="module")
def sweep(sass: ModuleType) -> ModuleType:
    return importlib.import_module("nvcc_sweep")


# A loop over rows around a loop over columns. Once around the inner one: 5 instructions where the
# load is skipped (no work), 7 with the load of one vector of 16 bytes and two additions. The outer
# one adds 3 and ends.
BODY = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   VIADD R2, R2, 0x1 ;
.L_x_1:
        /*0020*/                   ISETP.GE.AND P0, PT, R4, R5, PT ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/                   LDG.E.128 R8, desc[UR4][R6.64] ;
        /*0050*/                   FFMA R12, R8, R9, R12 ;
        /*0060*/                   FADD R13, R10, R13 ;
.L_x_2:
        /*0070*/                   VIADD R4, R4, 0x1 ;
        /*0080*/              @!P1 BRA `(.L_x_1) ;
        /*0090*/                   ISETP.GE.AND P2, PT, R2, R3, PT ;
        /*00a0*/              @!P2 BRA `(.L_x_0) ;
        /*00b0*/                   EXIT ;
.L_x_3:
        /*00c0*/                   BRA `(.L_x_3);
"""
NAME = "_ZN3msr20reduce_planar_kernelINS_4HalfELi8ELi8EEEvNS_12SpreadParamsE"
LISTING = f"""
	.section	.text.{NAME},"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=24"
.text.{NAME}:
{BODY}
	.section	.text._Z5otherv,"ax",@progbits
        /*0000*/                   EXIT ;
"""


def test_functions_are_found_by_name(sass: ModuleType) -> None:
    found = sass.functions(LISTING)
    assert set(found) == {NAME, "_Z5otherv"}
    assert sum("FFMA" in line for line in found[NAME]) == 1
    assert not any("FFMA" in line for line in found["_Z5otherv"])


def test_blocks_and_loops(sass: ModuleType) -> None:
    blocks = sass.basic_blocks(sass.functions(LISTING)[NAME])
    assert blocks[0].instructions == ["MOV"]
    sizes = sorted(
        sum(len(blocks[b].instructions) for b in body) for body in sass.loops(blocks).values()
    )
    assert sizes == [7, 10]  # the loop that nothing enters is none


def test_the_cheapest_way_that_does_the_work(sass: ModuleType) -> None:
    lines = sass.functions(LISTING)[NAME]
    outer, inner = sass.count_loops(lines, "LDG", 16, 1, 2)
    assert (inner.instructions, inner.vectors, inner.additions) == (7, 1, 2)
    assert (outer.instructions, outer.vectors) == (10, 1)
    assert sass.count_loops(lines, "LDG", 16, 1, 3) == []  # nobody adds so often
    assert sass.count_loops(lines, "LDG", 8, 1, 1) == []  # nor loads vectors of 8 bytes
    assert sass.count_loops(lines, "STG", 16, 1, 0) == []  # nor stores any


def test_a_wide_vector_takes_several_loads(sass: ModuleType) -> None:
    twice = BODY.replace("FFMA R12", "LDG.E.128 R20, [R6.64+0x10] ;\n /*0048*/ FFMA R12")
    (_, inner) = sass.count_loops(twice.splitlines(), "LDG", 16, 2, 2)
    assert (inner.instructions, inner.vectors) == (8, 1)


def test_jump_tables_and_divergent_exits(sass: ModuleType) -> None:
    blocks = sass.basic_blocks(
        [
            ".L_x_0:",
            '  /*0000*/  BRX R4 -0x10  (*"BRANCH_TARGETS .L_x_0,.L_x_1"*) ;',
            ".L_x_1:",
            "  /*0010*/  @P0 EXIT ;",
            "  /*0020*/  BRA.U UP0, `(.L_x_0) ;",
            "  /*0030*/  RET.REL.NODEC R2 `(f) ;",
        ]
    )
    assert [sorted(block.successors) for block in blocks[:4]] == [[0, 1], [2], [0, 3], []]


def test_elements_come_from_the_template_arguments(sweep: ModuleType) -> None:
    lines = LISTING.splitlines()
    name = "void msr::reduce_planar_kernel<msr::Half, 8, 8>(msr::SpreadParams)"
    assert sweep.count_instructions(name, lines) == "no loop that moves vectors"  # 8 additions each
    busy = BODY.replace("FFMA R12, R8, R9, R12 ;", "FFMA R12, R8, R9, R12 ;\n" * 1).splitlines()
    many = [line for line in busy for _ in range(8 if "FFMA" in line else 1)]
    counted = sweep.count_instructions(name, many)
    assert counted == "1+ additions: 1.8 (14/8) inside 2.1 (17/8)"
    old = "void msr::reduce_planar_kernel<msr::Half, (int)8, (int)8>(msr::SpreadParams)"
    assert sweep.count_instructions(old, many) == counted
    assert sweep.count_instructions("void msr::gather_kernel<float>(msr::GatherParams)", many) == ""


def test_without_a_disassembler_nothing_fails(
    sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    assert sweep.find_disassembler(tmp_path / "bin" / "nvcc") is None
    package = tmp_path / "nvidia" / "cu13" / "bin"
    package.mkdir(parents=True)
    (package / "nvdisasm").write_text("#!/bin/sh\n")
    (package / "nvdisasm").chmod(0o755)
    assert sweep.find_disassembler(tmp_path / "bin" / "nvcc") == str(package / "nvdisasm")
