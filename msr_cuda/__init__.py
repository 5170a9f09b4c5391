"""Fused multi-scale resampling and fusion of feature maps for PyTorch."""

from ._info import info
from ._version import __version__
from .functional import resample, resample_cat, resample_sum

__all__ = ["__version__", "info", "resample", "resample_cat", "resample_sum"]
