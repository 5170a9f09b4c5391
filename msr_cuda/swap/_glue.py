"""What rewritten ``forward`` methods call: interpolations that wait for what takes their result.

Where a library writes ``F.interpolate(x, ...)``, its twin writes ``msr.up(x, ...)``, which computes
nothing yet; :func:`add` and :func:`cat` take such maps beside those that are there, and losses take
such logits. Wherever an
operator does not do exactly what the library's code does with the maps at hand (it would broadcast
where PyTorch raises, say), that code runs as it was written.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..functional import ScaleFactor, Size
from ..functional import resample as resample  # for rewritten code
from . import _registry
from ._gather import MAX_MAPS, absorbed_upsample_reasons, mode_reasons
from .recipes.torch import FusedUpsample


class Upsampled(NamedTuple):
    """``F.interpolate(*self)``, not computed yet."""

    input: Tensor
    size: Size = None
    scale_factor: ScaleFactor | None = None
    mode: str = "nearest"
    align_corners: bool | None = None
    recompute_scale_factor: bool | None = None
    antialias: bool = False

    def computed(self) -> Tensor:
        """The result."""
        return F.interpolate(*self)

    def batch(self) -> int:
        """N."""
        return self.input.shape[0]

    def fits(self) -> bool:
        """Whether an operator takes this map and these options."""
        if not 3 <= self.input.dim() <= 5 or (self.size is None) == (self.scale_factor is None):
            return False
        if self.recompute_scale_factor and self.scale_factor is None:
            return False
        if self.antialias or mode_reasons(self.mode, self.align_corners):
            return False
        # Where a factor does not change the size, it still moves the pixels that linear modes read;
        # an operator takes such a map as it is.
        factors = self.coordinate_factors()
        return factors is None or not any(
            n == m and factor != 1
            for n, m, factor in zip(self.input.shape[2:], self.target(), factors, strict=True)
        )

    def fits_target(self, target: Tensor) -> bool:
        """Whether an operator does this on the way to a loss with a target ``[N, *size]``.

        It takes the size from the target, and coordinates from the sizes: so they do from a factor
        that is an integer.
        """
        return (
            all(factor.is_integer() for factor in self.factors() or ())
            and self.input.is_floating_point()
            and self.fits()
            and tuple(target.shape) == (self.batch(), *self.target())
            and target.device == self.input.device
        )

    def factors(self) -> list[float] | None:
        """One scale factor per axis; None: the size is given."""
        if self.scale_factor is None:
            return None
        if isinstance(self.scale_factor, Sequence):
            return [float(factor) for factor in self.scale_factor]
        return [float(self.scale_factor)] * (self.input.dim() - 2)

    def coordinate_factors(self) -> list[float] | None:
        """The scale factors, if coordinates follow from them; None: they follow from the sizes."""
        return None if self.recompute_scale_factor else self.factors()

    def target(self) -> tuple[int, ...]:
        """Spatial size of the result, as ``F.interpolate`` has it."""
        spatial = self.input.shape[2:]
        factors = self.factors()
        if factors is not None:
            pairs = zip(spatial, factors, strict=True)
            return tuple(math.floor(float(n) * factor) for n, factor in pairs)
        if isinstance(self.size, Sequence):
            return tuple(self.size)
        assert self.size is not None
        return (self.size,) * len(spatial)


#: The name in rewritten code, where it stands for ``F.interpolate``.
up = Upsampled

Part = Tensor | Upsampled


def upsampled_by(module: nn.Module, x: Tensor) -> Upsampled:
    """``module(x)``, for an ``nn.Upsample`` or a Sequential that ends in one, not computed yet."""
    last: Any = module
    while isinstance(last, nn.Sequential):
        *before, last = last
        for layer in before:
            x = layer(x)
    return Upsampled(x, last.size, last.scale_factor, last.mode, last.align_corners)


def upsampling_reasons(module: nn.Module, name: str) -> list[str]:
    """Why :func:`upsampled_by` cannot stand for a module; empty: it can."""
    last = module
    while type(last).forward is nn.Sequential.forward and len(last._modules):
        key = list(last._modules)[-1]
        name, last = f"{name}.{key}", last.get_submodule(key)
    if type(last) is nn.Upsample or type(last) is FusedUpsample:
        return absorbed_upsample_reasons(last, name)
    return [f"{name} is no Upsample, but a {type(last).__name__}"]


def upsampling_modules(module: nn.Module) -> list[nn.Module]:
    """The modules that :func:`upsampled_by` does not call."""
    absorbed = [module]
    while isinstance(absorbed[-1], nn.Sequential):
        absorbed.append(list(absorbed[-1].children())[-1])
    return absorbed


def pooled_branch(module: nn.Module, x: Tensor) -> Upsampled:
    """The image pooling of an ASPP, a Sequential whose ``forward`` interpolates at the end."""
    size = x.shape[-2:]
    for layer in module.children():
        x = layer(x)
    return Upsampled(x, size, mode="bilinear", align_corners=False)


def known_reasons(module: nn.Module, name: str, known: Mapping[str, Sequence[str]]) -> list[str]:
    """Why a child cannot be absorbed; empty: it is of a known class, with a known ``forward``.

    Args:
        module: the child, swapped or not.
        name: what to call it.
        known: by name of class, the fingerprints of the ``forward`` that the recipe knows.
    """
    cls = _registry.original_of(type(module)) or type(module)
    if cls.__qualname__ not in known:
        return [f"{name} is no {' or '.join(known)}, but a {_registry.describe(cls)}"]
    recipe = _registry.Recipe(cls, cls, frozenset(known[cls.__qualname__]))
    return [f"{name}: {reason}" for reason in _registry.source_reasons(recipe, "the recipe")]


def add(
    *parts: Part,
    dtype: torch.dtype | None = None,
    out_scale: float = 1,
    relu: bool = False,
) -> Tensor:
    """The sum of maps, from left to right.

    Args:
        parts: maps, of which some wait for their interpolation.
        dtype: of the result, for a sum that was written ``+=``; None: the promoted one.
        out_scale: factor on the sum.
        relu: whether a ReLU comes last.
    """
    arranged = _arrange(parts)
    if arranged is None or any(x.shape[1] != arranged.maps[0].shape[1] for x in arranged.maps):
        total: Tensor = functools.reduce(operator.add, map(computed, parts))
        if out_scale != 1:
            total = total * out_scale
        if dtype is not None:
            total = total.to(dtype)
        return F.relu(total) if relu else total
    return functional.resample_sum(
        arranged.maps,
        arranged.size,
        dtype=dtype,
        out_scale=out_scale,
        activation="relu" if relu else None,
        **arranged.options,
    )


def criterion(**options: Any) -> Callable[[Part, Tensor], Tensor]:
    """An ``nn.CrossEntropyLoss`` with these options, of which :func:`cross_entropy` takes some."""
    return functools.partial(cross_entropy, **options)


def cross_entropy(logits: Part, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    """``F.cross_entropy(logits, target)``: of logits that wait, none is written.

    Args:
        logits: ``[N, C, *spatial]``, which wait for their interpolation to the target's size.
        target: class indices ``[N, *size]``.
        ignore_index: the class that counts nothing.
    """
    # PyTorch's loss takes no other indices than these, and the target's size is not its choice.
    if not isinstance(logits, Upsampled) or not (
        logits.fits_target(target) and target.dtype == torch.int64
    ):
        return F.cross_entropy(computed(logits), target, ignore_index=ignore_index)
    x = logits.input
    loss = functional.resample_cross_entropy(
        x, target, mode=logits.mode, align_corners=logits.align_corners, ignore_index=ignore_index
    )
    # Autocast has this loss in float32; without, half logits have a half loss.
    return loss if torch.is_autocast_enabled(x.device.type) else loss.to(x.dtype)


def masked_binary_cross_entropy(logits: Part, target: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``F.binary_cross_entropy_with_logits(logits.squeeze(1), target) * mask``.

    Args:
        logits: ``[N, 1, *spatial]``, which wait for their interpolation to the target's size.
        target: probabilities ``[N, *size]`` in float32.
        mask: factors ``[N, *size]`` in float32.
    """
    # From float64 PyTorch rounds, as the target is float32.
    if not isinstance(logits, Upsampled) or not (
        logits.fits_target(target)
        and logits.input.shape[1] == 1
        and logits.input.dtype != torch.float64
    ):
        losses = F.binary_cross_entropy_with_logits(
            computed(logits).squeeze(1), target, reduction="none"
        )
        return (losses * mask).mean()
    return functional.resample_binary_cross_entropy_with_logits(
        logits.input,
        target.unsqueeze(1),
        mode=logits.mode,
        align_corners=logits.align_corners,
        weight=mask.unsqueeze(1),
    )


