"""The report: every site accounted for, and what it saves."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from swapping import (
    Merge,
    UNet,
    images,
    merge_recipe,  # noqa: F401
    one_thread,  # noqa: F401
)
from torch import Tensor, nn

import msr_cuda
from msr_cuda import functional
from msr_cuda.swap import fuse, register, unfuse, unregister

# The report.


def test_report_lists_every_site() -> None:
    model = UNet()
    model.final = nn.Upsample(size=(45, 33), mode="lanczos")
    report = fuse(model)
    assert repr(report) == "<Report: 2 swapped, 1 skipped>"
    lines = str(report).splitlines()
    assert lines[0] == "2 fused, 1 left alone"
    assert [line.split()[0] for line in lines[3:]] == ["fused", "fused", "left"]
    for text in ("up1", "FusedUpsample: One gather", "final", "unknown mode 'lanczos'"):
        assert text in str(report)
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["swapped"][0]["names"] == ["up2"]
    assert plain["total"] is None


def test_report_as_tables() -> None:
    rich = pytest.importorskip("rich.console")
    model = UNet()
    model.up1 = nn.Upsample(size=(45, 33), mode="[bold]")  # no markup of rich's
    report = fuse(model)

    def printed() -> str:
        console = rich.Console(record=True, width=200, file=io.StringIO())
        console.print(report)
        return str(console.export_text())

    text = printed()
    assert text.startswith("2 fused, 1 left alone")
    assert "kernels saved" not in text
    model.up1 = nn.Upsample(scale_factor=2)
    report.measure(images(1, 3, 44, 32))
    text = printed()
    for cell in ("up2", "FusedUpsample: One gather", "unknown mode '[bold]'", "kernels saved"):
        assert cell in text, cell
    assert text.count("(1.00x)") == 3


@pytest.mark.usefixtures("merge_recipe")
def test_measure_counts_bytes_and_kernels() -> None:
    model = nn.ModuleDict({"merge": Merge(), "up": nn.Upsample(scale_factor=2)})

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor, skip: Tensor, *, times: int) -> Tensor:
            # Outside of every site: not counted.
            msr_cuda.resample(skip, scale_factor=2)
            for _ in range(times):
                y = self.parts["merge"](x, skip)
            y = self.parts["up"](y)
            msr_cuda.resample(y, scale_factor=2)
            return y

    whole = Model()
    report = fuse(whole)
    assert report.measure(images(2, 4, 5, 6), images(2, 4, 10, 12), times=3) is report
    merge, up = (site.traffic for site in report.swapped)
    small, large = 2 * 4 * 5 * 6 * 4, 2 * 4 * 10 * 12 * 4
    assert merge is not None
    assert up is not None
    assert merge.calls == 3
    # interpolate, sum, relu
    assert merge.eager_bytes == 3 * ((small + large) + 3 * large + 2 * large)
    assert merge.fused_bytes == 3 * (small + 2 * large)
    assert (merge.eager_launches, merge.fused_launches) == (9, 3)
    # A resampling alone saves nothing here, and is not said to.
    assert (up.calls, up.eager_bytes, up.fused_bytes) == (1, 5 * large, 5 * large)
    assert (up.saved_bytes, up.saved_launches) == (0, 0)
    assert report.total is not None
    assert report.total.saved_bytes == merge.saved_bytes == 3 * 4 * large
    assert report.total.calls == 4
    assert functional.observers == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in whole.modules())
    assert str(report).count("(1.00x)") == 1  # of the module that saves nothing
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["total"]["eager_bytes"] == merge.eager_bytes + up.eager_bytes
    assert (merge.fallback is None) == (not functional.unsupported_reasons([torch.rand(1, 1, 1)]))
    assert ("ran in plain PyTorch" in str(report)) == (merge.fallback is not None)


class Gather(nn.Module):
    """Any function of ours as a site, to see how it is counted."""

    def __init__(self, call: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError


class FusedGather(Gather):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(list(inputs))


def test_measure_counts_every_kind_of_call() -> None:
    a, b = torch.rand(1, 2, 8, 8), torch.rand(1, 2, 4, 4)
    large, small = 2 * 64 * 4, 2 * 16 * 4
    resampled = small + large
    weights = torch.ones(2)
    cases: list[tuple[Any, int, int, int]] = [
        (lambda x: msr_cuda.resample_sum(x), resampled + 3 * large, 2, large),
        (
            lambda x: msr_cuda.resample_sum(x, weights=weights),
            resampled + 4 * large + 3 * large,
            4,
            large,
        ),
        (lambda x: msr_cuda.resample_cat(x), resampled + 4 * large, 2, 2 * large),
        (
            lambda x: msr_cuda.resample_cat(x, activation="relu"),
            resampled + 4 * large + 4 * large,
            3,
            2 * large,
        ),
        (
            lambda x: msr_cuda.resample_sum(x, dtype=torch.float16),
            resampled + 3 * large + large + large // 2,
            3,
            large // 2,
        ),
    ]
    register(Gather)(FusedGather)
    try:
        for call, eager, launches, result in cases:
            model = Gather(call)
            traffic = fuse(model).measure(a, b).total
            assert traffic is not None
            assert (traffic.eager_bytes, traffic.eager_launches) == (eager, launches)
            assert (traffic.fused_bytes, traffic.fused_launches) == (large + small + result, 1)
    finally:
        unregister(FusedGather)


def test_measure_leaves_no_trace() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Upsample(scale_factor=2))
    report = fuse(model)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(4)
    state = torch.get_rng_state()
    report.measure(images(2, 3, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training

    with pytest.raises(RuntimeError):
        report.measure(images(2, 5, 4, 4))
    assert functional.observers == []
    assert not model[2]._forward_hooks
    assert not model[2]._forward_pre_hooks


def test_measure_of_what_is_not_fused_any_more() -> None:
    model = UNet()
    report = fuse(model)
    unfuse(model)
    with pytest.raises(RuntimeError, match=r"measure: expected up2 to have the class .*FusedUps"):
        report.measure(images(1, 3, 44, 32))
    report = fuse(nn.Upsample(scale_factor=2))
    with pytest.raises(RuntimeError, match="measure: the model of this report does not exist"):
        report.measure(images(1, 3, 44, 32))
