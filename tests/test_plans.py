"""What is kept from call to call changes nothing but the time of a call."""

from __future__ import annotations

import functools
import gc
import pathlib
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import msr_cuda
from msr_cuda import (
    Pool,
    _extension,
    _ops,
    _plans,
    _spec,
    resample,
    resample_cat,
    resample_max,
    resample_sum,
)


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plans, "_kept", {})


def maps(*shapes: tuple[int, ...], **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, **options) for shape in shapes or ((2, 3, 8, 6), (2, 3, 4, 3))]


CALLS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "resample": lambda m: resample(m[1], (8, 6), mode="bilinear"),
    "by-factor": lambda m: resample(m[1], scale_factor=(2.0, 1.5), mode="bicubic"),
    "sum": lambda m: resample_sum(m, activation="relu"),
    "sum-lists": lambda m: resample_sum(
        m, [8, 6], mode=["nearest", "linear"], align_corners=[None, True], antialias=[False, False]
    ),
    "sum-weighted": lambda m: resample_sum(m, weights=torch.ones(2), bias=torch.ones(3)),
    "sum-pool": lambda m: resample_sum(m, (4, 3), mode=[Pool("max", 2), "nearest"]),
    "cat": lambda m: resample_cat(m, mode="linear"),
    "max": lambda m: resample_max(m, mode="linear"),
    "pyramid": lambda m: msr_cuda.resample_pyramid(m[0], sizes=[(3, 5), (9, 9)])[1],
    "many": lambda m: msr_cuda.resample_sum_many([{"inputs": m}, {"inputs": m[::-1]}])[0],
}  # fmt: skip
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_a_second_call_finds_the_plan_of_the_first(call: Callable[..., Tensor]) -> None:
    inputs = maps()
    first = call(inputs)
    count = len(_plans._kept)
    assert count > 0
    other = [x + 1 for x in inputs]
    again = call(inputs), call(other)
    assert len(_plans._kept) == count
    assert torch.equal(first, again[0]) and not torch.equal(first, again[1])
    _plans._kept.clear()
    assert torch.equal(call(other), again[1])


@every_call
def test_gradients_are_those_of_the_first_call(call: Callable[..., Tensor]) -> None:
    found = []
    for wanted in ((True, True), (False, True), (True, True), (True, False), (False, True)):
        inputs = [x.requires_grad_(w) for x, w in zip(maps(), wanted, strict=True)]
        output = call(inputs)
        if output.requires_grad:
            output.pow(2).sum().backward()
        found.append([x.grad for x in inputs])
    both = found[0]
    assert any(grad is not None and grad.abs().max() > 0 for grad in both)
    for grads in found[1:]:
        for grad, expected in zip(grads, both, strict=True):
            assert grad is None or (expected is not None and torch.equal(grad, expected))
    assert [grad is None for grad in found[2]] == [grad is None for grad in both]


def own_calls(call: Callable[[], object]) -> list[str]:
    """The package's functions that ``call`` runs in this thread, in order."""
    package = pathlib.Path(msr_cuda.__file__).parent
    found = []

    def profile(frame: types.FrameType, event: str, argument: object) -> None:
        if event == "call" and package in pathlib.Path(frame.f_code.co_filename).parents:
            found.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def test_a_repeated_call_runs_few_functions() -> None:
    """The host time of a tiny call is that of the functions it goes through."""
    if not _extension.has_kernels("cpu"):
        pytest.skip("the reference is planned anew each time")
    inputs = [x.requires_grad_() for x in maps()]
    for activation in (None, "relu"):
        call = functools.partial(resample_cat, inputs, activation=activation)
        output = call()
        gradients = functools.partial(output.backward, torch.ones_like(output), retain_graph=True)
        gradients()
        with torch.no_grad():
            called = own_calls(call)
        assert called[0] == "resample_cat" and len(called) <= 10, called
        called = own_calls(call)
        assert "forward" in called and len(called) <= 13, called
        called = own_calls(gradients)
        assert called[0] == "backward" and len(called) <= 6, called


def test_no_tensor_is_kept() -> None:
    inputs = maps(requires_grad=True)
    output = resample_sum(inputs, weights=torch.ones(2), activation="relu")
    output.sum().backward()
    alive = [weakref.ref(x) for x in (*inputs, output)]
    assert _plans._kept
    del inputs, output
    gc.collect()
    assert not any(reference() is not None for reference in alive)


def test_they_are_limited_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plans, "LIMIT", 3)
    x = maps((1, 1, 4, 4))[0]
    for size in (5, 6, 7, 8):
        resample(x, size)
    sizes = [planned.plan.size[0] for planned in _plans._kept.values()]
    assert sizes == [6, 7, 8]


def test_what_distinguishes_calls() -> None:
    """Each of these calls needs a plan of its own."""
    x = maps((2, 4, 6, 6))[0]
    y = maps((2, 4, 3, 3))[0]
    last = torch.channels_last
    calls: list[Callable[[], Tensor]] = [
        lambda: resample_sum([x, y]),
        lambda: resample_sum([y, x]),
        lambda: resample_sum([x, y], mode="linear"),
        lambda: resample_sum([x, y], mode="linear", align_corners=True),
        lambda: resample_sum([x, y], mode="linear", antialias=True),
        lambda: resample_sum([x, y], activation="relu"),
        lambda: resample_sum([x, y], dtype=torch.float64),
        lambda: resample_sum([x, y], 3),
        lambda: resample_sum([x, y], scale_factors=[1.5, None]),
        lambda: resample_sum([x.double(), y]),
        lambda: resample_sum([x.contiguous(memory_format=last), y]),
        lambda: resample_sum([x, y.contiguous(memory_format=last)]),
        lambda: resample_sum([x[:, :2], y[:, :2]]),
        lambda: resample_sum([x[:1], y]),
        lambda: resample_cat([x, y]),
        lambda: resample_max([x, y]),
        lambda: resample(x, scale_factor=1.5, mode="linear"),
        lambda: resample(x, scale_factor=1.5, mode="linear", recompute_scale_factor=True),
    ]
    fresh = []
    for call in calls:
        _plans._kept.clear()
        fresh.append(call())
    _plans._kept.clear()
    for count, (call, expected) in enumerate(zip(calls, fresh, strict=True)):
        found = call()
        assert len(_plans._kept) == count + 1
        assert found.dtype == expected.dtype and found.stride() == expected.stride()
        assert torch.equal(found, expected)


