#!/usr/bin/env python3
"""Compiles every csrc/kernels/*.cu alone for each architecture, and fails on spills.

Needs nvcc and neither a GPU nor torch: the kernels include no torch header. Prints registers, stack
and shared memory, the worst of each file and architecture; with --verbose those of every kernel.
With --listings, keeps the machine code for the last architecture as text, which
instruction_budget.py counts; that takes nvdisasm, which comes with the CUDA toolkit or with
``pip install nvidia-cuda-nvdisasm``.

    python3 build_tools/nvcc_sweep.py [--arch 75 80 90] [--verbose] [--listings DIR] [file.cu ...]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import toolchain

ROOT = Path(__file__).resolve().parents[1]
# As the real build has them (torch adds the __CUDA_NO_* ones), but with every warning an error.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-DMSR_WITH_CUDA",
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
    "--Werror=all-warnings",
    f"-I{ROOT / 'csrc'}",
]


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel: bytes, but for the registers."""

    name: str
    registers: int
    stack: int
    shared: int
    spilled: int


@dataclass(frozen=True)
class Result:
    """One file compiled for one target."""

    source: Path
    target: str
    seconds: float
    kernels: list[Kernel]
    error: str | None
    listing: str | None = None  # machine code as text, where it was asked for


def parse_ptxas(output: str) -> list[Kernel]:
    """The kernels in the output of ``-Xptxas -v``."""
    kernels = []
    # "... Compiling entry function '<name>' for 'sm_90'", then its properties on several lines.
    sections = re.split(r"Compiling entry function '([^']+)' for '\w+'", output)[1:]
    for name, text in zip(sections[::2], sections[1::2], strict=True):

        def number(pattern: str, text: str = text) -> int:
            return sum(int(found) for found in re.findall(pattern, text))

        # A kernel's section may list functions it calls, not inlined, with stacks of their own.
        kernels.append(
            Kernel(
                name,
                registers=max(map(int, re.findall(r"Used (\d+) registers", text)), default=0),
                stack=number(r"(\d+) bytes stack frame"),
                shared=number(r"(\d+) bytes smem"),
                spilled=number(r"(\d+) bytes spill (?:stores|loads)"),
            )
        )
    return kernels


def demangle(names: list[str]) -> dict[str, str]:
    """C++ names where a demangler is found, else the names as they are."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run([tool, *names], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return dict(zip(names, lines, strict=True)) if len(lines) == len(names) else {}


def find_disassembler(nvcc: Path) -> str | None:
    """The path of nvdisasm: on PATH, beside nvcc, or in its Python package, also .venv's."""
    if found := shutil.which("nvdisasm"):
        return found
    places = [nvcc.parent / "nvdisasm"]
    for site in (*map(Path, sys.path), *ROOT.glob(".venv/lib/*/site-packages")):
        places += sorted(site.glob("nvidia/*/bin/nvdisasm"))
    return next((str(place) for place in places if os.access(place, os.X_OK)), None)


def compile_one(
    nvcc: Path,
    source: Path,
    target: str,
    disassembler: str | None = None,
    options: Sequence[str] = (),
) -> Result:
    """To machine code; with a disassembler, its text is part of the result."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, *options, "-Xptxas=-v", f"-arch={target}", "-cubin", source]
        done = subprocess.run(
            [*map(str, command), "-o", f"{folder}/out"], capture_output=True, text=True, check=False
        )
        listing = None
        if disassembler and done.returncode == 0:
            listed = subprocess.run(
                [disassembler, "-c", f"{folder}/out"], capture_output=True, text=True, check=False
            )
            listing = listed.stdout if listed.returncode == 0 else None
    output = done.stdout + done.stderr
    error = output.strip() if done.returncode else None
    kernels = parse_ptxas(output) if error is None else []
    if error is None and not kernels:
        error = "no kernel in it (or the output of -Xptxas -v has changed)"
    return Result(source, target, time.monotonic() - begun, kernels, error, listing)


def write_listings(folder: Path, results: Sequence[Result]) -> None:
    """Keeps results that have listings, for :func:`read_listings`."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        if result.listing is None:
            continue
        (folder / f"{result.source.stem}.sass").write_text(result.listing, encoding="utf-8")
        kernels = [asdict(kernel) for kernel in result.kernels]
        index = {"source": str(result.source), "target": result.target, "kernels": kernels}
        (folder / f"{result.source.stem}.json").write_text(json.dumps(index), encoding="utf-8")


