"""What is fused by default, with which compiler, and under autocast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import missing
from graphs import Function, Spy, compile_with, doubles
from swapping import UNet, images, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import msr_cuda
from msr_cuda import functional, swap
from msr_cuda.swap.graph import _rewrite

# Without kernels, nothing is fused by default.
pytestmark = pytest.mark.usefixtures("kernels")

A, B, C = (2, 4, 8, 12), (2, 4, 4, 6), (2, 4, 16, 24)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def up(x: Tensor, like: Tensor, mode: str = "nearest") -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode=mode)


def three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return F.relu(a + up(b, a) + up(c, a))


#: Function, whether a gradient is asked for, channels_last, and what "auto" leaves to Inductor.
POLICIES: dict[str, tuple[Callable[..., Any], bool, bool, str | None]] = {
    "two nearest": (lambda a, b, c: a + up(b, a), False, False, "two nearest-neighbour maps"),
    "two nearest, training": (lambda a, b, c: a + up(b, a), True, False, None),
    "two bilinear": (lambda a, b, c: a + up(b, a, "bilinear"), False, False, None),
    "three nearest": (three, False, False, None),
    "three nearest, channels_last": (three, False, True, "channels_last sum of nearest"),
    "three nearest, channels_last, training": (three, True, True, None),
    "cat": (lambda a, b, c: torch.cat([a, up(b, a)], 1), False, False, None),
    "pixels": (lambda a, b, c: up(b, a) * a.mean(1, True) + a, True, False, "factors per pixel"),
    "pools": (lambda a, b, c: a + F.max_pool2d(c, 2), False, False, None),
    "pools, training": (lambda a, b, c: a + F.max_pool2d(c, 2), True, False, "pooled maps"),
    "alone": (lambda a, b, c: up(b, a).tanh(), False, False, "it goes to"),
    "alone, training": (lambda a, b, c: up(b, a).tanh(), True, False, None),
}


def rewrite_for(inner: str | None, fuse: Any, function: Callable[..., Any], *inputs: Tensor) -> Any:
    """What the backend does ahead of its inner backend."""
    found: list[Any] = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        found.append(_rewrite.rewrite_in_place(graph, inner=inner, fuse=fuse, guarded=True))
        return graph.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    (report,) = found
    return report


@pytest.mark.parametrize("name", POLICIES)
def test_auto_leaves_to_inductor_what_it_does_as_well(name: str) -> None:
    function, training, channels_last, reason = POLICIES[name]
    inputs = [x.requires_grad_(training) for x in doubles(A, B, C)]
    if channels_last:
        inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
    report = rewrite_for("inductor", "auto", function, *inputs)
    if reason is None:
        assert len(report.swapped) == 1 and not report.skipped
    elif name == "alone":
        assert not report.swapped
        assert "its result goes to tanh, not to a sum" in report.skipped[0].how
    else:
        assert not report.swapped
        (site,) = report.skipped
        assert reason in site.how and 'fuse="all" fuses it' in site.how
    assert len(rewrite_for("inductor", "all", function, *inputs).swapped) == 1
    # No other backend fuses anything.
    alone = rewrite_for("eager", "auto", function, *inputs)
    assert len(alone.swapped) == (name != "alone")


def test_auto_leaves_what_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "unsupported_reasons", lambda inputs: ["nothing was compiled"])
    inputs = [x.requires_grad_() for x in doubles(A, B, C)]
    for inner in ("inductor", "eager"):
        report = rewrite_for(inner, "auto", three, *inputs)
        assert [s.how for s in report.skipped] == ['nothing was compiled (fuse="all" fuses it)']
        assert len(rewrite_for(inner, "all", three, *inputs).swapped) == 1


def test_checkpointed_parts_are_rewritten() -> None:
    def block(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([up(F.relu(a + up(b, a)), a), a], 1)

    def function(a: Tensor, b: Tensor) -> Tensor:
        return checkpoint(block, a, b, use_reentrant=False) + 1

    inputs = doubles(A, B)
    model, spy = Function(function, inputs).double(), Spy()
    compiled = compile_with(model, spy, inner="aot_eager")
    with swap.recording() as reports:
        actual = compiled(*inputs)
    actual.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = model(*inputs)
    expected.sum().backward()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-9)
    assert [site.operator for site in reports[0].swapped] == ["resample_sum", "resample_cat"]


def test_fused_models_can_be_compiled() -> None:
    """What fuse() swapped is one operator in the graph; the rest is rewritten."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = UNet()

        def forward(self, x: Tensor) -> Tensor:
            y = self.unet(x)
            return F.relu(y + F.interpolate(y[..., ::2, ::2], y.shape[2:], mode="bilinear"))

    model = Both().double()
    assert len(msr_cuda.fuse(model).swapped) == 3
    (x,) = doubles((1, 3, 44, 32))
    spy = Spy()
    with swap.recording() as reports:
        torch.testing.assert_close(compile_with(model, spy)(x), model(x), rtol=1e-10, atol=1e-10)
    assert [site.operator for site in reports[0].swapped] == ["resample_sum"]
    assert not reports[0].skipped
    assert spy.count() == {"resample_sum": 1}


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_autocast_on_the_cpu(inside: bool) -> None:
    inputs = images(1, 4, 8, 12), images(1, 4, 4, 6)

    def function(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # what comes later is not
            b = b + 0
        return F.relu(a + up(b, a, "bilinear"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Function(function, inputs)

        def forward(self, *inputs: Tensor) -> Tensor:
            if not inside:
                return self.model(*inputs)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.model(*inputs)

    spy = Spy()
    compiled = compile_with(Model(), spy)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
        expected, actual = compiled._orig_mod(*inputs), compiled(*inputs)
    assert spy.count() == {"resample_sum": 1}
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=1.6e-2, atol=1e-2)


def test_mixed_dtypes_promote() -> None:
    a, b = images(*A), images(*B).half()
    gate = images(2, 4, 1, 1)
    functions = {
        torch.float32: lambda a, b, gate: a + up(b, a),
        torch.float16: lambda a, b, gate: a.half() + up(b, a) * gate.half(),
        # A tensor with dimensions promotes, one without does not.
        (torch.float32, "gate"): lambda a, b, gate: a.half() + up(b, a) * gate,
        (torch.float16, "number"): lambda a, b, gate: a.half() + up(b, a) * gate[0, 0, 0, 0],
    }
    for dtype, function in functions.items():
        spy = Spy()
        torch._dynamo.reset()
        compiled = torch.compile(function, backend=swap.backend, options={"inner": spy})
        actual, expected = compiled(a, b, gate), function(a, b, gate)
        assert actual.dtype == expected.dtype == (dtype[0] if isinstance(dtype, tuple) else dtype)
        torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3)
        assert spy.count() == {"resample_sum": 1}


def test_autocast_on_cuda_keeps_the_dtype_of_the_maps() -> None:
    """With fake tensors, so without a GPU: PyTorch gives float32 there."""
    program = """
import torch, torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from msr_cuda import functional, swap
class Model(torch.nn.Module):
    def forward(self, a, b):
        c = a * 2
        c.add_(F.interpolate(b.float(), size=a.shape[2:]))
        return torch.relu(a + F.interpolate(b, size=a.shape[2:])), F.interpolate(b, (7, 9)), c
def dtypes(autocast):
    torch.set_autocast_enabled("cuda", autocast)
    with FakeTensorMode():
        a, b = (torch.empty(1, 2, s, s, dtype=torch.half, device="cuda") for s in (8, 4))
        graph, report = swap.rewrite(Model(), (a, b), fuse="all")
        assert [site.operator for site in report.swapped] == [
            "resample_sum", "resample_sum", "resample"
        ], report
        automatic = swap.rewrite(Model(), (a, b), fuse="auto")[1]
        assert len(automatic.swapped) == (3 if autocast else 2)
        print(*(y.dtype for y in Model()(a, b)), *(y.dtype for y in graph(a, b)))
functional.unsupported_reasons = lambda inputs: []  # as where CUDA kernels were compiled
dtypes(False)
dtypes(True)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    off, on = run.stdout.replace("torch.", "").splitlines() or (run.stderr, "")
    assert off.split() == ["float16"] * 6, off
    assert on.split() == ["float32", "float32", *["float16"] * 4]


def test_autocast_around_the_call_is_on_while_the_backend_runs() -> None:
    seen = []

    def inner(graph: Any, inputs: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return graph.forward

    compiled = torch.compile(lambda x: x + 1, backend=swap.backend, options={"inner": inner})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled(torch.ones(2))
    compiled(torch.ones(2))
    assert seen == [True, False]


def test_parts_of_a_graph_that_ddp_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cuts graphs where a bucket of gradients is full."""
    if not (dist.is_available() and dist.is_gloo_available()):
        missing("torch was built without gloo")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Function(three, doubles(A, B, C)) for _ in range(3)])

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            for part in self.parts:
                a = part(a, b, c)
            return a

    inputs, spy = doubles(A, B, C), Spy()
    model = Model().double()
    model(*inputs).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 256)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 's'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=256 / 2**20)
        compile_with(wrapped, spy, fullgraph=False)(*inputs).sum().backward()
    finally:
        dist.destroy_process_group()
    assert len(spy.graphs) > 1
    assert spy.count() == {"resample_sum": 3}
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-9)


