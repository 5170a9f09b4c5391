"""Models of other packages whose swapping is tested and listed: tiny, with random weights.

Used by the tests (``swap_checks``) and by ``build_tools/model_table.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from swapping import Outputs, images
from torch import Tensor, nn

#: What has to be importable before a library's models can be made.
LIBRARIES = {
    "segmentation_models_pytorch": (
        "torchvision_on_cpu", "torchvision", "segmentation_models_pytorch",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        library: a key of :data:`LIBRARIES`.
        make: makes it.
        shape: of the images, odd where the model takes that.
        call: runs it on images; its result is nested maps.
        training: whether it is compared in training mode, too; some need targets there.
        no_gradient: patterns of names of weights that the result does not depend on.
    """

    library: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    call: Callable[[nn.Module, Tensor], Any] = lambda model, x: model(x)
    training: bool = True
    no_gradient: tuple[str, ...] = ()

    def new(self) -> nn.Module:
        """A model in eval mode whose weights all matter."""
        torch.manual_seed(3)
        model = self.make()
        randomize(model)
        return model.eval()

    def images(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Its input."""
        return images(*self.shape).to(dtype)

    def run(self, model: nn.Module, x: Tensor) -> Outputs:
        """Named results."""
        return dict(maps(self.call(model, x), "output"))


def maps(result: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All floating-point tensors of a nested result, by where they are in it."""
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield name, result
    elif isinstance(result, dict):
        for key, value in result.items():
            yield from maps(value, f"{name}.{key}")
    elif isinstance(result, (list, tuple)):
        for i, value in enumerate(result):
            yield from maps(value, f"{name}.{i}")


def randomize(model: nn.Module) -> None:
    """Weights that keep the scale of the maps, none of them zero.

    Libraries start some at zero (the last norm of a residual block, biases, position embeddings,
    offsets), and then what comes before them does not matter.
    """
    generator = torch.Generator().manual_seed(4)

    def normal(parameter: Tensor, scale: float) -> Tensor:
        return torch.randn(parameter.shape, generator=generator) * scale

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(normal(parameter, parameter[0].numel() ** -0.5))
            elif name.endswith("bias"):
                # Above zero: a ReLU on one or two channels must not be dead.
                parameter.copy_(0.3 + normal(parameter, 0.1))
            else:
                parameter.copy_(1 + normal(parameter, 0.1))


def segmentation_model(name: str, encoder: str = "tu-test_resnet.r160_in1k", **options: Any) -> Any:
    def make() -> nn.Module:
        import segmentation_models_pytorch

        model: nn.Module = getattr(segmentation_models_pytorch, name)(
            encoder, encoder_weights=None, classes=3, **options
        )
        return model

    return make


SMP = "segmentation_models_pytorch"
_PYRAMID = dict(decoder_pyramid_channels=32, decoder_segmentation_channels=32)

MODELS: dict[str, Model] = {
    "Unet": Model(
        SMP, segmentation_model("Unet", decoder_channels=(16, 12, 8, 8, 6)), (2, 3, 45, 66)
    ),
    "UnetPlusPlus": Model(
        SMP, segmentation_model("UnetPlusPlus", decoder_channels=(16, 12, 8, 8, 6)), (2, 3, 32, 64)
    ),
    "MAnet": Model(
        SMP,
        segmentation_model("MAnet", decoder_channels=(32, 24, 16, 12, 8), decoder_pab_channels=8),
        (2, 3, 32, 64),
    ),
    "FPN": Model(SMP, segmentation_model("FPN", **_PYRAMID), (2, 3, 64, 32)),
    "FPN by concatenation": Model(
        SMP,
        segmentation_model(
            "FPN", **_PYRAMID, decoder_merge_policy="cat", decoder_interpolation="bilinear"
        ),
        (2, 3, 64, 32),
    ),
    "PAN": Model(SMP, segmentation_model("PAN", decoder_channels=8), (2, 3, 144, 128)),
    "PSPNet": Model(SMP, segmentation_model("PSPNet", psp_out_channels=32), (2, 3, 64, 72)),
    "UPerNet": Model(SMP, segmentation_model("UPerNet", decoder_channels=16), (2, 3, 64, 96)),
    "Segformer": Model(
        SMP, segmentation_model("Segformer", decoder_segmentation_channels=16), (2, 3, 64, 96)
    ),
    "DeepLabV3": Model(SMP, segmentation_model("DeepLabV3", decoder_channels=16), (2, 3, 40, 56)),
    "DeepLabV3Plus": Model(
        SMP, segmentation_model("DeepLabV3Plus", decoder_channels=16), (2, 3, 64, 48)
    ),
}


def names_of(library: str) -> list[str]:
    """The models of a library."""
    return [name for name, model in MODELS.items() if model.library == library]
