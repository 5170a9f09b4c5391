"""All that needs a CUDA device, in one command: build, tests, benchmarks, profiles.

    python3 run.py gpu-check                              everything (or: make gpu-check)
    python -m benchmarks.gpu_check --stages tests,benchmarks --budget 580

Needs no network and no pip: the extension is built in place with the torch that is there. A stage
that fails does not keep the later ones from running, except the build. What came out goes to
<out>/<gpu>-<date>/: a log per stage, tests.xml (JUnit), benchmarks.json, host.csv, ncu.csv,
models.json and their like, plots if matplotlib is there, and summary.json. The exit status is 0 if
every stage that was asked for passed; those that need what few machines have (ncu, packages of
models) may be left out.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Nothing that imports msr_cuda: the build replaces the binary that it would have loaded.
from . import JSON_NAME, LOGITS_NAME, MODELS_NAME, machine

PASSED, FAILED, TIMED_OUT, LEFT_OUT = ("passed", "failed", "timed out", "left out")
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck")
#: Seconds below which it is not worth beginning a stage.
LEAST_TIME = 5.0
#: Seconds that a program has to write down what it knows when its time is up.
GRACE = 15.0

CHECK_BUILD = """
import sys
from msr_cuda import _extension
if not _extension.has_kernels("cuda"):
    sys.exit("no CUDA kernels: " + str(_extension.WHY_NOT or _extension.build_reason()))
"""


class Command(NamedTuple):
    """A program, and what it finds in its environment beside everything else."""

    words: list[str]
    environment: dict[str, str] = {}  # noqa: RUF012 (never changed)


@dataclass(frozen=True)
class Stage:
    """One step of the check.

    Attributes:
        name: as on the command line.
        limit: seconds it may take where there is no budget.
        share: of the budget that is left, against the shares of the later stages.
        commands: of the seconds that the stage has; all run, also after one has failed.
        missing: what it needs that is not here; empty: nothing.
        detail: one line about what came out.
        optional: whether it may be left out for want of something.
    """

    name: str
    limit: float
    share: float
    commands: Callable[[float], list[Command]]
    missing: Callable[[], list[str]]
    detail: Callable[[], str]
    optional: bool = False


@dataclass(frozen=True)
class Result:
    """How a stage ended."""

    name: str
    status: str
    seconds: float
    detail: str
    optional: bool = False

    @property
    def acceptable(self) -> bool:
        """Whether the check as a whole may pass."""
        return self.status == PASSED or (self.optional and self.status == LEFT_OUT)


# ---------------------------------------------------------------------------- the stages


def plan(out: Path, wanted: Sequence[str], options: argparse.Namespace) -> list[Stage]:
    """The stages that were asked for, in their order.

    Args:
        out: the folder that results go to.
        wanted: their names.
        options: the command line: ``pytest``, ``benchmarks``, ``logits``, ``models``
            and ``commit``.
    """
    python = sys.executable

    def build(seconds: float) -> list[Command]:
        # egg_info: entry points are found beside a package that pip did not install.
        words = [python, "setup.py", "egg_info", "build_ext", "--inplace"]
        return [
            Command(words, {"MSR_CUDA_BUILD": "cuda"}),
            Command([python, "-m", "msr_cuda", "info"]),
            Command([python, "-c", CHECK_BUILD]),
        ]

    def tests(seconds: float) -> list[Command]:
        words = [python, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
        return [Command([*words, f"--junitxml={out / 'tests.xml'}", *shlex.split(options.pytest)])]

    def sanitizer(seconds: float) -> list[Command]:
        tool = str(find_tool("compute-sanitizer") or "compute-sanitizer")
        # Starting and stopping under the tool takes time, too.
        each = max(LEAST_TIME, 0.7 * seconds / len(SANITIZER_TOOLS))
        calls = [python, "-m", "benchmarks.sanitizer_calls", "--device", "cuda"]
        # Memory that torch keeps and hands out again would hide an access beyond a tensor.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return [
            Command(
                [tool, "--tool", name, "--error-exitcode", "9", *calls, "--seconds", f"{each:.0f}"],
                environment,
            )
            for name in SANITIZER_TOOLS
        ]

    def measuring(module: str, last: float, more: str) -> Callable[[float], list[Command]]:
        """A benchmark that ends by itself, after the part that it is at; that takes ``last``."""

        def commands(seconds: float) -> list[Command]:
            words = [python, "-m", module, "--device", "cuda", "--out", str(out)]
            words += ["--budget", f"{max(1.0, seconds - last):.0f}", *shlex.split(more)]
            return [Command([*words, *commit])]

        return commands

    def profile(seconds: float) -> list[Command]:
        calls = [python, "-m", "benchmarks.profile_calls", "--seconds", f"{0.8 * seconds:.0f}"]
        ncu = [str(find_tool("ncu") or "ncu"), "--profile-from-start", "off", "--csv"]
        ncu += ["--page", "raw", "--metrics", ",".join(NCU_METRICS)]
        return [Command([*ncu, "--log-file", str(out / "ncu.csv"), *calls])]

    commit = ["--commit", options.commit] if options.commit else []
    stages = (
        Stage(
            "build", 600, 2, build,
            lambda: missing_modules("setuptools", "numpy") + missing_programs("ninja", "nvcc"),
            lambda: last_line(out / "build.log", r"^msr_cuda: .*"),
        ),
        Stage(
            "tests", 3600, 5, tests, lambda: missing_modules("pytest", "numpy"),
            lambda: test_counts(out / "tests.xml"),
        ),
        Stage(
            "sanitizer", 900, 3, sanitizer,
            lambda: missing_modules("pytest")
            + ([] if find_tool("compute-sanitizer") else ["the program compute-sanitizer"]),
            lambda: sanitizer_counts(out / "sanitizer.log"),
        ),
        Stage(
            "benchmarks", 3600, 5, measuring("benchmarks", 60, options.benchmarks), list,
            lambda: benchmark_counts(out / JSON_NAME),
        ),
        Stage(
            "logits", 600, 2, measuring("benchmarks.logits", 60, options.logits), list,
            lambda: benchmark_counts(out / f"{LOGITS_NAME}.json"),
        ),
        Stage(
            "profile", 600, 2, profile,
            lambda: [] if find_tool("ncu") else ["the program ncu"],
            lambda: ncu_counts(out / "ncu.csv"), optional=True,
        ),
        Stage(
            # Those that lack their package are left out by name; one needs none.
            "models", 1800, 3, measuring("benchmarks.models", 90, options.models), list,
            lambda: benchmark_counts(out / f"{MODELS_NAME}.json"),
        ),
    )  # fmt: skip
    return [stage for stage in stages if stage.name in wanted]


STAGES = ("build", "tests", "sanitizer", "benchmarks", "logits", "profile", "models")
#: Time, share of the memory's bandwidth, share of the arithmetic, occupancy, registers.
NCU_METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)


def missing_modules(*names: str) -> list[str]:
    """Those that Python does not find."""
    return [f"the Python package {name}" for name in names if not importlib.util.find_spec(name)]


def missing_programs(*names: str) -> list[str]:
    """Those that are neither on the PATH, nor a Python package, nor of a CUDA toolkit."""
    absent = []
    for name in names:
        in_toolkit = (folder / name for folder in _toolkit_folders())
        found = shutil.which(name) or importlib.util.find_spec(name)
        if not found and not any(path.exists() for path in in_toolkit):
            absent.append(f"the program {name}")
    return absent


def find_tool(name: str) -> Path | None:
    """A program of NVIDIA's, on the PATH or in the CUDA toolkit."""
    if found := shutil.which(name):
        return Path(found)
    paths = (folder / name for folder in _toolkit_folders())
    return next((path for path in paths if path.exists()), None)


