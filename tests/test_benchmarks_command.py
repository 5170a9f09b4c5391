"""The benchmarks' command line, and whole runs of it."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark_rows import CELL, FACTS
from conftest import ROOT

import msr_cuda
from benchmarks import __main__ as command
from benchmarks import contenders, host, machine, measure, results
from benchmarks.contenders import COMPILED, EAGER, OURS, HostWatch
from benchmarks.runner import Settings

CPU = torch.device("cpu")


def settings(*against: str) -> Settings:
    return Settings(CPU, HostWatch(1), rounds=3, against=against, min_sample=1e-5)


def content_has_no_host(folder: Path) -> bool:
    """Cells that were asked for by name are measured alone."""
    return results.load(folder)["host"] == [] and not (folder / "host.csv").exists()


def test_list_prints_the_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--device", "cpu", "--workload", "fpn", "--quick"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "fpn 2x256x100x168 float32 NCHW",
        "fpn 2x256x100x168 float32 channels_last",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8x8"], "expected NxCxL, NxCxHxW or NxCxDxHxW"),
        (["--size", "1x2x8", "--workload", "fpn"], "--size: size: expected 4 numbers for fpn"),
        (["--host-only", "--check"], "--host-only: expected no --check"),
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
    assert "of 4 at least as fast as the best peer" in done.stdout
    assert "1 cells, about" in done.stdout
    assert content_has_no_host(tmp_path)
    content = results.load(tmp_path)
    assert content["wrong"] == []
    assert content["complete"] is True
    assert content["command"].endswith("--rounds 1 --check")  # not where the files went
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
    assert re.search(r"\[1/1, \d+:\d\d\] bilinear-add-relu 2x4", capsys.readouterr().err)


def test_facts_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.machine_facts(CPU)
    assert facts["gpu"] is None
    assert facts["cpu_cores"] >= 1
    assert json.dumps(facts)
    assert machine.version_facts("no-such-package")["no-such-package"] is None
    assert machine.slug("NVIDIA H200") == "nvidia-h200"
    monkeypatch.setattr(machine, "ROOT", Path("/"))
    assert machine.commit() is None or (Path("/") / ".git").exists()


# ---------------------------------------------------------------------------- host time


@pytest.mark.usefixtures("kernels")
def test_host_times_of_every_way() -> None:
    ways = [EAGER, host.MODULE, host.FUNCTION, host.OPERATOR]
    steps: list[str] = []
    found, left_out = host.host_times(
        CPU, rounds=1, min_sample=1e-5, only=ways, progress=steps.append
    )
    assert left_out == []
    assert {(row.workload, row.way, row.kind) for row in found} == {
        (name, way, kind) for name in host.MODULES for way in ways for kind in host.KINDS
    }
    assert all(0 < row.median_seconds < 1 for row in found)
    assert f"host time of unet-cat-nearest: {host.STEP}" in steps


@pytest.mark.usefixtures("kernels")
def test_raw_operators_are_what_the_function_ends_in() -> None:
    cell = CELL
    data = contenders.Data.make(cell, CPU)
    calls = host.calls_of(host.ways(cell.workload)[host.FUNCTION], data)
    counts = {}
    for kind in host.KINDS:
        again = host.raw_calls(calls[kind])
        with host._Recorder() as record:
            again()
        counts[kind] = [str(function.name()).partition(".")[0] for function, _, _ in record.calls]
    assert counts[host.NO_GRAD] == counts[host.FORWARD] == ["msr_cuda::gather"]
    assert counts[host.STEP] == ["msr_cuda::gather", "msr_cuda::spread"]
    with pytest.raises(RuntimeError, match="no operator of msr_cuda"):
        host.raw_calls(lambda: torch.ones(1))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", list(host.MODULES))
def test_modules_do_what_the_workload_does(name: str) -> None:
    data = contenders.Data.make(CELL._replace(workload=name), CPU)
    ways = host.ways(name)
    (expected,) = ways[EAGER](data.plain[0])
    for way in (host.MODULE, host.FUNCTION):
        (found,) = ways[way](data.plain[0])
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("kernels")
def test_host_only_measures_no_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(measure, "copy_bandwidth", lambda *_, **__: 1e9)
    before = torch.get_num_threads()
    try:
        status = command.main([
            "--host-only", "--device", "cpu", "--rounds", "1", "--against", EAGER, "--out",
            str(tmp_path),
        ])  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert status == 0
    assert "What a call costs" in capsys.readouterr().out
    content = results.load(tmp_path)
    assert content["measurements"] == []
    assert {row["way"] for row in content["host"]} == {
        EAGER, host.MODULE, host.FUNCTION, host.OPERATOR,
    }  # fmt: skip
