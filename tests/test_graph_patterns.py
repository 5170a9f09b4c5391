"""What is rewritten in graphs: every spelling of every pattern, values and gradients the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from graphs import Function, Spy, check, compile_with, doubles
from swapping import one_thread  # noqa: F401
from torch import Tensor, nn

# Without kernels, nothing is fused by default.
pytestmark = pytest.mark.usefixtures("kernels")

A, B, C = (2, 4, 9, 14), (2, 4, 5, 7), (2, 4, 18, 28)
E1 = (2, 4, 8, 12)
E2 = (2, 4, 4, 6)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def up(x: Tensor, like: Tensor, **options: Any) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], **{"mode": "bilinear", **options})


class Pattern(NamedTuple):
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = (A, B)
    operators: tuple[str, ...] = ("resample_sum",)  # all that the graph calls
    how: str = ""  # part of the report


def gate(x: Tensor) -> Tensor:
    return torch.sigmoid(x.mean((2, 3), keepdim=True))


def pixel(x: Tensor) -> Tensor:
    return torch.sigmoid(x.mean(1, keepdim=True))


def in_place_sum(a: Tensor, b: Tensor) -> Tensor:
    a = a * 2
    a += up(b, a)
    return a


def add_method_in_place(a: Tensor, b: Tensor) -> Tensor:
    a = a * 2
    a.add_(up(b, a))
    return a.relu_()


def bifpn(a: Tensor, b: Tensor, c: Tensor, w: Tensor) -> Tensor:
    w = w.flatten().relu()
    total = w.sum() + 1e-4
    maps = (a, F.interpolate(b, scale_factor=2), F.max_pool2d(c, 3, 2, 1))
    return F.silu(torch.stack([(x * w[i]) / total for i, x in enumerate(maps)], -1).sum(-1))


def attention(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    w = torch.softmax(torch.cat([pixel(a), pixel(up(b, a)), pixel(up(c, a))], 1), 1)
    return up(b, a) * w[:, 1:2] + a * w[:, 0:1] + w[:, 2:3] * up(c, a)


def hourglass(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return F.relu(up(b, c) + c) + up(F.relu(up(b, a) + a), c)


PATTERNS = {
    # Producers.
    "size": Pattern(lambda a, b: a + F.interpolate(b, a.shape[2:])),
    "size()": Pattern(lambda a, b: a + F.interpolate(b, a.size()[2:], mode="nearest-exact")),
    "two sizes": Pattern(lambda a, b: a + F.interpolate(b, (a.size(2), a.size(3)))),
    "number": Pattern(lambda a: a[:, :, :8, :8] + F.interpolate(a, 8), (A,)),
    "by position": Pattern(lambda a, b: a + F.interpolate(b, a.shape[2:], None, "bilinear", True)),
    "scale": Pattern(lambda a, b: a + F.interpolate(b, scale_factor=2), (E1, E2)),
    "odd scale": Pattern(
        lambda a, b: a + F.interpolate(b, scale_factor=(1.8, 2.1), mode="bilinear"), (A, B)
    ),
    "recomputed": Pattern(
        lambda a, b: (
            a
            + F.interpolate(
                b, scale_factor=(1.8, 2.1), mode="bilinear", recompute_scale_factor=True
            )
        )
    ),
    "down": Pattern(lambda a, c: a + up(c, a, antialias=True), (A, C)),
    "area": Pattern(lambda a, c: a + up(c, a, mode="area"), (A, C)),
    "bicubic": Pattern(lambda a, b: a + up(b, a, mode="bicubic", align_corners=False)),
    "Upsample": Pattern(lambda a, b: a + nn.Upsample(scale_factor=2)(b), (E1, E2)),
    "bilinear Upsample": Pattern(
        lambda a, b: a + nn.UpsamplingBilinear2d(scale_factor=2)(b), (E1, E2)
    ),
    "upsample": Pattern(lambda a, b: a + F.upsample(b, scale_factor=2.0), (E1, E2)),
    "upsample_nearest": Pattern(lambda a, b: a + F.upsample_nearest(b, scale_factor=2), (E1, E2)),
    "upsample_bilinear": Pattern(lambda a, b: a + F.upsample_bilinear(b, a.shape[2:])),
    "1-D": Pattern(
        lambda a, b: a + F.interpolate(b, a.shape[2:], mode="linear"), ((2, 3, 11), (2, 3, 5))
    ),
    "3-D": Pattern(
        lambda a, b: a + F.interpolate(b, scale_factor=2, mode="trilinear"),
        ((1, 2, 4, 6, 8), (1, 2, 2, 3, 4)),
    ),
    "pooled": Pattern(lambda a, c: F.relu(a + F.max_pool2d(c, 2)), (A, C), how="1 pooled"),
    "pooled, averages": Pattern(
        lambda a, c: a + nn.AvgPool2d(3, 2, 1, count_include_pad=False)(c), (A, C), how="1 pooled"
    ),
    "one pixel": Pattern(lambda a, b: up(b, a) + b.mean((2, 3), keepdim=True)),
    "one batch entry": Pattern(lambda a, b: up(b, a) + a[:1]),
    # Sums.
    "torch.add": Pattern(lambda a, b: torch.add(up(b, a), a, alpha=3)),
    "method": Pattern(lambda a, b: a.add(up(b, a), alpha=-0.5)),
    "difference": Pattern(lambda a, b: a - up(b, a)),
    "negative": Pattern(lambda a, b: -(a - up(b, a))),
    "in place": Pattern(in_place_sum),
    "method in place": Pattern(add_method_in_place, how="relu"),
    "sum of a list": Pattern(lambda a, b, c: sum([a, up(b, a), up(c, a)]), (A, B, C)),
    "sum of a stack": Pattern(lambda a, b: torch.stack([a, up(b, a)], -1).sum(dim=-1)),
    "torch.sum of a stack": Pattern(lambda a, b: torch.sum(torch.stack([a, up(b, a)]), 0)),
    "mean of a stack": Pattern(lambda a, b: torch.stack((a, up(b, a)), 1).mean(1)),
    "tree": Pattern(
        lambda a, b, c: (up(b, a) + a * 2) + (up(c, a, mode="nearest") + (a + up(b, a))),
        (A, B, C),
        how="5 maps",
    ),
    "number times one map": Pattern(lambda b: 8 * F.interpolate(b, scale_factor=2), (B,)),
    "activation of one map": Pattern(lambda b: F.interpolate(b, scale_factor=2).relu_(), (B,)),
    "mean of three": Pattern(
        lambda a, b, c: (a + up(b, a) + up(c, a)) / 3, (A, B, C), how="constant weights"
    ),
    "numbers": Pattern(lambda a, b: 0.5 * a + up(b, a) / 4, how="constant weights"),
    "learned numbers": Pattern(
        lambda a, b, w: F.relu(w[0, 0] * a + up(b, a) * w[0, 1]),
        (A, B, (1, 2, 1, 1)),
        how="scalar weights",
    ),
    "vector of numbers": Pattern(
        lambda a, b, w: (lambda v: v[0] * a + up(b, a) * v[1])(w.flatten()),
        (A, B, (1, 2, 1, 1)),
        how="scalar weights",
    ),
    "BiFPN": Pattern(bifpn, (E1, E2, (2, 4, 16, 24), (1, 3, 1, 1)), how="scalar weights"),
    "gates per channel": Pattern(lambda a, b: up(b, a) + a * gate(b), how="channel weights"),
    "gates per channel of one image": Pattern(
        lambda a, b, w: up(b, a) * w + a * 0.5 * w[0], (A, B, (1, 4, 1, 1)), how="channel weights"
    ),
    "gates per pixel": Pattern(
        lambda a, b: (lambda s: s * up(b, a) + (1 - s) * a)(pixel(a)), how="pixel weights"
    ),
    "attention to scale": Pattern(
        attention, (A, B, C), ("resample", "resample", "resample_sum"), how="pixel weights"
    ),
    # Concatenations.
    "cat": Pattern(lambda a, b: torch.cat([up(b, a), a], 1), (A, B), ("resample_cat",)),
    "cat by name": Pattern(
        lambda a, b: torch.concat((a, up(b, a)), dim=-3), ((2, 3, 9, 14), B), ("resample_cat",)
    ),
    "cat of a cat": Pattern(
        lambda a, b, c: torch.cat([torch.cat([up(b, a), a], 1), up(c, a)], 1).relu_(),
        (A, B, (2, 3, 20, 20)),
        ("resample_cat",),
        how="3 maps",
    ),
    "expanded pixel": Pattern(
        lambda a, b: torch.cat(
            [a, F.adaptive_avg_pool2d(b, 1).expand(-1, -1, *a.shape[2:]), up(b, a)], 1
        ),
        (A, B),
        ("resample_cat",),
        how="1 repeated",
    ),
    # More than one site.
    "chain": Pattern(
        lambda a, b, c: c + up(F.relu(up(b, a) + a), c), (A, B, C), ("resample_sum",) * 2
    ),
    "hourglass": Pattern(hourglass, (A, B, C), ("resample_sum",) * 3),
    "alone": Pattern(lambda a, b: up(b, a).tanh(), (A, B), ("resample",), how="tanh"),
    "two users": Pattern(
        lambda a, b: (lambda u: u * torch.sigmoid(u) + a)(up(b, a)),
        (A, B),
        ("resample",),
        how="has 2 users",
    ),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: torch.relu(x),
    "relu6": nn.ReLU6(inplace=True),
    "leaky_relu": nn.LeakyReLU(),
    "silu": nn.SiLU(inplace=True),
    "gelu": nn.GELU(),
    "hardswish": lambda x: F.hardswish(x, True),
    "sigmoid": lambda x: x.sigmoid_(),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str) -> None:
    pattern = PATTERNS[name]
    inputs = doubles(*pattern.shapes)
    spy, (report,) = check(Function(pattern.function, inputs).double(), inputs)
    assert sorted(spy.count().elements()) == sorted(pattern.operators)
    assert len(report.swapped) == len(pattern.operators)
    assert pattern.how in str(report)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    function = ACTIVATIONS[activation]
    inputs = doubles(A, B)
    for join in (lambda a, b: a + up(b, a), lambda a, b: torch.cat([a, up(b, a)], 1)):
        model = Function(lambda a, b, join=join: function(join(a, b)), inputs).double()
        _, (report,) = check(model, inputs)
        (site,) = report.swapped
        assert site.how.endswith(activation)


def test_maximum_without_gradient() -> None:
    a, b, c = doubles(A, B, C)
    functions = (
        lambda a, b, c: F.relu(torch.maximum(torch.max(a, up(b, a)), up(c, a))),
        lambda a, b, c: torch.stack([a, up(b, a), up(c, a)], 2).amax(2),
    )
    for function in functions:
        spy = Spy()
        compiled = compile_with(Function(function, (a, b, c)).double(), spy)
        with torch.no_grad():
            expected = compiled._orig_mod(a, b, c)
            torch.testing.assert_close(compiled(a, b, c), expected, rtol=1e-10, atol=1e-10)
        assert spy.count() == {"resample_max": 1}


def test_weights_that_are_a_vector_are_not_stacked() -> None:
    inputs = doubles(A, B, (1, 2, 1, 1))
    spy, _ = check(Function(PATTERNS["vector of numbers"].function, inputs).double(), inputs)
    (graph,) = spy.graphs
    assert "stack" not in graph.code and "getitem" not in graph.code
