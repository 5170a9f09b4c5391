"""What a run shows while it runs."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO


class Bar:
    """A progress bar: tqdm's, or none where nobody watches or tqdm is not installed."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """One step on."""
        if self._bar is not None:
            self._bar.update()

    def show(self, **values: float) -> None:
        """Numbers beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4f}" for name, value in values.items()})


class Console:
    """Lines and bars of the first process; the others are silent.

    Args:
        stream: where to write; default standard error.
        silent: write nothing.
    """

    def __init__(self, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.silent = silent

    def say(self, text: str) -> None:
        """A line."""
        if not self.silent:
            print(text, file=self.stream, flush=True)

    def bar(self, title: str, total: int, done: int) -> Bar:
        """A progress bar, ``done`` of ``total`` steps long already."""
        if not self.silent and self.stream.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                return Bar(
                    tqdm(total=total, initial=done, desc=title, file=self.stream, leave=False)
                )
        return Bar(None)

    def epoch(self, row: dict[str, float], seconds: float) -> None:
        """What an epoch gave."""
        self.say(
            f"epoch {row['epoch']:.0f}: training loss {row['train_loss']:.4f}, validation loss "
            f"{row['val_loss']:.4f}, accuracy {row['accuracy']:.4f}, mean IoU "
            f"{row['mean_iou']:.4f} ({seconds:.1f} s)"
        )


def scalars_to_tensorboard(out: Path, row: dict[str, float]) -> None:
    """Adds an epoch's metrics to TensorBoard's files, where it is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    epoch = int(row["epoch"])
    # What an earlier attempt at this epoch wrote is hidden by purge_step.
    with SummaryWriter(str(out / "tensorboard"), purge_step=epoch) as writer:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, epoch)
