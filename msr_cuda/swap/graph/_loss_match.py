"""Finds losses and decisions of upsampled logits, whose upsampled logits nobody else uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ... import _spec
from .._measure import Traffic
from ._effects import AUTOCAST_SWITCHES, GRADIENT_SWITCHES, Effects
from ._forms import Resampling, read
from ._loss_forms import Buffer, Decision, Loss, Step, part_of_pair, read_ending, read_step
from ._sources import is_map, name_of, resampling_reasons
from ._values import same, sizes_agree, tensor_of


@dataclass
class LossSite:
    """A loss or a decision that one call of an operator computes from the logits before.

    Attributes:
        operator: name of the public function.
        root: the node in whose place the call stands.
        interpolation: the node that upsamples.
        form: what that does.
        value: the fake value of that, the upsampled logits.
        ending: what the root computes.
        steps: what lies between, with their nodes.
        results: the nodes whose values the operator gives: the root, or those that take its pair
            apart, with the name of the part.
        shares: the site before it in the report reads the same upsampled logits.
    """

    operator: str
    root: Node
    interpolation: Node
    form: Resampling
    value: Tensor
    ending: Loss | Decision
    steps: dict[Node, Step]
    results: dict[Node, str | None] = field(default_factory=dict)
    shares: bool = False

    @property
    def logits(self) -> Tensor:
        """The fake value of the map that is upsampled."""
        tensor = tensor_of(self.form.input)
        assert tensor is not None
        return tensor

    @property
    def replaced(self) -> list[Node]:
        """All nodes that the call replaces."""
        return [self.interpolation, *self.steps, self.root, *self.parts]

    @property
    def parts(self) -> list[Node]:
        """The nodes that take a pair apart."""
        return [node for node in self.results if node is not self.root]

    @property
    def kinds(self) -> set[str]:
        """The kinds of the steps."""
        return {step.kind for step in self.steps.values()}

    @property
    def wants_probability(self) -> bool:
        """Whether the winning probability is used, too."""
        return "values" in self.results.values()

    @property
    def dtype(self) -> torch.dtype:
        """Of the operator's loss or probability."""
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32

    def tensors(self) -> dict[str, Any]:
        """The target and the weights, as the call has them, by name."""
        if isinstance(self.ending, Decision):
            return {}
        return {"target": self.ending.target, **self.ending.factors}

    def reads(self) -> list[Node]:
        """The nodes whose values the operator reads."""
        nodes = [self.form.input, *self.tensors().values()]
        return [node for node in nodes if isinstance(node, Node)]


