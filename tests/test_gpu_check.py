"""The check that needs a GPU: everything of it that can be tried without one."""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, missing
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import gpu_check, sanitizer_calls
from benchmarks.gpu_check import FAILED, LEFT_OUT, PASSED, TIMED_OUT, Command, Result, Stage
from msr_cuda import _extension, _info

OPTIONS = argparse.Namespace(
    pytest="-k nearest",
    benchmarks="--quick",
    logits="--rounds 7",
    models="--rounds 5",
    commit=None,
)


def python(program: str, **environment: str) -> Command:
    return Command([sys.executable, "-c", program], environment)


def stage(name: str, *commands: Command, **changes: Any) -> Stage:
    arguments: dict[str, Any] = dict(
        limit=60.0, share=1.0, commands=lambda seconds: list(commands), missing=list,
        detail=lambda: f"detail of {name}",
    )  # fmt: skip
    return Stage(name, **{**arguments, **changes})


def run(out: Path, *stages: Stage, budget: float | None = None,
        clock: Callable[[], float] = time.monotonic) -> list[Result]:  # fmt: skip
    return gpu_check.run_stages(stages, out, budget, say=lambda line: None, clock=clock)


# ---------------------------------------------------------------------------- stages


def test_a_failing_stage_does_not_keep_later_ones_away(tmp_path: Path) -> None:
    wrong, right = python("print('here'); raise SystemExit(3)"), python("print('there')")
    found = run(tmp_path, stage("tests", wrong, right), stage("benchmarks", right))
    assert [(r.name, r.status, r.detail) for r in found] == [
        ("tests", FAILED, "detail of tests"),
        ("benchmarks", PASSED, "detail of benchmarks"),
    ]
    log = (tmp_path / "tests.log").read_text()
    assert log.index("$ ") < log.index("here") < log.index("there")  # all commands ran


def test_without_a_build_nothing_else_runs(tmp_path: Path) -> None:
    later = stage("tests", python("raise SystemExit('it ran')"))
    found = run(tmp_path, stage("build", python("raise SystemExit(1)")), later)
    assert [r.status for r in found] == [FAILED, LEFT_OUT]
    assert found[1].detail == "there is no build"
    assert not (tmp_path / "tests.log").exists()
    found = run(tmp_path, stage("build", python("pass")), stage("tests", python("pass")))
    assert [r.status for r in found] == [PASSED, PASSED]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    absent = gpu_check.missing_modules("sys", "no_such_package")
    assert absent == ["the Python package no_such_package"]
    assert gpu_check.missing_programs("no-such-program") == ["the program no-such-program"]
    (found,) = run(tmp_path, stage("tests", python("pass"), missing=lambda: absent))
    assert found.status == LEFT_OUT
    assert found.detail == "missing: the Python package no_such_package"


def test_a_command_that_cannot_be_started_fails(tmp_path: Path) -> None:
    (found,) = run(tmp_path, stage("tests", Command(["/no/such/program"])))
    assert found.status == FAILED
    assert "No such file" in (tmp_path / "tests.log").read_text()


def test_a_stage_that_takes_too_long_may_still_write(tmp_path: Path) -> None:
    program = """
import time
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("what it knows so far")
"""
    log = tmp_path / "log"
    begun = time.monotonic()
    assert gpu_check.run_command(python(program), log, limit=3.0) is None
    assert time.monotonic() - begun < 30
    text = log.read_text()
    assert "stopped: 3 s were up" in text
    assert "what it knows so far" in text or "begun" not in text


def test_what_ignores_the_interrupt_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    program = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(60)
"""
    begun = time.monotonic()
    assert gpu_check.run_command(python(program), tmp_path / "log", limit=1.0) is None
    assert time.monotonic() - begun < 20


def test_commands_find_the_checkout_and_their_environment(tmp_path: Path) -> None:
    program = "import benchmarks, os; print(benchmarks.__file__, os.environ['MSR_TEST'])"
    assert gpu_check.run_command(python(program, MSR_TEST="value"), tmp_path / "log", 60.0) == 0
    text = (tmp_path / "log").read_text()
    assert text.startswith("$ MSR_TEST=value ")
    assert f"{ROOT / 'benchmarks' / '__init__.py'} value" in text


class Steps:
    """A clock that stages move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_is_shared_and_what_is_left_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Steps()
    limits: dict[str, float] = {}

    def take(seconds_of: dict[str, float]) -> Callable[..., int]:
        def fake(command: Command, log: Path, limit: float) -> int:
            limits[log.stem] = limit
            clock.now += seconds_of[log.stem]
            return 0

        return fake

    stages = [
        stage("build", python(""), share=2), stage("tests", python(""), share=3, limit=1000),
        stage("sanitizer", python(""), share=1, limit=15),
        stage("benchmarks", python(""), share=4, limit=1000),
    ]  # fmt: skip
    spent = {"build": 10.0, "tests": 40.0, "sanitizer": 10.0, "benchmarks": 35.0}
    monkeypatch.setattr(gpu_check, "run_command", take(spent))
    found = run(tmp_path, *stages, budget=100.0, clock=clock)
    assert [r.status for r in found] == [PASSED] * 4
    assert limits["build"] == pytest.approx(20.0)
    assert limits["tests"] == pytest.approx(90.0 * 3 / 8)
    assert limits["sanitizer"] == pytest.approx(50.0 / 5)  # of what the tests left
    assert limits["benchmarks"] == pytest.approx(40.0)

    clock.now = 0.0
    found = run(tmp_path, *stages, budget=12.0, clock=clock)
    assert {r.status for r in found} == {LEFT_OUT}
    assert found[0].detail == "no time was left"


