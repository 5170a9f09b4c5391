"""The benchmarks: what they compute, what they find out, what they write."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, missing
from torch import Tensor

import msr_cuda
from benchmarks import __main__ as command
from benchmarks import contenders, goals, machine, results, runner, summary, table, workloads
from benchmarks.contenders import COMPILED, EAGER, OURS, OURS_FLOAT32, Data, HostWatch
from benchmarks.measure import Timing
from benchmarks.runner import Measurement, Settings
from benchmarks.workloads import WORKLOADS, Cell, Merge, Size
from msr_cuda import _extension
from msr_cuda.testing import TOLERANCES, assert_within

CPU = torch.device("cpu")
MB = 1_000_000


# ---------------------------------------------------------------------------- workloads

SMALL = Size(2, 4, 10, 14)
CELL = Cell("bilinear-add-relu", SMALL, "float32", "NCHW")
every_workload = pytest.mark.parametrize("name", list(WORKLOADS))


def step(
    function: contenders.Function, maps: list[Tensor], grads: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients."""
    leaves = [x.detach().requires_grad_() for x in maps]
    outputs = function(leaves)
    return [y.detach() for y in outputs], list(torch.autograd.grad(outputs, leaves, grads))


@pytest.mark.parametrize("layout", list(workloads.LAYOUTS))
@every_workload
def test_the_contenders_compute_the_same(name: str, layout: str, impl: str, device: str) -> None:
    """Values and gradients of both expressions, against the plain one in float64."""
    cell = Cell(name, SMALL, "float32", layout)
    data = Data.make(cell, torch.device(device))
    double = [[x.double() for x in maps] for maps in (data.plain[0], data.grads[0])]
    truth = step(WORKLOADS[name].eager, *double)
    eager = step(WORKLOADS[name].eager, data.plain[0], data.grads[0])
    fused = step(lambda maps: WORKLOADS[name].fused(maps, impl), data.plain[0], data.grads[0])
    for kind, ours, theirs, true in zip(("output", "gradient"), fused, eager, truth, strict=True):
        assert len(ours) == len(theirs) == len(true)
        for i, (a, b, expected) in enumerate(zip(ours, theirs, true, strict=True)):
            assert_within(a, expected, what=f"{kind} {i}")
            if kind == "output":
                assert a.stride() == b.stride()
            elif impl == "kernel":  # those of plain PyTorch are laid out as its operators like it
                # The map's own, or a view of the incoming gradient where the map passed through.
                assert a.stride() in (data.plain[0][i].stride(), b.stride())


@every_workload
def test_shapes_follow_from_the_finest_map(name: str) -> None:
    workload = WORKLOADS[name]
    for size in (SMALL, Size(1, 3, 9, 11)):
        shapes = workload.shapes(size)
        outputs = workload.eager([torch.randn(shape) for shape in shapes])
        merges = workload.merges(shapes)
        assert sum(merge.output for merge in merges) == sum(map(Tensor.numel, outputs))
        read = sum(merge.passed + merge.resampled for merge in merges)
        # The inner levels of a pyramid are written by one merge and read by the next.
        inner = sum(output.numel() for output in outputs[1:])
        assert read == sum(torch.Size(shape).numel() for shape in shapes) + inner


def test_fewest_bytes() -> None:
    total = Merge(output=80, passed=80, resampled=20, resampled_output=80, activation=True)
    assert total.bytes("inference", 4) == 4 * (80 + 20 + 80)
    assert total.bytes("forward", 4) == 4 * (80 + 20 + 80) + 10
    assert total.bytes("backward", 4) == 4 * (80 + 80 + 20) + 10
    plain = total._replace(activation=False)
    assert plain.bytes("forward", 2) == plain.bytes("inference", 2) == 2 * (80 + 20 + 80)
    assert plain.bytes("backward", 2) == 2 * (80 + 20)  # the skip gets the gradient itself
    alone = Merge(output=80, passed=0, resampled=20, resampled_output=80, activation=True)
    assert alone.bytes("backward", 4) == 4 * (80 + 20) + 10

    size = Size(1, 2, 4, 4)
    cat = WORKLOADS["unet-cat-nearest"]
    assert cat.minimum_bytes(size, torch.float32, "inference") == 4 * (8 + 32 + 64)
    assert cat.minimum_bytes(size, torch.float32, "backward") == 4 * (32 + 8)
    fpn = WORKLOADS["fpn"]
    assert fpn.minimum_bytes(size, torch.bfloat16, "inference") == 2 * (72 + 18 + 6)
    # The last merge, 1x1 to 1x1, resamples nothing.
    assert fpn.minimum_bytes(size, torch.bfloat16, "backward") == 2 * (40 + 10)


