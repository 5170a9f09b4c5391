"""What is left alone in graphs, and the reason that the report gives for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from graphs import Function, Spy, check, compile_with, doubles
from swapping import one_thread  # noqa: F401
from torch import Tensor

from msr_cuda import swap

# Without kernels, nothing is fused by default.
pytestmark = pytest.mark.usefixtures("kernels")

A, B, C = (2, 4, 9, 14), (2, 4, 5, 7), (2, 4, 18, 28)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def up(x: Tensor, like: Tensor, mode: str = "bilinear") -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode=mode)


class Refusal(NamedTuple):
    function: Callable[..., Any]
    reason: str
    shapes: tuple[tuple[int, ...], ...] = (A, B)


def written_in_between(a: Tensor, b: Tensor) -> Tensor:
    b = b.clone()
    u = up(b, a)
    b.mul_(2)
    return a + u + b.mean()


def written_through_a_view(a: Tensor, b: Tensor) -> Tensor:
    b = b.clone()
    flat = b.view(-1)
    u = up(b, a)
    flat[3:].zero_()
    return a + u + flat.mean()


def addend_written_in_between(a: Tensor, b: Tensor) -> Tensor:
    a, other = a.clone(), up(b, a)
    total = a + other
    a.fill_(3)
    return (total + up(b, a) * 1.5) * a.mean()


def old_value_read_later(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a = a.clone()
    corner = a[..., :2]
    a += up(b, a)
    return a, corner * 2


def kept_map_changed_later(a: Tensor, b: Tensor) -> Tensor:
    a = a.clone()
    y = F.silu(a + up(b, a))
    a.zero_()
    return y + a


def gradients_switched(a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        u = up(b, a)
    return a + u


def autocast_switched(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u = up(b, a)
    return a + u


def ten_maps(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a] * 8 + [up(b, a)]).sum(0)


def cast_in_between(a: Tensor, b: Tensor) -> Tensor:
    return a + up(b, a).to(torch.float64)


def mixed_layouts(a: Tensor, b: Tensor) -> Tensor:
    a = a.contiguous(memory_format=torch.channels_last)
    return torch.cat([a, up(b.contiguous(), a)], 1)


def both_kinds_of_factors(a: Tensor, b: Tensor) -> Tensor:
    per_channel, per_pixel = a.mean((2, 3), keepdim=True), a.mean(1, keepdim=True)
    return up(b, a) * per_channel + a * per_pixel


def old_value_read_by_a_fused_sum(a: Tensor, b: Tensor) -> Tensor:
    """The factors of the second sum are read by what is put in for it."""
    a = a.clone()
    gate = a[:, :, :1, :1]
    a += up(b, a)
    return up(b, a) * gate + a


def metric_in_between(a: Tensor, b: Tensor) -> Tensor:
    u = up(b, a)
    with torch.no_grad():
        mean = a.mean()
    return (a + u) * mean


REFUSALS = {
    "rows broadcast": Refusal(lambda a, b: up(b, a) + a[:, :, :1], "[2, 4, 1, 14]"),
    "channels broadcast": Refusal(lambda a, b: up(b, a) + a[:, :1], "[2, 1, 9, 14]"),
    "batch broadcast": Refusal(lambda a, b: up(b[:1], a) * a, "is not a sum of maps of one size"),
    "a number is added": Refusal(lambda a, b: up(b, a) + 1.0, "is not a sum of maps of one size"),
    "product of maps": Refusal(lambda a, b: up(b, a) * a, "is not a sum of maps of one size"),
    "written in between": Refusal(written_in_between, "writes to"),
    "written through a view": Refusal(written_through_a_view, "writes to"),
    "old value read later": Refusal(old_value_read_later, "reads that memory later"),
    "gradients switched": Refusal(gradients_switched, "set_grad_enabled is called between"),
    "autocast switched": Refusal(autocast_switched, "_exit_autocast is called between"),
    "nine maps": Refusal(ten_maps, "takes 9 maps, more than one operator does"),
    "cast": Refusal(cast_in_between, "goes to to,"),
    "maximum": Refusal(lambda a, b: torch.maximum(a, up(b, a)), "goes to the first here"),
    "layouts": Refusal(mixed_layouts, "makes the result contiguous"),
    "rows concatenated": Refusal(lambda a, b: torch.cat([a, up(b, a)], 2), "goes to cat,"),
    "returned": Refusal(lambda a, b: (up(b, a), a), "goes to the output,"),
    "used twice": Refusal(lambda a, b: (lambda u: (u + a, u.sum()))(up(b, a)), "has 2 users"),
    "scale that keeps the size": Refusal(
        lambda a: a + F.interpolate(a, scale_factor=1.05), "scale factor 1.05 keeps the size", (A,)
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    refusal = REFUSALS[name]
    inputs = doubles(*refusal.shapes)
    model = Function(refusal.function, inputs).double()
    spy, (report,) = check(model, inputs)
    assert not {"resample_sum", "resample_cat", "resample_max"} & set(spy.count())
    assert spy.count().total() >= 1
    assert refusal.reason in str(report)


PARTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "addend written in between": (
        addend_written_in_between,
        ("1 bilinear, 1 as it is", "1 bilinear; constant weights"),
    ),
    "kept map changed later": (kept_map_changed_later, ("1 bilinear, 1 as it is",)),
    "both kinds of factors": (both_kinds_of_factors, ("1 bilinear; channel weights",)),
    "old value read by a fused sum": (
        old_value_read_by_a_fused_sum,
        ("1 bilinear; channel weights",),
    ),
    "gradients off and on again": (metric_in_between, ("1 bilinear, 1 as it is",)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_what_is_refused_are_fused(name: str) -> None:
    function, parts = PARTS[name]
    inputs = doubles(A, B)
    spy, (report,) = check(Function(function, inputs).double(), inputs)
    fused = [site for site in report.swapped if site.operator == "resample_sum"]
    assert spy.count()["resample_sum"] == len(fused) == len(parts)
    assert all(site.how.endswith(part) for site, part in zip(fused, parts, strict=True))


def test_inputs_are_changed_in_place_as_before() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        a += up(b, a)
        return a

    (a, b), spy = doubles(A, B), Spy()
    compiled = torch.compile(function, backend=swap.backend, options={"inner": spy})
    expected = a + up(b, a)
    with swap.recording() as reports:
        assert torch.equal(compiled(a, b), expected)
    assert torch.equal(a, expected)
    assert spy.count() == {"interpolate": 1}
    assert "changes an input of the graph in place" in str(reports[0])


@pytest.mark.parametrize("name", ["gelu", "leaky_relu", "hardtanh"])
def test_other_activations_stay_behind_the_operator(name: str) -> None:
    activation = {
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
        "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
        "hardtanh": lambda x: F.hardtanh(x),
    }[name]
    inputs = doubles(A, B)
    spy, (report,) = check(Function(lambda a, b: activation(a + up(b, a)), inputs).double(), inputs)
    assert spy.count() == {"resample_sum": 1}
    assert name in spy.graphs[0].code
    assert name not in report.swapped[0].nodes


def test_a_value_before_the_activation_is_kept() -> None:
    inputs = doubles(A, B)

    def function(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        total = a + up(b, a)
        return torch.relu(total), total

    spy, (report,) = check(Function(function, inputs).double(), inputs)
    assert spy.count() == {"resample_sum": 1}
    assert "relu" not in report.swapped[0].how


def test_integers_are_left() -> None:
    x = torch.randint(0, 255, (1, 3, 4, 6), dtype=torch.uint8)
    spy = Spy()
    with swap.recording() as reports:
        compiled = torch.compile(
            lambda x: torch.cat([F.interpolate(x, scale_factor=2)] * 2, 1),
            backend=swap.backend,
            options={"inner": spy, "fuse": "all"},
        )
        assert compiled(x).dtype == torch.uint8
    assert spy.count() == {"interpolate": 1}
    assert "its map is torch.uint8" in str(reports[0])


def test_random_numbers_are_drawn_in_the_same_order() -> None:
    def function(a: Tensor, b: Tensor) -> Tensor:
        u = up(F.dropout(b, 0.5), a)
        a = F.dropout(a, 0.3)
        return F.dropout(F.relu(a + u), 0.2)

    a, b = doubles(A, B)
    spy = Spy()
    compiled = compile_with(Function(function, (a, b)).double(), spy)
    torch.manual_seed(3)
    expected = compiled._orig_mod(a, b)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(a, b), expected, rtol=1e-10, atol=1e-10)
    assert spy.count() == {"resample_sum": 1}


def test_numbers_that_change_are_no_memory() -> None:
    """``+=`` on a number gives another one: who keeps the old one has the old one."""

    def function(a: Tensor, b: Tensor) -> Tensor:
        height = b.shape[2] * 2
        taller = height
        taller += 3
        tall = F.interpolate(b, size=(taller, a.shape[3]))
        return a + F.interpolate(b, size=(height, a.shape[3])) + tall[:, :, 3:]

    inputs = doubles((2, 3, 10, 14), (2, 3, 5, 7))
    spy, _ = check(Function(function, inputs).double(), inputs, dynamic=True)
    assert spy.count() == {"resample_sum": 1, "resample": 1}
