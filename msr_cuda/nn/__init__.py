"""Modules over the operators of :mod:`msr_cuda.functional`.

The operators as modules (:class:`ResampleSum` and its kin), and blocks of multi-scale networks,
each usable alone, in 1-D, 2-D and 3-D:

- input: :class:`ImagePyramid`; a convolution at several scales: :class:`ScaleConvolution`
- fusion: :class:`ResidualFusion`, :class:`ConcatFusion`, :class:`ScaleAttention`,
  :class:`LearnedScale`; by name: :func:`make_fusion`
- gates: :class:`SqueezeGate`, :class:`AttentionGate`
- encoders: :class:`BasicBlock`, :class:`Bottleneck`; branches of several resolutions:
  :class:`ParallelBranches`, :class:`ExchangeUnit`; necks: :class:`FeaturePyramidNetwork`
- training: :class:`ScaleInvarianceLoss`, and the losses of resampled logits,
  :class:`ResampleCrossEntropyLoss` and :class:`ResampleBCEWithLogitsLoss`
"""

from .feature_pyramid import FeaturePyramidNetwork
from .fusion import ConcatFusion, ResidualFusion, make_fusion
from .gates import AttentionGate, SqueezeGate
from .image_pyramid import ImagePyramid, gaussian_blur
from .losses import ResampleBCEWithLogitsLoss, ResampleCrossEntropyLoss
from .parallel_branches import ExchangeUnit, ParallelBranches
from .resample import Resample, ResampleCat, ResampleMax, ResamplePyramid, ResampleSum
from .residual_block import BasicBlock, Bottleneck
from .scale_attention import LearnedScale, ScaleAttention
from .scale_convolution import ScaleConvolution
from .scale_loss import ScaleInvarianceLoss

__all__ = [
    "AttentionGate",
    "BasicBlock",
    "Bottleneck",
    "ConcatFusion",
    "ExchangeUnit",
    "FeaturePyramidNetwork",
    "ImagePyramid",
    "LearnedScale",
    "ParallelBranches",
    "Resample",
    "ResampleBCEWithLogitsLoss",
    "ResampleCat",
    "ResampleCrossEntropyLoss",
    "ResampleMax",
    "ResamplePyramid",
    "ResampleSum",
    "ResidualFusion",
    "ScaleAttention",
    "ScaleConvolution",
    "ScaleInvarianceLoss",
    "SqueezeGate",
    "gaussian_blur",
    "make_fusion",
]
