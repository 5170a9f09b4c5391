"""Networks: what they compute, and the properties that every one of them has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import networks
import pytest
import torch
import torch.nn.functional as F
from conftest import need_kernel
from torch import Tensor, nn

import msr_cuda
from msr_cuda.models import (
    EncoderDecoder,
    FeatureInfo,
    MultiScaleCNN,
    MultiScaleEncoder,
    MultiScaleResNet,
    PyramidBackbone,
    ResNetTrunk,
    ScaleMixtureResNet,
    SegmentationNet,
    SiameseTracker,
    cross_correlation,
    multiscale_encoder,
    multiscale_resnet18,
    multiscale_resnet34,
    multiscale_resnet50,
    multiscale_speech_resnet18,
    retinanet_backbone,
)
from msr_cuda.nn import BasicBlock, Bottleneck
from msr_cuda.nn._layers import batch_norm, norm_jointly

FUSIONS = ["sum", "softmax", "fast", "concat", "max", "attention", "scale"]
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
#: Odd sizes; those for training leave several values per channel at the last stage.
SIZES = {1: (203,), 2: (53, 37), 3: (21, 17, 19)}
SIZES_FOR_TRAINING = {1: (331,), 2: (97, 71), 3: (37, 33, 35)}


class Network(NamedTuple):
    """A network of a width that is quick to test, and what it is called with.

    Attributes:
        make: the network, from the number of spatial axes.
        inputs: how many images of which sizes, as factors on :data:`SIZES`.
        dims: the numbers of axes it is for.
    """

    make: Callable[[int], nn.Module]
    inputs: tuple[float, ...] = (1.0,)
    dims: tuple[int, ...] = (1, 2, 3)

    def arguments(self, dims: int, sizes: dict[int, tuple[int, ...]] | None = None) -> list[Any]:
        size = (sizes or SIZES)[dims]
        return [
            torch.randn(2, 3, *[int(n * factor) for n in size], dtype=torch.float64)
            for factor in self.inputs
        ]


def small(name: str, **options: Any) -> Callable[[int], nn.Module]:
    """A classifier of width 4."""
    made = {
        "resnet18": multiscale_resnet18,
        "resnet34": multiscale_resnet34,
        "resnet50": multiscale_resnet50,
    }[name]
    return lambda dims: made(width=4, dims=dims, num_classes=5, **options)


def narrow_encoder(dims: int, **options: Any) -> MultiScaleEncoder:
    """One block a stage."""
    return MultiScaleEncoder(BasicBlock, (1, 1, 1, 1), width=4, dims=dims, **options)


NETWORKS = {
    **{f"resnet18, {fusion}": Network(small("resnet18", fusion=fusion)) for fusion in FUSIONS},
    "resnet34": Network(small("resnet34", scales=[1.0, 0.7]), dims=(2,)),
    "resnet50": Network(small("resnet50", scales=[0.75, 1.25], fusion="softmax"), dims=(2,)),
    "features": Network(
        lambda d: narrow_encoder(d, scales=[1.0, 0.7, 0.5], fusion="fast", filter="gaussian"),
        dims=(2,),
    ),
    "mixture": Network(
        lambda d: ScaleMixtureResNet(narrow_encoder(d, out_indices=[4], fusion=None), 5)
    ),
    "CNN": Network(lambda d: MultiScaleCNN(5, widths=(4, 6), dims=d)),
    "CNN, columns": Network(
        lambda d: MultiScaleCNN(5, widths=(4, 6), fusion="max", shared=False, dims=d), dims=(2,)
    ),
    "encoder and decoder": Network(
        lambda d: EncoderDecoder(narrow_encoder(d, fusion="softmax"), 2, channels=6)
    ),
    "segmentation": Network(
        lambda d: SegmentationNet(narrow_encoder(d, out_indices=[1, 2, 3]), 3, channels=6),
        dims=(2,),
    ),
    "detection": Network(lambda d: retinanet_backbone(narrow_encoder(d), 6), dims=(2,)),
    "tracking": Network(
        lambda d: SiameseTracker(narrow_encoder(d, out_indices=[1, 2]), channels=6),
        inputs=(0.5, 1.0),
    ),
    "speech": Network(
        lambda d: multiscale_speech_resnet18(in_channels=3, width=4, num_classes=5), dims=(1,)
    ),
}
EVERY = [(name, dims) for name, network in NETWORKS.items() for dims in network.dims]
ONCE = [(name, network.dims[-1] if 2 not in network.dims else 2)
        for name, network in NETWORKS.items()]  # fmt: skip
#: One of each kind.
SOME = [case for case in ONCE if not case[0].startswith("resnet") or case[0].endswith("softmax")]


def prepared(name: str, dims: int) -> tuple[nn.Module, list[Any]]:
    """The network in evaluation, with running statistics that are not those it starts with."""
    network = NETWORKS[name]
    module = networks.randomize(network.make(dims).double()).eval()
    return module, network.arguments(dims)


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_kernels_and_plain_pytorch_give_the_same(name: str, dims: int) -> None:
    need_kernel("cpu")
    networks.assert_kernel_is_reference(*prepared(name, dims))


@pytest.mark.parametrize(("name", "dims"), SOME)
def test_training_on_kernels_and_in_plain_pytorch_is_the_same(name: str, dims: int) -> None:
    """Batch norms as in training, and what they keep."""
    need_kernel("cpu")
    module = networks.randomize(NETWORKS[name].make(dims).double())
    arguments = NETWORKS[name].arguments(dims, SIZES_FOR_TRAINING)
    twin = NETWORKS[name].make(dims).double()
    twin.load_state_dict(module.state_dict())
    with networks.kernels_only():
        outputs = networks.leaves(module(*arguments))
    with networks.plain_pytorch():
        expected = networks.leaves(twin(*arguments))
    for y, truth in zip(outputs, expected, strict=True):
        networks.assert_same(y, truth)
    state, truths = module.state_dict(), twin.state_dict()
    changed = [key for key in state if key.endswith("running_var")]
    assert changed
    for key in changed:
        networks.assert_same(state[key], truths[key], key)


@pytest.mark.parametrize(("name", "dims"), SOME)
def test_compiles_to_one_graph(name: str, dims: int) -> None:
    networks.assert_compiles(*prepared(name, dims))


@pytest.mark.parametrize(("name", "dims"), ONCE)
def test_repeats_bit_for_bit(name: str, dims: int) -> None:
    networks.assert_repeats(*prepared(name, dims))


@pytest.mark.parametrize(("name", "dims"), SOME)
def test_keeps_channels_last(name: str, dims: int) -> None:
    networks.assert_keeps_channels_last(*prepared(name, dims))


@pytest.mark.parametrize(("name", "dims"), ONCE)
def test_runs_in_autocast(name: str, dims: int) -> None:
    networks.assert_runs_in_autocast(*prepared(name, dims))


@pytest.mark.parametrize(("name", "dims"), ONCE)
def test_copies_and_loads(name: str, dims: int) -> None:
    module, arguments = prepared(name, dims)
    networks.assert_copies(module, lambda: NETWORKS[name].make(dims), arguments)


@pytest.mark.parametrize(("name", "dims"), [c for c in EVERY if c[0] != "tracking"])
def test_takes_images_of_any_size(name: str, dims: int) -> None:
    module = NETWORKS[name].make(dims).eval()
    for size in (1, 2, 3, 5, 33):
        x = torch.randn(1, 3, *[size] * dims)
        assert all(y.isfinite().all() for y in networks.leaves(module(x)))


# What they compute


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("fusion", ["sum", "softmax", "max"])
def test_multiscale_resnet_is_its_formula(fusion: str, dims: int) -> None:
    """The trunk on each resized image, maps brought to the first's size, fused, averaged."""
    scales = (1.0, 1.5)  # enlarging needs no antialiasing, which PyTorch has in 2-D only
    network = small("resnet18", scales=scales, fusion=fusion)(dims).double().eval()
    assert isinstance(network, MultiScaleResNet)
    networks.randomize(network)
    x = torch.randn(2, 3, *SIZES[dims], dtype=torch.float64)
    trunk = network.encoder.trunk
    larger = [int(n * 1.5 + 0.5) for n in x.shape[2:]]
    levels = [x, F.interpolate(x, larger, mode=LINEAR[dims])]
    maps = []
    for level in levels:
        y = trunk.maxpool(trunk.bn1(trunk.conv1(level)).relu())
        for i in range(1, 5):
            y = getattr(trunk, f"layer{i}")(y)
        maps.append(y)
    brought = torch.stack([F.interpolate(m, maps[0].shape[2:], mode=LINEAR[dims]) for m in maps])
    if fusion == "max":
        fused = brought.amax(0)
    else:
        weight = torch.ones(2, dtype=torch.float64)
        if fusion == "softmax":
            weight = network.encoder.fusions[0].weight.softmax(0)  # type: ignore[union-attr]
        fused = torch.einsum("s,s...->...", weight, brought)
    expected = F.linear(fused.flatten(2).mean(2), network.fc.weight, network.fc.bias)
    networks.assert_same(network(x), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_batch_norms_take_all_scales_together(
    block: type[BasicBlock] | type[Bottleneck], dims: int
) -> None:
    """A training step normalizes with what it adds to the running statistics."""
    made = block(3, 2, stride=2, dims=dims).double()
    first, second = (
        torch.randn(2, 3, *[n] * dims, dtype=torch.float64) * scale + scale
        for n, scale in ((7, 1.0), (4, 3.0))
    )
    networks.randomize(made)
    convolved = [made.conv1(x).transpose(0, 1).flatten(1) for x in (first, second)]
    expected = torch.cat(convolved, 1)
    before = made.bn1.running_mean.clone()
    twin = copy.deepcopy(made).train()
    outputs = made.train()([first, second])
    assert [y.shape[2:] for y in outputs] == [(4,) * dims, (2,) * dims]
    mean = 0.9 * before + 0.1 * expected.mean(1)
    torch.testing.assert_close(made.bn1.running_mean, mean)

    # With those statistics for running ones, evaluation gives what training gave.
    norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    twin([first, second])
    for norm in norms:
        at_input = block is Bottleneck and norm is twin.bn1
        count = 2 * sum(n**dims for n in ((7, 4) if at_input else (4, 2)))
        norm.running_var *= (count - 1) / count  # from the unbiased estimate to the batch's own
    twin.eval()
    for x, y in zip((first, second), outputs, strict=True):
        networks.assert_same(twin(x), y)


@pytest.mark.parametrize("dims", [2, 3])
def test_joint_statistics_keep_the_layout(dims: int) -> None:
    """channels_last in, channels_last out, with the same numbers."""
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    norm = batch_norm(dims, 8).double().train()
    maps = [torch.randn(2, 8, *[n] * dims, dtype=torch.float64) for n in (7, 4)]
    expected = norm_jointly(norm, maps)
    found = norm_jointly(norm, [x.contiguous(memory_format=layout) for x in maps])
    for y, z in zip(found, expected, strict=True):
        assert y.is_contiguous(memory_format=layout)
        networks.assert_same(y, z)


def test_hooks_on_layers_are_called_with_the_maps_of_all_scales() -> None:
    network = MultiScaleResNet(narrow_encoder(2, out_indices=[4]), 5)
    seen: list[list[int]] = []
    hook = network.encoder.trunk.layer2[0].register_forward_hook(
        lambda module, inputs, outputs: seen.append([y.shape[2] for y in outputs])
    )
    x = torch.randn(2, 3, 64, 64)
    for training in (True, False):
        network.train(training)(x)
    hook.remove()
    assert seen == [[8, 4], [8, 4]]


def test_a_shared_column_normalizes_all_scales_together() -> None:
    network = MultiScaleCNN(5, widths=(4, 6), scales=[1.0, 0.5]).double().train()
    x = torch.randn(2, 3, 21, 17, dtype=torch.float64)
    conv, norm, _ = next(network.columns[0].children())
    values = [conv(level).transpose(0, 1).flatten(1) for level in network.pyramid(x)]
    network(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * torch.cat(values, 1).mean(1))


def test_other_norms_take_each_scale_alone() -> None:
    block = BasicBlock(4, 4).train()
    block.bn1 = nn.GroupNorm(2, 4)
    block.bn2 = nn.Identity()
    maps = [torch.randn(2, 4, n, n) for n in (7, 4)]
    for x, y in zip(maps, block(maps), strict=True):
        torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_mixture_is_its_formula(dims: int) -> None:
    encoder = narrow_encoder(dims, scales=[1.0, 1.5], out_indices=[3], fusion=None)
    network = networks.randomize(ScaleMixtureResNet(encoder, 5).double()).eval()
    x = torch.randn(2, 3, *SIZES[dims], dtype=torch.float64)
    levels = [x, F.interpolate(x, [int(n * 1.5 + 0.5) for n in x.shape[2:]], mode=LINEAR[dims])]
    scores = [
        F.linear(
            encoder.trunk(level, [3])[0].flatten(2).mean(2), network.fc.weight, network.fc.bias
        )
        for level in levels
    ]
    networks.assert_same(network.scores(x), torch.stack(scores, 1))
    both = torch.cat(scores, 1).softmax(1)
    networks.assert_same(network(x).softmax(1), both[:, :5] + both[:, 5:])
    assert not encoder.fusions


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_mixture_by_hand(smoothing: float) -> None:
    network = ScaleMixtureResNet(narrow_encoder(2, out_indices=[1], fusion=None), 4).train()
    scores = network(torch.randn(3, 3, 20, 20))
    assert scores.shape == (3, 2, 4)
    targets = torch.tensor([0, 3, 1])

    def entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    whole = entropy(scores.exp().sum(1).log())
    each = (entropy(scores[:, 0]) + entropy(scores[:, 1])) / 2
    loss = network.loss(scores, targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss, (whole + each) / 2)
    alone = network.loss(network.logits(scores), targets, label_smoothing=smoothing)
    torch.testing.assert_close(alone, whole)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("scales", [[1.0], [0.7]])
def test_one_scale_is_a_plain_resnet(scales: list[float]) -> None:
    network = multiscale_encoder("resnet18", width=4, scales=scales, fusion="concat")
    assert not network.fusions
    x = torch.randn(1, 3, 50, 40)
    size = [int(n * scales[0] + 0.5) for n in (50, 40)]
    given = F.interpolate(x, size, mode="bilinear", antialias=True)
    network.eval()
    for y, truth in zip(network(x), network.trunk(given, (0, 1, 2, 3, 4)), strict=True):
        torch.testing.assert_close(y, truth)


def test_features_by_stage() -> None:
    encoder = multiscale_encoder("resnet50", width=4, out_indices=[0, 2, 3], fusion="max").eval()
    info = encoder.feature_info
    assert info.channels() == [4, 32, 64]
    assert info.reduction() == [2, 8, 16]
    assert info.module_name() == ["trunk.relu", "trunk.layer2", "trunk.layer3"]
    assert info.channels(1) == 16
    assert info.reduction([1, 3]) == [4, 16]
    assert len(info) == 4
    assert info[3]["index"] == 3
    assert not hasattr(encoder.trunk, "layer4")
    maps = encoder(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // r, 96 // r) for c, r in zip(info.channels(), info.reduction(), strict=True)
    ]
    for name in info.module_name():
        encoder.get_submodule(name)


def test_scales_share_the_trunk_but_not_the_fusion() -> None:
    one = multiscale_resnet18(scales=[1.0], width=4)
    several = multiscale_resnet18(scales=[1.0, 0.5, 0.25], width=4, fusion="softmax")
    count = [sum(p.numel() for p in m.parameters()) for m in (one, several)]
    assert count[1] - count[0] == 3


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_grayscale_and_other_channels(dims: int) -> None:
    network = multiscale_resnet18(width=4, dims=dims, in_channels=1, num_classes=3).eval()
    assert network(torch.randn(2, 1, *SIZES[dims])).shape == (2, 3)
    assert network.forward_features(torch.randn(2, 1, *SIZES[dims])).shape == (2, 32)


def test_encoder_and_decoder_give_the_size_of_the_image() -> None:
    encoder = narrow_encoder(2)
    x = torch.randn(1, 3, 45, 67, dtype=torch.float64)
    full = EncoderDecoder(encoder, 2, channels=4).double().eval()
    smaller = EncoderDecoder(encoder, 2, channels=4, full_size=False).double().eval()
    smaller.load_state_dict(full.state_dict())
    assert full(x).shape == (1, 2, 45, 67)
    assert smaller(x).shape == (1, 2, 23, 34)
    networks.assert_same(full(x), F.interpolate(smaller(x), (45, 67), mode="bilinear"))


def test_decoder_is_its_formula() -> None:
    """d_k = B_k(relu(P_k x_k + R d_{k+1})), then relu(sum_k w_k R(Q_k d_k))."""
    encoder = narrow_encoder(2, out_indices=[1, 2, 3])
    network = networks.randomize(EncoderDecoder(encoder, 2, channels=6).double()).eval()
    decoder: Any = network.decoder
    maps = [torch.randn(2, c, *s, dtype=torch.float64)
            for c, s in zip([4, 8, 16], [(13, 9), (7, 5), (4, 3)], strict=True)]  # fmt: skip

    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear")

    decoded = [decoder.blocks[2](decoder.top(maps[2]))]
    for k in (1, 0):
        lateral = decoder.fusions[k].projections[0](maps[k])
        decoded.insert(0, decoder.blocks[k]((lateral + up(decoded[0], lateral)).relu()))
    total = sum(
        w * up(q(d), maps[0])
        for w, q, d in zip(decoder.merge.weight, decoder.levels, decoded, strict=True)
    )
    networks.assert_same(decoder(maps), total.relu())  # type: ignore[union-attr]


def test_segmentation_loss_and_decision() -> None:
    network = SegmentationNet(narrow_encoder(2, out_indices=[1, 2]), 3, channels=4).double().eval()
    networks.randomize(network)
    x = torch.randn(2, 3, 45, 67, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 45, 67))
    target[:, :5] = 255
    logits = network(x)
    assert logits.shape == (2, 3, 12, 17)
    large = F.interpolate(logits, (45, 67), mode="bilinear")
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    options = dict(weight=weight, ignore_index=255, label_smoothing=0.1)
    loss = network.loss(logits, target, **options)
    networks.assert_same(loss, F.cross_entropy(large, target, **options))
    assert torch.equal(network.predict(x), large.argmax(1))


