"""Fused multi-scale resampling and fusion of feature maps for PyTorch.

``y = act(sum_i w_i * resample(x_i))`` and its concat twin in one pass each way:
:func:`resample`, :func:`resample_sum`, :func:`resample_cat`; modules over them in
:mod:`msr_cuda.nn`; :func:`fuse` swaps them into a model that exists.
"""

from . import nn, swap
from ._info import info
from ._version import __version__
from .functional import resample, resample_cat, resample_sum
from .swap import fuse, fused, unfuse

__all__ = [
    "__version__",
    "fuse",
    "fused",
    "info",
    "nn",
    "resample",
    "resample_cat",
    "resample_sum",
    "swap",
    "unfuse",
]
