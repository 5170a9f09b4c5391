"""What one run of the demo is told, what it shows, and what it finds out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from checks import Check

from benchmarks.measure import Timing


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


class Photograph(NamedTuple):
    """A picture to work on."""

    name: str
    pixels: np.ndarray  # uint8 [H, W, 3], RGB


class Measurement(NamedTuple):
    """One cell of a table."""

    table: str
    about: str
    contender: str
    direction: str
    timing: Timing
    peak_bytes: int


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
