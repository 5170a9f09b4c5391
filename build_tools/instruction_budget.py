#!/usr/bin/env python3
"""Counts what the kernels' machine code for sm_90 issues per element, against a budget.

For each workload (a call as networks make it) the shipped launchers, run by the test harness, say
which kernel instances they would launch, with which grid and parameters. Some blocks of every
launch are then run in the machine code that nvcc makes of the instance (sass_machine.py), with
those very parameters: which ways it takes, how often rows are loaded and finished, what its set-up
costs and how much lies idle at borders all follow from the call, and none of it is assumed. The
figure is the number of instructions issued, times the 32 lanes of each, divided by the elements of
the large map: the result of a forward call, the incoming gradient of a backward one.

Where the budgets come from: a GPU that copies at 4.3 TB/s issues 7.8 lane instructions in the time
it takes one byte (132 multiprocessors, 4 schedulers of 32 lanes, 1.98 GHz; 4.3e12 B/s). A call that
moves 4.6 to 5 bytes per element has time for 36: one that needs more is bound by its instructions.
The budgets leave room below that.

Limits: no times; nothing about latencies, caches or bank conflicts. A few blocks stand for all
(those at equal distances in the grid). Needs nvcc, nvdisasm and g++.

Fails if a workload exceeds its budget, if a kernel spills registers, if an instance that is
launched is not in the machine code, or if that does something unknown to sass_machine.py. Workloads
that exceed their budget today stand in instruction_ceilings.json, each with the figure that it is
held to until it is improved; --update writes the file anew.

    python build_tools/instruction_budget.py [--listings DIR] [--only WORDS] [--hot | --update]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import nvcc_sweep
import sass
import sass_machine
import toolchain
from harness import build, cases_io

from msr_cuda._spec import Mode

KERNELS = Path(__file__).resolve().parents[1] / "csrc" / "kernels"
TARGET = "sm_90"
CEILINGS = Path(__file__).resolve().parent / "instruction_ceilings.json"
#: Another release of nvcc may choose other instructions here and there.
SLACK = 1.02
#: Lane instructions per element.
ONE_INPUT, SEVERAL_INPUTS, BACKWARD = 20.0, 30.0, 36.0
#: Blocks of each launch that are run; more where a launch has blocks of several kinds.
SAMPLES, SAMPLES_OF_SEVERAL = 2, 9
#: More than any workload needs.
WORKSPACE_BYTES = 1 << 24
NEAREST, LINEAR, CORNERS = Mode.NEAREST, Mode.LINEAR, Mode.LINEAR_ALIGN_CORNERS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """A call, and what it may cost.

    Attributes:
        name: what users would call it.
        operation: ``"gather"`` (forward) or ``"spread"`` (backward).
        size: of the large map, ``[N, C, *spatial]``.
        maps: of each branch, its shape.
        mode: of all branches.
        budget: lane instructions per element of the large map.
        cat: concatenated, not summed.
        relu: an activation; with ``mask``, what the backward needs of it is saved or read.
        weights: there are weights; backward: their gradients are wanted.
        by_channel: each channel has weights of its own.
        channels_last: the layout of all maps.
        dtype: of all maps.
    """

    name: str
    operation: str
    size: Shape
    maps: tuple[Shape, ...]
    mode: Mode
    budget: float
    cat: bool = False
    relu: bool = True
    mask: bool = True
    weights: bool = False
    by_channel: bool = False
    channels_last: bool = False
    dtype: str = "float16"

    @property
    def title(self) -> str:
        layout = "channels_last" if self.channels_last else "NCHW"
        return f"{self.name}, {layout}, {self.dtype}"


def _smaller(size: Shape, factor: int, channels: int | None = None) -> Shape:
    n, c, *spatial = size
    return (n, channels or c, *(extent // factor for extent in spatial))


def workloads() -> list[Workload]:
    """What is counted."""
    # Large maps: those below about 50 MB lie in the cache, where other limits count.
    size = (8, 128, 256, 256)
    one = (size, _smaller(size, 2))
    three = (size, *(_smaller(size, factor) for factor in (2, 4, 8)))
    fpn = (4, 256, 200, 336)  # the finest level for images of 800 x 1344
    unet = (4, 192, 256, 256)
    skip = (_smaller(unet, 2, 128), _smaller(unet, 1, 64))
    head = (8, 512, 128, 128)
    levels = tuple(_smaller(head, factor, 128) for factor in (1, 2, 4, 8))
    odd = (8, 256, 100, 167)
    halved = (8, 256, 50, 84)
    third = (8, 128, 240, 240)
    volume = (1, 32, 128, 128, 128)
    ahead = [
        Workload("forward: bilinear x2 + base, ReLU", "gather", size, one, LINEAR, ONE_INPUT),
        Workload("forward: bilinear x2 + base, ReLU, no mask", "gather", size, one, LINEAR,
                 ONE_INPUT, mask=False),
        Workload("forward: bilinear x2, x4, x8 + base, ReLU", "gather", size, three, LINEAR,
                 SEVERAL_INPUTS),
        Workload("forward: nearest x2 + base", "gather", fpn, (fpn, _smaller(fpn, 2)), NEAREST,
                 ONE_INPUT, relu=False),
        Workload("forward: nearest x2, x4, x8 + base, ReLU", "gather", size, three, NEAREST,
                 SEVERAL_INPUTS),
        Workload("forward: bilinear x2 (corners) + base", "gather", size, one, CORNERS, ONE_INPUT,
                 relu=False),
        Workload("forward: cat of nearest x2 and skip", "gather", unet, skip, NEAREST, ONE_INPUT,
                 cat=True, relu=False),
        Workload("forward: cat of bilinear x1, x2, x4, x8", "gather", head, levels, LINEAR,
                 ONE_INPUT, cat=True, relu=False),
        Workload("forward: trilinear x2 + base, ReLU", "gather", volume,
                 (volume, _smaller(volume, 2)), LINEAR, ONE_INPUT),
    ]  # fmt: skip
    back = [
        Workload("backward: bilinear x2 + base, ReLU", "spread", size, one, LINEAR, BACKWARD),
        Workload("backward: x2 + base, weights' gradients", "spread", size, one, LINEAR, BACKWARD,
                 weights=True),
        Workload("backward: x2 + base, gradients of channels' weights", "spread", size, one, LINEAR,
                 BACKWARD, weights=True, by_channel=True),
        Workload("backward: bilinear x2, x4, x8 + base, ReLU", "spread", size, three, LINEAR,
                 BACKWARD),
        Workload("backward: x2, x4, x8 + base, weights' gradients", "spread", size, three, LINEAR,
                 BACKWARD, weights=True),
        Workload("backward: nearest x2 + base", "spread", fpn, (fpn, _smaller(fpn, 2)), NEAREST,
                 BACKWARD, relu=False),
        Workload("backward: nearest x2, x4, x8 + base, ReLU", "spread", size, three, NEAREST,
                 BACKWARD),
        Workload("backward: cat of nearest x2 and skip", "spread", unet, skip, NEAREST, BACKWARD,
                 cat=True, relu=False),
        Workload("backward: cat of bilinear x1, x2, x4, x8", "spread", head, levels, LINEAR,
                 BACKWARD, cat=True, relu=False),
        Workload("backward: bilinear x2 (corners) + base", "spread", size, one, CORNERS, BACKWARD,
                 relu=False),
        Workload("backward: bilinear x3 + base, ReLU", "spread", third,
                 (third, _smaller(third, 3)), LINEAR, BACKWARD),
        Workload("backward: bilinear 50 x 84 to 100 x 167 + base, ReLU", "spread", odd,
                 (odd, halved), LINEAR, BACKWARD),
        Workload("backward: trilinear x2 + base, ReLU", "spread", volume,
                 (volume, _smaller(volume, 2)), LINEAR, BACKWARD),
    ]  # fmt: skip
    both = [replace(w, channels_last=last) for w in ahead + back for last in (False, True)]
    # The instances for bfloat16 differ from those for float16 by what widens and rounds alone.
    some = [w for w in both if w.size == size and w.mode == LINEAR]
    return [*both, *(replace(w, dtype="bfloat16") for w in some)]


# ---- what a call launches ------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """One launch as the launchers ask for it, on one-dimensional grids and blocks."""

    kernel: str
    blocks: int
    threads: int
    dynamic_shared_bytes: int
    parameters: bytes


def _map(shape: Shape, workload: Workload) -> cases_io.ArrayLike:
    if workload.channels_last:
        n, c, *spatial = shape
        array = np.moveaxis(np.zeros((n, *spatial, c), np.uint16), -1, 1)
    else:
        array = np.zeros(shape, np.uint16)
    return cases_io.Carried(array, workload.dtype)


def arguments_of(workload: Workload) -> dict[str, Any]:
    """The harness's arguments, all values zero: none of them decides what is executed."""
    count, layout = len(workload.maps), int(workload.channels_last)
    bits = np.zeros(4 * -(-int(np.prod(workload.size)) // 32), np.uint8)
    weights = (1, count, workload.size[1]) if workload.by_channel else (count,)
    arguments: dict[str, Any] = {
        "modes": np.full(count, int(workload.mode)), "cat": int(workload.cat),
        "channels_last": layout, "acc_is_double": 0,
        "weights": np.ones(weights, np.float32) if workload.weights else None,
        "choice": np.zeros(0, np.int64), "workspace": np.zeros(WORKSPACE_BYTES, np.uint8),
    }  # fmt: skip
    maps = [_map(shape, workload) for shape in workload.maps]
    if workload.operation == "gather":
        arguments |= {
            "inputs": maps, "out": _map(workload.size, workload),
            "activation": int(workload.relu),
            "mask": bits if workload.relu and workload.mask else None,
        }  # fmt: skip
    else:
        arguments |= {
            "grad": _map(workload.size, workload), "grads": maps, "wanted": (1 << count) - 1,
            "grads_channels_last": (1 << count) - 1 if layout else 0,
            "gate": bits if workload.relu else None,
            "values": [_map(s, workload) for s in workload.maps] if workload.weights else None,
            "dots": np.zeros(weights, np.float32) if workload.weights else None,
        }  # fmt: skip
    return arguments


def launches_of(harness: ModuleType, function: str, arguments: dict[str, Any]) -> list[Launch]:
    """What a call of the harness would launch; nothing runs."""
    harness.record_launches(True)
    try:
        getattr(harness, function)(**arguments)
    finally:
        harness.record_launches(False)
        recorded = harness.take_recorded()
    found = []
    for launch in recorded:
        (blocks, *grid), (threads, *block) = launch["grid"], launch["block"]
        if [*grid, *block] != [1] * 4:
            raise RuntimeError(f"{launch['kernel']}: expected a grid and blocks of one dimension")
        found.append(Launch(launch["kernel"], blocks, threads, launch["dynamic_shared_bytes"],
                            launch["parameters"]))  # fmt: skip
    return found


def memory_of(arguments: dict[str, Any]) -> list[npt.NDArray[np.uint8]]:
    """The bytes of all arrays among a call's arguments."""
    found = []
    for value in arguments.values():
        for array in value if isinstance(value, list) else [value]:
            if isinstance(array, (np.ndarray, cases_io.Carried)):
                found.append(cases_io.memory(cases_io.elements(array)).view(np.uint8))
    return found


# ---- the machine code ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """One kernel as nvcc compiled it: its listing, and what ptxas says of it."""

    lines: list[str]
    registers: int
    spilled: int
    static_shared_bytes: int


def instance_name(demangled: str) -> str:
    """``msr::expand_kernel<msr::Half, 8, 1, false>``, as the harness names it.

    The one place that knows how demanglers spell kernels: ``void f<(int)8, (bool)0>(...)``.
    """
    name = demangled.removeprefix("void ")
    name = name.replace("(bool)0", "false").replace("(bool)1", "true").replace("(int)", "")
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return name[:i]
    return name


def codes_of(results: Iterable[nvcc_sweep.Result]) -> dict[str, Code]:
    """Every kernel in compiled files, by its instance's name."""
    found = {}
    for result in results:
        if result.error or result.listing is None:
            raise RuntimeError(f"{result.source.name}: {result.error or 'it has no listing'}")
        sections = sass.functions(result.listing)
        names = nvcc_sweep.demangle([kernel.name for kernel in result.kernels])
        for kernel in result.kernels:
            found[instance_name(names[kernel.name])] = Code(
                sections[kernel.name], kernel.registers, kernel.spilled, kernel.shared
            )
    return found


def compile_kernels(files: Sequence[Path], options: Sequence[str] = ()) -> list[nvcc_sweep.Result]:
    """Compiles kernel files for the target, with listings. RuntimeError names a missing tool."""
    toolkit, found = toolchain.find_cuda_toolkit()
    if toolkit is None:
        raise RuntimeError(f"instruction_budget: needs nvcc; found: {found}")
    disassembler = nvcc_sweep.find_disassembler(toolkit.nvcc)
    if disassembler is None:
        raise RuntimeError("instruction_budget: needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    with ProcessPoolExecutor(toolchain.default_jobs()) as pool:
        futures = [
            pool.submit(nvcc_sweep.compile_one, toolkit.nvcc, file, TARGET, disassembler, options)
            for file in files
        ]
        return [future.result() for future in futures]


# ---- counting ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """What one launch issues.

    Attributes:
        launch: it.
        code: of its kernel.
        per_block: instructions issued, times lanes, on average over the blocks that were run.
        issued: by instruction of the kernel, times lanes, per block.
    """

    launch: Launch
    code: Code
    per_block: float
    issued: npt.NDArray[np.float64]

    @property
    def total(self) -> float:
        return self.per_block * self.launch.blocks


def sampled(blocks: int, samples: int) -> list[int]:
    """Blocks at equal distances, none at the ends if there are enough."""
    return sorted({(2 * i + 1) * blocks // (2 * samples) for i in range(samples)})


def run_launch(
    code: Code, launch: Launch, memory: Sequence[npt.NDArray[np.uint8]], blocks: Iterable[int]
) -> npt.NDArray[np.float64]:
    """Runs blocks of a launch; returns how often each instruction was issued, by block on average.

    Raises:
        sass.MachineError: its code does what is not known, or not allowed.
    """
    program = sass.parse(code.lines)
    issued = []
    for index in blocks:
        block = sass_machine.Block(
            program, launch.threads, index, launch.blocks, launch.parameters, memory,
            code.static_shared_bytes + launch.dynamic_shared_bytes,
        )  # fmt: skip
        block.run()
        issued.append(block.issued)
    return np.mean(issued, axis=0)


def count(harness: ModuleType, codes: dict[str, Code], workload: Workload) -> list[Count]:
    """The launches of a workload, counted.

    Raises:
        KeyError: an instance that is launched is not in the machine code.
    """
    arguments = arguments_of(workload)
    found = []
    for launch in launches_of(harness, workload.operation, arguments):
        if launch.kernel not in codes:
            raise KeyError(f"{launch.kernel} is launched, but not in the machine code")
        code = codes[launch.kernel]
        several = workload.cat or len(workload.maps) > 2
        chosen = sampled(launch.blocks, SAMPLES_OF_SEVERAL if several else SAMPLES)
        issued = run_launch(code, launch, memory_of(arguments), chosen)
        issued = issued * sass_machine.WARP
        found.append(Count(launch, code, float(issued.sum()), issued))
    if not found:
        raise KeyError("nothing is launched")
    return found


# ---- the check -----------------------------------------------------------------------------------

_shared: tuple[ModuleType, dict[str, Code]] | None = None  # what the processes of a pool begin with


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    workload: Workload
    launches: list[tuple[str, int, int, float]]  # instance, registers, bytes spilled, per element
    ceiling: float | None = None
    error: str | None = None

    @property
    def per_element(self) -> float:
        return sum(share for *_, share in self.launches)

    @property
    def is_good(self) -> bool:
        """Whether the check passes."""
        return self.verdict == "ok" or self.verdict.startswith("over its budget, held")

    @property
    def verdict(self) -> str:
        """``"ok"``, or what is wrong."""
        if self.error:
            return self.error
        if any(spilled for _, _, spilled, _ in self.launches):
            return "SPILLS"
        if self.per_element <= self.workload.budget:
            return "ok"
        if self.ceiling is not None and self.per_element <= self.ceiling * SLACK:
            return f"over its budget, held to {self.ceiling}"
        return "OVER" if self.ceiling is None else f"OVER the {self.ceiling} that it is held to"


def check(harness: ModuleType, codes: dict[str, Code], workload: Workload) -> Row:
    """Counts one workload; what goes wrong becomes the row's error."""
    elements = int(np.prod(workload.size))
    ceilings = json.loads(CEILINGS.read_text(encoding="utf-8"))
    try:
        counts = count(harness, codes, workload)
    except (KeyError, RuntimeError, ValueError) as error:
        return Row(workload, [], error=f"FAILS: {error}")
    found = [
        (c.launch.kernel, c.code.registers, c.code.spilled, c.total / elements) for c in counts
    ]
    return Row(workload, found, ceilings.get(workload.title))


def _check_shared(workload: Workload) -> Row:
    assert _shared is not None
    return check(*_shared, workload)


def check_all(harness: ModuleType, codes: dict[str, Code], chosen: Sequence[Workload]) -> list[Row]:
    """All of them, on all cores: processes that begin as copies of this one."""
    global _shared
    _shared = harness, codes
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(toolchain.default_jobs(), mp_context=context) as pool:
        return list(pool.map(_check_shared, chosen))


def report(rows: Sequence[Row]) -> int:
    """Prints the table; returns how many rows are not ok."""
    print(f"{'lane instructions per element, ' + TARGET:<71}{'count':>6}{'budget':>8}")
    for row in rows:
        print(f"{row.workload.title:<71}{row.per_element:>6.1f}{row.workload.budget:>8.0f}  "
              f"{row.verdict}")  # fmt: skip
        for kernel, registers, spilled, share in row.launches:
            name = kernel.replace("msr::", "")
            spills = f", {spilled} B spilled" if spilled else ""
            print(f"    {share:>6.2f}  {name}, {registers} registers{spills}")
    return sum(not row.is_good for row in rows)


def update_ceilings(rows: Sequence[Row]) -> list[Row]:
    """Holds these workloads to what they cost now, unless that is within their budget."""
    ceilings = json.loads(CEILINGS.read_text(encoding="utf-8"))
    for row in rows:
        ceilings.pop(row.workload.title, None)
        if not row.error and row.per_element > row.workload.budget:
            ceilings[row.workload.title] = round(row.per_element, 1)
    text = json.dumps(dict(sorted(ceilings.items())), indent=1)
    CEILINGS.write_text(text + "\n", encoding="utf-8")
    return [replace(row, ceiling=ceilings.get(row.workload.title)) for row in rows]


def report_hot(harness: ModuleType, codes: dict[str, Code], workload: Workload) -> None:
    """Prints the instructions that a workload issues most, in stretches of equal frequency."""
    elements = int(np.prod(workload.size))
    print(workload.title)
    for counted in count(harness, codes, workload):
        per_element = counted.issued * counted.launch.blocks / elements
        program = sass.parse(counted.code.lines)
        changes = np.flatnonzero(np.diff(per_element)) + 1
        print(f"  {counted.launch.kernel}: {per_element.sum():.2f}")
        for stretch in np.split(np.arange(len(per_element)), changes):
            share = float(per_element[stretch].sum())
            if share < 0.05:
                continue
            names = [program.instructions[i].name.split(".")[0] for i in stretch]
            kinds = sorted(set(names), key=names.count, reverse=True)
            most = ", ".join(f"{names.count(kind)} {kind}" for kind in kinds[:6])
            begin = program.instructions[int(stretch[0])].address
            print(f"    {share:6.2f} = {len(stretch)} x {per_element[stretch[0]]:.4f} at "
                  f"0x{begin:x}: {most}")  # fmt: skip


def main() -> int:
    """Counts, prints, returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--listings",
        type=Path,
        metavar="DIR",
        help="what nvcc_sweep.py --listings left; without it, kernels are compiled",
    )
    parser.add_argument("--only", default="", metavar="WORDS",
                        help="workloads whose titles contain this")  # fmt: skip
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--hot", action="store_true", help="where the instructions are")
    action.add_argument(
        "--update", action="store_true", help="hold workloads to what they cost now"
    )
    arguments = parser.parse_args()
    chosen = [w for w in workloads() if arguments.only in w.title]
    if not chosen:
        sys.exit(f"instruction_budget: expected words of a title, got {arguments.only!r}")
    try:
        results = (
            nvcc_sweep.read_listings(arguments.listings)
            if arguments.listings
            else compile_kernels(sorted(KERNELS.glob("*.cu")))
        )
        codes = codes_of(results)
    except (OSError, RuntimeError) as error:
        sys.exit(str(error))
    harness = build.load()
    if arguments.hot:
        for workload in chosen:
            report_hot(harness, codes, workload)
        return 0
    begun = time.monotonic()
    rows = check_all(harness, codes, chosen)
    if arguments.update:
        rows = update_ceilings(rows)
    bad = report(rows)
    print(f"instruction_budget: {len(chosen)} workloads, {bad} not within what they are held to, "
          f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