def test_segmentation_of_one_mask() -> None:
    network = SegmentationNet(narrow_encoder(2, out_indices=[1, 2]), 1, channels=4).double().eval()
    networks.randomize(network)
    x = torch.randn(2, 3, 45, 67, dtype=torch.float64)
    target = torch.rand(2, 45, 67) > 0.5
    logits = network(x)
    large = F.interpolate(logits, (45, 67), mode="bilinear")[:, 0]
    networks.assert_same(
        network.loss(logits, target), F.binary_cross_entropy_with_logits(large, target.double())
    )
    predicted = network.predict(x)
    assert torch.equal(predicted, (large > 0).long())
    assert 0 < predicted.double().mean() < 1
    with pytest.raises(ValueError, match="only with several classes"):
        network.loss(logits, target, label_smoothing=0.1)


# Tracking


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_cross_correlation_is_its_sum(dims: int) -> None:
    """Bertinetto et al. 2016, equation 1, term by term."""
    template = torch.randn(2, 3, *[3, 2, 2][:dims], dtype=torch.float64)
    search = torch.randn(2, 3, *[7, 5, 4][:dims], dtype=torch.float64)
    response = cross_correlation(template, search)
    windows = search
    for axis, n in enumerate(template.shape[2:]):
        windows = windows.unfold(2 + axis, n, 1)
    shaped = template.view(2, 3, *[1] * dims, *template.shape[2:])
    expected = (windows * shaped).flatten(2 + dims).sum(-1).sum(1) / template[0].numel()
    networks.assert_same(response, expected.unsqueeze(1))
    with pytest.raises(ValueError, match="not larger"):
        cross_correlation(search, template)


