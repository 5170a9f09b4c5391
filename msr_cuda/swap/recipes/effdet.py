"""effdet: the nodes of the BiFPN, weighted sums of maps that are upsampled or max-pooled."""

from __future__ import annotations

from typing import Any

from effdet.efficientdet import FpnCombine, ResampleFeatureMap
from torch import Tensor, nn

from ... import functional
from ..._pool import Pool
from .._gather import MAX_MAPS, mode_reasons
from .._glue import Upsampled, known_reasons
from .._registry import register

Pair = tuple[int, int]

#: How the weights of a node are normalised.
_NORMALIZE = {"attn": "softmax", "fastattn": "fast", "sum": None}

#: What resamples within a ``ResampleFeatureMap``, and the fingerprints of its forward.
_KNOWN = {
    "Interpolate2d": ["e8c449e476921728"],
    "MaxPool2d": ["bb456c390ab34882"],
    "MaxPool2dSame": ["aae8690d7cb9940c"],
    "AvgPool2d": ["245a4409818395e8"],
    "AvgPool2dSame": ["e6c17c655a0d41b5"],
}


@register(FpnCombine, forward_fingerprints=["a3bb032293cb5a2e"])
class FusedFpnCombine(FpnCombine):
    """Upsampling, pooling, weights and sum of a node in one pass."""

    @staticmethod
    def skip_reasons(module: FpnCombine) -> list[str]:
        """Options that an operator does not have."""
        reasons = []
        if module.weight_method not in _NORMALIZE:
            reasons.append(f"unknown weight_method {module.weight_method!r}")
        if len(module.resample) > MAX_MAPS:
            reasons.append(f"{len(module.resample)} maps are more than one operator takes")
        for name, resample in module.resample.items():
            label = f"resample.{name}"
            if type(resample) is not ResampleFeatureMap:
                reasons.append(f"{label} is a {type(resample).__name__}")
                continue
            last = _resampling(resample)
            if last is not None:
                reasons += known_reasons(last, label, _KNOWN) or _option_reasons(last, label)
        return reasons

    @staticmethod
    def absorbed_modules(module: FpnCombine) -> list[nn.Module]:
        """The paths of the inputs, as their convolutions are called by themselves."""
        absorbed: list[nn.Module] = []
        for resample in module.resample.values():
            last = _resampling(resample)
            absorbed += [resample] if last is None else [resample, last]
        return absorbed

    def forward(self, x: list[Tensor]) -> Tensor:
        """As the original, also in that the weights are rounded to the dtype of ``x[0]``."""
        maps: list[Tensor] = []
        modes: list[str | Pool] = []
        corners: list[bool | None] = []
        scales: list[list[float] | None] = []
        sizes = set()
        for offset, resample in zip(self.inputs_offsets, self.resample.values(), strict=False):
            map_, last = x[offset], _resampling(resample)
            for layer in resample:
                if layer is not last:
                    map_ = layer(map_)
            way = _way(last, map_)
            maps.append(map_)
            modes.append(way if isinstance(way, Pool) else way.mode)
            corners.append(None if isinstance(way, Pool) else way.align_corners)
            scales.append(None if isinstance(way, Pool) else way.coordinate_factors())
            spatial = map_.shape[2:]
            sizes.add(tuple(way.output_size(spatial)) if isinstance(way, Pool) else way.target())
        if len(sizes) != 1 or any(map_.shape[:2] != maps[0].shape[:2] for map_ in maps):
            combined: Tensor = super().forward(x)  # raises
            return combined
        weights = self.edge_weights
        return functional.resample_sum(
            maps,
            sizes.pop(),
            weights=None if weights is None else weights.to(dtype=x[0].dtype),
            normalize=_NORMALIZE[self.weight_method],
            eps=1e-4,
            mode=modes,
            align_corners=corners,
            scale_factors=scales,
        )


def _resampling(resample: nn.Module) -> nn.Module | None:
    """What a path ends with; None: its map has the right size."""
    for name in ("downsample", "upsample"):
        if name in resample._modules:
            return resample._modules[name]
    return None


def _option_reasons(module: Any, label: str) -> list[str]:
    if type(module).__name__ == "Interpolate2d":
        return [f"{label}: {r}" for r in mode_reasons(module.mode, module.align_corners)]
    reasons = []
    if module.ceil_mode:
        reasons.append(f"{label} rounds its size up")
    if isinstance(module, nn.MaxPool2d) and (
        module.return_indices or module.dilation not in (1, (1, 1))
    ):
        reasons.append(f"{label} has options that no operator has")
    if isinstance(module, nn.AvgPool2d) and module.divisor_override is not None:
        reasons.append(f"{label} has a divisor of its own")
    return reasons


def _way(module: Any, x: Tensor) -> Upsampled | Pool:
    """What a module does to a map."""
    if module is None:
        return Upsampled(x, x.shape[2:])
    if type(module).__name__ == "Interpolate2d":
        return Upsampled(x, module.size, module.scale_factor, module.mode, module.align_corners)
    same = type(module).__name__.endswith("Same")
    key = (
        isinstance(module, nn.MaxPool2d),
        _pair(module.kernel_size),
        _pair(module.stride),
        None if same else _pair(module.padding),
        bool(getattr(module, "count_include_pad", True)),
    )
    if key not in _POOLS:
        _POOLS[key] = _pool(*key)
    return _POOLS[key]


def _pool(
    is_max: bool, kernel: Pair, stride: Pair, padding: Pair | None, count_include_pad: bool
) -> Pool:
    borders: Any = "same" if padding is None else tuple((p, p) for p in padding)
    return Pool("max" if is_max else "avg", kernel, stride, borders, count_include_pad)


#: Poolings by their options: to make one takes as long as half a small kernel.
_POOLS: dict[tuple[bool, Pair, Pair, Pair | None, bool], Pool] = {}


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
