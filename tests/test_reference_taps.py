"""Taps of the modes without kernels, for every pair of sizes, against F.interpolate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from msr_cuda import _spec, reference
from msr_cuda._spec import Mode

#: F.interpolate's mode, align_corners and antialias
ATEN: dict[Mode, tuple[str, bool | None, bool]] = {
    Mode.CUBIC: ("bicubic", False, False),
    Mode.CUBIC_ALIGN_CORNERS: ("bicubic", True, False),
    Mode.AREA: ("area", None, False),
    Mode.LINEAR_ANTIALIAS: ("bilinear", False, True),
    Mode.LINEAR_ANTIALIAS_ALIGN_CORNERS: ("bilinear", True, True),
    Mode.CUBIC_ANTIALIAS: ("bicubic", False, True),
    Mode.CUBIC_ANTIALIAS_ALIGN_CORNERS: ("bicubic", True, True),
    Mode.LANCZOS_ANTIALIAS: ("lanczos", False, True),
}
every_mode = pytest.mark.parametrize("mode", ATEN, ids=lambda m: m.name.lower())


def matrix(mode: Mode, in_size: int, out_size: int, factor: float | None) -> Tensor:
    index, weight = reference.taps(mode, in_size, out_size, factor)
    assert index.shape == weight.shape == (out_size, index.shape[1])
    return torch.zeros(out_size, in_size, dtype=torch.float64).scatter_add_(1, index, weight)


def aten(mode: Mode, in_size: int, size: tuple[int, int] | None, factor: float | None) -> Tensor:
    name, corners, antialias = ATEN[mode]
    image = torch.eye(in_size, dtype=torch.float64)[None, :, None]
    scale = None if factor is None else (1, factor)
    return interpolate(
        image, size, scale, mode=name, align_corners=corners, antialias=antialias
    )[0, :, 0].T  # fmt: skip


def test_every_mode_without_a_kernel_is_here() -> None:
    assert set(ATEN) == {m for m in Mode if m > _spec.LAST_TWO_TAP_MODE}


@every_mode
def test_every_pair_of_sizes_up_to_24(mode: Mode) -> None:
    if mode is Mode.LANCZOS_ANTIALIAS and not hasattr(torch._C._nn, "_upsample_lanczos2d_aa"):
        pytest.skip("this PyTorch's F.interpolate has no lanczos")
    for in_size in range(1, 25):
        for out_size in range(1, 25):
            error = matrix(mode, in_size, out_size, None) - aten(mode, in_size, (1, out_size), None)
            assert error.abs().max() < 1e-13, (in_size, out_size)


@every_mode
def test_scale_factors(mode: Mode) -> None:
    if mode is Mode.LANCZOS_ANTIALIAS and not hasattr(torch._C._nn, "_upsample_lanczos2d_aa"):
        pytest.skip("this PyTorch's F.interpolate has no lanczos")
    for in_size in range(1, 33, 3):
        for factor in (0.11, 0.3, 0.5, 0.77, 1.25, 1.5, 2.0, 2.7):
            out_size = int(in_size * factor)
            if out_size < 1 or out_size == in_size:
                continue  # an axis that keeps its size is a copy here
            error = matrix(mode, in_size, out_size, factor) - aten(mode, in_size, None, factor)
            assert error.abs().max() < 1e-13, (in_size, factor)


@every_mode
def test_float32_weights_sum_to_one(mode: Mode) -> None:
    for in_size, out_size in ((7, 19), (19, 7), (64, 113), (1000, 3), (1, 9), (9, 1), (33, 2049)):
        index, weight = reference.taps(mode, in_size, out_size, dtype=torch.float32)
        assert weight.dtype == torch.float32
        assert int(index.min()) >= 0 and int(index.max()) < in_size
        truth = reference.taps(mode, in_size, out_size)[1]
        # Half a unit in the last place: a window cut off at an end may have a weight above one.
        assert (weight.double() - truth).abs().max() <= 2**-23
        assert (weight.double().sum(1) - 1).abs().max() <= 2**-24


def test_coordinates_do_not_lose_precision_with_size() -> None:
    """ATen's float32 coordinate is off by 2.5e-4 elements at 1024 -> 1537; the exact one is not."""
    x = torch.randn(1, 1, 1, 1024, dtype=torch.float64)
    for antialias in (False, True):
        truth = interpolate(x, (1, 1537), mode="bicubic", antialias=antialias)
        aten = interpolate(x.float(), (1, 1537), mode="bicubic", antialias=antialias)
        mode = Mode.CUBIC_ANTIALIAS if antialias else Mode.CUBIC
        ours = reference.resample_map(x.float(), (1, 1537), mode)
        assert (ours.double() - truth).abs().max() < 3e-6
        assert (aten.double() - truth).abs().max() > 2e-5
