"""Recipes for detectron2, YOLOX and basicsr on minimal models of our own: what they decline."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import need_kernel
from swap_checks import fused_copy, get, run
from swapping import one_thread  # noqa: F401
from torch import Tensor, nn
from tracing import trace

from msr_cuda import testing
from msr_cuda.swap import fuse

PANOPTIC = "Semantic head of Panoptic FPN, training"


def test_a_loss_in_float32() -> None:
    """That of detectron2's semantic head is, also in float64; so it is compared in float32."""
    entry = get("detectron2", PANOPTIC)
    model = entry.new()
    twin, _ = fused_copy(model)
    x = entry.images()
    truth = run(entry, copy.deepcopy(model).double(), x.double())
    expected, actual = run(entry, model, x), run(entry, twin, x)
    assert actual[0].keys() == expected[0].keys() and actual[1].keys() == expected[1].keys()
    for key, value in expected[0].items():
        torch.testing.assert_close(actual[0][key], value)
    before, after = (
        torch.stack([(f[1][k].double() - v).norm() / v.norm() for k, v in truth[1].items()])
        for f in (expected, actual)
    )
    assert after.median() <= testing.SWAPPED_ERROR_RATIO * before.median()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_dtype_of_a_loss(dtype: torch.dtype) -> None:
    entry = get("detectron2", PANOPTIC)
    model = entry.new().to(dtype)
    twin, _ = fused_copy(model)
    x = entry.images(dtype)
    expected, actual = (m(x)[1]["loss_sem_seg"] for m in (model, twin))
    assert actual.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=0)


class Half(nn.CrossEntropyLoss):
    """A loss of one's own."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) / 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Half(ignore_index=255),
        lambda: nn.CrossEntropyLoss(torch.arange(1.0, 6), ignore_index=255),
        lambda: nn.CrossEntropyLoss(ignore_index=255, reduction="sum"),
        lambda: nn.CrossEntropyLoss(ignore_index=255, label_smoothing=0.1),
    ],
)
@pytest.mark.parametrize("name", ["DeepLabV3+, training", "DeepLabV3, training"])
def test_another_loss_is_called(name: str, make: Callable[[], nn.Module]) -> None:
    entry = get("detectron2", name)
    model: Any = entry.new()
    model.head.loss = make()
    twin, report = fused_copy(model)
    assert report.skipped == []
    expected, actual = (m(entry.images())[1]["loss_sem_seg"] for m in (model, twin))
    torch.testing.assert_close(actual, expected)


def test_a_hook_on_a_loss() -> None:
    model: Any = get("detectron2", "DeepLabV3, training").new()
    model.head.loss.register_forward_hook(lambda *_: None)
    (site,) = [site for site in fuse(model).skipped if "head" in site.names]
    assert site.how == "a hook on loss would be bypassed"


def test_a_hook_on_an_upsampling() -> None:
    model: Any = get("detectron2", PANOPTIC).new()
    model.head.p3[-1].register_forward_hook(lambda *_: None)
    (site,) = [site for site in fuse(model).skipped if "head" in site.names]
    assert "would be bypassed" in site.how


def test_losses_of_ones_own() -> None:
    model: Any = get("detectron2", PANOPTIC).new()
    model.head.losses = lambda predictions, targets: {}
    (site,) = [site for site in fuse(model).skipped if "head" in site.names]
    assert site.how.endswith("SemSegFPNHead.losses is not a known one")


@pytest.mark.parametrize(
    ("library", "name", "size"),
    [("detectron2", "FPN", (60, 92)), ("yolox", "YOLOPAFPN", (72, 96))],
)
def test_sizes_that_the_model_refuses(library: str, name: str, size: tuple[int, int]) -> None:
    model = get(library, name).new()
    twin, _ = fused_copy(model)
    messages = []
    for module in (model, twin):
        with pytest.raises(RuntimeError) as caught:
            module(torch.rand(1, 3, *size))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_pools_of_another_size() -> None:
    get("detectron2", "FPN")
    from detectron2.layers import ASPP

    aspp = ASPP(4, 6, (1, 2, 3), (4, 6)).eval()
    twin, _ = fused_copy(aspp)
    x = torch.rand(1, 4, 8, 12)
    # Where the pools leave more than a pixel, too, and with dropout.
    torch.testing.assert_close(twin(x), aspp(x))
    aspp.dropout = twin.dropout = 0.5
    results = []
    for module in (aspp, twin):
        torch.manual_seed(1)
        results.append(module.train()(x))
    torch.testing.assert_close(*results)
    for module in (aspp, twin):
        with pytest.raises(ValueError, match=r"\(4, 6\)"):
            module(x[..., 1:])


def test_nothing_of_a_fused_loss_is_upsampled() -> None:
    need_kernel("cpu")
    entry = get("detectron2", "DeepLabV3, training")
    model = entry.new()
    fuse(model)
    x = entry.images()
    assert [c for c in trace(model, lambda: model(x)) if c.function == "interpolate"] == []
