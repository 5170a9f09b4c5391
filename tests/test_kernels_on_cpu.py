"""Every CUDA kernel, run on the CPU by the harness, against the float64 reference.

The sources are those that nvcc compiles. Outputs are poisoned; three orders of threads must agree
bit for bit; the same cases run again under AddressSanitizer and UBSan, in a process without torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import support
import torch
from cases import CASES, EXTENDED_CASES, WINDOW_CASES, Case
from harness import build, cases_io, instances, replay
from harness.cases_io import Expected
from kernel_truth import (
    DTYPES,
    Truth,
    packed_bits,
    taken_elements,
    transposed_cases,
    within,
)
from test_support import SOURCES, sizes

from msr_cuda import Pool, _spec

TRANSPOSED = (
    _spec.Mode.NEAREST, _spec.Mode.LINEAR, _spec.Mode.LINEAR_ALIGN_CORNERS, _spec.Mode.CUBIC,
    _spec.Mode.AREA, _spec.Mode.LINEAR_ANTIALIAS,
)  # fmt: skip


def unwanted_branch() -> cases_io.Case:
    """A map that needs no gradient beside one that does; its weight still gets one."""
    case = next(c for c in CASES if c.name == "sum-weights")
    whole = Truth(case, torch.float32).spread()
    grads = whole.expected["grads"]
    assert isinstance(grads, list)
    expected = {**whole.expected, "grads": [None, grads[1]]}
    return cases_io.Case("spread, one map unwanted", whole.function,
                         {**whole.arguments, "wanted": 2}, expected, whole.kernels)  # fmt: skip


def many_reads() -> list[Case]:
    """Elements that read so much of the gradient that a whole block sums it up."""
    last = "channels_last"
    large = (3, 3, 19, 23)
    made: list[Case] = []

    def add(name: str, *shapes: tuple[int, ...], weights: tuple[int, ...] | None = None,
            layouts: tuple[str, ...] = (), bias: bool = True, **kwargs: Any) -> None:  # fmt: skip
        parameters = {"bias": (shapes[0][1],)} if bias else {}
        if weights is not None:
            parameters["weights"] = weights
        made.append(Case(name, "resample_sum", shapes, kwargs, False, layouts, parameters))

    add("bias", large, activation="leaky_relu")
    add("bias, last", large, layouts=(last,), activation="relu")
    add("bias, 1d", (2, 5, 700))
    add("bias, 3d", (2, 2, 5, 9, 7), activation="relu6")
    add("one pixel", large, (3, 3, 1, 1), weights=(2,), bias=False, mode="linear")
    add("one pixel, per channel", large, (3, 3, 1, 1), weights=(1, 2, 3), mode="linear")
    add("one pixel, per image", large, (3, 3, 1, 1), weights=(3, 2, 1), mode="linear")
    add("one image", large, (1, 3, 1, 2), weights=(3, 2, 3), mode="linear")
    add("one image, last", large, (1, 3, 2, 1), weights=(3, 2, 3), layouts=(last, last))
    add("one image, pixels", large, (1, 3, 1, 1), weights=(3, 2, 1, 19, 23), mode="cubic")
    add("long", (2, 2, 600), (2, 2, 3), (2, 2, 2500), mode="linear", antialias=True)
    add("large windows", (2, 2, 40, 30), (2, 2, 1, 1), (1, 2, 3, 2), mode="area")
    return made


def poolings_with_ties() -> list[cases_io.Case]:
    """NaN, infinities and equal elements within windows and between maps, by loops."""
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor([0.0, 1.0, 1.0, 2.0, torch.nan, torch.inf, -torch.inf, -1.0])

    def draw(*shape: int) -> torch.Tensor:
        return special[torch.randint(len(special), shape, generator=generator)]

    found = []
    for shape, pool in (
        ((2, 3, 7, 8), Pool("max", 3, 2, 1)),
        ((2, 2, 11), Pool("max", 4, 1, ((3, 0),))),
        ((1, 2, 4, 5, 6), Pool("max", 2, 2, "same")),
    ):
        x = draw(*shape)
        size = pool.output_size(shape[2:])
        windows = [n for axis, n in enumerate(shape[2:]) for n in pool.window(axis, n)[:3]]
        taken = taken_elements(x, pool, size)
        places = np.indices(taken.shape)
        kernels = windows[::3]
        elements = np.unravel_index(taken, kernels)
        source = [
            o * windows[3 * k + 1] - windows[3 * k + 2] + e
            for k, (o, e) in enumerate(zip(places[2:], elements, strict=True))
        ]
        values = x.double().numpy()[(places[0], places[1], *source)]
        common: dict[str, cases_io.Argument] = {
            "modes": np.array([_spec.MAX_POOL]), "windows": np.array(windows), "cat": 0,
            "channels_last": 0, "acc_is_double": 0,
        }  # fmt: skip
        index = Expected(taken.flatten().astype(np.uint8))
        found.append(cases_io.Case(
            f"max-pooling with ties {shape}", "gather",
            {**common, "inputs": [x.numpy()], "index": [np.zeros_like(index.values)],
             "out": np.zeros(taken.shape, np.float32)},
            {"out": Expected(values), "index": [index]},
        ))  # fmt: skip
        grad = torch.randint(-8, 8, taken.shape, generator=generator).float().numpy()
        back = np.zeros(shape)
        np.add.at(back, (places[0], places[1], *source), grad)
        found.append(cases_io.Case(
            f"gradient of a max-pooling with ties {shape}", "spread",
            {**common, "grad": grad, "index": [index.values], "grads_channels_last": 0,
             "grads": [np.zeros(shape, np.float32)], "wanted": 1},
            {"grads": [Expected(back)]},
        ))  # fmt: skip
    maps = [draw(2, 3, 4, 5) for _ in range(4)]
    winner = torch.zeros(maps[0].shape, dtype=torch.int64)
    best = maps[0]
    for i, x in enumerate(maps[1:], 1):
        better = (x > best) | (x.isnan() & ~best.isnan())
        best, winner = torch.where(better, x, best), winner.masked_fill(better, i)
    masks = np.concatenate([packed_bits(winner == i, False) for i in range(4)])
    found.append(cases_io.Case(
        "maximum with ties", "gather",
        {"modes": np.zeros(4, np.int64), "cat": 0, "reduction": 1, "channels_last": 0,
         "acc_is_double": 0, "inputs": [x.numpy() for x in maps],
         "out": np.zeros(best.shape, np.float32), "mask": np.zeros_like(masks)},
        {"out": Expected(best.double().numpy()), "mask": Expected(masks)},
    ))  # fmt: skip
    return found


def weighted_concatenations() -> list[cases_io.Case]:
    """Weights per channel of the result: those of other maps' channels have no gradient."""
    maps = [torch.randn(2, 3, 4, 6), torch.randn(2, 2, 4, 6), torch.randn(1, 4, 4, 6)]
    found = []
    for shape in ((1, 3, 9), (2, 3, 9), (2, 3, 1), (1, 2, 9)):
        weights = torch.randn(shape)
        leaves = [x.double().requires_grad_() for x in (*maps, weights)]
        terms, channel = [], 0
        for i, x in enumerate(leaves[:3]):
            factor = leaves[3][:, i] if i < shape[1] else torch.ones(1, 1)
            if factor.shape[1] > 1:
                factor = factor.narrow(1, channel, x.shape[1])
            terms.append(x.expand(2, -1, -1, -1) * factor[..., None, None])
            channel += x.shape[1]
        output = torch.cat(terms, 1)
        grad = torch.randn_like(output).float()
        truth = torch.autograd.grad(output, leaves, grad.double())
        common: dict[str, cases_io.Argument] = {
            "modes": np.zeros(3, np.int64), "cat": 1, "channels_last": 0, "acc_is_double": 0,
            "weights": weights.numpy(),
        }  # fmt: skip
        inputs: list[cases_io.ArrayLike] = [x.numpy() for x in maps]
        found.append(cases_io.Case(
            f"concatenation, weights {shape}", "gather",
            {**common, "inputs": inputs, "out": np.zeros(output.shape, np.float32)},
            {"out": within(output, torch.float32)},
        ))  # fmt: skip
        found.append(cases_io.Case(
            f"gradient of a concatenation, weights {shape}", "spread",
            {**common, "grad": grad.numpy(), "grads": [np.zeros_like(x) for x in inputs],
             "grads_channels_last": 0, "wanted": 7, "values": inputs,
             "dots": np.zeros(shape, np.float32)},
            {"grads": [within(t, torch.float32) for t in truth[:3]],
             "dots": within(truth[3], torch.float32)},
        ))  # fmt: skip
    return found


