"""What the tests of blocks and networks share: properties that every one of them must have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import msr_cuda
from msr_cuda import _extension, testing

#: What a block or a network takes and gives: a tensor, or any nesting of them.
Tree = Any


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a nesting, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return [leaf for branch in tree for leaf in leaves(branch)]


def mapped(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """A nesting with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    return type(tree)(mapped(branch, change) for branch in tree)


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Runs as if nothing had been compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_extension, "has_kernels", lambda device_type: False)
        yield


@contextmanager
def kernels_only() -> Iterator[list[msr_cuda.functional.Observation]]:
    """Fails unless everything that resamples in here ran on kernels, and something did."""
    seen: list[msr_cuda.functional.Observation] = []
    observers = msr_cuda.functional.observers
    observers.append(seen.append)
    try:
        yield seen
    finally:
        observers.remove(seen.append)
    assert seen, "nothing was resampled"
    for observation in seen:
        assert not observation.reasons, (observation.function, observation.reasons)


def randomize(module: nn.Module) -> nn.Module:
    """Gives every parameter and running statistic a value that shows whether it is used."""
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        with torch.no_grad():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.dim() < 2:
                value.add_(torch.randn_like(value) * 0.2)
            elif not value.any():  # what starts as zeros
                value.normal_(std=0.3)
    return module


def outputs_and_gradients(
    module: nn.Module, arguments: Sequence[Tree], seed: int = 1
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs, and the gradients of a random function of them by name."""
    generator = torch.Generator().manual_seed(seed)
    arguments = [mapped(a, lambda t: t.detach().clone().requires_grad_()) for a in arguments]
    module.zero_grad()
    outputs = leaves(module(*arguments))
    total = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)).sum()
        for y in outputs
    )
    assert isinstance(total, Tensor)
    total.backward()
    gradients = {f"argument {i}": x.grad for i, x in enumerate(leaves(arguments))}
    gradients |= {name: p.grad for name, p in module.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().max() > 0, f"{name} has no gradient"
    return [y.detach() for y in outputs], {n: g for n, g in gradients.items() if g is not None}


def assert_same(actual: Tensor, expected: Tensor, what: str = "the result") -> None:
    """Equal to within the bound of swapped models, in float64."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    assert actual.dtype == expected.dtype == torch.float64, what
    assert expected.abs().max() > 0, f"{what} is zero, so the comparison says nothing"
    error = (actual - expected).abs().max()
    assert error <= testing.SWAPPED_RTOL * expected.abs().max(), f"{what} is off by {error}"


def assert_kernel_is_reference(module: nn.Module, arguments: Sequence[Tree]) -> None:
    """The same outputs and gradients on kernels and in plain PyTorch."""
    with kernels_only():
        outputs, gradients = outputs_and_gradients(module, arguments)
    with plain_pytorch():
        expected, expected_gradients = outputs_and_gradients(module, arguments)
    for y, truth in zip(outputs, expected, strict=True):
        assert_same(y, truth)
    for name, gradient in gradients.items():
        assert_same(gradient, expected_gradients[name], f"the gradient of {name}")


def assert_repeats(module: nn.Module, arguments: Sequence[Tree]) -> None:
    """Bitwise the same outputs and gradients a second time."""
    first, first_gradients = outputs_and_gradients(module, arguments)
    again, again_gradients = outputs_and_gradients(module, arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(g, again_gradients[name]) for name, g in first_gradients.items())


def assert_compiles(module: nn.Module, arguments: Sequence[Tree]) -> None:
    """One graph, and bitwise the same outputs and gradients."""
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    outputs, gradients = outputs_and_gradients(compiled, arguments)
    expected, expected_gradients = outputs_and_gradients(module, arguments)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[name.removeprefix("_orig_mod.")]), name


def assert_copies(module: nn.Module, make: Callable[[], nn.Module], arguments: Any) -> None:
    """A deep copy, and a new module with the state, give bitwise the same outputs."""
    expected = leaves(module(*arguments))
    other = make().to(expected[0].dtype).train(module.training)
    other.load_state_dict(module.state_dict())
    for twin in (copy.deepcopy(module), other):
        for y, truth in zip(leaves(twin(*arguments)), expected, strict=True):
            assert torch.equal(y, truth)


def assert_keeps_channels_last(module: nn.Module, arguments: Sequence[Tree]) -> None:
    """Maps in channels_last give the same numbers, and in 2-D maps in channels_last.

    In 3-D, some of PyTorch's own convolutions on the CPU give contiguous maps.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}

    def change(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x

    expected = leaves(module(*arguments))
    moved = copy.deepcopy(module)
    for layout in {formats[x.dim()] for x in leaves(arguments) if x.dim() in formats}:
        moved = moved.to(memory_format=layout)  # type: ignore[call-overload]
    outputs = leaves(moved(*[mapped(a, change) for a in arguments]))
    for y, truth in zip(outputs, expected, strict=True):
        assert_same(y, truth)
        if y.dim() == 4:
            assert y.is_contiguous(memory_format=torch.channels_last)


def assert_runs_in_autocast(module: nn.Module, arguments: Sequence[Tree]) -> None:
    """In bfloat16 autocast, close to the result in float32, and with finite gradients.

    Bound: 5 % of the largest magnitude, some ten roundings to bfloat16's 8 bits in a row.
    """
    module = copy.deepcopy(module).float()
    arguments = [mapped(a, lambda x: x.float()) for a in arguments]
    expected = leaves(module(*arguments))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = leaves(module(*arguments))
    for y, truth in zip(outputs, expected, strict=True):
        assert (y.float() - truth).abs().max() <= 0.05 * truth.abs().max()
    if not list(module.parameters()):
        return
    loss = torch.stack([y.float().square().mean() for y in outputs]).sum()
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
