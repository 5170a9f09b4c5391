"""basicsr: residuals on an upsampled image, and the sums of EDVR. The forwards are those of 1.4."""

from __future__ import annotations

from typing import Any

from .._glue import upsampling_modules, upsampling_reasons
from .._rewrite import Rewrites

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find
_ARCHS = "basicsr.archs"

# In each list of fingerprints, the last is that of the model that the tests have for the package.

for _target, _fingerprints in {
    "srvgg_arch:SRVGGNetCompact": ["bf80c2a411d26438", "8680f3677c517a53"],
    "basicvsr_arch:BasicVSR": ["0c3c8be39a1e9cd6", "e375382b98922b67"],
}.items():
    REWRITES.add(
        f"{_ARCHS}.{_target}",
        fingerprints=_fingerprints,
        summary="The image is upsampled straight into the sum.",
        edits={
            "F.interpolate": "msr.up",
            "out += base": "out = msr.add(out, base, dtype=out.dtype)",
        },
    )


#: Of modules with one ``nn.Upsample``, whose work the new statements do.
_UPSAMPLE: dict[str, Any] = {
    "skip_reasons": lambda module: upsampling_reasons(module.upsample, "upsample"),
    "absorbed_modules": lambda module: upsampling_modules(module.upsample),
}

REWRITES.add(
    f"{_ARCHS}.edvr_arch:PredeblurModule",
    fingerprints=["778deba3306c033d", "00a3e03793c162ec"],
    summary="Upsampling and sum of each level in one pass.",
    **_UPSAMPLE,
    edits={
        "self.upsample(self.resblock_l3(feat_l3))": (
            "msr.upsampled_by(self.upsample, self.resblock_l3(feat_l3))"
        ),
        "self.upsample(self.resblock_l2_2(feat_l2))": (
            "msr.upsampled_by(self.upsample, self.resblock_l2_2(feat_l2))"
        ),
        "self.resblock_l2_1(feat_l2) + feat_l3": "msr.add(self.resblock_l2_1(feat_l2), feat_l3)",
        "feat_l1 + feat_l2": "msr.add(feat_l1, feat_l2)",
    },
)
REWRITES.add(
    f"{_ARCHS}.edvr_arch:TSAFusion",
    fingerprints=["2d6f930093b17d2e", "5a0e12412f228d48"],
    summary="Upsampling and sum of the attentions in one pass.",
    **_UPSAMPLE,
    edits={
        "self.upsample(attn_level)": "msr.upsampled_by(self.upsample, attn_level)",
        "self.lrelu(self.spatial_attn3(attn)) + attn_level": (
            "msr.add(self.lrelu(self.spatial_attn3(attn)), attn_level)"
        ),
        "self.upsample(attn)": "msr.resample(*msr.upsampled_by(self.upsample, attn))",
    },
)
REWRITES.leave(
    f"{_ARCHS}.rrdbnet_arch:RRDBNet",
    reason="a convolution comes next: there is nothing to fuse with",
)
