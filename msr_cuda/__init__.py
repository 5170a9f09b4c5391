"""Fused multi-scale resampling and fusion of feature maps for PyTorch.

``y = act(sum_i w_i * resample(x_i))`` and its concat twin in one pass each way:
:func:`resample`, :func:`resample_sum`, :func:`resample_cat`, their kin :func:`resample_max`,
:func:`resample_pyramid` and :class:`Pool`, and losses of resampled logits
(:func:`resample_cross_entropy`, :func:`resample_binary_cross_entropy_with_logits`,
:func:`resample_argmax`); modules over them in :mod:`msr_cuda.nn`; :func:`fuse` swaps them into a
model that exists, and :func:`verify` compares it with what it was.
"""

from . import nn, swap
from ._info import info
from ._pool import Pool
from ._version import __version__
from .functional import (
    check_errors,
    resample,
    resample_argmax,
    resample_binary_cross_entropy_with_logits,
    resample_cat,
    resample_cross_entropy,
    resample_max,
    resample_pyramid,
    resample_sum,
    resample_sum_many,
)
from .swap import fuse, fused, unfuse, verify

__all__ = [
    "Pool",
    "__version__",
    "check_errors",
    "fuse",
    "fused",
    "info",
    "nn",
    "resample",
    "resample_argmax",
    "resample_binary_cross_entropy_with_logits",
    "resample_cat",
    "resample_cross_entropy",
    "resample_max",
    "resample_pyramid",
    "resample_sum",
    "resample_sum_many",
    "swap",
    "unfuse",
    "verify",
]
