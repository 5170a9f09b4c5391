"""Weights and interfaces of torchvision and timm."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import networks
import pytest
import torch
from model_libraries import timm  # noqa: F401
from torch import Tensor, nn

from msr_cuda.models import (
    MultiScaleResNet,
    ScaleMixtureResNet,
    SegmentationNet,
    faster_rcnn_backbone,
    load_trunk,
    multiscale_encoder,
    multiscale_resnet18,
    multiscale_resnet34,
    multiscale_resnet50,
    retinanet_backbone,
)

pytestmark = pytest.mark.usefixtures("timm")

FACTORIES = {
    "resnet18": multiscale_resnet18,
    "resnet34": multiscale_resnet34,
    "resnet50": multiscale_resnet50,
}


def plain(library: str, name: str, **options: Any) -> nn.Module:
    """A plain ResNet of a library, with weights and statistics that show whether they are used."""
    if library == "timm":
        from timm import create_model

        network = create_model(name, **options)
    else:
        import torchvision

        network = getattr(torchvision.models, name)(**options)
    return networks.randomize(network.double()).eval()


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("name", FACTORIES)
def test_a_plain_resnet_loads_and_gives_the_same(library: str, name: str) -> None:
    theirs = plain(library, name)
    ours = FACTORIES[name](scales=[1.0]).double().eval()
    report = load_trunk(ours, theirs.state_dict(), strict=True)
    assert len(report.loaded) == len(theirs.state_dict()) == len(ours.state_dict())
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    assert str(report) == f"loaded {len(report.loaded)} tensors into the trunk"
    x = torch.randn(2, 3, 75, 62, dtype=torch.float64)
    networks.assert_same(ours(x), theirs(x))


def test_features_are_timms() -> None:
    theirs = plain("timm", "resnet18", features_only=True)
    ours = multiscale_encoder("resnet18", scales=[1.0]).double().eval()
    load_trunk(ours, theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 75, 62, dtype=torch.float64)
    for y, truth in zip(ours(x), theirs(x), strict=True):
        networks.assert_same(y, truth)
    info: Any = theirs.feature_info
    assert ours.feature_info.channels() == info.channels()
    assert ours.feature_info.reduction() == info.reduction()
    assert ours.feature_info.channels([1, 2]) == info.channels([1, 2])


def test_several_scales_start_from_the_plain_network() -> None:
    """At the first scale the maps are those of the plain network, and "max" cannot be below."""
    theirs = plain("torchvision", "resnet18")
    ours = multiscale_encoder("resnet18", scales=[1.0, 0.5], fusion="max").double().eval()
    load_trunk(ours, theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    only = copy.deepcopy(ours.trunk)(x, (4,))[0]
    fused = ours(x)[-1]
    assert (fused >= only).all()
    assert (fused > only).any()


@pytest.mark.parametrize("prefix", ["module.", "backbone.body."])
def test_names_may_have_a_prefix(prefix: str) -> None:
    state = plain("torchvision", "resnet18").state_dict()
    wrapped = {prefix + name: value for name, value in state.items()}
    wrapped["head.weight"] = torch.zeros(2)
    network = multiscale_resnet18(scales=[1.0])
    report = load_trunk(network, wrapped)
    assert report.prefix == prefix
    assert report.unexpected == ["head.weight"]
    loaded = network.encoder.trunk.state_dict()
    assert torch.equal(loaded["layer3.1.conv2.weight"], state["layer3.1.conv2.weight"].float())


def test_gray_images_have_the_response_of_gray_in_three_channels() -> None:
    theirs = plain("torchvision", "resnet18")
    ours = multiscale_resnet18(scales=[1.0], in_channels=1).double().eval()
    report = load_trunk(ours, theirs.state_dict(), strict=True)
    assert report.adapted == {"conv1.weight": "3 to 1 input channels"}
    x = torch.randn(2, 1, 40, 33, dtype=torch.float64)
    networks.assert_same(ours(x), theirs(x.expand(-1, 3, -1, -1)))
    ours = multiscale_resnet18(scales=[1.0], in_channels=6).double().eval()
    load_trunk(ours, theirs.state_dict(), strict=True)
    networks.assert_same(ours(x.expand(-1, 6, -1, -1)), theirs(x.expand(-1, 3, -1, -1)))


def test_another_classifier_is_left_as_it_was() -> None:
    network = multiscale_resnet18(num_classes=7)
    before = network.fc.weight.clone()
    report = load_trunk(network, plain("torchvision", "resnet18").state_dict(), strict=True)
    assert report.mismatched == ["fc.weight", "fc.bias"]
    assert torch.equal(network.fc.weight, before)
    assert "of another shape, left as they were: fc.weight, fc.bias" in str(report)


def test_what_is_lacking_is_said_and_strict_leaves_the_network_alone() -> None:
    state = plain("torchvision", "resnet18").state_dict()
    del state["layer2.0.conv1.weight"]
    state["extra"] = torch.zeros(1)
    network = multiscale_resnet18()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"lacking \['layer2.0.conv1.weight'\]"):
        load_trunk(network, state, strict=True)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    report = load_trunk(network, state)
    assert report.missing == ["layer2.0.conv1.weight"]
    assert report.unexpected == ["extra"]
    assert "not in the file, left as they were: layer2.0.conv1.weight" in str(report)
    assert "in the file, not of the network: extra" in str(report)


@pytest.mark.parametrize("dims", [1, 3])
def test_weights_of_other_dimensions_do_not_load(dims: int) -> None:
    state = plain("torchvision", "resnet18").state_dict()
    report = load_trunk(multiscale_resnet18(dims=dims), state)
    assert "conv1.weight" in report.mismatched
    assert not report.adapted
    with pytest.raises(ValueError, match="lacking"):
        load_trunk(multiscale_resnet18(dims=dims), state, strict=True)


def test_a_deeper_network_is_not_taken_for_another() -> None:
    state = plain("torchvision", "resnet34").state_dict()
    report = load_trunk(multiscale_resnet18(), state)
    assert "layer1.2.conv1.weight" in report.unexpected
    with pytest.raises(ValueError, match="expected every tensor of the trunk"):
        load_trunk(multiscale_resnet50(), state, strict=True)


def test_rejects_what_is_no_resnet() -> None:
    with pytest.raises(ValueError, match=r"expected the state_dict of a ResNet.*got a, "):
        load_trunk(multiscale_resnet18(), {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="got nothing"):
        load_trunk(multiscale_resnet18(), {})
    with pytest.raises(ValueError, match="expected a model with one ResNetTrunk, got 0"):
        load_trunk(nn.Linear(1, 1), {})
    two = nn.ModuleList([multiscale_resnet18(), multiscale_resnet18()])
    with pytest.raises(ValueError, match="expected a model with one ResNetTrunk, got 2"):
        load_trunk(two, {})


# Interfaces


def test_a_decoder_takes_an_encoder_of_timms() -> None:
    from timm import create_model

    encoder = create_model("resnet18", features_only=True, out_indices=(1, 2, 3))
    network = SegmentationNet(encoder, 3, channels=8).eval()
    assert network.predict(torch.randn(1, 3, 45, 67)).shape == (1, 45, 67)


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = [torch.rand(3, 96, 128), torch.rand(3, 101, 85)]
    targets = [
        {"boxes": torch.tensor([[10.0, 12, 50, 60]]), "labels": torch.tensor([1])},
        {
            "boxes": torch.tensor([[5.0, 5, 40, 30], [20, 30, 80, 90]]),
            "labels": torch.tensor([2, 1]),
        },
    ]
    return images, targets


@pytest.fixture
def eager() -> Iterator[None]:
    """torchvision compiles its pooling of boxes where its own library is missing: a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("detector", ["RetinaNet", "FasterRCNN"])
