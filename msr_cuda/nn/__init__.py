"""Modules over the operators of :mod:`msr_cuda.functional`."""

from .feature_pyramid import FeaturePyramidNetwork
from .losses import ResampleBCEWithLogitsLoss, ResampleCrossEntropyLoss
from .resample import Resample, ResampleCat, ResampleMax, ResamplePyramid, ResampleSum

__all__ = [
    "FeaturePyramidNetwork",
    "Resample",
    "ResampleBCEWithLogitsLoss",
    "ResampleCat",
    "ResampleCrossEntropyLoss",
    "ResampleMax",
    "ResamplePyramid",
    "ResampleSum",
]
