"""Every operator in every mode, dimension, dtype and layout; and the table of what was tested."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from cases import Case, make_map
from conftest import ROOT
from test_exactness import MODES
from torch import Tensor
from torch.autograd import gradgradcheck

import msr_cuda
from msr_cuda import Pool, _spec, testing

sys.path.insert(0, str(ROOT / "build_tools"))
import support_table

DTYPES = {name: getattr(torch, name) for name in support.DTYPES}
#: By the label of a mode: what the operators are told. Sizes go up along some axes, down along
#: others; poolings go down.
SOURCES: dict[str, dict[str, Any]] = {
    **{support.MODES[i]: options for i, options in enumerate(MODES.values())},
    "max-pooling": dict(mode=Pool("max", 3, 2, 1)),
    "average pooling": dict(mode=Pool("avg", 3, 2, 1)),
}
BEFORE, AFTER = (3, 4, 6), (4, 2, 9)


def sizes(mode: object, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    before, after = BEFORE[-rank:], AFTER[-rank:]
    return (before, mode.output_size(before)) if isinstance(mode, Pool) else (before, after)


def functions(
    operator: str, options: dict[str, Any], after: tuple[int, ...]
) -> Callable[[list[Tensor], str], list[Tensor]]:
    """A call of the operator with a map to resample and one that has the result's size."""
    two = {**options, "size": after}
    if isinstance(options["mode"], Pool):
        two["mode"] = [options["mode"], "nearest"]

    def run(maps: list[Tensor], impl: str) -> list[Tensor]:
        if operator == "resample":
            return [msr_cuda.resample(maps[0], after, **options, impl=impl)]  # type: ignore[arg-type]
        if operator == "resample_pyramid":
            levels = [after, tuple(n + 2 for n in after)]
            return msr_cuda.resample_pyramid(maps[0], levels, **options, impl=impl)  # type: ignore[arg-type]
        if operator == "resample_sum_many":
            # Of a map in two jobs, PyTorch adds up rounded gradients.
            other = {**two, "inputs": [x.detach() for x in maps], "mode": two["mode"]}
            jobs = [{**two, "inputs": maps, "activation": "gelu"}, other]
            return msr_cuda.resample_sum_many(jobs, impl=impl)[:1]  # type: ignore[arg-type]
        return [getattr(msr_cuda, operator)(maps, **two, impl=impl)]

    return run


@pytest.mark.parametrize("rank", support.RANKS, ids=lambda rank: f"{rank}d")
@pytest.mark.parametrize("mode", SOURCES)
@pytest.mark.parametrize("operator", support.OPERATORS)
def test_every_layout_and_dtype(operator: str, mode: str, rank: int, kernel: str) -> None:
    options = SOURCES[mode]
    if isinstance(options["mode"], Pool) and operator in ("resample", "resample_pyramid"):
        return  # no source of theirs
    before, after = sizes(options["mode"], rank)
    run = functions(operator, options, after)
    single = Case(mode, "resample_sum", (), {**options, "size": after})
    for layout in support.LAYOUTS:
        if rank == 1 and layout == "channels_last":
            continue
        for name, dtype in DTYPES.items():
            shapes = [(2, 3, *before), (2, 3, *after)]
            maps = [make_map(s, layout, dtype, kernel).requires_grad_() for s in shapes]
            if operator in ("resample", "resample_pyramid"):
                maps = maps[:1]
            if operator == "resample_max":  # no ties, that rounding could break
                maps[1].detach().copy_(8 * maps[1].detach().sign())
            orders = (0, 1, 2) if dtype == torch.float64 else (0, 1)
            source = single.prepared(maps[:1]).modes[0]
            support.record(operator, maps[:1], [source], after, kernel, *orders)
            assert support.layout_of(maps[0]) == layout, (layout, name)
            check(run, maps, dtype)


def check(
    run: Callable[[list[Tensor], str], list[Tensor]], maps: list[Tensor], dtype: torch.dtype
) -> None:
    """Values and gradients, and second derivatives of float64 maps."""
    found = run(maps, "kernel")
    maps64 = [x.detach().double().requires_grad_() for x in maps]
    expected = run(maps64, "reference")
    grads = [torch.randn_like(y) for y in found]
    for ours, truth in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        testing.assert_within(ours, truth)
    actual = torch.autograd.grad(found, maps, grads)
    wanted = torch.autograd.grad(expected, maps64, [g.double() for g in grads])
    for ours, truth in zip(actual, wanted, strict=True):
        testing.assert_within(ours, truth, what="gradient")
        assert ours.dtype == dtype and truth.abs().max() > 0
    if dtype != torch.float64:
        return
    leaves = tuple(x.detach().contiguous().requires_grad_() for x in maps)

    def laid_out(*tensors: Tensor) -> tuple[Tensor, ...]:
        """The result for maps of these values; gradcheck takes only dense ones itself."""
        given = [like_strides(t, x) for t, x in zip(tensors, maps, strict=True)]
        assert [x.stride() for x in given] == [x.stride() for x in maps]
        return tuple(run(given, "kernel"))

    assert gradgradcheck(laid_out, leaves, fast_mode=True)


def like_strides(values: Tensor, like: Tensor) -> Tensor:
    """The same values with the strides of another map, differentiably."""
    layout = support.layout_of(like)
    if layout == "contiguous":
        return values.clone()
    if layout == "channels_last":
        return values.contiguous(memory_format=_spec.memory_format(True, like.dim()))
    # As make_map has it: every other element of twice as many and one.
    for axis in range(values.dim()):
        gaps = torch.stack([torch.zeros_like(values), values], axis + 1).flatten(axis, axis + 1)
        values = torch.cat([gaps, gaps.narrow(axis, 0, 1)], axis)
    return values[tuple(slice(1, None, 2) for _ in like.shape)]


