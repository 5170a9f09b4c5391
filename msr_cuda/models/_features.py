"""What an encoder says of its maps, in timm's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


class FeatureInfo:
    """Channels, reductions and names of the maps that an encoder returns.

    Has the methods of timm's ``FeatureInfo`` that decoders ask.

    Args:
        info: of each stage ``num_chs``, ``reduction`` (the image's size over the map's) and
            ``module`` (the name of the module that makes it).
        out_indices: the stages that are returned.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = [dict(entry, index=i) for i, entry in enumerate(info)]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """An entry of each returned stage; of one stage by its number; of several."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """The channels of the maps."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """How many times smaller than the image the maps are."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """The names of the modules that make the maps."""
        return self.get("module", idx)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.info[item]

    def __len__(self) -> int:
        return len(self.info)


def feature_info(name: str, encoder: nn.Module) -> FeatureInfo:
    """What an encoder says of its maps, this package's or timm's."""
    info: Any = getattr(encoder, "feature_info", None)
    if not hasattr(info, "out_indices"):
        raise TypeError(
            f"{name}: expected an encoder with feature_info, which gives a list of maps "
            f"(multiscale_encoder, timm's features_only=True), got {type(encoder).__name__}"
        )
    found: FeatureInfo = info
    return found


def encoder_dims(encoder: nn.Module) -> int:
    """The number of spatial axes: 2, unless the encoder says otherwise."""
    return int(getattr(encoder, "dims", 2))
