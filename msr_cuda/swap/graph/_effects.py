"""What limits the order of a graph's nodes: writes to memory, and switches of global state.

A site computes everything where its last node stands. That is only the same if what it reads is
not written in between, and if gradients and autocast are switched neither on nor off.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, Node

from ._values import storages, tensor_of, value_of

_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name)
    for name in (
        "iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift",
        "isub", "itruediv", "ixor", "setitem", "delitem",
    )
)  # fmt: skip
#: Functions that write to arguments which neither their name nor an option tells of.
_WRITTEN = {F.batch_norm: (1, 2), F.instance_norm: (1, 2), torch.batch_norm: (3, 4)}
#: Beginnings of the names of functions that switch something on or off from there on.
_SWITCHES = ("_enter_", "_exit_", "_set_", "set_grad_enabled", "_vmap_", "_grad_", "_jvp_")
AUTOCAST_SWITCHES = ("_enter_autocast", "_exit_autocast")
GRADIENT_SWITCHES = ("_set_grad_enabled", "set_grad_enabled")
#: Functions in these modules write to their first argument at most, and then their name says so.
_PLAIN_MODULES = ("torch", "_operator", "builtins", "math", "msr_cuda")
#: Operators that take graphs, of which Dynamo makes sure that they write to no input.
_FUNCTIONAL_HIGHER_ORDER = frozenset(
    {"autograd_function_apply", "cond", "flex_attention", "tag_activation_checkpoint", "wrap"}
)


class Effects:
    """The writes and switches of a graph, as it was before anything was rewritten."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        #: Memory that may also be reached from outside of the graph, and its dtypes.
        self._outside: dict[int, set[torch.dtype]] = {}
        self._writes: list[tuple[Node, set[int]]] = []
        self._switches: list[Node] = []
        #: Device types for which autocast is on, by the first node that it is on for.
        self._autocast: list[tuple[int, frozenset[str]]] = [(0, _autocast_devices())]
        #: Whether gradients are recorded, likewise.
        self._gradients: list[tuple[int, object]] = [(0, torch.is_grad_enabled())]
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                tensor = tensor_of(node)
                for storage in storages(tensor):
                    assert tensor is not None
                    self._outside.setdefault(storage, set()).add(tensor.dtype)
            elif node.op in ("call_function", "call_method", "call_module"):
                self._add(node)

    def _add(self, node: Node) -> None:
        if node.op == "call_function" and _name(node.target).startswith(_SWITCHES):
            self._switches.append(node)
            self._switch_autocast(node)
            if _name(node.target) in GRADIENT_SWITCHES:
                self._gradients.append((self._order[node], node.args[0]))
        written: set[int] = set()
        for argument in _written_arguments(node):
            written |= storages(_values(argument))
        if written:
            self._writes.append((node, written))

    def _switch_autocast(self, node: Node) -> None:
        on = self._autocast[-1][1]
        if _name(node.target) == "_enter_autocast":
            device, _, enabled = (*node.args, None, None, True)[:3]
            on = on | {str(device)} if enabled else on - {str(device)}
        elif _name(node.target) == "_exit_autocast" and isinstance(node.args[0], Node):
            on = self._autocast_at(node.args[0], inclusive=False)
        self._autocast.append((self._order[node], on))

    def _autocast_at(self, node: Node, *, inclusive: bool = True) -> frozenset[str]:
        place = self._order[node] + inclusive
        return next(on for begin, on in reversed(self._autocast) if begin < place or begin == 0)

    def is_autocast(self, node: Node, device: torch.device) -> bool:
        """Whether autocast is on where the node stands, and makes interpolations float32 there."""
        return device.type != "cpu" and device.type in self._autocast_at(node)

    def _is_recording(self, node: Node) -> object:
        return next(on for begin, on in reversed(self._gradients) if begin <= self.place(node))

    def place(self, node: Node) -> int:
        """The position of a node, or of the one that it replaced."""
        return self._order[node]

    def put(self, replaced: Node) -> None:
        """Notes that all new nodes stand where another one stood."""
        for node in self._graph.nodes:
            self._order.setdefault(node, self._order[replaced])

    def objections(
        self,
        site: Iterable[Node],
        root: Node,
        reads: Iterable[Node],
        ignored: Sequence[str] = (),
    ) -> list[str]:
        """Why the nodes of a site cannot all be computed where its last one, ``root``, stands.

        Args:
            site: all nodes that the fused operator replaces.
            root: the last of them.
            reads: the nodes whose values it reads.
            ignored: switches that make no difference to it.
        """
        nodes = set(site)
        begin, end = min(map(self.place, nodes)), self.place(root)
        recorded = {self._is_recording(node) for node in nodes}
        for switch in self._switches:
            name = _name(switch.target)
            # What was switched off may be on again, as around a metric.
            off_and_on = name in GRADIENT_SWITCHES and len(recorded) == 1
            if begin < self.place(switch) < end and not off_and_on and name not in ignored:
                return [f"{name} is called between its nodes"]
        for read in reads:
            begin = min(self.place(user) for user in read.users if user in nodes)
            for writer, written in self._writes:
                if writer in nodes or not begin < self.place(writer) < end:
                    continue
                if any(self._may_be_same(read, storage) for storage in written):
                    return [f"{writer.name} writes to {read.name} in between"]
        return []

    def later_objections(self, root: Node, reads: Iterable[Node]) -> list[str]:
        """Why an operator may not keep what it reads for the backward, where it stands."""
        for writer, written in self._writes:
            if self.place(writer) > self.place(root):
                for read in reads:
                    if any(self._may_be_same(read, storage) for storage in written):
                        return [f"{writer.name} changes {read.name}, which the backward would need"]
        return []

    def _may_be_same(self, read: Node, written: int) -> bool:
        mine = storages(value_of(read))
        if written in mine:
            return True
        # Two inputs of a graph may be views of the same memory, if their elements are of one type.
        dtypes = self._outside.get(written, set())
        return any(dtypes & self._outside.get(storage, set()) for storage in mine)

    def in_place_objections(self, node: Node, target: Node) -> list[str]:
        """Why a call may not leave the memory of ``target`` as it was, as a fused operator does."""
        memory = storages(value_of(target))
        if not memory:
            return [f"it is not known what memory {node.name} writes to"]
        if any(storage in self._outside for storage in memory):
            return [f"{node.name} changes an input of the graph in place"]
        for other, place in self._order.items():
            if place >= self.place(node) or not storages(value_of(other)) & memory:
                continue
            late = [user for user in other.users if self.place(user) > self.place(node)]
            if late:
                return [f"{node.name} works in place, and {late[0].name} reads that memory later"]
        return []