def _toolkit_folders() -> list[Path]:
    folders = []
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parent)
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home:
            folders.append(Path(home) / "bin")
    return folders


# ---------------------------------------------------------------------------- what came out


def last_line(path: Path, pattern: str) -> str:
    """The last line of a log that matches."""
    lines = re.findall(pattern, _read(path), re.MULTILINE)
    return lines[-1] if lines else ""


def test_counts(path: Path) -> str:
    """``812 passed, 3 failed, 20 skipped`` of a JUnit file."""
    try:
        suites = ElementTree.parse(path).getroot().iter("testsuite")
    except (OSError, ElementTree.ParseError):
        return "no report was written"
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        for name in counts:
            counts[name] += int(suite.get(name, 0))
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return f"{passed} passed, {failed} failed, {counts['skipped']} skipped"


def sanitizer_counts(path: Path) -> str:
    """What each tool found."""
    text = _read(path)
    summaries = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$", text, re.MULTILINE)
    made = re.findall(r"^\d+ of \d+ calls made", text, re.MULTILINE)
    return "; ".join([*summaries, *made]) or "no tool ran to its end"


def benchmark_counts(path: Path) -> str:
    """How many measurements were made."""
    try:
        content = json.loads(_read(path))
    except ValueError:
        return "no results were written"
    whole = "all cells" if content["complete"] else "not all cells"
    return f"{len(content['measurements'])} measurements, {whole}, {len(content['wrong'])} wrong"


