"""The CUDA kernels of losses of resampled logits, run on the CPU by the harness.

Held to PyTorch's losses of the float64 reference's upsampled logits, poisoned, in three orders of
threads, and again under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import build, cases_io, instances, replay
from harness.cases_io import Expected
from kernel_truth import DTYPES, empty, with_gaps, within
from torch import Tensor

from msr_cuda import _spec, reference, testing
from msr_cuda._spec import Mode

MODES = (
    Mode.LINEAR, Mode.NEAREST, Mode.LINEAR_ALIGN_CORNERS, Mode.NEAREST_EXACT, Mode.CUBIC, Mode.AREA,
)  # fmt: skip
#: Logits' sizes and the result's: up, down, to the same, unevenly, of one element.
SIZES = (
    ((7,), (29,)), ((23,), (6,)), ((1,), (300,)),
    ((3, 5), (6, 10)), ((4, 6), (16, 24)), ((9, 7), (5, 4)), ((5, 4), (5, 9)), ((3, 4), (3, 4)),
    ((1, 1), (7, 5)), ((6, 5), (1, 13)), ((3, 130), (5, 150)), ((13, 3), (30, 4)),
    ((2, 3, 4), (4, 6, 8)), ((3, 4, 2), (5, 2, 7)),
)  # fmt: skip
CLASSES = (1, 2, 7, 8, 9, 17, 33)
LAYOUTS = ("contiguous", "channels_last", "gaps")
REDUCTIONS = ("none", "mean", "sum")
#: In the order of IndexType. The harness carries int16 as uint16.
INDEX_TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
#: LogitWay in csrc/kernels/loss_launch.h.
GENERAL, SHARED = 1, 2
#: 0: as many as the launcher finds best, which for maps of so few logits is one.
STRIP_ROWS = itertools.cycle((2, 0, 3, 1, 16, 5))
KERNEL_TYPES = {
    torch.float32: "float", torch.float16: "msr::Half", torch.bfloat16: "msr::BFloat16",
    torch.float64: "double",
}  # fmt: skip


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def lay_out(values: Tensor, layout: str) -> Tensor:
    if layout == "gaps":
        return with_gaps(values)
    strides = _spec.dense_strides(tuple(values.shape), layout == "channels_last")
    return torch.empty_strided(values.shape, strides, dtype=values.dtype).copy_(values)


def carried(tensor: Tensor) -> cases_io.ArrayLike:
    return cases_io.from_torch(tensor.view(torch.uint16) if tensor.dtype == torch.int16 else tensor)


@dataclass
class Logits:
    """Logits, and the same in float64 at the size of the result."""

    values: Tensor
    size: tuple[int, ...]
    mode: Mode

    def __post_init__(self) -> None:
        self.dtype = self.values.dtype
        self.accumulate = accumulation(self.dtype)
        self.classes = self.values.shape[1]
        self.pixels = (self.values.shape[0], *self.size)
        self.leaf = self.values.double().requires_grad_()
        self.resampled = reference.resample_map(self.leaf, self.size, self.mode)
        self.outer = self.resampled.detach().requires_grad_()
        self.name = (
            f"{self.mode.name} {tuple(self.values.shape)} to {self.size} {self.dtype} "
            f"{self.values.stride()}"
        )

    def has_pairs(self) -> bool:
        """Whether no axis has more than two taps."""
        return self.mode <= _spec.LAST_TWO_TAP_MODE or self.values.shape[2:] == self.pixels[1:]

    def shared(self, general: cases_io.Case, fits: bool = True) -> list[cases_io.Case]:
        """A forward call by the general kernel and, where that is possible, by columns."""
        rows, high = (1, *self.values.shape[2:])[-2], (1, *self.size)[-2]
        found = [replace(general, arguments={**general.arguments, "way": GENERAL})]
        if fits and self.has_pairs() and high >= 2 * rows:
            kernels = [k.replace("_kernel<", "_columns_kernel<", 1) if i == 0 else k
                       for i, k in enumerate(general.kernels)]  # fmt: skip
            found.append(replace(general, name=f"by columns: {general.name}", kernels=kernels,
                                 arguments={**general.arguments, "way": SHARED}))  # fmt: skip
        return found

    def arguments(self) -> dict[str, cases_io.Argument]:
        return {
            "logits": cases_io.from_torch(self.values),
            "size": np.array(self.size),
            "mode": int(self.mode),
        }

    def kernels(self, name: str, *others: str) -> list[str]:
        own = "double" if self.dtype == torch.float64 else "float"
        found = [f"msr::{name}<{KERNEL_TYPES[self.dtype]}>"]
        return [*found, *(f"msr::{other}<{own}>" for other in ("window_tables_kernel", *others))]

    def backward(
        self, what: str, loss: Tensor, grad: Tensor, channels_last: bool,
        arguments: dict[str, cases_io.Argument], wrong: Tensor | None = None,
    ) -> list[cases_io.Case]:  # fmt: skip
        """The gradient of ``loss``, which was made of :attr:`outer`; NaN where ``wrong`` pixels
        read. Gathered and, where that is possible, in strips."""
        (inner,) = torch.autograd.grad(loss, self.outer, grad.double())
        (truth,) = torch.autograd.grad(self.resampled, self.leaf, inner, retain_graph=True)
        if wrong is not None:
            reading = (self.resampled * wrong.unsqueeze(1)).sum()
            (read,) = torch.autograd.grad(reading, self.leaf, retain_graph=True)
            truth = truth.masked_fill(read != 0, torch.nan)
        norm = testing.gradient_term_norm(inner, self.values.shape, self.mode)
        shape = tuple(self.values.shape)
        gathered = cases_io.Case(
            f"gradient of {what} {self.name}", f"{what}_backward",
            {
                **self.arguments(), **arguments, "grad": cases_io.from_torch(grad),
                "logit_grads": empty(shape, channels_last, self.dtype),
                "channels_last": int(channels_last), "way": GENERAL,
            },
            {"logit_grads": within(truth, self.dtype, norm)},
            self.kernels(f"{what}_backward_kernel"),
        )  # fmt: skip
        kernel = f"{what}_strips_kernel" if self.has_pairs() else f"{what}_backward_kernel"
        rows = next(STRIP_ROWS)
        best = replace(
            gathered, name=f"best, strips of {rows}: {gathered.name}", kernels=self.kernels(kernel),
            arguments={**gathered.arguments, "way": SHARED, "strip_rows": rows},
        )  # fmt: skip
        return [gathered, best]


def cross_entropy(
    logits: Logits,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    smoothing: float = 0.0,
    reduction: str = "mean",
    channels_last: bool = False,
    bad: int | None = None,
) -> list[cases_io.Case]:
    """Forward and backward. bad: the value of targets that are no classes; the truth ignores them,
    but for NaN in their places."""
    soft = target.is_floating_point()
    weight64 = None if weight is None else weight.double()
    given: dict[str, Any] = {"label_smoothing": smoothing, "ignore_index": ignore_index}
    known = target.double() if soft else target.long()
    wrong = torch.zeros(logits.pixels, dtype=torch.bool)
    if bad is not None:
        wrong = known == bad
        known = known.masked_fill(wrong, 0)
    loss = F.cross_entropy(logits.outer, known, weight64, reduction="none", **given)
    losses = loss.masked_fill(wrong, torch.nan)
    divisor = torch.ones((), dtype=torch.float64)
    if reduction == "mean" and soft:
        divisor = divisor * loss.numel()
    elif reduction == "mean":
        counted = (known != ignore_index) & ~wrong
        weights = torch.ones(logits.classes).double() if weight64 is None else weight64
        divisor = weights[known.masked_fill(~counted, 0)][counted].sum()
    shares = torch.zeros(0)
    if soft:
        weights = torch.ones(logits.classes).double() if weight64 is None else weight64
        spread = (1 - smoothing) * known + smoothing / logits.classes
        shares = (spread * weights.view(1, -1, *[1] * len(logits.size))).sum(1)
    lse = logits.outer.logsumexp(1)
    lse = lse.masked_fill(lse == torch.inf, torch.nan)  # as the loss is
    result = losses if reduction == "none" else losses.sum() / divisor
    arguments: dict[str, cases_io.Argument] = {
        "target": carried(target), "ignore_index": ignore_index, "label_smoothing": smoothing,
        "index_type": None if soft else INDEX_TYPES.index(target.dtype),
        "weight": None if weight is None else weight.to(logits.accumulate).numpy(),
    }  # fmt: skip
    expected = {
        "loss": within(result, logits.accumulate), "lse": within(lse, logits.accumulate),
        "divisor": within(divisor, logits.accumulate),
        "bad_target": Expected(np.array([0, 0] if bad is None else [bad, 1])),
    }  # fmt: skip
    if soft:
        expected["target_sums"] = within(shares, logits.accumulate)
    outputs = {
        name: np.zeros(e.values.shape, np.int64 if name == "bad_target" else
                       str(logits.accumulate).removeprefix("torch."))
        for name, e in expected.items()
    }  # fmt: skip
    what = f"{target.dtype} {reduction} smoothing {smoothing} weights {weight is not None}"
    forward = cases_io.Case(
        f"cross_entropy {what} {logits.name}", "cross_entropy",
        {**logits.arguments(), **arguments, **outputs, "reduction": REDUCTIONS.index(reduction)},
        expected, logits.kernels("cross_entropy_kernel", "loss_totals_kernel"),
    )  # fmt: skip
    grad = torch.randn(logits.pixels)
    if reduction != "none":  # one for all
        grad = torch.randn(()).expand(logits.pixels)
    grad = grad.to(logits.accumulate)
    saved: dict[str, cases_io.Argument] = {"lse": lse.detach().to(logits.accumulate).numpy()}
    if soft:
        saved["target_sums"] = shares.detach().to(logits.accumulate).numpy()
    backward = logits.backward(
        "cross_entropy", loss, grad, channels_last, {**arguments, **saved},
        None if bad is None else wrong,
    )  # fmt: skip
    return [*logits.shared(forward, fits=not soft), *backward]


def binary_cross_entropy(
    logits: Logits,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    channels_last: bool,
) -> list[cases_io.Case]:
    shape = tuple(logits.resampled.shape)
    factors = {"weight": weight, "pos_weight": pos_weight}
    exact = {name: None if f is None else f.double() for name, f in factors.items()}
    loss = F.binary_cross_entropy_with_logits(
        logits.outer, target.double(), reduction="none", **exact
    )
    result = {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]
    arguments: dict[str, cases_io.Argument] = {
        name: None if f is None else f.to(logits.accumulate).expand(shape).numpy()
        for name, f in factors.items()
    }
    if target.dtype == torch.bool:
        target = target.view(torch.uint8)
    arguments["target"] = cases_io.from_torch(target)
    dtype = str(logits.accumulate).removeprefix("torch.")
    totals = [] if reduction == "none" else ["loss_totals_kernel"]
    what = f"{target.dtype} {reduction} {[n for n, f in factors.items() if f is not None]}"
    forward = cases_io.Case(
        f"binary_cross_entropy {what} {logits.name}", "binary_cross_entropy",
        {**logits.arguments(), **arguments, "reduction": REDUCTIONS.index(reduction),
         "loss": np.zeros(result.shape, dtype)},
        {"loss": within(result, logits.accumulate)},
        logits.kernels("binary_cross_entropy_kernel", *totals),
    )  # fmt: skip
    grad = torch.randn(shape) if reduction == "none" else torch.randn(()).expand(shape)
    grad = grad.to(logits.accumulate)
    backward = logits.backward("binary_cross_entropy", loss, grad, channels_last, arguments)
    return [forward, *backward]


def argmax(logits: Logits, dtype: torch.dtype, with_probability: bool) -> list[cases_io.Case]:
    index = logits.outer.detach().argmax(1)
    expected = {"index": Expected(index.to(dtype).numpy())}
    outputs: dict[str, cases_io.Argument] = {
        "index": np.zeros(index.shape, expected["index"].values.dtype)
    }
    if with_probability:
        probability = logits.outer.detach().softmax(1).amax(1)
        expected["probability"] = within(probability, logits.accumulate)
        outputs["probability"] = np.zeros(
            probability.shape, str(logits.accumulate).removeprefix("torch.")
        )
    general = cases_io.Case(
        f"argmax {dtype} {with_probability} {logits.name}", "argmax",
        {**logits.arguments(), **outputs, "index_type": INDEX_TYPES.index(dtype)},
        expected, logits.kernels("argmax_kernel"),
    )  # fmt: skip
    return logits.shared(general)


def drawn() -> Iterator[cases_io.Case]:
    """Every mode with every size; all else takes turns."""
    turns = [itertools.cycle(values) for values in (
        DTYPES, CLASSES, LAYOUTS, REDUCTIONS, (0.0, 0.1, 0.0, 1.0), INDEX_TYPES,
        ("indices", "ignored", "soft", "indices", "soft"),
    )]  # fmt: skip
    for mode, (before, after) in itertools.product(MODES, SIZES):
        dtype, classes, layout, reduction, smoothing, index, kind = (next(t) for t in turns)
        batch = int(torch.randint(1, 4, ()))
        if layout == "channels_last" and len(before) == 1:
            layout = "gaps"
        values = (torch.randn(batch, classes, *before) * 2).to(dtype)
        logits = Logits(lay_out(values, layout), after, mode)
        weight = torch.rand(classes) if torch.rand(()) < 0.5 else None
        channels_last = bool(torch.rand(()) < 0.5) and len(before) > 1
        ignore = -100
        if kind == "soft":
            target = torch.randn(batch, classes, *after).softmax(1).to(DTYPES[classes % 4])
        else:
            target = torch.randint(0, classes, (batch, *after)).to(index)
            if kind == "ignored":
                ignore = 255
                target[torch.rand(target.shape) < 0.3] = ignore
                target.view(-1)[0] = 0  # something counts
        if torch.rand(()) < 0.3:
            target = with_gaps(target)
        yield from cross_entropy(
            logits, target, weight, ignore, smoothing, reduction, channels_last
        )
        mask = torch.rand(batch, classes, *after)
        mask = mask < 0.3 if kind == "indices" else mask.to(DTYPES[classes % 4])
        own = (classes, *[1] * len(after))
        yield from binary_cross_entropy(
            logits, mask, torch.rand(own) if kind != "soft" else None,
            torch.rand(mask.shape) + 0.5 if smoothing else None, reduction, channels_last,
        )  # fmt: skip
        yield from argmax(logits, (torch.int64, torch.int32, torch.uint8)[classes % 3], batch != 2)


def targets_that_are_no_classes() -> Iterator[cases_io.Case]:
    for bad, dtype in (
        (3, torch.int64),
        (-1, torch.int64),
        (255, torch.uint8),
        (-100, torch.int32),
    ):
        for reduction in REDUCTIONS:
            logits = Logits(torch.randn(2, 3, 4, 5), (8, 10), Mode.LINEAR)
            target = torch.randint(0, 3, logits.pixels).to(dtype)
            target[1, 2, 3] = bad
            yield from cross_entropy(logits, target, torch.rand(3), ignore_index=2, bad=bad,
                                     smoothing=0.1, reduction=reduction)  # fmt: skip


def nothing_counts() -> Iterator[cases_io.Case]:
    logits = Logits(torch.randn(1, 3, 4, 5), (8, 10), Mode.NEAREST)
    target = torch.full(logits.pixels, 255, dtype=torch.uint8)
    for reduction in REDUCTIONS:
        yield from cross_entropy(logits, target, ignore_index=255, reduction=reduction)


def empty_batches() -> Iterator[cases_io.Case]:
    """Nothing but totals is launched: the mean of nothing is NaN, its sum zero."""
    logits = Logits(torch.randn(0, 3, 4, 5), (8, 10), Mode.LINEAR)
    for reduction in ("mean", "sum"):
        for case in (
            cross_entropy(logits, torch.zeros(logits.pixels, dtype=torch.int64),
                          reduction=reduction)[0],
            binary_cross_entropy(logits, torch.rand(0, 3, 8, 10), None, None, reduction, False)[0],
        ):  # fmt: skip
            yield replace(case, kernels=["msr::loss_totals_kernel<float>"])


def logits_that_are_not_finite() -> Iterator[cases_io.Case]:
    for value, chosen in itertools.product(
        (torch.inf, -torch.inf, torch.nan), ([7], list(range(20)), list(range(10)))
    ):
        values = torch.randn(1, 20, 3, 4)
        values[0, chosen, 1, 2] = value
        logits = Logits(values, (6, 8), Mode.NEAREST)
        target = torch.randint(0, 20, logits.pixels)
        yield from cross_entropy(logits, target, reduction="none")[:2]
        yield from argmax(logits, torch.int64, with_probability=False)


def ties() -> Iterator[cases_io.Case]:
    """Of equal classes the first."""
    values = torch.randint(0, 2, (2, 19, 4, 4)).float()
    for dtype in (torch.uint8, torch.int32):
        yield from argmax(Logits(values, (9, 7), Mode.NEAREST), dtype, with_probability=True)


def large_ones() -> Iterator[cases_io.Case]:
    """Exponentials that would overflow."""
    values = torch.randn(1, 30, 3, 3, dtype=torch.float64) * 300
    logits = Logits(values, (6, 6), Mode.LINEAR)
    target = torch.randint(0, 30, logits.pixels)
    yield from cross_entropy(logits, target, reduction="none")
    mask = torch.rand(1, 30, 6, 6)
    yield from binary_cross_entropy(logits, mask, None, None, "sum", False)


def more_than_the_grid() -> cases_io.Case:
    """More pixels than a launch has threads: some take several turns."""
    logits = Logits(torch.randn(1, 1, 3, 7), (1025, 1030), Mode.NEAREST)
    assert logits.size[0] * logits.size[1] > 4096 * 256
    target = torch.zeros(logits.pixels, dtype=torch.uint8)
    target[:, 1000:] = 9
    return cross_entropy(logits, target, ignore_index=9)[0]


def loss_cases() -> list[cases_io.Case]:
    torch.manual_seed(0)
    return [
        *drawn(),
        *targets_that_are_no_classes(),
        *nothing_counts(),
        *empty_batches(),
        *logits_that_are_not_finite(),
        *ties(),
        *large_ones(),
    ]


@pytest.fixture(scope="module")
def cases() -> list[cases_io.Case]:
    return loss_cases()


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return build.load()


def test_every_kernel_matches_the_reference(module: ModuleType, cases: list[cases_io.Case]) -> None:
    module.reset_launch_counts()
    failures = replay.replay(module, cases)
    assert not failures, "\n".join(f"{f.case.name}: {f.message}" for f in failures[:10])
    # Nine kernels for four types, and what sums up for two accumulators.
    assert len(instances.instances(module, __file__)) == 38
    never = instances.never_launched(module, __file__)
    assert not never, f"never launched: {never}"


def test_threads_take_several_turns(module: ModuleType) -> None:
    replay.run_case(module, more_than_the_grid(), replay.ORDERS[:1])


def test_every_kernel_is_clean_under_sanitizers(cases: list[cases_io.Case], tmp_path: Path) -> None:
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, cases)
    done = replay.replay_apart(path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert re.search(rf"^{len(cases)} passed, 0 failed", done.stdout, re.MULTILINE)
