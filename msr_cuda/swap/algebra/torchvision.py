"""torchvision: the heads of DeepLabV3 and LR-ASPP."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP, ASPPPooling
from torchvision.models.segmentation.lraspp import LRASPPHead

from .._hooks import has_hooks
from .._registry import register
from ._aspp import aspp_absorbed, aspp_forward, aspp_reasons
from ._pointwise import add_projected, pointwise_reasons


@register(ASPP, algebra=True, forward_fingerprints=["9cf2c843a2214144"])
class ProjectedASPP(ASPP):
    """The pooled branch projected as the single pixel it is; the rest of the head in one sum."""

    @staticmethod
    def skip_reasons(module: ASPP) -> list[str]:
        """Branches and projections that are not as torchvision makes them."""
        return aspp_reasons(module, ASPPPooling, ["544a75830444ed64"])

    @staticmethod
    def absorbed_modules(module: ASPP) -> list[nn.Module]:
        """The pooled branch as a whole, and the projection but for its dropout."""
        return aspp_absorbed(module)

    def forward(self, x: Tensor) -> Tensor:
        """As the original."""
        return aspp_forward(self, x, super().forward)


@register(LRASPPHead, algebra=True, forward_fingerprints=["142bcf0dd549c9df"])
class ProjectedLRASPPHead(LRASPPHead):
    """The coarse map classified before it is resampled into the sum."""

    @staticmethod
    def skip_reasons(module: LRASPPHead) -> list[str]:
        """Another classifier, or one that is watched."""
        reasons = pointwise_reasons(module.high_classifier, "high_classifier")
        if has_hooks(module.high_classifier):
            reasons.append("a hook on high_classifier would see another map than now")
        return reasons

    def forward(self, input: dict[str, Tensor]) -> Tensor:
        """As the original."""
        high = input["high"]
        low = self.low_classifier(input["low"])
        gated = self.cbr(high) * self.scale(high)
        return add_projected(self.high_classifier, gated, low, mode="bilinear", align_corners=False)