def test_the_grid() -> None:
    quick = workloads.cells("cpu", quick=True)
    whole = workloads.cells("cpu", quick=False)
    assert set(quick) < set(whole)
    assert {cell.workload for cell in quick} == set(WORKLOADS)
    assert {cell.dtype for cell in whole} == {"float32", "bfloat16"}
    assert {cell.dtype for cell in workloads.cells("cuda", quick=True)} == {
        "float16", "bfloat16", "float32",
    }  # fmt: skip
    assert {cell.layout for cell in quick} == {"NCHW", "channels_last"}
    assert {workloads.SMALL, workloads.TINY} <= {cell.size for cell in whole}
    assert min(cell.size.height for cell in quick) > workloads.SMALL.height
    (cell,) = workloads.cells(
        "cpu", quick=True, workloads=["fpn"], dtypes=["float16"], layouts=["NCHW"], sizes=[SMALL]
    )
    assert str(cell) == "fpn 2x4x10x14 float16 NCHW"


def test_quick_has_what_every_goal_needs() -> None:
    quick = workloads.cells("cpu", quick=True)
    have = {(cell.workload, cell.dtype, cell.layout, cell.size) for cell in quick}
    for goal in goals.CPU_GOALS:
        sizes = {
            s for w, d, la, s in have if (w, d, la) == (goal.workload, goal.dtype, goal.layout)
        }
        assert sizes
        if goal.peer == goals.OURS_FLOAT32:
            assert all((goal.workload, "float32", goal.layout, size) in have for size in sizes)


@pytest.mark.parametrize("value", ["2x64x200", "2x64x200x0", "axbxcxd", ""])
def test_sizes_that_are_none(value: str) -> None:
    with pytest.raises(ValueError, match="expected NxCxHxW"):
        workloads.parse_size(value)
    assert workloads.parse_size("2x64x200x336") == Size(2, 64, 200, 336)


# ---------------------------------------------------------------------------- a cell


def test_another_mode_is_another_function() -> None:
    """What the bound on the peers' errors must tell apart."""
    maps = workloads.make_maps(CELL, CPU)
    shifted = torch.nn.functional.interpolate(
        maps[1], size=maps[0].shape[2:], mode="bilinear", align_corners=True
    )
    nearest = torch.nn.functional.interpolate(maps[1], size=maps[0].shape[2:])
    truth = [y.double() for y in WORKLOADS[CELL.workload].eager(maps)]
    for other in (shifted, nearest):
        found = [torch.relu(maps[0] + other)]
        assert runner.relative_error(found, truth) > 2 * runner.SAME_FUNCTION


def test_a_sign_that_rounding_flips_is_no_error_of_the_gradient() -> None:
    data = Data.make(CELL, CPU)
    truth = runner.Truth(CELL, data)
    eager = WORKLOADS[CELL.workload].eager

    def flipped(maps: contenders.Maps) -> list[Tensor]:
        """One element of the result that is 0 in truth is a bit more here, and the reverse."""
        skip = maps[0].clone()
        exact = eager([maps[0].detach(), maps[1].detach()])[0].flatten()
        for at in (int(exact.argmin()), int(exact.argmax())):
            skip.view(-1)[at] += 1e-3 - exact[at] if exact[at] == 0 else -2 * exact[at]
        return eager([skip, maps[1]])

    found = truth.errors_of(flipped, data)
    assert found.outputs > 1e-3
    assert found.gradients <= TOLERANCES[torch.float32][0]
    doubled = truth.errors_of(lambda maps: [2 * y for y in eager(maps)], data)
    assert doubled == pytest.approx((1.0, 1.0))


