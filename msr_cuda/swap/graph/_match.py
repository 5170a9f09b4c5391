"""Finds the sites of a graph: sums, concatenations and maxima of maps that are resampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor
from torch.fx import Node

from ... import _spec
from ._effects import Effects
from ._forms import Activation, Concatenation, Form, Maximum, Product, Resampling, Sum, read
from ._sites import Factor, Operator, Site, Source, Term
from ._sources import is_map, is_pixel, name_of, source_of
from ._values import agree, number_of, same, sizes_agree, tensor_of

#: What a term consists of, where the operator can do that, too; None: it is taken as it is.
Split = Callable[[Term, Site], "list[Term] | None"]


class Matcher:
    """Matches one graph, from its end to its beginning.

    Attributes:
        reasons: why an interpolation that was looked at cannot be part of a site.
    """

    def __init__(self, effects: Effects, guarded: bool) -> None:
        self.effects, self.guarded = effects, guarded
        self.reasons: dict[Node, list[str]] = {}

    def match(self, root: Node) -> Site | None:
        """The site that ends in a node; None: there is none."""
        node, form, activation = root, read(root), None
        before: list[Node] = []
        if isinstance(form, Activation):
            node, activation = form.input, form.name
            if form.hook or not isinstance(node, Node) or len(node.users) > 1:
                return None
            before, form = [root], read(node)
        found = self._fusion(node, form, activation)
        value = tensor_of(node)
        if found is None or value is None or not is_map(value):
            return None
        operator, split = found
        site = Site(operator, root, value, [Term(node)], activation)
        for replaced in before:
            _replace(site, replaced)
        _flatten(site, split)
        objections = self._add_sources(site)
        if not any(source.is_resampled or source.is_pooled for source in site.sources):
            self._explain(node, site, split)
            return None
        site.autocast = self.effects.is_autocast(root, value.device)
        objections = objections or self._objections(site)
        if not objections:
            return site
        for producer in site.resampled:
            self.reasons.setdefault(producer, objections)
        return None

    def _explain(self, node: Node, site: Site, split: Split) -> None:
        """Notes why interpolations that a node works on are not in its site."""
        form = read(node)
        if isinstance(form, Resampling) or site.terms[0].node is not node:
            return
        parts = split(Term(node), site)
        inputs = node.all_input_nodes
        if form is not None and form.stack is not None:
            inputs = form.stack.all_input_nodes
        if parts is not None:
            reason = f"{name_of(node)} takes {len(parts)} maps, more than one operator does"
        else:
            shapes = [list(x.shape) for n in inputs if (x := tensor_of(n)) is not None]
            reason = (
                f"{name_of(node)} of {shapes} is not a sum of maps of one size, with factors per "
                "channel or per pixel"
            )
        for producer in inputs:
            if isinstance(read(producer), Resampling):
                self.reasons.setdefault(producer, [reason])

    def _fusion(
        self, node: Node, form: Form | None, activation: str | None
    ) -> tuple[Operator, Split] | None:
        """The operator for a node, and what it takes apart."""
        if form is None or form.hook:
            return None
        if isinstance(form, (Sum, Product)):
            return "resample_sum", split_sum
        if isinstance(form, Concatenation):
            return "resample_cat", split_concatenation
        if isinstance(form, Maximum):
            return "resample_max", split_maximum
        if isinstance(form, Resampling) and activation is not None:
            return "resample_sum", split_sum
        return None

    def _add_sources(self, site: Site) -> list[str]:
        """Looks where the terms come from, and says why they do not fit."""
        pooling = site.operator == "resample_sum" and len(site.terms) > 1
        objections: list[str] = []
        for i, term in enumerate(site.terms):
            source, reasons = source_of(term.node, pooling=pooling)
            if reasons:
                self.reasons[term.node] = reasons
            if source.producer is not None:
                site.replaced.append(source.producer)
            site.terms[i] = replace(term, source=source)
            objections += term_reasons(site, term.node, source)
        return objections

    def _objections(self, site: Site) -> list[str]:
        """Why a site that fits otherwise has to be left alone."""
        for node, target in site.in_place:
            found = self.effects.in_place_objections(node, target)
            if found:
                return found
        found = self.effects.objections(site.replaced, site.root, list(site.reads()))
        if found:
            return found
        gradient = site.value.requires_grad or not self.guarded
        if gradient and site.keeps_maps:
            found = self.effects.later_objections(site.root, list(site.reads()))
            if found:
                return found
        if not (
            site.has_fixed_size(self.guarded)
            or site.full_maps
            or any(s.size is not None or s.scale_factor is not None for s in site.sources)
        ):
            return ["its size is not known before the graph runs"]
        kinds = {factor.kind for term in site.terms for factor in term.factors}
        if {"channel", "pixel"} <= kinds:
            return ["it has factors per channel and factors per pixel"]
        if site.operator == "resample_max" and gradient:
            # Ties are common: two maps after a ReLU have many zeros in common.
            return ["the gradient of equal values is shared by PyTorch, and goes to the first here"]
        dtype = site.dtype()
        if dtype is not None and dtype not in _spec.DTYPES:
            return [f"its result is {dtype}"]
        return layout_reasons(site)


# Taking apart.


def _flatten(site: Site, split: Split) -> None:
    """Takes the terms apart, as long as one operator takes all the maps.

    The first term is what the whole site computes. Of other nodes nobody else may use the value.
    """
    i = 0
    while i < len(site.terms):
        term = site.terms[i]
        is_whole = len(site.replaced) == (site.activation is not None)
        parts = split(term, site) if is_whole or len(term.node.users) == 1 else None
        if parts is None or len(site.terms) - 1 + len(parts) > _spec.MAX_INPUTS:
            i += 1
        else:
            _replace(site, term.node)
            site.terms[i : i + 1] = parts


def _replace(site: Site, node: Node) -> None:
    """Notes that the operator does the work of a node."""
    form = read(node)
    site.replaced.append(node)
    if form is not None and form.stack is not None:
        site.replaced.append(form.stack)
    if form is not None and form.target is not None:
        site.in_place.append((node, form.target))


def split_sum(term: Term, site: Site) -> list[Term] | None:
    """The addends of a sum, the map of a product."""
    form = read(term.node)
    if form is None or form.hook:
        return None
    if isinstance(form, Product):
        return _split_product(term, form, site)
    if not isinstance(form, Sum) or term.factors:  # a factor of a sum is not distributed
        return None
    # The built-in sum() begins with 0.
    addends = [(x, factor) for x, factor in form.addends if number_of(x) != 0]
    parts = [
        replace(term, node=x, constant=term.constant * factor)
        for x, factor in addends
        if isinstance(x, Node) and _fits(tensor_of(x), site)
    ]
    return parts if len(parts) == len(addends) else None


def _split_product(term: Term, form: Product, site: Site) -> list[Term] | None:
    pairs = [(form.a, form.b)] if form.divides else [(form.a, form.b), (form.b, form.a)]
    for x, other in pairs:
        if not isinstance(x, Node) or not _has_full_size(tensor_of(x), site):
            continue
        number = number_of(other)
        if number is not None and not (form.divides and number == 0):
            constant = term.constant / number if form.divides else term.constant * number
            return [replace(term, node=x, constant=constant)]
        factor = _factor(other, form.divides, site)
        # Operators have no factors per channel and per pixel at once.
        if factor is not None and {factor.kind, *(f.kind for f in term.factors)} != {
            "channel",
            "pixel",
        }:
            return [replace(term, node=x, factors=(*term.factors, factor))]
    return None


def split_concatenation(term: Term, site: Site) -> list[Term] | None:
    """The maps of a concatenation."""
    form = read(term.node)
    return _nodes(form.maps) if isinstance(form, Concatenation) else None


def split_maximum(term: Term, site: Site) -> list[Term] | None:
    """The maps of a maximum."""
    form = read(term.node)
    return _nodes(form.maps) if isinstance(form, Maximum) else None


def _nodes(maps: Sequence[object]) -> list[Term] | None:
    terms = [Term(x) for x in maps if isinstance(x, Node)]
    return terms if len(terms) == len(maps) else None


# What fits.


def _factor(argument: object, divides: bool, site: Site) -> Factor | None:
    """A tensor as a factor of maps, if its shape is one that operators take."""
    tensor = tensor_of(argument)
    if not isinstance(argument, Node) or tensor is None or tensor.dtype not in _spec.DTYPES:
        return None
    if tensor.device != site.value.device or tensor.dim() > site.value.dim():
        return None
    batch, channels = site.value.shape[:2]
    # PyTorch lines shapes up at their ends.
    shape = (*(1,) * (site.value.dim() - tensor.dim()), *tensor.shape)
    if not (same(shape[0], 1) or agree(shape[0], batch)):
        return None
    if all(same(n, 1) for n in shape):
        return Factor(argument, "scalar", divides)
    if agree(shape[1], channels) and all(same(n, 1) for n in shape[2:]):
        return Factor(argument, "channel", divides)
    if same(shape[1], 1) and sizes_agree(shape[2:], site.size) and tensor.dim() == len(shape):
        return Factor(argument, "pixel", divides)
    return None


def _has_full_size(tensor: Tensor | None, site: Site) -> bool:
    return tensor is not None and sizes_agree(tuple(tensor.shape), tuple(site.value.shape))


def _fits(tensor: Tensor | None, site: Site) -> bool:
    """Whether a map can be an addend: what PyTorch broadcasts, the operators do, too."""
    if tensor is None or tensor.dim() != site.value.dim() or tensor.device != site.value.device:
        return False
    shape, full = tuple(tensor.shape), tuple(site.value.shape)
    return (
        (agree(shape[0], full[0]) or same(shape[0], 1))
        and agree(shape[1], full[1])
        and (sizes_agree(shape[2:], full[2:]) or is_pixel(tensor))
    )


def term_reasons(site: Site, node: Node, source: Source) -> list[str]:
    """Why a map cannot be one of the site's."""
    x, y = tensor_of(source.map), tensor_of(node)
    if x is None or y is None:
        return [f"the shape of {source.map.name} is not known"]
    if not is_map(x):
        return [f"{source.map.name} is {x.dtype} of {x.dim()} dimensions"]
    if x.dim() != site.value.dim():
        return [f"{source.map.name} has {x.dim()} dimensions"]
    if site.operator == "resample_cat":
        fits = agree(y.shape[0], site.value.shape[0]) and sizes_agree(tuple(y.shape[2:]), site.size)
    else:
        fits = _fits(y, site)
    # A single pixel would be repeated, not resampled.
    if not fits or (source.producer is not None and not sizes_agree(tuple(y.shape[2:]), site.size)):
        return [
            f"{node.name} is {list(y.shape)}, which is not known to fit {list(site.value.shape)}"
        ]
    return []


def layout_reasons(site: Site) -> list[str]:
    """Code after the site may rely on how its result lies in memory."""
    wanted = _spec.is_channels_last(site.value)
    if wanted is None or wanted == _spec.result_is_channels_last(site.maps()):
        return []
    order = "channels_last" if wanted else "contiguous"
    return [f"its maps differ in memory layout, and PyTorch makes the result {order}"]
