"""The one header's tap tables against the reference and against F.interpolate of the identity.

These tables are what CPU and CUDA kernels use: with them checked here, tests on a GPU need to look
at the traversals only.
"""

from __future__ import annotations

import random

import pytest
import torch
from conftest import missing
from torch import Tensor
from torch.nn.functional import interpolate

from msr_cuda import _extension, _ops, reference
from msr_cuda._spec import LAST_TWO_TAP_MODE, Mode

MODES = [mode for mode in Mode if mode <= LAST_TWO_TAP_MODE]
WINDOWS = [mode for mode in Mode if mode > LAST_TWO_TAP_MODE]
ATEN = {
    Mode.NEAREST: ("nearest", None),
    Mode.NEAREST_EXACT: ("nearest-exact", None),
    Mode.LINEAR: ("bilinear", False),
    Mode.LINEAR_ALIGN_CORNERS: ("bilinear", True),
}
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name.lower())
every_window = pytest.mark.parametrize("mode", WINDOWS, ids=lambda m: m.name.lower())


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if not _extension.LOADED:
        missing(f"no kernels: {_extension.WHY_NOT}")


def header_matrix(
    mode: Mode, in_size: int, out_size: int, factor: float, *, adjoint: bool, single: bool = False
) -> Tensor:
    """The header's table as a float64 matrix [out_size, in_size]."""
    first, count, weights = _ops.taps(int(mode), in_size, out_size, factor, adjoint, single)
    rows = torch.repeat_interleave(torch.arange(len(first)), count)
    start = torch.cumsum(count, 0) - count
    columns = torch.arange(len(weights)) - start[rows] + first[rows]
    shape = (in_size, out_size) if adjoint else (out_size, in_size)
    matrix = torch.zeros(shape, dtype=torch.float64)
    matrix[rows, columns] = weights
    return matrix.T if adjoint else matrix


def reference_matrix(
    mode: Mode, in_size: int, out_size: int, factor: float | None, dtype: torch.dtype
) -> Tensor:
    index, weight = reference.taps(mode, in_size, out_size, factor, dtype=dtype)
    matrix = torch.zeros(out_size, in_size, dtype=torch.float64)
    return matrix.scatter_add_(1, index, weight.double())


def aten(rows: Tensor, mode: Mode, out_size: int, factor: float | None = None) -> Tensor:
    """F.interpolate along the last axis of ``rows`` [M, in_size], in float64.

    As one image of one row: where rounding decides, ATen's one-dimensional nearest-exact differs
    from its two-dimensional one. For nearest, in float32: for float64 maps, ATen's CPU kernels
    scale in float64.
    """
    name, corners = ATEN[mode]
    dtype = torch.float32 if mode.name.startswith("NEAREST") else torch.float64
    image = rows.to(dtype)[None, :, None]
    if factor is None:
        result = interpolate(image, (1, out_size), mode=name, align_corners=corners)
    else:
        result = interpolate(image, scale_factor=(1, factor), mode=name, align_corners=corners)
    return result[0, :, 0].double()


@every_mode
def test_every_pair_of_sizes_up_to_64(mode: Mode) -> None:
    for in_size in range(1, 65):
        for out_size in range(1, 65):
            where = f"{mode.name} {in_size} -> {out_size}"
            forward = header_matrix(mode, in_size, out_size, 0.0, adjoint=False)
            backward = header_matrix(mode, in_size, out_size, 0.0, adjoint=True)
            assert torch.equal(forward, backward), where
            truth = reference_matrix(mode, in_size, out_size, None, torch.float64)
            assert torch.equal(forward, truth), where
            assert (forward - aten(torch.eye(in_size), mode, out_size).T).abs().max() < 1e-12, where


@every_mode
def test_every_size_up_to_64_by_scale_factor(mode: Mode) -> None:
    generator = random.Random(1)
    for in_size in range(1, 65):
        for factor in (0.5, 1.5, 2.0, 3.0, 0.3, 1.25, 0.77, 2.7, generator.uniform(0.05, 6)):
            out_size = int(in_size * factor)
            if out_size < 1:
                continue
            forward = header_matrix(mode, in_size, out_size, factor, adjoint=False)
            where = f"{mode.name} {in_size} by {factor}"
            backward = header_matrix(mode, in_size, out_size, factor, adjoint=True)
            assert torch.equal(forward, backward), where
            truth = reference_matrix(mode, in_size, out_size, factor, torch.float64)
            assert torch.equal(forward, truth), where
            if in_size == out_size:
                continue  # a copy here; in ATen it depends on device, layout and mode
            image = aten(torch.eye(in_size), mode, out_size, factor).T
            assert (forward - image).abs().max() < 1e-12, where


@every_mode
def test_float32_weights(mode: Mode) -> None:
    for in_size, out_size in ((7, 19), (19, 7), (64, 113), (100, 3), (1, 9), (9, 1), (33, 2049)):
        for factor in (0.0, out_size / in_size * 1.001):
            single = header_matrix(mode, in_size, out_size, factor, adjoint=False, single=True)
            truth = reference_matrix(mode, in_size, out_size, factor or None, torch.float32)
            assert torch.equal(single, truth)
            assert torch.equal(single.sum(1), torch.ones(out_size, dtype=torch.float64))


