"""Writes a site as a call of one operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import Graph, Node

from ... import functional
from ..._pool import Pool
from . import _runtime
from ._forms import Resampling, read
from ._sites import Site, Term
from ._values import tensor_of

#: What computes arguments only: it goes when nothing uses it any more.
_ARGUMENT_FUNCTIONS = (getattr, operator.getitem)


def emit(site: Site, *, guarded: bool) -> None:
    """Replaces the nodes of a site by a call of its operator.

    Args:
        site: it has no objections.
        guarded: the graph only runs with the sizes that its fake values have. Otherwise it checks
            itself that maps fit, as PyTorch's functions do.
    """
    root = site.root
    graph = root.graph
    with graph.inserting_before(root):
        if site.operator == "resample":
            call = _emit_resample(graph, site)
        else:
            if not guarded:
                _emit_check(graph, site)
            size = _size(graph, site, guarded)
            maps = [source.map for source in site.sources]
            options = {**_options(site), **_factors(graph, site)}
            call = graph.call_function(getattr(functional, site.operator), (maps, size), options)
    call.meta = dict(root.meta)
    root.replace_all_uses_with(call)
    erase([root, *site.replaced])


def _emit_resample(graph: Graph, site: Site) -> Node:
    form = read(site.root)
    assert isinstance(form, Resampling)
    arguments = (form.input, form.size, form.scale_factor, form.mode, form.align_corners)
    return graph.call_function(functional.resample, (*arguments, form.recompute, form.antialias))


def erase(nodes: Sequence[Node]) -> None:
    """Erases nodes, and what was there for their arguments only."""
    waiting = list(nodes)
    erased: set[Node] = set()
    while waiting:
        # Those that nothing uses come first, whatever their order.
        node = next((n for n in waiting if not n.users), None)
        if node is None:
            return
        waiting.remove(node)
        if node in erased:
            continue
        erased.add(node)
        inputs = node.all_input_nodes
        node.graph.erase_node(node)
        waiting += [n for n in inputs if _computes_arguments(n) and n not in waiting]


def _computes_arguments(node: Node) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    return node.op == "call_function" and node.target in _ARGUMENT_FUNCTIONS


# Size.


def _size(graph: Graph, site: Site, guarded: bool) -> Any:
    """The argument ``size``."""
    if site.has_fixed_size(guarded):
        return site.size
    sizes = [source.size for source in site.sources if source.size is not None]
    if sizes:
        return sizes[0]
    if site.full_maps:
        return _spatial_size(graph, site.full_maps[0])
    return None  # it follows from the scale factors


def _spatial_size(graph: Graph, node: Node) -> Node:
    shape = graph.call_function(getattr, (node, "shape"))
    return graph.call_function(operator.getitem, (shape, slice(2, None)))


def _emit_check(graph: Graph, site: Site) -> None:
    sizes = [source.size for source in site.sources if source.size is not None]
    maps, full = [source.map for source in site.sources], site.full_maps
    pixels = [
        source.map
        for source in site.sources
        if source.repeated or (source.producer is None and source.map not in full)
    ]
    if len(maps) > 1 and (len(sizes) + len(full) > 1 or pixels or site.operator == "resample_cat"):
        arguments = (site.operator, maps, full, pixels, sizes)
        graph.call_function(_runtime.expect_sizes, arguments)


# Options.


def _options(site: Site) -> dict[str, Any]:
    """Keyword arguments that say how the maps are resampled, and what becomes of the result."""
    sources = site.sources
    graph = site.root.graph
    # A map that is read as it is takes any mode, but is pooled where that is it.
    pooled = any(s.is_pooled for s in sources)
    free = [not (s.is_resampled or pooled) for s in sources]
    options: dict[str, Any] = {
        "mode": _one_or_all([_mode(graph, s.mode) for s in sources], free),
        "align_corners": _one_or_all([s.align_corners for s in sources], free),
        "antialias": _one_or_all([s.antialias for s in sources], free),
    }
    if any(s.scale_factor is not None for s in sources):
        options["scale_factors"] = [s.scale_factor for s in sources]
    options["activation"] = site.activation
    options["dtype"] = site.dtype()
    defaults = {"mode": "nearest", "align_corners": None, "antialias": False}
    return {k: v for k, v in options.items() if v != defaults.get(k)}


def _one_or_all(values: list[Any], free: Sequence[bool]) -> Any:
    """One value for all maps where they agree, but for those that are free; else one per map."""
    bound = [value for value, any_ in zip(values, free, strict=True) if not any_]
    return bound[0] if all(value == bound[0] for value in bound) else values


def _mode(graph: Graph, mode: str | Pool) -> Any:
    if isinstance(mode, str):
        return mode
    arguments = (mode.kind, mode.kernel_size, mode.stride, mode.padding, mode.count_include_pad)
    return graph.call_function(_runtime.pool, arguments)


# Factors.

_STACKS: dict[str, Callable[..., Any]] = {
    "scalar": _runtime.scalar_weights,
    "channel": _runtime.channel_weights,
    "pixel": _runtime.pixel_weights,
}


def _factors(graph: Graph, site: Site) -> dict[str, Any]:
    """``weights`` or ``out_scale``, where there are factors."""
    terms = site.terms
    if not site.weighted and all(term.constant == terms[0].constant for term in terms):
        return {"out_scale": terms[0].constant} if terms[0].constant != 1 else {}
    whole = _whole_vector(site)
    if whole is not None:
        return {"weights": whole}
    weights = [_factor(graph, term) for term in terms]
    stack = _STACKS[site.weight_kind]
    return {"weights": graph.call_function(stack, (weights, site.sources[0].map))}


def _factor(graph: Graph, term: Term) -> Any:
    """The product of a term's factors: a node, or a number."""
    product: Any = term.constant
    for factor in term.factors:
        if product == 1 and not factor.divides:
            product = factor.node
        else:
            function = operator.truediv if factor.divides else operator.mul
            product = graph.call_function(function, (product, factor.node))
    return product


def _whole_vector(site: Site) -> Node | None:
    """The vector whose elements, in their order, are the factors of the maps."""
    vectors = set()
    for i, term in enumerate(site.terms):
        if term.constant != 1 or len(term.factors) != 1 or term.factors[0].divides:
            return None
        node = term.factors[0].node
        if node.target is not operator.getitem or node.args[1] != i:
            return None
        vectors.add(node.args[0])
    (vector, *others) = vectors
    value = tensor_of(vector)
    is_whole = value is not None and value.dim() == 1 and value.shape[0] == len(site.terms)
    return vector if is_whole and not others and isinstance(vector, Node) else None
