"""Modules over the operators of :mod:`msr_cuda.functional`."""

from .feature_pyramid import FeaturePyramidNetwork
from .resample import Resample, ResampleCat, ResampleMax, ResamplePyramid, ResampleSum

__all__ = [
    "FeaturePyramidNetwork",
    "Resample",
    "ResampleCat",
    "ResampleMax",
    "ResamplePyramid",
    "ResampleSum",
]
