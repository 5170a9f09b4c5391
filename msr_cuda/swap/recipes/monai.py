"""MONAI: networks for volumes and slices that upsample by interpolation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ... import functional
from .._gather import MAX_MAPS, mode_reasons
from .._glue import Upsampled, add, upsampled_by, upsampling_modules, upsampling_reasons
from .._rewrite import Rewrites

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find
_BLOCKS = "monai.networks.blocks"
_NETS = "monai.networks.nets"


def _mode_reasons(module: Any) -> list[str]:
    return mode_reasons(module.mode, module.align_corners)


def _reasons_of(*modules: tuple[str, nn.Module]) -> list[str]:
    return [reason for name, module in modules for reason in upsampling_reasons(module, name)]


# U-Nets.


def upsample(block: Any, x: Tensor, skip: Tensor | None) -> Tensor | Upsampled:
    """The upsampling of an ``UpCat``; it waits, if there is a skip of just that size."""
    upsampled = upsampled_by(block.upsample, x)
    if skip is not None and (not block.is_pad or upsampled.target() == skip.shape[2:]):
        return upsampled
    return functional.resample(*upsampled)


REWRITES.add(
    f"{_NETS}.basic_unet:UpCat",
    fingerprints=["fbccdc4cf0ce5adc"],
    summary="Upsampling straight into the concatenation with the skip.",
    skip_reasons=lambda module: upsampling_reasons(module.upsample, "upsample"),
    absorbed_modules=lambda module: upsampling_modules(module.upsample),
    edits={
        "self.upsample(x)": "recipe.upsample(self, x, x_e)",
        # The same, but torch.compile can read it.
        "torch.jit.isinstance(x_e, torch.Tensor)": "isinstance(x_e, torch.Tensor)",
        # What waits has the size of the skip already.
        "self.is_pad": "self.is_pad and isinstance(x_0, torch.Tensor)",
        "torch.cat([x_e, x_0], dim=1)": "msr.cat([x_e, x_0])",
    },
)


def decode(network: Any, x: Tensor, skips: list[Tensor]) -> Tensor:
    """The ``decode`` of a ``SegResNet``: each level is upsampled and summed in one pass."""
    pairs = zip(network.up_samples, network.up_layers, strict=False)
    for i, (up, layer) in enumerate(pairs):
        x = layer(add(upsampled_by(up, x), skips[i + 1]))
    if network.use_conv_final:
        x = network.conv_final(x)
    return x


def _segresnet_reasons(module: Any) -> list[str]:
    return _reasons_of(*((f"up_samples.{i}", up) for i, up in enumerate(module.up_samples)))


def _segresnet_modules(module: Any) -> list[nn.Module]:
    return [part for up in module.up_samples for part in upsampling_modules(up)]


REWRITES.add(
    f"{_NETS}.segresnet:SegResNet",
    f"{_NETS}.segresnet:SegResNetVAE",
    fingerprints=["c47dfe31e2bb1e87", "a990b56aa267f08c"],
    methods={"decode": ["a5b9bc93c1745bb7"]},
    summary="Upsampling and sum of each level in one pass.",
    skip_reasons=_segresnet_reasons,
    absorbed_modules=_segresnet_modules,
    edits={"self.decode(x, down_x)": "recipe.decode(self, x, down_x)"},
)
REWRITES.add(
    f"{_NETS}.dynunet:DynUNet",
    fingerprints=["a0690ff276db7977"],
    summary="In training, every head's map is upsampled straight into the stack of them.",
    skip_reasons=lambda module: (
        ["more maps than one operator takes"]
        if module.deep_supervision and len(module.heads) >= MAX_MAPS
        else []
    ),
    edits={
        "interpolate(feature_map, out.shape[2:])": "msr.up(feature_map, out.shape[2:])",
        "torch.stack(out_all, dim=1)": "msr.cat(out_all).unflatten(1, (len(out_all), -1))",
    },
)


def _ahnet_reasons(module: Any) -> list[str]:
    return _reasons_of(("up1", module.up1), ("up2", module.up2), ("up3", module.up3))


REWRITES.add(
    f"{_NETS}.ahnet:AHNet",
    fingerprints=["3012b4413c805341"],
    summary="Upsampling and sum of each level in one pass.",
    skip_reasons=_ahnet_reasons,
    absorbed_modules=lambda module: [
        part for up in (module.up1, module.up2, module.up3) for part in upsampling_modules(up)
    ],
    edits={
        "self.up1(d0) + fm2": "msr.add(msr.upsampled_by(self.up1, d0), fm2)",
        "self.up2(d1) + fm1": "msr.add(msr.upsampled_by(self.up2, d1), fm1)",
        "self.up3(d3) + conv_x": "msr.add(msr.upsampled_by(self.up3, d3), conv_x)",
    },
)
REWRITES.add(
    f"{_NETS}.ahnet:PSP",
    twin="FusedAHNetPSP",
    fingerprints=["c1ab606d09b88aed"],
    summary="Every pooled map is upsampled straight into the concatenation.",
    skip_reasons=lambda module: (
        ["it upsamples by transposed convolutions"] if module.upsample_mode == "transpose" else []
    ),
    edits={"F.interpolate": "msr.up", "torch.cat(outputs, dim=1)": "msr.cat(outputs)"},
)

# Pyramids.

REWRITES.add(
    f"{_BLOCKS}.feature_pyramid_network:FeaturePyramidNetwork",
    fingerprints=["514e3129f02e4256"],
    summary="Upsampling and lateral sum of each level in one pass.",
    edits={"F.interpolate": "msr.up", "inner_lateral + inner_top_down": (
        "msr.add(inner_lateral, inner_top_down)"
    )},
)  # fmt: skip
REWRITES.add(
    f"{_NETS}.daf3d:Daf3dFPN",
    fingerprints=["76630622bd20f3d3"],
    summary="Upsampling and lateral sum of each level in one pass.",
    edits={
        "inner_top_down = F.interpolate(last_inner, size=feat_shape, mode='trilinear')": (
            "inner_top_down = msr.up(last_inner, size=feat_shape, mode='trilinear')"
        ),
        "inner_lateral + inner_top_down": "msr.add(inner_lateral, inner_top_down)",
        "F.interpolate": "msr.resample",
    },
)
_FCN_STEP = "{{}}({}, {}.size()[2:], mode=self.upsample_mode, align_corners=True)"
REWRITES.add(
    f"{_BLOCKS}.fcn:FCN",
    fingerprints=["afea68ad9a61e930"],
    summary="Upsampling and sum of each level in one pass.",
    skip_reasons=lambda module: (
        ["it upsamples by transposed convolutions"]
        if module.upsample_mode == "transpose"
        else mode_reasons(module.upsample_mode, True)
    ),
    edits={
        f"{up.format('F.interpolate')} + {y}": f"msr.add({up.format('msr.up')}, {y})"
        for up, y in (
            (_FCN_STEP.format(x, like), y)
            for x, like, y in (
                ("gcfm1", "fm3", "gcfm2"),
                ("fs1", "fm2", "gcfm3"),
                ("fs2", "pool_x", "gcfm4"),
                ("fs3", "conv_x", "gcfm5"),
            )
        )
    },
)

# Registration: sums of channel groups, and the mean of all levels. To sum two groups of channels
# after they were interpolated is to sum their interpolations.

REWRITES.add(
    f"{_NETS}.regunet:AdditiveUpSampleBlock",
    fingerprints=["38a23393e39ad710"],
    summary="Upsampling of both halves of the channels, and their sum with the deconvolution.",
    skip_reasons=_mode_reasons,
    edits={
        "resized = F.interpolate(x, output_size, mode=self.mode, "
        "align_corners=self.align_corners)\n"
        "resized = torch.sum(torch.stack("
        "resized.split(split_size=resized.shape[1] // 2, dim=1), dim=-1), dim=-1)": (
            "resized = [msr.up(group, output_size, mode=self.mode, "
            "align_corners=self.align_corners) "
            "for group in x.split(split_size=x.shape[1] // 2, dim=1)]"
        ),
        "deconved + resized": "msr.add(deconved, *resized)",
    },
)
REWRITES.add(
    f"{_BLOCKS}.localnet_block:LocalNetUpSampleBlock",
    fingerprints=["1dce405b9f4d93e2"],
    methods={"additive_upsampling": ["6035ada84a95c880"]},
    summary="Upsampling of both halves of the channels, and their sum with the deconvolution.",
    skip_reasons=_mode_reasons,
    edits={
        "self.deconv_block(x) + self.additive_upsampling(x, mid)": (
            "msr.add(self.deconv_block(x), *(msr.up(group, mid.shape[2:], mode=self.mode, "
            "align_corners=self.align_corners) "
            "for group in x.split(split_size=int(self.out_channels), dim=1)))"
        ),
    },
)
REWRITES.add(
    f"{_BLOCKS}.regunet_block:RegistrationExtractionBlock",
    fingerprints=["345bfd36ace8b640"],
    summary="All levels are upsampled and averaged in one pass.",
    skip_reasons=_mode_reasons,
    edits={
        "F.interpolate": "msr.up",
        "torch.mean(torch.stack(feature_list, dim=0), dim=0)": (
            "msr.add(*feature_list, out_scale=1 / len(feature_list))"
        ),
    },
)
