"""The benchmarks' workloads: both expressions, what they must move, the grid; and one cell."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from benchmark_rows import CELL, SMALL
from torch import Tensor

from benchmarks import contenders, goals, profile_calls, runner, workloads
from benchmarks.contenders import (
    COMPILED,
    EAGER,
    OURS,
    OURS_FLOAT32,
    OURS_ONE_THREAD,
    Data,
    HostWatch,
)
from benchmarks.runner import Settings
from benchmarks.workloads import WORKLOADS, Cell, Size, Traffic
from msr_cuda.testing import TOLERANCES, assert_within

CPU = torch.device("cpu")

# ---------------------------------------------------------------------------- workloads

#: By number of spatial axes; the second ones have odd sizes.
SIZES = {
    1: (Size(2, 4, 30), Size(1, 3, 17)),
    2: (SMALL, Size(1, 3, 9, 11)),
    3: (Size(1, 3, 6, 8, 10), Size(1, 2, 5, 7, 3)),
}
each_workload = pytest.mark.parametrize("name", list(WORKLOADS))
every_workload = pytest.mark.parametrize(
    ("name", "layout"), [(w.name, layout) for w in WORKLOADS.values() for layout in w.layouts]
)


def step(
    function: contenders.Function, inputs: list[Tensor], grads: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = function(leaves)
    return [y.detach() for y in outputs], list(torch.autograd.grad(outputs, leaves, grads))


def term_norm(
    eager: contenders.Function, inputs: list[Tensor], grads: list[Tensor], index: int
) -> Tensor:
    """``sqrt(sum t^2)`` over the terms of a parameter's gradient, one from each output element.

    A column of the Jacobian for each element of the parameter, by forward-mode differentiation.
    """
    parameter = inputs[index]
    squares = []
    for direction in torch.eye(parameter.numel(), dtype=torch.float64).to(parameter.device):

        def along(value: Tensor) -> tuple[Tensor, ...]:
            return tuple(eager([*inputs[:index], value, *inputs[index + 1 :]]))

        tangent = direction.view(parameter.shape)
        _, columns = torch.func.jvp(along, (parameter,), (tangent,))
        terms = [column * grad for column, grad in zip(columns, grads, strict=True)]
        squares.append(sum(term.square().sum() for term in terms))
    return torch.stack(squares).sqrt().view(parameter.shape)


@every_workload
def test_the_contenders_compute_the_same(name: str, layout: str, impl: str, device: str) -> None:
    """Values and gradients of both expressions, against the plain one in float64."""
    workload = WORKLOADS[name]
    cell = Cell(name, SIZES[workload.rank][0], "float32", layout)
    data = Data.make(cell, torch.device(device))
    inputs, grads = data.plain[0], data.grads[0]
    maps = len(workload.shapes(cell.size))
    assert len(inputs) == maps + len(workload.parameters(cell.size))
    double = [[x.double() for x in tensors] for tensors in (inputs, grads)]
    truth = step(workload.eager, *double)
    eager = step(workload.eager, inputs, grads)
    fused = step(lambda tensors: workload.fused(tensors, impl), inputs, grads)
    for kind, ours, theirs, true in zip(("output", "gradient"), fused, eager, truth, strict=True):
        assert len(ours) == len(theirs) == len(true)
        for i, (a, b, expected) in enumerate(zip(ours, theirs, true, strict=True)):
            terms = None
            if kind == "gradient" and i >= maps:
                terms = term_norm(workload.eager, *double, i)
            assert expected.abs().max() > 0
            assert_within(a, expected, term_norm=terms, what=f"{kind} {i}")
            assert_within(b, expected, term_norm=terms, what=f"plain {kind} {i}")
            if kind == "output":
                layout_of_maps = workloads.memory_format(layout, workload.rank)
                assert a.is_contiguous(memory_format=layout_of_maps)
            elif impl == "kernel" and i < maps:  # PyTorch lays gradients out as it likes
                # The map's own, or a view of the incoming gradient where the map passed through.
                assert a.stride() in (inputs[i].stride(), b.stride())


@each_workload
def test_shapes_follow_from_the_finest_map(name: str) -> None:
    workload = WORKLOADS[name]
    for size in SIZES[workload.rank]:
        inputs = workloads.make_inputs(Cell(name, size, "float64", "NCHW"), CPU)
        shapes = workload.shapes(size)
        assert [tuple(x.shape) for x in inputs[: len(shapes)]] == [tuple(s) for s in shapes]
        outputs = workload.eager(inputs)
        traffic = workload.traffic(shapes)
        assert traffic.written == sum(map(Tensor.numel, outputs))
        assert traffic.read == sum(map(Tensor.numel, inputs[: len(shapes)]))
        fused = workload.fused(inputs, "reference")
        assert [y.shape for y in fused] == [y.shape for y in outputs]


def test_parameters_stay_in_float32_beside_half_precision() -> None:
    size = SIZES[2][0]
    for dtype, expected in (("float16", torch.float32), ("float64", torch.float64)):
        *maps, weights = workloads.make_inputs(Cell("bifpn-up", size, dtype, "NCHW"), CPU)
        assert {x.dtype for x in maps} == {workloads.DTYPES[dtype]}
        assert weights.dtype == expected
        assert weights.shape == (2,)
        data = Data.make(Cell("bifpn-up", size, dtype, "NCHW"), CPU)
        assert all(leaf.requires_grad for leaf in data.leaves[0])


def test_fewest_bytes() -> None:
    traffic = Traffic(
        read=100, written=80, bits=1, gradient_read=70, gradient_written=30, read_again=20
    )
    assert traffic.bytes("inference", 4) == 4 * 180
    assert traffic.bytes("forward", 4) == 4 * 180 + 10
    assert traffic.bytes("backward", 4) == 4 * 120 + 10
    assert traffic.bytes("step", 4) == 4 * 300 + 20
    fine, low = (1, 4, 4, 5), (1, 4, 2, 5)
    counts = {
        "plain": (workloads.fused_traffic(fine, [fine, low]), Traffic(120, 80, 0, 80, 40, 0)),
        "relu": (
            workloads.fused_traffic(fine, [fine, low], bits=1),
            Traffic(120, 80, 1, 80, 120, 0),
        ),
        # Behind a relu, maps that passed through share one gradient; with weights they do not.
        "shared": (
            workloads.fused_traffic(fine, [fine, fine, low], bits=1),
            Traffic(200, 80, 1, 80, 120, 0),
        ),
        "weights": (
            workloads.fused_traffic(fine, [fine, fine, low], factors=True, again=True),
            Traffic(200, 80, 0, 80, 200, 200),
        ),
        "maximum": (
            workloads.fused_traffic(fine, [fine, fine, low], bits=3),
            Traffic(200, 80, 3, 80, 200, 0),
        ),
        "copy": (workloads.fused_traffic(fine, [fine]), Traffic(80, 80, 0, 0, 0, 0)),
    }
    for name, (found, expected) in counts.items():
        assert found == expected, name


@pytest.mark.parametrize(
    ("name", "size", "dtype", "forward", "backward"),
    [
        ("fpn", "2x256x200x336", "float16", 181.7, 112.9),
        ("fpn", "16x256x200x336", "float16", 1453.7, 903.2),
        ("fpn-many", "2x256x200x336", "float16", 181.7, 112.9),
        ("hrnet-bilinear", "4x48x128x256", "float16", 30.1, 30.1),
        ("bifpn-up", "16x64x64x64", "float16", 18.9, 29.4),
        ("bifpn-up", "8x224x128x128", "float16", 132.1, 205.5),
        ("unet-cat-bilinear", "4x64x512x512", "float16", 436.2, 167.8),
        ("segformer-cat", "4x256x128x128", "float16", 178.8, 111.7),
        ("segmentation-sum", "4x256x128x128", "float16", 80.2, 80.2),
        ("dpt-fusion", "8x256x192x192", "float16", 339.7, 188.7),
        ("unet3d-cat", "2x32x128x128x128", "float16", 838.9, 302.0),
        ("image-pyramid", "1x3x1024x2048", "float32", 33.4, 33.4),
    ],
)
def test_fewest_megabytes_of_real_steps(
    name: str, size: str, dtype: str, forward: float, backward: float
) -> None:
    """Counted by hand: e(2E + S) and so on, E of the result, S of the coarser maps."""
    workload, parsed = WORKLOADS[name], workloads.parse_size(size)
    assert parsed in workload.cuda.large
    for direction, expected in (("forward", forward), ("backward", backward)):
        found = workload.minimum_bytes(parsed, workloads.DTYPES[dtype], direction)
        assert found / 1e6 == pytest.approx(expected, abs=0.05), direction


def test_the_grid() -> None:
    quick = workloads.cells("cpu", quick=True)
    whole = workloads.cells("cpu", quick=False)
    assert set(quick) < set(whole)
    assert len(set(whole)) == len(whole)
    assert {cell.workload for cell in quick} == {w.name for w in WORKLOADS.values() if w.quick}
    assert {cell.workload for cell in whole} == set(WORKLOADS)
    assert len(quick) <= 30  # ten seconds each
    assert {cell.dtype for cell in whole} == {"float32", "bfloat16"}
    assert {cell.dtype for cell in workloads.cells("cuda", quick=True)} == {
        "float16", "bfloat16", "float32",
    }  # fmt: skip
    assert {cell.layout for cell in quick} == {"NCHW", "channels_last"}
    assert {cell.layout for cell in whole if cell.size.rank == 1} == {"NCHW"}
    for rank in (1, 2, 3):
        assert {workloads.SMALL[rank], workloads.TINY[rank]} <= {cell.size for cell in whole}
    small = {*workloads.SMALL.values(), *workloads.TINY.values()}
    assert not small & {cell.size for cell in quick}
    assert any(size.batch == 1 for w in WORKLOADS.values() for size in w.cuda.others[:-2])
    (cell,) = workloads.cells(
        "cpu", quick=True, workloads=["fpn"], dtypes=["float16"], layouts=["NCHW"], sizes=[SMALL]
    )
    assert str(cell) == "fpn 2x4x10x14 float16 NCHW"
    (asked,) = workloads.cells("cpu", quick=True, workloads=["signal-sum"])
    assert str(asked) == "signal-sum 4x128x8192 float32 NCHW"
    planar = workloads.cells("cpu", quick=False, sizes=[SMALL])
    assert {cell.workload for cell in planar} == {w.name for w in WORKLOADS.values() if w.rank == 2}
    with pytest.raises(ValueError, match="expected 5 numbers for unet3d-cat, got 2x4x10x14"):
        workloads.cells("cpu", quick=True, workloads=["unet3d-cat"], sizes=[SMALL])


def test_the_grid_has_what_every_goal_needs() -> None:
    whole = workloads.cells("cpu", quick=False)
    assert goals.goals_of(whole) == list(goals.CPU_GOALS)
    have = {(cell.workload, cell.dtype, cell.layout, cell.size) for cell in whole}
    for goal in goals.CPU_GOALS:
        sizes = {
            s for w, d, la, s in have if (w, d, la) == (goal.workload, goal.dtype, goal.layout)
        }
        if goal.peer == goals.OURS_FLOAT32:
            assert all((goal.workload, "float32", goal.layout, size) in have for size in sizes)


def test_goals_of_a_part_of_the_grid() -> None:
    quick = goals.goals_of(workloads.cells("cpu", quick=True))
    assert {g.dtype for g in quick if g.workload == "unet-cat-bilinear"} == {"float32", "bfloat16"}
    assert {g.dtype for g in quick if g.workload == "head-cat"} == {"float32"}
    one = goals.goals_of([CELL])
    assert {(g.workload, g.dtype, g.layout) for g in one} == {(CELL.workload, "float32", "NCHW")}
    assert len(set(goals.CPU_GOALS)) == len(goals.CPU_GOALS)


def test_a_goal_is_where_eager_makes_several_passes() -> None:
    effort = goals.eager_effort
    assert effort("bilinear-add-relu", "inference").passes == 3  # interpolate, add, relu
    assert effort("bilinear-add-relu", "backward").passes == 2  # relu's and interpolate's
    assert effort("unet-cat-nearest", "backward").passes == 1  # a view, then interpolate's
    assert effort("resample-bilinear", "inference").passes == 1
    # A quarter of a map in, one out; that and the skip in, one out; one in and one out for the
    # relu. The fewest are a quarter and one in, one out.
    ratio = effort("bilinear-add-relu", "inference").bytes_ratio
    assert ratio == pytest.approx((0.25 + 1 + 3 + 2) / 2.25)
    threes = {(g.workload, g.direction) for g in goals.CPU_GOALS if g.factor == 3.0}
    assert ("unet-cat-nearest", "inference") in threes
    assert ("unet-cat-nearest", "backward") not in threes
    assert not {g for g in threes if g[0].startswith("resample-")}


@pytest.mark.parametrize("value", ["64x200", "2x64x200x0", "axbxcxd", "", "1x2x3x4x5x6"])
def test_sizes_that_are_none(value: str) -> None:
    with pytest.raises(ValueError, match="expected NxCxL, NxCxHxW or NxCxDxHxW"):
        workloads.parse_size(value)


@pytest.mark.parametrize("value", ["2x64x200", "2x64x200x336", "1x16x8x8x8"])
def test_sizes_of_every_rank(value: str) -> None:
    size = workloads.parse_size(value)
    assert str(size) == value
    assert size.rank == value.count("x") - 1
    assert (size.batch, size.channels, *size.spatial) == tuple(size)


# ---------------------------------------------------------------------------- a cell


def test_another_mode_is_another_function() -> None:
    """What the bound on the peers' errors must tell apart."""
    maps = workloads.make_inputs(CELL, CPU)
    shifted = torch.nn.functional.interpolate(
        maps[1], size=maps[0].shape[2:], mode="bilinear", align_corners=True
    )
    nearest = torch.nn.functional.interpolate(maps[1], size=maps[0].shape[2:])
    truth = [y.double() for y in WORKLOADS[CELL.workload].eager(maps)]
    for other in (shifted, nearest):
        found = [torch.relu(maps[0] + other)]
        assert runner.relative_error(found, truth) > 2 * runner.SAME_FUNCTION


