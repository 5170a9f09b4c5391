"""What the tests of graph rewriting share: modules, counting of nodes, comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from swapping import Outputs, flatten, images, weigh
from torch import Tensor, nn
from torch.fx import GraphModule

from msr_cuda import functional, swap, testing

OPERATORS = {
    getattr(functional, name): name for name in functional.__all__ if name.startswith("resample")
}


class Function(nn.Module):
    """A convolution of each map with more than one pixel, and what is done with them."""

    def __init__(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        self.convolutions = nn.ModuleList(
            kinds[x.dim()](x.shape[1], x.shape[1], 1) if x.shape[2:].numel() > 1 else nn.Identity()
            for x in inputs
        )
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        maps = [conv(x) for conv, x in zip(self.convolutions, inputs, strict=True)]
        return self.function(*maps)


class Spy:
    """An inner backend that keeps the rewritten graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[GraphModule] = []

    def __call__(self, graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward

    def count(self) -> Counter[str]:
        """How often the graphs call operators of this package, or resample without them."""
        return sum((count(graph) for graph in self.graphs), Counter())


def count(graph: nn.Module) -> Counter[str]:
    found: Counter[str] = Counter()
    for part in graph.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            name = str(getattr(node.target, "__name__", node.target))
            if node.target in OPERATORS:
                found[OPERATORS[node.target]] += 1
            elif node.op.startswith("call_") and ("interpolate" in name or "upsample" in name):
                found["interpolate"] += 1
    return found


def outputs_and_gradients(model: nn.Module, inputs: tuple[Tensor, ...]) -> Outputs:
    """The results of a model, and the gradients of all parameters and inputs."""
    model.zero_grad()
    inputs = tuple(x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs)
    found = flatten(model(*inputs))
    weigh(found).backward()
    gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters()}
    gradients |= {f"gradient of input {i}": x.grad for i, x in enumerate(inputs)}
    found |= {name: g.clone() for name, g in gradients.items() if g is not None}
    return {name: value.detach() for name, value in found.items()}


def assert_same(expected: Outputs, actual: Outputs) -> None:
    """Within 1e-9 of the largest magnitude, and of the same dtype."""
    assert actual.keys() == expected.keys()
    for name, truth in expected.items():
        assert actual[name].dtype == truth.dtype and actual[name].shape == truth.shape, name
        largest = truth.abs().max()
        assert largest > 0, f"{name} is zero, so the comparison says nothing"
        error = (actual[name] - truth).abs().max()
        assert error <= testing.SWAPPED_RTOL * largest, f"{name} is off by {error / largest}"


def check(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    dynamic: bool | None = None,
    **options: Any,
) -> tuple[Spy, list[swap.GraphReport]]:
    """Compares a model with itself, compiled, in outputs and gradients; returns the graphs."""
    torch._dynamo.reset()
    expected = outputs_and_gradients(model, inputs)
    spy = Spy()
    with swap.recording() as reports:
        compiled = compile_with(model, spy, dynamic=dynamic, **options)
        actual = outputs_and_gradients(compiled, inputs)
    assert_same(expected, {k.replace("_orig_mod.", ""): v for k, v in actual.items()})
    return spy, reports


def compile_with(
    model: nn.Module,
    spy: Spy,
    *,
    dynamic: bool | None = None,
    fullgraph: bool = True,
    **options: Any,
) -> nn.Module:
    """Compiles a model; the rewritten graphs run as they are."""
    options = {"inner": spy, **options}
    return torch.compile(
        model, backend=swap.backend, options=options, dynamic=dynamic, fullgraph=fullgraph
    )


def doubles(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(images(*shape, seed=i).double() for i, shape in enumerate(shapes))
