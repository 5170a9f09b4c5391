"""The fast spread kernels, run on the CPU by the harness, against the float64 reference.

Each case says which kernel instances it must launch; together they launch every one. Outputs are
poisoned, three orders of threads must agree bit for bit, and all cases run again under
AddressSanitizer and UBSan.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, EXTENDED_CASES, WINDOW_CASES, Case
from harness import build, cases_io, instances, replay
from harness.cases_io import Expected
from kernel_truth import Truth
from torch import Tensor

import msr_cuda
from msr_cuda import _spec, reference, testing
from msr_cuda._spec import Mode

Shape = tuple[int, ...]

PLANAR, CHANNELS_LAST = 1, 2  # SpreadKernel
NAMES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "BFloat16"}
NEAREST, EXACT = Mode.NEAREST, Mode.NEAREST_EXACT
LINEAR, CORNERS = Mode.LINEAR, Mode.LINEAR_ALIGN_CORNERS


@dataclass(frozen=True)
class Spread:
    """A call: the gradient's shape, its branches, and what is asked of the kernels.

    Attributes:
        grad: shape ``[N, C, *size]``.
        branches: their shapes.
        modes: one for all, or one for each.
        scales: explicit scale factors for all branches, or none.
        gate: whether a ReLU's bitmask zeroes parts of the gradient.
        weights: whether branches are weighted, and the weights' gradients wanted.
        wanted: which branches are; all by default.
        offset: elements between the gradient's aligned storage and itself.
        vector, group, strip_rows, aligned: of SpreadChoice.
        maps: the branches' dtype, where it is not the gradient's.
    """

    grad: Shape
    branches: tuple[Shape, ...]
    modes: Mode | tuple[Mode, ...] = LINEAR
    cat: bool = False
    scales: tuple[float, ...] | None = None
    gate: bool = False
    weights: bool = False
    wanted: tuple[int, ...] | None = None
    offset: int = 0
    vector: int = 8
    group: int = 3
    strip_rows: int = 0
    aligned: bool = True
    maps: torch.dtype | None = None

    def mode(self, i: int) -> Mode:
        return self.modes if isinstance(self.modes, Mode) else self.modes[i]


def laid_out(tensor: Tensor, channels_last: bool) -> Tensor:
    """The same values as a dense map of a layout, also where sizes of 1 leave it open."""
    strides = _spec.dense_strides(tensor.shape, channels_last)
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def with_offset(tensor: Tensor, offset: int) -> Tensor:
    """The same values and strides, `offset` elements after an aligned address."""
    storage = torch.zeros(tensor.numel() + offset + 1, dtype=tensor.dtype)
    moved = storage.as_strided(tensor.shape, tensor.stride(), offset)
    return moved.copy_(tensor)


def packed_bits(bits: Tensor, channels_last: bool) -> np.ndarray:
    """A mask in its memory's order, padded to whole 32-bit words."""
    if channels_last:
        bits = bits.movedim(1, -1)
    packed = np.packbits(bits.flatten().numpy(), bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4))


def adjoint(grad: Tensor, shape: Shape, mode: Mode, scales: Sequence[float] | None) -> Tensor:
    """``R^T(grad)`` in float64 by the reference."""
    leaf = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    resampled = reference.resample_map(leaf, grad.shape[2:], mode, scales)
    return torch.autograd.grad(resampled.expand(grad.shape), leaf, grad)[0]


