"""The raw operators, private: what the compiled extension registers, and their fakes.

``gather`` is gather-sum (many maps in, one out: forward of sum and cat), ``spread`` its adjoint
(one map in, many out: their backward). Both are linear in the maps and know nothing of autograd.
The ``.full`` overloads take the rarer arguments. ``csrc/ops/library.cpp`` has the schemas,
:mod:`msr_cuda._spec` the packed integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _extension, _spec

gather: Any = None
gather_full: Any = None
spread: Any = None
spread_full: Any = None
taps: Any = None


def _fake_gather_full(
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    gate: Tensor | None,
    size: Sequence[int],
    spec: int,
    scales: Sequence[float],
) -> tuple[Tensor, Tensor]:
    batch, channels = 1, 0
    for x in inputs:
        if x.shape[0] != 1:
            batch = x.shape[0]
        channels = channels + x.shape[1] if spec & _spec.CAT else x.shape[1]
    channels_last = bool(spec & _spec.CHANNELS_LAST)
    out = torch.empty(
        (batch, channels, *size),
        dtype=_spec.result_dtype(spec),
        device=inputs[0].device,
        memory_format=_spec.memory_format(channels_last, len(size) + 2),
    )
    saves = bool(spec & _spec.SAVE_MASK)
    mask = out.new_empty(_spec.mask_bytes(out.numel()) if saves else 0, dtype=torch.uint8)
    return out, mask


def _fake_gather(inputs: Sequence[Tensor], size: Sequence[int], spec: int) -> Tensor:
    return _fake_gather_full(inputs, None, None, size, spec, ())[0]


def _fake_spread_full(
    grad: Tensor,
    gate: Tensor | None,
    weights: Tensor | None,
    inputs: Sequence[Tensor],
    shapes: Sequence[int],
    spec: int,
    requests: int,
    scales: Sequence[float],
) -> tuple[list[Tensor], Tensor]:
    dim = grad.dim()
    grads = []
    count = len(shapes) // dim
    for i in range(count):
        bits = requests >> (4 * i)
        if not bits & _spec.REQUEST_WANTED:
            continue
        channels_last = bool(bits & _spec.REQUEST_CHANNELS_LAST)
        grads.append(
            torch.empty(
                tuple(shapes[i * dim : (i + 1) * dim]),
                dtype=_spec.DTYPES[bits >> _spec.REQUEST_DTYPE_SHIFT & 3],
                device=grad.device,
                memory_format=_spec.memory_format(channels_last, dim),
            )
        )
    return grads, grad.new_empty(count if inputs else 0, dtype=_spec.accumulation_dtype(spec))


def _fake_spread(grad: Tensor, shapes: Sequence[int], spec: int, requests: int) -> list[Tensor]:
    return _fake_spread_full(grad, None, None, (), shapes, spec, requests, ())[0]


if _extension.LOADED:
    gather = torch.ops.msr_cuda.gather.default
    gather_full = torch.ops.msr_cuda.gather.full
    spread = torch.ops.msr_cuda.spread.default
    spread_full = torch.ops.msr_cuda.spread.full
    taps = torch.ops.msr_cuda.taps.default
    torch.library.register_fake("msr_cuda::gather", _fake_gather)
    torch.library.register_fake("msr_cuda::gather.full", _fake_gather_full)
    torch.library.register_fake("msr_cuda::spread", _fake_spread)
    torch.library.register_fake("msr_cuda::spread.full", _fake_spread_full)
