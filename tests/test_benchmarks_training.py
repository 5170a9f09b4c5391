"""The two trainings of a segmentation network that are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import need_kernel, require_or_skip

from benchmarks import plots, training
from benchmarks.contenders import EAGER, OURS


@pytest.fixture(autouse=True)
def _packages() -> None:
    need_kernel("cpu")
    require_or_skip("mlxtend")
    require_or_skip("PIL")


def test_a_run_writes_both_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        options = ["--steps", "3", "--batch-size", "2", "--image-size", "32"]
        assert training.main(["--device", "cpu", "--out", str(tmp_path), *options]) == 0
    finally:
        torch.set_num_threads(before)
    content = json.loads((tmp_path / "training.json").read_text())
    assert content["complete"]
    assert content["command"] == "python -m benchmarks.training --device cpu " + " ".join(options)
    rows = content["measurements"]
    curves = {name: [r["loss"] for r in rows if r["contender"] == name] for name in (EAGER, OURS)}
    assert [len(curve) for curve in curves.values()] == [3, 3]
    assert curves[OURS][0] == pytest.approx(curves[EAGER][0], rel=1e-6)
    # Adam's first steps are the signs of gradients, of which some are noise.
    assert curves[OURS] == pytest.approx(curves[EAGER], rel=1e-2)
    assert curves[OURS][0] != curves[OURS][1]
    peaks = {row["contender"]: row["peak_bytes"] for row in rows if row["peak_bytes"]}
    assert peaks[EAGER] > peaks[OURS]
    printed = capsys.readouterr().out
    assert f"{peaks[OURS] / 1e6:.1f}" in printed
    if plots.available():
        assert (tmp_path / "training.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("option", "least"),
    [("--steps", 1), ("--batch-size", 1), ("--image-size", 1), ("--threads", 1), ("--classes", 11)],
)
def test_bad_numbers(option: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main([option, str(least - 1)])
    assert f"{option}: expected at least {least}, got {least - 1}" in capsys.readouterr().err
