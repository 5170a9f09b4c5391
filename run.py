#!/usr/bin/env python3
"""One entry point that needs nothing but Python 3.10 (or `make`, whose targets are the same).

    python3 run.py demo [args]    the demonstration, examples/demo.py
    python3 run.py test [args]    the test suite; arguments go to pytest
    python3 run.py bench [args]   python -m benchmarks, against eager and torch.compile
                                  (default: --quick; --help lists what there is;
                                  `bench models [args]`: whole models, python -m benchmarks.models;
                                  `bench logits [args]`: losses, python -m benchmarks.logits;
                                  `bench training [args]`: python -m benchmarks.training)
    python3 run.py docs           the site, build/docs/index.html; no network but for its packages
    python3 run.py gpu-check      on a CUDA machine: build, tests, compute-sanitizer, benchmarks
    python3 run.py setup          only prepare .venv/, build, and say what there is
    python3 run.py lint           ruff, mypy, clang-format
    python3 run.py format         apply ruff and clang-format
    python3 run.py clean          remove .venv/ and everything that was built

Everything happens in .venv/, which is made once. A torch that this Python already has (a CUDA
machine, a conda environment, a container) is used as it is: nothing is downloaded, and the kernels
are built against it. Otherwise torch is installed into .venv/.

Environment:
    MSR_CUDA_TORCH        what to install where there is no torch (default: torch==2.13.0)
    MSR_CUDA_TORCH_INDEX  the pip index for it, for a CPU-only or another CUDA build
    MSR_CUDA_BUILD        auto (default), cpu, cuda or none; for more, see setup.py
    MSR_CUDA_SANITIZE     1: the extension is built, and `test` run, with AddressSanitizer and UBSan
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_tools"))
import toolchain  # noqa: E402 (it lies in build_tools, as what follows)
from optional_packages import (  # noqa: E402
    EXPORTERS,
    IMAGES,
    MODEL_LIBRARIES,
    MORE_MODEL_LIBRARIES,
    PLOTS,
    SIDE_BY_SIDE,
    SITE,
    SPEECH,
    SVM,
    TABLES,
    TRAINING,
    WEIGHTS,
    Group,
    torchvision_for,
)

VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
BUILD_LOG = VENV / "build.log"
BUILT = VENV / "built.json"  # what the binary was built from, and what came out
UNAVAILABLE = VENV / "unavailable.json"  # optional packages that could not be had, and when
TRY_AGAIN_AFTER = 24 * 3600  # seconds

# Runs in .venv's Python: what is installed there. Imports nothing, for importing torch takes long.
PROBE = """
import importlib.metadata, importlib.util, json, pathlib, runpy, sys, sysconfig
facts = {"purelib": sysconfig.get_path("purelib"), "python": sys.version, "torch": None}
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    root = pathlib.Path(spec.origin).parent
    version = runpy.run_path(str(root / "version.py"))
    facts["torch"] = {"version": str(version["__version__"]), "cuda": version.get("cuda"),
                      "pybind11": (root / "include" / "pybind11").is_dir()}
def there(module):
    parent = module.rpartition(".")[0]  # of a namespace package; to look below it imports it
    return (not parent or there(parent)) and importlib.util.find_spec(module) is not None
facts["modules"] = [m for m in sys.argv[1:] if there(m)]
found = reversed(list(importlib.metadata.distributions()))  # the first on sys.path wins
facts["versions"] = {d.name.lower(): d.version for d in found if d.name}
print(json.dumps(facts))
"""


def say(text: str) -> None:
    """One line, with the time: some steps take long."""
    print(f"[msr_cuda {time.strftime('%H:%M:%S')}] {text}", flush=True)


def stop(text: str) -> None:
    """One line, and the exit status that says so."""
    sys.exit(f"[msr_cuda] {text}")


def run(*command: object, environment: dict[str, str] | None = None, **options: Any) -> int:
    """Exit status of a command run at the root of the checkout, .venv first on its PATH."""
    variables = dict(os.environ, VIRTUAL_ENV=str(VENV))
    variables.pop("PYTHONHOME", None)
    variables["PATH"] = str(BIN) + os.pathsep + variables.get("PATH", "")
    variables.update(environment or {})
    sys.stdout.flush()
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, env=variables, check=False, **options).returncode


def probe(*modules: str) -> dict:
    """What .venv's Python has; run outside the checkout, whose folders are no packages."""
    done = subprocess.run(
        [str(PYTHON), "-c", PROBE, *modules], cwd=VENV, capture_output=True, text=True, check=False
    )
    if done.returncode:
        stop(f"{PYTHON} does not work; `run.py clean` and try again:\n{done.stderr}")
    return json.loads(done.stdout)