class LossMatcher:
    """Matches what upsampled logits go to.

    Attributes:
        reasons: why logits that go to a loss or a decision are upsampled after all.
    """

    def __init__(self, effects: Effects, guarded: bool) -> None:
        self.effects, self.guarded = effects, guarded
        self.reasons: dict[Node, list[str]] = {}

    def match(self, node: Node) -> list[LossSite]:
        """All losses and decisions of the logits that a node upsamples, if it has no other user."""
        form, value = read(node), tensor_of(node)
        if not isinstance(form, Resampling) or value is None or not is_map(value):
            return []
        sites: list[LossSite] = []
        others: list[Node] = []
        for steps, user in _ways(node, {}):
            site = _site(node, form, value, user, steps)
            if site is None:
                others.append(user)
            else:
                sites.append(site)
        if not sites:
            return []
        objections = resampling_reasons(node, form)
        if others:
            names = ", ".join(dict.fromkeys(map(name_of, others)))
            objections.append(f"the upsampled logits also go to {names}")
        for site in sites if not objections else ():
            objections += self._objections(site)
        if objections:
            self.reasons[node] = list(dict.fromkeys(objections))
            return []
        for site in sites[1:]:
            site.shares = True
        return sites

    def _objections(self, site: LossSite) -> list[str]:
        """Why one of the logits' users has to be left alone."""
        found = _map_reasons(site, self.guarded) or _way_reasons(site)
        if isinstance(site.ending, Decision):
            found = found or self._decision_reasons(site, site.ending)
        else:
            found = found or self._loss_reasons(site, site.ending)
        if found:
            return found
        # The operators compute in float32 with and without autocast, and no decision has a
        # gradient: then it does not matter what is switched in between.
        is_decision = isinstance(site.ending, Decision)
        ignored = AUTOCAST_SWITCHES + (GRADIENT_SWITCHES if is_decision else ())
        found = self.effects.objections(site.replaced, site.root, site.reads(), ignored)
        if not found and self._has_gradient(site):
            found = self.effects.later_objections(site.root, site.reads())
        return found

    def _has_gradient(self, site: LossSite) -> bool:
        loss = tensor_of(site.root)
        return loss is not None and (loss.requires_grad or not self.guarded)

    def _decision_reasons(self, site: LossSite, decision: Decision) -> list[str]:
        if decision.pair and not all(site.results.values()):
            return [f"{name_of(site.root)} is used as a pair"]
        if not site.wants_probability:
            return []
        if "softmax" not in site.kinds:
            return [f"the largest logits of {name_of(site.root)} are used, too"]
        values = [tensor_of(n) for n, part in site.results.items() if part == "values"]
        known = self.guarded or "detach" in site.kinds
        if not known or any(x is None or x.requires_grad for x in values):
            return ["the winning probability may need a gradient"]
        return []

    def _loss_reasons(self, site: LossSite, loss: Loss) -> list[str]:
        if loss.hook:
            return [f"a hook on {site.root.target} would be bypassed"]
        tensors = {name: _tensor(site.root, x) for name, x in site.tensors().items()}
        result = tensor_of(site.root)
        target = tensors["target"]
        if result is None or any(x is None for x in tensors.values()):
            return [f"what {name_of(site.root)} is given is not known"]
        assert target is not None
        if result.dtype == torch.float64 and site.dtype != torch.float64:
            return ["its result is torch.float64"]
        if site.operator != "resample_cross_entropy" and _spec.is_channels_last(result):
            return ["PyTorch makes the result channels_last"]
        if loss.options["reduction"] not in ("none", "mean", "sum"):
            return [f"its reduction is {loss.options['reduction']!r}"]
        for name, x in tensors.items():
            assert x is not None
            # A gradient of a target needs the upsampled logits, and weights get none.
            if x.requires_grad or (
                name != "target" and self._may_need_gradient(loss.factors[name])
            ):
                return [f"its {name} may need a gradient"]
            if x.device != site.value.device or x.layout != torch.strided:
                return [f"its {name} is {x.layout} on {x.device}"]
            if name != "target" and x.dtype not in _spec.DTYPES:
                return [f"its {name} is {x.dtype}"]
        return _target_reasons(site, target)

    def _may_need_gradient(self, argument: Any) -> bool:
        return not self.guarded and isinstance(argument, Node) and argument.op == "placeholder"


def _ways(node: Node, steps: dict[Node, Step]) -> Iterator[tuple[dict[Node, Step], Node]]:
    """The steps from a node to each place where its value ends, and that place."""
    for user in node.users:
        step = read_step(user)
        if step is not None and step.input is node and user.users:
            yield from _ways(user, {**steps, user: step})
        else:
            yield steps, user


def _site(
    node: Node, form: Resampling, value: Tensor, root: Node, steps: dict[Node, Step]
) -> LossSite | None:
    """What a way ends in; None: neither a loss nor a decision of what comes along it."""
    ending = read_ending(root)
    if ending is None or ending.input is not [node, *steps][-1]:
        return None
    if isinstance(ending, Loss):
        site = LossSite(ending.operator, root, node, form, value, ending, steps, {root: None})
        return None if ending.input in site.tensors().values() else site
    results: dict[Node, str | None] = {root: None}
    if ending.pair:
        results = {user: part_of_pair(user) for user in root.users}
    return LossSite("resample_argmax", root, node, form, value, ending, steps, results)


def _tensor(root: Node, argument: Any) -> Tensor | None:
    """The value of an argument of a loss."""
    if not isinstance(argument, Buffer):
        return tensor_of(argument)
    owner = root.graph.owning_module
    assert isinstance(owner, GraphModule)
    return owner.get_buffer(argument.path)


