"""Runs a model fused and not, and compares all that comes out of it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import testing
from ._fuse import Filter, fuse, unfuse
from ._report import Report, aligned

#: What the weights of the loss are drawn from: its gradients reach each element differently.
_SEED = 0x5EED
#: Gradients this much smaller than the model's largest are what rounding left of a zero, as that of
#: a bias ahead of a batch norm.
_NOISE = 1e-13


class Comparison(NamedTuple):
    """One tensor of the fused model against that of the model as it is.

    Attributes:
        name: ``output``, with the keys and indices that lead to it, or ``gradient of`` a parameter
            or an input.
        largest: the largest magnitude in the unfused model's tensor.
        error: the largest absolute difference, infinite if NaN or infinities stand elsewhere.
        allowed: what it may be; see :func:`verify`.
        problem: what is wrong beyond the size of the error, as another shape; empty: nothing.
    """

    name: str
    largest: float
    error: float
    allowed: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is within the bound."""
        return not self.problem and self.error <= self.allowed


class Precision(NamedTuple):
    """Rounding errors of one output in the model's own dtype, relative to its largest magnitude.

    Attributes:
        name: of the output.
        plain: the largest error of the unfused model against its float64 run.
        fused: that of the fused model.
    """

    name: str
    plain: float
    fused: float


@dataclasses.dataclass
class Verification:
    """The result of :func:`verify`; ``print`` it. True if everything passed.

    Attributes:
        report: what was fused.
        comparisons: in float64, one per output and gradient.
        zeros: names of gradients that are zero in both models, but for rounding: they say nothing.
        dtype: the model's own dtype; None: it is float64, or has no parameters.
        precision: one per output, in that dtype. For information: single errors are chance.
        notes: what could not be compared, and why.
    """

    report: Report
    comparisons: list[Comparison]
    zeros: list[str]
    dtype: torch.dtype | None
    precision: list[Precision]
    notes: list[str]

    @property
    def passed(self) -> bool:
        """Whether something was fused and compared, and all of it is within its bound."""
        return (
            bool(self.report.swapped)
            and bool(self.comparisons)
            and all(c.passed for c in self.comparisons)
        )

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "passed": self.passed,
            "report": self.report.to_dict(),
            "comparisons": [{**c._asdict(), "passed": c.passed} for c in self.comparisons],
            "zeros": list(self.zeros),
            "dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch."),
            "precision": [p._asdict() for p in self.precision],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        failed = [c for c in self.comparisons if not c.passed]
        count = len(self.comparisons)
        lines = [
            f"{'pass' if self.passed else 'FAIL'}: {len(self.report.swapped)} modules fused; "
            f"{count - len(failed)} of {count} outputs and gradients equal in float64"
        ]
        if failed:
            rows: list[tuple[str, ...]] = [("off", "largest", "error", "allowed", "")]
            for c in failed:
                rows.append(
                    (c.name, *(f"{v:.3g}" for v in (c.largest, c.error, c.allowed)), c.problem)
                )
            lines += ["", *aligned(rows)]
        elif self.comparisons:
            worst = max(self.comparisons, key=lambda c: c.error / c.allowed if c.allowed else 0.0)
            lines.append(
                f"worst: {worst.name}, off by {worst.error:.3g} where its largest magnitude is "
                f"{worst.largest:.3g} (allowed {worst.allowed:.3g})"
            )
        if self.zeros:
            lines.append(f"zero but for rounding, which says nothing: {', '.join(self.zeros)}")
        if self.precision:
            dtype = str(self.dtype).removeprefix("torch.")
            rows = [("relative error of", f"{dtype}, unfused", f"{dtype}, fused")]
            rows += [(p.name, f"{p.plain:.3g}", f"{p.fused:.3g}") for p in self.precision]
            lines += ["", *aligned(rows, numbers=True)]
        lines += self.notes
        return "\n".join(lines)


