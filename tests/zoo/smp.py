"""segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from . import Model


def segmentation_model(
    name: str, encoder: str = "tu-test_resnet.r160_in1k", **options: Any
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import segmentation_models_pytorch

        model: nn.Module = getattr(segmentation_models_pytorch, name)(
            encoder, encoder_weights=None, classes=3, **options
        )
        return model

    return make


_PYRAMID = dict(decoder_pyramid_channels=32, decoder_segmentation_channels=32)

MODELS: dict[str, Model] = {
    "Unet": Model(segmentation_model("Unet", decoder_channels=(16, 12, 8, 8, 6)), (2, 3, 45, 66)),
    "UnetPlusPlus": Model(
        segmentation_model("UnetPlusPlus", decoder_channels=(16, 12, 8, 8, 6)), (2, 3, 32, 64)
    ),
    "MAnet": Model(
        segmentation_model("MAnet", decoder_channels=(32, 24, 16, 12, 8), decoder_pab_channels=8),
        (2, 3, 32, 64),
    ),
    "Linknet": Model(segmentation_model("Linknet"), (2, 3, 32, 64), compared=False),
    "FPN": Model(segmentation_model("FPN", **_PYRAMID), (2, 3, 64, 32)),
    "FPN by concatenation": Model(
        segmentation_model(
            "FPN", **_PYRAMID, decoder_merge_policy="cat", decoder_interpolation="bilinear"
        ),
        (2, 3, 64, 32),
    ),
    "PAN": Model(segmentation_model("PAN", decoder_channels=8), (2, 3, 144, 128)),
    "PSPNet": Model(segmentation_model("PSPNet", psp_out_channels=32), (2, 3, 64, 72)),
    "UPerNet": Model(segmentation_model("UPerNet", decoder_channels=16), (2, 3, 64, 96)),
    "Segformer": Model(
        segmentation_model("Segformer", decoder_segmentation_channels=16), (2, 3, 64, 96)
    ),
    "DeepLabV3": Model(segmentation_model("DeepLabV3", decoder_channels=16), (2, 3, 40, 56)),
    "DeepLabV3Plus": Model(
        segmentation_model("DeepLabV3Plus", decoder_channels=16), (2, 3, 64, 48)
    ),
}
