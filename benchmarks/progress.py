"""What a long run is doing, on the error stream."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_BAR = 24


def duration(seconds: float) -> str:
    """``2:05``, or ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """A bar that rewrites its line on a terminal, lines elsewhere.

    Args:
        total: how many parts there are.
        stream: where it is shown.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._clock = total, clock
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._begun = clock()
        self._done = 0
        self._width = 0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._begun

    @property
    def left(self) -> float | None:
        """Seconds to go, if the parts to come take as long as those that are done."""
        if not self._done:
            return None
        return self.seconds / self._done * (self._total - self._done)

    def tell(self, what: str) -> None:
        """Says what is being done now."""
        left = "" if self.left is None else f", {duration(self.left)} to go"
        counts = f"{min(self._done + 1, self._total)}/{self._total}, {duration(self.seconds)}{left}"
        if not self._live:
            print(f"[{counts}] {what}", file=self._stream, flush=True)
            return
        full = _BAR * self._done // max(self._total, 1)
        text = f"[{'#' * full}{'.' * (_BAR - full)}] {counts}  {what}"[:110]
        self._write(text)

    def finish_part(self) -> None:
        """One more is done."""
        self._done += 1

    def clear(self) -> None:
        """Takes the bar away, so that other lines can be printed."""
        if self._live:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width) + ("" if text else "\r"))
        self._stream.flush()
        self._width = len(text)