def verify(
    model: nn.Module,
    inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    gradients: bool = True,
    filter: Filter | None = None,
    algebra: bool = False,
) -> Verification:
    """Runs copies of a model, fused and not, on the same inputs, and compares what they give.

    Both run in float64, where fusing changes the order of rounding and nothing else: each output,
    and each gradient of a parameter or of an input, may differ by 1e-9 of its largest magnitude
    (:data:`msr_cuda.testing.SWAPPED_RTOL`). Integers have to be equal. The loss is a sum of all
    floating outputs with random weights. Then both run in the model's own dtype, and the errors of
    the outputs against float64 are listed.

    The model itself stays as it is. It may be fused already: then what it was before is compared
    with what :func:`fuse` makes of that. The copies take twice the model's memory in float64, are
    in the mode (train or eval) that the model is in, and begin with the same random numbers.

    Args:
        model: any module that can be copied.
        inputs: what the model is called with: one tensor, a sequence of positional arguments, or
            a mapping of keyword arguments. For a model that takes one list, as torchvision's
            detectors do, that is ``[[image, image]]``.
        gradients: compare those too.
        filter, algebra: see :func:`fuse`.

    Returns:
        Verification: what was compared, true if all of it passed.

    Raises:
        RuntimeError: the model cannot be copied, or fails in float64.
        TypeError: ``inputs`` is none of the three.

    Warns:
        UserWarning: nothing was fused.
    """
    args, kwargs = _arguments(inputs)
    plain = _copied(model)
    unfuse(plain)
    twin = _copied(plain)
    report = fuse(twin, filter=filter, algebra=algebra)
    dtype = _own_dtype(plain)
    truth = _run(plain.double(), args, kwargs, torch.float64, gradients)
    found = _run(twin.double(), args, kwargs, torch.float64, gradients)
    notes = list(truth.notes)
    comparisons = _compare(truth, found)
    if not all(c.passed for c in comparisons):
        again = _run(plain, args, kwargs, torch.float64, gradients)
        if not all(c.passed for c in _compare(truth, again)):
            notes.append("the unfused model does not repeat its own results either")
    noise = _noise(truth)
    zeros = [
        name
        for name, value in truth.gradients.items()
        if name in found.gradients
        and max(_largest(value), _largest(found.gradients[name])) <= noise
    ]
    precision: list[Precision] = []
    if dtype is not None:
        try:
            rounded = [_run(m.to(dtype), args, kwargs, dtype, False) for m in (plain, twin)]
        except (RuntimeError, TypeError) as error:
            notes.append(f"did not run in {dtype}: {error}")
        else:
            precision = _precision(truth, rounded[0], rounded[1])
    return Verification(report, comparisons, zeros, dtype, precision, notes)


@dataclasses.dataclass
class _Results:
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    notes: list[str]


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (list, tuple)):
        return tuple(inputs), {}
    raise TypeError(
        "verify: expected inputs to be a tensor, a sequence or a mapping of arguments, "
        f"got {type(inputs).__name__}"
    )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a module's own __deepcopy__ or __reduce__ raises
        raise RuntimeError(f"verify: the model cannot be copied: {error}") from error


def _own_dtype(model: nn.Module) -> torch.dtype | None:
    dtypes = [p.dtype for p in model.parameters() if p.dtype.is_floating_point]
    return dtypes[0] if dtypes and dtypes[0] != torch.float64 else None


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dtype: torch.dtype,
    gradients: bool,
) -> _Results:
    """Outputs and gradients of one run, with the random numbers that every run has."""
    state = [(buffer, buffer.clone()) for buffer in model.buffers()]
    leaves: dict[str, Tensor] = {}
    args = _prepared(args, dtype, "input", leaves, gradients)
    kwargs = _prepared(dict(kwargs), dtype, "input", leaves, gradients)
    model.zero_grad(set_to_none=True)
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
    notes: list[str] = []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.compiler.set_stance("force_eager"),
            torch.set_grad_enabled(gradients),
        ):
            torch.manual_seed(_SEED)
            outputs = dict(_tensors(model(*args, **kwargs), "output"))
            weighted = [v for v in outputs.values() if v.requires_grad]
            if weighted:
                _loss(weighted).backward()
            elif gradients:
                notes.append("no output has a gradient, so that none were compared")
    finally:
        with torch.no_grad():  # running statistics
            for buffer, before in state:
                buffer.copy_(before)
    found = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    found |= {f"gradient of {n}": x.grad for n, x in leaves.items() if x.grad is not None}
    detached = {name: value.detach() for name, value in outputs.items()}
    return _Results(detached, found, notes)