def pip_install(*arguments: str, quick: bool = True) -> bool:
    """Whether pip could. Quick: no minutes of waiting where there is no network."""
    patience = ("--retries", "0", "--timeout", "15") if quick else ()
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "-q", "install", *patience)
    hidden = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} if quick else {}
    return run(*pip, *arguments, **hidden) == 0


def parent_has_torch() -> bool:
    """Whether the Python that runs this file can import torch (not merely find a folder)."""
    command = [sys.executable, "-c", "import torch"]
    done = subprocess.run(command, cwd="/", capture_output=True, check=False)
    return done.returncode == 0


def make_venv() -> None:
    """Makes .venv, on top of this Python's packages where torch is among them."""
    works = PYTHON.exists() and subprocess.run([str(PYTHON), "-c", ""], check=False).returncode == 0
    if works:
        return
    inherit = parent_has_torch()
    say("making .venv/ " + ("on top of this Python's torch" if inherit else "(no torch here yet)"))
    try:
        venv.create(VENV, clear=VENV.exists(), symlinks=os.name != "nt", with_pip=not inherit)
    except (subprocess.CalledProcessError, SystemExit):
        shutil.rmtree(VENV, ignore_errors=True)
        stop("Python cannot make a virtual environment; on Debian: apt-get install python3-venv")
    if inherit:
        # Not --system-site-packages: that shows the packages of the base Python, and the one that
        # runs this may itself be a virtual environment.
        parents = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
        lines = "".join(f"{path}\n" for path in parents if os.path.isdir(path))
        Path(probe()["purelib"], "_inherited.pth").write_text(lines, encoding="utf-8")
        if "pip" not in probe("pip")["modules"]:
            run(PYTHON, "-m", "ensurepip", "--default-pip", stdout=subprocess.DEVNULL)


def install_torch() -> None:
    """Makes sure that there is a torch. The only large download, and only where there is none."""
    if probe()["torch"] is not None:
        return
    torch = os.environ.get("MSR_CUDA_TORCH", "torch==2.13.0")
    index = os.environ.get("MSR_CUDA_TORCH_INDEX")
    say(f"installing {torch} (once; 0.2 GB for a CPU build, about 3 GB for a CUDA build)")
    where = ["--index-url", index] if index else []
    if not pip_install(*shlex.split(torch), *where, quick=False):
        stop(
            f"could not install {torch}. Run this with a Python that has torch >= 2.10, or set "
            "MSR_CUDA_TORCH and MSR_CUDA_TORCH_INDEX"
        )


def install_basics(needed: tuple[str, ...]) -> None:
    """What building and testing needs; pybind11 only where torch does not bring its headers."""
    basics = {
        "setuptools": "setuptools>=64,<82",  # editable installs; some torch releases want < 82
        "wheel": "wheel",
        "ninja": "ninja",
        "numpy": "numpy",
        "pytest": "pytest>=8",
        "pybind11": "pybind11>=2.12",
        "expecttest": "expecttest",  # torch.testing._internal imports it, unlisted
        "hypothesis": "hypothesis>=6.100",
    }
    facts = probe()

    def missing() -> list[str]:
        versions = probe()["versions"]
        lacking = [name for name in basics if name not in versions]
        numbers = [int(n) for n in re.findall(r"\d+", versions.get("setuptools", "0"))[:2]]
        if numbers < [64] and "setuptools" not in lacking:
            lacking.append("setuptools")
        if "wheel" in lacking and numbers >= [70, 1]:
            lacking.remove("wheel")  # setuptools does it by itself
        if "ninja" in lacking and shutil.which("ninja"):
            lacking.remove("ninja")
        if "pybind11" in lacking and facts["torch"]["pybind11"]:
            lacking.remove("pybind11")
        return lacking

    wanted = missing()
    if not wanted:
        return
    say("installing " + ", ".join(wanted))
    if not pip_install(*(basics[name] for name in wanted)):
        for name in wanted:  # one of them must not keep the others away
            pip_install(basics[name])
    wanted = missing()
    if fatal := [name for name in wanted if name in needed]:
        stop(f"needs {', '.join(fatal)}, and pip could not install that into .venv/")
    if wanted:
        say("going on without " + ", ".join(wanted))


