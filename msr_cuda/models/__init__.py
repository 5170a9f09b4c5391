"""Networks on the operators, for images, volumes and signals.

- classifiers: :func:`multiscale_resnet18`, :func:`multiscale_resnet34`,
  :func:`multiscale_resnet50`, for waveforms :func:`multiscale_speech_resnet18`, and
  :class:`MultiScaleCNN`; for objects of sizes that were not trained :class:`ScaleMixtureResNet`
- features by stage: :func:`multiscale_encoder`
- dense prediction: :class:`EncoderDecoder`; segmentation: :class:`SegmentationNet`
- detection: :func:`retinanet_backbone` and :func:`faster_rcnn_backbone` for torchvision's detectors
- tracking: :class:`SiameseTracker`
- weights of a plain ResNet: :func:`load_trunk`
"""

from ._features import FeatureInfo
from .dense import EncoderDecoder, PyramidDecoder, SegmentationNet
from .detection import (
    ConvLevels,
    MaxPoolLevel,
    PyramidBackbone,
    faster_rcnn_backbone,
    retinanet_backbone,
)
from .multiscale_cnn import MultiScaleCNN
from .resnet import (
    Classifier,
    MultiScaleEncoder,
    MultiScaleResNet,
    ResNetTrunk,
    ScaleMixtureResNet,
    multiscale_encoder,
    multiscale_resnet18,
    multiscale_resnet34,
    multiscale_resnet50,
    multiscale_speech_resnet18,
)
from .tracking import SiameseTracker, cross_correlation
from .weights import WeightsReport, load_trunk

__all__ = [
    "Classifier",
    "ConvLevels",
    "EncoderDecoder",
    "FeatureInfo",
    "MaxPoolLevel",
    "MultiScaleCNN",
    "MultiScaleEncoder",
    "MultiScaleResNet",
    "PyramidBackbone",
    "PyramidDecoder",
    "ResNetTrunk",
    "ScaleMixtureResNet",
    "SegmentationNet",
    "SiameseTracker",
    "WeightsReport",
    "cross_correlation",
    "faster_rcnn_backbone",
    "load_trunk",
    "multiscale_encoder",
    "multiscale_resnet18",
    "multiscale_resnet34",
    "multiscale_resnet50",
    "multiscale_speech_resnet18",
    "retinanet_backbone",
]
