"""The feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.wrappers import Conv2d


class FPN(nn.Module):
    """Laterals, sums (or means) from the coarsest level down, and one convolution per level.

    Args:
        bottom_up: the backbone, whose maps it names ``res2`` and so on.
        in_features: those of its maps that are used, the finest first.
        in_channels: theirs.
        out_channels: of each result.
        top_block: makes coarser levels of the map that it names.
        fuse_type: ``"sum"`` or ``"avg"``.
    """

    def __init__(
        self,
        bottom_up: nn.Module,
        in_features: Sequence[str],
        in_channels: Sequence[int],
        out_channels: int,
        top_block: Any = None,
        fuse_type: str = "sum",
    ) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.top_block = top_block
        self._fuse_type = fuse_type
        # Plain lists beside the modules by name.
        self.lateral_convs: list[nn.Module] = []
        self.output_convs: list[nn.Module] = []
        stages = [int(name.removeprefix("res")) for name in in_features]
        for stage, channels in zip(stages, in_channels, strict=True):
            lateral = Conv2d(channels, out_channels, 1)
            output = Conv2d(out_channels, out_channels, 3)
            self.add_module(f"fpn_lateral{stage}", lateral)
            self.add_module(f"fpn_output{stage}", output)
            self.lateral_convs.insert(0, lateral)
            self.output_convs.insert(0, output)
        more = 0 if top_block is None else top_block.num_levels
        self._out_features = [f"p{n}" for n in (*stages, *range(stages[-1] + 1, 99)[:more])]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.bottom_up(x)
        level = None
        levels: list[Tensor] = []
        for name, lateral, output in zip(
            reversed(self.in_features), self.lateral_convs, self.output_convs, strict=True
        ):
            side = lateral(maps[name])
            if level is None:
                level = side
            else:
                level = side + F.interpolate(level, scale_factor=2.0)
                if self._fuse_type == "avg":
                    level /= 2
            levels = [output(level), *levels]
        if self.top_block is not None:
            name = self.top_block.in_feature
            top = maps[name] if name in maps else levels[self._out_features.index(name)]
            levels += self.top_block(top)
        return dict(zip(self._out_features, levels, strict=True))


class LastLevelMaxPool(nn.Module):
    """One more level, of every second pixel of the coarsest."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, 1, 2)]


class LastLevelP6P7(nn.Module):
    """Two more levels, of the backbone's last map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = "res5"
        self.p6 = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.p7 = nn.Conv2d(outputs, outputs, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.p6(x)
        return [first, self.p7(F.relu(first))]
