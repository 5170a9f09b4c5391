"""The models: how they are made, what they are given, and what they are trained with."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import msr_cuda

from ..machine import ROOT

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        name: as on the command line.
        about: one line for people.
        packages: that it needs, as pip knows them: module name -> requirement.
        build: makes it, weights from the current seed.
        sizes: of the input, by kind of device.
        train: loss of a training step, of the model and an input.
    """

    name: str
    about: str
    packages: dict[str, str]
    build: Callable[[], nn.Module]
    sizes: dict[str, Shape]
    train: Callable[[nn.Module, Tensor], Tensor]

    def missing(self) -> list[str]:
        """Requirements that are not met."""
        return [
            requirement
            for module, requirement in self.packages.items()
            if importlib.util.find_spec(module) is None
        ]


def tensors_of(output: Any) -> list[Tensor]:
    """The floating-point tensors in a model's output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values: Sequence[Any] = ()
    if isinstance(output, dict):
        values = list(output.values())
    elif isinstance(output, (list, tuple)):
        values = output
    return [tensor for value in values for tensor in tensors_of(value)]


def _mean_square(model: nn.Module, x: Tensor) -> Tensor:
    """A loss that reaches every output."""
    losses = [output.float().square().mean() for output in tensors_of(model(x))]
    return torch.stack(losses).sum()


def _cross_entropy(model: nn.Module, x: Tensor) -> Tensor:
    """Of every pixel, against a pattern."""
    logits = model(x)
    pixels = torch.arange(logits[0, 0].numel(), device=x.device).view(1, *logits.shape[2:])
    return F.cross_entropy(
        logits.float(), (pixels % logits.shape[1]).expand(len(x), *pixels.shape[1:])
    )


# ---------------------------------------------------------------------------- torchvision

_VISION = {"torchvision": "torchvision", "PIL": "pillow"}


def import_torchvision() -> None:
    """Also beside a torch that its compiled library was not built for."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.import_module("torchvision_on_cpu")
    importlib.import_module("torchvision")


class _Detector(nn.Module):
    """Takes a batch instead of a list of images."""

    def __init__(self, side: int) -> None:
        super().__init__()
        detection = importlib.import_module("torchvision.models.detection")
        self.detector = detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=21, min_size=side, max_size=2 * side
        )

    def forward(self, x: Tensor) -> Any:
        if not self.training:
            return self.detector(list(x))
        height, width = x.shape[2:]
        box = torch.tensor([[0.2 * width, 0.2 * height, 0.7 * width, 0.8 * height]])
        label = torch.ones(1, dtype=torch.int64)
        target = {"boxes": box.to(x.device), "labels": label.to(x.device)}
        return self.detector(list(x), [target] * len(x))


def _retinanet() -> nn.Module:
    import_torchvision()
    return _Detector(800 if torch.cuda.is_available() else 256)


def _detection_loss(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack(tensors_of(model(x))).sum()


# ---------------------------------------------------------------------------- others


def _hrnet() -> nn.Module:
    import_torchvision()
    model: nn.Module = importlib.import_module("timm").create_model(
        "hrnet_w18_small", pretrained=False
    )
    return model


def _segmentation(name: str, encoder: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import_torchvision()
        package = importlib.import_module("segmentation_models_pytorch")
        model: nn.Module = getattr(package, name)(encoder, encoder_weights=None, classes=19)
        return model

    return build


def _yolo() -> nn.Module:
    import_torchvision()
    tasks = importlib.import_module("ultralytics.nn.tasks")
    model: nn.Module = tasks.DetectionModel("yolov8n.yaml", verbose=False)
    return model


_TIMM = {**_VISION, "timm": "timm"}
_SMP = {**_TIMM, "segmentation_models_pytorch": "segmentation-models-pytorch"}

# ---------------------------------------------------------------------------- 3-D


class UpBlock3d(nn.Module):
    """Trilinear upsampling, concatenation with the skip, two convolutions: nnU-Net's decoder."""

    def __init__(self, low: int, skip: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="trilinear")
        self.convs = _two_convolutions(low + skip, skip)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.convs(torch.cat([self.up(low), skip], 1))
        return result


@msr_cuda.swap.register(UpBlock3d)
class FusedUpBlock3d(UpBlock3d):
    """Upsampling and concatenation in one pass."""

    @staticmethod
    def absorbed_modules(module: nn.Module) -> list[nn.Module]:
        return [module.up]  # type: ignore[list-item]

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.convs(
            msr_cuda.resample_cat(
                [low, skip], skip.shape[2:], mode="trilinear",
                scale_factors=[self.up.scale_factor, None],
            )
        )  # fmt: skip
        return result


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv3d(channels, outputs, 3, padding=1, bias=False),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet3d(nn.Module):
    """Four levels, as small medical networks have them; one channel in, three classes out."""

    def __init__(self, channels: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        pairs = list(zip((1, *channels[:-1]), channels, strict=True))
        self.encoders = nn.ModuleList([_two_convolutions(*pair) for pair in pairs])
        self.decoders = nn.ModuleList([UpBlock3d(low, skip) for skip, low in reversed(pairs[1:])])
        self.head = nn.Conv3d(channels[0], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for number, encoder in enumerate(self.encoders):
            x = encoder(F.max_pool3d(x, 2) if number else x)
            skips.append(x)
        for decoder, skip in zip(self.decoders, reversed(skips[:-1]), strict=True):
            x = decoder(x, skip)
        logits: Tensor = self.head(x)
        return logits


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "smp-unet", "smp's U-Net on ResNet-34: nearest + concat", _SMP,
            _segmentation("Unet", "resnet34"),
            {"cpu": (1, 3, 256, 256), "cuda": (16, 3, 512, 512)}, _cross_entropy,
        ),
        Subject(
            "yolov8n", "ultralytics' YOLOv8n: nearest + concat",
            {**_VISION, "ultralytics": "ultralytics"}, _yolo,
            {"cpu": (1, 3, 320, 320), "cuda": (32, 3, 640, 640)}, _mean_square,
        ),
        Subject(
            "retinanet", "torchvision's RetinaNet on ResNet-50: FPN, nearest + add", _VISION,
            _retinanet, {"cpu": (1, 3, 256, 384), "cuda": (8, 3, 800, 1216)}, _detection_loss,
        ),
        Subject(
            "hrnet", "timm's hrnet_w18_small: sums of 2 to 4 nearest maps", _TIMM,
            _hrnet, {"cpu": (2, 3, 224, 224), "cuda": (64, 3, 512, 512)}, _mean_square,
        ),
        Subject(
            "segformer", "smp's SegFormer on MiT-B0: concat of 4 bilinear maps", _SMP,
            _segmentation("Segformer", "mit_b0"),
            {"cpu": (1, 3, 256, 256), "cuda": (16, 3, 512, 512)}, _cross_entropy,
        ),
        Subject(
            "unet3d", "a 3-D U-Net of four levels: trilinear + concat", {}, UNet3d,
            {"cpu": (1, 1, 32, 64, 64), "cuda": (2, 1, 128, 128, 128)}, _cross_entropy,
        ),
    )
}  # fmt: skip
