"""Rewrites the sites of a graph into calls of the operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from . import _loss_match, _policy
from ._effects import Effects
from ._emit import emit
from ._forms import Resampling, read
from ._loss_emit import emit_loss, erase_losses
from ._loss_match import LossMatcher, LossSite
from ._match import Matcher
from ._policy import Fuse
from ._report import GraphReport, GraphSite, describe, line_of, tell, traffic_of
from ._sites import Site, Source, Term
from ._sources import describe_users, resampling_reasons
from ._values import EXAMPLE_VALUE, tensor_of


def rewrite(
    module: nn.Module, example_inputs: Sequence[Any] | None = None, *, fuse: Fuse = "all"
) -> tuple[GraphModule, GraphReport]:
    """Rewrites resampling and fusion in a graph into calls of the operators.

    ::

        graph, report = msr_cuda.swap.rewrite(model.eval(), (torch.rand(1, 3, 64, 64),))

    For a model that :func:`torch.fx.symbolic_trace` takes; ``torch.compile(backend="msr_cuda")`` is
    for all others. The graph shares parameters and submodules with the model, which stays as it is.
    It works for other sizes than the example's, too: what it does not know to be so for each of
    them it checks when it runs, and raises where the model would.

    Args:
        module: a ``GraphModule``, or a module that can be traced. What the model decides by its
            ``training`` flag in its own ``forward`` is decided by the trace, which also takes
            ``+=`` for ``+``.
        example_inputs: what the module is called with, tensors of the right shapes, dtypes, layout
            and device; they are not computed with. None: the nodes of the ``GraphModule`` have fake
            values already (``node.meta["example_value"]``).
        fuse: ``"all"``, or ``"auto"``: interpolations without a partner stay where no gradient is
            asked for.

    Returns:
        GraphModule, GraphReport: a rewritten copy, and what was done.

    Raises:
        TypeError: not a module.
        ValueError: an unknown ``fuse``.
        Exception: what the tracer raises.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"rewrite: expected module to be a Module, got {type(module).__name__}")
    check_fuse("rewrite", fuse)
    if isinstance(module, GraphModule):
        graph_module = GraphModule(module, _copy_graph(module.graph))
    else:
        tracer = _Tracer()
        graph_module = GraphModule(module, tracer.trace(module), type(module).__name__)
    if example_inputs is not None:
        _add_fake_values(graph_module, example_inputs)
    report = rewrite_in_place(graph_module, inner=None, fuse=fuse, guarded=False)
    for node in graph_module.graph.nodes:
        if getattr(node.target, "__module__", "").startswith("msr_cuda."):
            node.meta["is_wrapped"] = True  # to trace the graph, as pickle does, stops at the call
    graph_module.recompile()
    return graph_module, report


def check_fuse(function: str, fuse: object) -> None:
    """Raises a ValueError for an unknown policy."""
    if fuse not in ("auto", "all"):
        raise ValueError(f'{function}: expected fuse to be "auto" or "all", got {fuse!r}')


