"""Losses and decisions of upsampled logits, in graphs: the upsampled logits are never made."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import require_or_skip
from graphs import Spy, assert_same, compile_with, count, outputs_and_gradients
from swapping import flatten, images, one_thread  # noqa: F401
from torch import Tensor, nn

from msr_cuda import functional, swap, testing

# Without kernels, nothing is fused by default.
pytestmark = pytest.mark.usefixtures("kernels")

CE, BCE = "resample_cross_entropy", "resample_binary_cross_entropy_with_logits"
ARGMAX = "resample_argmax"
SIZES = {1: ((7,), (15,)), 2: ((5, 6), (11, 15)), 3: ((3, 4, 2), (7, 8, 5))}


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Head(nn.Module):
    """A classifier, and what is done with its logits and a target."""

    def __init__(self, function: Callable[..., Any], rank: int = 2) -> None:
        super().__init__()
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.classifier = convolution(3, 4, 1)
        self.function = function

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        return self.function(self.classifier(x), *others)


def head(function: Callable[..., Any], rank: int = 2) -> Head:
    torch.manual_seed(rank)
    return Head(function, rank).double()


def features(rank: int = 2) -> Tensor:
    return images(2, 3, *SIZES[rank][0]).double()


def labels(rank: int = 2) -> Tensor:
    return torch.randint(0, 4, (2, *SIZES[rank][1]), generator=torch.Generator().manual_seed(7))


def with_ignored() -> Tensor:
    return labels().masked_fill(labels() == 3, 255)


def probabilities(rank: int = 2) -> Tensor:
    return images(2, 4, *SIZES[rank][1], seed=3).double().softmax(1)


def up(x: Tensor, y: Tensor, mode: str = "bilinear", align_corners: bool | None = None) -> Tensor:
    """To the size of a target, of classes or of one value per channel."""
    return F.interpolate(x, y.shape[2 - x.dim() :], mode=mode, align_corners=align_corners)


def weighted(x: Tensor, y: Tensor) -> Tensor:
    weight = torch.arange(1.0, 5, dtype=x.dtype)
    return F.cross_entropy(up(x, y), y, weight, ignore_index=255, label_smoothing=0.1)


def weighted_masks(x: Tensor, y: Tensor) -> Tensor:
    of_classes = y.mean((0, 2, 3)).reshape(-1, 1, 1)
    z = up(x, y, "nearest-exact")
    return F.binary_cross_entropy_with_logits(z, y, y[:, :1] + 1, pos_weight=of_classes)


def single_mask(x: Tensor, y: Tensor) -> Tensor:
    z = up(x[:, :1], y)
    return F.binary_cross_entropy_with_logits(z.squeeze(1), y.double() / 3, reduction="none")


def two_losses_and_a_metric(x: Tensor, y: Tensor) -> Tensor:
    z = up(x, y)
    loss = F.cross_entropy(z, y, ignore_index=255)
    with torch.no_grad():
        right = (z.argmax(1) == y).double().mean()
    masks = F.one_hot(y % 255, 4).movedim(-1, 1).to(x.dtype)
    return loss + right + F.binary_cross_entropy_with_logits(z, masks)


def by_factors(x: Tensor, y: Tensor) -> Tensor:
    z = nn.Upsample(scale_factor=(2, 3), mode="bilinear")(x)
    return F.cross_entropy(z, y.repeat(1, 1, 2)[:, :10, :18])


def by_a_factor_of_fixed_sizes(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.interpolate(x[:, :, 1:], scale_factor=1.5), y[:, :6, :9])


class Example(NamedTuple):
    """What is done with logits and a target, and the operators that the graph calls then."""

    function: Callable[[Tensor, Tensor], Tensor]
    target: Tensor
    operators: tuple[str, ...] = (CE,)
    rank: int = 2


LOSSES = {
    "classes": Example(lambda x, y: F.cross_entropy(up(x, y), y), labels()),
    "weights, smoothing and ignored pixels": Example(weighted, with_ignored()),
    "probabilities": Example(
        lambda x, y: F.cross_entropy(up(x, y, "bicubic"), y, label_smoothing=0.2), probabilities()
    ),
    "loss per pixel": Example(
        lambda x, y: F.cross_entropy(up(x, y), y, reduction="none"), labels()
    ),
    "sum": Example(
        lambda x, y: F.cross_entropy(up(x, y, "nearest"), y, reduction="sum"), labels()
    ),
    "of log_softmax": Example(
        lambda x, y: F.nll_loss(F.log_softmax(up(x, y), dim=1), y, ignore_index=1), labels()
    ),
    "module": Example(
        lambda x, y: nn.CrossEntropyLoss(ignore_index=255)(up(x, y), y), with_ignored()
    ),
    "scale factors": Example(by_factors, labels()),
    "scale factor": Example(by_a_factor_of_fixed_sizes, labels()),
    "1-D": Example(lambda x, y: F.cross_entropy(up(x, y, "linear"), y), labels(1), rank=1),
    "3-D": Example(
        lambda x, y: F.cross_entropy(up(x, y, "trilinear", True), y), labels(3), rank=3
    ),
    "smaller": Example(lambda x, y: F.cross_entropy(up(x, y), y), labels()[:, :3, :4]),
    "masks": Example(
        lambda x, y: F.binary_cross_entropy_with_logits(up(x, y), y), probabilities(), (BCE,)
    ),
    "weighted masks": Example(weighted_masks, probabilities(), (BCE,)),
    "masks per pixel, 3-D": Example(
        lambda x, y: nn.BCEWithLogitsLoss(reduction="none")(up(x, y, "trilinear"), y),
        probabilities(3),
        (BCE,),
        3,
    ),
    "a single mask": Example(single_mask, labels(), (BCE,)),
    "two losses and a metric": Example(
        two_losses_and_a_metric, with_ignored(), (CE, ARGMAX, BCE)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    """Values and gradients are those of the graph as it was."""
    function, target, operators, rank = LOSSES[name]
    # A target that needs a gradient needs the upsampled logits.
    model, spy = head(lambda x, y: function(x, y.detach()), rank), Spy()
    expected = outputs_and_gradients(model, (features(rank), target))
    with swap.recording() as reports:
        actual = outputs_and_gradients(compile_with(model, spy), (features(rank), target))
    assert_same(expected, {k.replace("_orig_mod.", ""): v for k, v in actual.items()})
    assert spy.count() == Counter(operators)
    (report,) = reports
    assert [site.operator for site in report.swapped] == list(operators)
    assert all(site.traffic.saved_bytes > 0 for site in report.swapped)


def pair(x: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return F.interpolate(x, size, mode="bilinear").softmax(1).max(1)


def thrice(x: Tensor, size: tuple[int, ...]) -> tuple[Tensor, ...]:
    z = F.interpolate(x, size, mode="bilinear")
    return z.argmax(1), torch.max(z, dim=-3).indices, z.softmax(1).max(1, keepdim=True)[0]


DECISIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "argmax": (lambda x, size: F.interpolate(x, size).argmax(1), 2, 1),
    "argmax, function": (
        lambda x, size: torch.argmax(nn.functional.interpolate(x, size, mode="nearest-exact"), -3),
        2,
        1,
    ),
    "keepdim, 1-D": (
        lambda x, size: F.interpolate(x, size, mode="linear").argmax(dim=1, keepdim=True), 1, 1
    ),
    "3-D": (
        lambda x, size: F.interpolate(x, size, mode="trilinear", align_corners=True).argmax(1), 3, 1
    ),
    "indices of max": (lambda x, size: F.interpolate(x, size).max(dim=1)[1], 2, 1),
    "the first one": (lambda x, size: F.interpolate(x, size).topk(1, dim=1)[1], 2, 1),
    "of softmax": (
        lambda x, size: F.softmax(F.interpolate(x, size, mode="bicubic"), dim=1).argmax(1), 2, 1
    ),
    "probability": (pair, 2, 1),
    "factor": (lambda x, size: F.interpolate(x, scale_factor=2, mode="bilinear").argmax(1), 2, 1),
    "three": (thrice, 2, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions(name: str) -> None:
    function, rank, calls = DECISIONS[name]
    model, spy = head(lambda x: function(x, SIZES[rank][1]), rank), Spy()
    with torch.no_grad():
        expected = flatten(model(features(rank)))
        actual = flatten(compile_with(model, spy)(features(rank)))
    assert_same(expected, actual)  # of classes, which are below 1e9, that is equality
    assert spy.count() == {ARGMAX: calls}


def test_decisions_of_rounded_logits() -> None:
    """PyTorch rounds the upsampled logits, too, so other classes may win where two are close."""
    model = head(lambda x: pair(x, SIZES[2][1])).bfloat16()
    x = features().bfloat16()
    with torch.no_grad():
        value, index = compile_with(model, Spy())(x)
        logits = F.interpolate(model.classifier(x).double(), SIZES[2][1], mode="bilinear")
    truth = logits.softmax(1)
    assert (value.dtype, index.dtype) == (torch.bfloat16, torch.int64)
    testing.assert_within(value, truth.amax(1))
    chosen = truth.gather(1, index[:, None])[:, 0]
    testing.assert_within(chosen.float(), truth.amax(1))


# Dynamic shapes.

DYNAMIC: dict[str, Callable[..., Any]] = {
    "sizes": lambda x, y: (F.cross_entropy(up(x, y), y), up(x, y).argmax(1)),
    "factor": lambda x, y: (
        F.cross_entropy(F.interpolate(x, scale_factor=2), y),
        nn.Upsample(scale_factor=2)(x).argmax(1),
    ),
    "masks": lambda x, y: F.binary_cross_entropy_with_logits(
        up(x, y), F.one_hot(y, 4).movedim(-1, 1).to(x.dtype)
    ),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_one_graph_for_all_sizes(name: str) -> None:
    model, spy = head(DYNAMIC[name]), Spy()
    compiled = compile_with(model, spy, dynamic=True, inner="aot_eager")
    with swap.recording() as reports:
        for n, h, w in ((2, 5, 7), (3, 6, 11), (5, 9, 4)):
            x = images(n, 3, h, w).double()
            y = torch.randint(0, 4, (n, 2 * h, 2 * w))
            expected = outputs_and_gradients(model, (x, y))
            actual = outputs_and_gradients(compiled, (x, y))
            assert_same(expected, {k.replace("_orig_mod.", ""): v for k, v in actual.items()})
    (report,) = reports  # one graph was compiled
    assert [s.operator for s in report.swapped] == ([BCE] if name == "masks" else [CE, ARGMAX])
    assert not report.skipped and report.total is None


# Autocast.


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_gives_the_same_dtypes_and_no_larger_errors(inside: bool) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        z = up(x, y)
        if inside:
            with torch.autocast("cpu", enabled=False):
                return (F.cross_entropy(z.float(), y),)
        masks = F.one_hot(y, 4).movedim(-1, 1).to(x.dtype)
        return F.cross_entropy(z, y), F.binary_cross_entropy_with_logits(z, masks)

    model, x, y, spy = head(function), features(), labels(), Spy()
    truth = outputs_and_gradients(model, (x, y))
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = outputs_and_gradients(model, (x.float(), y))
        actual = outputs_and_gradients(compile_with(model, spy), (x.float(), y))
    assert spy.count() == Counter([CE] if inside else [CE, BCE])
    actual = {k.replace("_orig_mod.", ""): v for k, v in actual.items()}
    assert actual.keys() == truth.keys()
    for name, value in truth.items():
        assert actual[name].dtype == expected[name].dtype
        theirs, ours = ((found[name] - value).abs().max() for found in (expected, actual))
        assert 0 < ours <= testing.SWAPPED_ERROR_RATIO * theirs, name


# What is left.


def written_between(x: Tensor, y: Tensor) -> Tensor:
    x = x * 1
    z = up(x, y)
    x.mul_(2)
    return F.cross_entropy(z, y) + x.sum()


def changed_later(x: Tensor, y: Tensor) -> Tensor:
    x = x * 1
    loss = F.cross_entropy(up(x, y), y)
    x.mul_(2)
    return loss + x.sum()


def of_a_target(x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, up(x, x.new_empty(2, 4, 5, 6)).exp())


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "output": (
        lambda x, y: (lambda z: (F.cross_entropy(z, y), z))(up(x, y)),
        "the upsampled logits also go to the output",
    ),
    "both": (
        lambda x, y: (lambda z: F.cross_entropy(z, y) + z.exp().mean())(up(x, y)),
        "the upsampled logits also go to exp",
    ),
    "target": (of_a_target, "its result goes to exp"),
    "target of itself": (
        lambda x, y: (lambda z: F.binary_cross_entropy_with_logits(z, z))(
            up(x, x.new_empty(2, 4, 9, 9))
        ),
        "its result goes to binary_cross_entropy_with_logits",
    ),
    "gradient of a target": (
        lambda x, y: F.binary_cross_entropy_with_logits(up(x, x.exp()), x.sigmoid()),
        "its target may need a gradient",
    ),
    "gradient of a weight": (
        lambda x, y: F.cross_entropy(
            up(x, y), F.one_hot(y, 4).movedim(-1, 1).double(), x.mean((0, 2, 3)).exp()
        ),
        "its weight may need a gradient",
    ),
    "result in another order": (
        lambda x, y: F.binary_cross_entropy_with_logits(
            up(x.contiguous(memory_format=torch.channels_last), y),
            F.one_hot(y, 4).movedim(-1, 1).double(),
            reduction="none",
        ),
        "PyTorch makes the result channels_last",
    ),
    "antialiased": (
        lambda x, y: F.cross_entropy(
            F.interpolate(x, y.shape[1:], mode="bilinear", antialias=True), y
        ),
        "it is antialiased",
    ),
    "coordinates by a factor": (
        lambda x, y: F.cross_entropy(
            F.interpolate(x, scale_factor=1.3, mode="bilinear"), y[:, :6, :7]
        ),
        "coordinates do not follow from the sizes",
    ),
    "the first two": (lambda x, y: up(x, y).topk(2, dim=1)[0], "its result goes to topk"),
    "largest logits": (
        lambda x, y: up(x, y).max(1)[0],
        "the largest logits of max_1 are used, too",
    ),
    "largest probability with a gradient": (
        lambda x, y: up(x, y).softmax(1).max(1)[0],
        "the winning probability may need a gradient",
    ),
    "cross entropy of probabilities": (
        lambda x, y: F.cross_entropy(up(x, y).softmax(1), y),
        "no operator takes the logits through softmax, cross_entropy",
    ),
    "likelihood of logits": (
        lambda x, y: F.nll_loss(up(x, y), y),
        "no operator takes the logits through nll_loss",
    ),
    "gradients off": (
        lambda x, y: F.cross_entropy(without_gradient(x, y), y) + x.mean(),
        "_set_grad_enabled is called between its nodes",
    ),
    "written in between": (written_between, "writes to x in between"),
    "changed later": (changed_later, "changes x, which the backward would need"),
}  # fmt: skip


def without_gradient(x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return up(x, y)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    function, reason = REFUSED[name]
    model, spy = head(function), Spy()
    expected = outputs_and_gradients(model, (features(), labels()))
    with swap.recording() as reports:
        actual = outputs_and_gradients(compile_with(model, spy), (features(), labels()))
    assert_same(expected, {k.replace("_orig_mod.", ""): v for k, v in actual.items()})
    assert not {CE, BCE, ARGMAX} & set(spy.count())
    assert reason in str(reports[0])


def test_auto_leaves_what_no_kernel_spares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "unsupported_reasons", lambda inputs: ["nothing was compiled"])
    model = head(LOSSES["classes"].function)
    for fuse, fused in (("auto", 0), ("all", 1)):
        torch._dynamo.reset()
        with swap.recording() as reports:
            compile_with(model, Spy(), fuse=fuse)(features(), labels())
        (report,) = reports
        assert [site.operator for site in report.swapped] == [CE] * fused
        assert ('nothing was compiled (fuse="all" fuses it)' in str(report)) is not bool(fused)


# Through torch.fx.


class Criterion(nn.Module):
    """A model that computes its loss with a module."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.classifier, self.up = nn.Conv2d(3, 4, 1), nn.Upsample(SIZES[2][1], mode="bilinear")
        self.criterion = criterion

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self.up(self.classifier(x)), y)