def _prepared(
    value: Any, dtype: torch.dtype, name: str, leaves: dict[str, Tensor], gradients: bool
) -> Any:
    """A copy of nested arguments in that dtype; floating tensors become leaves, by name."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value.clone()
        # In the layout that it has.
        leaf = value.detach().to(dtype, copy=True)
        leaves[name] = leaf.requires_grad_(gradients)
        return leaf
    if isinstance(value, dict):
        made: Any = {
            key: _prepared(one, dtype, f"{name}.{key}", leaves, gradients)
            for key, one in value.items()
        }
        return made
    if type(value) in (list, tuple):
        return type(value)(
            _prepared(one, dtype, f"{name}.{i}", leaves, gradients) for i, one in enumerate(value)
        )
    return value


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a nested result, by where they are in it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _tensors(one, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            yield from _tensors(one, f"{name}.{i}")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}")


def _loss(values: Sequence[Tensor]) -> Tensor:
    """A sum to which every element matters, each differently; the same in every run."""
    generator = torch.Generator().manual_seed(_SEED)
    terms = []
    for value in values:
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        terms.append((value * weights.to(value)).sum())
    return torch.stack(terms).sum()


def _largest(value: Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _noise(truth: _Results) -> float:
    """The magnitude below which a gradient is rounding."""
    return _NOISE * max(map(_largest, truth.gradients.values()), default=0.0)


def _compare(truth: _Results, found: _Results) -> list[Comparison]:
    noise = _noise(truth)
    comparisons = []
    for expected, actual, floor in (
        (truth.outputs, found.outputs, 0.0),
        (truth.gradients, found.gradients, noise),
    ):
        comparisons += [
            _compared(n, v, actual[n], floor) if n in actual else _lacking(n, "the unfused")
            for n, v in expected.items()
        ]
        comparisons += [_lacking(name, "the fused") for name in actual if name not in expected]
    return comparisons


def _lacking(name: str, which: str) -> Comparison:
    return Comparison(name, 0.0, math.inf, 0.0, f"only {which} model has it")


def _compared(name: str, truth: Tensor, found: Tensor, floor: float) -> Comparison:
    if truth.shape != found.shape or truth.dtype != found.dtype:
        problem = (
            f"{found.dtype} {list(found.shape)} instead of {truth.dtype} {list(truth.shape)}"
        ).replace("torch.", "")
        return Comparison(name, 0.0, math.inf, 0.0, problem)
    if not truth.is_floating_point():
        differing = int((truth != found).sum())
        problem = f"{differing} of {truth.numel()} elements differ" if differing else ""
        return Comparison(name, _largest(truth.double()), float(differing), 0.0, problem)
    finite = truth.isfinite()
    largest = _largest(truth[finite])
    others = truth[~finite], found[~finite]
    if not (torch.equal(finite, found.isfinite()) and torch.allclose(*others, equal_nan=True)):
        return Comparison(name, largest, math.inf, 0.0, "NaN or infinities at other places")
    error = _largest((truth - found)[finite])
    return Comparison(name, largest, error, testing.SWAPPED_RTOL * largest + floor)


def _precision(truth: _Results, plain: _Results, fused: _Results) -> list[Precision]:
    rows = []
    for name, exact in truth.outputs.items():
        values = [run.outputs.get(name) for run in (plain, fused)]
        if not exact.is_floating_point() or exact.numel() == 0:
            continue
        if any(v is None or v.shape != exact.shape for v in values):
            continue
        largest = _largest(exact)
        if not 0 < largest < math.inf:
            continue
        first, second = (_largest(v.double() - exact) / largest for v in values if v is not None)
        rows.append(Precision(name, first, second))
    return rows
