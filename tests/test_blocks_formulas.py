"""Every block against a transcription of its formula in plain PyTorch, in float64.

The transcriptions use ``torch.nn.functional`` alone, and the block's own parameters.
"""

from __future__ import annotations

import math
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from model_libraries import timm  # noqa: F401
from torch import Tensor, nn

from msr_cuda.nn import (
    AttentionGate,
    BasicBlock,
    Bottleneck,
    ConcatFusion,
    ExchangeUnit,
    ImagePyramid,
    LearnedScale,
    ParallelBranches,
    ResidualFusion,
    ScaleAttention,
    ScaleConvolution,
    ScaleInvarianceLoss,
    SqueezeGate,
    gaussian_blur,
    make_fusion,
)

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def up(x: Tensor, size: Any, **options: Any) -> Tensor:
    """PyTorch's own linear interpolation."""
    return F.interpolate(x, tuple(size), mode=LINEAR[x.dim() - 2], **options)


def maps(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(s, dtype=torch.float64) for s in shapes]


def randomized(module: nn.Module) -> Any:
    return networks.randomize(module.double())


THREE = [(2, 4, 9, 7), (2, 4, 5, 4), (2, 4, 3, 2)]

# Pyramids


def test_antialiased_pyramid() -> None:
    """Antialiased linear resampling to round(s n), the input itself at scale 1."""
    (x,) = maps((2, 3, 21, 30))
    levels = ImagePyramid([1.0, 0.5, 0.3, 1.5])(x)
    assert levels[0] is x
    for level, size in zip(levels[1:], [(11, 15), (6, 9), (32, 45)], strict=True):
        networks.assert_same(level, up(x, size, antialias=True))