def test_torchvisions_detectors_train_and_predict(detector: str) -> None:
    from torchvision.models import detection

    encoder = multiscale_encoder("resnet18", width=8, scales=[1.0, 0.5], fusion="softmax")
    options: dict[str, Any] = {"num_classes": 3, "min_size": 96, "max_size": 128}
    if detector == "RetinaNet":
        backbone = retinanet_backbone(encoder, 16)
    else:
        backbone = faster_rcnn_backbone(encoder, 16)
        # Few boxes: torchvision's pooling of them without its compiled library is slow.
        options |= {f"rpn_post_nms_top_n_{phase}": 10 for phase in ("train", "test")}
        options |= {"box_batch_size_per_image": 8}
    network = getattr(detection, detector)(backbone, **options)
    losses = network.train()(*images_and_targets())
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    unused = {"encoder.fusions.0.weight", *([] if detector == "FasterRCNN" else [
        "encoder.fusions.1.weight"])}  # fmt: skip
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name in unused), name
    with torch.no_grad():
        found = network.eval()(images_and_targets()[0])
    assert len(found) == 2
    assert set(found[0]) == {"boxes", "labels", "scores"}


def test_levels_are_as_detectors_expect() -> None:
    encoder = multiscale_encoder("resnet18", width=4).eval()
    x = torch.randn(1, 3, 128, 192)
    for make, first, extra in (
        (retinanet_backbone, 8, ["p6", "p7"]),
        (faster_rcnn_backbone, 4, ["pool"]),
    ):
        backbone = make(encoder, 6).eval()
        levels = backbone(x)
        numbered = 5 - len(extra)
        assert list(levels) == [*map(str, range(numbered)), *extra]
        assert backbone.out_channels == 6
        assert [tuple(m.shape) for m in levels.values()] == [
            (1, 6, 128 // (first << k), -(-192 // (first << k))) for k in range(5)
        ]


def test_weights_reach_the_trunk_of_any_network() -> None:
    state = plain("torchvision", "resnet18").state_dict()
    encoder = multiscale_encoder("resnet18")
    network = retinanet_backbone(encoder)
    report = load_trunk(network, state, strict=True)
    assert report.unexpected == ["fc.weight", "fc.bias"]
    assert torch.equal(encoder.trunk.bn1.running_mean, state["bn1.running_mean"].float())
    assert not any(isinstance(m, MultiScaleResNet) for m in network.modules())


def test_a_mixture_gets_the_classifier_too() -> None:
    plain_one = multiscale_resnet18(scales=[1.0], width=4, num_classes=5)
    encoder = multiscale_encoder("resnet18", out_indices=[4], width=4, fusion=None)
    mixture = ScaleMixtureResNet(encoder, 5)
    weights = {n.removeprefix("encoder.trunk."): v for n, v in plain_one.state_dict().items()}
    report = load_trunk(mixture, weights, strict=True)
    assert {"fc.weight", "fc.bias"} <= set(report.loaded) and not report.missing
    torch.testing.assert_close(mixture.fc.weight, plain_one.fc.weight)
