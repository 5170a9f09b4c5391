"""What a swap did, and what it saves."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn

from . import _measure
from ._measure import Traffic


@dataclasses.dataclass
class Site:
    """One module that a recipe knows.

    Attributes:
        names: its names in the model, more than one where it is shared; ``""`` is the model itself.
        class_name: full name of its own class.
        twin: full name of the class it has now; None if it was left alone.
        how: what the twin does in one pass, or why the module was left alone.
        fresh: False if an earlier call had fused it.
        traffic: filled in by :meth:`Report.measure`.
    """

    names: tuple[str, ...]
    class_name: str
    twin: str | None
    how: str
    fresh: bool = True
    traffic: Traffic | None = None

    @property
    def label(self) -> str:
        """All names, for messages."""
        return " = ".join(name or "(the model)" for name in self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = dataclasses.asdict(self)
        plain["names"] = list(self.names)
        return plain


class Report:
    """The result of :func:`msr_cuda.fuse`; ``print`` it.

    Attributes:
        swapped: one :class:`Site` per module that is fused now, those of earlier calls included.
        skipped: one per module that a recipe knows and that was left alone.
    """

    def __init__(self, model: nn.Module, swapped: list[Site], skipped: list[Site]) -> None:
        self.swapped = swapped
        self.skipped = skipped
        # A report that is kept for a log does not keep the model alive.
        self._model = weakref.ref(model)

    @property
    def total(self) -> Traffic | None:
        """The traffic of all swapped sites; None before :meth:`measure`."""
        measured = [site.traffic for site in self.swapped if site.traffic is not None]
        return _measure.total(measured) if measured else None

    def measure(self, *inputs: Any, **kwargs: Any) -> Report:
        """Runs the fused model once, and counts per site what the fusion saves.

        The model runs as ``model(*inputs, **kwargs)`` in the mode that it is in, without gradients
        and without ``torch.compile``. Its buffers and the random number generators are as before
        afterwards.

        Counted are the bytes of whole maps that a forward pass reads and writes, and its kernels:

        - fused: each input read once, the result written once; one kernel;
        - eager: ``interpolate`` reads its input and writes a map of the result's size; a weight
          reads and writes one map, a binary sum reads two and writes one, ``cat`` reads all and
          writes the result, an activation or a cast of the result reads and writes one; one kernel
          each. A map that has the result's size already counts as not interpolated, except by
          ``resample``. A cross entropy reads the upsampled logits, and writes and reads their
          log-probabilities; fused, it writes one number per pixel.

        What ``fuse(model, algebra=True)`` reordered counts with its convolutions, each of which
        reads its input and writes its result, and their multiply-adds.

        Weights and what caches hold are not counted, nor the casts to float32 that PyTorch makes
        under autocast: the eager count is what the same code moves in the dtypes that were seen.

        Returns:
            Report: this one, with ``traffic`` of every swapped site filled in.

        Raises:
            RuntimeError: the model is gone, or a site is not fused any more.
        """
        model = self._model()
        if model is None:
            raise RuntimeError("measure: the model of this report does not exist any more")
        sites = []
        for site in self.swapped:
            module = model.get_submodule(site.names[0])
            classes = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__]
            if site.twin not in classes:
                raise RuntimeError(
                    f"measure: expected {site.label} to have the class {site.twin}, "
                    f"got {classes[0]}"
                )
            sites.append(module)
        for site, traffic in zip(
            self.swapped, _measure.run(model, sites, inputs, kwargs), strict=True
        ):
            site.traffic = traffic
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        total = self.total
        return {
            "swapped": [site.to_dict() for site in self.swapped],
            "skipped": [site.to_dict() for site in self.skipped],
            "total": None if total is None else dataclasses.asdict(total),
        }

    def __repr__(self) -> str:
        return f"<Report: {len(self.swapped)} swapped, {len(self.skipped)} skipped>"

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} fused, {len(self.skipped)} left alone"]
        sites = self._site_rows()
        if len(sites) > 1:
            lines += ["", *aligned(sites)]
        traffic = self._traffic_rows()
        if traffic:
            lines += ["", *aligned(traffic, numbers=True), *self._fallbacks()]
        return "\n".join(lines)

    def __rich__(self) -> Any:
        """The same as tables of ``rich``, which calls this when it prints a report."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        def table(rows: Sequence[tuple[str, ...]], numbers: bool = False) -> Table:
            made = Table()
            for i, header in enumerate(rows[0]):
                made.add_column(header, justify="right" if numbers and i else "left")
            for row in rows[1:]:
                style = "yellow" if row[0] == "left" else None
                made.add_row(*(Text(cell) for cell in row), style=style)
            return made

        parts: list[Any] = [Text(f"{len(self.swapped)} fused, {len(self.skipped)} left alone")]
        sites, traffic = self._site_rows(), self._traffic_rows()
        if len(sites) > 1:
            parts.append(table(sites))
        if traffic:
            parts += [table(traffic, numbers=True), *map(Text, self._fallbacks())]
        return Group(*parts)

    def _site_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("", "module", "class", "how, or why not")]
        for mark, sites in (("fused", self.swapped), ("left", self.skipped)):
            for site in sites:
                how = site.how
                if site.twin is not None and site.fresh:
                    how = f"{site.twin.rpartition('.')[2]}: {how}"
                rows.append((mark, site.label, site.class_name, how))
        return rows

    def _measured(self) -> list[tuple[str, Traffic]]:
        return [(s.label, s.traffic) for s in self.swapped if s.traffic is not None]

    def _traffic_rows(self) -> list[tuple[str, ...]]:
        """Empty before :meth:`measure`."""
        total = self.total
        if total is None:
            return []
        header: tuple[str, ...] = (
            "module", "calls", "eager", "fused", "bytes saved", "kernels saved"
        )  # fmt: skip
        rows = [_traffic_row(*m) for m in (*self._measured(), ("in all", total))]
        if total.eager_operations:
            header = (*header, "multiply-adds saved")
            counts = [*(t for _, t in self._measured()), total]
            rows = [(*row, _operations(t)) for row, t in zip(rows, counts, strict=True)]
        return [header, *rows]

    def _fallbacks(self) -> list[str]:
        reasons = {t.fallback for _, t in self._measured() if t.fallback is not None}
        return [f"ran in plain PyTorch, so nothing was saved: {why}" for why in sorted(reasons)]


def _traffic_row(label: str, traffic: Traffic) -> tuple[str, ...]:
    ratio = f" ({traffic.eager_bytes / traffic.fused_bytes:.2f}x)" if traffic.fused_bytes else ""
    return (
        label,
        str(traffic.calls),
        _megabytes(traffic.eager_bytes),
        _megabytes(traffic.fused_bytes),
        _megabytes(traffic.saved_bytes) + ratio,
        str(traffic.saved_launches),
    )


def _operations(traffic: Traffic) -> str:
    if not traffic.eager_operations:
        return "-"
    return f"{traffic.saved_operations / 1e6:.1f} M of {traffic.eager_operations / 1e6:.1f} M"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3f} MB"


def aligned(rows: Sequence[tuple[str, ...]], numbers: bool = False) -> list[str]:
    """Aligned columns, those of numbers (all but the first) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if numbers and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