def test_gaussian_pyramid() -> None:
    """Burt and Adelson 1983, with the sigma of Lowe 2004: blur^2 (1/s^2 - 1), then sampling."""
    (x,) = maps((2, 3, 21, 30))
    half, double = ImagePyramid([0.5, 2.0], filter="gaussian", blur=0.7)(x)
    sigma = 0.7 * math.sqrt(3)
    radius = math.ceil(3 * sigma)
    taps = [math.exp(-(j**2) / (2 * sigma**2)) for j in range(-radius, radius + 1)]
    line = torch.tensor(taps, dtype=torch.float64) / math.fsum(taps)
    padded = F.pad(x, [radius] * 4, mode="replicate")
    kernel = torch.outer(line, line).expand(3, 1, -1, -1)
    networks.assert_same(half, up(F.conv2d(padded, kernel, groups=3), (11, 15)))
    networks.assert_same(double, up(x, (42, 60)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gaussian_blur_keeps_constants_and_spreads_an_impulse(dims: int) -> None:
    flat = torch.full((1, 1, *[5] * dims), 3.0, dtype=torch.float64)
    networks.assert_same(gaussian_blur(flat, 2.0), flat)
    impulse = torch.zeros(1, 1, *[31] * dims, dtype=torch.float64)
    impulse[(0, 0, *[15] * dims)] = 1
    blurred = gaussian_blur(impulse, 1.5)
    position = torch.arange(31, dtype=torch.float64) - 15
    for axis in range(dims):
        others = [2 + other for other in range(dims) if other != axis]
        profile = blurred.sum(others).flatten() if others else blurred.flatten()
        torch.testing.assert_close((profile * position).sum().item(), 0.0, atol=1e-12, rtol=0)
        # Sampled and cut off at 5 of 1.5 standard deviations: a percent narrower.
        assert abs((profile * position**2).sum().item() / 1.5**2 - 1) < 0.02


# Convolutions over scales


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_locally_scale_invariant_convolution(dims: int) -> None:
    """Kanazawa et al. 2014: max over scales of the responses, brought back."""
    sizes = {1: (20,), 2: (20, 13), 3: (8, 5, 6)}
    (x,) = maps((2, 3, *sizes[dims]))
    conv = randomized(ScaleConvolution(3, 4, 3, scales=[1.0, 1.5, 2.0], dims=dims))
    responses = []
    for scale in (1.0, 1.5, 2.0):
        size = [int(n * scale + 0.5) for n in x.shape[2:]]
        transformed = up(x, size)
        response = CONVOLVE[dims](transformed, conv.conv.weight, conv.conv.bias, padding=1)
        responses.append(up(response, x.shape[2:]))
    networks.assert_same(conv(x), torch.stack(responses).amax(0))


def test_strided_convolution_at_antialiased_scales() -> None:
    (x,) = maps((2, 4, 21, 30))
    conv = randomized(ScaleConvolution(4, 6, 5, scales=[0.5, 1.0], fusion="softmax", stride=2,
                                       groups=2, bias=False))  # fmt: skip
    responses = [
        up(F.conv2d(level, conv.conv.weight, stride=2, padding=2, groups=2), (11, 15))
        for level in (up(x, (11, 15), antialias=True), x)
    ]
    a, b = conv.fusion.weight.softmax(0)
    networks.assert_same(conv(x), a * responses[0] + b * responses[1])


def test_scale_convolution_sees_a_pattern_of_half_the_size() -> None:
    """What the block is for: its response changes less than that of a convolution."""

    def blob(sigma: float, size: int) -> Tensor:
        """The Laplacian of a Gaussian, of the same height for any sigma."""
        at = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / sigma
        radius = at.square().unsqueeze(0) + at.square().unsqueeze(1)
        return ((2 - radius) * torch.exp(-radius / 2)).view(1, 1, size, size)

    responses = []
    for scales in ([1.0], [1.0, 2.0]):
        conv = ScaleConvolution(1, 1, 25, scales=scales, bias=False).double()
        conv.conv.weight = nn.Parameter(blob(3.0, 25))
        small, large = (conv(blob(sigma, 40)).amax().item() for sigma in (1.5, 3.0))
        responses.append(small / large)
    plain, several = responses
    assert plain < 0.3
    assert abs(1 - several) < abs(1 - plain) / 2  # not 1: interpolation blurs the pattern


# Attention and learned scales


def softmax_sum(inputs: list[Tensor], scores: Tensor) -> Tensor:
    """sum_i softmax(scores)_i R_i(x_i), scores [N, S, ...] broadcastable to [N, S, C, *size]."""
    weights = scores.softmax(1)
    size = inputs[0].shape[2:]
    total = torch.zeros_like(inputs[0])
    for i, x in enumerate(inputs):
        total = total + weights[:, i] * up(x, size)
    return total


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_attention_per_pixel(kernel_size: int) -> None:
    """Liu et al. 2019 (ASFF) with 1x1, Chen et al. 2016 with 3x3 scores."""
    x = maps(*THREE)
    block = randomized(ScaleAttention(4, 3, hidden=5, kernel_size=kernel_size))
    size = x[0].shape[2:]
    compressed = [
        up(F.conv2d(m, p.weight, p.bias), size) for m, p in zip(x, block.compress, strict=True)
    ]
    score = F.conv2d(
        torch.cat(compressed, 1).relu(), block.score.weight, block.score.bias,
        padding=kernel_size // 2,
    )  # fmt: skip
    networks.assert_same(block(x), softmax_sum(x, score.unsqueeze(2)))
    assert block.scores(x).shape == (2, 3, 1, 9, 7)


def test_attention_per_image() -> None:
    """Chen et al. 2016 with one weight for each scale: of the means over positions."""
    x = maps(*THREE)
    block = randomized(ScaleAttention(4, 3, per="image", hidden=5))
    pooled = torch.cat([m.mean((2, 3)) for m in x], 1)
    hidden = F.linear(pooled, block.squeeze.weight, block.squeeze.bias).relu()
    score = F.linear(hidden, block.score.weight, block.score.bias)
    networks.assert_same(block(x), softmax_sum(x, score.view(2, 3, 1, 1, 1)))


def test_attention_per_channel() -> None:
    """Li et al. 2019 (SKNet), equations 1 to 6, without the batch norm."""
    x = maps((2, 4, 9, 7), (2, 4, 9, 7))
    block = randomized(ScaleAttention(4, 2, per="channel", hidden=5))
    fused = x[0] + x[1]
    z = F.linear(fused.mean((2, 3)), block.squeeze.weight, block.squeeze.bias).relu()
    score = F.linear(z, block.score.weight, block.score.bias)
    networks.assert_same(block(x), softmax_sum(x, score.view(2, 2, 4, 1, 1)))


@pytest.mark.parametrize("per", ["pixel", "image", "channel"])
def test_attention_starts_as_the_mean(per: str) -> None:
    x = maps(*THREE)
    block = ScaleAttention(4, 3, per=per).double()
    mean = torch.stack([up(m, (9, 7)) for m in x]).mean(0)
    networks.assert_same(block(x), mean)


@pytest.mark.parametrize("channels", [None, 4])
def test_learned_scale(channels: int | None) -> None:
    x = maps(*THREE)
    block = randomized(LearnedScale([1.0, 0.5, 0.25], channels=channels, width=0.7))
    place = torch.tensor([0.0, -1.0, -2.0], dtype=torch.float64).view(3, 1)
    a = (-((place - block.log_scale) ** 2) / (2 * 0.7**2)).softmax(0)
    total = sum(a[i].view(1, -1, 1, 1) * up(m, (9, 7)) for i, m in enumerate(x))
    networks.assert_same(block(x), total)
    networks.assert_same(block.scale, 2 ** block.log_scale.detach())


def test_learned_scale_finds_a_scale() -> None:
    """Gradient descent moves the scale to that of the map which the target is made of."""
    x = maps((1, 2, 16, 16), (1, 2, 8, 8), (1, 2, 4, 4))
    target = up(x[2], (16, 16))
    block = LearnedScale([1.0, 0.5, 0.25], initial=0.7).double()
    optimizer = torch.optim.Adam(block.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (block(x) - target).square().mean().backward()
        optimizer.step()
    assert block.scale.item() < 0.3


# Fusion


@pytest.mark.parametrize("weights", [None, "softmax", "fast"])
def test_residual_fusion(weights: str | None) -> None:
    """He et al. 2016 across scales; weights as Tan et al. 2020, section 3.3."""
    x = maps((2, 3, 9, 7), (2, 4, 5, 4), (2, 2, 3, 2))
    block = randomized(ResidualFusion([3, 4, 2], 4, weights=weights))
    terms = []
    for m, p in zip(x, block.projections, strict=True):
        terms.append(up(m if m.shape[1] == 4 else F.conv2d(m, p.weight, p.bias), (9, 7)))
    factors = torch.ones(3, dtype=torch.float64)
    if weights == "softmax":
        factors = block.sum.weight.softmax(0)
    elif weights == "fast":
        factors = block.sum.weight.relu() / (block.sum.weight.relu().sum() + 1e-4)
    expected = sum(f * t for f, t in zip(factors, terms, strict=True))
    networks.assert_same(block(x), torch.relu(expected))  # type: ignore[arg-type]


@pytest.mark.parametrize("training", [True, False])
def test_concat_fusion(training: bool) -> None:
    """U-Net's concatenation of all scales at once (HRNetV2), a 1x1 convolution, BN, ReLU."""
    x = maps((2, 3, 9, 7), (2, 4, 5, 4))
    block = randomized(ConcatFusion([3, 4], 5)).train(training)
    joined = torch.cat([x[0], up(x[1], (9, 7))], 1)
    mixed = F.conv2d(joined, block.conv.weight)
    norm = block.norm
    expected = F.batch_norm(
        mixed, norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias,
        training,
    ).relu()  # fmt: skip
    networks.assert_same(block(x), expected)


@pytest.mark.parametrize("kind", ["sum", "softmax", "fast", "max", "concat", "attention", "scale"])
def test_fusions_by_name(kind: str) -> None:
    x = maps(*THREE)
    block = randomized(make_fusion(kind, [1.0, 0.5, 0.25], 4))
    terms = torch.stack([up(m, (9, 7)) for m in x])
    if kind == "max":
        expected = terms.amax(0)
    elif kind == "concat":
        expected = randomized_like(ConcatFusion([4, 4, 4], 4), block)(x)
    elif kind == "attention":
        expected = randomized_like(ScaleAttention(4, 3), block)(x)
    elif kind == "scale":
        expected = randomized_like(LearnedScale([1.0, 0.5, 0.25]), block)(x)
    else:
        weight = torch.ones(3, dtype=torch.float64) if kind == "sum" else block.weight
        if kind == "softmax":
            weight = weight.softmax(0)
        elif kind == "fast":
            weight = weight.relu() / (weight.relu().sum() + 1e-4)
        expected = torch.einsum("s,sncyx->ncyx", weight, terms)
    networks.assert_same(block(x), expected)


def randomized_like(module: nn.Module, other: nn.Module) -> Any:
    module.double().load_state_dict(other.state_dict())
    return module


# Branches


def exchanged(unit: Any, x: list[Tensor]) -> list[Tensor]:
    """Wang et al. 2020 (HRNet): y_i = relu(sum_j F_ij(x_j)), in one loop after another."""
    results = []
    for i, target in enumerate(x):
        total = torch.zeros_like(target)
        for j, source in enumerate(x):
            layers = unit.fuse_layers[i][j]
            if i == j:
                term = source
            elif j > i:
                term = F.interpolate(layers[1](layers[0](source)), target.shape[2:])
            else:
                term = source
                for step, layer in enumerate(layers):
                    term = layer[1](layer[0](term))
                    if step < i - j - 1:
                        term = term.relu()
            total = total + term
        results.append(total.relu())
    return results


def test_exchange_unit() -> None:
    x = maps((2, 3, 17, 11), (2, 4, 9, 6), (2, 5, 5, 3))
    unit = randomized(ExchangeUnit([3, 4, 5])).eval()
    for y, truth in zip(unit(x), exchanged(unit, x), strict=True):
        networks.assert_same(y, truth)


def test_parallel_branches() -> None:
    x = maps((2, 3, 17, 11), (2, 4, 9, 6))
    module = randomized(ParallelBranches([3, 4], blocks=2)).eval()
    within = [branch(m) for branch, m in zip(module.branches, x, strict=True)]
    for y, truth in zip(module(x), exchanged(module.exchange, within), strict=True):
        networks.assert_same(y, truth)
    assert [len(branch) for branch in module.branches] == [2, 2]


@pytest.mark.usefixtures("timm")
def test_branches_are_hrnets() -> None:
    """timm's module of HRNet, its weights loaded."""
    from timm.models.hrnet import HighResolutionModule
    from timm.models.resnet import BasicBlock as TimmBlock

    theirs = randomized(HighResolutionModule(3, TimmBlock, (2, 2, 2), [4, 6, 8], (4, 6, 8), "SUM"))
    ours = ParallelBranches([4, 6, 8], blocks=2).double()
    ours.branches.load_state_dict(theirs.branches.state_dict())
    ours.exchange.fuse_layers.load_state_dict(theirs.fuse_layers.state_dict())
    x = maps((2, 4, 16, 8), (2, 6, 8, 4), (2, 8, 4, 2))
    for training in (True, False):
        results = ours.train(training)(x)
        for y, truth in zip(results, theirs.train(training)(list(x)), strict=True):
            networks.assert_same(y, truth)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("stride", [1, 2])
def test_residual_blocks_are_torchvisions(stride: int) -> None:
    from torchvision.models import resnet

    shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, stride, bias=False), nn.BatchNorm2d(8))
    theirs: nn.Module = resnet.BasicBlock(6, 8, stride, shortcut)
    ours: nn.Module = BasicBlock(6, 8, stride=stride)
    (x,) = maps((2, 6, 9, 7))
    networks.assert_same(randomized_like(ours, randomized(theirs))(x), theirs(x))
    shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, stride, bias=False), nn.BatchNorm2d(8))
    theirs = resnet.Bottleneck(6, 2, stride, shortcut)
    ours = Bottleneck(6, 2, stride=stride)
    networks.assert_same(randomized_like(ours, randomized(theirs))(x), theirs(x))


