"""Losses and decisions in the benchmarks: what is compared, and the command; nothing is asserted
of time."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import msr_cuda
from benchmarks import command as common
from benchmarks.contenders import COMPILED, EAGER, OURS
from benchmarks.logits import __main__ as command
from benchmarks.logits import cases, compare
from benchmarks.logits.cases import CASES, SIZES, Run
from benchmarks.logits.compare import EXPONENTIALS, INFERENCE, STEP, Settings
from benchmarks.logits.table import logits_table
from benchmarks.results import RUN_COLUMNS
from benchmarks.workloads import Size
from msr_cuda.testing import TOLERANCES

CPU = torch.device("cpu")
SMALL = Settings(CPU, rounds=1, against=(EAGER,))
LOGITS = {1: Size(2, 5, 9), 2: Size(1, 6, 8, 5), 3: Size(1, 4, 3, 5, 4)}


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rank", LOGITS)
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("kernels")
def test_contenders_compute_the_same(name: str, layout: str, rank: int) -> None:
    if rank == 1 and layout != "NCHW":
        return  # it has no other layout
    rows = compare.compare(Run(name, LOGITS[rank], 3, "float32", layout), SMALL)
    errors = {row["contender"]: row["error"] for row in rows if row["contender"] != EXPONENTIALS}
    assert set(errors) == {EAGER, OURS}
    assert errors[OURS] <= (TOLERANCES[torch.float32][0] if CASES[name].trains else 0.01)
    assert {row["direction"] for row in rows} == ({INFERENCE, STEP} if CASES[name].trains
                                                  else {INFERENCE})  # fmt: skip
    assert all(row["times_ours"] == 1 for row in rows if row["contender"] == OURS)


@pytest.mark.usefixtures("kernels")
def test_peaks_are_beyond_logits_and_their_gradient() -> None:
    """Per pixel of the result eager keeps each class, msr_cuda one number."""
    rows = compare.compare(Run("cross-entropy", Size(1, 20, 16, 16), 4, "float32", "NCHW"), SMALL)
    peaks = {(row["contender"], row["direction"]): row["bytes_per_pixel"] for row in rows}
    assert peaks[EAGER, STEP] > 20 * 4
    assert 0 < peaks[OURS, STEP] <= 8
    assert peaks[EXPONENTIALS, STEP] is None


def test_one_that_computes_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(logits: Tensor, target: Tensor, size: cases.Shape, impl: str) -> Tensor:
        return CASES["cross-entropy"].eager(logits, target, size) + logits.mean()

    wrong = cases.Case("wrong", "", CASES["cross-entropy"].eager, shifted, True, cases._labels,
                       (1, 2))  # fmt: skip
    monkeypatch.setitem(CASES, "wrong", wrong)
    with pytest.raises(ArithmeticError, match=f"{OURS} is off by"):
        compare.compare(Run("wrong", LOGITS[2], 2, "float32", "NCHW"), SMALL)


def test_labels_are_classes_or_ignored() -> None:
    labels = cases._labels((2, 5, 16, 16), (64, 64))
    assert labels.shape == (2, 64, 64)
    valid = labels[labels != 255]
    assert 0 < valid.numel() < labels.numel()
    assert valid.min() == 0
    assert valid.max() == 4


@pytest.mark.parametrize("device", SIZES)
def test_each_case_has_sizes(device: str) -> None:
    assert set(SIZES[device]) == set(CASES)
    for sizes in SIZES[device].values():
        assert {size.rank for size, _ in sizes} <= {2, 3}


def test_the_list_is_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--quick", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name} {sizes[0][0]} x{sizes[0][1]} float32 NCHW"
                     for name, sizes in SIZES["cpu"].items()]  # fmt: skip
    words = ["--list", "--case", "argmax", "--size", "1x3x8x8", "--growth", "2", "--dtype",
             "bfloat16", "--layout", "channels_last", "--device", "cpu"]  # fmt: skip
    assert command.main(words) == 0
    assert capsys.readouterr().out == "argmax 1x3x8x8 x2 bfloat16 channels_last\n"


@pytest.mark.usefixtures("kernels")
def test_a_run_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--rounds", "1", "--allocator", "default", "--size", "1x3x8x8",
             "--growth", "2", "--layout", "NCHW", "--against", "eager"]  # fmt: skip
    assert command.main([*words, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "logits.json").read_text(encoding="utf-8"))
    assert content["complete"] is True
    assert content["left_out"] == content["wrong"] == []
    assert {row["case"] for row in content["measurements"]} == set(CASES)
    assert COMPILED not in {row["contender"] for row in content["measurements"]}
    assert str(tmp_path) not in content["command"]
    assert content["versions"]["msr_cuda"] == msr_cuda.__version__
    with open(tmp_path / "logits.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*command.TABLE.columns, *RUN_COLUMNS)
    assert len(rows) == len(content["measurements"])
    assert logits_table(content["measurements"]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--case", "focal"], "invalid choice"),
        (["--size", "8x8"], "--size: expected"),
        (["--growth", "0"], "--growth: expected at least 1, got 0"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_what_fails_is_left_out_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that fails is named, one that is wrong, too; what was measured is kept."""

    def failing(tell: object) -> list[dict[str, object]]:
        raise RuntimeError("no memory\nand more")

    def wrong(tell: object) -> list[dict[str, object]]:
        raise ArithmeticError("off by 1")

    arguments = command.parse(["--device", "cpu", "--out", str(tmp_path)])
    about = common.facts(arguments, "other", [], {"clock": "none"})
    jobs = [
        common.Job("a", failing),
        common.Job("b", wrong),
        common.Job("c", lambda tell: [{"x": 1}]),
    ]
    status = common.measure_all(
        common.Table("other", ("x",)), jobs, arguments, about, lambda rows: f"{len(rows)} rows"
    )
    assert status == 1
    printed = capsys.readouterr().out
    assert "1 rows\nleft out: a: RuntimeError: no memory\nWRONG: off by 1\n" in printed
    content = json.loads((tmp_path / "other.json").read_text(encoding="utf-8"))
    assert content["measurements"] == [{"x": 1}]
