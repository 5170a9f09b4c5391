"""Writes losses and decisions of upsampled logits as calls of operators on the logits before."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch.fx import Graph, Node

from ... import functional
from . import _runtime
from ._emit import erase
from ._loss_forms import Buffer, Decision, Loss
from ._loss_match import LossSite
from ._values import tensor_of


def emit_loss(site: LossSite, *, guarded: bool) -> None:
    """Puts a call of a site's operator in its place; the nodes that it replaces lose their users.

    Args:
        site: it has no objections.
        guarded: the graph only runs with the sizes that its fake values have.
    """
    with site.root.graph.inserting_before(site.root):
        if isinstance(site.ending, Decision):
            _emit_decision(site, site.ending, guarded)
        else:
            _emit_loss(site, site.ending, guarded)


def erase_losses(sites: Sequence[LossSite]) -> None:
    """Erases what calls have replaced: all that the same upsampled logits went to."""
    erase([node for site in sites for node in site.replaced])


def _emit_decision(site: LossSite, decision: Decision, guarded: bool) -> None:
    graph = site.root.graph
    arguments = (site.form.input, _size(graph, site, guarded))
    options = _resampling(site)
    if site.wants_probability:
        options["return_max"] = True
    call = graph.call_function(functional.resample_argmax, arguments, options)
    for node, part in site.results.items():
        result = call
        if site.wants_probability:
            result = graph.call_function(operator.getitem, (call, int(part == "values")))
        if decision.keepdim:
            result = graph.call_method("unsqueeze", (result, 1))
        _replace(site, node, result, convert=part == "values")


def _emit_loss(site: LossSite, loss: Loss, guarded: bool) -> None:
    graph = site.root.graph
    tensors = {
        name: graph.get_attr(x.path) if isinstance(x, Buffer) else x
        for name, x in site.tensors().items()
    }
    target = tensors.pop("target")
    if not guarded:
        arguments = (site.operator, site.form.input, _size(graph, site, guarded), target)
        graph.call_function(_runtime.expect_target, arguments)
    squeezed = "squeeze" in site.kinds
    if squeezed:
        target = graph.call_method("unsqueeze", (target, 1))
    options = {**_resampling(site), **tensors, **loss.options}
    function = getattr(functional, site.operator)
    result = graph.call_function(function, (site.form.input, target), options)
    if squeezed and loss.options["reduction"] == "none":
        result = graph.call_method("squeeze", (result, 1))
    _replace(site, site.root, result, convert=True)


def _replace(site: LossSite, node: Node, result: Node, *, convert: bool) -> None:
    """Puts the result of an operator in a node's place, in the dtype that PyTorch gives it."""
    value = tensor_of(node)
    if convert and value is not None and value.dtype != site.dtype:
        result = site.root.graph.call_method("to", (result, value.dtype))
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)


def _resampling(site: LossSite) -> dict[str, Any]:
    options: dict[str, Any] = {"mode": site.form.mode}
    if site.form.align_corners is not None:
        options["align_corners"] = site.form.align_corners
    return options


def _size(graph: Graph, site: LossSite, guarded: bool) -> Any:
    """The size that the logits are upsampled to."""
    size = tuple(site.value.shape[2:])
    if guarded and all(type(n) is int for n in size):
        return size
    if site.form.size is not None:
        return site.form.size
    # The factors are integers.
    scale = site.form.scale_factor
    factors = scale if isinstance(scale, (tuple, list)) else (scale,) * len(size)
    shape = graph.call_function(getattr, (site.form.input, "shape"))
    sizes = [graph.call_function(operator.getitem, (shape, 2 + i)) for i in range(len(size))]
    return tuple(
        graph.call_function(operator.mul, (n, int(factor)))
        for n, factor in zip(sizes, factors, strict=True)
    )
