"""timm: HRNet and CoaT, in which every resolution gets the sum of all, and MobileNetV5."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.hrnet import HighResolutionModule
from torch import Tensor, nn

from ... import functional
from .._gather import MAX_MAPS, absorbed_upsample_reasons, expect_size, gather_options, mode_reasons
from .._glue import add, up
from .._registry import register
from .._rewrite import Rewrites
from .torch import FusedUpsample

REWRITES = Rewrites(__name__)
__getattr__ = REWRITES.find


# The forward of timm 0.9 to 1.0.31.
@register(HighResolutionModule, forward_fingerprints=["32fa3c36c200b0b5"])
class FusedHighResolutionModule(HighResolutionModule):
    """Upsampling, sum and ReLU of each resolution in one pass."""

    @staticmethod
    def skip_reasons(module: HighResolutionModule) -> list[str]:
        """Fusion layers that are not as timm makes them."""
        if module.num_branches == 1:
            return ["it has a single branch"]
        reasons = []
        if module.num_branches > MAX_MAPS:
            reasons.append(f"{module.num_branches} branches are more than one operator takes")
        for i, j, path in _upward_paths(module):
            name = f"fuse_layers.{i}.{j}"
            parts = list(path) if type(path) is nn.Sequential else []
            up = parts[-1] if len(parts) == 3 else None
            if type(up) is nn.Upsample or type(up) is FusedUpsample:
                reasons += absorbed_upsample_reasons(up, f"{name}.2")
            else:
                reasons.append(f"{name} is no Sequential of three that ends in an Upsample")
        return reasons

    @staticmethod
    def absorbed_modules(module: HighResolutionModule) -> list[nn.Module]:
        """The paths from coarser branches, as their convolutions are called one by one."""
        absorbed: list[nn.Module] = []
        for _, _, path in _upward_paths(module):
            absorbed += [path, *list(path.children())[-1:]]
        if type(module.fuse_act) is nn.ReLU:
            absorbed.append(module.fuse_act)
        return absorbed

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """As the original: branches, then one sum per resolution. ``x`` gets the branches' maps."""
        for i, branch in enumerate(self.branches):
            x[i] = branch(x[i])
        is_relu = type(self.fuse_act) is nn.ReLU
        fused = []
        for i, paths in enumerate(self.fuse_layers):
            maps: list[Tensor] = []
            upsamples: list[nn.Upsample | None] = []
            for j, path in enumerate(paths):
                if j > i:
                    convolution, norm, up = path
                    maps.append(norm(convolution(x[j])))
                    upsamples.append(up)
                else:
                    maps.append(path(x[j]))
                    upsamples.append(None)
            size = x[i].shape[2:]
            expect_size("HighResolutionModule", maps[: i + 1], size, x[i].shape[0])
            y = functional.resample_sum(
                maps,
                size,
                activation="relu" if is_relu else None,
                **gather_options(upsamples),
            )
            fused.append(y if is_relu else self.fuse_act(y))
        return fused


def _upward_paths(module: HighResolutionModule) -> list[tuple[int, int, nn.Module]]:
    """What leads from a coarser branch j to branch i."""
    return [
        (i, j, path)
        for i, paths in enumerate(module.fuse_layers)
        for j, path in enumerate(paths)
        if j > i
    ]


# CoaT: tokens of three resolutions, each behind a class token. Those of one image are a view of a
# channels_last map.


def token_sum(
    tokens: Tensor, size: tuple[int, int], others: Sequence[tuple[Tensor, tuple[int, int], float]]
) -> Tensor:
    """``tokens``, plus others that are interpolated to their size.

    Args:
        tokens: [B, 1 + H * W, C].
        size: H and W.
        others: tokens, their H and W, and the scale factor for their ``interpolate``.
    """

    def as_map(x: Tensor, height: int, width: int) -> Tensor:
        if x.shape[1] != 1 + height * width:
            raise AssertionError  # as the original
        return x[:, 1:].transpose(1, 2).unflatten(2, (height, width))

    maps = [
        up(as_map(x, *spatial), scale_factor=factor, mode="bilinear", align_corners=False)
        for x, spatial, factor in others
    ]
    fused = add(as_map(tokens, *size), *maps)
    classes = tokens[:, :1]
    for x, _, _ in others:
        classes = classes + x[:, :1]
    return torch.cat([classes, fused.flatten(2).transpose(1, 2)], 1)


REWRITES.add(
    "timm.models.coat:ParallelBlock",
    fingerprints=["e029a657181aee29"],
    methods={
        "upsample": ["75b4c3030be1f7d5"],
        "downsample": ["37d50373dd6a2540"],
        "interpolate": ["c7a352dd9799c053"],
    },
    summary="Resampling and sum of the tokens of each resolution in one pass.",
    edits={
        "upsample3_2 = self.upsample(cur3, factor=2., size=S3)\n"
        "upsample4_3 = self.upsample(cur4, factor=2., size=S4)\n"
        "upsample4_2 = self.upsample(cur4, factor=4., size=S4)\n"
        "downsample2_3 = self.downsample(cur2, factor=2., size=S2)\n"
        "downsample3_4 = self.downsample(cur3, factor=2., size=S3)\n"
        "downsample2_4 = self.downsample(cur2, factor=4., size=S2)\n"
        "cur2 = cur2 + upsample3_2 + upsample4_2\n"
        "cur3 = cur3 + upsample4_3 + downsample2_3\n"
        "cur4 = cur4 + downsample3_4 + downsample2_4": (
            "cur2, cur3, cur4 = ("
            "recipe.token_sum(cur2, S2, [(cur3, S3, 2.0), (cur4, S4, 4.0)]), "
            "recipe.token_sum(cur3, S3, [(cur4, S4, 2.0), (cur2, S2, 0.5)]), "
            "recipe.token_sum(cur4, S4, [(cur3, S3, 0.5), (cur2, S2, 0.25)]))"
        ),
    },
)
REWRITES.add(
    "timm.models.mobilenetv5:MobileNetV5MultiScaleFusionAdapter",
    fingerprints=["f284c1eaa7063fe1"],
    summary="Every level is upsampled straight into the concatenation.",
    skip_reasons=lambda module: mode_reasons(module.interpolation_mode),
    edits={
        "img = F.interpolate(img, size=high_resolution, mode=self.interpolation_mode)": (
            "img = msr.up(img, size=high_resolution, mode=self.interpolation_mode)"
        ),
        "torch.cat(resized_inputs, dim=1)": "msr.cat(resized_inputs)",
        "F.interpolate": "msr.resample",
    },
)
REWRITES.leave(
    "timm.models.ghostnet:GhostModuleV2",
    "timm.models.ghostnet:GhostModuleV3",
    "timm.layers.gather_excite:GatherExcite",
    reason="every channel has a gate of its own: no operator multiplies two maps",
)
REWRITES.leave(
    "timm.models.csatv2:Block",
    reason="its gate has one channel: there is hardly a byte to save",
)
