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

import numpy as np
import pytest
import torch
from harness import build, cases_io, instances, replay
from harness.cases_io import Expected
from torch import Tensor

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
        allowed = testing.allowed_error(truth, dtype, norm)
        is_wanted = spread.wanted is None or i in spread.wanted
        expected.append(Expected(truth.numpy(), 0.0, allowed.numpy()) if is_wanted else None)
        grads.append(cases_io.from_torch(laid_out(torch.zeros(shape, dtype=dtype), channels_last)))
        value = torch.randn(shape, generator=generator).to(dtype)
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


def planar_name(dtype: torch.dtype, vector: int) -> str:
    columns = 4 if dtype == torch.float32 or vector == 1 else 8
    return f"reduce_planar_kernel<{NAMES[dtype]}, {vector}, {columns}>"


def last_name(dtype: torch.dtype, vector: int) -> str:
    return f"reduce_channels_last_kernel<{NAMES[dtype]}, {vector}>"


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


def reduce_cases() -> list[cases_io.Case]:
    return aligned_cases() + planar_cases() + channels_last_cases()


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
    "columns beyond shared memory": ((1, 8, 1, 8, 10**5), (1, 8, 1, 4, 10**4), True, 0, 0, 0,
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


@pytest.mark.parametrize(
    ("macro", "sanitize", "report"),
    [
        ("MSR_FAULT_SHARED_OVERFLOW", True,
         r"AddressSanitizer: heap-buffer-overflow .*WRITE of size"),
        ("MSR_FAULT_MISSING_BARRIER", False, r"depends on the order of threads"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(macro: str, sanitize: bool, report: str, tmp_path: Path) -> None:
    call = kernel_case("fault", Spread((2, 3, 9, 24), ((2, 3, 5, 11),)), PLANAR, torch.float32, [])
    path = tmp_path / "cases.npz"
    cases_io.write_cases(path, [call])
    fault = build.Fault(macro, "reduce_planar.cu")
    done = replay.replay_apart(path, sanitize=sanitize, fault=fault)
    said = done.stdout + done.stderr
    assert done.returncode not in (0, -11), said
    assert re.search(report, said, re.DOTALL), said
