"""Losses and decisions of resampled logits on kernels, against the float64 reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, require_or_skip
from test_random import DTYPES, LAYOUTS, _few_threads, examples, lay_out  # noqa: F401
from torch import Tensor
from torch.autograd import gradcheck

import msr_cuda
from msr_cuda import _ops, testing

hypothesis = require_or_skip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

MODES = ("nearest", "nearest-exact", "linear", "cubic", "area")
SIZES = {1: 200, 2: 40, 3: 9}  # the largest axis, by rank
CLASSES = (1, 2, 3, 15, 16, 17, 19, 33, 150)
INDICES = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True)
class Drawn:
    """Logits, and how they are resampled."""

    shape: tuple[int, ...]
    size: tuple[int, ...]
    mode: str
    align_corners: bool | None
    dtype: torch.dtype
    layout: str
    spread: float
    seed: int

    def logits(self, device: str) -> Tensor:
        torch.manual_seed(self.seed)
        x = lay_out(self.shape, self.layout, self.dtype, device)
        if 0 not in x.stride():
            x.mul_(self.spread)
        return x.requires_grad_()

    @property
    def resampling(self) -> dict[str, Any]:
        return {"mode": self.mode, "align_corners": self.align_corners}


@st.composite
def drawn(draw: Callable[[Any], Any]) -> Drawn:
    rank = draw(st.sampled_from((1, 2, 2, 3)))
    axis = st.integers(1, SIZES[rank])
    classes = draw(st.sampled_from(CLASSES))
    spatial = tuple(draw(axis) for _ in range(rank))
    factor = st.sampled_from((1, 2, 3, 4))
    size = tuple(draw(st.one_of(axis, factor.map(lambda f, n=n: f * n))) for n in spatial)
    mode = draw(st.sampled_from(MODES))
    corners = st.sampled_from((None, True, False)) if mode in ("linear", "cubic") else st.none()
    room = classes
    for n in size:
        room *= n
    hypothesis.assume(room <= 60_000)
    return Drawn(
        (draw(st.sampled_from((1, 2, 3))), classes, *spatial), size, mode, draw(corners),
        draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from((1.0, 5.0))), draw(st.integers(0, 2**20)),
    )  # fmt: skip


def source_of(call: Drawn) -> Any:
    """The rule of taps, as the reference names it."""
    plan = msr_cuda._plans.find(
        "test", msr_cuda._plans.LOGITS, [torch.empty(call.shape)], call.size, call.mode,
        call.align_corners, False, None, None, None,
    )  # fmt: skip
    return plan.call.modes[0]


def assert_loss_and_gradient(
    call: Drawn, x: Tensor, actual: Tensor, exact: Callable[[Tensor], Tensor]
) -> None:
    """Both within the bounds of the dtype; sums of terms by their norm.

    ``exact``: the loss of float64 upsampled logits.
    """
    x64 = x.detach().double()
    upsampled = msr_cuda.resample(x64, call.size, **call.resampling, impl="reference")
    upsampled = upsampled.detach().requires_grad_()
    truth = exact(upsampled)
    assert actual.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    testing.assert_within(actual, truth, what="loss")
    grad = torch.randn(truth.shape, generator=torch.Generator().manual_seed(call.seed)).to(truth)
    (ours,) = torch.autograd.grad(actual, x, grad.to(actual.dtype))
    assert ours.shape == x.shape
    assert ours.dtype == x.dtype
    (inner,) = torch.autograd.grad(truth, upsampled, grad)
    leaf = x64.requires_grad_()
    again = msr_cuda.resample(leaf, call.size, **call.resampling, impl="reference")
    (expected,) = torch.autograd.grad(again, leaf, inner)
    norm = testing.gradient_term_norm(inner, x.shape, source_of(call))
    testing.assert_within(ours, expected, term_norm=norm, what="gradient")


@examples(200)
@given(call=drawn(), data=st.data())
def test_cross_entropy(kernel: str, call: Drawn, data: Any) -> None:
    x = call.logits(kernel)
    classes = call.shape[1]
    reduction = data.draw(st.sampled_from(("none", "mean", "sum")))
    weight = torch.rand(classes, device=kernel) if data.draw(st.booleans()) else None
    options: dict[str, Any] = dict(
        label_smoothing=data.draw(st.sampled_from((0.0, 0.0, 0.1, 0.7, 1.0))), reduction=reduction
    )
    if data.draw(st.booleans()):
        target = torch.randn(call.shape[0], classes, *call.size, device=kernel).softmax(1)
        target = target.to(data.draw(st.sampled_from(DTYPES)))
    else:
        target = torch.randint(0, classes, (call.shape[0], *call.size), device=kernel)
        dtype = data.draw(st.sampled_from(INDICES))
        options["ignore_index"] = data.draw(st.sampled_from((0, classes - 1, -100)))
        target = target.to(dtype)
    if data.draw(st.booleans()):
        target = target.transpose(0, -1).contiguous().transpose(0, -1)
    actual = msr_cuda.resample_cross_entropy(
        x, target, weight=weight, impl="kernel", **call.resampling, **options
    )
    weight64 = None if weight is None else weight.double()
    target64 = target.double() if target.is_floating_point() else target.long()

    def exact(upsampled: Tensor) -> Tensor:
        return F.cross_entropy(upsampled, target64, weight64, **options)

    if actual.isnan().any():  # nothing counts
        assert exact(x.double().mean().expand(call.shape[0], classes, *call.size)).isnan()
        return
    assert_loss_and_gradient(call, x, actual, exact)


@examples(200)
@given(call=drawn(), data=st.data())
def test_binary_cross_entropy(kernel: str, call: Drawn, data: Any) -> None:
    x = call.logits(kernel)
    shape = (*call.shape[:2], *call.size)
    reduction = data.draw(st.sampled_from(("none", "mean", "sum")))
    target = torch.rand(shape, device=kernel)
    if data.draw(st.booleans()):
        target = (target < 0.3).to(
            data.draw(st.sampled_from((torch.bool, torch.uint8, torch.int64)))
        )
    else:
        target = target.to(data.draw(st.sampled_from(DTYPES)))
    if data.draw(st.booleans()):
        target = target.transpose(1, -1).contiguous().transpose(1, -1)
    factors: dict[str, Any] = {}
    for name in ("weight", "pos_weight"):
        kind = data.draw(st.sampled_from(("none", "channels", "all")))
        if kind != "none":
            own = (shape[1], *[1] * len(call.size)) if kind == "channels" else shape
            factors[name] = torch.rand(own, device=kernel) * 2
    actual = msr_cuda.resample_binary_cross_entropy_with_logits(
        x, target, reduction=reduction, impl="kernel", **call.resampling, **factors
    )
    factors64 = {name: factor.double() for name, factor in factors.items()}

    def exact(upsampled: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            upsampled, target.double(), reduction=reduction, **factors64
        )

    assert_loss_and_gradient(call, x, actual, exact)


@examples(200)
@given(call=drawn(), dtype=st.sampled_from((torch.int64, torch.int32, torch.uint8)))
def test_argmax(kernel: str, call: Drawn, dtype: torch.dtype) -> None:
    x = call.logits(kernel)
    index, probability = msr_cuda.resample_argmax(
        x, call.size, dtype=dtype, return_max=True, impl="kernel", **call.resampling
    )
    alone = msr_cuda.resample_argmax(x, call.size, dtype=dtype, impl="kernel", **call.resampling)
    assert isinstance(alone, Tensor)
    assert torch.equal(alone, index)
    assert index.dtype == dtype
    truth = msr_cuda.resample(x.detach().double(), call.size, **call.resampling, impl="reference")
    chosen = truth.gather(1, index.long().unsqueeze(1)).squeeze(1)
    largest = truth.amax(1)
    accumulation = torch.float64 if x.dtype == torch.float64 else torch.float32
    bound = testing.allowed_error(largest, accumulation)
    assert bool((largest - chosen <= 2 * bound).all())
    clear = largest - chosen == 0
    if truth.shape[1] > 1:
        best = truth.topk(2, 1).values
        clear |= best[:, 0] - best[:, 1] > 2 * bound
    assert torch.equal(index.long()[clear], truth.argmax(1)[clear])
    testing.assert_within(probability, truth.softmax(1).amax(1), what="probability")


# What does not depend on chance.


def logits(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64, device=device) * 3
    return x.to(dtype).requires_grad_()


def labels(device: str, classes: int, *shape: int) -> Tensor:
    return torch.randint(0, classes, shape, device=device)


def ce(x: Tensor, target: Tensor, **options: Any) -> Tensor:
    return msr_cuda.resample_cross_entropy(x, target, impl="kernel", **options)


def bce(x: Tensor, target: Tensor, **options: Any) -> Tensor:
    return msr_cuda.resample_binary_cross_entropy_with_logits(x, target, impl="kernel", **options)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_gradcheck(kernel: str, rank: int, mode: str) -> None:
    size = (7, 5, 4)[:rank]
    x = logits(kernel, 2, 3, *(4, 3, 2)[:rank], dtype=torch.float64)
    target, weight = labels(kernel, 3, 2, *size), torch.rand(3, dtype=torch.float64, device=kernel)
    soft = torch.rand(2, 3, *size, dtype=torch.float64, device=kernel)
    for call in (
        lambda z: ce(z, target, mode=mode, weight=weight, label_smoothing=0.1, ignore_index=1),
        lambda z: ce(z, soft, mode=mode, weight=weight, reduction="none"),
        lambda z: bce(z, soft, mode=mode, pos_weight=soft + 0.5, reduction="sum"),
    ):
        assert gradcheck(call, (x,), fast_mode=True)


def test_a_second_derivative_is_refused(kernel: str) -> None:
    x = logits(kernel, 1, 3, 4, 4)
    for loss in (ce(x, labels(kernel, 3, 1, 8, 8)), bce(x, torch.rand(1, 3, 8, 8, device=kernel))):
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"^resample_\w+ is differentiable once; impl="):
            grad.sum().backward()
    loss = msr_cuda.resample_cross_entropy(x, labels(kernel, 3, 1, 8, 8), impl="reference")
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad is not None


def test_bits_do_not_depend_on_threads(kernel: str) -> None:
    x = logits(kernel, 2, 37, 40, 24).detach()
    target = labels(kernel, 37, 2, 160, 96)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            loss = ce(leaf, target, label_smoothing=0.1)
            mask = bce(leaf, (target < 18).unsqueeze(1).expand(-1, 37, -1, -1))
            grads = [torch.autograd.grad(one, leaf)[0] for one in (loss, mask)]
            found.append([loss, mask, *grads, msr_cuda.resample_argmax(leaf, 160, impl="kernel")])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_batch_without_valid_pixels(kernel: str, reduction: str) -> None:
    """What PyTorch gives: NaN for the mean, zeros else."""
    x = logits(kernel, 2, 3, 4, 4)
    target = torch.full((2, 8, 8), 255, dtype=torch.uint8, device=kernel)
    options = dict(ignore_index=255, reduction=reduction)
    loss = ce(x, target, **options)
    expected = F.cross_entropy(F.interpolate(x, 8, mode="bilinear"), target.long(), **options)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in (loss, expected)]
    torch.testing.assert_close(*grads, equal_nan=True)


def test_empty_batches(kernel: str) -> None:
    x, target = logits(kernel, 0, 3, 4, 4), labels(kernel, 3, 0, 8, 8)
    assert ce(x, target).isnan()
    assert bce(x, torch.rand(0, 3, 8, 8, device=kernel)).isnan()
    assert ce(x, target, reduction="none").shape == (0, 8, 8)
    loss = ce(x, target, reduction="sum")
    assert loss == 0
    assert torch.autograd.grad(loss, x)[0].shape == x.shape
    index = msr_cuda.resample_argmax(x, 8, impl="kernel")
    assert isinstance(index, Tensor)
    assert index.shape == (0, 8, 8)


def test_more_classes_than_are_numbered_are_refused(kernel: str) -> None:
    x = torch.zeros(1, device=kernel).expand(1, 2**24 + 1, 1)
    with pytest.raises(RuntimeError, match="expected 1 to 16777216 classes, got 16777217"):
        msr_cuda.resample_argmax(x, 1, impl="kernel")


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["a class", "all classes", "the first classes"])
def test_logits_that_are_not_finite(kernel: str, value: float, where: str) -> None:
    """Where PyTorch's losses are NaN or infinite, these are, and nowhere else."""
    x = logits(kernel, 1, 40, 6, 6).detach()
    chosen = {"a class": [7], "all classes": range(40), "the first classes": range(20)}[where]
    for c in chosen:
        x[0, c, 2, 3] = value
    x.requires_grad_()
    for mode in ("nearest", "linear"):
        target = labels(kernel, 40, 1, 12, 12)
        ours = ce(x, target, mode=mode, reduction="none")
        theirs = F.cross_entropy(
            msr_cuda.resample(x, 12, mode=mode, impl="reference"), target, reduction="none"
        )
        torch.testing.assert_close(ours, theirs, equal_nan=True)
        index = msr_cuda.resample_argmax(x, 12, mode=mode, impl="kernel")
        assert torch.equal(
            index, msr_cuda.resample(x, 12, mode=mode, impl="reference").argmax(1)  # type: ignore[arg-type]
        )  # fmt: skip


