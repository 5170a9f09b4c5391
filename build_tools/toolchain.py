"""Finds what a build can use: CUDA toolkit, torch, C++ compiler, and how many may run at once.

Standard library only. Imports nothing that it looks for: setup.py, run.py and nvcc_sweep.py ask it
before torch may be there.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# What an nvcc without `--list-gpu-code` (before 11.5) knows for certain.
_OLDEST_ARCHITECTURES = ("5.0", "6.0", "7.0", "7.5", "8.0")


@dataclass(frozen=True)
class CudaToolkit:
    """A folder that holds a compiler and headers that belong together."""

    home: Path
    include_dir: Path
    library_dir: Path | None  # holds libcudart_static.a
    version: tuple[int, int]
    found_by: str

    @property
    def nvcc(self) -> Path:
        """The compiler itself."""
        return self.home / "bin" / "nvcc"

    @property
    def version_text(self) -> str:
        """As torch writes it: ``"13.0"``."""
        return f"{self.version[0]}.{self.version[1]}"


@dataclass(frozen=True)
class TorchInstallation:
    """What torch/version.py says, without importing torch (that takes seconds)."""

    root: Path
    version: str
    cuda: str | None

    @property
    def release(self) -> tuple[int, int]:
        """``(2, 13)`` of ``"2.13.0+cpu"``."""
        major, minor = re.findall(r"\d+", self.version)[:2]
        return int(major), int(minor)


def _run(command: list[str], **kwargs: object) -> str:
    """Standard output and error of a command, or "" when it cannot be run or fails."""
    try:
        done = subprocess.run(
            command,
            check=True,
            text=True,
            timeout=60,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **kwargs,  # type: ignore[call-overload]
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return str(done.stdout)


def _home_of_nvcc(nvcc: str) -> str:
    """The toolkit an nvcc belongs to, asked of nvcc itself.

    The path is not enough: /usr/local/bin/nvcc may be a script that starts another one, and
    then the folder above it has neither headers nor libraries.
    """
    dry_run = _run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull])
    match = re.search(r"^#\$ _HERE_=(.+)$", dry_run, re.MULTILINE)
    if match:
        return os.path.dirname(match.group(1).strip())
    return os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))


def _candidates(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """``(folder, how it was found)``, best first. An explicit CUDA_HOME stands alone."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            return [(environ[name], name)]
    found = []
    if nvcc := shutil.which("nvcc", path=environ.get("PATH", "")):
        found.append((_home_of_nvcc(nvcc), "nvcc on PATH"))
    found.append(("/usr/local/cuda", "the usual place"))
    numbered = glob.glob("/usr/local/cuda-*")
    numbered.sort(key=lambda path: [int(n) for n in re.findall(r"\d+", path)], reverse=True)
    found += [(path, "the usual place") for path in (*numbered, "/opt/cuda")]
    return found


def _first_with(home: Path, folders: list[str], file: str) -> Path | None:
    return next((home / f for f in folders if (home / f / file).is_file()), None)


def find_cuda_toolkit(environ: Mapping[str, str] = os.environ) -> tuple[CudaToolkit | None, str]:
    """The first usable toolkit, and in words what was found (or what was missing where)."""
    misses: list[str] = []
    seen: set[str] = set()
    for folder, found_by in _candidates(environ):
        home = Path(folder)
        if os.path.realpath(home) in seen:
            continue
        seen.add(os.path.realpath(home))
        explicit = found_by in ("CUDA_HOME", "CUDA_PATH")
        if not home.is_dir() and not explicit:
            continue
        place = f"{found_by}={folder}" if explicit else f"{folder} ({found_by})"
        if not (home / "bin" / "nvcc").is_file():
            misses.append(f"{place} has no bin/nvcc")
            continue
        # conda and cross toolkits keep the target's files apart.
        targets = [f"targets/{path.name}" for path in sorted(home.glob("targets/*"))]
        include = _first_with(
            home, ["include", *(f"{t}/include" for t in targets)], "cuda_runtime.h"
        )
        if include is None:
            misses.append(f"{place} has no include/cuda_runtime.h")
            continue
        release = re.search(r"release (\d+)\.(\d+)", _run([str(home / "bin/nvcc"), "--version"]))
        if release is None:
            misses.append(f"{place}/bin/nvcc --version fails")
            continue
        library = _first_with(
            home,
            ["lib64", "lib", *(f"{t}/lib" for t in targets), "lib/x86_64-linux-gnu"],
            "libcudart_static.a",
        )
        version = (int(release.group(1)), int(release.group(2)))
        toolkit = CudaToolkit(home, include, library, version, found_by)
        return toolkit, f"CUDA {toolkit.version_text} at {home} ({found_by})"
    if misses:
        return None, "; ".join(misses)
    return None, "no nvcc on PATH, CUDA_HOME is not set, nothing at /usr/local/cuda"