# Gates


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_squeeze_gate(dims: int) -> None:
    """Hu et al. 2018, equations 2 to 4."""
    (x,) = maps((2, 8, *[5, 4, 3][:dims]))
    gate = randomized(SqueezeGate(8, 4))
    z = x.mean(list(range(2, 2 + dims)))
    s = torch.sigmoid(
        torch.relu(z @ gate.squeeze.weight.T + gate.squeeze.bias) @ gate.excite.weight.T
        + gate.excite.bias
    )
    networks.assert_same(gate(x), torch.einsum("nc...,nc->nc...", x, s))
    assert gate.squeeze.out_features == 2


def test_attention_gate() -> None:
    """Oktay et al. 2018: additive attention, the coarser map brought to x."""
    x, g = maps((2, 4, 9, 7), (2, 6, 5, 4))
    gate = randomized(AttentionGate(4, 6, hidden=3))
    compared = F.conv2d(x, gate.map.weight, gate.map.bias) + up(
        F.conv2d(g, gate.gate.weight), (9, 7)
    )
    psi = F.conv2d(compared.relu(), gate.score.weight, gate.score.bias).sigmoid()
    networks.assert_same(gate(x, g), x * psi)


# The loss


def loss_inputs() -> list[Tensor]:
    return maps((2, 3, 9, 7), (2, 3, 5, 4), (2, 3, 13, 11))


