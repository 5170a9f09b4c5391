"""timm: the modules of HRNet, in which every resolution gets the sum of all."""

from __future__ import annotations

from timm.models.hrnet import HighResolutionModule
from torch import Tensor, nn

from ... import functional
from .._gather import MAX_MAPS, absorbed_upsample_reasons, expect_size, gather_options
from .._registry import register
from .torch import FusedUpsample


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
