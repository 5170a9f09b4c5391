"""Decides what a build makes, from what was asked (MSR_CUDA_BUILD) and what there is.

=====  ==========================================================================================
auto   CUDA and CPU kernels where torch is a CUDA build and a usable toolkit is found; CPU kernels
       where only a compiler is; pure Python where not even that. What is left out, and why, is
       recorded in the package.
cpu    CPU kernels; stops where it can't.
cuda   CUDA and CPU kernels; stops where it can't. The installed torch may be a CPU build: the
       binary uses torch's stable ABI and loads into either.
none   pure Python.
=====  ==========================================================================================
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import toolchain

MODES = ("auto", "cpu", "cuda", "none")
OLDEST_TORCH = (2, 10)
INSTALL = "python -m pip install --no-build-isolation --no-deps ."


@dataclass(frozen=True)
class Plan:
    """What to build.

    Attributes:
        asked: the value of MSR_CUDA_BUILD.
        kind: ``"cuda"`` (and CPU), ``"cpu"`` or ``"none"``.
        missing: why ``kind`` is less than CUDA, one line; recorded in the package.
        error: why the build must stop instead, one line.
        notes: what was found, one ``(name, value)`` each.
    """

    asked: str
    kind: str
    missing: str | None = None
    error: str | None = None
    torch: toolchain.TorchInstallation | None = None
    toolkit: toolchain.CudaToolkit | None = None
    compiler: str | None = None
    notes: tuple[tuple[str, str], ...] = ()


def _version(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"


def make_plan(environ: Mapping[str, str]) -> Plan:
    """Looks at this machine and decides. Raises nothing: what is wrong is in the result."""
    asked = environ.get("MSR_CUDA_BUILD") or "auto"
    if asked not in MODES:
        expected = ", ".join(MODES)
        return Plan(asked, "none", error=f"MSR_CUDA_BUILD: expected one of {expected}, got {asked}")
    if asked == "none":
        return Plan(asked, "none", missing="MSR_CUDA_BUILD=none asked for pure Python")

    torch = toolchain.find_torch()
    compiler, compiler_found = toolchain.find_compiler(environ)
    toolkit, toolkit_found = toolchain.find_cuda_toolkit(environ)
    torch_found = "not installed" if torch is None else f"{torch.version} at {torch.root}"
    if torch is not None:
        torch_found += f", CUDA {torch.cuda}" if torch.cuda else ", a CPU build"
    notes = (
        ("torch", torch_found),
        ("C++ compiler", compiler_found),
        ("CUDA toolkit", toolkit_found),
    )

    def cannot(need: str, found: str, command: str) -> Plan:
        """No extension at all: pure Python in auto mode, an error where one was demanded."""
        why = f"needs {need}; found: {found}"
        if asked == "auto":
            return Plan(asked, "none", missing=f"the extension {why}", notes=notes)
        error = f"MSR_CUDA_BUILD={asked} {why}. Then run: {command}"
        return Plan(asked, "none", error=error, notes=notes)

    command = f"MSR_CUDA_BUILD={asked} {INSTALL}"
    if sys.platform not in ("linux", "darwin"):
        return cannot("Linux or macOS", sys.platform, command)
    if torch is None:
        return cannot(
            f"torch >= {_version(OLDEST_TORCH)} in the environment it is installed into",
            f"no torch for {sys.executable}",
            f"python -m pip install torch && {command}",
        )
    if torch.release < OLDEST_TORCH:
        return cannot(
            f"torch >= {_version(OLDEST_TORCH)}",
            f"torch {torch.version}",
            f"python -m pip install 'torch>={_version(OLDEST_TORCH)}' && {command}",
        )
    if compiler is None:
        return cannot("a C++17 compiler", compiler_found, f"CXX=/path/to/g++ {command}")

    def result(kind: str, missing: str | None = None, error: str | None = None) -> Plan:
        return Plan(asked, kind, missing, error, torch, toolkit, compiler, notes)

    if asked == "cpu":
        return result("cpu", missing="MSR_CUDA_BUILD=cpu asked for the CPU kernels alone")
    if asked == "auto" and torch.cuda is None:
        return result("cpu", missing=f"torch {torch.version} is a build without CUDA")
    unfit = None
    if toolkit is None:
        unfit = f"a CUDA toolkit (bin/nvcc and include/cuda_runtime.h); found: {toolkit_found}"
    elif toolkit.library_dir is None:
        unfit = f"libcudart_static.a; found: {toolkit.home} without it"
    elif torch.cuda is not None and int(torch.cuda.split(".")[0]) != toolkit.version[0]:
        unfit = (
            f"a CUDA {torch.cuda.split('.')[0]} toolkit, as torch {torch.version} was built with "
            f"CUDA {torch.cuda}; found: {toolkit_found}"
        )
    if unfit is None:
        assert toolkit is not None
        listed = environ.get("TORCH_CUDA_ARCH_LIST", "")
        if unknown := toolchain.unknown_architectures(toolkit, listed):
            # In auto mode too: a wrong value is a mistake, and not something that is missing here.
            error = (
                f"TORCH_CUDA_ARCH_LIST={listed} needs an nvcc that compiles for "
                f"{' and '.join(unknown)}; found: {toolkit_found}, which compiles for "
                f"{', '.join(toolchain.supported_architectures(toolkit))}. Then run: "
                f'TORCH_CUDA_ARCH_LIST="{toolchain.default_architectures(toolkit, [])}" {command}'
            )
            return result("none", error=error)
        return result("cuda")
    if asked == "auto":
        return result("cpu", missing=f"CUDA kernels need {unfit}")
    command = f"CUDA_HOME=/path/to/cuda {command}"
    return result("none", error=f"MSR_CUDA_BUILD=cuda needs {unfit}. Then run: {command}")