def _map_reasons(site: LossSite, guarded: bool) -> list[str]:
    """Why the operators cannot upsample as the graph does."""
    form, x = site.form, site.logits
    if form.antialias:
        return ["it is antialiased"]
    scale = form.scale_factor
    if scale is None:
        return []
    factors = scale if isinstance(scale, (tuple, list)) else (scale,) * (x.dim() - 2)
    sizes = list(zip(x.shape[2:], site.value.shape[2:], factors, strict=True))
    # Losses have the size of their target, and coordinates that follow from the sizes. So they do
    # from the factor, if the size is the exact product.
    if all(float(factor).is_integer() for factor in factors):
        return []
    fixed = guarded and all(type(n) is int for before, after, _ in sizes for n in (before, after))
    by_sizes = form.recompute or form.mode == "area" or form.align_corners is True
    if fixed and (by_sizes or all(n * factor == after for n, after, factor in sizes)):
        return []
    return [f"with scale factor {scale}, coordinates do not follow from the sizes"]


def _way_reasons(site: LossSite) -> list[str]:
    """Why what lies between the upsampling and the end does not fit."""
    allowed = {"float"}
    if isinstance(site.ending, Decision):
        allowed |= {"softmax", "log_softmax"}
    elif site.ending.log_softmax:
        allowed.add("log_softmax")
    elif site.operator == "resample_binary_cross_entropy_with_logits":
        allowed.add("squeeze")
    kinds = [step.kind for step in site.steps.values() if step.kind != "float"]
    if isinstance(site.ending, Decision):
        kinds = [kind for kind in kinds if kind != "detach"]
    wanted = 1 if isinstance(site.ending, Loss) and site.ending.log_softmax else len(kinds)
    if not allowed.issuperset(kinds) or len(kinds) > 1 or len(kinds) != wanted:
        way = ", ".join([*kinds, name_of(site.root)])
        return [f"no operator takes the logits through {way}"]
    if "squeeze" in kinds:
        assert isinstance(site.ending, Loss)
        if not same(site.value.shape[1], 1) or site.ending.factors:
            return ["the axis of the classes is squeezed"]
    return []


def _target_reasons(site: LossSite, target: Tensor) -> list[str]:
    """Why the target of a loss does not fit the upsampled logits."""
    shape = tuple(site.value.shape)
    per_channel = target.is_floating_point()
    if site.operator == "resample_cross_entropy":
        known = per_channel or target.dtype in _spec.INDEX_DTYPES
    else:
        per_channel, known = True, not target.is_complex()
    if not per_channel or "squeeze" in site.kinds:
        shape = (shape[0], *shape[2:])
    if not known or not sizes_agree(tuple(target.shape), shape):
        return [
            f"its target is {target.dtype} {list(target.shape)}, which is not known to fit "
            f"{list(site.value.shape)}"
        ]
    return []


def describe(site: LossSite) -> str:
    """What the operator does in one pass, for the report."""
    parts = [f"{site.operator}, {site.form.mode}"]
    if isinstance(site.ending, Loss):
        parts += site.ending.factors
    elif site.wants_probability:
        parts.append("with the winning probability")
    return "; ".join(parts)


def traffic_of(site: LossSite) -> Traffic | None:
    """What a forward pass of the operator moves, and of PyTorch's functions at the least.

    What PyTorch's functions move is counted as few as they can be: one kernel for each that maps
    all logits, and one that ends. None where sizes are symbols.
    """
    tensors = [x for x in (_tensor(site.root, a) for a in site.tensors().values()) if x is not None]
    results = [x for x in map(tensor_of, site.results) if x is not None]
    if not all(type(n) is int for x in (site.value, site.logits, *tensors) for n in x.shape):
        return None
    pixels = site.value.shape[0] * site.value.shape[2:].numel()
    before, upsampled, rest = map(_nbytes, ([site.logits], [site.value], tensors + results))
    eager, launches = (0, 0) if site.shares else (before + upsampled, 1)
    for step in site.steps:
        if site.steps[step].kind not in ("squeeze", "detach"):
            value = tensor_of(step)
            eager += upsampled + (0 if value is None else _nbytes([value]))
            launches += 1
    fused = before + rest
    if site.operator == "resample_cross_entropy":
        fused += pixels * site.dtype.itemsize  # the log-sum-exps
        if "log_softmax" not in site.kinds:
            eager += 2 * upsampled
            launches += 1
    eager += upsampled + rest
    return Traffic(
        calls=1,
        eager_bytes=eager,
        fused_bytes=fused,
        eager_launches=launches + 1,
        fused_launches=1,
    )


def _nbytes(tensors: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