def read_listings(folder: Path) -> list[Result]:
    """What :func:`write_listings` kept. FileNotFoundError if that is nothing."""
    found = []
    for path in sorted(folder.glob("*.json")):
        index = json.loads(path.read_text(encoding="utf-8"))
        kernels = [Kernel(**fields) for fields in index["kernels"]]
        listing = path.with_suffix(".sass").read_text(encoding="utf-8")
        found.append(Result(Path(index["source"]), index["target"], 0.0, kernels, None, listing))
    if not found:
        raise FileNotFoundError(f"no listings in {folder}")
    return found


def report(results: list[Result], verbose: bool) -> int:
    """Prints the table; returns how many compilations failed or spilled."""
    bad = 0
    print(f"{'file':<24}{'target':<13}{'kernels':>8}{'regs':>6}{'stack':>7}{'shared':>8}{'s':>7}")
    for result in results:
        spilling = [kernel for kernel in result.kernels if kernel.spilled]
        row = f"{result.source.name:<24}{result.target:<13}"
        if result.kernels:
            row += f"{len(result.kernels):>8}"
            row += f"{max(k.registers for k in result.kernels):>6}"
            row += f"{max(k.stack for k in result.kernels):>7}"
            row += f"{max(k.shared for k in result.kernels):>8}"
        else:
            row += f"{'-':>8}{'-':>6}{'-':>7}{'-':>8}"
        row += f"{result.seconds:>7.1f}"
        row += "  FAILS" if result.error else "  SPILLS" if spilling else ""
        print(row)
        if result.error:
            print(result.error)
        shown = result.kernels if verbose else spilling
        names = demangle([kernel.name for kernel in shown])
        for kernel in shown:
            print(
                f"    {kernel.registers} registers, {kernel.stack} B stack, {kernel.spilled} B "
                f"spilled, {kernel.shared} B shared: {names.get(kernel.name, kernel.name)}"
            )
        bad += bool(result.error or spilling)
    return bad


def main() -> int:
    """Compiles, prints, returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: csrc/kernels/*.cu")
    parser.add_argument("--arch", nargs="+", default=["75", "80", "90"], metavar="N")
    parser.add_argument("--verbose", action="store_true", help="list every kernel")
    parser.add_argument("--listings", type=Path, metavar="DIR",
                        help="keep the machine code for the last architecture there")  # fmt: skip
    arguments = parser.parse_args()
    files = arguments.files or sorted(ROOT.glob("csrc/kernels/*.cu"))
    if not files:
        sys.exit("nvcc_sweep: no csrc/kernels/*.cu")
    toolkit, found = toolchain.find_cuda_toolkit()
    if toolkit is None:
        sys.exit(f"nvcc_sweep: needs nvcc; found: {found}")
    # Each goes through PTX, that of the newest one too, which later GPUs compile for themselves.
    targets = [f"sm_{n}" for n in arguments.arch]
    print(f"nvcc_sweep: {found}")
    disassembler = find_disassembler(toolkit.nvcc) if arguments.listings else None
    if arguments.listings and disassembler is None:
        sys.exit("nvcc_sweep: --listings needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    with ThreadPoolExecutor(toolchain.default_jobs()) as pool:
        newest = targets[-1]
        jobs = [
            (file, target, disassembler if target == newest else None)
            for target in targets
            for file in files
        ]
        results = list(pool.map(lambda job: compile_one(toolkit.nvcc, *job), jobs))
    bad = report(results, arguments.verbose)
    if arguments.listings:
        write_listings(arguments.listings, results)
    total = sum(len(result.kernels) for result in results)
    print(f"nvcc_sweep: {len(results)} compilations, {total} kernels, {bad} with errors or spills")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
