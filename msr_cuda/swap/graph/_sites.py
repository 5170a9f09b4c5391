"""What a site consists of: maps with how each is resampled, their factors, an activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from ... import _spec
from ..._pool import Pool
from ._values import sizes_agree, tensor_of

Operator = Literal["resample", "resample_sum", "resample_cat", "resample_max"]


@dataclass(frozen=True)
class Source:
    """A map, and how it gets to the size of the result.

    Attributes:
        map: the node that gives it.
        producer: the node whose work the operator does; None: the map is read as it is.
        mode, align_corners, antialias: as the operators take them.
        scale_factor: where coordinates follow from it.
        size: the argument that the result's size follows from.
        repeated: a map of one pixel that is repeated over the image.
    """

    map: Node
    producer: Node | None = None
    mode: str | Pool = "nearest"
    align_corners: bool | None = None
    antialias: bool = False
    scale_factor: float | tuple[float, ...] | None = None
    size: Any = None
    repeated: bool = False

    @property
    def is_resampled(self) -> bool:
        """Whether the operator interpolates it."""
        return self.producer is not None and not self.repeated and isinstance(self.mode, str)

    @property
    def is_pooled(self) -> bool:
        """Whether the operator pools it."""
        return isinstance(self.mode, Pool)


@dataclass(frozen=True)
class Factor:
    """A tensor that a map is multiplied with, or divided by.

    Attributes:
        node: the node that gives it.
        kind: one number; one per channel (and image); or one per pixel.
        divides: the map is divided by it.
    """

    node: Node
    kind: Literal["scalar", "channel", "pixel"]
    divides: bool = False


@dataclass(frozen=True)
class Term:
    """One of the maps that a site sums, concatenates or takes the maximum of.

    Attributes:
        node: what stands for the term in the graph: its value has the result's size, or one pixel.
        constant, factors: what it is multiplied with.
        source: where that comes from; None: not looked at yet.
    """

    node: Node
    constant: float = 1
    factors: tuple[Factor, ...] = ()
    source: Source | None = None


@dataclass
class Site:
    """Nodes that one call of an operator replaces.

    Attributes:
        operator: name of the public function.
        root: the last of the nodes, whose value the operator computes.
        value: the fake value of that.
        terms: the maps; each has its source.
        activation: the operator's.
        replaced: all nodes that the call replaces, the root included.
        in_place: those of them that work in place, with the node that they change.
        autocast: autocast is on, of the kind that interpolates in float32 (not that of the CPU).
    """

    operator: Operator
    root: Node
    value: Tensor
    terms: list[Term] = field(default_factory=list)
    activation: str | None = None
    replaced: list[Node] = field(default_factory=list)
    in_place: list[tuple[Node, Node]] = field(default_factory=list)
    autocast: bool = False

    @property
    def sources(self) -> list[Source]:
        """Of the terms."""
        return [term.source for term in self.terms if term.source is not None]

    @property
    def resampled(self) -> list[Node]:
        """The interpolations that the operator does the work of."""
        return [s.producer for s in self.sources if s.is_resampled and s.producer is not None]

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size of the result; entries may be symbols."""
        return tuple(self.value.shape[2:])

    @property
    def full_maps(self) -> list[Node]:
        """The maps that are read as they are, but for those of one pixel."""
        return [
            source.map
            for source in self.sources
            if source.producer is None
            and (x := tensor_of(source.map)) is not None
            and sizes_agree(tuple(x.shape[2:]), self.size)
        ]

    def has_fixed_size(self, guarded: bool) -> bool:
        """Whether the result has one size, at every call."""
        return guarded and all(type(n) is int for n in self.size)

    @property
    def weighted(self) -> bool:
        """Whether some of the factors are tensors."""
        return any(term.factors for term in self.terms)

    @property
    def keeps_maps(self) -> bool:
        """Whether the operator keeps its maps for the backward, as PyTorch's functions need not."""
        return self.weighted or self.activation not in (None, *_spec.BIT_ACTIVATIONS)

    @property
    def weight_kind(self) -> str:
        """What the factors of all maps have in common: the kind with most elements."""
        kinds = {factor.kind for term in self.terms for factor in term.factors}
        return next((kind for kind in ("pixel", "channel") if kind in kinds), "scalar")

    def reads(self) -> Iterator[Node]:
        """The nodes whose values the operator reads."""
        for term, source in zip(self.terms, self.sources, strict=True):
            yield source.map
            yield from (factor.node for factor in term.factors)

    def maps(self) -> list[Tensor]:
        """The fake values of the maps."""
        return [tensor for s in self.sources if (tensor := tensor_of(s.map)) is not None]

    def dtype(self) -> torch.dtype | None:
        """What the operator's dtype has to be asked for; None: what it gives by itself is right.

        Under CUDA autocast that is the dtype of the maps: the float32 that PyTorch's interpolate
        makes of them there is what the operators avoid.
        """
        promoted = self.maps()[0].dtype
        for x in self.maps()[1:]:
            promoted = torch.promote_types(promoted, x.dtype)
        by_autocast = self.autocast and not self.in_place  # changed memory keeps its dtype
        return None if by_autocast or promoted == self.value.dtype else self.value.dtype