def test_loss_of_logits() -> None:
    """Hinton et al. 2015: T^2 KL of the softened distributions."""
    x = loss_inputs()
    expected = []
    p = (x[0] / 2.5).softmax(1)
    for other in x[1:]:
        q = (up(other, (9, 7), antialias=True) / 2.5).softmax(1)
        expected.append((p * (p / q).log()).sum(1).mean() * 2.5**2)
    loss = ScaleInvarianceLoss("logits", temperature=2.5)(x)
    networks.assert_same(loss, torch.stack(expected).mean())
    vectors = maps((4, 3), (4, 3))
    p, q = (v.softmax(1) for v in vectors)
    networks.assert_same(ScaleInvarianceLoss("logits")(vectors), (p * (p / q).log()).sum(1).mean())


def test_loss_of_features() -> None:
    """2 - 2 cos, as the squared distance of unit vectors is."""
    x = loss_inputs()
    expected = [
        (2 - 2 * F.cosine_similarity(x[0], up(other, (9, 7), antialias=True), dim=1)).mean()
        for other in x[1:]
    ]
    networks.assert_same(ScaleInvarianceLoss("features")(x), torch.stack(expected).mean())


def test_loss_of_masks() -> None:
    """Milletari et al. 2016 (V-Net): one minus Dice with squares in the denominator."""
    x = loss_inputs()
    q = x[0].sigmoid()
    expected = []
    for other in x[1:]:
        p = up(other, (9, 7), antialias=True).sigmoid()
        dice = (2 * (p * q).sum((2, 3)) + 1e-6) / ((p * p).sum((2, 3)) + (q * q).sum((2, 3)) + 1e-6)
        expected.append((1 - dice).mean())
    networks.assert_same(ScaleInvarianceLoss("masks")(x), torch.stack(expected).mean())