def test_a_sign_that_rounding_flips_is_no_error_of_the_gradient() -> None:
    data = Data.make(CELL, CPU)
    truth = runner.Truth(CELL, data)
    eager = WORKLOADS[CELL.workload].eager

    def flipped(maps: contenders.Tensors) -> list[Tensor]:
        """One element of the result that is 0 in truth is a bit more here, and the reverse."""
        skip = maps[0].clone()
        exact = eager([maps[0].detach(), maps[1].detach()])[0].flatten()
        for at in (int(exact.argmin()), int(exact.argmax())):
            skip.view(-1)[at] += 1e-3 - exact[at] if exact[at] == 0 else -2 * exact[at]
        return eager([skip, maps[1]])

    found = truth.errors_of(flipped, data)
    assert found.outputs > 1e-3
    assert found.gradients <= TOLERANCES[torch.float32][0]
    doubled = truth.errors_of(lambda maps: [2 * y for y in eager(maps)], data)
    assert doubled == pytest.approx((1.0, 1.0))


def test_errors_are_relative_and_nan_is_the_worst() -> None:
    truth = [torch.tensor([3.0, 4.0]).double()]
    assert runner.relative_error([torch.tensor([3.0, 4.5])], truth) == pytest.approx(0.1)
    assert runner.relative_error([torch.tensor([3.0, float("nan")])], truth) == float("inf")


