"""Functions that rewritten graphs call, besides the operators themselves."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._pool import Pool


@functools.cache
def pool(*arguments: Any) -> Pool:
    """A :class:`msr_cuda.Pool`, which a graph's code cannot hold as a constant."""
    return Pool(*arguments)


def scalar_weights(weights: Sequence[Tensor | float], like: Tensor) -> Tensor:
    """Factors of one element each as ``weights [S]`` of :func:`msr_cuda.resample_sum`."""
    return torch.stack([w.reshape(()) for w in _tensors(weights, like)])


def channel_weights(weights: Sequence[Tensor | float], like: Tensor) -> Tensor:
    """Factors ``[N, C, 1, 1]`` or of one element as ``[N, S, C]``; without N as ``[S, C]``."""
    first_pixel: tuple[Any, ...] = (..., *(0,) * (like.dim() - 2))
    flat = [
        w[first_pixel] if w.dim() > len(first_pixel) - 1 else w.reshape(())
        for w in _tensors(weights, like)
    ]
    return torch.stack(torch.broadcast_tensors(*flat), -2)


def pixel_weights(weights: Sequence[Tensor | float], like: Tensor) -> Tensor:
    """Factors ``[N, 1, *size]`` or of one element as ``weights [N, S, 1, *size]``."""
    return torch.stack(torch.broadcast_tensors(*_tensors(weights, like)), 1)


def _tensors(weights: Sequence[Tensor | float], like: Tensor) -> list[Tensor]:
    """The weights in the type that kernels read them in, on the device of a map."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return [
        w.to(dtype) if isinstance(w, Tensor) else like.new_full((), w, dtype=dtype) for w in weights
    ]


def expect_sizes(
    name: str,
    maps: Sequence[Tensor],
    full: Sequence[Tensor],
    pixels: Sequence[Tensor],
    sizes: Sequence[int | Sequence[int]],
) -> None:
    """Raises where PyTorch's functions do, but the operators resample or broadcast.

    Args:
        name: of the operator.
        maps: its maps.
        full: those of them that are read as they are.
        pixels: those that have to be of one pixel.
        sizes: spatial size of the result, as each of its resamplings has it.
    """
    rank = maps[0].dim() - 2
    wanted = [(size,) * rank if isinstance(size, int) else tuple(size) for size in sizes]
    wanted += [tuple(x.shape[2:]) for x in full]
    for size in wanted:
        if size != wanted[0]:
            raise ValueError(f"{name}: expected maps of one size, got {wanted[0]} and {size}")
    for x in pixels:
        if tuple(x.shape[2:]) != (1,) * rank:
            raise ValueError(f"{name}: expected a map of one pixel, got {tuple(x.shape)}")
    # Sums are broadcast over the batch by PyTorch, too.
    batches = [x.shape[0] for x in maps]
    if name == "resample_cat" and batches != batches[:1] * len(batches):
        raise ValueError(f"{name}: expected maps of one batch size, got {batches}")


def expect_target(name: str, logits: Tensor, size: int | Sequence[int], target: Tensor) -> None:
    """Raises where PyTorch's losses do, but the operators take the size of the target.

    Args:
        name: of the operator.
        logits: ``[N, C, *spatial]``.
        size: what they are upsampled to.
        target: ``[N, *size]`` or ``[N, C, *size]``.
    """
    rank = logits.dim() - 2
    wanted = (size,) * rank if isinstance(size, int) else tuple(size)
    if tuple(target.shape[-rank:]) != wanted:
        raise ValueError(f"{name}: expected a target of {wanted}, got {tuple(target.shape)}")