def find_torch() -> TorchInstallation | None:
    """The torch that this interpreter would import."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    if not (root / "version.py").is_file():
        return None
    facts = runpy.run_path(str(root / "version.py"))
    return TorchInstallation(root, str(facts["__version__"]), facts.get("cuda"))


def find_compiler(environ: Mapping[str, str] = os.environ) -> tuple[str | None, str]:
    """The C++ compiler's command (CXX, else c++ or g++ or clang++), and in words what was found."""
    path = environ.get("PATH", "")
    if explicit := environ.get("CXX"):
        program = shlex.split(explicit)[0]
        if shutil.which(program, path=path):
            return explicit, explicit
        return None, f"CXX={explicit}, which cannot be run"
    for program in ("c++", "g++", "clang++"):
        if shutil.which(program, path=path):
            return program, program
    return None, "neither c++, g++ nor clang++ on PATH"


def compiler_version(command: str) -> str:
    """First line of ``--version``."""
    lines = _run([*shlex.split(command), "--version"]).splitlines()
    return lines[0].strip() if lines else "unknown version"


def _capability(architecture: str) -> tuple[int, int]:
    major, minor = architecture.split(".")
    return int(major), int(minor)


def supported_architectures(toolkit: CudaToolkit) -> list[str]:
    """What nvcc can generate code for, ``["7.5", ..., "9.0"]``, oldest first."""
    listed = re.findall(r"^sm_(\d+)(\d)$", _run([str(toolkit.nvcc), "--list-gpu-code"]), re.M)
    found = [f"{major}.{minor}" for major, minor in listed] or list(_OLDEST_ARCHITECTURES)
    return sorted(found, key=_capability)


def default_architectures(toolkit: CudaToolkit, visible: list[tuple[int, int]]) -> str:
    """A value for TORCH_CUDA_ARCH_LIST: the visible GPUs', else one that serves any since Turing.

    A GPU newer than nvcc gets the newest code there is, as PTX, which the driver compiles for it.
    """
    supported = supported_architectures(toolkit)
    newest = _capability(supported[-1])
    if visible:
        wanted = sorted({min(capability, newest) for capability in visible})
        names = [f"{major}.{minor}" for major, minor in wanted]
        if max(visible) > newest:
            names[-1] += "+PTX"
        return ";".join(names)
    names = [name for name in ("7.5", "8.0", "9.0") if name in supported] or [supported[-1]]
    return ";".join(names) + "+PTX"


def unknown_architectures(toolkit: CudaToolkit, asked: str) -> list[str]:
    """Those of TORCH_CUDA_ARCH_LIST that nvcc cannot compile for; names ("Hopper") are torch's."""
    numbers = re.findall(r"(?:^|[;\s])(\d+\.\d+)", asked)
    return [name for name in numbers if name not in supported_architectures(toolkit)]


def available_memory_gb() -> float | None:
    """Memory that may still be used, the container's limit included; None where nobody says."""
    amounts = []
    try:
        text = Path("/proc/meminfo").read_text()
        if match := re.search(r"MemAvailable:\s+(\d+) kB", text):
            amounts.append(int(match.group(1)) / 2**20)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit():
            amounts.append(int(limit) / 2**30)
    except OSError:
        pass
    return min(amounts) if amounts else None


def default_jobs(gigabytes: float = 2) -> int:
    """One process per core, if there is so much memory for each: nvcc on templates takes 2 GB."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    memory = available_memory_gb()
    return max(1, cores if memory is None else min(cores, int(memory / gigabytes)))