def test_errors_are_relative_and_nan_is_the_worst() -> None:
    truth = [torch.tensor([3.0, 4.0]).double()]
    assert runner.relative_error([torch.tensor([3.0, 4.5])], truth) == pytest.approx(0.1)
    assert runner.relative_error([torch.tensor([3.0, float("nan")])], truth) == float("inf")


def settings(*against: str) -> Settings:
    return Settings(CPU, HostWatch(1), rounds=3, against=against, min_sample=1e-5)


@pytest.fixture
def kernels() -> None:
    if not _extension.has_kernels("cpu"):
        missing(f"no cpu kernels: {_extension.WHY_NOT}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("kernels")
def test_a_cell_is_measured_in_all_directions(dtype: str) -> None:
    steps: list[str] = []
    outcome = runner.run_cell(CELL._replace(dtype=dtype), settings(EAGER), steps.append)
    assert not outcome.left_out
    assert not outcome.wrong
    assert f"checking {OURS}" in steps
    places = {(m.contender, m.direction) for m in outcome.measurements}
    assert places == {(c, d) for c in (EAGER, OURS) for d in contenders.DIRECTIONS}
    for m in outcome.measurements:
        assert len(m.timing.samples) == len(m.host.samples) == 3
        assert m.contender != OURS or 0 < m.error <= TOLERANCES[workloads.DTYPES[dtype]][0]
        assert m.launch == runner.DIRECT
    by_place = {(m.contender, m.direction): m for m in outcome.measurements}
    map_bytes = 2 * 4 * 10 * 14 * workloads.DTYPES[dtype].itemsize
    # Eager writes the resampled map, the sum and the result, of which two are live at once.
    assert 2 * map_bytes <= by_place[EAGER, "inference"].peak_bytes < 2.5 * map_bytes
    assert map_bytes <= by_place[OURS, "inference"].peak_bytes < 1.5 * map_bytes


@pytest.mark.usefixtures("kernels")
def test_a_peer_that_fails_or_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(maps: Any) -> list[Tensor]:
        raise RuntimeError("no compiler here\nand a traceback")

    found = contenders.functions(CELL, CPU)
    other = {
        EAGER: lambda maps: [2 * y for y in found[EAGER](maps)],
        COMPILED: broken,
        OURS: found[OURS],
    }
    monkeypatch.setattr(contenders, "functions", lambda cell, device: other)
    outcome = runner.run_cell(CELL, settings(EAGER, COMPILED))
    assert {m.contender for m in outcome.measurements} == {OURS}
    assert not outcome.wrong
    assert outcome.left_out[0].startswith(
        f"eager of {CELL}: relative errors of outputs 1.0e+00 and gradients 1.0e+00, allowed"
    )
    assert outcome.left_out[1] == f"torch.compile of {CELL}: RuntimeError: no compiler here"


def test_wrong_results_of_ours_are_told_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = WORKLOADS[CELL.workload].eager
    wrong = {EAGER: eager, OURS: lambda maps: [y * (1 + 1e-5) for y in eager(maps)]}
    monkeypatch.setattr(contenders, "functions", lambda cell, device: wrong)
    outcome = runner.run_cell(CELL, settings(EAGER))
    assert {m.contender for m in outcome.measurements} == {EAGER}
    (told,) = outcome.wrong
    assert "errors of outputs 1.0e-05 and gradients 1.0e-05, allowed 1.3e-06" in told


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cell_on_a_gpu_also_runs_as_a_graph() -> None:
    device = torch.device("cuda")
    cell = CELL._replace(dtype="float16")
    config = Settings(device, contenders.CudaWatch(), rounds=3, against=(EAGER, contenders.AMP))
    outcome = runner.run_cell(cell, config)
    assert not outcome.wrong
    assert not outcome.left_out
    assert {m.launch for m in outcome.measurements} == {runner.DIRECT, runner.GRAPH}
    assert {m.contender for m in outcome.measurements} == {EAGER, contenders.AMP, OURS}
    assert all(m.timing.median > 0 for m in outcome.measurements)


# ---------------------------------------------------------------------------- rows and tables


def measurement(contender: str, seconds: float, **changes: Any) -> Measurement:
    arguments: dict[str, Any] = dict(
        cell=CELL, direction="inference", contender=contender, launch=runner.DIRECT,
        timing=Timing((seconds, 2 * seconds, 3 * seconds)), host=Timing((seconds,) * 3),
        peak_bytes=1000, minimum_bytes=4000, error=1e-8,
    )  # fmt: skip
    return Measurement(**{**arguments, **changes})


FACTS = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m benchmarks",
    "machine": {"cpu": "A processor", "cpu_flags": ["avx2", "fma"], "threads": 1, "gpu": None},
    "versions": {"torch": "2.13.0", "cuda": None, "msr_cuda": "0.1.0"},
    "commit": "0123456789abcdef-dirty",
    "measured": {"clock": "CPU time of the thread", "host_clock": "wall clock"},
    "copy_bytes_per_second": 1e6,
}


