"""Real models of other packages, narrow and with random weights, for the tests of swapping."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from conftest import require_or_skip
from swapping import Case, run_model
from torch import nn
from zoo import offline


@pytest.fixture(scope="session")
def smp() -> ModuleType:
    """segmentation_models_pytorch."""
    require_or_skip("torchvision_on_cpu")
    require_or_skip("torchvision")
    return require_or_skip("segmentation_models_pytorch")


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    require_or_skip("torchvision_on_cpu")
    require_or_skip("torchvision")
    return require_or_skip("timm")


@pytest.fixture(scope="session")
def ultralytics() -> ModuleType:
    """ultralytics.nn.tasks."""
    with offline():
        require_or_skip("torchvision_on_cpu")
        return require_or_skip("ultralytics.nn.tasks")


def segmentation_model(name: str, encoder: str = "resnet18", **options: Any) -> nn.Module:
    import segmentation_models_pytorch

    defaults = dict(encoder_weights=None, classes=3, decoder_channels=(32, 24, 16, 12, 8))
    model: nn.Module = getattr(segmentation_models_pytorch, name)(
        encoder, **{**defaults, **options}
    )
    return model


def hrnet() -> nn.Module:
    import timm

    # No bias ahead of a batch norm: in training, its gradient is zero but for rounding.
    model: nn.Module = timm.create_model(
        "hrnet_w18_small", pretrained=False, num_classes=5, head_conv_bias=False
    )
    return model


def narrow_hrnet() -> nn.Module:
    """The four resolutions of HRNet, without a head."""
    from timm.models.hrnet import HighResolutionNet

    channels = (8, 12, 16, 24)
    stages = {"stem_width": 8, "stage1": stage("BOTTLENECK", (4,))}
    for branches in (2, 3, 4):
        stages[f"stage{branches}"] = stage("BASIC", channels[:branches])
    return HighResolutionNet(stages, head="")


def stage(block: str, channels: tuple[int, ...]) -> dict[str, Any]:
    return dict(
        num_modules=1,
        num_branches=len(channels),
        block_type=block,
        num_blocks=(1,) * len(channels),
        num_channels=channels,
        fuse_method="SUM",
    )


def yolo(config: Any = "yolov8n.yaml") -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(config, verbose=False)


def narrow_yolo() -> nn.Module:
    """YOLOv8 with a quarter of the channels of its smallest version."""
    from ultralytics.nn.tasks import yaml_model_load

    config = yaml_model_load("yolov8n.yaml")
    return yolo({**config, "nc": 3, "scales": {"n": [0.33, 0.0625, 1024]}})


UNET_SITES = [f"decoder.blocks.{i}" for i in range(5)]
UNETPLUSPLUS_SITES = [
    "decoder",
    *(f"decoder.blocks.x_{row}_{column}" for column in range(4) for row in range(column + 1)),
    "decoder.blocks.x_0_4",
]
HRNET_SITES = ["stage2.0", "stage3.0", "stage4.0"]


def unet() -> nn.Module:
    return segmentation_model("Unet")


def attending_unet() -> nn.Module:
    """Bilinear, and with attention between concatenation and convolution."""
    model = segmentation_model(
        "Unet",
        decoder_channels=(32, 32, 16, 16, 16),
        decoder_interpolation="bilinear",
        decoder_attention_type="scse",
    )
    # The attention has one or two hidden channels, with ReLU. None must be dead.
    for name, parameter in model.named_parameters():
        if "cSE.1." in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("bias") else 0.01)
    return model


def unet_plus_plus() -> nn.Module:
    return segmentation_model("UnetPlusPlus")


def narrow_segmentation_model(name: str) -> nn.Module:
    model = segmentation_model(name, "tu-test_resnet.r160_in1k", decoder_channels=(16, 12, 8, 8, 6))
    for module in model.modules():
        # The last norm of a residual block starts as zero, and then nothing before it matters.
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def yolo11() -> nn.Module:
    return yolo("yolo11n.yaml")


# Without a skip, the last block does not use its first attention.
UNUSED_ATTENTION = ("decoder.blocks.4.attention1",)
YOLOV8_SITES = ["model.11", "model.14"]
YOLO11_SITES = ["model.12", "model.15"]

#: Name -> the fixture of the package, and the case. Models as their packages make them.
CASES = {
    "Unet": ("smp", Case(unet, (2, 3, 45, 66), run_model, UNET_SITES)),
    "attending Unet": (
        "smp",
        Case(attending_unet, (2, 3, 32, 64), run_model, UNET_SITES, UNUSED_ATTENTION),
    ),
    "UnetPlusPlus": ("smp", Case(unet_plus_plus, (2, 3, 32, 64), run_model, UNETPLUSPLUS_SITES)),
    "HRNet": ("timm", Case(hrnet, (2, 3, 64, 96), run_model, HRNET_SITES)),
    "YOLOv8": ("ultralytics", Case(yolo, (2, 3, 64, 96), run_model, YOLOV8_SITES)),
    "YOLO11": ("ultralytics", Case(yolo11, (1, 3, 96, 64), run_model, YOLO11_SITES)),
}

#: The same models with few channels: PyTorch's own convolutions in bfloat16 take long on a CPU.
NARROW_CASES = {
    "Unet": (
        "smp",
        Case(lambda: narrow_segmentation_model("Unet"), (2, 3, 45, 34), run_model, UNET_SITES),
    ),
    "UnetPlusPlus": (
        "smp",
        Case(
            lambda: narrow_segmentation_model("UnetPlusPlus"),
            (2, 3, 32, 32),
            run_model,
            UNETPLUSPLUS_SITES,
        ),
    ),
    "HRNet": ("timm", Case(narrow_hrnet, (2, 3, 64, 96), run_model, HRNET_SITES)),
    "YOLOv8": ("ultralytics", Case(narrow_yolo, (2, 3, 64, 96), run_model, YOLOV8_SITES)),
}


def get_case(name: str, request: pytest.FixtureRequest, *, narrow: bool = False) -> Case:
    package, case = (NARROW_CASES if narrow else CASES)[name]
    request.getfixturevalue(package)
    return case


each_model = pytest.mark.parametrize("name", CASES)
each_narrow_model = pytest.mark.parametrize("name", NARROW_CASES)
