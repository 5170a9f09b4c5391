"""Recipes by library: ``<library>.py`` is imported by ``fuse`` where the library already is."""

from __future__ import annotations

#: Library -> the module of it that has to be imported before a model can have one of its classes.
NEEDS = {
    "basicsr": "basicsr.archs",
    "detectron2": "detectron2.modeling",
    "diffusers": "diffusers.models.upsampling",
    "effdet": "effdet.efficientdet",
    "mmcv": "mmcv.ops",
    "mmdet": "mmdet.models",
    "mmpose": "mmpose.models",
    "mmseg": "mmseg.models",
    "monai": "monai.networks.blocks",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "timm": "timm.models.hrnet",
    "torch": "torch.nn",
    "torchvision": "torchvision.ops",
    "transformers": "transformers.modeling_utils",
    "ultralytics": "ultralytics.nn.tasks",
    "yolox": "yolox.models",
}
