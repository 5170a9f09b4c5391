"""segmentation_models_pytorch: decoders that end a concatenation with a 1x1 convolution."""

from __future__ import annotations

from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP, ASPPPooling
from segmentation_models_pytorch.decoders.dpt.decoder import FusionBlock
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock, PSPDecoder, PSPModule
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from torch import Tensor, nn

from .._hooks import has_hooks
from .._registry import register
from .._source import fingerprint
from ._aspp import aspp_absorbed, aspp_forward, aspp_reasons
from ._pointwise import (
    is_plain,
    pointwise_reasons,
    project,
    resample_projected,
    sum_reasons,
)


def _block_reasons(block: nn.Module, name: str) -> list[str]:
    """Why a ``Conv2dReLU`` is no 1x1 convolution with its norm and activation."""
    if not isinstance(block, Conv2dReLU) or type(block) is not Conv2dReLU or len(block) != 3:
        return [f"{name} is no Conv2dReLU of three"]
    return pointwise_reasons(block[0], f"{name}.0")


@register(SegformerDecoder, algebra=True, forward_fingerprints=["a014920ff47e82dc"])
class ProjectedSegformerDecoder(SegformerDecoder):
    """Each level projected at its own size; resampling, sum, norm and ReLU in one pass."""

    @staticmethod
    def skip_reasons(module: SegformerDecoder) -> list[str]:
        """Another convolution than the decoder makes."""
        return _block_reasons(module.fuse_stage, "fuse_stage") + sum_reasons(len(module.mlp_stage))

    @staticmethod
    def absorbed_modules(module: SegformerDecoder) -> list[nn.Module]:
        """The convolution block."""
        return [module.fuse_stage, *module.fuse_stage]

    def forward(self, features: list[Tensor]) -> Tensor:
        """As the original."""
        conv, norm, activation = self.fuse_stage
        if not is_plain(self.fuse_stage, conv, norm):
            return super().forward(features)
        size = [n // 4 for n in features[0].shape[2:]]
        used = features[2:] if features[1].size(1) == 0 else features[1:]
        maps = [layer(x) for layer, x in zip(self.mlp_stage, used[::-1], strict=False)]
        return project(
            conv, maps, size, mode="bilinear", align_corners=False, norm=norm,
            activation=activation,
        )  # fmt: skip


@register(PSPDecoder, algebra=True, forward_fingerprints=["ae1c6428df0657c4"])
class ProjectedPSPDecoder(PSPDecoder):
    """The pooled maps projected at their own sizes; resampling, sum, norm and ReLU in one pass."""

    @staticmethod
    def skip_reasons(module: PSPDecoder) -> list[str]:
        """Another pyramid or convolution than the decoder makes."""
        reasons = _block_reasons(module.conv, "conv")
        if type(module.psp) is not PSPModule:
            return [*reasons, "psp is no PSPModule"]
        blocks = list(module.psp.blocks)
        if any(type(block) is not PSPBlock for block in blocks):
            return [*reasons, "psp.blocks are no PSPBlocks"]
        for cls, known in ((PSPModule, "5e361abbc2205217"), (PSPBlock, "d7532df4d372e4c3")):
            if fingerprint(cls.forward) != known:
                reasons.append(f"{cls.__name__}.forward is not one that this was written for")
        return reasons + sum_reasons(len(blocks) + 1)

    @staticmethod
    def absorbed_modules(module: PSPDecoder) -> list[nn.Module]:
        """The pyramid but for its pooling layers, and the convolution block."""
        return [module.psp, *module.psp.blocks, module.conv, *module.conv]

    def forward(self, features: list[Tensor]) -> Tensor:
        """As the original."""
        conv, norm, activation = self.conv
        blocks = list(self.psp.blocks)
        if not is_plain(self.psp, *blocks, self.conv, conv, norm):
            return super().forward(features)
        x = features[-1]
        y = project(
            conv, [*(block.pool(x) for block in blocks), x], x.shape[2:], mode="bilinear",
            align_corners=True, norm=norm, activation=activation,
        )  # fmt: skip
        return self.dropout(y)


@register(ASPP, algebra=True, forward_fingerprints=["327ff82001f95fc0"])
class ProjectedASPP(ASPP):
    """The pooled branch projected as the single pixel it is; the rest of the head in one sum."""

    @staticmethod
    def skip_reasons(module: ASPP) -> list[str]:
        """Branches and projections that are not as the package makes them."""
        return aspp_reasons(module, ASPPPooling, ["544a75830444ed64"])

    @staticmethod
    def absorbed_modules(module: ASPP) -> list[nn.Module]:
        """The pooled branch as a whole, and the projection but for its dropout."""
        return aspp_absorbed(module)

    def forward(self, x: Tensor) -> Tensor:
        """As the original."""
        return aspp_forward(self, x, super().forward)


@register(FusionBlock, algebra=True, forward_fingerprints=["1423f16eff5f1738"])
class ProjectedFusionBlock(FusionBlock):
    """Projected before the map is doubled: a quarter of the convolution's operations."""

    @staticmethod
    def skip_reasons(module: FusionBlock) -> list[str]:
        """Another projection, or one that is watched."""
        reasons = pointwise_reasons(module.project, "project")
        if has_hooks(module.project):
            reasons.append("a hook on project would see another map than now")
        return reasons

    def forward(self, feature: Tensor, previous_feature: Tensor | None = None) -> Tensor:
        """As the original."""
        feature = self.residual_conv_block1(feature)
        if previous_feature is not None:
            feature = feature + previous_feature
        feature = self.residual_conv_block2(feature)
        return resample_projected(
            self.project, feature, scale_factor=2, mode="bilinear", align_corners=True
        )