def test_reports_count_what_is_saved() -> None:
    """As fuse() counts it for modules: maps that are read and written."""
    a, b = torch.zeros(1, 8, 8, 12), torch.zeros(1, 8, 4, 6)
    report = rewrite_for(None, "auto", lambda a, b: F.relu(a + up(b, a)), a, b)
    (site,) = report.swapped
    large, small = 4 * a.numel(), 4 * b.numel()
    assert site.traffic is not None
    # Interpolation, sum and activation, each on its own.
    assert site.traffic.eager_bytes == (small + large) + 3 * large + 2 * large
    assert site.traffic.fused_bytes == small + 2 * large
    assert site.traffic.saved_launches == 2
    assert report.total == site.traffic
    assert str(report).endswith("in all: saves 0.012 of 0.019 MB")
    assert report.to_dict()["total"]["eager_bytes"] == site.traffic.eager_bytes

    def program(a: Tensor, b: Tensor) -> Tensor:
        return F.relu(a + F.interpolate(b, scale_factor=2))

    torch._dynamo.reset()
    with swap.recording() as reports:
        torch.compile(program, backend=swap.backend, options={"inner": "eager"}, dynamic=True)(a, b)
    assert reports[0].swapped[0].traffic is None and reports[0].total is None
    assert "saves" not in str(reports[0])
