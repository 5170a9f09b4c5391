"""Graphs of torch.fx without torch.compile, which no guard protects from other sizes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import assert_same, count, doubles, outputs_and_gradients
from swapping import UNet, one_thread  # noqa: F401
from torch import Tensor, nn

import msr_cuda
from msr_cuda import swap

# Without kernels, nothing is fused by default.
pytestmark = pytest.mark.usefixtures("kernels")

A, B, C = (2, 4, 8, 12), (2, 4, 4, 6), (2, 4, 16, 24)


class Traced(nn.Module):
    """Modules of PyTorch stay modules in a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU(inplace=True)
        self.gelu = nn.GELU()
        self.weights = nn.Parameter(torch.rand(2))

    def forward(self, a, b, c):  # torch.fx cannot pickle annotations that are strings
        a = self.first(a)
        y = self.act(self.up(b) + a + self.pool(c))
        y = y * self.weights[0] + F.interpolate(b, size=a.shape[-2:], mode="area") * self.weights[1]
        y = self.gelu(torch.cat([y, self.up(b)], dim=1))
        return F.interpolate(y, scale_factor=0.5, mode="bicubic")


def rewritten(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, swap.GraphReport]:
    with swap.recording() as reports:
        graph, report = swap.rewrite(model, inputs)
    assert reports == [report]
    return graph, report


def test_modules_and_parameters_are_shared() -> None:
    model, inputs = Traced().double(), doubles(A, B, C)
    graph, report = rewritten(model, inputs)
    assert count(graph) == {"resample_sum": 2, "resample_cat": 1, "resample": 1}
    assert not report.skipped
    assert_same(outputs_and_gradients(model, inputs), outputs_and_gradients(graph, inputs))
    assert graph.first.weight is model.first.weight and graph.weights is model.weights
    # Other sizes than those that it was rewritten with.
    others = doubles((3, 4, 10, 14), (3, 4, 5, 7), (3, 4, 20, 28))
    assert_same(outputs_and_gradients(model, others), outputs_and_gradients(graph, others))


def test_a_graph_can_be_rewritten_again_copied_and_pickled() -> None:
    model, inputs = Traced().double(), doubles(A, B, C)
    traced = torch.fx.symbolic_trace(model)
    code = traced.code
    graph, _ = rewritten(traced, inputs)
    assert traced.code == code
    again, report = rewritten(graph, inputs)
    assert not report.swapped and not report.skipped
    expected = graph(*inputs)
    for other in (again, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(other(*inputs), expected)


def test_fused_modules_stay_whole() -> None:
    model = UNet().double()
    msr_cuda.fuse(model)
    inputs = doubles((1, 3, 44, 32))
    expected = model(*inputs)
    graph, report = rewritten(model, inputs)
    assert not report.swapped and not report.skipped
    assert torch.equal(graph(*inputs), expected)


Shapes = tuple[tuple[int, ...], ...]
MISFITS: dict[str, tuple[Callable[..., Any], Shapes, Shapes, str]] = {
    "an addend of another size": (
        lambda a, b: F.interpolate(b, scale_factor=2) + a, (A, B), ((2, 4, 9, 12), B), "to give",
    ),
    "a skip of another size": (
        lambda a, b: torch.cat([F.interpolate(b, (8, 12)), a], 1),
        (A, B),
        ((2, 4, 9, 12), B),
        "expected maps of one size",
    ),
    "two sizes": (
        lambda a, b, c: F.interpolate(b, a.shape[2:]) + F.interpolate(b, c.shape[2:]),
        (A, B, A),
        (A, B, C),
        "expected maps of one size",
    ),
    "batches": (
        lambda a, b: torch.cat([F.interpolate(b, a.shape[2:]), a], 1),
        (A, B),
        (A, (1, 4, 4, 6)),
        "expected maps of one batch size",
    ),
    "not one pixel": (
        lambda a, b: F.interpolate(a, scale_factor=2) + b,
        (B, (2, 4, 1, 1)),
        (B, (2, 4, 2, 2)),
        "expected a map of one pixel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_maps_that_do_not_fit_raise_as_before(name: str) -> None:
    function, shapes, others, message = MISFITS[name]

    class Model(nn.Module):
        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            return function(*(a, b, c)[: len(shapes)])

    padding = (torch.ones(1),) * (3 - len(shapes))
    inputs, misfits = (*doubles(*shapes), *padding), (*doubles(*others), *padding)
    graph, report = rewritten(Model(), inputs)
    assert len(report.swapped) == 1
    torch.testing.assert_close(graph(*inputs), Model()(*inputs), rtol=1e-10, atol=1e-10)
    with pytest.raises(RuntimeError):
        Model()(*misfits)
    with pytest.raises(ValueError, match=message):
        graph(*misfits)


def test_hooks_on_modules_are_respected() -> None:
    model, inputs = Traced().double(), doubles(A, B, C)
    seen = []
    model.up.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    graph, report = rewritten(model, inputs)
    assert [site.how for site in report.skipped] == ["a hook on up would be bypassed"] * 2
    expected = model(*inputs)
    del seen[:]
    torch.testing.assert_close(graph(*inputs), expected, rtol=1e-10, atol=1e-10)
    assert len(seen) == 2


def test_without_example_inputs_nothing_is_known() -> None:
    graph, report = swap.rewrite(Traced())
    assert not report.swapped
    assert {site.how for site in report.skipped} == {"the shapes of its maps are not known"}
    inputs = tuple(x.float() for x in doubles(A, B, C))
    assert graph(*inputs).shape == (2, 8, 4, 6)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="expected module to be a Module, got function"):
        swap.rewrite(lambda x: x)
    with pytest.raises(ValueError, match='expected fuse to be "auto" or "all", got 1'):
        swap.rewrite(Traced(), fuse=1)


def test_a_maximum_is_left_as_gradients_may_be_asked_for_later() -> None:
    class Largest(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.maximum(a, F.interpolate(b, scale_factor=2))

    _, report = rewritten(Largest(), doubles(A, B))
    assert "goes to the first here" in report.swapped[0].how


@pytest.mark.parametrize(
    "function",
    [
        lambda b: F.relu(F.interpolate(b, scale_factor=2, recompute_scale_factor=True)),
        lambda b: F.max_pool2d(b, 2) + b.mean((2, 3), keepdim=True),
    ],
    ids=["recomputed", "pooled"],
)
def test_sizes_that_no_argument_gives_are_not_guessed(function: Callable[..., Any]) -> None:
    class Model(nn.Module):
        def forward(self, b: Tensor) -> Tensor:
            return function(b)

    (b,) = doubles(B)
    graph, _ = rewritten(Model(), (b,))
    assert "resample_sum" not in count(graph)
    (larger,) = doubles((1, 4, 6, 8))
    torch.testing.assert_close(graph(larger), function(larger), rtol=1e-10, atol=1e-10)
