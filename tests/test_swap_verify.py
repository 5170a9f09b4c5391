"""verify(): passes what is equal, and says where it is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from swapping import (
    FusedMerge,
    Merge,
    UNet,
    images,
    merge_recipe,  # noqa: F401
    one_thread,  # noqa: F401
)
from torch import Tensor, nn

import msr_cuda
from msr_cuda.swap import fuse, register, unregister


class WrongMerge(FusedMerge):
    """A recipe whose value is a little off."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(x, skip) * (1 + 1e-7)


class WrongSlope(FusedMerge):
    """A recipe whose value is right, and whose gradient is not."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y = super().forward(x, skip)
        return y + 0.1 * (y - y.detach())


@pytest.fixture
def recipe(request: pytest.FixtureRequest) -> Iterator[type[nn.Module]]:
    register(Merge)(request.param)
    yield request.param
    unregister(request.param)


def merge_inputs() -> list[Tensor]:
    return [images(2, 4, 5, 6), images(2, 4, 10, 12)]


def test_passes_and_leaves_no_trace() -> None:
    model = UNet()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(4)
    state = torch.get_rng_state()
    x = images(1, 3, 44, 32)
    found = msr_cuda.verify(model, x)
    assert found
    assert found.passed
    assert torch.equal(torch.get_rng_state(), state)
    assert not x.requires_grad
    assert [type(m) for m in (model.up1, model.up2, model.final)] == [nn.Upsample] * 3
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    parameters = [f"gradient of {name}" for name, _ in model.named_parameters()]
    assert [c.name for c in found.comparisons] == ["output", *parameters, "gradient of input.0"]
    noise = 1e-13 * max(c.largest for c in found.comparisons[1:])
    for c in found.comparisons:
        assert 0 < c.allowed <= 1.001 * (1e-9 * c.largest + noise), c
    assert found.dtype == torch.float32
    (output,) = found.precision
    assert 0 < output.fused < 1e-5
    assert 0 < output.plain < 1e-5
    assert str(found).startswith("pass: 3 modules fused; 14 of 14 outputs and gradients equal")
    assert json.loads(json.dumps(found.to_dict()))["passed"] is True


def test_of_a_fused_model_compares_with_what_it_was() -> None:
    model = UNet()
    fuse(model)
    twin = type(model.up1)
    found = msr_cuda.verify(model, images(1, 3, 44, 32))
    assert found
    assert len(found.report.swapped) == 3
    assert type(model.up1) is twin


@pytest.mark.parametrize("recipe", [WrongMerge], indirect=True)
def test_names_the_outputs_that_differ(recipe: Any) -> None:
    found = msr_cuda.verify(Merge(), merge_inputs())
    assert not found
    failed = {c.name for c in found.comparisons if not c.passed}
    assert "output" in failed
    text = str(found)
    assert text.startswith("FAIL: 1 modules fused")
    assert "output" in text
    assert "does not repeat" not in text


@pytest.mark.parametrize("recipe", [WrongSlope], indirect=True)
def test_names_the_gradients_that_differ(recipe: Any) -> None:
    found = msr_cuda.verify(Merge(), merge_inputs())
    assert not found
    failed = {c.name for c in found.comparisons if not c.passed}
    assert failed == {
        "gradient of conv.weight", "gradient of conv.bias",
        "gradient of input.0", "gradient of input.1",
    }  # fmt: skip
    assert msr_cuda.verify(Merge(), merge_inputs(), gradients=False)


class Named(nn.Module):
    """Outputs of every kind, from keyword arguments."""

    @dataclass
    class Result:
        merged: Tensor
        classes: Tensor
        empty: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.merge = Merge()
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, *, skips: list[Tensor], times: int) -> dict[str, Any]:
        y = self.merge(x, skips[0])
        for _ in range(times - 1):
            y = y + self.merge(x, skips[0])
        y = y + 0 * self.unused.sum()
        return {"all": [self.Result(y, y.argmax(1), y[:0])], "text": "none"}


@pytest.mark.usefixtures("merge_recipe")
def test_takes_nested_arguments_and_results() -> None:
    x, skip = merge_inputs()
    found = msr_cuda.verify(Named(), {"x": x, "skips": [skip], "times": 2})
    assert found, found
    names = [c.name for c in found.comparisons]
    assert names[:3] == ["output.all.0.merged", "output.all.0.classes", "output.all.0.empty"]
    assert {"gradient of input.x", "gradient of input.skips.0"} <= set(names)
    assert found.zeros == ["gradient of unused"]
    assert "unused" in str(found)
    assert [p.name for p in found.precision] == ["output.all.0.merged"]


class Counting(nn.Module):
    """Not repeatable, whatever the seed: all copies count the same calls."""

    calls: list[int] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return self.up(x) * len(self.calls)


def test_says_that_a_model_does_not_repeat_itself() -> None:
    found = msr_cuda.verify(Counting(), images(1, 1, 2, 2))
    assert not found
    assert "does not repeat its own results" in str(found)


def test_dropout_and_running_statistics() -> None:
    """The copies draw the same random numbers, and begin with the same statistics."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Upsample(scale_factor=2)
    ).train()
    found = msr_cuda.verify(model, images(2, 3, 6, 6))
    assert found, found
    # Ahead of a batch norm in training, a bias does nothing; rounding leaves something.
    assert found.zeros == ["gradient of 0.bias"]
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_half_precision_models() -> None:
    found = msr_cuda.verify(UNet().bfloat16(), images(1, 3, 44, 32).bfloat16())
    assert found, found
    assert found.dtype == torch.bfloat16
    assert 1e-5 < found.precision[0].fused < 0.1


def test_nothing_fused_is_no_pass() -> None:
    with pytest.warns(UserWarning, match="nothing to fuse"):
        found = msr_cuda.verify(nn.Conv2d(3, 3, 1), images(1, 3, 4, 4))
    assert not found


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"verify: expected inputs to be a tensor, .* got int"):
        msr_cuda.verify(UNet(), 3)  # type: ignore[arg-type]
    model = UNet()
    model.cache = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match="verify: the model cannot be copied: Only Tensors"):
        msr_cuda.verify(model, images(1, 3, 44, 32))
