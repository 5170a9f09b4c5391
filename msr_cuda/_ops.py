"""The raw operators, private: what the compiled extension registers, and their fakes.

``gather`` takes many maps to one (forward of sum, concatenation and maximum), ``spread`` is its
adjoint (one map to many: their backward). They know nothing of autograd. The ``.full`` overloads
take the rarer arguments, ``.extended`` all of them, ``gather.out`` writes into a given map. Outside
of graphs ``gather.one`` (of one map), ``.packed`` and ``.saving`` (with a mask) are what ``gather``
and ``gather.full`` are, in half the time of a call.
The cross entropies and ``argmax`` are of resampled logits, which are never written;
``check_targets`` raises what their CUDA kernels met (None where there are none).
``csrc/ops/library.cpp`` has the schemas, :mod:`msr_cuda._spec` the packed integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _extension, _spec

gather: Any = None
gather_one: Any = None
gather_packed: Any = None
gather_saving: Any = None
gather_full: Any = None
gather_extended: Any = None
gather_out: Any = None
gather_many: Any = None
spread: Any = None
spread_short: Any = None
spread_full: Any = None
spread_full_short: Any = None
spread_extended: Any = None
pixel_weight_grads: Any = None
cross_entropy: Any = None
cross_entropy_backward: Any = None
binary_cross_entropy: Any = None
binary_cross_entropy_backward: Any = None
argmax: Any = None
check_targets: Any = None
taps: Any = None


def _fake_gather_extended(
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    gate: Tensor | None,
    grad: Tensor | None,
    size: Sequence[int],
    spec: int,
    scales: Sequence[float],
    windows: Sequence[int],
) -> tuple[Tensor, Tensor, list[Tensor]]:
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
    saves = bool(spec & _spec.SAVE)
    masks = 0
    if spec & _spec.MAX:
        masks = len(inputs)
    elif _spec.activation_of(spec) in _spec.BIT_ACTIVATIONS:
        masks = 1
    mask = out.new_empty(masks * _spec.mask_bytes(out.numel()) if saves else 0, dtype=torch.uint8)
    indices = []
    for i, x in enumerate(inputs):
        if saves and _spec.mode_of(spec, i) == _spec.MAX_POOL:
            elements = _spec.window_elements(windows, i, len(size))
            indices.append(
                out.new_empty(
                    x.shape[0] * x.shape[1] * out[0, 0].numel(),
                    dtype=torch.uint8 if elements <= 256 else torch.int32,
                )
            )
    return out, mask, indices


def _fake_gather_full(
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    gate: Tensor | None,
    size: Sequence[int],
    spec: int,
    scales: Sequence[float],
) -> tuple[Tensor, Tensor]:
    return _fake_gather_extended(inputs, weights, None, gate, None, size, spec, scales, ())[:2]


def _fake_gather(inputs: Sequence[Tensor], size: Sequence[int], spec: int) -> Tensor:
    return _fake_gather_full(inputs, None, None, size, spec, ())[0]


def _fake_gather_one(input: Tensor, size: int, spec: int) -> Tensor:
    return _fake_gather_packed([input], size, spec)


def _fake_gather_packed(inputs: Sequence[Tensor], size: int, spec: int) -> Tensor:
    return _fake_gather_saving(inputs, size, spec)[0]


def _fake_gather_saving(inputs: Sequence[Tensor], size: int, spec: int) -> tuple[Tensor, Tensor]:
    sizes = _spec.unpack_size(size, inputs[0].dim() - 2)
    return _fake_gather_full(inputs, None, None, sizes, spec, ())


def _fake_gather_out(
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    spec: int,
    scales: Sequence[float],
    windows: Sequence[int],
    *,
    out: Tensor,
) -> None:
    return None


def _fake_gather_many(
    inputs: Sequence[Tensor],
    counts: Sequence[int],
    weights: Sequence[Tensor],
    pixel_weights: Sequence[Tensor],
    sizes: Sequence[int],
    specs: Sequence[int],
    scales: Sequence[float],
    windows: Sequence[int],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    outputs, masks, indices = [], [], []
    rank = len(sizes) // len(counts)
    first = 0
    for job, (count, spec) in enumerate(zip(counts, specs, strict=True)):
        end = first + count
        output, mask, own = _fake_gather_extended(
            inputs[first:end], None, None, None, None, sizes[job * rank : (job + 1) * rank], spec,
            (), windows[3 * first * rank : 3 * end * rank],
        )  # fmt: skip
        outputs.append(output)
        masks.append(mask)
        indices += own
        first = end
    return outputs, masks, indices


def _fake_spread_extended(
    grad: Tensor,
    gate: Tensor | None,
    weights: Tensor | None,
    pixel_weights: Tensor | None,
    inputs: Sequence[Tensor],
    indices: Sequence[Tensor],
    shapes: Sequence[int],
    spec: int,
    requests: int,
    scales: Sequence[float],
    windows: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    dim = grad.dim()
    grads = []
    for i in range(len(shapes) // dim):
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
    shape = weights.shape if inputs and weights is not None else (0,)
    return grads, grad.new_empty(shape, dtype=_spec.accumulation_dtype(spec))


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
    return _fake_spread_extended(
        grad, gate, weights, None, inputs, (), shapes, spec, requests, scales, ()
    )


def _fake_spread(grad: Tensor, shapes: Sequence[int], spec: int, requests: int) -> list[Tensor]:
    return _fake_spread_full(grad, None, None, (), shapes, spec, requests, ())[0]


def _fake_pixel_weight_grads(
    grad: Tensor,
    inputs: Sequence[Tensor],
    weights: Tensor | None,
    gate: Tensor | None,
    spec: int,
    scales: Sequence[float],
    windows: Sequence[int],
) -> Tensor:
    shape = (grad.shape[0], len(inputs), 1, *grad.shape[2:])
    return grad.new_empty(shape, dtype=_spec.accumulation_dtype(spec))


def _fake_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    spec: int,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _spec.accumulation_dtype(spec)
    probabilities = target.dim() == logits.dim()
    pixels = (target.shape[0], *target.shape[2 if probabilities else 1 :])
    lse = logits.new_empty(pixels, dtype=dtype)
    loss = logits.new_empty(() if reduction else pixels, dtype=dtype)
    return loss, lse, lse.new_empty(pixels if probabilities else (0,)), lse.new_empty(())


def _fake_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    target_sums: Tensor,
    spec: int,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    return _logit_grads(logits, spec)


def _fake_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    spec: int,
    reduction: int,
) -> Tensor:
    dtype = _spec.accumulation_dtype(spec)
    return logits.new_empty(() if reduction else target.shape, dtype=dtype)


def _fake_binary_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    spec: int,
) -> Tensor:
    return _logit_grads(logits, spec)


def _logit_grads(logits: Tensor, spec: int) -> Tensor:
    layout = _spec.memory_format(bool(spec & _spec.CHANNELS_LAST), logits.dim())
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device, memory_format=layout)


def _fake_argmax(
    logits: Tensor, size: Sequence[int], spec: int, index_type: int, with_probability: bool
) -> tuple[Tensor, Tensor]:
    pixels = (logits.shape[0], *size)
    dtype = _spec.accumulation_dtype(spec)
    index = logits.new_empty(pixels, dtype=_spec.INDEX_DTYPES[index_type])
    return index, logits.new_empty(pixels if with_probability else (0,), dtype=dtype)


if _extension.LOADED:
    gather = torch.ops.msr_cuda.gather.default
    # Graphs do not have these: without OpOverload.__call__, which only they need, a call is faster.
    gather_one = torch.ops.msr_cuda.gather.one._op
    gather_packed = torch.ops.msr_cuda.gather.packed._op
    gather_saving = torch.ops.msr_cuda.gather.saving._op
    gather_full = torch.ops.msr_cuda.gather.full
    gather_extended = torch.ops.msr_cuda.gather.extended
    gather_out = torch.ops.msr_cuda.gather.out
    gather_many = torch.ops.msr_cuda.gather_many.default
    spread = torch.ops.msr_cuda.spread.default
    spread_full = torch.ops.msr_cuda.spread.full
    spread_short, spread_full_short = spread._op, spread_full._op  # the same outside of graphs
    spread_extended = torch.ops.msr_cuda.spread.extended
    pixel_weight_grads = torch.ops.msr_cuda.pixel_weight_grads.default
    cross_entropy = torch.ops.msr_cuda.cross_entropy.default
    cross_entropy_backward = torch.ops.msr_cuda.cross_entropy_backward.default
    binary_cross_entropy = torch.ops.msr_cuda.binary_cross_entropy.default
    binary_cross_entropy_backward = torch.ops.msr_cuda.binary_cross_entropy_backward.default
    argmax = torch.ops.msr_cuda.argmax.default
    if _extension.has_kernels("cuda"):
        check_targets = torch.ops.msr_cuda.check_targets.default
    taps = torch.ops.msr_cuda.taps.default
    torch.library.register_fake("msr_cuda::gather", _fake_gather)
    torch.library.register_fake("msr_cuda::gather.one", _fake_gather_one)
    torch.library.register_fake("msr_cuda::gather.packed", _fake_gather_packed)
    torch.library.register_fake("msr_cuda::gather.saving", _fake_gather_saving)
    torch.library.register_fake("msr_cuda::gather.full", _fake_gather_full)
    torch.library.register_fake("msr_cuda::gather.extended", _fake_gather_extended)
    torch.library.register_fake("msr_cuda::gather.out", _fake_gather_out)
    torch.library.register_fake("msr_cuda::gather_many", _fake_gather_many)
    torch.library.register_fake("msr_cuda::spread", _fake_spread)
    torch.library.register_fake("msr_cuda::spread.full", _fake_spread_full)
    torch.library.register_fake("msr_cuda::spread.extended", _fake_spread_extended)
    torch.library.register_fake("msr_cuda::pixel_weight_grads", _fake_pixel_weight_grads)
    torch.library.register_fake("msr_cuda::cross_entropy", _fake_cross_entropy)
    torch.library.register_fake("msr_cuda::cross_entropy_backward", _fake_cross_entropy_backward)
    torch.library.register_fake("msr_cuda::binary_cross_entropy", _fake_binary_cross_entropy)
    torch.library.register_fake(
        "msr_cuda::binary_cross_entropy_backward", _fake_binary_cross_entropy_backward
    )
    torch.library.register_fake("msr_cuda::argmax", _fake_argmax)
