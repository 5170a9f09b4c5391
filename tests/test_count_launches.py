"""build_tools/count_launches.py: how many kernels an operation launches."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import need_kernel
from harness import build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(ROOT / "build_tools"))
    return importlib.import_module("count_launches")


@pytest.fixture
def harness() -> ModuleType:
    need_kernel("cpu")  # which the operations run with
    return build.load()


def test_what_people_run_most_takes_one_launch_each_way(
    tool: ModuleType, harness: ModuleType
) -> None:
    operations = tool.operations()
    for name in (
        "`resample`, nearest", "`resample`, bilinear", "`resample_sum` of 3, ReLU",
        "`resample_cat` of 3",
    ):  # fmt: skip
        run, leaves = operations[name]
        forward, backward = tool.count(harness, run, *leaves)
        assert forward.ours == {"expand_kernel": 1}, name
        assert backward.ours == {"reduce_aligned_kernel": 1}, name
        assert not forward.torch and not backward.torch, name


def test_many_jobs_take_one_launch(tool: ModuleType, harness: ModuleType) -> None:
    run, leaves = tool.operations()["`resample_sum_many`, 4 jobs of 3"]
    forward, _ = tool.count(harness, run, *leaves)
    assert forward.ours == {"gather_many_kernel": 1}


def test_counts_in_words(tool: ModuleType) -> None:
    counter = tool.Counter
    none = tool.Launches(counter(), counter())
    some = tool.Launches(counter(a_kernel=2), counter(mul=1, sum=2))
    assert (str(none), str(some)) == ("none", "2 `a_kernel`, 3 of PyTorch (mul, sum)")


def test_the_page_has_what_is_counted(tool: ModuleType, harness: ModuleType) -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert tool.with_table(page, tool.table(harness)) == page
    with pytest.raises(ValueError, match="has no"):
        tool.with_table("no markers", [])
    assert re.search(rf"{tool.BEGIN}\n\| operation", page)
