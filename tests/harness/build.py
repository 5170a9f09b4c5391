"""Builds and loads msr_cuda_harness, the Python module that runs CUDA kernels on the CPU.

The module is compiled by g++ from tests/harness/*.cpp and csrc/kernels/*.cu, plain or with
AddressSanitizer and UBSan, and kept under build/harness for as long as nothing it is made from
changes. The compiler is $CXX, or g++; $MAX_JOBS limits how many run at once.

Files named bind*.cpp are the Python bindings: they include pybind11 and no kernels, and are
compiled once for both modules. All others are kernels, what launches them and what runs them.

A module with sanitizers needs their libraries before all others, so it loads only in a process
that was started with :func:`sanitizer_environment`. Such a process should import NumPy and no torch
(slow under sanitizers, and not free of reports).
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

MODULE_NAME = "msr_cuda_harness"
HARNESS = Path(__file__).resolve().parent
ROOT = HARNESS.parent.parent
KERNELS = ROOT / "csrc" / "kernels"
BUILD = ROOT / "build" / "harness"

# Kernels read vectors through pointers to scalars, which nvcc allows: no strict aliasing. Rounding
# must be that of the program text: no contraction.
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
KERNEL_FLAGS = [
    "-g1",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",  # unroll
    "-DMSR_CUDA_ON_CPU",
]
# Bindings do nothing that takes time; optimising pybind11's templates would take most of the build.
# Without -DMSR_CUDA_ON_CPU no kernel compiles here, where no sanitizer would watch it.
BINDING_FLAGS = ["-O0"]
SANITIZER_FLAGS = [
    "-fsanitize=address,undefined",
    # AddressSanitizer sees these too, and they would take most of the compiler's time.
    "-fno-sanitize=null,object-size,vptr",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
]
# What runs the kernels needs to know of AddressSanitizer; checking it would only slow it down.
RUNTIME = {"cuda_on_cpu.cpp", "cuda_on_cpu_shared_memory.cpp", "fiber.cpp", "launchers.cpp"}
RUNTIME_SANITIZER_FLAGS = ["-fsanitize=address", "-fno-omit-frame-pointer"]
SANITIZER_LIBRARIES = ["libasan.so", "libubsan.so", "libstdc++.so.6"]


class BuildError(RuntimeError):
    """The module could not be compiled; the message has the compiler's output."""


class Fault(NamedTuple):
    """A fault planted in one kernel file: a macro of csrc/kernels/planted_faults.h."""

    macro: str
    file: str


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def sources() -> list[Path]:
    return sorted(HARNESS.glob("*.cpp")) + sorted(KERNELS.glob("*.cu"))


def pybind11_include() -> Path:
    """The headers of the pybind11 package or, without it, those that torch brings along."""
    for package, subdirectory in (("pybind11", "include"), ("torch", "include")):
        spec = importlib.util.find_spec(package)  # does not import it
        for location in (spec.submodule_search_locations or []) if spec else []:
            include = Path(location) / subdirectory
            if (include / "pybind11" / "pybind11.h").is_file():
                return include
    raise BuildError("tests/harness needs the headers of pybind11: pip install pybind11")


def is_binding(source: Path) -> bool:
    return source.name.startswith("bind")


def _flags(source: Path, sanitize: bool, fault: Fault | None = None) -> list[str]:
    flags = [*FLAGS, f"-I{HARNESS}", f"-I{KERNELS}"]
    if is_binding(source):
        flags += BINDING_FLAGS
        for path in (pybind11_include(), Path(sysconfig.get_paths()["include"])):
            flags += ["-isystem", str(path)]
        return flags
    # The many instances of the kernels compile twice as fast at -O1 under sanitizers.
    flags += [*KERNEL_FLAGS, "-O1" if sanitize and source.suffix == ".cu" else "-O2"]
    if sanitize:
        flags += RUNTIME_SANITIZER_FLAGS if source.name in RUNTIME else SANITIZER_FLAGS
    if fault is not None and fault.file == source.name:
        flags += [f"-D{fault.macro}", "-O0"]  # -O0: compiled for one test alone
    return flags


def _run(command: Sequence[str]) -> str:
    """Runs a tool outside of any sanitizer; raises BuildError with what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"tests/harness needs a C++ compiler: {error}") from error
    if done.returncode != 0:
        raise BuildError(
            f"exit status {done.returncode} from: {shlex.join(command)}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


@functools.cache
def _toolchain() -> str:
    """What the result depends on besides the project's own files."""
    pybind11_version = (pybind11_include() / "pybind11" / "detail" / "common.h").read_bytes()
    return "\n".join(
        [
            *compiler(),
            _run([*compiler(), "--version"]),
            sys.version,
            str(sysconfig.get_config_var("EXT_SUFFIX")),
            hashlib.sha256(pybind11_version).hexdigest(),
        ]
    )