def cat(parts: Sequence[Part]) -> Tensor:
    """The channels of maps behind each other."""
    arranged = _arrange(parts)
    if arranged is None:
        return torch.cat([computed(part) for part in parts], 1)
    return functional.resample_cat(arranged.maps, arranged.size, **arranged.options)


class _Arranged(NamedTuple):
    """Arguments of an operator."""

    maps: list[Tensor]
    size: tuple[int, ...]
    options: dict[str, Any]


def _arrange(parts: Sequence[Part]) -> _Arranged | None:
    """Arguments with which an operator does what PyTorch would; None: there are none."""
    delayed = [part for part in parts if isinstance(part, Upsampled)]
    if not all(isinstance(part, (Tensor, Upsampled)) for part in parts):
        return None  # numbers
    if not delayed or len(parts) > MAX_MAPS or not all(part.fits() for part in delayed):
        return None
    size = delayed[0].target()
    maps = []
    for part in parts:
        if isinstance(part, Upsampled):
            map_, spatial = part.input, part.target()
        else:
            map_, spatial = part, tuple(part.shape[2:])
        # PyTorch raises on most of these, and broadcasts some.
        if not map_.is_floating_point() or spatial != size or map_.shape[0] != delayed[0].batch():
            return None
        maps.append(map_)
    options: dict[str, Any] = {
        "mode": delayed[0].mode,
        "align_corners": delayed[0].align_corners,
    }
    if any(
        (d.mode, d.align_corners) != (delayed[0].mode, delayed[0].align_corners) for d in delayed
    ):
        ways = [part if isinstance(part, Upsampled) else Upsampled(part) for part in parts]
        options["mode"] = [way.mode for way in ways]
        options["align_corners"] = [way.align_corners for way in ways]
    if any(part.coordinate_factors() is not None for part in delayed):
        options["scale_factors"] = [
            part.coordinate_factors() if isinstance(part, Upsampled) else None for part in parts
        ]
    return _Arranged(maps, size, options)


def computed(part: Part) -> Tensor:
    """The map, whether it waited or not."""
    return part.computed() if isinstance(part, Upsampled) else part