#: Calls that are right, and wrong ones whose arguments compare equal to theirs.
EQUAL_BUT_WRONG: list[tuple[Callable[[Tensor], object], Callable[[Tensor], object]]] = [
    (lambda x: resample(x, 1), lambda x: resample(x, True)),
    (lambda x: resample(x, 3), lambda x: resample(x, 3.0)),  # type: ignore[arg-type]
    (lambda x: resample(x, (3, 1)), lambda x: resample(x, (3, True))),
    (lambda x: resample(x, [3, 4]), lambda x: resample(x, [3, 4.0])),  # type: ignore[list-item]
    (lambda x: resample(x, scale_factor=1), lambda x: resample(x, scale_factor=True)),
    (lambda x: resample_sum([x], 2, mode=Pool("max", 2)),
     lambda x: resample_sum([x], 2, mode=Pool("max", 2), antialias=0)),
    (lambda x: resample_sum([x, x]), lambda x: resample_sum(torch.stack([x, x]))),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize("calls", EQUAL_BUT_WRONG)
def test_errors_stay_what_they_were(
    calls: tuple[Callable[[Tensor], object], Callable[[Tensor], object]],
) -> None:
    right, wrong = calls
    x = maps((2, 3, 4, 4))[0]
    with pytest.raises((TypeError, ValueError)) as before:
        wrong(x)
    right(x)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)) as after:
            wrong(x)
        assert str(after.value) == str(before.value)


def test_parameters_are_checked_each_time() -> None:
    x, y = maps()
    resample_sum([x, y], weights=torch.ones(2))
    with pytest.raises(ValueError, match=r"expected weights to be \[S\]"):
        resample_sum([x, y], weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"expected impl to be"):
        resample_sum([x, y], impl="cuda")  # type: ignore[arg-type]


def test_graphs_keep_none() -> None:
    inputs = maps()
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, b: resample_sum([a, b]), fullgraph=True, backend="eager")
    compiled(*inputs)
    torch.func.vmap(lambda a: resample(a, 3))(inputs[0][None])
    with FakeTensorMode() as mode:
        assert resample(mode.from_tensor(inputs[0]), 3).shape == (2, 3, 3, 3)
    assert all(key[-5] is not Tensor for key in _plans._kept)


def test_what_torch_func_leaves_behind_has_gradients() -> None:
    """It is a wrapper, which is dead, around the tensor."""
    w = torch.ones(1, 1, 4, 4, requires_grad=True)
    left: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        left.append(x * w)
        return left[0].sum()

    torch.func.grad(loss)(torch.full((1, 1, 4, 4), 3.0))
    for activation in ("relu", "silu"):
        output = resample_sum([left[0], torch.ones(1, 1, 2, 2)], activation=activation)
        (grad,) = torch.autograd.grad(output.sum(), w, retain_graph=True)
        assert (grad > 2.5).all()


def test_threads_share_them() -> None:
    inputs = maps()
    expected = {size: resample_cat(inputs, size) for size in range(2, 40)}
    _plans._kept.clear()
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            for size, value in expected.items():
                if not torch.equal(resample_cat(inputs, size), value):
                    wrong.append(size)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(_plans._kept) == len(expected)


def test_sizes_are_packed_where_they_fit() -> None:
    for size in ((1,), (5, 7), (3, 1, 2**21 - 1)):
        packed = _spec.pack_size(size)
        assert packed is not None and _spec.unpack_size(packed, len(size)) == size
    assert _spec.pack_size((4, 2**21)) is None


def test_an_axis_that_is_too_long_to_be_packed(kernel: str) -> None:
    x = torch.randn(1, 1, 4, device=kernel)
    n = 2**21
    output = resample(x, n, impl="kernel")
    assert output.shape == (1, 1, n)
    assert torch.equal(output[0, 0, :: n // 4], x[0, 0])


def test_short_calls_pass_opcheck(kernel: str) -> None:
    inputs = [x.to(kernel) for x in maps()]
    spec = _spec.pack(
        [_spec.Mode.NEAREST, _spec.Mode.LINEAR], cat=False, activation="relu",
        channels_last=False, dtype=torch.float32, accumulate_double=False,
    )  # fmt: skip
    size = _spec.pack_size((8, 6))
    gather = torch.ops.msr_cuda.gather
    torch.library.opcheck(gather.one, (inputs[1], size, spec))
    torch.library.opcheck(gather.packed, (inputs, size, spec))
    torch.library.opcheck(gather.saving, (inputs, size, spec | _spec.SAVE))
    output, mask = _ops.gather_saving(inputs, size, spec | _spec.SAVE)
    full = _ops.gather_full(inputs, None, None, (8, 6), spec | _spec.SAVE, [])
    assert torch.equal(output, full[0]) and torch.equal(mask, full[1])
    assert torch.equal(_ops.gather_packed(inputs, size, spec), output)