def kernel_case(
    name: str,
    spread: Spread,
    kernel: int,
    dtype: torch.dtype,
    kernels: Sequence[str],
) -> cases_io.Case:
    """The harness's call, with what the reference expects of it. `kernel` 0: the general one."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    channels_last = kernel == CHANNELS_LAST
    grad = torch.randn(spread.grad, generator=generator).to(dtype)
    gate = torch.rand(spread.grad, generator=generator) < 0.5 if spread.gate else None
    gated = grad.double() * gate if gate is not None else grad.double()
    maps = spread.maps or dtype
    count = len(spread.branches)
    weights = torch.randn(count, generator=generator) if spread.weights else None
    grads: list[cases_io.ArrayLike] = []
    values: list[cases_io.ArrayLike] = []
    expected: list[Expected | None] = []
    dots, norms = [], []
    channel = 0
    for i, shape in enumerate(spread.branches):
        part = gated
        if spread.cat:
            part = gated.narrow(1, channel, shape[1])
            channel += shape[1]
        mode, scales = spread.mode(i), spread.scales
        factor = 1.0 if weights is None else float(weights[i])
        unweighted = adjoint(part, shape, mode, scales)
        norm = testing.gradient_term_norm(part * factor, shape, mode, scales)
        truth = unweighted * factor
        allowed = testing.allowed_error(truth, maps, norm)
        is_wanted = spread.wanted is None or i in spread.wanted
        expected.append(Expected(truth.numpy(), 0.0, allowed.numpy()) if is_wanted else None)
        grads.append(cases_io.from_torch(laid_out(torch.zeros(shape, dtype=maps), channels_last)))
        value = torch.randn(shape, generator=generator).to(maps)
        values.append(cases_io.from_torch(laid_out(value, channels_last)))
        resampled = reference.resample_map(value.double(), spread.grad[2:], mode, scales)
        dots.append((unweighted * value.double()).sum())
        norms.append(((part * resampled) ** 2).sum().sqrt())
    outputs: dict[str, Expected | list[Expected | None]] = {"grads": expected}
    if spread.weights:
        truth = torch.stack(dots)
        allowed = testing.allowed_error(truth, torch.float32, torch.stack(norms))
        outputs["dots"] = Expected(truth.numpy(), 0.0, allowed.numpy())
    wanted = range(count) if spread.wanted is None else spread.wanted
    laid = laid_out(grad, channels_last)
    choice = [kernel, spread.vector, spread.group, spread.strip_rows, int(spread.aligned)]
    return cases_io.Case(
        f"{name} {dtype}",
        "spread",
        {
            "modes": np.array([int(spread.mode(i)) for i in range(count)], np.int64),
            "cat": int(spread.cat),
            "channels_last": int(channels_last),
            "acc_is_double": 0,
            "scales": None if spread.scales is None else np.array([spread.scales] * count),
            "weights": None if weights is None else weights.numpy(),
            "grad": cases_io.from_torch(with_offset(laid, spread.offset)),
            "grads": grads,
            "grads_channels_last": (1 << count) - 1 if channels_last else 0,
            "wanted": sum(1 << i for i in wanted),
            "gate": None if gate is None else packed_bits(gate, channels_last),
            "values": values if spread.weights else None,
            "dots": np.zeros(count, np.float32) if spread.weights else None,
            "choice": np.array(choice),
        },
        outputs,
        kernels,
    )


def aligned_name(dtype: torch.dtype, vector: int, group: int) -> str:
    return f"reduce_aligned_kernel<{NAMES[dtype]}, {vector}, {group}>"


def planar_name(dtype: torch.dtype, vector: int, rows: int = 2) -> str:
    columns = 4 if dtype == torch.float32 or vector == 1 or rows == 4 else 8
    return f"reduce_planar_kernel<{NAMES[dtype]}, {vector}, {columns}, {rows}>"


def last_name(dtype: torch.dtype, vector: int, rows: int = 2) -> str:
    return f"reduce_channels_last_kernel<{NAMES[dtype]}, {vector}, {rows}>"


def aligned_cases() -> list[cases_io.Case]:
    """Exact factors: vectors of 8 and 4 columns, one branch and several."""
    found = []
    for dtype in NAMES:
        widest = 4 if dtype == torch.float32 else 8
        for vector in (4, 8) if widest == 8 else (4,):
            for mode in (NEAREST, EXACT, LINEAR):
                for factor in (2, 4, 8):
                    if factor > vector:
                        continue
                    width = 3 * vector if factor < vector else 2 * vector
                    one = Spread((2, 3, 2 * factor + factor, width),
                                 ((2, 3, 3, width // factor),), mode, gate=mode == LINEAR,
                                 vector=vector, strip_rows=factor)  # fmt: skip
                    found.append(kernel_case(f"aligned {vector} x{factor} {mode.name}", one, PLANAR,
                                             dtype, [aligned_name(dtype, vector, 1)]))  # fmt: skip
            small = vector // 2
            sums = Spread((2, 2, 8, 5 * vector),
                          ((2, 2, 8, 5 * vector), (2, 2, 4, 5 * vector // 2),
                           (2, 2, 2, 5 * vector // small), (2, 2, 3, 5 * vector // 2)),
                          LINEAR, gate=True, weights=True, vector=vector,
                          strip_rows=4)  # fmt: skip
            found.append(kernel_case(f"aligned sum {vector}", sums, PLANAR, dtype,
                                     [aligned_name(dtype, vector, 3)]))  # fmt: skip
    half = torch.float16
    three = [aligned_name(half, 8, 3)]
    one_branch = [aligned_name(half, 8, 1)]
    sources = ((1, 2, 16, 16), (1, 2, 8, 8), (1, 2, 4, 4), (1, 2, 2, 2))
    table: dict[str, tuple[Spread, list[str]]] = {
        "hrnet": (Spread((1, 2, 16, 16), sources, NEAREST, gate=True), three),
        "hrnet without base": (Spread((1, 2, 16, 16), sources, wanted=(1, 2, 3)), three),
        "two of three": (Spread((1, 2, 16, 16), sources, wanted=(0, 1, 3), gate=True), three),
        "one by one": (Spread((1, 2, 16, 16), sources, group=1), one_branch),
        "eight": (Spread((1, 2, 8, 16), tuple((1, 2, 1 + i, 8) for i in range(8)), weights=True),
                  [*three]),
        "cat": (Spread((2, 9, 4, 16), ((2, 2, 4, 16), (2, 4, 2, 8), (2, 3, 1, 4)), cat=True,
                       gate=True), one_branch),
        "gate alone": (Spread((2, 3, 5, 16), ((2, 3, 5, 16),), gate=True), one_branch),
        "weights of identities": (Spread((2, 3, 5, 16), ((2, 3, 5, 16),) * 3, gate=True,
                                         weights=True), one_branch),
        "one column": (Spread((2, 3, 4, 8), ((2, 3, 2, 1),)), one_branch),
        "one row": (Spread((2, 3, 1, 16), ((2, 3, 1, 8),)), one_branch),
        "rows by any ratio": (Spread((2, 3, 13, 16), ((2, 3, 5, 8),), strip_rows=4), one_branch),
        "rows fewer": (Spread((2, 3, 5, 16), ((2, 3, 13, 8),), strip_rows=2), one_branch),
        "rows far fewer": (Spread((1, 2, 3, 16), ((1, 2, 100, 8),), NEAREST), one_branch),
        "1-D": (Spread((2, 3, 16), ((2, 3, 8),), gate=True), one_branch),
        "3-D": (Spread((2, 2, 4, 6, 16), ((2, 2, 2, 3, 8),), gate=True, strip_rows=2), one_branch),
        "3-D sum": (Spread((1, 2, 4, 4, 16), ((1, 2, 4, 4, 16), (1, 2, 2, 2, 8), (1, 2, 2, 1, 4),
                           (1, 2, 1, 2, 8)), gate=True, weights=True), three),
        "3-D fewer depths": (Spread((1, 2, 3, 4, 8), ((1, 2, 7, 2, 4),), NEAREST), one_branch),
        "broadcast": (Spread((3, 2, 4, 16), ((1, 2, 2, 8), (3, 2, 4, 16)), weights=True),
                      one_branch),
        "factors": (Spread((2, 3, 8, 16), ((2, 3, 4, 8),), scales=(2.0, 2.0)), one_branch),
        "many planes": (Spread((7, 40, 4, 8), ((7, 40, 2, 4),), NEAREST), one_branch),
    }  # fmt: skip
    found += [kernel_case(f"aligned {name}", spread, PLANAR, half, kernels)
              for name, (spread, kernels) in table.items()]  # fmt: skip
    return found


def any_ratio() -> dict[str, Spread]:
    """Sizes that both layouts are to get right."""
    return {
        "up": Spread((2, 3, 13, 11), ((2, 3, 5, 7),), gate=True, strip_rows=4),
        "down": Spread((2, 3, 5, 7), ((2, 3, 13, 11),), gate=True, strip_rows=2),
        "far down": Spread((1, 2, 4, 37), ((1, 2, 9, 100),)),
        "nearest up": Spread((1, 3, 11, 37), ((1, 3, 4, 10),), NEAREST, strip_rows=3),
        "nearest down": Spread((1, 3, 5, 10), ((1, 3, 11, 37),), NEAREST, strip_rows=2),
        "nearest-exact": Spread((1, 3, 13, 11), ((1, 3, 5, 7),), EXACT),
        "corners": Spread((2, 3, 13, 16), ((2, 3, 5, 8),), CORNERS, gate=True, strip_rows=4),
        "corners to one": Spread((2, 3, 1, 1), ((2, 3, 4, 5),), CORNERS),
        "factors": Spread((2, 3, 10, 10), ((2, 3, 7, 7),), scales=(1.5, 1.5), strip_rows=4),
        "nearest factors": Spread((2, 3, 10, 10), ((2, 3, 7, 7),), NEAREST, scales=(1.5, 1.5)),
        "x3": Spread((1, 2, 9, 12), ((1, 2, 3, 4),), gate=True),
        "x16": Spread((1, 2, 32, 32), ((1, 2, 2, 2),), strip_rows=16),
        "x64": Spread((1, 1, 64, 64), ((1, 1, 1, 1),)),
        "one column": Spread((2, 3, 6, 5), ((2, 3, 3, 1),)),
        "to one column": Spread((2, 3, 6, 1), ((2, 3, 3, 4),)),
        "one row": Spread((2, 3, 1, 9), ((2, 3, 1, 4),)),
        "sum": Spread((2, 3, 9, 10), ((2, 3, 9, 10), (2, 3, 4, 5), (2, 3, 2, 3), (2, 3, 9, 10)),
                      gate=True, weights=True, strip_rows=4),
        "some": Spread((2, 3, 9, 10), ((2, 3, 9, 10), (2, 3, 4, 5), (2, 3, 2, 3)),
                       wanted=(0, 2)),
        "cat": Spread((2, 9, 7, 10), ((2, 2, 7, 10), (2, 4, 3, 4), (2, 0, 1, 1), (2, 3, 2, 5)),
                      cat=True, gate=True),
        "mixed modes": Spread((1, 2, 7, 9), ((1, 2, 3, 4),) * 3, (NEAREST, CORNERS, EXACT)),
        "eight": Spread((1, 2, 6, 7), tuple((1, 2, 1 + i, 9 - i) for i in range(8)), weights=True),
        "broadcast": Spread((3, 2, 5, 6), ((1, 2, 2, 4), (1, 2, 5, 6)), weights=True),
        "3-D": Spread((2, 2, 5, 6, 7), ((2, 2, 2, 4, 3), (2, 2, 5, 6, 7)), gate=True,
                      weights=True),
        "3-D down": Spread((1, 2, 2, 3, 4), ((1, 2, 5, 4, 9),), CORNERS),
        "offset": Spread((2, 8, 6, 16), ((2, 8, 3, 8),), offset=1),
    }  # fmt: skip


def planar_cases() -> list[cases_io.Case]:
    found = []
    dtypes = list(NAMES)
    for number, (name, spread) in enumerate(any_ratio().items()):
        dtype = dtypes[number % 3]
        found.append(kernel_case(f"planar {name}", spread, PLANAR, dtype, []))
    for dtype in dtypes:
        widest = 4 if dtype == torch.float32 else 8
        for vector in (widest, 2, 1) if widest == 8 else (4, 1):
            name = [planar_name(dtype, vector)]
            up = Spread((2, 3, 7, 24), ((2, 3, 3, 11), (2, 3, 7, 24)), gate=True, weights=True,
                        vector=vector, strip_rows=4)  # fmt: skip
            same = Spread((2, 3, 7, 24), ((2, 3, 3, 12),), aligned=False, vector=vector)
            planes = Spread((9, 30, 3, 8), ((9, 30, 2, 3),), NEAREST, vector=vector)
            # More columns than one block has: 1024.
            tiles = Spread((1, 1, 2, 1050), ((1, 1, 2, 350), (1, 1, 2, 1050)), vector=vector,
                           gate=True, weights=True)  # fmt: skip
            tiles = (
                tiles
                if vector < 4
                else replace(
                    tiles, grad=(1, 1, 2, 1056), branches=((1, 1, 2, 350), (1, 1, 2, 1056))
                )
            )
            calls = {"up": up, "exact": same, "planes": planes, "tiles": tiles}
            found += [kernel_case(f"planar {case} {vector}", spread, PLANAR, dtype, name)
                      for case, spread in calls.items()]  # fmt: skip
    return found


def channels_last_cases() -> list[cases_io.Case]:
    found = []
    dtypes = list(NAMES)
    for number, (name, spread) in enumerate(any_ratio().items()):
        dtype = dtypes[(number + 1) % 3]
        found.append(kernel_case(f"last {name}", spread, CHANNELS_LAST, dtype, []))
    for dtype in dtypes:
        widest = 4 if dtype == torch.float32 else 8
        for vector in (widest, 2, 1) if widest == 8 else (4, 1):
            name = [last_name(dtype, vector)]
            calls = {
                "up": Spread((2, 16, 7, 9), ((2, 16, 3, 4), (2, 16, 7, 9)), gate=True, weights=True,
                             vector=vector, strip_rows=4),
                "x2": Spread((2, 24, 6, 8), ((2, 24, 3, 4),), NEAREST, gate=True, vector=vector),
                "cat": Spread((2, 24, 4, 6), ((2, 8, 4, 6), (2, 16, 2, 3)), cat=True, gate=True,
                              vector=vector),
                "odd channels": Spread((2, 3 * vector, 4, 6), ((2, 3 * vector, 2, 3),)),
                "many": Spread((3, 8, 2, 90), ((3, 8, 1, 41),), vector=vector),
            }  # fmt: skip
            found += [kernel_case(f"last {case} {vector}", spread, CHANNELS_LAST, dtype, name)
                      for case, spread in calls.items()]  # fmt: skip
    half = torch.float16
    shifted = Spread((2, 16, 4, 6), ((2, 3, 2, 3), (2, 13, 4, 6)), cat=True, gate=True)
    found.append(kernel_case("last slices off vectors", shifted, CHANNELS_LAST, half,
                             [last_name(half, 1)]))  # fmt: skip
    # Pixels begin at multiples of 8 elements, but not of 8 bits of the gate.
    slices = Spread((2, 11, 4, 6), ((2, 8, 2, 3), (2, 3, 4, 6)), cat=True, gate=True)
    case = kernel_case("last padded pixels", slices, CHANNELS_LAST, half, [last_name(half, 8)])
    grad = case.arguments["grad"]
    assert isinstance(grad, cases_io.Carried)
    room = np.zeros((2, 4, 6, 16), np.uint16)
    room[..., :11] = np.moveaxis(grad.bits, 1, -1)
    padded = cases_io.Carried(np.moveaxis(room, -1, 1)[:, :11], grad.dtype)
    found.append(replace(case, arguments={**case.arguments, "grad": padded}))
    return found


def narrow_cases() -> list[cases_io.Case]:
    """Gradients in float32 of maps of two bytes, as activations that are computed again leave."""
    found = []
    for maps in (torch.float16, torch.bfloat16):
        for wanted in (None, (1,)):
            spread = Spread((2, 8, 8, 16), ((2, 8, 8, 16), (2, 8, 4, 8)), weights=wanted is None,
                            wanted=wanted, maps=maps)  # fmt: skip
            name = f"narrow {maps} {wanted}"
            float32 = torch.float32
            found += [
                kernel_case(name, spread, PLANAR, float32, [aligned_name(float32, 4, 1)]),
                kernel_case(name, replace(spread, aligned=False), PLANAR, float32,
                            [planar_name(float32, 4)]),
                kernel_case(name, replace(spread, vector=1), PLANAR, float32,
                            [planar_name(float32, 1)]),
                kernel_case(name, spread, CHANNELS_LAST, float32, [last_name(float32, 4)]),
            ]  # fmt: skip
    return found


def extended_cases() -> list[Case]:
    """Windows, and all that a gradient may be multiplied with, on maps of whole vectors."""
    linear: dict[str, Any] = {"mode": "linear"}
    cubic: dict[str, Any] = {"mode": "bicubic"}
    pair = ((2, 16, 6, 16), (2, 16, 3, 8))
    wide = ((1, 8, 4, 1100), (1, 8, 2, 550))
    gates = {**linear, "activation": "leaky_relu"}
    pool = msr_cuda.Pool("avg", 3, 2, 1)
    return [
        Case("x2", "resample", ((2, 16, 5, 8),), {**cubic, "size": (10, 16)}),
        Case("x4", "resample", ((1, 8, 5, 6),), {**cubic, "size": (20, 24)}),
        Case("by any ratio", "resample", ((1, 8, 5, 7),), {**cubic, "size": (13, 16)}),
        Case("down", "resample", ((1, 8, 13, 19),), {**cubic, "size": (6, 8)}),
        Case("corners", "resample", ((1, 8, 5, 7),),
             {**cubic, "size": (9, 16), "align_corners": True}),
        Case("factor", "resample", ((1, 8, 7, 5),), {**cubic, "scale_factor": (1.5, 2.5)}),
        Case("area", "resample", ((1, 8, 5, 7),), {"mode": "area", "size": (11, 16)}),
        Case("antialias", "resample", ((1, 8, 5, 7),),
             {**linear, "antialias": True, "size": (10, 16)}),
        Case("pool", "resample_sum", ((2, 8, 4, 8), (2, 8, 8, 16)), {"mode": ["nearest", pool]}),
        Case("tiles", "resample_sum", wide, {**cubic, "activation": "relu"}),
        Case("rows", "resample_sum", ((1, 8, 130, 8), (1, 8, 65, 4)), cubic, weights=True),
        Case("window, weights", "resample_sum", pair, {**cubic, "activation": "relu"},
             parameters={"weights": (2, 2, 16)}),
        Case("channels", "resample_sum", pair, {**linear, "activation": "relu"},
             parameters={"weights": (2, 16)}),
        Case("channels of images", "resample_sum", pair, linear,
             parameters={"weights": (2, 2, 16)}),
        Case("images", "resample_sum", pair, linear, parameters={"weights": (2, 2, 1)}),
        Case("many images", "resample_sum", ((40, 8, 2, 8), (40, 8, 1, 4)), linear,
             parameters={"weights": (40, 2, 8)}),
        Case("channels, wide", "resample_sum", ((1, 8, 4, 2400), (1, 8, 2, 1200)), linear,
             parameters={"weights": (2, 8)}),
        Case("channels, many branches", "resample_sum",
             ((2, 16, 8, 16), (2, 16, 4, 8), (2, 16, 2, 4), (2, 16, 8, 16)), linear,
             parameters={"weights": (4, 16), "bias": (16,)}),
        Case("channels, 3-D", "resample_sum", ((1, 8, 4, 6, 8), (1, 8, 2, 3, 4)), linear,
             parameters={"weights": (2, 8)}),
        Case("affine", "resample_sum", pair, {**linear, "activation": "relu"},
             parameters={"scale": (16,), "bias": (16,)}),
        Case("leaky", "resample_sum", pair, gates),
        Case("leaky, weights", "resample_sum", pair, gates, parameters={"weights": (2, 16)}),
        Case("leaky, 3-D", "resample_sum", ((1, 8, 4, 6, 8), (1, 8, 2, 3, 4)), gates),
        Case("pixels", "resample_sum", pair, {**linear, "activation": "relu"},
             parameters={"weights": (2, 2, 1, 6, 16)}),
        Case("pixels of all images", "resample_sum", pair, gates,
             parameters={"weights": (1, 2, 1, 6, 16)}),
        Case("maximum", "resample_max", (*pair, (2, 16, 2, 5)), {**linear, "activation": "relu"}),
    ]  # fmt: skip


def table_case(case: Case, kernel: int, vector: int, dtype: torch.dtype) -> cases_io.Case:
    """The spread of a case of a table, whose branches the kernel takes that it can."""
    layout = "channels_last" if kernel == CHANNELS_LAST else "contiguous"
    laid = replace(case, layouts=case.layouts or (layout,) * len(case.shapes))
    torch.manual_seed(sum(map(ord, case.name)))
    spread = Truth(laid, dtype).spread()
    # Truth's own gradients are planar ones now and then.
    grad = spread.arguments["grad"]
    if kernel == CHANNELS_LAST:
        assert isinstance(grad, np.ndarray | cases_io.Carried)
        last = np.ascontiguousarray(np.moveaxis(cases_io.elements(grad), 1, -1))
        grad = cases_io.like(grad, np.moveaxis(last, -1, 1))
    arguments = {**spread.arguments, "grad": grad,
                 "choice": np.array([kernel, vector, 3, 4, 1])}  # fmt: skip
    name = f"{spread.name} {layout} {vector}"
    return cases_io.Case(name, spread.function, arguments, spread.expected, [])


def table_cases() -> list[cases_io.Case]:
    found = []
    for case in extended_cases():
        for dtype in NAMES:
            for kernel in (PLANAR, CHANNELS_LAST):
                for vector in (8, 1) if case.name in ("x2", "leaky", "channels") else (8,):
                    found.append(table_case(case, kernel, vector, dtype))
    # Everything that the operators are tested with.
    dtypes = list(NAMES)
    for number, case in enumerate([*CASES, *WINDOW_CASES, *EXTENDED_CASES]):
        is_row = len(case.shapes[0]) == 3  # which have no layout of channels
        kernel = PLANAR if is_row or number % 2 else CHANNELS_LAST
        found.append(table_case(case, kernel, 8, dtypes[number % 3]))
    return found


def reduce_cases() -> list[cases_io.Case]:
    return aligned_cases() + planar_cases() + channels_last_cases() + narrow_cases() + table_cases()


@pytest.fixture(scope="module")
def cases() -> list[cases_io.Case]:
    return reduce_cases()


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return build.load()


def test_every_instance_matches_the_reference(
    module: ModuleType, cases: list[cases_io.Case]
) -> None:
    module.reset_launch_counts()
    failures = replay.replay(module, cases)
    assert not failures, "\n".join(f"{f.case.name}: {f.message}" for f in failures[:20])
    assert not instances.never_launched(module, __file__)


def test_every_instance_is_clean_under_sanitizers(
    cases: list[cases_io.Case], tmp_path: Path
) -> None:
    # Sanitizers are slow: a third of the cases, and the first of every instance.
    seen: set[str] = set()
    chosen = []
    for number, case in enumerate(cases):
        if number % 3 == 0 or not seen.issuperset(case.kernels):
            chosen.append(case)
        seen.update(case.kernels)
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, chosen)
    done = replay.replay_apart(path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert re.search(rf"^{len(chosen)} passed, 0 failed", done.stdout, re.MULTILINE)


def with_choice(case: cases_io.Case, choice: Sequence[int], kernel: str) -> cases_io.Case:
    arguments = {**case.arguments, "choice": np.array(choice, np.int64)}
    return cases_io.Case(case.name, case.function, arguments, case.expected, [kernel])


def test_the_general_kernel_agrees(module: ModuleType, cases: list[cases_io.Case]) -> None:
    """The same calls by the kernel that the fast ones fall back to."""
    general = [with_choice(case, [0] * 5, "msr::spread_kernel<float>") for case in cases[::3]]
    failures = replay.replay(module, general)
    assert not failures, "\n".join(f"{f.case.name}: {f.message}" for f in failures[:20])


def test_calls_choose_their_kernel(module: ModuleType) -> None:
    half = torch.float16
    exact = Spread((2, 8, 8, 16), ((2, 8, 4, 8),), gate=True)
    odd = Spread((2, 8, 9, 15), ((2, 8, 4, 8),))
    general = "msr::spread_kernel<float>"
    planar = kernel_case("exact", exact, PLANAR, half, [])
    last = kernel_case("exact", exact, CHANNELS_LAST, half, [])
    chosen = [
        with_choice(planar, [], aligned_name(half, 8, 1)),
        with_choice(kernel_case("odd", odd, PLANAR, half, []), [], planar_name(half, 1)),
        with_choice(last, [], last_name(half, 8)),
        # What a fast kernel cannot do, it is not given even if asked for: another layout, ...
        with_choice(planar, [CHANNELS_LAST, 8, 3, 0, 1], general),
        with_choice(last, [PLANAR, 8, 3, 0, 1], general),
    ]
    # ... a gradient that was expanded, and a branch whose layout is not the gradient's.
    plain = kernel_case("plain", replace(exact, gate=False), PLANAR, half, []).arguments
    for name, value in (
        ("grad", cases_io.from_torch(torch.ones(1, dtype=half).expand(2, 8, 8, 16))),
        ("grads", [cases_io.from_torch(laid_out(torch.zeros(2, 8, 4, 8, dtype=half), True))]),
    ):
        mixed = {**plain, name: value, "grads_channels_last": int(name == "grads")}
        case = cases_io.Case(f"mixed {name}", "spread", mixed, {"grads": [None]}, [general])
        chosen.append(with_choice(case, [], general))
    # Forward values that do not lie as their gradient does, where that is the gradient itself.
    weighted = Spread((2, 8, 8, 16), ((2, 8, 8, 16), (2, 8, 4, 8)), weights=True)
    apart = kernel_case("apart", weighted, PLANAR, half, [])
    values = list(apart.arguments["values"])  # type: ignore[arg-type]
    room = np.zeros((2, 8, 8, 17), np.uint16)
    room[..., :16] = values[0].bits
    values[0] = cases_io.Carried(room[..., :16], values[0].dtype)
    strided = cases_io.Case("apart", "spread", {**apart.arguments, "values": values},
                            apart.expected)  # fmt: skip
    chosen += [
        with_choice(apart, [], aligned_name(half, 8, 1)),
        with_choice(strided, [], general),
    ]
    # Sums in float64, as where another input of the forward call was.
    double = {**plain, "acc_is_double": 1}
    case = cases_io.Case("double", "spread", double, {"grads": [None]}, [])
    chosen.append(with_choice(case, [], "msr::spread_kernel<double>"))
    failures = replay.replay(module, chosen)
    assert not failures, "\n".join(f"{f.case.name}: {f.message}" for f in failures)
    with pytest.raises(RuntimeError, match="keeps its sums in float32"):
        replay.run_case(module, with_choice(case, [PLANAR, 8, 3, 0, 1], general))


PLANS = {
    # grad, branch, channels_last, dtype (1: half) -> kernel, vector, and the range of blocks
    "small map": ((4, 64, 1, 32, 32), (4, 64, 1, 16, 16), False, 1, PLANAR, 8, (64, 600)),
    "medium map": ((16, 64, 1, 64, 64), (16, 64, 1, 32, 32), False, 1, PLANAR, 8, (264, 1100)),
    "medium odd map": ((4, 64, 1, 65, 65), (4, 64, 1, 33, 33), False, 1, PLANAR, 1, (264, 1100)),
    "medium last": ((4, 64, 1, 64, 64), (4, 64, 1, 32, 32), True, 1, CHANNELS_LAST, 8, (256, 1100)),
    "large map": ((8, 256, 1, 256, 256), (8, 256, 1, 128, 128), False, 1, PLANAR, 8, (1e3, 1e4)),
    "beyond 2^32 elements": ((64, 2048, 1, 256, 256), (64, 2048, 1, 128, 128), False, 1, PLANAR, 8,
                             (1e4, 2**31 - 1)),
    "more items than a grid has": ((2**20, 2**16, 1, 2, 2), (2**20, 2**16, 1, 1, 1), False, 1, 0, 0,
                                   (1, 4096)),
    "rows beyond shared memory": ((1, 1, 1, 10**6, 8), (1, 1, 1, 1, 4), False, 0, 0, 0, (1, 4096)),
    "columns beyond a tile": ((1, 1, 1, 8, 10**6), (1, 1, 1, 4, 1), False, 0, 0, 0, (1, 4096)),
    "columns in many tiles": ((1, 8, 1, 8, 10**5), (1, 8, 1, 4, 10**4), True, 0, CHANNELS_LAST, 4,
                              (264, 1e4)),
    "columns beyond shared memory": ((1, 8, 1, 8, 10**5), (1, 8, 1, 4, 10), True, 0, 0, 0,
                                     (1, 4096)),
    "float64": ((1, 8, 1, 8, 8), (1, 8, 1, 4, 4), False, 3, 0, 0, (1, 4096)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_plans(module: ModuleType, name: str) -> None:
    """Enough blocks for a GPU, no more than a grid may have, and no more shared memory than is."""
    grad, branch, channels_last, dtype, kernel, vector, (least, most) = PLANS[name]
    found = np.zeros(4, np.int64)
    module.plan_of_spread(
        grad=np.array(grad),
        branch=np.array(branch),
        dtype=dtype,
        mode=int(LINEAR),
        channels_last=channels_last,
        found=found,
    )
    assert tuple(found[[0, 2]]) == (kernel, vector)
    assert least <= found[1] <= most
    assert found[3] <= 48 * 1024


@pytest.mark.parametrize("kernel", [PLANAR, CHANNELS_LAST])
@pytest.mark.parametrize(
    ("macro", "sanitize", "report"),
    [
        ("MSR_FAULT_SHARED_OVERFLOW", True,
         r"AddressSanitizer: heap-buffer-overflow .*WRITE of size"),
        ("MSR_FAULT_MISSING_BARRIER", False, r"depends on the order of threads"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(
    macro: str, sanitize: bool, report: str, kernel: int, tmp_path: Path
) -> None:
    shapes = Spread((2, 3, 9, 24), ((2, 3, 5, 11),))
    call = kernel_case("fault", shapes, kernel, torch.float32, [])
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, [call])
    files = {PLANAR: "reduce_planar.cu", CHANNELS_LAST: "reduce_channels_last.cu"}
    fault = build.Fault(macro, files[kernel])
    done = replay.replay_apart(path, sanitize=sanitize, fault=fault)
    said = done.stdout + done.stderr
    assert done.returncode not in (0, -11), said
    assert re.search(report, said, re.DOTALL), said