class Patches(nn.Module):
    """An encoder without context: what it says of a place depends on that place alone."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = FeatureInfo(
            [{"num_chs": 32, "reduction": r, "module": name} for r, name in ((4, "a"), (8, "b"))],
            (0, 1),
        )
        self.a, self.b = (nn.Conv2d(3, 32, r, r) for r in (4, 8))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.a(x), self.b(x)]


def test_tracker_finds_where_the_template_was_cut_out() -> None:
    tracker = SiameseTracker(Patches(), channels=64).eval()
    images = torch.randn(2, 3, 128, 160)
    corners = [(40, 64), (72, 8)]
    templates = torch.stack(
        [
            x[:, top : top + 48, left : left + 56]
            for x, (top, left) in zip(images, corners, strict=True)
        ]
    )
    places, probabilities = tracker.locate(templates, images)
    torch.testing.assert_close(places, torch.tensor(corners, dtype=torch.float32))
    # Before training the logit is the mean cosine of the template and the image.
    torch.testing.assert_close(probabilities, torch.full((2,), 1.0).sigmoid())


def test_tracker_normalizes_templates_and_images_together() -> None:
    """In training; with those statistics, evaluation says of both what training said."""
    tracker = SiameseTracker(narrow_encoder(2, out_indices=[1, 2]), channels=4).double().train()
    networks.randomize(tracker)
    shift = torch.tensor([3.0, 0.0]).double()  # templates are brighter
    batches = [torch.randn(2, 3, n, n).double() + s for n, s in zip((48, 80), shift, strict=True)]
    trunk = tracker.encoder.trunk
    norms = [m for m in tracker.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    counts: dict[nn.Module, int] = {}
    hooks = [
        norm.register_forward_hook(
            lambda norm, inputs, _: counts.update({norm: inputs[0].numel() // inputs[0].shape[1]})
        )
        for norm in norms
    ]
    for norm in norms:
        norm.momentum = 1.0
    levels = [level for x in batches for level in tracker.encoder.pyramid(x)]
    values = torch.cat([trunk.conv1(level).transpose(0, 1).flatten(1) for level in levels], 1)
    logits = tracker(*batches)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(trunk.bn1.running_mean, values.mean(1))
    for norm in norms:
        norm.running_var *= (counts[norm] - 1) / counts[norm]  # the batch's own, not the unbiased
    networks.assert_same(tracker.eval()(*batches), logits)


def test_tracker_loss_is_at_the_size_of_the_target() -> None:
    tracker = SiameseTracker(narrow_encoder(2, out_indices=[1, 2]), channels=4).double().eval()
    logits = tracker(*[torch.randn(2, 3, n, n, dtype=torch.float64) for n in (32, 64)])
    target = (torch.rand(2, 1, 17, 17) > 0.5).double()
    large = F.interpolate(logits, (17, 17), mode="bilinear", align_corners=True)
    networks.assert_same(
        tracker.loss(logits, target), F.binary_cross_entropy_with_logits(large, target)
    )


# Training


def test_a_classifier_learns() -> None:
    """Stripes that lie or stand, at periods that differ by a factor of three."""
    torch.manual_seed(0)
    network = multiscale_resnet18(
        width=8, in_channels=1, num_classes=2, scales=[1.0, 0.5], fusion="softmax"
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        labels = torch.arange(16) % 2
        period = torch.empty(16, 1, 1, 1).uniform_(4, 12)
        wave = (torch.arange(64).view(1, 1, 64, 1) * 6.283 / period).sin().expand(16, 1, 64, 64)
        images = torch.where(labels.view(-1, 1, 1, 1) == 0, wave, wave.transpose(2, 3))
        loss = F.cross_entropy(network(images + 0.1 * torch.randn_like(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses


def test_the_invariance_loss_trains_a_network() -> None:
    torch.manual_seed(0)
    network = multiscale_resnet18(width=4, num_classes=4, scales=[1.0, 0.5]).eval()
    criterion = msr_cuda.nn.ScaleInvarianceLoss("logits")
    copies = msr_cuda.nn.ImagePyramid([1.0, 0.75, 0.5])
    images = torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = criterion([network(copy) for copy in copies(images)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# What they reject

REJECTED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "name": (lambda: multiscale_encoder("resnet19"), ValueError, "expected name to be one of"),
    "dims": (lambda: multiscale_resnet18(dims=4), ValueError, "expected dims to be 1, 2 or 3"),
    "fusion": (
        lambda: multiscale_resnet18(fusion="mean"), ValueError, "expected kind to be one of",
    ),
    "descending": (
        lambda: multiscale_encoder(out_indices=[2, 1]), ValueError,
        "expected out_indices to ascend",
    ),
    "none": (
        lambda: multiscale_encoder(out_indices=[]), ValueError, "expected out_indices to ascend",
    ),
    "stage": (
        lambda: multiscale_encoder(out_indices=[5]), ValueError, "expected 1 to 4 stages, got 5",
    ),
    "blocks": (
        lambda: ResNetTrunk(BasicBlock, (1,), stages=0), ValueError, "expected 1 to 1 stages",
    ),
    "classifier": (
        lambda: MultiScaleResNet(narrow_encoder(2)), ValueError,
        "expected an encoder with one stage",
    ),
    "mixture": (
        lambda: ScaleMixtureResNet(narrow_encoder(2)), ValueError,
        "ScaleMixtureResNet: expected an encoder with one stage",
    ),
    "lacking": (
        lambda: retinanet_backbone(narrow_encoder(2, out_indices=[1, 2, 3])), ValueError,
        "expected an encoder with the stages (2, 3, 4)",
    ),
    "2-D": (
        lambda: PyramidBackbone(narrow_encoder(3), stages=[1]), ValueError,
        "expected a 2-D encoder, got dims=3",
    ),
    "encoder": (
        lambda: EncoderDecoder(nn.Conv2d(3, 4, 1), 2), TypeError,
        "EncoderDecoder: expected an encoder with feature_info",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REJECTED)
def test_rejects(case: str) -> None:
    make, error, message = REJECTED[case]
    with pytest.raises(error) as raised:
        make()
    assert message in str(raised.value)