def settings(*against: str) -> Settings:
    return Settings(CPU, HostWatch(1), rounds=3, against=against, min_sample=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("kernels")
def test_a_cell_is_measured_in_all_directions(dtype: str) -> None:
    steps: list[str] = []
    outcome = runner.run_cell(CELL._replace(dtype=dtype), settings(EAGER), steps.append)
    assert not outcome.left_out
    assert not outcome.wrong
    assert f"checking {OURS}" in steps
    places = {(m.contender, m.direction) for m in outcome.measurements}
    assert places == {(c, d) for c in (EAGER, OURS) for d in contenders.DIRECTIONS}
    for m in outcome.measurements:
        assert len(m.timing.samples) == len(m.host.samples) == 3
        assert m.contender != OURS or 0 < m.error <= TOLERANCES[workloads.DTYPES[dtype]][0]
        assert m.launch == runner.DIRECT
    by_place = {(m.contender, m.direction): m for m in outcome.measurements}
    map_bytes = 2 * 4 * 10 * 14 * workloads.DTYPES[dtype].itemsize
    # Eager writes the resampled map, the sum and the result, of which two are live at once.
    assert 2 * map_bytes <= by_place[EAGER, "inference"].peak_bytes < 2.5 * map_bytes
    assert map_bytes <= by_place[OURS, "inference"].peak_bytes < 1.5 * map_bytes


@pytest.mark.usefixtures("kernels")
def test_a_peer_that_fails_or_is_wrong_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(maps: Any) -> list[Tensor]:
        raise RuntimeError("no compiler here\nand a traceback")

    found = contenders.functions(CELL, CPU)
    other = {
        EAGER: lambda maps: [2 * y for y in found[EAGER](maps)],
        COMPILED: broken,
        OURS: found[OURS],
    }
    monkeypatch.setattr(contenders, "functions", lambda cell, device: other)
    outcome = runner.run_cell(CELL, settings(EAGER, COMPILED))
    assert {m.contender for m in outcome.measurements} == {OURS}
    assert not outcome.wrong
    assert outcome.left_out[0].startswith(
        f"eager of {CELL}: relative errors of outputs 1.0e+00, allowed 5.0e-02, and of gradients"
    )
    assert outcome.left_out[1] == f"torch.compile of {CELL}: RuntimeError: no compiler here"


def test_wrong_results_of_ours_are_told_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = WORKLOADS[CELL.workload].eager
    wrong = {EAGER: eager, OURS: lambda maps: [y * (1 + 1e-5) for y in eager(maps)]}
    monkeypatch.setattr(contenders, "functions", lambda cell, device: wrong)
    outcome = runner.run_cell(CELL, settings(EAGER))
    assert {m.contender for m in outcome.measurements} == {EAGER}
    (told,) = outcome.wrong
    assert "errors of outputs 1.0e-05, allowed 1.3e-06, and of gradients 1.0e-05" in told


@pytest.mark.parametrize(("dtype", "worse"), [("float32", 1e-5), ("bfloat16", 0.04)])
def test_float32_may_be_as_wrong_as_eager(
    monkeypatch: pytest.MonkeyPatch, dtype: str, worse: float
) -> None:
    """Where sums cancel; 16 bits are held to their own bound, for eager rounds at each step."""
    eager = WORKLOADS[CELL.workload].eager

    def off(factor: float) -> contenders.Function:
        return lambda maps: [y * (1 + factor) for y in eager([x.float() for x in maps])]

    for own, is_right in ((0.9 * worse, dtype == "float32"), (1.1 * worse, False)):
        both = {EAGER: off(worse), OURS: off(own)}
        monkeypatch.setattr(contenders, "functions", lambda cell, device, both=both: both)
        outcome = runner.run_cell(CELL._replace(dtype=dtype), settings(EAGER))
        assert not outcome.left_out
        assert (not outcome.wrong) == is_right


def test_the_values_of_a_cell_are_the_same_in_each_run() -> None:
    first, second = Data.make(CELL, CPU, 2), Data.make(CELL, CPU, 2)
    for kind in ("plain", "grads"):
        sets = getattr(first, kind)
        assert not torch.equal(sets[0][0], sets[1][0])
        for mine, again in zip(sets, getattr(second, kind), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(mine, again, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cell_on_a_gpu_also_runs_as_a_graph() -> None:
    device = torch.device("cuda")
    cell = CELL._replace(dtype="float16")
    config = Settings(device, contenders.CudaWatch(), rounds=3, against=(EAGER, contenders.AMP))
    outcome = runner.run_cell(cell, config)
    assert not outcome.wrong
    assert not outcome.left_out
    assert {m.launch for m in outcome.measurements} == {runner.DIRECT, runner.GRAPH}
    assert {m.contender for m in outcome.measurements} == {EAGER, contenders.AMP, OURS}
    assert all(m.timing.median > 0 for m in outcome.measurements)


@pytest.mark.usefixtures("kernels")
def test_half_precision_is_timed_beside_float32_on_the_same_values() -> None:
    half = CELL._replace(dtype="bfloat16")
    assert OURS_FLOAT32 not in contenders.functions(CELL, CPU)
    outcome = runner.run_cell(half, settings(OURS_FLOAT32))
    found = {(m.contender, m.direction): m for m in outcome.measurements}
    assert {contender for contender, _ in found} == {OURS, OURS_FLOAT32}
    for direction in contenders.DIRECTIONS:
        wide, narrow = found[OURS_FLOAT32, direction], found[OURS, direction]
        assert wide.peak_bytes > 1.4 * narrow.peak_bytes
        assert wide.minimum_bytes > 1.4 * narrow.minimum_bytes
    data = Data.make(half, CPU)
    wide_data = data.in_float32()
    for kind in ("plain", "leaves", "grads"):
        for narrow_set, wide_set in zip(getattr(data, kind), getattr(wide_data, kind), strict=True):
            for narrow_map, wide_map in zip(narrow_set, wide_set, strict=True):
                assert wide_map.dtype == torch.float32
                assert wide_map.stride() == narrow_map.stride()
                assert torch.equal(wide_map, narrow_map.float())


@pytest.mark.usefixtures("kernels")
def test_a_step_is_forward_and_backward_of_the_same_call() -> None:
    outcome = runner.run_cell(CELL, settings(EAGER))
    found = {(m.contender, m.direction): m for m in outcome.measurements}
    for name in (EAGER, OURS):
        ahead, back, both = (found[name, d] for d in ("forward", "backward", "step"))
        pairs = zip(ahead.timing.samples, back.timing.samples, strict=True)
        assert both.timing.samples == pytest.approx([a + b for a, b in pairs])
        assert both.peak_bytes == back.peak_bytes >= ahead.peak_bytes
        assert both.minimum_bytes == ahead.minimum_bytes + back.minimum_bytes
        assert both.error == max(ahead.error, back.error)


@pytest.mark.usefixtures("kernels")
def test_several_threads_are_timed_beside_one() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def reading() -> Any:
        seen.append(torch.get_num_threads())
        return contenders.Reading(1.0, 1.0)

    try:
        torch.set_num_threads(2)
        assert OURS_ONE_THREAD in contenders.functions(CELL, CPU)
        samplers = contenders.Samplers(reading, lambda: (reading(), reading()))
        samplers.inference()
        samplers.with_threads(1).inference()
        samplers.with_threads(1).training()
        assert seen == [2, 1, 1, 1]
        assert torch.get_num_threads() == 2
        config = Settings(CPU, HostWatch(2), 1, (OURS_ONE_THREAD,), min_sample=1e-5)
        outcome = runner.run_cell(CELL, config)
        assert {m.contender for m in outcome.measurements} == {OURS, OURS_ONE_THREAD}
        assert not outcome.wrong
        torch.set_num_threads(1)
        assert OURS_ONE_THREAD not in contenders.functions(CELL, CPU)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("kernels")
@each_workload
def test_results_do_not_depend_on_the_number_of_threads(name: str) -> None:
    """Bit for bit, forward and backward; maps large enough that threads share them."""
    rank = WORKLOADS[name].rank
    size = {1: Size(2, 8, 8192), 2: Size(2, 8, 64, 96), 3: Size(1, 4, 16, 32, 32)}[rank]
    data = Data.make(Cell(name, size, "float32", "NCHW"), CPU)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results = step(
                lambda inputs: WORKLOADS[name].fused(inputs, "kernel"), data.plain[0],
                data.grads[0],
            )  # fmt: skip
            found.append([tensor for tensors in results for tensor in tensors])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_pytorch_lacks_in_half_precision_leaves_gradients_to_make() -> None:
    data = Data.make(Cell("shrink-antialias", SMALL, "bfloat16", "NCHW"), CPU)
    (grad,) = data.grads[0]
    assert grad.dtype == torch.bfloat16
    assert grad.shape == (2, 4, 5, 7)


def test_profiled_cells_have_every_workload_in_one_dtype() -> None:
    found = profile_calls.profiled_cells()
    assert {cell.workload for cell in found} == set(WORKLOADS)
    assert {cell.dtype for cell in found} == {"float16"}
    assert {cell.layout for cell in found} == {"NCHW", "channels_last"}


@pytest.mark.usefixtures("kernels")
def test_only_the_second_calls_are_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    workload = WORKLOADS[CELL.workload]
    fused, gradients = workload.fused, contenders.gradients

    def told(inputs: contenders.Tensors, impl: Any) -> list[Tensor]:
        log.append("forward")
        return fused(inputs, impl)

    def told_gradients(*arguments: Any) -> Any:
        log.append("backward")
        return gradients(*arguments)

    monkeypatch.setitem(WORKLOADS, CELL.workload, dataclasses.replace(workload, fused=told))
    monkeypatch.setattr(contenders, "gradients", told_gradients)
    profile_calls.profile_cell(CELL, CPU, lambda on: log.append("on" if on else "off"))
    assert log == [
        "forward", "forward", "backward", "on", "forward", "off", "forward", "on", "backward",
        "off",
    ]  # fmt: skip
