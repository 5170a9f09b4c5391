"""The executable specification of every operator, in plain PyTorch; also the fallback.

A resampling is separable. Along one axis, :func:`taps` gives for every destination the source
indices it reads and their weights; an operator gathers with them axis by axis, accumulates in
float32 (float64 if any map is float64) and rounds once, at the end. Everything here is made of
differentiable PyTorch operators, so derivatives of any order, ``torch.func`` and forward-mode AD
work.

Functions of this package take arguments that :mod:`msr_cuda.functional` has validated, most of them
in one :class:`msr_cuda._spec.Call`.
"""

from ._losses import argmax, binary_cross_entropy_with_logits, cross_entropy
from ._maps import (
    activate,
    normalized_weights,
    resample_cat,
    resample_map,
    resample_max,
    resample_sum,
)
from ._taps import pool_taps, taps

__all__ = [
    "activate",
    "argmax",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "normalized_weights",
    "pool_taps",
    "resample_cat",
    "resample_map",
    "resample_max",
    "resample_sum",
    "taps",
]