def _digest(files: Iterable[Path], flags: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in (_toolchain(), *flags):
        digest.update(text.encode() + b"\0")
    for path in sorted(set(files)):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def _all_files() -> list[Path]:
    suffixes = {".h", ".cuh", ".cu", ".cpp"}
    return [
        path
        for folder in (HARNESS, KERNELS)
        for path in folder.iterdir()
        if path.suffix in suffixes
    ]


def _included(source: Path) -> set[Path]:
    """The source and the files of this project that it includes (always by quotes)."""
    found: set[Path] = set()
    pending = [source]
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found.add(path)
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
            candidates = [folder / name for folder in (path.parent, HARNESS, KERNELS)]
            pending += [c.resolve() for c in candidates if c.is_file()][:1]
    return found


def module_path(sanitize: bool, fault: Fault | None = None) -> Path:
    """Where the module of the present sources is, once it is built."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    flags = [flag for source in sources() for flag in _flags(source, sanitize, fault)]
    return BUILD / _digest(_all_files(), flags) / f"{MODULE_NAME}{suffix}"


def _object_path(source: Path, sanitize: bool, fault: Fault | None = None) -> Path:
    digest = _digest(_included(source), _flags(source, sanitize, fault))
    return BUILD / "objects" / f"{source.stem}-{digest}.o"


def _compile(source: Path, flags: Sequence[str], target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Under a name of its own until it is complete: other processes may build the same.
    temporary = target.with_suffix(f".{os.getpid()}.o")
    command = [*compiler(), *flags, "-c", "-x", "c++", str(source)]
    try:
        _run([*command, "-o", str(temporary)])
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _link(objects: Iterable[Path], sanitize: bool, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        temporary = Path(folder) / target.name
        sanitizers = SANITIZER_FLAGS if sanitize else []
        libraries = ["-pthread", "-ldl"]
        command = [*compiler(), "-shared", *sanitizers, *map(str, objects), *libraries]
        _run([*command, "-o", str(temporary)])
        temporary.replace(target)


def build(variants: Sequence[bool] = (False,), fault: Fault | None = None) -> list[Path]:
    """Builds the plain (False) and sanitised (True) modules asked for, in parallel.

    With a fault, only the file that has it is compiled for it; the rest is that of the module
    without one.
    """
    if fault is not None and fault.file not in {source.name for source in sources()}:
        raise ValueError(f"build: expected a file of kernels, got {fault.file!r}")
    # All paths are taken once, so that what is compiled is what is linked, whatever changes
    # meanwhile.
    modules = {sanitize: module_path(sanitize, fault) for sanitize in variants}
    wanted = [sanitize for sanitize, module in modules.items() if not module.exists()]
    objects = {
        sanitize: {_object_path(source, sanitize, fault): source for source in sources()}
        for sanitize in wanted
    }
    # By the objects' paths, because both variants have the bindings' objects in common.
    jobs = {
        target: (source, _flags(source, sanitize, fault), target)
        for sanitize in wanted
        for target, source in objects[sanitize].items()
    }
    if jobs:
        workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(_compile, *job) for job in jobs.values()]:
                future.result()
            links = [(objects[sanitize], sanitize, modules[sanitize]) for sanitize in wanted]
            for future in [pool.submit(_link, *link) for link in links]:
                future.result()
    return [modules[sanitize] for sanitize in variants]


def sanitizer_libraries() -> list[str]:
    """The paths of the libraries to preload; BuildError names one that is not installed."""
    paths = []
    for name in SANITIZER_LIBRARIES:
        path = _run([*compiler(), f"-print-file-name={name}"]).strip()
        if not os.path.isabs(path):  # the compiler echoes the name of what it does not find
            raise BuildError(f"{compiler()[0]} has no {name}")
        paths.append(os.path.realpath(path))
    return paths


def sanitizer_variables() -> dict[str, str]:
    """What a process needs of the environment for a module with sanitizers.

    Leaks are not looked for: Python keeps much until its end.
    """
    return {
        "LD_PRELOAD": " ".join(sanitizer_libraries()),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:exitcode=97",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=98",
    }


def sanitizer_environment() -> dict[str, str]:
    """The environment for a process that is to import the sanitised module."""
    return {**os.environ, **sanitizer_variables()}


def sanitizers_preloaded() -> bool:
    """Whether this process was started with :func:`sanitizer_environment`."""
    return hasattr(ctypes.CDLL(None), "__asan_init")


@functools.cache
def load(sanitize: bool = False, fault: Fault | None = None) -> ModuleType:
    """Builds the module if needed and imports it; twice the same call gives the same module."""
    if sanitize and not sanitizers_preloaded():
        raise RuntimeError(
            "load: expected a process started with sanitizer_environment() for sanitize=True, "
            "got one without the sanitizers' libraries"
        )
    (path,) = build([sanitize], fault)
    loader = importlib.machinery.ExtensionFileLoader(MODULE_NAME, str(path))
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the modules and print where they are.")
    parser.add_argument("--clean", action="store_true", help="remove all earlier builds first")
    if parser.parse_args().clean:
        shutil.rmtree(BUILD, ignore_errors=True)
    begin = time.perf_counter()
    for path in build([False, True]):
        print(path.relative_to(ROOT))
    print(f"{time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