@every_mode
def test_thousands_of_random_larger_sizes(mode: Mode) -> None:
    generator = random.Random(int(mode))
    for _ in range(1000):
        in_size, out_size = generator.randint(65, 3000), generator.randint(65, 3000)
        factor = generator.choice((0.0, generator.uniform(0.1, 5)))
        if factor:
            out_size = int(in_size * factor)
        first, count, weights = _ops.taps(int(mode), in_size, out_size, factor, False, False)
        index, weight = reference.taps(mode, in_size, out_size, factor or None)
        where = f"{mode.name} {in_size} -> {out_size} by {factor}"
        assert torch.equal(first, index[:, 0]), where
        two = count == 2
        starts = torch.cumsum(count, 0) - count
        if index.shape[1] == 2:
            assert torch.equal(two, index[:, 1] > index[:, 0]), where
            assert torch.equal(weights[starts[two]], weight[two, 0]), where
            assert torch.equal(weights[starts[two] + 1], weight[two, 1]), where
        assert torch.equal(
            weights[starts[~two]], torch.ones(int((~two).sum()), dtype=torch.float64)
        )
        # Resampling the indices themselves gives the coordinate that was read.
        image = aten(torch.arange(float(in_size))[None], mode, out_size, factor or None)[0]
        ours = (index.double() * weight).sum(1)
        # ATen takes the floor of a linear coordinate in float32, also of a float64 one.
        bound = 0 if mode.name.startswith("NEAREST") else in_size * 2**-23
        assert (ours - image).abs().max() <= bound, where
        # The adjoint's ranges hold at least the destinations that read each source.
        begin, number, _ = _ops.taps(int(mode), in_size, out_size, factor, True, False)
        counted = torch.zeros(in_size + 1, dtype=torch.int64)
        counted.scatter_add_(0, first, torch.ones_like(first))
        counted.scatter_add_(0, first[two] + 1, torch.ones_like(first[two]))
        assert bool((number >= counted[:-1]).all()), where
        assert int(begin.min()) >= 0 and int((begin + number).max()) <= out_size, where


def check_window(mode: Mode, in_size: int, out_size: int, factor: float | None) -> None:
    """Header and reference list the same window, in both directions, and it sums to one."""
    where = f"{mode.name} {in_size} -> {out_size} by {factor}"
    # The two add and divide in another order: some ulps in float64, one or two in float32.
    for dtype, bound in ((torch.float64, 4e-15), (torch.float32, 1.5e-7)):
        single = dtype == torch.float32
        forward, backward = (
            header_matrix(mode, in_size, out_size, factor or 0.0, adjoint=adjoint, single=single)
            for adjoint in (False, True)
        )
        assert torch.equal(forward, backward), where
        truth = reference_matrix(mode, in_size, out_size, factor, dtype)
        assert (forward - truth).abs().max() < bound, where
        assert (forward.sum(1) - 1).abs().max() < bound, where


@every_window
def test_windows_of_every_pair_of_sizes_up_to_16(mode: Mode) -> None:
    for in_size in range(1, 17):
        for out_size in range(1, 17):
            check_window(mode, in_size, out_size, None)


@every_window
def test_windows_by_scale_factor(mode: Mode) -> None:
    generator = random.Random(1)
    for in_size in (1, 2, 3, 7, 16, 37):
        for factor in (0.5, 1.5, 2.0, 0.3, 1.25, 0.77, generator.uniform(0.05, 6)):
            if int(in_size * factor) > 0:
                check_window(mode, in_size, int(in_size * factor), factor)


@every_window
def test_windows_of_random_larger_sizes(mode: Mode) -> None:
    generator = random.Random(int(mode))
    for _ in range(30):
        check_window(mode, generator.randint(25, 700), generator.randint(25, 700), None)
    check_window(mode, 480, 1, None)
    check_window(mode, 1, 480, None)


def test_float32_rounding_of_nearest_is_kept() -> None:
    """Integer arithmetic picks other pixels than ATen here."""
    for in_size, out_size in ((2, 82), (23, 94), (381, 254)):
        first, _, _ = _ops.taps(int(Mode.NEAREST), in_size, out_size, 0.0, False, False)
        ramp = torch.arange(float(in_size))[None, None]
        assert torch.equal(first.float(), interpolate(ramp, size=out_size)[0, 0])


def test_linear_coordinates_do_not_lose_precision_with_size() -> None:
    """ATen's float32 coordinate is off by 2.5e-4 at 1024 -> 1537; the exact one is not."""
    x = torch.randn(1, 1, 1024, dtype=torch.float64)
    truth = interpolate(x, size=1537, mode="linear")
    aten = interpolate(x.float(), size=1537, mode="linear")
    ours = reference.resample_map(x.float(), (1537,), Mode.LINEAR)
    assert (ours.double() - truth).abs().max() < 2e-6
    assert (aten.double() - truth).abs().max() > 2e-5


def test_the_longest_axes() -> None:
    """No 32-bit product overflows: 2^31 - 2 elements on both sides, checked at single indices."""
    limit = 2**31 - 2
    for mode in MODES:
        first, count, _ = _ops.taps(int(mode), limit, 5, 0.0, False, False)
        assert int(first.min()) >= 0 and int((first + count).max()) <= limit
        if mode is Mode.LINEAR:
            assert first.tolist() == [((2 * d + 1) * limit - 5) // 10 for d in range(5)]
        if mode is Mode.LINEAR_ALIGN_CORNERS:
            assert first.tolist() == [d * (limit - 1) // 4 for d in range(5)]
        begin, number, _ = _ops.taps(int(mode), 5, limit // 2**12, 0.0, True, False)
        assert int(begin[0]) == 0 and int((begin + number).max()) == limit // 2**12


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(RuntimeError, match="taps: unknown mode 12"):
        _ops.taps(12, 4, 4, 0.0, False, False)
    with pytest.raises(RuntimeError, match=r"taps: expected sizes in \[1, 2\^31\)"):
        _ops.taps(0, 0, 4, 0.0, False, False)
