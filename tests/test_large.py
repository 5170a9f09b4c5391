"""Tensors beyond 2^31 elements. Memory is reserved, not used: only pages that are touched exist."""

from __future__ import annotations

import pytest
import torch

import msr_cuda


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_reading_beyond_2_31_elements(layout: str, kernel: str) -> None:
    if kernel != "cpu":
        pytest.skip("device memory is not reserved lazily")
    height, width = 2**15 + 1, 2**15
    map = torch.empty(2, 2, height, width, dtype=torch.float16)  # 8.6 GB, if it were touched
    assert map.numel() > 2**32
    if layout == "channels_last":
        map = map.view(2, height, width, 2).permute(0, 3, 1, 2)
    size = (3, 4)
    rows = [(height * d) // 3 for d in range(3)]
    columns = [(width * d) // 4 for d in range(4)]
    expected = torch.randn(2, 2, *size).half()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            map[:, :, row, column] = expected[:, :, i, j]
    assert torch.equal(msr_cuda.resample(map, size=size, mode="nearest", impl="kernel"), expected)
    both = msr_cuda.resample_cat([expected[:, :1], map], size=size, impl="kernel")
    assert torch.equal(both[:, 1:], expected)


def test_gradient_from_beyond_2_31_elements(kernel: str) -> None:
    """A stride of 0 stands for memory: offsets stay small, indices and counts do not."""
    side = 2**16
    low = torch.zeros(1, 1, 1, 2, device=kernel, requires_grad=True)
    with torch.no_grad():
        grad = torch.ones(1, 1, 1, 1, device=kernel, dtype=torch.float16).expand(
            1, 1, 1, side * 256
        )
    from msr_cuda import _ops, _spec

    spec = _spec.pack([_spec.Mode.NEAREST], cat=False, activation=None, channels_last=False,
                      dtype=torch.float32, accumulate_double=True)  # fmt: skip
    (gradient,) = _ops.spread(grad, list(low.shape), spec, _spec.request(low, True))
    assert gradient.flatten().tolist() == [side * 128.0, side * 128.0]
