"""Results in a caller's memory: slices of larger buffers, and sums onto what is there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import msr_cuda
from msr_cuda import testing

LAST = torch.channels_last


def maps(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    high = torch.randn(2, 6, 10, 14, dtype=torch.float64, device=device).to(dtype)
    return high, torch.randn(2, 6, 5, 7, dtype=torch.float64, device=device).to(dtype)


def buffers(dtype: torch.dtype, device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Memory full of sevens, and the part of it that is written, [2, 6, 10, 14]."""

    def full(*shape: int) -> Tensor:
        return torch.full(shape, 7.0, dtype=dtype, device=device)

    whole, wide, apart = full(2, 6, 10, 14), full(2, 20, 10, 14), full(2, 6, 21, 29)
    last = full(2, 6, 10, 14).to(memory_format=LAST)
    wide_last = full(2, 20, 10, 14).to(memory_format=LAST)
    crop = full(3, 6, 16, 20)
    return {
        "whole": (whole, whole),
        "channels": (wide, wide[:, 4:10]),
        "whole-last": (last, last),
        "channels-last": (wide_last, wide_last[:, 4:10]),
        "strided": (apart, apart[:, :, 1::2, 1::2]),
        "crop": (crop, crop[1:, :, 3:13, 5:19]),
    }


CALLS: dict[str, Callable[..., Tensor]] = {
    "sum": lambda high, low, **k: msr_cuda.resample_sum([high, low], mode="bilinear", **k),
    "sum-relu-weights": lambda high, low, **k: msr_cuda.resample_sum(
        [high, low], mode="bilinear", activation="relu",
        weights=torch.tensor([0.5, 2.0], device=high.device), **k),
    "sum-channels": lambda high, low, **k: msr_cuda.resample_sum(
        [high, low], mode="area", activation="gelu", bias=torch.ones(6, device=high.device),
        weights=torch.arange(12.0, device=high.device).view(2, 6), **k),
    "cat": lambda high, low, **k: msr_cuda.resample_cat(
        [high[:, :2], low[:, :4]], mode="bicubic", **k),
    "max": lambda high, low, **k: msr_cuda.resample_max([high, low], **k),
    "resample": lambda high, low, **k: msr_cuda.resample(low, (10, 14), mode="bilinear", **k),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("memory", buffers(torch.float32, "cpu"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_written_where_it_should_be(
    call: str, memory: str, dtype: torch.dtype, device: str, impl: str
) -> None:
    high, low = maps(device)
    buffer, out = buffers(dtype, device)[memory]
    untouched = torch.ones_like(buffer, dtype=torch.bool)
    untouched.as_strided(out.shape, out.stride(), out.storage_offset()).fill_(False)
    before = out.clone()
    result = CALLS[call](high, low, out=out, impl=impl)
    assert result is out
    assert (buffer[untouched] == 7).all()
    truth = CALLS[call](high.double(), low.double(), impl="reference")
    # The maps are float32: so are the sums, unless the result is float64.
    testing.assert_within(out, truth)
    assert not torch.equal(out, before)


@pytest.mark.parametrize("memory", buffers(torch.float32, "cpu"))
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_added_to_what_is_there(
    memory: str, activation: str | None, device: str, impl: str
) -> None:
    _, low = maps(device)
    buffer, out = buffers(torch.float32, device)[memory]
    out.copy_(torch.randn_like(out))
    before = out.double()
    weights = torch.tensor([0.5], device=device)
    result = msr_cuda.resample_sum([low], out.shape[2:], mode="bilinear", weights=weights, out=out,
                                   accumulate=True, activation=activation, impl=impl)  # fmt: skip
    assert result is out
    truth = msr_cuda.resample_sum(
        [before, low.double()], mode="bilinear", activation=activation, impl="reference",
        weights=torch.tensor([1.0, 0.5], device=device, dtype=torch.float64),
    )  # fmt: skip
    testing.assert_within(out, truth)
    assert buffer.numel() == out.numel() or (buffer == 7).any()


def test_a_concatenation_can_be_built_in_place(kernel: str) -> None:
    """Each map into its channels of one buffer, also from other channels of it."""
    high, low = maps(kernel)
    for layout in (torch.contiguous_format, LAST):
        buffer = torch.zeros(2, 18, 10, 14, device=kernel).to(memory_format=layout)
        buffer[:, :6] = high
        msr_cuda.resample(low, (10, 14), mode="bilinear", out=buffer[:, 6:12], impl="kernel")
        msr_cuda.resample_sum([buffer[:, :6], low], out=buffer[:, 12:], impl="kernel")
        expected = torch.cat([
            high, msr_cuda.resample(low, (10, 14), mode="bilinear", impl="kernel"),
            msr_cuda.resample_sum([high, low], impl="kernel"),
        ], 1)  # fmt: skip
        testing.assert_within(buffer, expected.double())


def test_compiled_code_sees_the_writing(kernel: str) -> None:
    _, low = maps(kernel)

    def call(low: Tensor, out: Tensor) -> Tensor:
        msr_cuda.resample(low, (10, 14), mode="bilinear", out=out, impl="kernel")
        return out * 2

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    mine, theirs = (torch.zeros(2, 6, 10, 14, device=kernel) for _ in range(2))
    assert torch.equal(call(low, mine), compiled(low, theirs))
    assert torch.equal(mine, theirs) and mine.abs().max() > 0


def test_errors(device: str) -> None:
    high, low = maps(device)
    out = torch.zeros_like(high)
    grown = low.clone().requires_grad_()
    calls: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, r"expected out with accumulate=True, got None",
         lambda: msr_cuda.resample_sum([high, low], accumulate=True)),
        (ValueError, r"expected out to be \(2, 6, 10, 14\), got \(2, 6, 5, 7\)",
         lambda: msr_cuda.resample_sum([high, low], out=low.clone())),
        (ValueError, r"expected out to be \(2, 12, 10, 14\)",
         lambda: msr_cuda.resample_cat([high, low], out=out)),
        (TypeError, r"expected out to be one of float32",
         lambda: msr_cuda.resample_max([high, low], out=out.int())),
        (ValueError, r"expected dtype torch.float32 like out, got torch.float16",
         lambda: msr_cuda.resample_sum([high, low], out=out, dtype=torch.float16)),
        (ValueError, r"an expanded map",
         lambda: msr_cuda.resample_sum([high, low], out=out[:1].expand_as(out))),
        (ValueError, r"expected out to share no memory with inputs\[0\]",
         lambda: msr_cuda.resample_sum([out, low], out=out)),
        (ValueError, r"expected out to share no memory with inputs\[0\]",
         lambda: msr_cuda.resample(out[:, :4], (10, 14), out=out[:, 2:])),
        (RuntimeError, r"resample: expected no tensor that requires grad with out=",
         lambda: msr_cuda.resample(grown, (10, 14), out=out)),
    ]  # fmt: skip
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()
    with torch.no_grad():
        msr_cuda.resample(grown, (10, 14), out=out)
    assert out.abs().max() > 0