def test_rows_have_ratios_and_shares() -> None:
    run = results.Run(FACTS, [measurement(EAGER, 0.03), measurement(OURS, 0.01)])
    eager, ours = run.rows
    assert tuple(eager) == tuple(ours)
    assert set(eager) == set(results.COLUMNS)
    assert eager["times_ours"] == pytest.approx(3.0)
    assert ours["times_ours"] == 1.0
    assert ours["median_seconds"] == 0.02
    assert ours["q1_seconds"] == pytest.approx(0.015)
    assert ours["q3_seconds"] == pytest.approx(0.025)
    assert ours["copy_share"] == pytest.approx(4000 / 0.02 / 1e6)
    assert ours["commit"] == "0123456789abcdef-dirty"
    (alone,) = results.Run(FACTS, [measurement(EAGER, 0.03)]).rows
    assert alone["times_ours"] is None


def test_files_can_be_read_again(tmp_path: Path) -> None:
    run = results.Run(FACTS, [measurement(EAGER, 0.03), measurement(OURS, 0.01)], ["a"], ["b"])
    run.write(tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "benchmarks.csv", "benchmarks.json",
    ]  # fmt: skip
    content = results.load(tmp_path / "new")
    assert content["left_out"] == ["a"]
    assert content["wrong"] == ["b"]
    assert content["complete"] is False
    assert content["measurements"][0]["samples_seconds"] == [0.03, 0.06, 0.09]
    with open(tmp_path / "new" / "benchmarks.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == results.COLUMNS
    assert [row["contender"] for row in rows] == [EAGER, OURS]
    assert rows[0]["device"] == "A processor"
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"expected a benchmarks\.json"):
        results.load(tmp_path / "other.json")


def rows_of(*cells: tuple[str, str, str, float]) -> list[results.Row]:
    """``(size, contender, direction, seconds)`` as rows."""
    measurements = [
        measurement(
            contender, seconds / 2, direction=direction,
            cell=CELL._replace(size=workloads.parse_size(size)),
        )
        for size, contender, direction, seconds in cells
    ]  # fmt: skip
    return results.Run(FACTS, measurements).rows


def test_ratios_are_least_and_median_over_the_sizes() -> None:
    rows = rows_of(
        ("1x1x8x8", EAGER, "inference", 6.0), ("1x1x8x8", OURS, "inference", 2.0),
        ("2x1x8x8", EAGER, "inference", 8.0), ("2x1x8x8", OURS, "inference", 2.0),
        ("3x1x8x8", EAGER, "inference", 9.0), ("3x1x8x8", OURS, "inference", 1.0),
        ("3x1x8x8", EAGER, "backward", 5.0),
    )  # fmt: skip
    (ratio,) = summary.ratios(rows)
    assert (ratio.least, ratio.median, ratio.sizes) == (3.0, 4.0, 3)
    assert ratio.direction == "inference"
    lines = summary.ratios_table([ratio]).splitlines()
    assert lines[2] == (
        "| bilinear-add-relu | float32 | NCHW | inference | eager | 3.00 | 4.00 | 3 |"
    )


