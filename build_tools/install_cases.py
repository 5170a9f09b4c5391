#!/usr/bin/env python3
"""Installs the package into clean environments, one for each case that users meet.

    python build_tools/install_cases.py                  every case; a table on standard output
    python build_tools/install_cases.py isolated none    these alone (--list names them all)
    python build_tools/install_cases.py --write DIR      and DIR/install.json; of cases that are
                                                         not run, it keeps what stands there

Every case starts from a new virtual environment that holds the torch of that case and nothing else
of use, and from a copy of the files that git tracks. pip runs as a user runs it, so with build
isolation, and the command looks at what came out: which kernels there are and whether they compute
what PyTorch does, what was said about those that are missing, what pip fetched, and whether any
file of torch was touched. Exit status 1 if anything is not as expected.

The CUDA builds of torch are real; the CUDA libraries that they link to are stand-ins
(build_tools/cuda_stand_ins.py), so that no GPU is needed, and 3 GB less per release.

Environment: MSR_CUDA_TORCH and MSR_CUDA_TORCH_INDEX (as for run.py) name the CPU build of torch,
MAX_JOBS bounds the compilers. All work is done in build/install-cases, which may be removed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "install-cases"
NAME = "install.json"
ARCHITECTURES = "9.0"  # of the cases that compile CUDA kernels: one, as those take minutes each

# What torch needs of Python, named because its CUDA libraries must not come along.
PURE = (
    "filelock", "typing-extensions", "sympy", "mpmath<1.4", "networkx", "jinja2", "markupsafe",
    "fsspec", "setuptools>=77.0.3,<82",
)  # fmt: skip

# Runs in the case's environment: what there is, and that it computes what PyTorch computes.
PROBE = """
import json, sys, torch, msr_cuda
facts = msr_cuda.info()
skip = torch.linspace(-1, 1, 2 * 3 * 16 * 18).reshape(2, 3, 16, 18)
low = skip[..., ::2, ::2].contiguous()
up = torch.nn.functional.interpolate(low, (16, 18), mode="bilinear")
impl = "kernel" if facts["extension"]["loaded"] else "auto"
out = msr_cuda.resample_sum([skip, low], mode="bilinear", activation="relu", impl=impl)
torch.testing.assert_close(out, torch.relu(skip + up))
json.dump(facts, sys.stdout)
"""


@dataclass(frozen=True)
class Case:
    """One way to install.

    Attributes:
        about: the environment, as the table says it.
        torch: a name of :data:`TORCHES`, or None.
        expect: the kernels that must be there, ``"cuda"`` (and CPU), ``"cpu"`` or ``"none"``; or
            ``"stops"``, before anything is installed.
        says: parts of what must be said about kernels that are missing, or why it stops.
        variables: of the environment, as the user sets them.
        install: what pip is told; SOURCE, SDIST and WHEEL stand for paths.
        keeps: the case whose object files are used again, where the time is not what is shown.
        then: what is done after that, a method of :class:`Workplace`.
    """

    name: str
    about: str
    torch: str | None
    expect: str
    says: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    install: tuple[str, ...] = ("install", ".")
    keeps: str = ""
    then: str = ""


#: The environments' torch: which release, and whether with stand-ins for CUDA's libraries.
TORCHES = {
    "cpu": (None, False),
    "oldest": ("2.10.0", True),  # CUDA 12.8
    "cuda": ("2.14.1", True),  # CUDA 13.0
    "too-old": ("2.9.1", False),  # only its version.py and its metadata
}

NO_TOOLKIT = {"CUDA_HOME": "/nonexistent"}
CUDA = {"MSR_CUDA_BUILD": "cuda"}
WHEEL = ("wheel", "--no-deps", "-w", "DIST", ".")

CASES = (
    Case("isolated", "a CPU build of torch", "cpu", "cpu"),
    Case("offline", "the same without a package index: setuptools and ninja are there", "cpu",
         "cpu", variables={"PIP_NO_INDEX": "1"}, keeps="isolated"),
    Case("cpu", "CPU kernels asked for", "cpu", "cpu", variables={"MSR_CUDA_BUILD": "cpu"},
         keeps="isolated"),
    Case("none", "plain PyTorch asked for", "cpu", "none",
         ("MSR_CUDA_BUILD=none asked for pure Python", "MSR_CUDA_BUILD=cpu "),
         {"MSR_CUDA_BUILD": "none"}),
    Case("require", "the same, and then MSR_CUDA_REQUIRE=1 when it is imported", "cpu", "none",
         ("ImportError: msr_cuda: MSR_CUDA_REQUIRE=1, but its compiled extension is not loaded",
          "MSR_CUDA_BUILD=none asked for pure Python", "To build it: "),
         {"MSR_CUDA_BUILD": "none"}, then="require"),
    Case("no-compiler", "no compiler on the PATH", "cpu", "none",
         ("needs a C++17 compiler; found: neither c++, g++ nor clang++", "MSR_CUDA_BUILD=cpu "),
         {"PATH": "EMPTY"}),
    Case("broken-compiler", "a compiler that fails", "cpu", "none",
         ("the extension did not compile", "MSR_CUDA_BUILD=cpu "), {"CC": "false", "CXX": "false"}),
    Case("cpu-no-compiler", "CPU kernels asked for, no compiler on the PATH", "cpu", "stops",
         ("MSR_CUDA_BUILD=cpu needs a C++17 compiler; found: neither", "Then run: CXX="),
         {"MSR_CUDA_BUILD": "cpu", "PATH": "EMPTY"}),
    Case("no-torch", "no torch while it is built; torch comes later, then `info`'s command", None,
         "none", ("needs torch >= 2.10", "no torch for", "MSR_CUDA_BUILD=cpu "),
         install=("install", "--no-deps", "."), keeps="isolated", then="advice"),
    Case("old-torch", "torch 2.9, which pip would replace", "too-old", "stops",
         ("needs torch >= 2.10; found: torch 2.9.1", "python -m pip install 'torch>=2.10'")),
    Case("cuda-torch-no-nvcc", "a CUDA build of torch, no CUDA toolkit", "oldest", "cpu",
         ("CUDA kernels need a CUDA toolkit", "CUDA_HOME=/nonexistent has no bin/nvcc",
          "MSR_CUDA_BUILD=cuda "), NO_TOOLKIT),
    Case("cuda-no-nvcc", "CUDA kernels asked for, no CUDA toolkit", "cuda", "stops",
         ("MSR_CUDA_BUILD=cuda needs a CUDA toolkit", "CUDA_HOME=/nonexistent has no bin/nvcc",
          "Then run: CUDA_HOME=/path/to/cuda MSR_CUDA_BUILD=cuda"), {**CUDA, **NO_TOOLKIT}),
    Case("mismatch", "CUDA kernels asked for, torch of CUDA 12.8, toolkit of CUDA 13", "oldest",
         "stops", ("needs a CUDA 12 toolkit, as torch 2.10.0+cu128 was built with CUDA 12.8",
                   "found: CUDA 13", "Then run: CUDA_HOME=/path/to/cuda"), CUDA),
    Case("mismatch-auto", "torch of CUDA 12.8, toolkit of CUDA 13", "oldest", "cpu",
         ("CUDA kernels need a CUDA 12 toolkit", "MSR_CUDA_BUILD=cuda "),
         keeps="cuda-torch-no-nvcc"),
    Case("unknown-architecture", "an architecture that nvcc does not know", "cuda", "stops",
         ("TORCH_CUDA_ARCH_LIST=9.0;9.7 needs an nvcc that compiles for 9.7", "found: CUDA 13",
          'Then run: TORCH_CUDA_ARCH_LIST="'), {"TORCH_CUDA_ARCH_LIST": "9.0;9.7"}),
    Case("sdist", "from the sdist alone", "cpu", "cpu", install=("install", "SDIST")),
    Case("wheel", "a wheel", "cpu", "cpu", install=WHEEL, keeps="isolated"),
    Case("wheel-oldest-torch", "that wheel, with torch 2.10", "oldest", "cpu",
         ("no CUDA kernels", "MSR_CUDA_BUILD=cuda "), install=("install", "WHEEL:wheel")),
    Case("wheel-newer-torch", "that wheel, with torch 2.14", "cuda", "cpu",
         ("no CUDA kernels", "MSR_CUDA_BUILD=cuda "), install=("install", "WHEEL:wheel")),
    Case("cuda-no-gpu", "a CUDA build of torch and nvcc, no GPU (as while an image is built)",
         "cuda", "cuda", variables={"TORCH_CUDA_ARCH_LIST": ARCHITECTURES}),
    Case("cuda-wheel", "a wheel of that", "cuda", "cuda", install=WHEEL, keeps="cuda-no-gpu",
         variables={"TORCH_CUDA_ARCH_LIST": ARCHITECTURES}),
    Case("cuda-wheel-cpu-torch", "that wheel, with a CPU build of torch", "cpu", "cuda",
         install=("install", "WHEEL:cuda-wheel")),
    Case("cuda-wheel-oldest-torch", "that wheel, with torch 2.10", "oldest", "cuda",
         install=("install", "WHEEL:cuda-wheel")),
    Case("cuda-cpu-torch", "CUDA kernels asked for, a CPU build of torch, nvcc", "cpu", "cuda",
         variables={**CUDA, "TORCH_CUDA_ARCH_LIST": ARCHITECTURES}),
)  # fmt: skip

#: Files that pip got: from an index, its cache, or a folder of wheels.
FETCHED = re.compile(r"^\s*(?:Downloading|Using cached|Processing) (\S+\.(?:whl|tar\.gz))\b", re.M)
#: What the build says of its own, and where it stops.
SAID = re.compile(r"^\s*(?:│ *)?(msr_cuda: (?:installing pure|building the CPU|.*needs ).*)$", re.M)


class Workplace:
    """The folder in which all cases run; a case always finds it at the same paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / "venv"
        self.python = self.venv / "bin" / "python"
        self.source = root / "source"
        self.dist = root / "dist"
        self.elsewhere = root / "elsewhere"  # where Python finds no checkout
        self.empty = root / "empty"
        for folder in (root, self.dist, self.elsewhere, self.empty):
            folder.mkdir(parents=True, exist_ok=True)

    # --- what a case starts from ---

    def packages(self, venv: Path) -> Path:
        """The environment's site-packages."""
        return next(venv.glob("lib/python3*/site-packages"))

    def template(self, name: str | None) -> Path:
        """An environment that is never installed into, made once for each torch."""
        venv = self.root / "torch" / str(name)
        if (venv / "complete").exists():
            return venv
        shutil.rmtree(venv, ignore_errors=True)
        print(f"install_cases: torch: {name}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "-q", "install"]

        def install(*arguments: str) -> None:
            subprocess.run([*pip, *arguments], env=self.environment({}), check=True)

        if name is not None:
            version, stand_ins = TORCHES[name]
            if version is None:
                index = os.environ.get("MSR_CUDA_TORCH_INDEX")
                where = ["--index-url", index] if index else []
                install(*shlex.split(os.environ.get("MSR_CUDA_TORCH", "torch==2.13.0")), *where)
            elif stand_ins:
                install("--no-deps", f"torch=={version}", *PURE)
                facts = (self.packages(venv) / "torch" / "version.py").read_text(encoding="utf-8")
                cuda = re.search(r"^cuda.*'(\d+)\.(\d+)'", facts, re.M)
                assert cuda is not None, facts
                suffix = f"-cu{cuda[1]}" if int(cuda[1]) < 13 else ""
                wanted = f"=={cuda[1]}.{cuda[2]}.*"
                for part in ("runtime", "cupti"):
                    install("--no-deps", f"nvidia-cuda-{part}{suffix}{wanted}")
                self._waive_requirements(self.packages(venv), version)
                script = ROOT / "build_tools" / "cuda_stand_ins.py"
                subprocess.run([sys.executable, script, self.packages(venv)], check=True)
            else:
                self._write_stub(self.packages(venv), version)
            install("numpy")  # so that the times are those of the package itself
        else:
            uninstall = [*pip[:-1], "uninstall", "-y", "setuptools"]
            subprocess.run(uninstall, env=self.environment({}), check=True)
        (venv / "complete").write_text("", encoding="utf-8")
        return venv

    def _waive_requirements(self, packages: Path, version: str) -> None:
        """Or pip would install what torch lacks along with any package that needs torch."""
        (metadata,) = packages.glob(f"torch-{version}*.dist-info/METADATA")
        lines = metadata.read_text(encoding="utf-8").splitlines(keepends=True)
        waived = re.compile(r"Requires-Dist: (nvidia-|cuda-|triton)")
        kept = [line for line in lines if not waived.match(line)]
        metadata.write_text("".join(kept), encoding="utf-8")

    def _write_stub(self, packages: Path, version: str) -> None:
        folder = packages / "torch"
        folder.mkdir()
        (folder / "__init__.py").write_text("", encoding="utf-8")
        text = f"__version__ = '{version}'\ncuda = None\n"
        (folder / "version.py").write_text(text, encoding="utf-8")
        information = packages / f"torch-{version}.dist-info"
        information.mkdir()
        text = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        (information / "METADATA").write_text(text, encoding="utf-8")
        (information / "INSTALLER").write_text("pip\n", encoding="utf-8")
        files = [*folder.iterdir(), *information.iterdir(), information / "RECORD"]
        lines = "".join(f"{path.relative_to(packages)},,\n" for path in files)
        (information / "RECORD").write_text(lines, encoding="utf-8")

    def start(self, case: Case) -> None:
        """A new environment and a new copy of the sources."""
        template = self.template(case.torch)
        shutil.rmtree(self.venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True)
        self._link(template)
        shutil.rmtree(self.source, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.source / name)
        kept = self.root / "objects" / case.keeps
        if case.keeps and kept.is_dir():
            for folder in kept.glob("temp.*"):
                shutil.copytree(folder, self.source / "build" / folder.name)

    def _link(self, template: Path) -> None:
        """The template's packages, as hard links: a file that is replaced is another one then."""

        def link(source: str, target: str) -> None:
            if not os.path.exists(target):
                os.link(source, target)

        packages = self.packages(self.venv)
        shutil.copytree(self.packages(template), packages, copy_function=link, dirs_exist_ok=True)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """This process's environment less what would steer the build, and the case's variables."""
        steers = ("MSR_CUDA_", "TORCH_CUDA", "CUDA_HOME", "CUDA_PATH", "PYTHON", "VIRTUAL_ENV")
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(steers) and k not in ("CC", "CXX", "CFLAGS", "LDFLAGS")
        }
        for name, value in variables.items():
            kept[name] = str(self.empty) if value == "EMPTY" else value
        return kept

    # --- what a case does ---

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """The environment's Python, outside of any checkout."""
        return subprocess.run(
            [str(self.python), *map(str, command)], cwd=self.elsewhere, check=False,
            env=self.environment(variables), capture_output=True, text=True,
        )  # fmt: skip

    def torch_files(self) -> dict[str, tuple[int, int, int]]:
        """Each file of torch: which one it is, its size, and when it was written."""
        packages = self.packages(self.venv)
        paths = [p for f in packages.glob("torch*") for p in f.rglob("*") if p.is_file()]
        found = {str(p.relative_to(packages)): p.stat() for p in paths if p.suffix != ".pyc"}
        return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items()}

    def make_sdist(self) -> Path:
        """By the build's own hook; ValueError if a file is missing from it."""
        code = "import sys; sys.path[:0] = ['build_tools']; import backend\n"
        code += f"print(backend.build_sdist({str(self.dist)!r}))"
        done = subprocess.run(
            [str(self.python), "-c", code], cwd=self.source, env=self.environment({}),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        path = self.dist / done.stdout.split()[-1]
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        wanted = ("csrc/", "build_tools/", "msr_cuda/", "setup.py", "pyproject.toml", "LICENSE")
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
        lacking = [n for n in listed.stdout.split() if n.startswith(wanted) and n not in names]
        if lacking:
            raise ValueError(f"not in the sdist: {' '.join(lacking)}")
        return path

    def audit(self, wheel: Path, expect: str) -> list[str]:
        """What is wrong with a wheel: its tag, its use of Python's and torch's stable ABIs."""
        problems = []
        if "-cp310-abi3-linux_" not in wheel.name:
            problems.append(f"the wheel is {wheel.name}, which one Python release alone takes")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract("msr_cuda/_C.abi3.so", self.elsewhere)
        binary = self.elsewhere / "msr_cuda" / "_C.abi3.so"
        option = ["--with-cuda"] if expect == "cuda" else []
        done = self.run(ROOT / "build_tools" / "check_binary.py", *option, binary)
        shutil.rmtree(binary.parent)
        if done.returncode:
            problems.append(f"check_binary: {done.stdout.strip()} {done.stderr.strip()}")
        tools = self.root / "tools"
        if not (tools / "bin" / "abi3audit").exists():
            subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
            pip = [str(tools / "bin" / "python"), "-m", "pip", "-q", "install", "abi3audit"]
            subprocess.run(pip, env=self.environment({}), check=True)
        audited = subprocess.run(
            [str(tools / "bin" / "abi3audit"), "--strict", "--report", str(wheel)],
            env=self.environment({}), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if audited.returncode:
            problems.append(f"abi3audit: {audited.stdout.strip()} {audited.stderr.strip()}")
        return problems

    def require(self, case: Case) -> str:
        """MSR_CUDA_REQUIRE=1 when the package is imported: the last line of what Python says."""
        done = self.run("-c", "import msr_cuda", MSR_CUDA_REQUIRE="1")
        return done.stderr.strip().splitlines()[-1] if done.returncode else "it was imported"

    def advice(self, case: Case) -> str:
        """Torch appears, and the command that `info` then gives is run; "" if it gives kernels."""
        advice = json.loads(self.run("-c", PROBE).stdout)["advice"][0]
        command = advice[advice.index("MSR_CUDA_BUILD=") :]
        command = command.replace("<a checkout of msr_cuda>", shlex.quote(str(self.source)))
        done = subprocess.run(
            command, shell=True, cwd=self.elsewhere, env=self.environment({}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return f"failed: {command}\n{done.stdout}{done.stderr}"
        kind = kernels(json.loads(self.run("-c", PROBE).stdout))
        return "" if kind == "cpu" else f"gives {kind}: {command}"


def kernels(facts: Mapping[str, Any]) -> str:
    """``"cuda"``, ``"cpu"`` or ``"none"``, from ``msr_cuda.info()``."""
    extension = facts["extension"]
    if not extension["loaded"]:
        return "none"
    return "cuda" if extension["build"]["with_cuda"] else "cpu"


def megabytes(packages: Path) -> float:
    """What the package takes where it was installed, without Python's caches."""
    files = [p for folder in packages.glob("msr_cuda*") for p in folder.rglob("*")]
    return sum(p.stat().st_size for p in files if p.is_file() and p.suffix != ".pyc") / 1e6


def written(case: Case) -> str:
    """The command as a user types it."""
    names = {"SDIST": "msr_cuda-*.tar.gz", "DIST": "dist"}
    words = [names.get(word, word) for word in case.install]
    words = ["msr_cuda-*.whl" if word.startswith("WHEEL:") else word for word in words]
    settings = [f"{k}={'/empty' if v == 'EMPTY' else v}" for k, v in case.variables.items()]
    quoted = [f'{s.partition("=")[0]}="{s.partition("=")[2]}"' if ";" in s else s for s in settings]
    return " ".join([*quoted, "pip", *words])


def run_case(place: Workplace, case: Case) -> dict[str, Any]:
    """Installs, looks, compares; the row of the table. ``problems`` is empty if all is well."""
    place.start(case)
    before = place.torch_files()
    made = place.dist / case.name
    shutil.rmtree(made, ignore_errors=True)
    words = []
    for word in case.install:
        if word == "SDIST":
            word = str(place.make_sdist())
            shutil.rmtree(place.source)
        elif word.startswith("WHEEL:"):
            (wheel,) = (place.dist / word.partition(":")[2]).glob("*.whl")
            word = str(wheel)
        words.append(str(made) if word == "DIST" else word)
    cwd = place.source if place.source.exists() else place.elsewhere
    # -v: pip says what it does, and shows the build's own output.
    command = [str(place.python), "-m", "pip", words[0], "-v", *words[1:]]
    used, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        command, cwd=cwd, env=place.environment(case.variables), check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    log = place.root / f"{case.name}.log"
    log.write_text(done.stdout, encoding="utf-8")

    problems = []
    fetched = ["-".join(Path(f).name.split("-")[:2]) for f in FETCHED.findall(done.stdout)]
    fetched = [name for name in fetched if not name.startswith("msr_cuda-")]
    if any(re.match(r"torch-|triton-|nvidia_", name) for name in fetched):
        problems.append(f"pip fetched {' '.join(fetched)}")
    if place.torch_files() != before:
        problems.append("files of torch were touched")
    said = SAID.findall(done.stdout)[-1:]
    result, size = "stops", None
    if done.returncode == 0:
        if temporary := list(place.source.glob("build/temp.*")):
            kept = place.root / "objects" / case.name
            shutil.rmtree(kept, ignore_errors=True)
            for folder in temporary:
                shutil.copytree(folder, kept / folder.name)
        if words[0] == "wheel":
            (wheel,) = made.glob("*.whl")
            problems += place.audit(wheel, case.expect)
            pip = place.run("-m", "pip", "install", "--no-deps", wheel)
            if pip.returncode:
                problems.append(f"the wheel does not install: {pip.stderr}")
        if case.torch is None:
            place._link(place.template("cpu"))  # torch is installed now, after the package
        probed = place.run("-c", PROBE)
        if probed.returncode:
            problems.append(probed.stderr)
            result = "fails"
        else:
            facts = json.loads(probed.stdout)
            result = kernels(facts)
            said += facts["advice"]
        size = megabytes(place.packages(place.venv))
        if case.then == "require":
            said = [place.require(case)]
        elif case.then == "advice" and (wrong := place.advice(case)):
            problems.append(wrong)
    if result != case.expect:
        problems.append(f"expected {case.expect}, got {result}; see {log}")
    text = "\n".join(said)
    problems += [f"does not say {part!r}; see {log}" for part in case.says if part not in text]
    return {
        "case": case.name,
        "about": case.about,
        "command": written(case),
        "result": result,
        "seconds": seconds,
        "cpu_seconds": (after.ru_utime + after.ru_stime) - (used.ru_utime + used.ru_stime),
        "megabytes": size,
        "objects_kept": bool(case.keeps),
        "fetched": fetched,
        "said": [line.replace(str(place.root), "…") for line in said],
        "problems": problems,
    }


RESULTS = {"cuda": "CUDA and CPU kernels", "cpu": "CPU kernels", "none": "plain PyTorch"}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table, and what was said in the cases that lack kernels or stop."""
    lines = [
        "| case | command | result | time | CPU time | size | fetched |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        size = "-" if row["megabytes"] is None else f"{row['megabytes']:.1f} MB"
        mark = " (objects kept)" if row["objects_kept"] else ""
        cells = [
            row["about"], f"`{row['command']}`",
            RESULTS.get(row["result"], row["result"]) + ("" if not row["problems"] else ": WRONG"),
            f"{row['seconds']:.0f} s{mark}", f"{row['cpu_seconds']:.0f} s", size,
            ", ".join(row["fetched"]) or "-",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for row in rows:
        if "commit" in row:  # it was run later than the others
            lines += [f"Run later, at {row['commit'][:12]}: {row['about']}.", ""]
    for row in rows:
        if row["said"]:
            lines += [f"- {row['about']}:", *(f"  `` {line} ``" for line in row["said"])]
    return "\n".join(lines) + "\n"


def run_facts(place: Workplace, command: str) -> dict[str, Any]:
    """Machine, versions and commit, as the benchmarks record them."""
    code = (
        "import json, sys, torch; from benchmarks import machine\n"
        "json.dump({'machine': machine.machine_facts(torch.device('cpu')),"
        " 'versions': machine.version_facts(), 'commit': machine.commit()}, sys.stdout)"
    )
    python = place.template("cpu") / "bin" / "python"
    done = subprocess.run(
        [str(python), "-c", code], cwd=ROOT, env=place.environment({}), check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    date = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    clock = "wall clock, and CPU time of pip and all that it starts"
    jobs = os.environ.get("MAX_JOBS", "default")
    return {
        "date": date, "command": command, **json.loads(done.stdout),
        "measured": {"clock": clock, "MAX_JOBS": jobs},
    }  # fmt: skip


def joined(earlier: Mapping[str, Any] | None, run: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run of some cases put into the file of an earlier one; its rows name their commit."""
    if earlier is None:
        return run
    rows = {row["case"]: row for row in earlier["cases"]}
    rows |= {row["case"]: {**row, "commit": run["commit"]} for row in run["cases"]}
    return {**earlier, "cases": [rows[case.name] for case in CASES if case.name in rows]}


def main() -> int:
    """Runs the cases, prints the table; the exit status says whether all is as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--list", action="store_true", help="names the cases")
    parser.add_argument("--write", type=Path, metavar="DIR", help=f"writes DIR/{NAME}")
    arguments = parser.parse_args()
    by_name = {case.name: case for case in CASES}
    if arguments.list:
        for case in CASES:
            print(f"{case.name:<24}{case.about}: {written(case)}")
        return 0
    if unknown := [name for name in arguments.cases if name not in by_name]:
        parser.error(f"expected of {', '.join(by_name)}, got {' '.join(unknown)}")
    place = Workplace(WORK)
    facts = run_facts(place, shlex.join(["python", "build_tools/install_cases.py", *sys.argv[1:]]))
    path = arguments.write and arguments.write / NAME
    earlier = None
    if path and path.exists() and arguments.cases:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["machine"] != facts["machine"] or earlier["versions"] != facts["versions"]:
            parser.error(f"{path}: it is of another machine, or of other versions")
    rows = []
    for case in [by_name[name] for name in arguments.cases] or CASES:
        row = run_case(place, case)
        rows.append(row)
        found = "; ".join(row["problems"]) or "as expected"
        text = f"{case.name}: {row['result']} after {row['seconds']:.0f} s: {found}"
        print(f"install_cases: {text}", file=sys.stderr, flush=True)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(
                joined(earlier, {**facts, "cases": rows}), indent=1, ensure_ascii=False
            )
            path.write_text(content + "\n", encoding="utf-8")
    print(table(rows))
    return 1 if any(row["problems"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
