"""Losses of resampled logits, against PyTorch's losses of F.interpolate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

import msr_cuda
from msr_cuda import testing

CLASSES, SIZE = 5, (9, 11)


def logits(dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    values = torch.randn(2, CLASSES, 4, 5, dtype=torch.float64, device=device) * 3
    return values.to(dtype).requires_grad_()


def upsampled(x: Tensor, **arguments: Any) -> Tensor:
    return F.interpolate(x, SIZE, **{"mode": "bilinear", **arguments})


def labels(device: str = "cpu", dtype: torch.dtype = torch.int64) -> Tensor:
    target = torch.randint(0, CLASSES, (2, *SIZE), device=device)
    target[:, 2:4] = 3
    return target.to(dtype)


def assert_same(actual: Tensor, expected: Tensor, x: Tensor) -> None:
    """The same loss, and the same gradient of the logits, in float64."""
    testing.assert_within(actual, expected, what="loss")
    grad = torch.rand_like(expected)
    ours = torch.autograd.grad(actual, x, grad)[0]
    truth = torch.autograd.grad(expected, x, grad)[0]
    assert truth.abs().max() > 0
    testing.assert_within(ours, truth, what="gradient")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["indices", "ignored", "probabilities"])
def test_cross_entropy(
    kind: str, smoothing: float, weighted: bool, reduction: str, device: str
) -> None:
    x = logits(device=device)
    weight = torch.rand(CLASSES, dtype=torch.float64, device=device) if weighted else None
    target = labels(device)
    if kind == "probabilities":
        target = torch.randn(2, CLASSES, *SIZE, dtype=torch.float64, device=device).softmax(1)
    options = dict(label_smoothing=smoothing, reduction=reduction,
                   ignore_index=3 if kind == "ignored" else -100)  # fmt: skip
    for arguments in (dict(), dict(align_corners=True), dict(mode="nearest")):
        loss = msr_cuda.resample_cross_entropy(x, target, weight=weight, **arguments, **options)  # type: ignore[arg-type]
        assert_same(loss, F.cross_entropy(upsampled(x, **arguments), target, weight, **options), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_binary_cross_entropy(reduction: str, device: str) -> None:
    x = logits(device=device)
    target = torch.rand(2, CLASSES, *SIZE, dtype=torch.float64, device=device)
    weight = torch.rand(CLASSES, 1, SIZE[1], dtype=torch.float64, device=device)
    pos_weight = torch.rand(CLASSES, 1, 1, dtype=torch.float64, device=device)
    for w in (None, weight):
        for p in (None, pos_weight):
            loss = msr_cuda.resample_binary_cross_entropy_with_logits(
                x, target, weight=w, pos_weight=p, reduction=reduction
            )
            expected = F.binary_cross_entropy_with_logits(
                upsampled(x), target, w, pos_weight=p, reduction=reduction
            )
            assert_same(loss, expected, x)
    mask = target > 0.5
    loss = msr_cuda.resample_binary_cross_entropy_with_logits(x, mask, reduction=reduction)
    assert_same(
        loss,
        F.binary_cross_entropy_with_logits(upsampled(x), mask.double(), reduction=reduction),
        x,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_losses_of_lower_precision_are_float32(dtype: torch.dtype, device: str) -> None:
    x = logits(dtype, device)
    x64 = x.detach().double().requires_grad_()
    target = labels(device, torch.uint8)
    mask = torch.rand(2, CLASSES, *SIZE, device=device) < 0.5
    weight = torch.rand(CLASSES, device=device)
    for actual, expected in (
        (msr_cuda.resample_cross_entropy(x, target, weight=weight),
         F.cross_entropy(upsampled(x64), target.long(), weight.double())),
        (msr_cuda.resample_binary_cross_entropy_with_logits(x, mask),
         F.binary_cross_entropy_with_logits(upsampled(x64), mask.double())),
    ):  # fmt: skip
        assert actual.dtype == torch.float32
        testing.assert_within(actual, expected, what="loss")
        grad = torch.autograd.grad(actual, x)[0]
        assert grad.dtype == dtype and grad.abs().max() > 0
        testing.assert_within(grad, torch.autograd.grad(expected, x64)[0], what="gradient")


def test_losses_pass_gradcheck() -> None:
    x = logits()
    mask = torch.rand(2, CLASSES, *SIZE, dtype=torch.float64)
    target = labels()
    assert gradcheck(lambda z: msr_cuda.resample_cross_entropy(z, target), (x,), fast_mode=True)
    assert gradcheck(
        lambda z: msr_cuda.resample_binary_cross_entropy_with_logits(z, mask), (x,), fast_mode=True
    )


def test_losses_under_torch_func_and_compile() -> None:
    x, target = logits(torch.float32), labels()

    def loss(z: Tensor) -> Tensor:
        return msr_cuda.resample_cross_entropy(z, target, ignore_index=3)

    expected = torch.autograd.grad(loss(x), x)[0]
    assert expected.abs().max() > 0
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), expected)
    tangent = torch.randn_like(x)
    _, jvp = torch.func.jvp(loss, (x.detach(),), (tangent,))
    torch.testing.assert_close(jvp, (expected * tangent).sum())
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))


def test_reference_and_auto_agree(device: str) -> None:
    """The logits are resampled on a kernel where there is one."""
    x, target = logits(torch.float32, device), labels(device)
    testing.assert_within(
        msr_cuda.resample_cross_entropy(x, target),
        msr_cuda.resample_cross_entropy(x.double(), target, impl="reference"),
    )


def test_every_pixel_ignored_gives_nan_as_in_pytorch() -> None:
    target = torch.full((2, *SIZE), 7)
    loss = msr_cuda.resample_cross_entropy(logits(), target, ignore_index=7)
    assert loss.isnan()
    assert msr_cuda.resample_cross_entropy(
        logits(), target, ignore_index=7, reduction="sum"
    ) == 0  # fmt: skip


def test_mean_is_deterministic(device: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        x = logits(torch.float32, device)
        losses = [msr_cuda.resample_cross_entropy(x, labels(device, torch.int32) * 0 + 1)
                  for _ in range(2)]  # fmt: skip
        grads = [torch.autograd.grad(loss, x)[0] for loss in losses]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*losses) and torch.equal(*grads)


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_argmax(index_dtype: torch.dtype, device: str) -> None:
    x = logits(torch.float32, device)
    truth = upsampled(x.detach().double())
    index = msr_cuda.resample_argmax(x, SIZE, dtype=index_dtype)
    assert isinstance(index, Tensor) and index.dtype == index_dtype
    assert torch.equal(index.long(), truth.argmax(1))
    index, probability = msr_cuda.resample_argmax(x, SIZE, dtype=index_dtype, return_max=True)
    assert torch.equal(index.long(), truth.argmax(1))
    assert probability.dtype == torch.float32 and not probability.requires_grad
    testing.assert_within(probability, truth.softmax(1).amax(1))


def test_argmax_takes_the_first_of_equal_logits(device: str) -> None:
    x = torch.tensor([0.0, 2.0, 2.0, 1.0], device=device).view(1, 4, 1, 1).expand(1, 4, 3, 3)
    assert msr_cuda.resample_argmax(x, 7).unique().tolist() == [1]  # type: ignore[union-attr]
    same = msr_cuda.resample_argmax(x)
    assert isinstance(same, Tensor) and same.shape == (1, 3, 3)