def test_the_table_of_cells_is_markdown() -> None:
    both = [
        ("1x1x8x8", contender, direction, seconds)
        for contender, seconds in ((EAGER, 6.0), (OURS, 2.0))
        for direction in contenders.DIRECTIONS
    ]
    header, rule, line = summary.cells_table(rows_of(*both)).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| bilinear-add-relu | 1x1x8x8 | float32 | NCHW | 2.00 s | 3.00 |")


def test_the_printed_cell_is_aligned() -> None:
    both = [
        ("1x1x8x8", contender, direction, seconds)
        for contender, seconds in ((EAGER, 0.5), (OURS, 2.0))
        for direction in contenders.DIRECTIONS
    ]
    (group,) = table.by_cell(rows_of(*both))
    title, header, eager, ours = table.cell_text(group).splitlines()
    assert len(header) == len(eager) == len(ours)
    assert "fewest bytes 0.0 MB" in title
    assert eager.count("0.25x") == 3
    assert "x" not in ours.replace("msr_cuda", "")


def test_goals_are_held_against_the_least_ratio() -> None:
    goal = goals.Goal(CELL.workload, "float32", "NCHW", "inference", EAGER, 3.0)
    rows = rows_of(
        ("1x1x8x8", EAGER, "inference", 6.0), ("1x1x8x8", OURS, "inference", 2.0),
        ("2x1x8x8", EAGER, "inference", 5.8), ("2x1x8x8", OURS, "inference", 2.0),
    )  # fmt: skip
    (missed,) = goals.verdicts(rows, [goal])
    assert not missed.met
    assert missed.least == pytest.approx(2.9)
    assert missed.median == pytest.approx(2.95)
    assert goals.describe(missed).endswith("measured 2.90 (median 2.95 of 2) MISSED")
    (met,) = goals.verdicts(rows[:2], [goal])
    assert met.met
    (unknown,) = goals.verdicts(rows, [goal._replace(layout="channels_last")])
    assert not unknown.met
    assert goals.describe(unknown).endswith("not measured")


def test_bfloat16_is_compared_with_our_own_float32() -> None:
    goal = goals.Goal(CELL.workload, "bfloat16", "NCHW", "inference", OURS_FLOAT32, 1.0)
    half = CELL._replace(dtype="bfloat16")
    run = results.Run(
        FACTS,
        [
            measurement(OURS, 9.0),  # another cell, at another time
            measurement(OURS_FLOAT32, 0.05, cell=half),
            measurement(OURS, 0.04, cell=half),
        ],
    )
    (verdict,) = goals.verdicts(run.rows, [goal])
    assert verdict.least == pytest.approx(1.25)


@pytest.mark.usefixtures("kernels")
def test_half_precision_is_timed_beside_float32_on_the_same_values() -> None:
    half = CELL._replace(dtype="bfloat16")
    assert OURS_FLOAT32 not in contenders.functions(CELL, CPU)
    outcome = runner.run_cell(half, settings(OURS_FLOAT32))
    found = {(m.contender, m.direction): m for m in outcome.measurements}
    assert {contender for contender, _ in found} == {OURS, OURS_FLOAT32}
    for direction in contenders.DIRECTIONS:
        wide, narrow = found[OURS_FLOAT32, direction], found[OURS, direction]
        assert wide.peak_bytes > 1.4 * narrow.peak_bytes
        assert wide.minimum_bytes > 1.4 * narrow.minimum_bytes
    data = Data.make(half, CPU)
    wide_data = data.in_float32()
    for kind in ("plain", "leaves", "grads"):
        for narrow_set, wide_set in zip(getattr(data, kind), getattr(wide_data, kind), strict=True):
            for narrow_map, wide_map in zip(narrow_set, wide_set, strict=True):
                assert wide_map.dtype == torch.float32
                assert wide_map.stride() == narrow_map.stride()
                assert torch.equal(wide_map, narrow_map.float())