def ncu_counts(path: Path) -> str:
    """How many kernels were profiled, and the share of the memory's bandwidth that they reached."""
    lines = [line for line in _read(path).splitlines() if line.startswith('"')]
    shares = []
    for row in csv.DictReader(lines):
        with contextlib.suppress(TypeError, ValueError):  # the row below the header has units
            shares.append(float(row.get(NCU_METRICS[1], "").replace(",", "")))
    if not shares:
        return "no kernel was profiled"
    return (
        f"{len(shares)} kernels, DRAM throughput {min(shares):.0f} to {max(shares):.0f} % of its "
        f"peak, median {statistics.median(shares):.0f} %"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ---------------------------------------------------------------------------- running them


def run_command(command: Command, log: Path, limit: float) -> int | None:
    """Exit status of a command, its output added to a log; None if its time was up.

    It is interrupted first, so that pytest and the benchmarks write down what they know.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
    before = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = str(machine.ROOT) + (os.pathsep + before if before else "")
    with open(log, "a", encoding="utf-8") as output:
        settings = [f"{name}={value}" for name, value in command.environment.items()]
        output.write(f"$ {shlex.join([*settings, *command.words])}\n")
        output.flush()
        try:
            process = subprocess.Popen(
                command.words, cwd=machine.ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            output.write(f"{error}\n")
            return 127
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            output.write(f"\nstopped: {limit:.0f} s were up\n")
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    """Ends a program and all that it started, if anything is left of it."""
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        if process.poll() is not None and number == signal.SIGINT:
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def run_stage(stage: Stage, log: Path, limit: float, clock: Callable[[], float]) -> Result:
    """Runs all of a stage's commands, within its time."""
    begun = clock()
    absent = stage.missing()
    if absent:
        return Result(stage.name, LEFT_OUT, 0.0, "missing: " + ", ".join(absent), stage.optional)
    log.unlink(missing_ok=True)
    statuses = []
    for command in stage.commands(limit):
        left = limit - (clock() - begun)
        statuses.append(run_command(command, log, left) if left > 0 else None)
    if None in statuses:
        status = TIMED_OUT
    else:
        status = FAILED if any(statuses) else PASSED
    return Result(stage.name, status, round(clock() - begun, 1), stage.detail())


def run_stages(
    stages: Sequence[Stage],
    out: Path,
    budget: float | None,
    *,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Runs the stages one after the other.

    Args:
        stages: as :func:`plan` makes them.
        out: where their logs go.
        budget: seconds for all of them; what one leaves is there for the later ones.
        say: prints a line.
        clock: seconds; for tests.
    """
    begun = clock()
    results: list[Result] = []
    for number, stage in enumerate(stages):
        if any(r.name == "build" and r.status != PASSED for r in results):
            results.append(Result(stage.name, LEFT_OUT, 0.0, "there is no build"))
            continue
        limit = stage.limit
        if budget is not None:
            shares = sum(later.share for later in stages[number:])
            limit = min(limit, (budget - (clock() - begun)) * stage.share / shares)
        if limit < LEAST_TIME:
            results.append(Result(stage.name, LEFT_OUT, 0.0, "no time was left"))
            continue
        say(f"{stage.name}: at most {limit:.0f} s ...")
        results.append(run_stage(stage, out / f"{stage.name}.log", limit, clock))
        say(describe(results[-1]))
    return results


def describe(result: Result) -> str:
    """One line."""
    text = f"{result.name}: {result.status} after {result.seconds:.0f} s"
    return f"{text}; {result.detail}" if result.detail else text


# ---------------------------------------------------------------------------- the command


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--stages", default=",".join(STAGES), metavar="A,B",
        help=f"which ones, of {','.join(STAGES)} (default: all)")  # fmt: skip
    add("--budget", type=float, default=None, metavar="SECONDS", help="for all of them together")
    add("--out", type=Path, default=machine.ROOT / "benchmarks" / "results", metavar="DIR",
        help="where the folder with the results goes (default: benchmarks/results)")  # fmt: skip
    add("--pytest", default="", metavar="ARGS", help="further arguments for pytest")
    add("--benchmarks", default="--quick", metavar="ARGS",
        help="arguments for the benchmarks (default: --quick)")  # fmt: skip
    add("--logits", default="", metavar="ARGS", help="further arguments for benchmarks.logits")
    add("--models", default="", metavar="ARGS", help="further arguments for benchmarks.models")
    add("--commit", default=None, help="what to write down where the checkout has no git")
    arguments = parser.parse_args(argv)
    arguments.stages = arguments.stages.split(",")
    unknown = [name for name in arguments.stages if name not in STAGES]
    if unknown:
        parser.error(f"--stages: expected names of {', '.join(STAGES)}, got {', '.join(unknown)}")
    return arguments


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What the results were made on."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.gpu_check", *sys.argv[1:]]),
        "machine": machine.machine_facts(torch.device("cuda")),
        "torch": str(torch.__version__),
        "commit": options.commit or machine.commit(),
    }


def conclude(out: Path, about: dict[str, Any], results: Sequence[Result]) -> int:
    """Writes summary.json, prints what came out; returns the exit status."""
    passed = all(result.acceptable for result in results)
    content = {**about, "passed": passed, "stages": [asdict(result) for result in results]}
    (out / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\n{'PASSED' if passed else 'NOT PASSED'}, results in {out}")
    for result in results:
        print(f"  {describe(result)}")
    return 0 if passed else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stages; returns the exit status."""
    options = parse(argv)
    import torch

    if not torch.cuda.is_available():
        print(f"gpu-check: it needs a CUDA device, and torch {torch.__version__} sees none")
        return 2
    about = facts(options)
    out = options.out / f"{machine.slug(about['machine']['gpu'])}-{about['date'][:10]}"
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = run_stages(plan(out, options.stages, options), out, options.budget)
    return conclude(out, about, results)


if __name__ == "__main__":
    sys.exit(main())
