"""EXPAND, the fast gather-sum: every instance against the general kernel, bit for bit.

The general kernel is held to the reference here too, so what agrees with it is right. Both run on
the CPU by the harness, poisoned, in three orders of threads, and again under sanitizers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, Shape
from harness import build, cases_io, instances, replay
from harness.cases_io import Expected
from kernel_truth import Truth
from torch import Tensor

from msr_cuda import Pool

#: GatherKernel in csrc/kernels/launch.h; those of channels_last results are even.
PLANAR, CHANNELS_LAST, EXTENDED, EXTENDED_LAST, WINDOWS, WINDOWS_LAST = range(1, 7)
KERNEL_NAMES = {torch.float16: "msr::Half", torch.bfloat16: "msr::BFloat16", torch.float32: "float"}
MAX_VARIANTS = 64

Variant = tuple[int, int, int]  # kernel, elements side by side, sources


@dataclass(frozen=True)
class ExpandCase(Case):
    """A case whose maps may begin off every alignment, cut into strips and turns as told.

    ``what``: the method of :class:`kernel_truth.Truth` that makes the call.
    """

    misaligned: bool = False
    steps: int = 0
    turns: int = 0
    what: str = "gather"

    def maps(self, dtype: torch.dtype, device: str, *, requires_grad: bool = False) -> list[Tensor]:
        maps = super().maps(dtype, device)
        if self.misaligned:
            maps = [one_element_later(x) for x in maps]
        return [x.requires_grad_(requires_grad) for x in maps]


def one_element_later(x: Tensor) -> Tensor:
    """The same map, one element off where it was in its memory."""
    room = torch.zeros(x.numel() + 1, dtype=x.dtype)
    view = room.as_strided(x.shape, x.stride(), 1)
    view.copy_(x)
    return view.detach()


def expand_cases() -> list[ExpandCase]:
    cases: list[ExpandCase] = []

    def add(name: str, operator: str, *shapes: Shape, weights: bool = False, last: bool = False,
            steps: int = 0, turns: int = 0, misaligned: bool = False, gated: bool = False,
            layouts: tuple[str, ...] = (), **kwargs: Any) -> None:  # fmt: skip
        if last:
            layouts = ("channels_last",) * len(shapes)
        cases.append(ExpandCase(name, operator, shapes, kwargs, weights, layouts,
                                misaligned=misaligned, steps=steps, turns=turns,
                                what="gated_gather" if gated else "gather"))  # fmt: skip

    corners = dict(mode="linear", align_corners=True)
    modes: list[dict[str, Any]] = [
        dict(mode="nearest"), dict(mode="nearest-exact"), dict(mode="linear"), corners,
    ]  # fmt: skip
    for number, arguments in enumerate(modes):
        label = arguments["mode"] + ("-corners" if "align_corners" in arguments else "")
        for last in (False, True):
            where = label + ("-last" if last else "")
            # Wide enough for the widest vectors, and channels for them.
            add(f"{where}-up", "resample", (2, 8, 5, 7), size=(13, 16), last=last, **arguments)
            add(f"{where}-down", "resample", (1, 8, 40, 37), size=(9, 8), last=last, **arguments)
            add(f"{where}-factor", "resample", (2, 3, 7, 5), scale_factor=1.5, last=last,
                **arguments)  # fmt: skip
            add(f"{where}-3d", "resample", (2, 8, 2, 3, 4), size=(5, 4, 8), last=last, steps=2,
                **arguments)  # fmt: skip
            add(f"{where}-sum", "resample_sum", (2, 8, 6, 8), (2, 8, 3, 4), weights=True, turns=2,
                steps=3, last=last, activation="relu", **arguments)  # fmt: skip
        factor = (2, 3, 4, 8)[number]
        add(f"{label}-x{factor}", "resample_sum", (1, 2, 3 * factor, 8 * factor), (1, 2, 3, 8),
            steps=4, **arguments)  # fmt: skip
        add(f"{label}-1d", "resample", (3, 5, 9), size=24, **arguments)

    linear = dict(mode="linear")
    add("one-row", "resample", (2, 2, 1, 5), size=(1, 16), **linear)
    add("one-row-to-many", "resample", (2, 2, 1, 5), size=(6, 8), **linear)
    add("one-column", "resample", (2, 2, 5, 1), size=(9, 1), **linear)
    add("one-column-to-many", "resample", (2, 2, 5, 1), size=(9, 8), **linear)
    add("one-pixel", "resample_sum", (2, 8, 4, 8), (2, 8, 1, 1), **linear)
    add("one-pixel-last", "resample_sum", (2, 8, 4, 8), (2, 8, 1, 1), last=True, **linear)
    add("odd", "resample", (1, 3, 5, 7), size=(13, 11), **linear)
    add("odd-last", "resample", (1, 3, 5, 7), size=(13, 11), last=True, **linear)
    add("down-100-37", "resample", (1, 1, 100, 20), size=(37, 8), steps=5, **linear)
    add("one-axis", "resample", (2, 8, 4, 8), size=(9, 8), **linear)
    add("other-axis", "resample", (2, 8, 4, 8), size=(4, 24), **linear)
    add("one-axis-last", "resample", (2, 8, 4, 8), size=(4, 24), last=True, **linear)
    add("same-size", "resample_sum", (2, 8, 5, 8), (2, 8, 5, 8), (2, 8, 5, 8), weights=True)
    add("same-size-last", "resample_sum", (2, 8, 5, 3), (2, 8, 5, 3), last=True)
    add("wide", "resample_sum", (1, 1, 3, 1160), (1, 1, 2, 300), steps=1, **linear)  # two tiles
    add("wide-relu", "resample_sum", (1, 2, 3, 552), (1, 2, 2, 300), activation="relu")
    add("many-channels-last", "resample", (1, 1096, 2, 2), size=(3, 3), last=True, **linear)

    add("two", "resample_sum", (2, 8, 6, 16), (2, 8, 3, 7), (2, 8, 9, 5), steps=4, weights=True,
        **linear)  # fmt: skip
    add("four-last", "resample_sum", (2, 8, 6, 5), *[(2, 8, 2 + i, 3) for i in range(4)], last=True,
        activation="relu", **linear)  # fmt: skip
    add("eight", "resample_sum", *[(1, 4, 1 + i, 9 - i) for i in range(8)], size=(5, 8),
        weights=True, activation="relu", **linear)  # fmt: skip
    add("eight-last", "resample_sum", *[(1, 8, 1 + i, 9 - i) for i in range(8)], size=(5, 6),
        last=True, gated=True, **linear)  # fmt: skip
    add("eight-nearest", "resample_sum", *[(1, 8, 1 + i, 9 - i) for i in range(8)], size=(5, 6))
    add("mixed-modes", "resample_sum", (2, 8, 6, 8), (2, 8, 3, 3), (2, 8, 4, 4), steps=2,
        mode=["nearest", "linear", "nearest-exact"], align_corners=[None, True, None])  # fmt: skip
    add("mixed-modes-last", "resample_sum", (2, 8, 6, 6), (2, 8, 3, 3), (2, 8, 4, 4), last=True,
        mode=["nearest", "nearest", "linear"])  # fmt: skip
    add("batch-broadcast", "resample_sum", (3, 8, 4, 8), (1, 8, 2, 2), weights=True, **linear)
    add("gated", "resample_sum", (2, 3, 6, 12), (2, 3, 3, 5), gated=True, weights=True, **linear)
    add("gated-nearest-last", "resample_sum", (2, 12, 6, 5), (2, 12, 3, 5), gated=True, last=True)
    add("relu-3d", "resample_sum", (1, 2, 4, 3, 8), (1, 2, 2, 2, 2), activation="relu", steps=2,
        **linear)  # fmt: skip
    add("relu-one-channel", "resample_sum", (3, 1, 3, 8), (3, 1, 2, 3), activation="relu", **linear)

    add("cat-skip", "resample_cat", (2, 4, 4, 4), (2, 3, 8, 8), size=(8, 8), steps=3)
    add("cat-linear", "resample_cat", (2, 3, 8, 8), (2, 5, 4, 4), (2, 0, 2, 2), (2, 8, 5, 3),
        activation="relu", **linear)  # fmt: skip
    add("cat-unaligned-last", "resample_cat", (2, 3, 6, 8), (2, 5, 3, 3), (2, 8, 2, 2), last=True,
        **linear)  # fmt: skip
    add("cat-aligned-last", "resample_cat", (2, 8, 6, 8), (2, 16, 3, 3), (2, 8, 2, 2), last=True,
        activation="relu", **linear)  # fmt: skip
    add("cat-3d", "resample_cat", (1, 2, 2, 3, 4), (1, 1, 4, 6, 8), size=(4, 6, 8), **linear)

    for last in (False, True):
        add(f"misaligned{'-last' * last}", "resample_sum", (2, 8, 6, 8), (2, 8, 3, 4), last=last,
            misaligned=True, activation="relu", **linear)  # fmt: skip
    add("misaligned-nearest", "resample_sum", (2, 8, 6, 8), (2, 8, 3, 4), misaligned=True)
    add("strided-source", "resample_sum", (2, 8, 6, 8), (2, 8, 3, 4), **linear,
        layouts=("contiguous", "strided"))  # fmt: skip
    add("strided-base", "resample_sum", (2, 8, 6, 8), (2, 8, 3, 4), **linear,
        layouts=("strided", "contiguous"))  # fmt: skip
    add("other-layout", "resample_sum", (2, 8, 6, 8), (2, 8, 3, 4), **linear,
        layouts=("contiguous", "channels_last"))  # fmt: skip
    add("tokens", "resample_sum", (2, 8, 6, 8), (2, 8, 3, 4), **linear,
        layouts=("channels_last", "tokens"))  # fmt: skip
    return cases


def extended_cases() -> list[ExpandCase]:
    """What the plain kernels do not know."""
    cases: list[ExpandCase] = []

    def add(name: str, operator: str, *shapes: Shape, last: bool = False, what: str = "gather",
            steps: int = 0, turns: int = 0, misaligned: bool = False,
            **kwargs: Any) -> None:  # fmt: skip
        parameters = {k: kwargs.pop(k) for k in ("weights", "scale", "bias") if k in kwargs}
        layouts = ("channels_last",) * len(shapes) if last else ()
        cases.append(ExpandCase(name, operator, shapes, kwargs, False, layouts, parameters,
                                misaligned, steps, turns, what))  # fmt: skip

    pair = ((2, 8, 6, 8), (2, 8, 3, 4))
    linear, corners = dict(mode="linear"), dict(mode="linear", align_corners=True)
    for last in (False, True):
        end = "-last" * last
        add(f"weights-sc{end}", "resample_sum", *pair, last=last, weights=(2, 8), steps=4,
            activation="relu6", out_scale=4.0, **linear)  # fmt: skip
        add(f"weights-nsc-bias{end}", "resample_sum", *pair, last=last, weights=(2, 2, 8),
            bias=(8,), turns=2, activation="leaky_relu", **corners)  # fmt: skip
        add(f"affine{end}", "resample_sum", *pair, last=last, scale=(8,), bias=(8,),
            activation="hardswish", out_scale=3.0)  # fmt: skip
        add(f"weights-bias{end}", "resample_sum", *pair, (2, 8, 2, 2), last=last, weights=(3,),
            bias=(8,), activation="gelu", **linear)  # fmt: skip
        add(f"pixels{end}", "resample_sum", *pair, last=last, weights=(2, 2, 1, 6, 8), steps=4,
            scale=(8,), bias=(8,), activation="sigmoid", **linear)  # fmt: skip
        add(f"pixels-broadcast{end}", "resample_sum", *pair, (1, 8, 1, 1), last=last,
            weights=(1, 3, 1, 6, 8), normalize="softmax", **linear)  # fmt: skip
        add(f"pixels-nearest{end}", "resample_sum", *pair, (2, 8, 6, 8), last=last,
            weights=(2, 3, 1, 6, 8), activation="relu")  # fmt: skip
        add(f"pooled{end}", "resample_cat", *pair, (2, 16, 1, 1), last=last, size=(6, 8),
            activation="silu", **linear)  # fmt: skip
        add(f"constants{end}", "resample_sum", *pair, (2, 8, 1, 1), (1, 8, 1, 1), last=last,
            weights=(2, 4, 8), bias=(8,), **linear)  # fmt: skip
        add(f"constant{end}", "resample", (2, 8, 1, 1), last=last, size=(6, 8), **linear)
        add(f"six{end}", "resample_sum", *pair, *[pair[1]] * 4, (2, 8, 6, 8), last=last, bias=(8,),
            activation="silu", **linear)  # fmt: skip
        add(f"onto{end}", "resample_sum", *pair, last=last, what="gather_onto", activation="silu",
            **linear)  # fmt: skip
        add(f"into-slice{end}", "resample_sum", *pair, last=last, what="into_slice",
            activation="relu", **linear)  # fmt: skip
        add(f"gated-leaky{end}", "resample_sum", *pair, last=last, what="gated_gather",
            activation="leaky_relu", **linear)  # fmt: skip
        for activation in ("relu", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid"):
            add(f"slope-{activation}{end}", "resample_sum", *pair, last=last, steps=4,
                what="activation_gradient", activation=activation, out_scale=3.0,
                **linear)  # fmt: skip
        add(f"slope-bias{end}", "resample_sum", *pair, pair[1], last=last, bias=(8,),
            what="activation_gradient", activation="silu", mode="nearest")  # fmt: skip
        add(f"misaligned-silu{end}", "resample_sum", *pair, last=last, misaligned=True, bias=(8,),
            activation="silu", **linear)  # fmt: skip
        add(f"silu-3d{end}", "resample_sum", (2, 8, 3, 4, 8), (1, 8, 2, 2, 4), last=last, bias=(8,),
            activation="silu", steps=2, **linear)  # fmt: skip
        add(f"silu-1d{end}", "resample_sum", (2, 8, 16), (2, 8, 5), (2, 8, 1), activation="silu",
            weights=(2, 3, 8), **linear)  # fmt: skip
        # Windows.
        cubic = dict(mode="cubic")
        add(f"cubic{end}", "resample_sum", (2, 8, 10, 16), (2, 8, 5, 8), last=last, steps=4,
            activation="relu", **cubic)  # fmt: skip
        add(f"cubic-corners{end}", "resample", (2, 8, 5, 6), last=last, size=(11, 16), turns=2,
            align_corners=True, **cubic)  # fmt: skip
        add(f"cubic-down{end}", "resample", (1, 8, 40, 37), last=last, size=(9, 8), **cubic)
        add(f"cubic-factor{end}", "resample", (2, 3, 7, 5), last=last, scale_factor=1.5, **cubic)
        add(f"cubic-small{end}", "resample_sum", (2, 8, 6, 8), (1, 8, 2, 3), last=last, bias=(8,),
            weights=(2, 2, 8), activation="gelu", **cubic)  # fmt: skip
        add(f"cubic-pixels{end}", "resample_sum", *pair, last=last, weights=(2, 2, 1, 6, 8),
            **cubic)  # fmt: skip
        add(f"cubic-one-axis{end}", "resample", (2, 8, 4, 8), last=last, size=(9, 8), **cubic)
        add(f"cubic-other-axis{end}", "resample", (2, 8, 4, 8), last=last, size=(4, 24), **cubic)
        add(f"cubic-slope{end}", "resample_sum", *pair, last=last, activation="silu",
            what="activation_gradient", **cubic)  # fmt: skip
        add(f"area{end}", "resample", (2, 8, 5, 7), last=last, size=(9, 16), mode="area")
        add(f"area-half{end}", "resample_sum", (2, 8, 3, 8), (2, 8, 6, 16), last=last, mode="area")
        add(f"antialias{end}", "resample", (2, 8, 5, 7), last=last, size=(9, 16), antialias=True,
            **linear)  # fmt: skip
        add(f"pool{end}", "resample_sum", (2, 8, 4, 8), (2, 8, 7, 15), last=last,
            mode=["nearest", Pool("avg", 3, 2, 1)])  # fmt: skip
        add(f"cat-windows{end}", "resample_cat", (2, 8, 6, 8), (2, 8, 3, 4), (2, 8, 2, 3),
            (2, 8, 1, 1), last=last, mode=["nearest", "cubic", "linear", "area"],
            activation="relu")  # fmt: skip
    add("cubic-1d", "resample", (2, 5, 7), size=16, mode="cubic")

    # Masks of rows that are no whole bytes.
    for height, width in ((6, 12), (4, 42), (7, 7), (14, 14), (25, 42), (3, 6), (2, 4)):
        for number, (mode, activation) in enumerate((("nearest", "relu"), ("linear", "relu6"))):
            add(f"mask-{height}x{width}-{mode}", "resample_sum", (2, 5, height, width),
                (2, 5, 3, 4), mode=mode, activation=activation, steps=4 * number, turns=1 + number,
                out_scale=3.0)  # fmt: skip
    add("mask-cubic", "resample", (3, 3, 4, 5), size=(9, 10), mode="cubic", what="gather")
    add("mask-cubic-relu", "resample_sum", (3, 3, 9, 10), (3, 3, 4, 5), mode="cubic",
        activation="relu")  # fmt: skip
    add("mask-1d", "resample_sum", (3, 5, 12), (3, 5, 5), activation="relu", **linear)
    add("mask-3d", "resample_sum", (1, 3, 3, 5, 6), (1, 3, 2, 2, 3), activation="relu", **linear)
    add("mask-cat", "resample_cat", (2, 3, 4, 6), (2, 5, 2, 3), activation="relu", **linear)
    return cases


CASES = [*expand_cases(), *extended_cases()]


def general_case(case: ExpandCase, dtype: torch.dtype) -> cases_io.Case:
    call: cases_io.Case = getattr(Truth(case, dtype), case.what)()
    return call


def fitting(module: ModuleType, call: cases_io.Case) -> list[Variant]:
    """The instances of EXPAND that compute a call, the one that is selected first."""
    found = np.empty((MAX_VARIANTS, 3), np.int64)
    module.fitting_kernels(**call.arguments, found=found)
    return [(k, v, s) for k, v, s in found.tolist() if k > 0]


def kernel_name(dtype: torch.dtype, variant: Variant) -> str:
    kernel, vector, sources = variant
    arguments = f"{KERNEL_NAMES[dtype]}, {vector}, {sources}, {str(kernel % 2 == 0).lower()}"
    if kernel in (PLANAR, CHANNELS_LAST):
        return f"msr::expand_kernel<{arguments}>"
    has_windows = str(kernel in (WINDOWS, WINDOWS_LAST)).lower()
    return f"msr::expand_extended_kernel<{arguments}, {has_windows}>"


def exactly(outputs: dict[str, cases_io.Argument]) -> dict[str, Expected]:
    """What another kernel is to give: the same bits, but that one NaN is as good as another."""
    return {name: Expected(replay.decoded(value)) for name, value in outputs.items()}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return build.load()


@pytest.fixture(scope="module")
def general() -> list[tuple[ExpandCase, torch.dtype, cases_io.Case]]:
    torch.manual_seed(0)
    dtypes = list(KERNEL_NAMES)
    found = []
    for number, case in enumerate(CASES):
        # Every case in half; in the other types by turns, so that each gets every kind of case.
        for dtype in {torch.float16, dtypes[1 + number % 2]}:
            found.append((case, dtype, general_case(case, dtype)))
    return found


@pytest.fixture(scope="module")
def forced(
    module: ModuleType, general: list[tuple[ExpandCase, torch.dtype, cases_io.Case]]
) -> list[cases_io.Case]:
    """Each case, by each instance of EXPAND that computes it."""
    found = []
    for case, dtype, call in general:
        outputs = replay.run_case(module, call, replay.ORDERS[:1])  # against the reference
        for variant in fitting(module, call):
            choice = np.array([*variant, case.steps, case.turns])
            found.append(cases_io.Case(
                f"expand {case.name} {dtype} {variant}", "gather",
                {**call.arguments, "choice": choice}, exactly(outputs),
                [kernel_name(dtype, variant)],
            ))  # fmt: skip
    return found


def test_every_instance_equals_the_general_kernel(
    module: ModuleType, forced: list[cases_io.Case]
) -> None:
    module.reset_launch_counts()
    failures = replay.replay(module, forced)
    assert not failures, "\n".join(f"{f.case.name}: {f.message}" for f in failures[:10])
    assert len(instances.instances(module, __file__)) > 40
    never = instances.never_launched(module, __file__)
    assert not never, f"never launched: {never}"


def test_every_instance_is_clean_under_sanitizers(
    forced: list[cases_io.Case], tmp_path: Path
) -> None:
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, forced)
    # The orders of threads are those of the test above.
    done = replay.replay_apart(path, orders=1)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert re.search(rf"^{len(forced)} passed, 0 failed", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_infinities_and_nans_reach_what_reads_them(
    module: ModuleType, mode: str, last: bool
) -> None:
    """Also at borders, where a tap is missing, and where its weight is zero."""
    case = simple((1, 8, 9, 16), (1, 8, 5, 8), mode=mode, last=last)
    call = general_case(case, torch.float32)
    inputs = call.arguments["inputs"]
    assert isinstance(inputs, list)
    for array, places in zip(inputs, ((3, 40), (0, 7, 20, 39, 70, 200, 319)), strict=True):
        assert isinstance(array, np.ndarray)
        for number, place in enumerate(places):
            array[np.unravel_index(place, array.shape)] = (np.inf, -np.inf, np.nan)[number % 3]
    results = {}
    for variant in [None, *fitting(module, call)]:
        choice = None if variant is None else np.array([*variant, 0, 0])
        out = np.zeros_like(call.arguments["out"])
        module.gather(**{**call.arguments, "out": out, "choice": choice})
        results[variant] = out
    assert len(results) > 1 + 2 * (mode != "cubic")
    general = results[None]
    assert np.isinf(general).any()
    assert np.isnan(general).any()
    assert np.isfinite(general).mean() > 0.5
    for variant, result in results.items():
        np.testing.assert_array_equal(result, general, err_msg=str(variant))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_infinite_factors_make_no_taps(module: ModuleType, mode: str, last: bool) -> None:
    """A tap that is not there is not multiplied with: zero times infinity is NaN."""
    case = simple((1, 8, 9, 16), (1, 8, 5, 8), mode=mode, last=last, weights=(2, 8))
    call = general_case(case, torch.float32)
    weights = call.arguments["weights"]
    assert isinstance(weights, np.ndarray)
    weights[0, 1] = np.inf
    outs = {}
    for variant in [None, *fitting(module, call)]:
        choice = None if variant is None else np.array([*variant, 0, 0])
        outs[variant] = np.zeros_like(call.arguments["out"])
        module.gather(**{**call.arguments, "out": outs[variant], "choice": choice})
    assert len(outs) > 2
    assert np.isinf(outs[None]).any()
    for variant, out in outs.items():
        np.testing.assert_array_equal(out, outs[None], err_msg=str(variant))


# ---- what is selected ----------------------------------------------------------------------------


def selected(module: ModuleType, case: ExpandCase, dtype: torch.dtype) -> Variant | None:
    """The kernel that a call takes; None is the general one."""
    found = fitting(module, general_case(case, dtype))
    return found[0] if found else None


def simple(*shapes: Shape, operator: str = "resample_sum", last: bool = False,
           misaligned: bool = False, what: str = "gather",
           **kwargs: Any) -> ExpandCase:  # fmt: skip
    parameters = {k: kwargs.pop(k) for k in ("weights", "bias") if k in kwargs}
    layouts = ("channels_last",) * len(shapes) if last else ()
    return ExpandCase("", operator, shapes, kwargs, False, layouts, parameters, misaligned,
                      what=what)  # fmt: skip


LINEAR = {"mode": "linear"}
UP = ((2, 8, 6, 16), (2, 8, 3, 8))


@pytest.mark.parametrize(
    ("case", "dtype", "expected"),
    [
        (simple(*UP), torch.float16, (PLANAR, 8, 0)),
        (simple(*UP), torch.float32, (PLANAR, 4, 0)),
        (simple(*UP, **LINEAR), torch.bfloat16, (PLANAR, 8, 1)),
        (simple(*UP, **LINEAR), torch.float32, (PLANAR, 4, 1)),
        (simple(*UP, **LINEAR), torch.float64, None),
        (simple(*UP, **LINEAR, last=True), torch.float16, (CHANNELS_LAST, 8, 1)),
        (simple(*UP, **LINEAR, last=True), torch.float32, (CHANNELS_LAST, 4, 1)),
        (simple(*UP, last=True), torch.float16, (CHANNELS_LAST, 8, 0)),
        (simple(*UP, UP[1], **LINEAR), torch.float16, (PLANAR, 8, 3)),
        (simple(*UP, UP[1], **LINEAR), torch.float32, (PLANAR, 4, 4)),
        (simple(*UP, *[UP[1]] * 3, **LINEAR), torch.float16, (PLANAR, 4, 4)),
        (simple(*UP, *[UP[1]] * 4, **LINEAR), torch.float16, (PLANAR, 1, 8)),
        # A concatenation has one source at a time, however many maps it has.
        (simple(*UP, *[UP[1]] * 4, **LINEAR, operator="resample_cat"), torch.float16,
         (PLANAR, 8, 1)),
        # Widths and channels that whole vectors do not make up.
        (simple((2, 8, 6, 12), UP[1], **LINEAR), torch.float16, (PLANAR, 4, 1)),
        (simple((2, 8, 6, 10), UP[1], **LINEAR), torch.float16, (PLANAR, 2, 1)),
        (simple((2, 8, 6, 7), UP[1], **LINEAR), torch.float16, (PLANAR, 1, 1)),
        (simple((2, 5, 6, 4), (2, 5, 3, 3), last=True), torch.float16, (CHANNELS_LAST, 1, 0)),
        (simple((2, 12, 6, 4), (2, 12, 3, 3), last=True), torch.float16, (CHANNELS_LAST, 4, 0)),
        # A base that begins between vectors; sources may begin anywhere.
        (simple(*UP, **LINEAR, misaligned=True), torch.float16, (PLANAR, 1, 1)),
        (simple(UP[1], size=(6, 16), **LINEAR, misaligned=True), torch.float16, (PLANAR, 8, 1)),
        # Bytes of a mask that two rows share need the extended kernels; those that two pixels
        # share, and those of planes that end within a block's share, the general one.
        (simple(*UP, **LINEAR, activation="relu"), torch.float16, (PLANAR, 8, 1)),
        (simple((2, 8, 6, 12), UP[1], **LINEAR, activation="relu"), torch.float16,
         (EXTENDED, 4, 1)),
        (simple((2, 8, 25, 42), (2, 8, 13, 21), activation="relu"), torch.bfloat16,
         (EXTENDED, 2, 0)),
        (simple((2, 12, 6, 4), (2, 12, 3, 3), last=True, activation="relu"), torch.float16, None),
        (simple((2, 8, 75, 127), UP[1], **LINEAR, activation="relu"), torch.float16, None),
        # One row, one pixel, one image: sources like any other.
        (simple((2, 8, 6, 16), (2, 8, 1, 8), **LINEAR), torch.float16, (PLANAR, 8, 1)),
        (simple((2, 8, 6, 16), (1, 8, 3, 8), **LINEAR), torch.float16, (PLANAR, 8, 1)),
        (simple((2, 8, 6, 16), (1, 8, 3, 8), **LINEAR, last=True), torch.float16,
         (CHANNELS_LAST, 8, 1)),
        (simple((2, 8, 6, 16), (2, 8, 1, 1), **LINEAR), torch.float16, (EXTENDED, 8, 0)),
        (simple(*UP, (2, 8, 1, 1), **LINEAR, last=True), torch.float16, (EXTENDED_LAST, 8, 1)),
        (simple((2, 8, 16), (2, 8, 8), **LINEAR), torch.float16, (PLANAR, 8, 1)),
        (simple((2, 8, 4, 6, 8), (2, 8, 2, 3, 4), **LINEAR), torch.float16, (PLANAR, 8, 1)),
        (simple((2, 8, 4, 6, 8), (2, 8, 2, 3, 4), **LINEAR, last=True), torch.float16,
         (CHANNELS_LAST, 8, 1)),
        # Whatever else a sum may have, but the maximum.
        (simple(*UP, **LINEAR, activation="silu"), torch.float16, (EXTENDED, 8, 1)),
        (simple(*UP, **LINEAR, bias=(8,), last=True), torch.float16, (EXTENDED_LAST, 8, 1)),
        (simple(*UP, **LINEAR, bias=(8,)), torch.float32, (EXTENDED, 4, 1)),
        (simple(*UP, UP[1], **LINEAR, weights=(3, 8)), torch.float16, (EXTENDED, 4, 4)),
        (simple(*UP, *[UP[1]] * 4, **LINEAR, bias=(8,)), torch.float16, (EXTENDED, 1, 8)),
        (simple(*UP, **LINEAR, weights=(2, 2, 1, 6, 16)), torch.float16, (EXTENDED, 8, 1)),
        (simple(*UP, activation="silu", what="activation_gradient"), torch.float16,
         (EXTENDED, 4, 0)),
        (simple(*UP, **LINEAR, activation="silu"), torch.float64, None),
        (simple(*UP, **LINEAR, operator="resample_max"), torch.float16, None),
        # Windows of four taps at most, of one branch.
        (simple(*UP, mode="cubic"), torch.bfloat16, (WINDOWS, 4, 1)),
        (simple(*UP, mode="cubic", last=True), torch.bfloat16, (WINDOWS_LAST, 8, 1)),
        (simple(*UP, mode="linear", antialias=True), torch.float32, (WINDOWS, 4, 1)),
        (simple(*UP, mode="cubic", antialias=True), torch.float32, None),
        (simple((2, 8, 4, 8), (2, 8, 7, 15), mode=["nearest", Pool("avg", 3, 2, 1)]),
         torch.float16, (WINDOWS, 4, 1)),
        (simple((2, 8, 4, 8), (2, 8, 7, 15), mode=["nearest", Pool("max", 3, 2, 1)]),
         torch.float16, None),
        (simple(*UP, UP[1], mode="cubic"), torch.float16, None),
        (simple((2, 8, 4, 6, 8), (2, 8, 2, 3, 4), mode="area"), torch.float16, None),
        (simple(*UP, UP[1], operator="resample_cat", mode="cubic"), torch.float16,
         (WINDOWS, 4, 1)),
    ],
)  # fmt: skip
def test_selection(
    module: ModuleType, case: ExpandCase, dtype: torch.dtype, expected: Variant | None
) -> None:
    assert selected(module, case, dtype) == expected


def test_an_empty_choice_runs_what_is_selected(module: ModuleType) -> None:
    call = general_case(simple(*UP, **LINEAR), torch.float16)
    chosen = {**call.arguments, "choice": np.empty(0, np.int64)}
    name = kernel_name(torch.float16, (PLANAR, 8, 1))
    replay.run_case(module, cases_io.Case("chosen", "gather", chosen, call.expected, [name]))


def test_a_choice_that_does_not_fit_is_refused(module: ModuleType) -> None:
    call = general_case(simple((2, 8, 6, 7), UP[1], **LINEAR), torch.float16)
    for choice in ((PLANAR, 8, 1), (PLANAR, 1, 0), (CHANNELS_LAST, 1, 1)):
        with pytest.raises(RuntimeError, match="that was asked for does not fit these maps"):
            module.gather(**call.arguments, choice=np.array([*choice, 0, 0]))


def test_mixed_types_take_the_general_kernel(module: ModuleType) -> None:
    call = general_case(simple(*UP, **LINEAR), torch.float32)
    inputs = call.arguments["inputs"]
    assert isinstance(inputs, list)
    halved = cases_io.from_torch(torch.randn(UP[1]).half())
    mixed = {**call.arguments, "inputs": [inputs[0], halved]}
    assert fitting(module, cases_io.Case("", "", mixed, {})) == []


def test_an_empty_result_launches_nothing(module: ModuleType) -> None:
    call = general_case(simple(*UP, **LINEAR), torch.float32)
    empty = {
        **call.arguments,
        "inputs": [np.empty((0, *shape[1:]), np.float32) for shape in UP],
        "out": np.empty((0, *UP[0][1:]), np.float32),
        "choice": np.empty(0, np.int64),
    }
    module.reset_launch_counts()
    module.gather(**empty)
    assert module.launch_counts() == {}


# ---- how the work is cut -------------------------------------------------------------------------


def plan(module: ModuleType, size: Shape, last: bool = False, dtype: int = 1) -> dict[str, int]:
    found = np.empty(7, np.int64)
    module.plan_of_expand(size=np.array(size), channels_last=last, dtype=dtype, found=found)
    names = ("fits", "blocks", "threads", "shared_bytes", "steps", "turns", "vector")
    return dict(zip(names, found.tolist(), strict=True))


@pytest.mark.parametrize("last", [False, True])
def test_plans_of_real_sizes(module: ModuleType, last: bool) -> None:
    """Enough blocks for every multiprocessor, what a launch may ask for, and no more."""
    for size in (
        (2, 256, 1, 200, 336), (2, 256, 1, 100, 168), (2, 256, 1, 50, 84), (16, 64, 1, 64, 64),
        (4, 48, 1, 64, 128), (4, 64, 1, 512, 512), (2, 32, 128, 128, 128), (8, 256, 1, 128, 128),
    ):  # fmt: skip
        found = plan(module, size, last)
        assert found["fits"] == 1, size
        assert found["blocks"] >= 264, (size, found)
        assert found["threads"] <= 256
        assert found["threads"] % 32 == 0
        assert found["shared_bytes"] <= 40 << 10
    assert plan(module, (64, 256, 1, 512, 512), last)["turns"] == 8  # tables made once for many


@pytest.mark.parametrize("last", [False, True])
def test_plans_of_small_maps(module: ModuleType, last: bool) -> None:
    """Blocks of two warps at most, so many that every multiprocessor gets some, where they can."""
    for size, blocks in (
        ((1, 64, 1, 64, 64), 256), ((1, 256, 1, 25, 42), 256), ((1, 512, 1, 13, 21), 256),
        ((1, 256, 1, 28, 28), 256), ((1, 16, 1, 16, 16), 16), ((1, 16, 1, 4, 4), 4),
    ):  # fmt: skip
        found = plan(module, size, last)
        assert found["blocks"] >= blocks, (size, found)
        assert found["threads"] <= 96, (size, found)
    assert plan(module, (1, 256, 1, 25, 42))["vector"] == 2


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((1, 1, 1, 1, 2**29), True),
        ((1, 1, 1, 1, 2**31 - 8), False),  # wider than 32-bit byte offsets reach
        ((2**20, 2**10, 1, 16, 16), True),
        ((2**22, 2**10, 1, 16, 16), False),  # more planes than a 32-bit number counts
        ((1, 1, 2**15, 2**15, 16), True),
        ((1, 1, 4, 2**16, 2**16), False),  # slices further apart than 32-bit byte offsets reach
    ],
)
def test_plans_of_huge_sizes(module: ModuleType, size: Shape, fits: bool) -> None:
    found = plan(module, size)
    assert found["fits"] == fits
    if fits:
        assert found["blocks"] < 2**31