def test_time_that_is_up_before_the_last_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Steps()

    def fake(command: Command, log: Path, limit: float) -> int:
        clock.now += 40.0
        return 0

    monkeypatch.setattr(gpu_check, "run_command", fake)
    (found,) = run(tmp_path, stage("sanitizer", *[python("")] * 3), clock=clock)
    assert found.status == TIMED_OUT


# ---------------------------------------------------------------------------- the plan


def test_the_plan(tmp_path: Path) -> None:
    stages = gpu_check.plan(tmp_path, gpu_check.STAGES, OPTIONS)
    assert tuple(s.name for s in stages) == gpu_check.STAGES
    words = {s.name: [c.words for c in s.commands(300.0)] for s in stages}
    assert words["build"][0][1:] == ["setup.py", "egg_info", "build_ext", "--inplace"]
    assert stages[0].commands(1.0)[0].environment == {"MSR_CUDA_BUILD": "cuda"}
    (tests,) = words["tests"]
    assert tests[1:3] == ["-m", "pytest"]
    assert tests[-2:] == ["-k", "nearest"]
    assert f"--junitxml={tmp_path / 'tests.xml'}" in tests
    tools = [w[w.index("--tool") + 1] for w in words["sanitizer"]]
    assert tools == ["memcheck", "racecheck", "initcheck"]
    assert all(w[-2:] == ["--seconds", "70"] for w in words["sanitizer"])
    (benchmarks,) = words["benchmarks"]
    assert benchmarks[1:5] == ["-m", "benchmarks", "--device", "cuda"]
    assert benchmarks[-3:] == ["--budget", "240", "--quick"]
    (logits,) = words["logits"]
    assert logits[1:5] == ["-m", "benchmarks.logits", "--device", "cuda"]
    assert logits[-4:] == ["--budget", "240", "--rounds", "7"]
    (profile,) = words["profile"]
    assert Path(profile[0]).name == "ncu"
    assert profile[profile.index("--log-file") + 1] == str(tmp_path / "ncu.csv")
    assert profile[-4:] == ["-m", "benchmarks.profile_calls", "--seconds", "240"]
    (models,) = words["models"]
    assert models[1:5] == ["-m", "benchmarks.models", "--device", "cuda"]
    assert models[-4:] == ["--budget", "210", "--rounds", "5"]
    # What few machines have may be missing; the rest may not.
    assert [s.name for s in stages if s.optional] == ["profile"]
    (only,) = gpu_check.plan(tmp_path, ["sanitizer"], OPTIONS)
    assert only.name == "sanitizer"
    given = argparse.Namespace(
        pytest="", benchmarks="--workload fpn", logits="", models="", commit="abc"
    )
    for name in ("benchmarks", "logits", "models"):
        (with_commit,) = gpu_check.plan(tmp_path, [name], given)
        (command,) = with_commit.commands(300.0)
        assert command.words[-2:] == ["--commit", "abc"]


