"""build_tools/count_kernels.py, on symbols that can be counted by hand."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BUILD_TOOLS = Path(__file__).resolve().parent.parent / "build_tools"

SYMBOLS = """\
0000000000001000 T msr::gather_kernel<float>(msr::GatherParams, msr::WindowTables)
0000000000001010 T msr::gather_kernel<double>(msr::GatherParams, msr::WindowTables)
0000000000001020 T __device_stub__ZN3msr13gather_kernelIfEEv(msr::gather_kernel<float>())
0000000000001030 W void msr::expand_kernel<msr::Half, 8, 1>(msr::ExpandParams)
0000000000001040 t void msr::(anonymous namespace)::combine_count<msr::Vec, 1>(int)
0000000000001050 t void msr::(anonymous namespace)::combine_count<msr::Vec, 1>(int)
0000000000001060 t void msr::(anonymous namespace)::combine_count<msr::Vec, 2>(int) [clone .cold]
0000000000001070 t auto msr::(anonymous namespace)::along_few<2>::{lambda(auto:1)#1}::operator()
                 U msr::spread_kernel<float>(msr::SpreadParams)
0000000000001080 b msr::gather_kernel<float>(int)::cache
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(BUILD_TOOLS))
    return importlib.import_module("count_kernels")


def test_instances_are_counted_by_template(tool: ModuleType) -> None:
    counts = tool.count(SYMBOLS)
    # Two instruction sets have a function of one name each.
    assert counts == {
        "CUDA": {"expand_kernel": 1, "gather_kernel": 2},
        "CPU": {"combine_count": 2},
    }
    assert tool.summary(counts) == (
        "3 CUDA kernel instances (expand_kernel 1, gather_kernel 2); "
        "2 CPU kernel instances (combine_count 2)"
    )


def test_the_table_stands_between_the_markers(tool: ModuleType) -> None:
    page = f"# Kernels\n\n{tool.BEGIN}\nold\n{tool.END}\n\nWhy.\n"
    once = tool.with_table(page, tool.count(SYMBOLS))
    assert "| CUDA | `gather_kernel` | 2 |\n| CUDA | all | 3 |\n" in once and "old" not in once
    assert once.endswith(f"{tool.END}\n\nWhy.\n")
    assert tool.with_table(once, tool.count(SYMBOLS)) == once


def test_what_cannot_be_read_has_no_count(tool: ModuleType, tmp_path: Path) -> None:
    assert tool.count_in([tmp_path / "missing.o"]) is None
    assert tool.count_in([]) is None
