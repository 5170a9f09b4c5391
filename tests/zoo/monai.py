"""MONAI: volumes and slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import Model, OnPyramid


def network(name: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    """A network by name."""

    def make() -> nn.Module:
        from monai.networks import nets

        model: nn.Module = getattr(nets, name)(*arguments, **options)
        return model

    return make


def pyramid() -> nn.Module:
    from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork

    def call(part: nn.Module, maps: list[Tensor]) -> Any:
        return part({str(i): x for i, x in enumerate(maps)})

    channels = (4, 6, 8)
    return OnPyramid(FeaturePyramidNetwork(2, channels, 6), channels, (2, 3, 8), call)


def daf3d_pyramid() -> nn.Module:
    from monai.networks.nets.daf3d import Daf3dFPN

    def call(part: nn.Module, maps: list[Tensor]) -> Any:
        volumes = [x.unflatten(1, (-1, 2)) for x in maps]
        return part({f"feat{i + 1}": x for i, x in enumerate(volumes)})

    part = Daf3dFPN(3, [4, 6, 8], 128)
    return OnPyramid(part, (8, 12, 16), (2, 3, 8), call)


_FEATURES = (8, 8, 12, 16, 20, 8)

MODELS: dict[str, Model] = {
    "SegResNet": Model(
        network(
            "SegResNet", spatial_dims=3, init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)
        ),
        (2, 1, 8, 16, 12),
    ),
    "SegResNet, 2-D": Model(
        network("SegResNet", spatial_dims=2, init_filters=8, in_channels=3), (2, 3, 32, 48)
    ),
    "SegResNetVAE": Model(
        network(
            "SegResNetVAE",
            (8, 16, 8),
            spatial_dims=3,
            init_filters=8,
            vae_nz=4,
            blocks_down=(1, 1, 1),
            blocks_up=(1, 1),
        ),
        (1, 1, 8, 16, 8),
        no_gradient=("vae_*",),
    ),
    "BasicUNet": Model(
        network("BasicUNet", 3, 1, 2, _FEATURES, upsample="nontrainable"), (1, 1, 32, 16, 48)
    ),
    "BasicUNet, odd sizes": Model(
        network("BasicUNet", 2, 3, 2, _FEATURES, upsample="nontrainable"), (2, 3, 45, 38)
    ),
    "FlexibleUNet": Model(
        network("FlexibleUNet", 3, 2, "resnet10", decoder_channels=(16, 12, 8, 8, 6)),
        (1, 3, 64, 96),
    ),
    "DynUNet with deep supervision": Model(
        network(
            "DynUNet",
            2,
            3,
            2,
            [3] * 4,
            [1, 2, 2, 2],
            [2, 2, 2],
            filters=[4, 6, 8, 8],
            deep_supervision=True,
            deep_supr_num=2,
        ),
        (2, 3, 32, 48),
        only_in_training=True,
        no_gradient=("deep_supervision_heads.*",),
    ),
    "AHNet": Model(
        network(
            "AHNet",
            layers=(1, 1, 1, 1),
            spatial_dims=2,
            in_channels=3,
            upsample_mode="bilinear",
            psp_block_num=2,
        ),
        (1, 3, 64, 96),
    ),
    "LocalNet": Model(
        network(
            "LocalNet", 3, 2, 4, (0, 1, 2), "kaiming_uniform", None, 3, use_additive_sampling=True
        ),
        (1, 2, 8, 16, 8),
    ),
    "FeaturePyramidNetwork": Model(pyramid, (2, 3, 40, 50)),
    "DAF3D, pyramid": Model(daf3d_pyramid, (2, 3, 40, 50), no_gradient=("part.layer_blocks.*",)),
}