@pytest.mark.parametrize("kind", ["logits", "features", "masks"])
def test_loss_of_equal_outputs_is_zero_and_gradients_go_to_the_copies(kind: str) -> None:
    x = maps((2, 3, 6, 5))[0]
    loss = ScaleInvarianceLoss(kind)
    assert abs(loss([x, x.clone(), x.clone()])) < 1e-12
    pair = [v.requires_grad_() for v in maps((2, 3, 6, 5), (2, 3, 3, 4))]
    loss(pair).backward()
    assert pair[0].grad is None
    assert pair[1].grad is not None and pair[1].grad.abs().max() > 0
    ScaleInvarianceLoss(kind, detach=False)(pair).backward()
    assert pair[0].grad is not None and pair[0].grad.abs().max() > 0
    assert torch.autograd.gradcheck(
        lambda a, b: ScaleInvarianceLoss(kind, detach=False)([a, b]), pair, fast_mode=True
    )


def test_loss_in_half_is_computed_in_float32() -> None:
    x = [m.bfloat16() for m in loss_inputs()]
    loss = ScaleInvarianceLoss("features")(x)
    assert loss.dtype == torch.float32
    expected = ScaleInvarianceLoss("features")([m.double() for m in x])
    # What is left is the rounding of the resampled copies to bfloat16.
    assert abs(loss - expected) < 0.01 * expected


def test_loss_rejects() -> None:
    with pytest.raises(ValueError, match="expected kind to be one of"):
        ScaleInvarianceLoss("boxes")
    with pytest.raises(ValueError, match="expected temperature to be positive, got 0"):
        ScaleInvarianceLoss("logits", temperature=0)
    with pytest.raises(ValueError, match="expected two or more outputs, got 1"):
        ScaleInvarianceLoss()(maps((1, 2, 3, 3)))
    with pytest.raises(ValueError, match=r"expected masks of \[N, C, \*spatial\], got \(4, 3\)"):
        ScaleInvarianceLoss("masks")(maps((4, 3), (4, 3)))
