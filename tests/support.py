"""Which cells of the support table a test run has shown, for build_tools/support_table.py.

Tests say with :func:`record` what they are about to hold to the truth. ``pytest
--support-report=FILE.json`` writes the cells of the tests that passed, without those of any that
failed. The plugin is part of conftest.py.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases import Case
from torch import Tensor

import msr_cuda
from msr_cuda import Pool, _spec

OPERATORS = (
    "resample", "resample_sum", "resample_sum_many", "resample_cat", "resample_max",
    "resample_pyramid",
)  # fmt: skip
#: The number of a mode is its label's place; those of poolings follow.
MODES = (
    "nearest", "nearest-exact", "linear", "linear align_corners", "cubic", "cubic align_corners",
    "area", "linear antialias", "linear antialias align_corners", "cubic antialias",
    "cubic antialias align_corners", "lanczos antialias", "max-pooling", "average pooling",
)  # fmt: skip
RANKS = (1, 2, 3)
DTYPES = ("float32", "float16", "bfloat16", "float64")
LAYOUTS = ("contiguous", "channels_last", "strided")
#: "harness": CUDA kernels, run on the CPU.
DEVICES = ("cpu", "harness", "cuda")
#: 0: values.
ORDERS = (0, 1, 2)


class Cell(NamedTuple):
    """One thing that a test held to the truth: the map was resampled so, on kernels."""

    operator: str
    mode: str
    rank: int
    dtype: str
    layout: str
    device: str
    order: int


class _Run:
    """What the tests of one run have recorded."""

    def __init__(self) -> None:
        self.passed: set[Cell] = set()
        self.failed: set[Cell] = set()
        self.current: set[Cell] = set()


_RUN = _Run()


def layout_of(x: Tensor) -> str:
    """One of :data:`LAYOUTS`."""
    if x.is_contiguous():
        return "contiguous"
    return "channels_last" if _spec.is_channels_last(x) else "strided"


def mode_label(mode: _spec.Source) -> str:
    """One of :data:`MODES`."""
    if isinstance(mode, Pool):
        return "max-pooling" if mode.kind == "max" else "average pooling"
    return MODES[mode]


def record(
    operator: str,
    maps: Sequence[Tensor],
    modes: Sequence[_spec.Source],
    size: Sequence[int],
    device: str,
    *orders: int,
) -> None:
    """Says what the running test exercises: maps of the result's size are not resampled.

    Args:
        operator: name of the public function.
        maps, modes: its maps, and how each gets to ``size``.
        size: spatial, of the result.
        device: one of :data:`DEVICES`.
        orders: of the derivatives that are compared.
    """
    for x, mode in zip(maps, modes, strict=True):
        if not x.numel() or (tuple(x.shape[2:]) == tuple(size) and not isinstance(mode, Pool)):
            continue
        rank, dtype = x.dim() - 2, str(x.dtype).removeprefix("torch.")
        found = (operator, mode_label(mode), rank, dtype, layout_of(x), device)
        _RUN.current.update(Cell(*found, order) for order in orders)


def record_case(case: Case, maps: list[Tensor], device: str, *orders: int) -> None:
    """The same of one case, called with these maps."""
    call = case.prepared(maps)
    record(case.operator, maps, call.modes, call.size, device, *orders)


def report(selection: Sequence[str]) -> dict[str, Any]:
    """What :mod:`support_table` reads; ``selection``: pytest's arguments that select tests."""
    return {
        "arguments": list(selection),
        "versions": {
            "msr_cuda": msr_cuda.__version__,
            "torch": torch.__version__.partition("+")[0],
            "python": platform.python_version(),
        },
        "axes": {
            "operator": OPERATORS, "mode": MODES, "rank": RANKS, "dtype": DTYPES,
            "layout": LAYOUTS, "device": DEVICES, "order": ORDERS,
        },
        "cells": sorted(_RUN.passed - _RUN.failed),
    }  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--support-report", metavar="FILE.json", type=Path,
        help="write what the tests that passed have shown to run on kernels",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--support-report") and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--support-report: one process has to see all tests; without -n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    _RUN.current = set()
    try:
        result = yield
    except pytest.skip.Exception:
        raise
    except BaseException:
        _RUN.failed |= _RUN.current
        raise
    _RUN.passed |= _RUN.current
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    path = config.getoption("--support-report")
    if path is None:
        return
    given = (str(argument) for argument in config.invocation_params.args)
    selection = [
        os.path.relpath(argument, config.rootpath)
        for argument in given
        if not argument.startswith("-") and Path(argument.partition("::")[0]).exists()
    ]
    if keyword := config.getoption("keyword"):
        selection += ["-k", keyword]
    path.write_text(json.dumps(report(selection), indent=0) + "\n", encoding="utf-8")
