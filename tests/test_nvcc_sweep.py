"""What build_tools/nvcc_sweep.py keeps of machine code, and how it is read."""

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


def test_instructions_are_parsed(sass: ModuleType) -> None:
    program = sass.parse(sass.functions(LISTING)[NAME])
    assert [str(instruction) for instruction in program.instructions][3:5] == [
        "/*0030*/ @P0 BRA `(.L_x_2)", "/*0040*/ LDG.E.128 R8, desc[UR4][R6.64]"
    ]  # fmt: skip
    assert program.labels == {".L_x_0": 0x10, ".L_x_1": 0x20, ".L_x_2": 0x70, ".L_x_3": 0xC0}
    reused = sass.parse(["  /*0010*/  @!UP0 FFMA R1, R2.reuse, R3, -R4 ;"]).instructions[0]
    assert (reused.guard, reused.name) == ("!UP0", "FFMA")
    assert reused.operands == ("R1", "R2", "R3", "-R4")


def test_listings_are_kept(sweep: ModuleType, tmp_path: Path) -> None:
    kernel = sweep.Kernel(NAME, 64, 0, 128, 0)
    kept = sweep.Result(Path("a.cu"), "sm_90", 1.0, [kernel], None, LISTING)
    other = sweep.Result(Path("a.cu"), "sm_75", 1.0, [kernel], None)
    sweep.write_listings(tmp_path / "new", [other, kept])
    (found,) = sweep.read_listings(tmp_path / "new")
    assert (found.kernels, found.listing, found.target) == ([kernel], LISTING, "sm_90")
    with pytest.raises(FileNotFoundError, match="no listings"):
        sweep.read_listings(tmp_path)


def test_without_a_disassembler_nothing_fails(
    sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert sweep.find_disassembler(tmp_path / "bin" / "nvcc") is None
    package = tmp_path / "nvidia" / "cu13" / "bin"
    package.mkdir(parents=True)
    (package / "nvdisasm").write_text("#!/bin/sh\n")
    (package / "nvdisasm").chmod(0o755)
    assert sweep.find_disassembler(tmp_path / "bin" / "nvcc") == str(package / "nvdisasm")