class _Tracer(fx.Tracer):
    """Modules of this package stay whole, as PyTorch's own do."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m).__module__.startswith("msr_cuda."):
            return True
        return bool(super().is_leaf_module(m, module_qualified_name))


def _copy_graph(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    output = copy.graph_copy(graph, {})
    copy.output(output)
    return copy


class _FakeValues(fx.Interpreter):
    """Keeps what each node gives."""

    def run_node(self, n: Node) -> Any:
        """As the original."""
        n.meta[EXAMPLE_VALUE] = value = super().run_node(n)
        return value


def _add_fake_values(graph_module: GraphModule, example_inputs: Sequence[Any]) -> None:
    """Runs a graph on tensors that have no data, and keeps what its nodes give."""
    mode = detect_fake_mode(example_inputs) or FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return mode.from_tensor(value) if is_real else value

    with mode:
        _FakeValues(graph_module).run(*tree_map(fake, tuple(example_inputs)))


def rewrite_in_place(
    graph_module: GraphModule, *, inner: str | None, fuse: Fuse, guarded: bool
) -> GraphReport:
    """Rewrites a graph, and the parts of it that are checkpointed, and tells who is recording.

    Args:
        graph_module: its nodes have fake values.
        inner: the compiler that gets the graph.
        fuse: see :mod:`msr_cuda.swap.graph`.
        guarded: the graph only runs with the sizes, and for the gradients, that its fake values
            are for.
    """
    report = GraphReport()
    for part in _parts(graph_module):
        _Rewriter(part, report, inner, fuse, guarded).run()
        part.graph.lint()
        part.recompile()
    tell(report)
    return report


#: Operators whose graphs run as any other code does.
_TRANSPARENT = ("tag_activation_checkpoint", "wrap")


def _parts(graph_module: GraphModule) -> Iterator[GraphModule]:
    yield graph_module
    for node in graph_module.graph.nodes:
        part = getattr(graph_module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(part, GraphModule) and all(_is_transparent(user) for user in node.users):
            yield from _parts(part)


def _is_transparent(node: Node) -> bool:
    return isinstance(node.target, HigherOrderOperator) and node.target.name() in _TRANSPARENT


class _Rewriter:
    """Works on one graph, from its end to its beginning: so the largest site is found first."""

    def __init__(
        self,
        graph_module: GraphModule,
        report: GraphReport,
        inner: str | None,
        fuse: Fuse,
        guarded: bool,
    ) -> None:
        self.graph = graph_module.graph
        self.report, self.inner, self.fuse, self.guarded = report, inner, fuse, guarded
        _thread_results(self.graph)
        self.effects = Effects(self.graph)
        self.matcher = Matcher(self.effects, guarded)
        self.losses = LossMatcher(self.effects, guarded)

    def run(self) -> None:
        """Rewrites the graph, and adds to the report in the order of its nodes."""
        swapped: list[GraphSite] = []
        skipped: list[GraphSite] = []
        done: set[Node] = set()
        for node in reversed(list(self.graph.nodes)):
            if node in done:
                continue
            losses = self._losses(node)
            if losses:
                swapped += [self._entry_of_loss(site) for site in losses[::-1]]
                for loss in losses:
                    emit_loss(loss, guarded=self.guarded)
                    self.effects.put(loss.root)
                erase_losses(losses)
                continue
            site = self.matcher.match(node) or self._alone(node)
            if site is None:
                continue
            done.update(site.replaced)
            names = tuple(n.name for n in self.graph.nodes if n in site.replaced)
            line = line_of(site.root)
            reason = self._reason(site)
            if reason is None:
                how, traffic = self._how(site), traffic_of(site)
                swapped.append(GraphSite(names, site.operator, how, line, traffic))
                emit(site, guarded=self.guarded)
                self.effects.put(site.root)
            else:
                skipped.append(GraphSite(names, None, reason, line))
        self.report.swapped += swapped[::-1]
        self.report.skipped += skipped[::-1]

    def _losses(self, node: Node) -> list[LossSite]:
        """The losses and decisions that upsampled logits go to, if they are better fused."""
        sites = self.losses.match(node)
        objection = next((_policy.loss_objection(s, self.fuse) for s in sites), None)
        if objection is not None:
            self.losses.reasons[node] = [objection]
        return [] if objection is not None else sites

    def _entry_of_loss(self, site: LossSite) -> GraphSite:
        names = tuple(n.name for n in self.graph.nodes if n in site.replaced)
        how, traffic = _loss_match.describe(site), _loss_match.traffic_of(site)
        return GraphSite(names, site.operator, how, line_of(site.root), traffic)

    def _alone(self, node: Node) -> Site | None:
        """An interpolation that is part of no larger site."""
        form, value = read(node), tensor_of(node)
        if not isinstance(form, Resampling) or not isinstance(form.input, Node):
            return None
        if value is None:
            value = torch.empty(0)
        source = Source(form.input, node, form.mode)
        autocast = self.effects.is_autocast(node, value.device)
        term = Term(node, source=source)
        return Site("resample", node, value, [term], replaced=[node], autocast=autocast)

    def _reason(self, site: Site) -> str | None:
        """Why a site is left alone."""
        reasons: list[str] = []
        if site.operator == "resample":
            form = read(site.root)
            assert isinstance(form, Resampling)
            reasons = resampling_reasons(site.root, form)
            if not reasons and _policy.objection(site, self.inner, self.fuse) is not None:
                reasons = self._no_partner(site.root)
        if reasons:
            return "; ".join(reasons)
        return _policy.objection(site, self.inner, self.fuse)

    def _no_partner(self, node: Node) -> list[str]:
        if node in self.losses.reasons:
            return self.losses.reasons[node]
        known = self.matcher.reasons.get(node) if len(node.users) == 1 else None
        return known or [describe_users(node)]

    def _how(self, site: Site) -> str:
        """What the operator does, for the report."""
        how = describe(site)
        if site.operator == "resample":
            how += f" without a partner: {'; '.join(self._no_partner(site.root))}"
        return how


def _thread_results(graph: fx.Graph) -> None:
    """Makes later nodes take the result of a call in place, not the node that it worked on.

    Both are the same tensor, but only so the graph says in which order they are used. (What ``+=``
    does to a number gives another number.)
    """
    for node in list(graph.nodes):
        form = read(node)
        target = None if form is None else form.target
        if target is None or target.op == "placeholder" or tensor_of(target) is None:
            continue
        later = set(_after(node))
        target.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _after(node: Node) -> Iterator[Node]:
    """The nodes behind a node."""
    while node.op != "output":
        node = node.next
        yield node