def _autocast_devices() -> frozenset[str]:
    """Device types for which autocast is on while the graph is being compiled."""
    return frozenset(d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d))


def _name(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _values(argument: Any) -> Any:
    """The fake values of all nodes in a (nested) argument."""
    if isinstance(argument, (list, tuple)):
        return [_values(entry) for entry in argument]
    if isinstance(argument, dict):
        return [_values(entry) for entry in argument.values()]
    return value_of(argument)


def _written_arguments(node: Node) -> list[Any]:
    """Those whose memory the call may write to."""
    everything = [*node.args, *node.kwargs.values()]
    if not everything:
        return []
    written = [node.kwargs["out"]] if "out" in node.kwargs else []
    if node.op == "call_module":
        owner = node.graph.owning_module
        assert isinstance(owner, GraphModule)
        return everything if _may_write(owner.get_submodule(str(node.target))) else written
    name = _name(node.target)
    if node.op == "call_method":
        if name.startswith("__i") or name == "__setitem__" or _ends_in_place(name):
            written.append(everything[0])
        return written
    if isinstance(node.target, torch._ops.OpOverload):
        arguments = zip(node.target._schema.arguments, node.args, strict=False)
        return [value for a, value in arguments if a.alias_info and a.alias_info.is_write] + written
    if node.target in _WRITTEN:
        return [everything[i] for i in _WRITTEN[node.target] if i < len(everything)] + written
    if node.target in _IN_PLACE_OPERATORS or _ends_in_place(name) or _asked_in_place(node):
        return [everything[0], *written]
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return written if name in _FUNCTIONAL_HIGHER_ORDER else everything
    module = getattr(node.target, "__module__", None) or "torch"  # built-in methods have none
    if isinstance(node.target, torch._ops.OpOverloadPacket) or not module.startswith(
        _PLAIN_MODULES
    ):
        return everything  # it may do anything
    return written


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _asked_in_place(node: Node) -> bool:
    """Whether the call has ``inplace=True``, by name or by position."""
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    if True not in node.args:
        return False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a built-in function
        return False
    return bound.arguments.get("inplace") is True


def _may_write(module: nn.Module) -> bool:
    """Whether a call of a module of the graph may change what it is given."""
    if getattr(module, "inplace", False):
        return True
    return not type(module).__module__.startswith(("torch.nn.", "msr_cuda."))
