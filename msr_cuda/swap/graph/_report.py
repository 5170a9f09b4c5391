"""What became of the sites of a graph, and who is told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node

from ...functional import Observation
from .. import _measure
from .._measure import Traffic
from ._sites import Site, Source


@dataclasses.dataclass(frozen=True)
class GraphSite:
    """One site of a graph, fused or left.

    Attributes:
        nodes: names of the nodes in the graph that was captured; the last one gives the result.
        operator: name of the function that replaces them; None if they were left alone.
        how: what it does in one pass, or why the nodes were left alone.
        line: the user's line of code, ``file:number in function: code``; None if the graph does not
            know it.
        traffic: what one call of the operator moves, and PyTorch's functions would, counted as
            :meth:`msr_cuda.swap.Report.measure` does; None if the site was left alone, or its size
            is not known before the graph runs.
    """

    nodes: tuple[str, ...]
    operator: str | None
    how: str
    line: str | None = None
    traffic: Traffic | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "nodes": list(self.nodes)}


@dataclasses.dataclass
class GraphReport:
    """What :func:`msr_cuda.swap.rewrite` and ``torch.compile(backend="msr_cuda")`` did; print it.

    Attributes:
        swapped: one :class:`GraphSite` per call of an operator that was put in.
        skipped: one per interpolation that was left alone.
    """

    swapped: list[GraphSite] = dataclasses.field(default_factory=list)
    skipped: list[GraphSite] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> Traffic | None:
        """The traffic of all swapped sites of which it is known; None if it is of none."""
        known = [site.traffic for site in self.swapped if site.traffic is not None]
        return _measure.total(known) if known else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        total = self.total
        return {
            "swapped": [site.to_dict() for site in self.swapped],
            "skipped": [site.to_dict() for site in self.skipped],
            "total": None if total is None else dataclasses.asdict(total),
        }

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} fused, {len(self.skipped)} left alone"]
        for mark, sites in (("fused", self.swapped), ("left", self.skipped)):
            for site in sites:
                saving = _saving(site.traffic)
                how = f"{site.how}; {saving}" if saving else site.how
                lines.append(f"{mark:5}  {', '.join(site.nodes)}: {how}")
                if site.line is not None:
                    lines.append(f"       {site.line}")
        saving = _saving(self.total)
        if saving:
            lines.append(f"in all: {saving}")
        return "\n".join(lines)


def _saving(traffic: Traffic | None) -> str:
    if traffic is None or traffic.saved_bytes <= 0:  # an interpolation alone saves nothing
        return ""
    saved, eager = (n / 1e6 for n in (traffic.saved_bytes, traffic.eager_bytes))
    return f"saves {saved:.3f} of {eager:.3f} MB"


_recordings: list[list[GraphReport]] = []


@contextlib.contextmanager
def recording() -> Iterator[list[GraphReport]]:
    """Collects a report of every graph that is compiled or rewritten in the ``with`` block.

    ::

        compiled = torch.compile(model, backend="msr_cuda")
        with msr_cuda.swap.recording() as reports:
            compiled(x)  # the first call compiles
        for report in reports:
            print(report)

    A graph that had been compiled before is not reported again (``torch._dynamo.reset()`` makes
    PyTorch forget all of them).
    """
    reports: list[GraphReport] = []
    _recordings.append(reports)
    try:
        yield reports
    finally:
        # By identity: two lists of equal reports are equal.
        _recordings[:] = [other for other in _recordings if other is not reports]


def tell(report: GraphReport) -> None:
    """Hands a report to whoever is recording."""
    for reports in _recordings:
        reports.append(report)


#: A frame of a stack trace: file, number, function and, on the next line, code.
_FRAME = re.compile(r'  File "(.+)", line (\d+), in (.+)\n(?:    (.+))?')


def line_of(node: Node) -> str | None:
    """The user's line of code that a node comes from: the innermost outside of PyTorch."""
    frames = _FRAME.findall(node.stack_trace or "")
    own = [frame for frame in frames if not re.search(r"[/\\]torch[/\\]", frame[0])]
    if not own:
        return None
    file, number, function, code = own[-1]
    return f"{file}:{number} in {function}: {code}"


def describe(site: Site) -> str:
    """What the operator does in one pass."""
    sources = site.sources
    modes = [_kind(source) for source in sources if source.producer is not None]
    kinds = [f"{modes.count(mode)} {mode}" for mode in dict.fromkeys(modes)]
    plain = sum(s.producer is None for s in sources)
    if plain:
        kinds.append(f"{plain} as {'it is' if plain == 1 else 'they are'}")
    parts = [f"{site.operator} of {len(sources)} map{'s' * (len(sources) > 1)}: {', '.join(kinds)}"]
    if site.weighted:
        parts.append(f"{site.weight_kind} weights")
    elif any(term.constant != 1 for term in site.terms):
        parts.append("constant weights")
    if site.activation is not None:
        parts.append(site.activation)
    if site.operator == "resample":
        return f"resample, {modes[0]}"
    return "; ".join(parts)


def traffic_of(site: Site) -> Traffic | None:
    """What a call of the site's operator moves; None where sizes are symbols."""
    maps = site.maps()
    if not all(type(n) is int for tensor in (*maps, site.value) for n in tensor.shape):
        return None
    dtype = site.dtype() or functools.reduce(torch.promote_types, [x.dtype for x in maps])
    output = torch.empty(site.value.shape, dtype=dtype, device="meta")
    weighted = site.weighted or any(term.constant != 1 for term in site.terms)
    observation = Observation(site.operator, tuple(maps), output, weighted, site.activation)
    return _measure.of_call(observation)


def _kind(source: Source) -> str:
    if source.repeated:
        return "repeated"
    return source.mode if isinstance(source.mode, str) else "pooled"