def test_large_logits_do_not_overflow(kernel: str) -> None:
    x = (torch.randn(1, 30, 5, 5, device=kernel) * 300).requires_grad_()
    target = labels(kernel, 30, 1, 20, 20)
    upsampled = F.interpolate(x.double(), 20, mode="bilinear")
    mask = torch.rand(1, 30, 20, 20, device=kernel)
    exact = (
        F.cross_entropy(upsampled, target, reduction="none"),
        F.binary_cross_entropy_with_logits(upsampled, mask.double(), reduction="none"),
    )
    for loss, truth in zip(
        (ce(x, target, reduction="none"), bce(x, mask, reduction="none")), exact, strict=True
    ):
        # A small loss is the difference of logits of a thousand.
        torch.testing.assert_close(loss.double(), truth, rtol=1.3e-6, atol=1e-3)


def test_many_classes(kernel: str) -> None:
    x = logits(kernel, 1, 20_000, 2, 3)
    target = labels(kernel, 20_000, 1, 4, 6)
    upsampled = F.interpolate(x.double(), (4, 6), mode="bilinear")
    loss = ce(x, target)
    testing.assert_within(loss, F.cross_entropy(upsampled, target))
    grads = [torch.autograd.grad(y, x)[0] for y in (loss, F.cross_entropy(upsampled, target))]
    testing.assert_within(grads[0], grads[1].double())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_has_the_layout_of_the_logits(kernel: str, layout: Any) -> None:
    x = logits(kernel, 2, 3, 4, 5).detach().to(memory_format=layout).requires_grad_()
    for loss in (
        ce(x, labels(kernel, 3, 2, 8, 10)),
        bce(x, torch.rand(2, 3, 8, 10, device=kernel)),
    ):
        assert torch.autograd.grad(loss, x)[0].stride() == x.stride()