def test_summary_names_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = results.Run(FACTS, [measurement(EAGER, 0.03), measurement(OURS, 0.01)])
    run.write(tmp_path)
    assert summary.main([str(tmp_path), "--ratios"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == (
        "A processor (avx2), 1 thread, CPU time of the thread; torch 2.13.0, msr_cuda 0.1.0 at "
        "0123456789ab-dirty"
    )
    assert printed[-1].endswith("| eager | 3.00 | 3.00 | 1 |")
    assert summary.main([str(tmp_path / "nowhere.json")]) == 2


# ---------------------------------------------------------------------------- the command


def test_list_prints_the_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--device", "cpu", "--workload", "fpn", "--quick"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "fpn 2x256x100x168 float32 NCHW",
        "fpn 2x256x100x168 float32 channels_last",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8x8"], "expected NxCxHxW"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--check", "--device", "cpu", "--threads", "2"], "the goals are those of one CPU thread"),
        (["--workload", "fnp"], "invalid choice"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_without_kernels_nothing_is_measured() -> None:
    done = run_command("--device", "cpu", "--out", "nowhere", MSR_CUDA_DISABLE_EXTENSION="1",
                       MSR_CUDA_REQUIRE="0")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("there are no kernels to measure: MSR_CUDA_DISABLE_EXTENSION=1")


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.usefixtures("kernels")
def test_a_quick_run_end_to_end(tmp_path: Path) -> None:
    arguments = [
        "--quick", "--device", "cpu", "--workload", "bilinear-add-relu", "--size", "1x4x8x10",
        "--layout", "NCHW", "--dtype", "float32", "--rounds", "1", "--check", "--out",
        str(tmp_path),
    ]  # fmt: skip
    done = run_command(*arguments)
    # The goals are those of large maps; whether these tiny ones meet them is no matter.
    assert done.returncode in (0, 1), done.stderr
    assert "Goals, one thread" in done.stdout
    content = results.load(tmp_path)
    assert content["wrong"] == []
    assert content["complete"] is True
    assert content["command"].endswith("--check --out " + str(tmp_path))
    assert content["commit"] == machine.commit()
    assert content["versions"]["torch"] == str(torch.__version__)
    assert content["versions"]["msr_cuda"] == msr_cuda.__version__
    assert content["versions"]["python"] == sys.version.split()[0]
    assert content["machine"]["threads"] == 1
    assert content["machine"]["cpu"]
    assert content["measured"]["rounds"] == 1
    assert "freed memory" in content["measured"]["allocator"] or sys.platform != "linux"
    assert content["copy_bytes_per_second"] > 0
    places = {(m["contender"], m["direction"]) for m in content["measurements"]}
    compiled = not any(COMPILED in text for text in content["left_out"])
    names = (EAGER, OURS, *([COMPILED] if compiled else []))
    assert places == {(name, direction) for name in names for direction in contenders.DIRECTIONS}
    for m in content["measurements"]:
        assert m["median_seconds"] > 0
        assert m["host_seconds"] > 0
        assert m["peak_bytes"] > 0
    with open(tmp_path / "benchmarks.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(content["measurements"])


@pytest.mark.usefixtures("kernels")
def test_a_run_whose_time_is_up_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = results.Run(FACTS)
    config = settings(EAGER)
    command.run([CELL] * 3, config, run, tmp_path, budget=-1.0)
    assert run.left_out == ["3 cells: -1 s were up"]
    assert not run.complete
    command.run([CELL], config, run, tmp_path, budget=None)
    assert run.complete
    assert "[1/1, 0 s] bilinear-add-relu" in capsys.readouterr().err


def test_facts_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.machine_facts(CPU)
    assert facts["gpu"] is None
    assert facts["cpu_cores"] >= 1
    assert json.dumps(facts)
    assert machine.version_facts("no-such-package")["no-such-package"] is None
    assert machine.slug("NVIDIA H200") == "nvidia-h200"
    monkeypatch.setattr(machine, "ROOT", Path("/"))
    assert machine.commit() is None or (Path("/") / ".git").exists()
