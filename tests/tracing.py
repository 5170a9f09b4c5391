"""Finds the resampling of any model, swapped or not, by watching the calls of PyTorch's functions.

It knows nothing of recipes: what it counts before and after a swap is what the report has to
explain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from msr_cuda import _losses, functional

#: Functions whose result still is the map, perhaps in another dtype or memory, or with a border.
_SAME_MAP = {"to", "float", "half", "double", "bfloat16", "clone", "contiguous", "detach", "type"}
_SAME_MAP |= {"pad", "dropout", "dropout2d", "dropout3d", "type_as", "identity"}
_SAME_MAP |= {"reshape", "view", "flatten", "unflatten", "transpose", "permute"}  # as tokens
#: Functions of several maps, and of one map in place.
_FUSE = {"add", "mul", "cat", "concat", "stack", "sub", "lerp", "addcmul"}
#: Losses of logits, which need not be written for them, unless they also are a result.
_LOSSES = {"cross_entropy", "binary_cross_entropy_with_logits"}
#: With a number, they only change what is in the map.
_SCALE = {"add", "sub", "mul", "div", "truediv"}
_RESAMPLE = {"interpolate", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool2d", "avg_pool3d"}
#: Attributes and numbers are no use of a map.
_LOOK = {"size", "dim", "numel", "stride", "is_floating_point", "is_contiguous", "get", "len"}
_OPERATORS = {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "isub": "sub"}


@dataclasses.dataclass
class Call:
    """One call of an interpolation or a pooling.

    Attributes:
        function: its name.
        module: name of the innermost module that was running, and its class.
        shape: of the input and of the result.
        uses: what was done with the result: names of functions.
        is_result: it is among what the model returned.
    """

    function: str
    module: str
    class_name: str
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    uses: list[str]
    is_result: bool = False

    @property
    def changes_size(self) -> bool:
        """An interpolation to the size that a map already has only copies it."""
        return self.shape[0] != self.shape[1]

    @property
    def counts(self) -> bool:
        """Whether it resamples something that is of use."""
        return self.changes_size and (self.is_result or bool(self.uses))

    @property
    def is_fused(self) -> bool:
        """Whether the only use of the result is with other maps, or in a loss.

        One with several uses has to be written to memory anyway.
        """
        in_loss = self.uses[:1] and self.uses[0] in _LOSSES and not self.is_result
        return len(self.uses) == 1 and (self.uses[0] in _FUSE or bool(in_loss))


class Tracer(TorchFunctionMode):
    """Records the calls of a model's forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._origin: dict[int, Call] = {}
        self._keep: list[Tensor] = []  # so that no id is used again
        self._running: list[tuple[str, str]] = [("", type(model).__name__)]
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            self._watch(name, module)

    def _watch(self, name: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: Any) -> None:
            self._running.append((name, type(module).__name__))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._running.pop()

        self._handles.append(module.register_forward_pre_hook(before, prepend=True))
        self._handles.append(module.register_forward_hook(after, always_call=True))

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func)).strip("_")
        name = _OPERATORS.get(name, name)
        if name in _LOOK:
            return output
        results = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        sources = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._keep += results
        copies = False  # an interpolated map, to the size that it has
        for source in sources:
            call = self._origin.get(id(source))
            if call is None:
                continue
            # With a number it is scaled, and waits for its use.
            alone = sum(other.dim() > 0 for other in sources) == 1
            if any(result is source for result in results):
                # In place: from here on, the map is something else.
                del self._origin[id(source)]
            copied = name == "interpolate" and results[0].shape == source.shape
            if copied:
                copies = True
            if name in _SAME_MAP or copied or (name in _SCALE and alone and len(results) == 1):
                self._origin[id(results[0])] = call
            else:
                call.uses.append(name)
        if name in _RESAMPLE and sources and results and not copies:
            module, class_name = self._running[-1]
            shapes = tuple(sources[0].shape), tuple(results[0].shape)
            call = Call(name, module, class_name, shapes, [])
            self.calls.append(call)
            self._origin[id(results[0])] = call
        return output


@torch.no_grad()
def trace(model: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """The interpolations and poolings of ``run()``, which calls the model."""
    with Tracer(model) as tracer:
        output = run()
    for leaf in tree_leaves(output):
        if id(leaf) in tracer._origin:
            tracer._origin[id(leaf)].is_result = True
    return tracer.calls


@torch.no_grad()
def count_resampled(run: Callable[[], Any]) -> tuple[int, int]:
    """How many maps the fused operators resample in ``run()``: for a fusion, and by themselves.

    Groups of channels of one map count once, and so do logits that are resampled for a loss and by
    themselves, too.
    """
    fused = alone = 0
    written: list[Tensor] = []

    def observe(observation: functional.Observation) -> None:
        nonlocal fused, alone
        size = observation.output.shape[2:]
        resampled = {
            x.untyped_storage().data_ptr() for x in observation.inputs if x.shape[2:] != size
        }
        if len(observation.inputs) > 1:
            fused += len(resampled)
        else:
            alone += len(resampled)
            written.extend(observation.inputs)

    def observe_loss(observation: _losses.Observation) -> None:
        nonlocal fused
        logits = observation.logits
        size = observation.target.shape[2 - logits.dim() :]
        fused += logits.shape[2:] != size and not any(x is logits for x in written)

    functional.observers.append(observe)
    _losses.observers.append(observe_loss)
    try:
        run()
    finally:
        functional.observers.remove(observe)
        _losses.observers.remove(observe_loss)
    return fused, alone