def fingerprint() -> str:
    """Changes when anything changes that the binary depends on."""
    digest = hashlib.sha256()
    files = [path for path in ROOT.glob("csrc/**/*") if path.is_file()]
    files += [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "msr_cuda" / "_version.py"]
    files += set(ROOT.glob("build_tools/*.py")) - {ROOT / "build_tools" / "optional_packages.py"}
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    variables = "MSR_CUDA_BUILD MSR_CUDA_SANITIZE TORCH_CUDA_ARCH_LIST CXX CC CXXFLAGS LDFLAGS"
    facts = probe()
    for fact in (
        {name: os.environ.get(name) for name in variables.split()},
        toolchain.find_cuda_toolkit()[1],
        toolchain.find_compiler()[1],
        facts["torch"],
        facts["python"],
    ):
        digest.update(repr(fact).encode())
    return digest.hexdigest()


def binaries() -> dict[str, str]:
    """The binaries in the package, by content: another build may have replaced them."""
    found = sorted(ROOT.glob("msr_cuda/_C*.so"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def pip_build(mode: str, log_mode: str) -> bool:
    """Installs the checkout editable, which builds it. All output goes to the log."""
    # -v: pip shows the build's own output.
    install = (PYTHON, "-m", "pip", "--disable-pip-version-check", "-v", "install")
    with open(BUILD_LOG, log_mode, encoding="utf-8") as log:
        status = run(
            *install,
            "--no-build-isolation",
            "--no-deps",
            "-e",
            ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            environment={"MSR_CUDA_BUILD": mode},
        )
    return status == 0


def show_log_tail() -> None:
    """The 25 lines before the build gave up, not what pip has to say after that."""
    lines = BUILD_LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    ours = [number for number, line in enumerate(lines, 1) if "msr_cuda: " in line]
    end = ours[-1] if ours else len(lines)
    print("\n".join(lines[max(0, end - 25) : end]), flush=True)


def build() -> None:
    """Builds and installs the package into .venv, if anything changed since the last time."""
    now = fingerprint()
    if BUILT.exists() and json.loads(BUILT.read_text()) == [now, binaries()]:
        return
    mode = os.environ.get("MSR_CUDA_BUILD") or "auto"
    say(f"building msr_cuda, MSR_CUDA_BUILD={mode} (log: {BUILD_LOG.relative_to(ROOT)})")
    begun = time.time()
    if not pip_build(mode, "w"):
        show_log_tail()
        if mode != "auto":
            stop(f"the build failed; all of it: {BUILD_LOG}")
        say("the build failed; going on in pure PyTorch")
        if not pip_build("none", "a"):
            show_log_tail()
            stop(f"not even the Python part can be installed; all of it: {BUILD_LOG}")
    elif mode == "auto" and not binaries():
        show_log_tail()
        reason = (ROOT / "msr_cuda" / "_build_reason.txt").read_text(encoding="utf-8").strip()
        say(f"going on in pure PyTorch: {reason}")
    else:
        say(f"built in {time.time() - begun:.0f} s")
    BUILT.write_text(json.dumps([now, binaries()]))


def demo_packages(facts: dict) -> list[Group]:
    """What the demonstration shows and the tests look at, beside the package itself."""
    return [torchvision_for(facts["torch"]["version"]), IMAGES, WEIGHTS, PLOTS, TABLES]


def install_optional(groups: list[Group], consequence: str) -> None:
    """Gets what can be had; says in one line what cannot. Remembers, so as not to ask each time."""
    modules = sorted({package.module for group in groups for package in group.packages})
    present = set(probe(*modules)["modules"])
    failed = json.loads(UNAVAILABLE.read_text()) if UNAVAILABLE.exists() else {}
    for group in groups:
        wanted = [p.requirement for p in group.packages if p.module not in present]
        if not wanted or time.time() - failed.get(group.name, 0) < TRY_AGAIN_AFTER:
            continue
        say(f"installing {group.name}")
        if not pip_install("--no-deps", *wanted):
            failed[group.name] = time.time()
    UNAVAILABLE.write_text(json.dumps(failed))
    present = set(probe(*modules)["modules"])
    absent = [g.name for g in groups if any(p.module not in present for p in g.packages)]
    if absent:
        say(f"could not be had: {', '.join(absent)}; {consequence} (`run.py setup` forgets this)")


def prepare() -> None:
    """What lint needs: an environment with torch, whose types mypy reads."""
    make_venv()
    install_torch()


def setup(needed: tuple[str, ...] = ("setuptools", "wheel", "numpy")) -> dict:
    """Everything that is the same for demo and test. Returns what is installed."""
    prepare()
    install_basics(needed)
    build()
    return probe()


def setup_command(arguments: list[str]) -> int:
    """Prepares, forgets which downloads failed, and says what there is."""
    if arguments:
        stop(f"setup: expected no arguments, got {' '.join(arguments)}")
    setup()
    UNAVAILABLE.unlink(missing_ok=True)
    return run(PYTHON, "-m", "msr_cuda", "info")


def test_command(arguments: list[str]) -> int:
    """The test suite."""
    facts = setup(("setuptools", "wheel", "numpy", "pytest"))
    libraries = [
        *demo_packages(facts), TRAINING, SPEECH, SVM, *MODEL_LIBRARIES, *MORE_MODEL_LIBRARIES,
        EXPORTERS, *([SITE] if sys.version_info >= (3, 11) else []),
    ]  # fmt: skip
    install_optional(libraries, "the tests that need them skip")
    variables = sanitizer_environment()
    if variables:
        # A sanitizer that ends the process writes past Python's streams, and that is to be seen.
        options = ["--capture=sys"]
    else:
        options, variables = side_by_side(arguments, facts)
    return run(PYTHON, "-m", "pytest", *options, *arguments, environment=variables)


def side_by_side(arguments: list[str], facts: dict) -> tuple[list[str], dict[str, str]]:
    """What has the whole suite run in several processes, where there are cores and memory for it.

    A few tests by themselves are sooner done without, and on a GPU they would disturb each other.
    """
    count = min(toolchain.default_jobs(gigabytes=4), 8)
    whole = all(argument.startswith("--ignore") for argument in arguments)
    if count == 1 or not whole or facts["torch"]["cuda"]:
        return [], {}
    install_optional([SIDE_BY_SIDE], "the tests run one after the other")
    if set(probe("xdist", "execnet")["modules"]) != {"xdist", "execnet"}:
        return [], {}
    # Threads that wait for each other's processes would take longer than one alone.
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return ["-n", str(count), "--dist", "worksteal"], {"OMP_NUM_THREADS": threads}


def sanitizer_environment() -> dict[str, str]:
    """What tests of an extension with sanitizers run under; nothing without MSR_CUDA_SANITIZE=1."""
    if os.environ.get("MSR_CUDA_SANITIZE") != "1":
        return {}
    if not binaries():
        stop("MSR_CUDA_SANITIZE=1: the extension did not compile, and there is nothing to test")
    sys.path.insert(0, str(ROOT / "tests"))
    from harness import build as harness_build

    try:
        return harness_build.sanitizer_variables()
    except harness_build.BuildError as error:
        stop(f"MSR_CUDA_SANITIZE=1: {error}")
        raise


def demo_command(arguments: list[str]) -> int:
    """The demonstration."""
    install_optional(demo_packages(setup()), "the demo goes on without")
    return run(PYTHON, ROOT / "examples" / "demo.py", *arguments)


def bench_command(arguments: list[str]) -> int:
    """The benchmarks."""
    facts = setup()
    if arguments[:1] == ["models"]:
        vision = torchvision_for(facts["torch"]["version"])
        install_optional([vision, PLOTS, *MODEL_LIBRARIES], "models that need them are left out")
        return run(PYTHON, "-m", "benchmarks.models", *arguments[1:])
    install_optional([PLOTS], "there will be no plots")
    if arguments[:1] == ["training"]:
        install_optional([TRAINING], "there are no pictures to train on")
    if arguments[:1] in (["logits"], ["training"]):
        return run(PYTHON, "-m", f"benchmarks.{arguments[0]}", *arguments[1:])
    return run(PYTHON, "-m", "benchmarks", *(arguments or ["--quick"]))


def docs_command(arguments: list[str]) -> int:
    """The site. Nothing is compiled; a warning is an error."""
    if arguments:
        stop(f"docs: expected no arguments, got {' '.join(arguments)}")
    if sys.version_info < (3, 11):
        stop(f"docs: needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    prepare()
    install_basics(("numpy",))
    packages = {package.module: package.requirement for package in SITE.packages + PLOTS.packages}
    lacking = packages.keys() - set(probe(*packages)["modules"])
    if lacking:
        say("installing what builds the site")
        if not pip_install("--no-deps", *(packages[name] for name in sorted(lacking)), quick=False):
            stop("docs: what builds the site could not be installed into .venv/")
    site = ROOT / "build" / "docs"
    doctrees = ROOT / "build" / "doctrees"
    options = ("-q", "-E", "-W", "--keep-going", "-b", "html", "-d", doctrees)
    status = run(PYTHON, "-m", "sphinx", *options, ROOT / "docs", site)
    say(f"see {site.relative_to(ROOT) / 'index.html'}" if status == 0 else "docs failed")
    return status


def gpu_check_command(arguments: list[str]) -> int:
    """All that needs a GPU. With a torch that is there already, pip is not needed."""
    module = ("-m", "benchmarks.gpu_check")
    if not PYTHON.exists():
        if parent_has_torch():
            return run(sys.executable, *module, *arguments)
        if shutil.which("nvidia-smi") is None:  # before a torch for it is downloaded
            stop("gpu-check: it needs a CUDA device, and there is no nvidia-smi here")
    prepare()
    install_basics(("setuptools", "numpy"))
    return run(PYTHON, *module, *arguments)


def dev_tools() -> None:
    """The pinned tools of pyproject.toml's `dev`, their programs in .venv."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dev = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    pins = dict(re.findall(r'"([\w-]+)==([\w.]+)"', block.group(1)))
    versions = probe()["versions"]
    wanted = [
        f"{name}=={version}"
        for name, version in pins.items()
        if versions.get(name) != version or not (BIN / name).exists()
    ]
    if not wanted:
        return
    say("installing " + ", ".join(wanted))
    # --ignore-installed: an inherited copy would leave .venv/bin without the program.
    if not pip_install("--ignore-installed", *wanted, quick=False):
        stop(f"could not install {', '.join(wanted)}")


def cpp_files() -> list[Path]:
    """What clang-format looks after."""
    folders = (ROOT / "csrc", ROOT / "tests" / "harness")
    found = [path for folder in folders for path in folder.rglob("*")]
    return sorted(path for path in found if path.suffix in (".h", ".cpp", ".cu", ".cuh"))


def lint_command(arguments: list[str]) -> int:
    """All checks, also after one has failed."""
    if arguments:
        stop(f"lint: expected no arguments, got {' '.join(arguments)}")
    prepare()
    dev_tools()
    checks = {
        "ruff check": (BIN / "ruff", "check", "."),
        "ruff format": (BIN / "ruff", "format", "--check", "."),
        "mypy": (BIN / "mypy", "--python-executable", PYTHON),
        "clang-format": (BIN / "clang-format", "--dry-run", "-Werror", *cpp_files()),
    }
    failed = []
    for name, command in checks.items():
        say(name)
        if run(*command):
            failed.append(name)
    say(f"lint failed: {', '.join(failed)}" if failed else "lint passed")
    return 1 if failed else 0


def format_command(arguments: list[str]) -> int:
    """Applies what lint checks, as far as the tools can."""
    if arguments:
        stop(f"format: expected no arguments, got {' '.join(arguments)}")
    prepare()
    dev_tools()
    run(BIN / "ruff", "check", "--fix", "--quiet", ".")
    status = run(BIN / "ruff", "format", ".")
    return run(BIN / "clang-format", "-i", *cpp_files()) or status


def clean_command(arguments: list[str]) -> int:
    """Removes what run.py and the build made, and nothing else."""
    if arguments:
        stop(f"clean: expected no arguments, got {' '.join(arguments)}")
    folders = [VENV, ROOT / "build", ROOT / "dist", *ROOT.glob("*.egg-info")]
    folders += [ROOT / name for name in (".pytest_cache", ".mypy_cache", ".ruff_cache")]
    folders.append(ROOT / "docs" / "generated")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for path in (*ROOT.glob("msr_cuda/_C*.so"), ROOT / "msr_cuda" / "_build_reason.txt"):
        path.unlink(missing_ok=True)
    return 0


def help_command(arguments: list[str]) -> int:
    """This file's docstring."""
    print(__doc__)
    return 0


COMMANDS = {
    "demo": demo_command,
    "test": test_command,
    "bench": bench_command,
    "docs": docs_command,
    "gpu-check": gpu_check_command,
    "setup": setup_command,
    "lint": lint_command,
    "format": format_command,
    "clean": clean_command,
    "help": help_command,
}


def main() -> int:
    """Runs one command."""
    if sys.version_info < (3, 10):  # noqa: UP036 (this file is what meets an older one)
        stop(f"needs Python 3.10 or newer, this is {sys.version.split()[0]}")
    name = sys.argv[1] if len(sys.argv) > 1 else "help"
    if name in ("-h", "--help"):
        name = "help"
    if name not in COMMANDS:
        stop(f"expected one of {', '.join(COMMANDS)}, got {name}")
    try:
        return COMMANDS[name](sys.argv[2:])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