TINY = {
    "arguments": ["-k", "tiny"],
    "versions": {"msr_cuda": "1.0", "torch": "2.10.0", "python": "3.10.1"},
    "axes": {
        "operator": ["resample", "resample_max"], "mode": ["nearest", "cubic"], "rank": [1, 2],
        "dtype": ["float32", "float64"], "layout": ["contiguous", "channels_last"],
        "device": ["cpu", "harness", "cuda"], "order": [0, 1, 2],
    },
    "cells": [
        ["resample", "nearest", 1, "float32", "contiguous", "cpu", 0],
        ["resample", "nearest", 1, "float64", "contiguous", "cpu", 0],
        ["resample", "nearest", 1, "float64", "contiguous", "cpu", 2],
        *[["resample", "nearest", 2, dtype, layout, "cpu", order]
          for dtype in ("float32", "float64") for layout in ("contiguous", "channels_last")
          for order in (0, 1, 2)],
        ["resample", "nearest", 2, "float32", "channels_last", "harness", 1],
        ["resample", "cubic", 2, "float32", "contiguous", "cpu", 0],
        ["resample", "cubic", 2, "float32", "channels_last", "cpu", 0],
        ["resample", "cubic", 2, "float64", "contiguous", "cpu", 0],
        ["resample", "cubic", 2, "float32", "contiguous", "cpu", 1],
    ],
}  # fmt: skip


def test_labels_are_in_the_order_of_the_modes() -> None:
    numbered = [mode.name.lower().replace("_", "") for mode in _spec.Mode]
    labels = [re.sub("[-_]", "", label).split() for label in support.MODES[:-2]]
    assert ["".join(words) for words in labels] == numbered


def test_table_of_a_tiny_report(tmp_path: Path) -> None:
    report, page = tmp_path / "report.json", tmp_path / "docs" / "support.md"
    report.write_text(json.dumps(TINY))
    subprocess.run(
        [sys.executable, ROOT / "build_tools" / "support_table.py", report, "--output", page],
        check=True,
    )
    text = page.read_text()
    assert "in float32, float64,\n  each contiguous, channels_last.\n" in text
    expected = """
        ## resample

        | mode | CPU 1-D | CPU 2-D | CUDA, harness 1-D | CUDA, harness 2-D |
        | --- | --- | --- | --- | --- |
        | nearest | 0 2 | 0 1 2 | · | 1 (f32 L) |
        | cubic | · | 0 (f32; f64 C), 1 (f32 C) | · | · |

        ## resample_max

        No test ran.

        ## How this was made

        msr_cuda 1.0, torch 2.10.0, python 3.10.1.

        ```
        python -m pytest -k tiny --support-report=report.json
        python build_tools/support_table.py report.json
        ```
    """
    assert textwrap.dedent(expected) in text


def test_the_page_has_the_generators_form() -> None:
    text = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    axes = json.loads(json.dumps(support.report([])["axes"]))
    introduction = support_table.document({**TINY, "axes": axes}).partition("## ")[0]
    assert text.startswith(introduction)
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [s.splitlines()[0] for s in sections] == [*support.OPERATORS, "How this was made"]
    orders = r"[012](?: [012])*(?: \([^()|]+\))?"
    cell = rf"(?:{orders}(?:, {orders})*|·)"
    for section in sections[:-1]:
        name, _, header, rule, *rows = section.rstrip("\n").splitlines()
        columns = header.count("|") - 2
        assert re.fullmatch(r"\| mode (\| (CPU|CUDA, harness|CUDA, GPU) [123]-D )+\|", header)
        assert rule == "| --- |" + " --- |" * columns
        found = [re.fullmatch(rf"\| ([\w -]+) ((?:\| {cell} ){{{columns}}})\|", r) for r in rows]
        assert all(found), (name, rows)
        labels = [match.group(1) for match in found if match]
        pools = () if name in ("resample", "resample_pyramid") else support.MODES[-2:]
        assert labels == [*support.MODES[:-2], *pools]
        # On the CPU nothing is missing.
        for row in rows:
            assert [c.strip() for c in row.split("|")[2:5]] == ["0 1 2"] * 3, (name, row)


def test_only_tests_that_passed_are_reported(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
            import pytest, support, torch
            from msr_cuda import _spec

            def say(mode, *orders):
                support.record("resample", [torch.ones(1, 2, 3, 3)], [mode], (4, 4), "cpu", *orders)

            def test_passes():
                say(_spec.Mode.NEAREST, 0, 1)
                say(_spec.Mode.LINEAR, 0)

            def test_fails():
                say(_spec.Mode.LINEAR, 0)
                say(_spec.Mode.CUBIC, 0)
                raise AssertionError

            def test_skips():
                say(_spec.Mode.AREA, 0)
                pytest.skip("for a reason")

            def test_same_size():
                support.record(
                    "resample", [torch.ones(1, 2, 4, 4)], [_spec.Mode.AREA], (4, 4), "cpu", 0)
        """)
    )
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "support", "-p", "no:cacheprovider",
         f"--support-report={report}", "."],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "2 passed, 1 skipped" in done.stdout and "1 failed" in done.stdout, done.stdout
    found = json.loads(report.read_text())
    assert found["cells"] == [
        ["resample", "nearest", 2, "float32", "contiguous", "cpu", order] for order in (0, 1)
    ]
    assert found["arguments"] == ["."]