CRITERIA = {
    CE: (nn.CrossEntropyLoss(torch.arange(1.0, 5), ignore_index=255), with_ignored()),
    BCE: (nn.BCEWithLogitsLoss(pos_weight=torch.rand(4, 1, 1)), probabilities()),
}


@pytest.mark.parametrize("operator", CRITERIA)
def test_modules_of_a_traced_graph(operator: str) -> None:
    criterion, target = CRITERIA[operator]
    model = Criterion(copy.deepcopy(criterion)).double()
    graph, report = swap.rewrite(model, (features(), target))
    assert count(graph) == {operator: 1}
    assert report.swapped[0].nodes == ("up", "criterion")
    inputs = (features(), target)
    assert_same(outputs_and_gradients(model, inputs), outputs_and_gradients(graph, inputs))
    with pytest.raises(ValueError, match=f"{operator}: expected a target of"):
        graph(features(), target[..., 1:])
    model.criterion.register_forward_hook(lambda *_: None)
    _, report = swap.rewrite(model, (features(), target))
    assert "a hook on criterion would be bypassed" in str(report)


# Training.


class Network(nn.Module):
    """A small segmentation network that returns its loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, 2, 1)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = F.interpolate(self.body(x), size=y.shape[-2:], mode="bilinear", align_corners=False)
        return nn.CrossEntropyLoss(ignore_index=255)(z, y)


def train(network: nn.Module, steps: int) -> Tensor:
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    curve = []
    for step in range(steps):
        x = images(2, 3, 24, 32, seed=step)
        y = (x.mean(1) > 0).long() + (x[:, 0] > 1)
        y[:, :2] = 255
        loss = network(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach())
    return torch.stack(curve)


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_training(inner: str) -> None:
    torch.manual_seed(0)
    network = Network()
    expected = train(copy.deepcopy(network), 20)
    compiled = torch.compile(
        network, backend=swap.backend, options={"inner": inner}, fullgraph=True
    )
    with swap.recording() as reports:
        actual = train(compiled, 20)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    (report,) = reports
    (site,) = report.swapped
    assert site.operator == CE and "nn.CrossEntropyLoss(ignore_index=255)(z, y)" in str(report)
    # Logits, their upsampling, the logarithm of their softmax, the labels and the loss.
    low, high, target = 4 * 2 * 3 * 6 * 8, 4 * 2 * 3 * 24 * 32, 8 * 2 * 24 * 32
    assert site.traffic.eager_bytes == low + 4 * high + target + 4
    assert site.traffic.fused_bytes == low + target + 4 * 2 * 24 * 32 + 4
    assert f"saves {site.traffic.saved_bytes / 1e6:.3f} of" in str(report)


# A model of transformers, whose forward computes the loss.


class LossOf(nn.Module):
    """What a model gives for images and labels."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.model, self.y = model, y

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x, labels=self.y).loss


@pytest.mark.parametrize("classes", [1, 5])
def test_a_model_that_computes_its_loss(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = require_or_skip("transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 16, 16],
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=16,
        num_labels=classes,
    )
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(config).double().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias"):  # softmax makes its gradient zero, but for rounding
            parameter.requires_grad_(False)
    y = torch.randint(0, classes + 1, (1, 64, 64))
    y[y == classes] = config.semantic_loss_ignore_index
    inputs, spy = (images(1, 3, 64, 64).double(),), Spy()
    expected = outputs_and_gradients(LossOf(model, y), inputs)
    actual = outputs_and_gradients(compile_with(LossOf(model, y), spy, fullgraph=False), inputs)
    assert_same(expected, {k.replace("_orig_mod.", ""): v for k, v in actual.items()})
    found = spy.count()
    assert found[BCE if classes == 1 else CE] == 1 and not found["interpolate"]