@pytest.mark.parametrize(
    ("name", "listed"),
    [("benchmarks", "unet-cat"), ("logits", "cross-entropy 2x150"), ("models", "smp-unet")],
)
def test_the_commands_of_the_plan_can_be_parsed(name: str, listed: str, tmp_path: Path) -> None:
    """On a GPU's behalf: the arguments that the check passes on exist."""
    (stage,) = gpu_check.plan(tmp_path, [name], OPTIONS)
    (command,) = stage.commands(300.0)
    words = [word if word != "cuda" else "cpu" for word in command.words[1:]]
    done = subprocess.run(
        [sys.executable, *words, "--list"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert listed in done.stdout


def test_the_profile_needs_a_gpu_but_no_ncu_to_be_parsed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.profile_calls", "--seconds", "-1"], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if torch.cuda.is_available():
        assert done.returncode == 0
    else:
        assert done.returncode == 2
        assert "it needs a CUDA device" in done.stderr


def test_what_is_optional_may_be_left_out_but_not_fail(tmp_path: Path) -> None:
    for optional, passed in ((True, True), (False, False)):
        absent = stage("profile", python("pass"), missing=lambda: ["ncu"], optional=optional)
        found = run(tmp_path, absent)
        assert found[0].status == LEFT_OUT
        assert (gpu_check.conclude(tmp_path, {}, found) == 0) is passed
    failing = run(tmp_path, stage("profile", python("raise SystemExit(1)"), optional=True))
    assert gpu_check.conclude(tmp_path, {}, failing) == 1


def test_the_build_is_not_believed_without_cuda_kernels() -> None:
    done = subprocess.run(
        [sys.executable, "-c", gpu_check.CHECK_BUILD], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is _extension.has_kernels("cuda")
    assert "no CUDA kernels" in done.stderr or done.returncode == 0


def test_it_loads_no_binary_that_the_build_replaces() -> None:
    program = "import sys, benchmarks.gpu_check; sys.exit('msr_cuda' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().out == (
        f"gpu-check: it needs a CUDA device, and torch {torch.__version__} sees none\n"
    )
    assert not list(tmp_path.iterdir())


def test_unknown_stages_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--stages", "build,test"])
    assert "got test" in capsys.readouterr().err


def test_a_whole_run_on_a_pretended_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    about = {"date": "2026-01-02T03:04:05+00:00", "machine": {"gpu": "NVIDIA H200"}}
    monkeypatch.setattr(gpu_check, "facts", lambda options: about)
    status = {"tests": 0}

    def fake(command: Command, log: Path, limit: float) -> int:
        log.write_text("written\n")
        return status.get(log.stem, 0)

    monkeypatch.setattr(gpu_check, "run_command", fake)
    arguments = ["--stages", "tests,benchmarks", "--out", str(tmp_path), "--budget", "100"]
    assert gpu_check.main(arguments) == 0
    folder = tmp_path / "nvidia-h200-2026-01-02"
    found = json.loads((folder / "summary.json").read_text())
    assert found["passed"] is True
    assert found["machine"] == {"gpu": "NVIDIA H200"}
    assert [s["name"] for s in found["stages"]] == ["tests", "benchmarks"]
    assert "PASSED, results in" in capsys.readouterr().out
    status["tests"] = 1
    assert gpu_check.main(arguments) == 1
    assert json.loads((folder / "summary.json").read_text())["passed"] is False
    assert "NOT PASSED" in capsys.readouterr().out


@pytest.fixture
def run_py(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """run.py as a module that starts and installs nothing, in a checkout without .venv."""
    found = SimpleNamespace(**runpy.run_path(str(ROOT / "run.py")))
    module_globals = found.gpu_check_command.__globals__
    found.started = []

    def started(*words: object) -> int:
        found.started.append([str(word) for word in words])
        return 5

    found.set = lambda **values: module_globals.update(values)
    found.set(
        run=started, PYTHON=tmp_path / "python", parent_has_torch=lambda: True,
        prepare=lambda: found.started.append("prepare"),
        setup=lambda: {"torch": {"version": "2.13.0"}},
        install_basics=lambda needed: None,
        install_optional=lambda groups, consequence: found.started.append(
            " ".join(group.name for group in groups)
        ),
    )  # fmt: skip
    return found


def test_a_torch_that_is_there_is_used_without_pip(run_py: SimpleNamespace, tmp_path: Path) -> None:
    arguments = ["--stages", "build"]
    assert run_py.gpu_check_command(arguments) == 5
    assert run_py.started == [[sys.executable, "-m", "benchmarks.gpu_check", *arguments]]
    (tmp_path / "python").touch()
    run_py.started.clear()
    run_py.gpu_check_command([])
    assert run_py.started == ["prepare", [str(tmp_path / "python"), "-m", "benchmarks.gpu_check"]]


def test_nothing_is_downloaded_where_there_is_no_gpu(run_py: SimpleNamespace) -> None:
    run_py.set(parent_has_torch=lambda: False, shutil=SimpleNamespace(which=lambda name: None))
    with pytest.raises(SystemExit, match="it needs a CUDA device"):
        run_py.gpu_check_command([])
    assert run_py.started == []


def test_bench_is_quick_unless_told_otherwise(run_py: SimpleNamespace, tmp_path: Path) -> None:
    run_py.bench_command([])
    run_py.bench_command(["--workload", "fpn"])
    python = str(tmp_path / "python")
    run_py.bench_command(["logits", "--quick"])
    run_py.bench_command(["models", "--model", "unet3d"])
    assert run_py.started == [
        "matplotlib",
        [python, "-m", "benchmarks", "--quick"],
        "matplotlib",
        [python, "-m", "benchmarks", "--workload", "fpn"],
        "matplotlib",
        [python, "-m", "benchmarks.logits", "--quick"],
        "torchvision matplotlib timm segmentation_models_pytorch ultralytics",
        [python, "-m", "benchmarks.models", "--model", "unet3d"],
    ]


# ---------------------------------------------------------------------------- what came out


def test_counts_of_reports(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    assert gpu_check.test_counts(report) == "no report was written"
    report.write_text(
        '<testsuites><testsuite tests="12" failures="1" errors="2" skipped="3"/></testsuites>'
    )
    assert gpu_check.test_counts(report) == "6 passed, 3 failed, 3 skipped"

    log = tmp_path / "sanitizer.log"
    assert gpu_check.sanitizer_counts(log) == "no tool ran to its end"
    log.write_text(
        "========= COMPUTE-SANITIZER\n9 of 9 calls made, forward and backward, 0 without a kernel\n"
        "========= ERROR SUMMARY: 0 errors\n"
        "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    )
    assert gpu_check.sanitizer_counts(log) == (
        "ERROR SUMMARY: 0 errors; RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings); "
        "9 of 9 calls made"
    )

    written = tmp_path / "benchmarks.json"
    assert gpu_check.benchmark_counts(written) == "no results were written"
    written.write_text(json.dumps({"complete": False, "measurements": [1, 2], "wrong": []}))
    assert gpu_check.benchmark_counts(written) == "2 measurements, not all cells, 0 wrong"

    profiled = tmp_path / "ncu.csv"
    assert gpu_check.ncu_counts(profiled) == "no kernel was profiled"
    share = gpu_check.NCU_METRICS[1]
    profiled.write_text(
        f'==PROF== Connected to process 1\n"ID","Kernel Name","{share}"\n"","","%"\n'
        '"0","expand(int, int)","71.5"\n"1","reduce","60.25"\n"2","gather","80.75"\n'
    )
    assert gpu_check.ncu_counts(profiled) == (
        "3 kernels, DRAM throughput 60 to 81 % of its peak, median 72 %"
    )

    log.write_text("msr_cuda: one\nother\nmsr_cuda: two\n")
    assert gpu_check.last_line(log, r"^msr_cuda: .*") == "msr_cuda: two"


# ---------------------------------------------------------------------------- sanitizer calls


class Record(TorchDispatchMode):
    """Which operators of ours were called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "msr_cuda":
            overload = function._overloadname
            name = function._opname
            self.seen.add(name if overload == "default" else f"{name}.{overload}")
        return function(*args, **(kwargs or {}))


def test_the_sanitizer_sees_every_kernel() -> None:
    """A dry run on the CPU: an operator that no call reaches needs one in sanitizer_calls.py."""
    if not _extension.has_kernels("cpu"):
        missing(f"no cpu kernels: {_extension.WHY_NOT}")
    with Record() as record:
        for name, call in sanitizer_calls.calls(torch.device("cpu")).items():
            try:
                sanitizer_calls.has_kernel(call)
            except Exception as error:
                pytest.fail(f"{name}: {error}")
    with_kernels = {name for name, keys in _info.info()["kernels"].items() if "CPU" in keys}
    assert record.seen >= with_kernels


def test_sanitizer_calls_notice_what_is_not_finite() -> None:
    bad = torch.tensor([1.0, float("nan")], requires_grad=True)
    with pytest.raises(AssertionError, match="not finite"):
        sanitizer_calls.forward_and_backward(lambda: ([bad * 1], [bad]))


def test_calls_without_a_kernel_are_passed_over() -> None:
    def refused() -> None:
        raise RuntimeError('resample: impl="kernel", but there is none for bicubic')

    def broken() -> None:
        raise RuntimeError("illegal memory access")

    assert sanitizer_calls.has_kernel(lambda: None)
    assert not sanitizer_calls.has_kernel(refused)
    with pytest.raises(RuntimeError, match="illegal"):
        sanitizer_calls.has_kernel(broken)


def test_sanitizer_calls_stop_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    fake = {name: (lambda name=name: made.append(name)) for name in "abc"}
    monkeypatch.setattr(sanitizer_calls, "calls", lambda device: fake)
    assert sanitizer_calls.main(["--device", "cpu"]) == 0
    assert sorted(made) == ["a", "b", "c"]
    assert (
        capsys.readouterr().out == "3 of 3 calls made, forward and backward, 0 without a kernel\n"
    )
    assert sanitizer_calls.main(["--device", "cpu", "--seconds", "-1"]) == 1
    assert (
        capsys.readouterr().out == "0 of 3 calls made, forward and backward, 0 without a kernel\n"
    )