def closed_gate_takes_nan_away() -> list[cases_io.Case]:
    """Gated elements are zeros, whatever they were; others keep NaN and infinities."""
    values = np.array([np.nan, np.inf, -np.inf, 1.0] * 8, np.float32).reshape(1, 1, 4, 8)
    gate = np.arange(32).reshape(values.shape) % 3 == 0
    bits = np.packbits(gate.flatten(), bitorder="little")
    truth = Expected(np.where(gate, values, 0.0).astype(np.float64))
    common: dict[str, cases_io.Argument] = {
        "modes": np.zeros(1, np.int64), "cat": 0, "channels_last": 0, "acc_is_double": 0,
        "gate": bits,
    }  # fmt: skip
    out = np.zeros(values.shape, np.float32)
    return [
        cases_io.Case("closed gate, gather", "gather",
                      {**common, "inputs": [values], "out": out}, {"out": truth}),
        cases_io.Case("closed gate, spread", "spread",
                      {**common, "grad": values, "grads": [out], "grads_channels_last": 0,
                       "wanted": 1}, {"grads": [truth]}),
    ]  # fmt: skip


def every_mode() -> Iterator[tuple[Case, torch.dtype]]:
    """Every operator in every mode and rank, each in one layout and type: they take turns."""
    turn = 0
    for operator in ("resample", "resample_sum", "resample_cat", "resample_max"):
        for name, options in SOURCES.items():
            for rank in support.RANKS:
                pools = isinstance(options["mode"], Pool)
                if pools and operator == "resample":
                    continue  # no source of its own
                before, after = sizes(options["mode"], rank)
                kwargs = {**options, "size": after}
                if pools:
                    kwargs["mode"] = [options["mode"], "nearest"]
                layouts = [a for a in support.LAYOUTS if rank > 1 or a != "channels_last"]
                count = 1 if operator == "resample" else 2
                shapes = ((2, 3, *before), (2, 3, *after))[:count]
                # Of a maximum, halves would have ties that rounding breaks.
                dtypes = (torch.float32, torch.float64) if operator == "resample_max" else DTYPES
                layout = layouts[turn // 4 % len(layouts)]
                case = Case(f"{operator} {name} {rank}-D", operator, shapes, kwargs, False,
                            (layout,) * count)  # fmt: skip
                yield case, dtypes[turn % len(dtypes)]
                turn += 1


def whole_calls() -> Iterator[tuple[int, Case, torch.dtype]]:
    """The calls of public functions, numbered, that are run as kernels and held to the reference.

    Of the tables of cases, float32 for every case, each other type for a third of them.
    """
    for number, (case, dtype) in enumerate(every_mode()):
        yield number, case, dtype
    for number, case in enumerate([*CASES, *WINDOW_CASES, *EXTENDED_CASES, *many_reads()]):
        if 0 in case.shapes[0]:
            continue  # nothing is launched for an empty result
        for dtype in (DTYPES[0], DTYPES[1 + number % 3]):
            yield number, case, dtype


def kernel_cases() -> list[cases_io.Case]:
    torch.manual_seed(0)
    found = [
        unwanted_branch(),
        *poolings_with_ties(),
        *weighted_concatenations(),
        *closed_gate_takes_nan_away(),
    ]
    for mode in (*TRANSPOSED, Pool("avg", 3, 2, 1)):
        if isinstance(mode, Pool):
            shape, others = (2, 3, 7, 8), [(2, 3, 4, 4), (1, 3, 4, 4)]
        else:
            shape, others = (2, 3, 4, 7), [(2, 3, 9, 5), (1, 3, 3, 12)]
        found += transposed_cases(shape, others, mode, DTYPES[len(found) % 4])
    for number, case, dtype in whole_calls():
        truth = Truth(case, dtype)
        found += [truth.gather(), truth.spread()]
        if truth.pixel_weights is not None:
            found.append(truth.pixel_weight_grads())
        own = truth.weights is None or truth.weights.dim() == 1 or truth.weights.shape[0] == 1
        if number % 2 == 0 and own and truth.pixel_weights is None and truth.shape[0] > 1:
            found.append(truth.gather_by_images())
        if dtype != torch.float32:
            continue
        if number % 2 and not truth.maximum:
            found.append(truth.gated_gather())
        if truth.activation is not None:
            found.append(truth.activation_gradient())
        if number % 4 == 0:
            found.append(truth.gather_onto())
    return found


@pytest.fixture(scope="module")
def cases() -> list[cases_io.Case]:
    return kernel_cases()


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return build.load()


def test_every_kernel_matches_the_reference(module: ModuleType, cases: list[cases_io.Case]) -> None:
    for _, case, dtype in whole_calls():
        support.record_case(case, case.maps(dtype, "cpu"), "harness", 0, 1)
    module.reset_launch_counts()
    failures = replay.replay(module, cases)
    assert not failures, "\n".join(f"{f.case.name}: {f.message}" for f in failures[:10])
    assert len(instances.instances(module, __file__)) == 14  # seven kernels, two accumulators
    never = instances.never_launched(module, __file__)
    assert not never, f"never launched: {never}"


def test_every_kernel_is_clean_under_sanitizers(cases: list[cases_io.Case], tmp_path: Path) -> None:
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, cases)
    done = replay.replay_apart(path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert re.search(rf"^{len(cases)} passed, 0 failed", done.stdout, re.MULTILINE)


def test_a_wrong_expectation_fails(module: ModuleType, cases: list[cases_io.Case]) -> None:
    """The comparison sees errors just beyond the bound."""
    case = next(c for c in cases if c.name.startswith("gather "))
    good = case.expected["out"]
    assert isinstance(good, Expected)
    values = good.values.copy()
    values.flat[-1] += 3 * np.asarray(good.atol).flat[-1]
    wrong = cases_io.Case(case.name, case.function, case.arguments, {**case.expected,
                          "out": Expected(values, good.rtol, good.atol)})  # fmt: skip
    with pytest.raises(replay.CaseError, match="1 of"):
        replay.run_case(module, wrong)


@pytest.mark.parametrize("accumulate", [np.float32, np.float64])
def test_tables_of_windows_equal_the_lists(module: ModuleType, accumulate: type) -> None:
    """What the kernel writes is what the CPU kernels list, for destinations and for sources."""
    generator = random.Random(0)
    draws: list[tuple[int, int, int, float | None, tuple[int, int, int] | None]] = []
    for mode in range(_spec.LAST_TWO_TAP_MODE + 1, _spec.AVERAGE_POOL):
        follows_factor = mode not in _spec.SIZE_MODES
        draws += [(mode, 1000, 7, None, None), (mode, 7, 300, None, None), (mode, 9, 1, None, None)]
        for _ in range(25):
            size, factor = generator.randint(1, 90), generator.uniform(0.1, 5)
            out = max(1, int(size * factor))
            scale = (
                factor
                if follows_factor and generator.random() < 0.5 and size * factor >= 1
                else None
            )
            draws.append((mode, size, out, scale, None))
    for mode in (_spec.AVERAGE_POOL, _spec.AVERAGE_POOL_INSIDE):
        for _ in range(25):
            size, kernel, stride = (generator.randint(1, n) for n in (90, 7, 4))
            padding = generator.randint(0, kernel - 1)
            out = max(1, (size + 2 * padding - kernel) // stride + 1)
            if (out - 1) * stride - padding < size:
                draws.append((mode, size, out, None, (kernel, stride, padding)))
    for mode, size, out, scale, window in draws:
        if size == out and window is None:
            continue  # no windows: it is copied
        found = np.empty(4)
        module.window_table(
            mode=mode, in_size=size, out_size=out, scale=scale, found=found,
            windows=None if window is None else np.array(window),
            acc_is_double=int(accumulate == np.float64),
        )  # fmt: skip
        # Sums in another order round differently, and the largest weight takes that up.
        worst = 4 * np.finfo(accumulate).eps + found[3] * np.finfo(np.float64).eps
        assert (found[:2] <= worst).all(), (mode, size, out, scale, window, found)
        assert found[2] >= found[3], (mode, size, out, scale, window, found)


@pytest.mark.parametrize("channels_last", [False, True])
def test_positions_beyond_2_31_elements(module: ModuleType, channels_last: bool) -> None:
    """Offsets decode and encode exactly for maps far beyond what fits into memory."""
    generator = random.Random(0)
    sizes = [
        (3, 5, 1, 70_000, 80_001), (1, 1, 1, 1, 2**31 - 2), (7, 2**20 + 1, 3, 1111, 999),
        (2, 3, 2**15, 2**15, 2**15 + 1), (1, 2**33, 1, 2, 3), (2**33, 1, 1, 1, 1),
    ]  # fmt: skip
    for size in sizes:
        total = int(np.prod(size, dtype=object))
        offsets = [0, 1, total - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1]
        offsets += [generator.randrange(total) for _ in range(200)]
        offsets = [o for o in offsets if o < total]
        found = np.zeros((len(offsets), 6), np.int64)
        module.positions(size=np.array(size), offsets=np.array(offsets), found=found,
                         channels_last=channels_last)  # fmt: skip
        order = (0, 2, 3, 4, 1) if channels_last else (0, 1, 2, 3, 4)
        for offset, row in zip(offsets, found.tolist(), strict=True):
            expected, rest = [0] * 5, offset
            for axis in reversed(order):
                rest, expected[axis] = divmod(rest, size[axis])
            assert row == [*expected, offset], (size, offset)
