"""Real models whose sites only a graph shows: necks, decoders and heads with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from conftest import require_or_skip
from graphs import check, doubles
from swapping import one_thread  # noqa: F401
from torch import Tensor, nn

# Without kernels, nothing is fused by default.
pytestmark = pytest.mark.usefixtures("kernels")

SIZES = [(65, 49), (33, 25), (17, 13), (9, 7)]  # of a pyramid, finest first


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class OfFeatures(nn.Module):
    """A part of a model that takes a list of maps, or something made of it."""

    def __init__(
        self, part: nn.Module, call: Callable[[nn.Module, Any], Any] | None = None
    ) -> None:
        super().__init__()
        self.part = part
        self.call = call or (lambda part, maps: part(maps))

    def forward(self, *maps: Tensor) -> Any:
        return self.call(self.part, list(maps))


class Example(NamedTuple):
    """A part of a model, its inputs, and what it becomes."""

    packages: tuple[str, ...]
    make: Callable[[], nn.Module]
    shapes: list[tuple[int, ...]]
    sites: list[str]  # parts of the reports, of sites that are fused
    left: tuple[str, ...] = ()  # likewise of interpolations without a partner


def pyramid(*channels: int, sizes: list[tuple[int, int]] = SIZES) -> list[tuple[int, ...]]:
    return [(2, c, *size) for c, size in zip(channels, sizes, strict=False)]


def smp_decoder(name: str, **options: Any) -> nn.Module:
    smp = importlib.import_module("segmentation_models_pytorch")
    model = getattr(smp, name)("resnet18", encoder_weights=None, classes=3, **options)
    return OfFeatures(model.decoder)


def resnet_features(*sizes: int) -> list[tuple[int, ...]]:
    return [(2, c, n, n * 3 // 2) for c, n in zip((3, 64, 64, 128, 256, 512), sizes, strict=True)]


def module(path: str, *arguments: Any, **options: Any) -> nn.Module:
    package, _, name = path.rpartition(".")
    return getattr(importlib.import_module(package), name)(*arguments, **options)


def config(name: str, **options: Any) -> Any:
    return getattr(importlib.import_module("transformers"), name)(**options)


def of_transformers(path: str, configuration: Any, *arguments: Any) -> nn.Module:
    return module(f"transformers.models.{path}", configuration, *arguments)


def mask2former() -> nn.Module:
    options = config(
        "Mask2FormerConfig",
        feature_size=64, mask_feature_size=16, encoder_feedforward_dim=32, encoder_layers=1,
        num_attention_heads=2, feature_strides=[4, 8, 16, 32],
    )  # fmt: skip
    decoder = "mask2former.modeling_mask2former.Mask2FormerPixelDecoder"
    part = of_transformers(decoder, options, [8, 12, 16, 24])
    nn.init.normal_(part.level_embed)  # the constructor leaves it as memory happens to be
    return OfFeatures(part, lambda part, maps: part(maps).mask_features)


def two_bilinear(count: int) -> list[str]:
    return ["resample_sum of 2 maps: 1 bilinear, 1 as it is"] * count


SMP = ("torchvision_on_cpu", "torchvision", "segmentation_models_pytorch")
HF = ("torchvision_on_cpu", "transformers")
EXAMPLES = {
    "torchvision LRASPPHead": Example(
        ("torchvision_on_cpu", "torchvision"),
        lambda: OfFeatures(
            module("torchvision.models.segmentation.lraspp.LRASPPHead", 8, 16, 3, 8),
            lambda part, maps: part({"low": maps[0], "high": maps[1]}),
        ),
        pyramid(8, 16),
        [],
        left=("conv2d",),
    ),
    "torchvision DeepLabHead": Example(
        ("torchvision_on_cpu", "torchvision"),
        lambda: module("torchvision.models.segmentation.deeplabv3.DeepLabHead", 16, 3, (2, 3, 4)),
        [(2, 16, 17, 13)],
        ["resample_cat of 5 maps: 1 bilinear, 4 as they are"],
    ),
    "timm GhostModuleV2": Example(
        ("torchvision_on_cpu", "torchvision", "timm"),
        lambda: module("timm.models.ghostnet.GhostModuleV2", 8, 12),
        [(2, 8, 17, 13)],
        [],
        left=("is not a sum of maps",),
    ),
    "smp PAN": Example(
        SMP,
        lambda: smp_decoder("PAN", decoder_channels=8),
        resnet_features(128, 64, 32, 16, 8, 8),
        [
            *two_bilinear(2),
            "1 bilinear, 1 as it is; pixel weights",
            *["1 bilinear, 1 as it is; channel weights"] * 3,
        ],
        left=("goes to pixel_weights",),
    ),
    "smp MAnet": Example(
        SMP,
        lambda: smp_decoder("MAnet", decoder_channels=(16, 12, 12, 8, 8), decoder_pab_channels=8),
        resnet_features(64, 32, 16, 8, 4, 2),
        [],
        left=(*["the resampled map has 2 users"] * 4, "conv2d"),
    ),
    "smp FPN": Example(
        SMP,
        lambda: smp_decoder("FPN", decoder_pyramid_channels=12, decoder_segmentation_channels=32),
        resnet_features(64, 32, 16, 8, 4, 2),
        [
            *["resample_sum of 2 maps: 1 nearest, 1 as it is"] * 3,
            "resample_sum of 4 maps: 3 bilinear, 1 as it is",
        ],
        left=("conv2d",) * 3,
    ),
    "smp UPerNet": Example(
        SMP,
        lambda: smp_decoder("UPerNet", decoder_channels=8),
        resnet_features(65, 33, 17, 9, 5, 3),
        ["resample_cat of 5 maps", *two_bilinear(3), "resample_cat of 4 maps: 4 bilinear"],
    ),
    "smp DeepLabV3Plus": Example(
        SMP,
        lambda: smp_decoder("DeepLabV3Plus", decoder_channels=8),
        resnet_features(64, 32, 16, 8, 4, 4),
        ["resample_cat of 5 maps: 1 bilinear", "resample_cat of 2 maps: 1 bilinear, 1 as it is"],
    ),
    "transformers SegFormer": Example(
        HF,
        lambda: OfFeatures(
            of_transformers(
                "segformer.modeling_segformer.SegformerDecodeHead",
                config("SegformerConfig", hidden_sizes=[8, 12, 16, 24], decoder_hidden_size=12),
            )
        ),
        pyramid(8, 12, 16, 24),
        ["resample_cat of 4 maps: 4 bilinear"],
    ),
    "transformers UperNet": Example(
        HF,
        lambda: OfFeatures(
            of_transformers(
                "upernet.modeling_upernet.UperNetHead",
                config("UperNetConfig", hidden_size=12, num_labels=3),
                [8, 12, 16, 24],
            )
        ),
        pyramid(8, 12, 16, 24),
        ["resample_cat of 5 maps: 4 bilinear", *two_bilinear(3), "resample_cat of 4 maps"],
    ),
    "transformers Mask2Former": Example(
        HF, mask2former, pyramid(8, 12, 16, 24), two_bilinear(1)
    ),
    "transformers MaskFormer": Example(
        HF,
        lambda: OfFeatures(
            module(
                "transformers.models.maskformer.modeling_maskformer.MaskFormerFPNModel",
                24, [8, 12, 16], feature_size=32,
            )
        ),
        pyramid(8, 12, 16, 24),
        ["resample_sum of 2 maps: 1 nearest, 1 as it is"] * 3,
    ),
    "transformers GLPN": Example(
        HF,
        lambda: OfFeatures(
            of_transformers(
                "glpn.modeling_glpn.GLPNDecoder",
                config("GLPNConfig", hidden_sizes=[8, 12, 16, 24], decoder_hidden_size=8),
            )
        ),
        pyramid(8, 12, 16, 24, sizes=[(32, 48), (16, 24), (8, 12), (4, 6)]),
        [],
        left=(*["the resampled map has 3 users"] * 3, "goes to resample", "the output"),
    ),
    "transformers VitMatte": Example(
        HF,
        lambda: OfFeatures(
            of_transformers(
                "vitmatte.modeling_vitmatte.VitMatteFusionBlock",
                config("VitMatteConfig", hidden_size=8),
                12,
                6,
            ),
            lambda part, maps: part(*maps),
        ),
        [(2, 8, 9, 7), (2, 4, 18, 14)],
        ["resample_cat of 2 maps: 1 bilinear, 1 as it is"],
    ),
    "MONAI SegResNet": Example(
        ("monai.networks.nets",),
        lambda: module(
            "monai.networks.nets.SegResNet", spatial_dims=3, init_filters=8, blocks_down=(1, 1, 1),
            blocks_up=(1, 1),
        ),
        [(1, 1, 8, 12, 16)],
        ["resample_sum of 2 maps: 1 trilinear, 1 as it is"] * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    example = EXAMPLES[name]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for package in example.packages:
        require_or_skip(package)
    inputs = doubles(*example.shapes)
    torch.manual_seed(2)  # a seed that leaves no activation of a single channel zero
    model = example.make().double().eval()
    spy, reports = check(model, inputs, fullgraph=False)
    report = reports[0]
    fused = [site for site in report.swapped if site.operator != "resample"]
    alone = [site for site in report.swapped if site.operator == "resample"]
    assert len(fused) == len(example.sites), report
    assert all(part in site.how for site, part in zip(fused, example.sites, strict=True)), report
    assert len(alone) == len(example.left), report
    assert all(part in site.how for site, part in zip(alone, example.left, strict=True)), report
    assert spy.count()["interpolate"] == 0 and not report.skipped