def test_the_upsampled_logits_are_never_there(kernel: str) -> None:
    """Beyond logits, their gradient and tables of taps: at most 8 bytes per pixel of the result."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.measure import peak_memory

    x = logits(kernel, 2, 50, 32, 32)
    target = labels(kernel, 50, 2, 128, 128)

    def step() -> Tensor:
        return torch.autograd.grad(ce(x, target), x)[0]

    pixels, gradient = target.numel(), x.numel() * 4
    tables = 2 * (128 * 16 + 32 * 8) + 4096
    assert peak_memory(step, torch.device(kernel)) <= gradient + 8 * pixels + tables
    with torch.no_grad():
        index = peak_memory(
            lambda: msr_cuda.resample_argmax(x, 128, dtype=torch.uint8, impl="kernel"),
            torch.device(kernel),
        )
    assert index <= pixels + tables


def test_a_target_that_is_no_class(kernel: str) -> None:
    """On the CPU it raises at once; on CUDA the loss is NaN, and whoever comes next is told."""
    x, target = logits(kernel, 2, 3, 4, 4), labels(kernel, 3, 2, 8, 8)
    msr_cuda.check_errors()
    target[1, 2, 3] = 7
    if kernel == "cpu":
        with pytest.raises(RuntimeError, match=r"got 7$"):
            ce(x, target)
        msr_cuda.check_errors()
        return
    for reduction in ("none", "mean"):
        loss = ce(x, target, reduction=reduction)
        assert int(loss.isnan().sum()) == 1
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert grad.isnan().any()
        with pytest.raises(RuntimeError, match="neither a class nor ignore_index: 7; its loss was"):
            msr_cuda.check_errors(kernel)
        msr_cuda.check_errors()  # it is told once
    ce(x, target)
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="an earlier call on cuda:0 had a target"):
        ce(x, target.clamp(max=2))
    assert ce(x, target.clamp(max=2)).isfinite()


def test_errors_are_asked_of_cuda_devices() -> None:
    with pytest.raises(ValueError, match="check_errors: expected a CUDA device, got cpu"):
        msr_cuda.check_errors("cpu")


def test_a_captured_graph_gives_the_same_bits(kernel: str) -> None:
    if kernel != "cuda":
        pytest.skip("about CUDA graphs")
    x, target = logits(kernel, 2, 19, 16, 16), labels(kernel, 19, 2, 64, 64)
    wrong = target.clone()
    wrong[0, 0, 0] = 19

    def step() -> tuple[Tensor, Tensor]:
        loss = ce(x, target, label_smoothing=0.1)
        return loss, torch.autograd.grad(loss, x)[0]

    expected = step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    assert all(map(torch.equal, found, expected))
    target.copy_(wrong)
    graph.replay()
    assert found[0].isnan()
    with pytest.raises(RuntimeError, match="neither a class nor ignore_index: 19"):
        msr_cuda.check_errors()


def test_raw_operators_pass_opcheck(kernel: str) -> None:
    x = logits(kernel, 2, 5, 4, 6).detach()
    target, soft = labels(kernel, 5, 2, 8, 12), torch.rand(2, 5, 8, 12, device=kernel)
    spec = 2  # linear
    samples: list[tuple[Any, tuple[Any, ...]]] = []
    for reduction in (0, 1, 2):
        for one in (target, soft):
            samples.append(
                (
                    _ops.cross_entropy,
                    (x, one, torch.rand(5, device=kernel), spec, -100, 0.1, reduction),
                )
            )
        samples.append((_ops.binary_cross_entropy, (x, soft, None, soft, spec, reduction)))
    _, lse, sums, _ = _ops.cross_entropy(x, soft, None, spec, -100, 0.1, 0)
    grad = torch.rand(2, 8, 12, device=kernel)
    samples.append((_ops.cross_entropy_backward, (grad, x, soft, None, lse, sums, spec, -100, 0.1)))
    samples.append((_ops.binary_cross_entropy_backward, (soft, x, soft, soft, None, spec)))
    for kind in range(4):
        samples.append((_ops.argmax, (x, [8, 12], spec, kind, bool(kind % 2))))
    for operator, arguments in samples:
        torch.library.opcheck(operator, arguments)


def test_compiles_to_one_graph(kernel: str) -> None:
    x, target = logits(kernel, 2, 5, 4, 4), labels(kernel, 5, 2, 9, 9)
    mask = torch.rand(2, 5, 9, 9, device=kernel)

    def loss(z: Tensor) -> Tensor:
        return ce(z, target, label_smoothing=0.1) + bce(z, mask)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(x), x)[0] for f in (loss, compiled)]
    assert torch.equal(*grads)
    assert grads[0].abs().max() > 0
    decide = torch.compile(
        lambda z: msr_cuda.resample_argmax(z, 9, impl="kernel"), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(decide(x), msr_cuda.resample_argmax(x, 9, impl="kernel"))  # type: ignore[arg-type]
