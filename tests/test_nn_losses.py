"""Losses as modules, and a network trained with one of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import msr_cuda
from msr_cuda.nn import ResampleBCEWithLogitsLoss, ResampleCrossEntropyLoss


def test_cross_entropy_is_its_function() -> None:
    logits, target = torch.randn(2, 5, 4, 6), torch.randint(0, 5, (2, 8, 12))
    weight = torch.rand(5)
    options: dict[str, Any] = dict(
        mode="bilinear", align_corners=True, ignore_index=2, label_smoothing=0.2, reduction="sum"
    )
    loss = ResampleCrossEntropyLoss(weight=weight, **options)
    expected = msr_cuda.resample_cross_entropy(logits, target, weight=weight, **options)
    assert torch.equal(loss(logits, target), expected)
    assert repr(loss) == (
        "ResampleCrossEntropyLoss(mode='bilinear', align_corners=True, ignore_index=2, "
        "label_smoothing=0.2, reduction='sum')"
    )
    # As nn.CrossEntropyLoss has it, so that checkpoints of one fit the other.
    assert list(loss.state_dict()) == list(nn.CrossEntropyLoss(weight).state_dict())
    assert list(ResampleCrossEntropyLoss().state_dict()) == []


def test_binary_cross_entropy_is_its_function() -> None:
    logits, target = torch.randn(2, 3, 4, 6), torch.rand(2, 3, 8, 12)
    weight, pos_weight = torch.rand(3, 1, 1), torch.rand(3, 1, 1)
    options: dict[str, Any] = dict(mode="nearest", reduction="none")
    loss = ResampleBCEWithLogitsLoss(weight=weight, pos_weight=pos_weight, **options)
    expected = msr_cuda.resample_binary_cross_entropy_with_logits(
        logits, target, weight=weight, pos_weight=pos_weight, **options
    )
    assert torch.equal(loss(logits, target), expected)
    assert repr(loss) == (
        "ResampleBCEWithLogitsLoss(mode='nearest', align_corners=None, reduction='none')"
    )
    theirs = nn.BCEWithLogitsLoss(weight, pos_weight=pos_weight)
    assert list(loss.state_dict()) == list(theirs.state_dict())


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of bright discs and dark squares on noise, and the class of each pixel."""
    side = 32
    images = torch.randn(count, 3, side, side, generator=generator) * 0.3
    labels = torch.zeros(count, side, side, dtype=torch.int64)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for i in range(count):
        y, x, r = torch.randint(6, 26, (3,), generator=generator).tolist()
        disc = (rows - y) ** 2 + (columns - x) ** 2 < (r // 3 + 2) ** 2
        y, x, r = torch.randint(6, 26, (3,), generator=generator).tolist()
        square = torch.maximum((rows - y).abs(), (columns - x).abs()) < r // 4 + 2
        for kind, mask in ((1, disc), (2, square)):
            labels[i][mask] = kind
            images[i][:, mask] += 1.0 if kind == 1 else -1.0
    labels[:, 0] = 255  # a border without labels
    return images, labels


@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_training_gives_the_same_losses(kind: str, kernel: str) -> None:
    """200 steps with the fused loss, and with the upsampled logits."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1),
        nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 3, 1),
    ).to(kernel)  # fmt: skip
    fused: nn.Module = (
        ResampleCrossEntropyLoss(mode="bilinear", ignore_index=255, label_smoothing=0.05)
        if kind == "classes"
        else ResampleBCEWithLogitsLoss(mode="bilinear")
    )

    def plain(logits: Tensor, target: Tensor) -> Tensor:
        upsampled = F.interpolate(logits, target.shape[-2:], mode="bilinear")
        if kind == "classes":
            return F.cross_entropy(upsampled, target, ignore_index=255, label_smoothing=0.05)
        return F.binary_cross_entropy_with_logits(upsampled, target)

    curves = []
    for criterion in (fused, plain):
        model = copy.deepcopy(net)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        curve = []
        for _ in range(200):
            images, labels = (x.to(kernel) for x in scenes(4, generator))
            target = labels
            if kind == "masks":
                target = F.one_hot(labels % 255, 3).movedim(-1, 1).float()
            loss = criterion(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.detach())
        curves.append(torch.stack(curve))
    ours, theirs = curves
    assert theirs[-20:].mean() < 0.5 * theirs[:5].mean()  # it learns
    # Float noise, which training amplifies: small at first, and small on average.
    torch.testing.assert_close(ours[:20], theirs[:20], rtol=1e-4, atol=1e-5)
    assert (ours - theirs).abs().mean() < 0.01 * theirs.mean()
