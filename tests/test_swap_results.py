"""Swapped models: the same results, in float64 and within bounds below it."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import require_or_skip
from swapping import (
    Case,
    Outputs,
    UNet,
    assert_errors_at_most_twice,
    assert_same_in_float64,
    fused_names,
    images,
    one_thread,  # noqa: F401
    run_model,
    weigh,
)
from torch import Tensor, nn

from msr_cuda.swap import Report, fuse


@pytest.fixture(scope="session")
def torchvision() -> Any:
    require_or_skip("torchvision_on_cpu")
    return require_or_skip("torchvision")


def run_maps(model: nn.Module, x: Tensor) -> Outputs:
    features = dict(model.backbone(x))  # type: ignore[operator]
    return {**features, "loss": weigh(features)}


def run_training(model: nn.Module, x: Tensor) -> Outputs:
    targets = [
        {
            "boxes": torch.tensor([[5.0, 8, 40, 60], [20, 3, 95, 70]], dtype=x.dtype),
            "labels": torch.tensor([1, 2]),
        }
        for _ in x
    ]
    maps: Outputs = {}
    pyramid: nn.Module = model.backbone  # type: ignore[assignment]
    hook = pyramid.register_forward_hook(lambda module, args, output: maps.update(output))
    torch.manual_seed(9)  # torchvision samples anchors and proposals at random
    # Without its own library, torchvision compiles RoI align, for longer than all else here takes.
    with torch.compiler.set_stance("force_eager"):
        losses = model(list(x), targets)
    hook.remove()
    return {**maps, **losses, "loss": torch.stack(list(losses.values())).sum()}


def backbone(levels: list[str], extra: nn.Module) -> nn.Module:
    """A narrow pyramid on a short ResNet: as torchvision's builders make them, but quick."""
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.resnet import BasicBlock, ResNet

    channels = [64, 128, 256, 512][-len(levels) :]
    layers = {level: str(i) for i, level in enumerate(levels)}
    return BackboneWithFPN(ResNet(BasicBlock, [1, 1, 1, 1]), layers, channels, 16, extra)


class Pyramid(nn.Module):
    """Levels that do not halve, and two of one size as in torchvision's detectors on MobileNet."""

    sizes = ((25, 33), (11, 20), (11, 20), (4, 3))

    def __init__(self) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        self.fpn = FeaturePyramidNetwork([3, 3, 3, 3], 8, norm_layer=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Outputs:
        maps = {str(i): F.adaptive_avg_pool2d(x, size) for i, size in enumerate(self.sizes)}
        return self.fpn(maps)


# No padding to multiples of 32: the levels are of 19x25, 10x13, 5x7 and 3x4 pixels.
TRANSFORM = {"min_size": 75, "max_size": 99, "size_divisible": 1}


def retinanet() -> nn.Module:
    from torchvision.models.detection import RetinaNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    body = backbone(["layer2", "layer3", "layer4"], LastLevelP6P7(16, 16))
    return RetinaNet(body, num_classes=3, **TRANSFORM)


def faster_rcnn() -> nn.Module:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    return FasterRCNN(
        backbone(["layer1", "layer2", "layer3", "layer4"], LastLevelMaxPool()),
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * 2**i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5
        ),
        rpn_pre_nms_top_n_train=40,
        rpn_post_nms_top_n_train=40,
        box_head=TwoMLPHead(16 * 7 * 7, 32),
        box_predictor=FastRCNNPredictor(32, 3),
        box_batch_size_per_image=32,
        **TRANSFORM,
    )


IMAGES = (1, 3, 75, 99)
FPN = ["backbone.fpn"]
CASES = {
    "unet": Case(UNet, (2, 3, 44, 32), run_model, ["up2", "up1", "final"]),
    "retinanet": Case(retinanet, IMAGES, run_training, FPN),
    "faster_rcnn": Case(faster_rcnn, IMAGES, run_training, FPN),
    "pyramid": Case(Pyramid, IMAGES, run_model, ["fpn"]),
}


def get_case(name: str, request: pytest.FixtureRequest) -> Case:
    if name != "unet":
        request.getfixturevalue("torchvision")
    return CASES[name]


@pytest.mark.parametrize("name", CASES)
def test_results_are_the_same_in_float64(name: str, request: pytest.FixtureRequest) -> None:
    case = get_case(name, request)
    model = case.make().double().train()
    twin = copy.deepcopy(model)
    report = fuse(twin)
    assert fused_names(report) == case.sites
    assert report.skipped == []
    assert_same_in_float64(case, model, twin, images(*case.shape).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["unet", "pyramid", "faster_rcnn"])
def test_errors_are_at_most_twice_those_of_the_model(
    name: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    case = get_case(name, request)
    if case.run is run_training:
        # The losses do not run in bfloat16, and which proposals they take may depend on rounding.
        case = case._replace(run=run_maps, shape=(1, 3, 59, 77))
    model = case.make().train().to(dtype)
    twin = copy.deepcopy(model)
    fuse(twin)
    assert_errors_at_most_twice(case, model, twin, dtype, 3 if name == "faster_rcnn" else 9)


BUILDERS = {
    "retinanet_resnet50_fpn": {},
    "retinanet_resnet50_fpn_v2": {},
    "fcos_resnet50_fpn": {},
    "fasterrcnn_resnet50_fpn_v2": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {},
    "maskrcnn_resnet50_fpn": {},
    "keypointrcnn_resnet50_fpn": {"num_classes": 2},
}


@pytest.mark.parametrize("builder", BUILDERS)
def test_every_detector_of_torchvision_has_its_site(torchvision: Any, builder: str) -> None:
    options = {"num_classes": 3, **BUILDERS[builder]}
    with torch.device("meta"):
        model = getattr(torchvision.models.detection, builder)(
            weights=None, weights_backbone=None, **options
        )
    report = fuse(model)
    # The predictor of key points upsamples its maps, with nothing to fuse with.
    sites = [("roi_heads.keypoint_predictor",)] if builder.startswith("keypoint") else []
    assert [site.names for site in report.swapped] == [("backbone.fpn",), *sites]
    assert report.skipped == []
    assert type(model.backbone.fpn).__name__ == "FusedFeaturePyramidNetwork"


def test_unknown_forward_is_left_alone(torchvision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = torchvision.ops.FeaturePyramidNetwork

    def forward(self: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return x

    monkeypatch.setattr(network, "forward", forward)
    with pytest.warns(UserWarning, match="not one that .*FusedFeaturePyramidNetwork was written"):
        report = fuse(network([4], 4))
    assert report.swapped == []
    monkeypatch.setattr(network, "forward", OrderedDict.get)  # has no source in Python
    with pytest.warns(UserWarning, match="is not available to compare"):
        assert fuse(network([4], 4)).swapped == []


def test_layout_is_kept(torchvision: Any) -> None:
    network = torchvision.ops.FeaturePyramidNetwork([4, 8], 6).to(memory_format=torch.channels_last)
    up = nn.Upsample(scale_factor=2)
    fuse(nn.ModuleList([network, up]))
    maps = OrderedDict(a=images(2, 4, 9, 11), b=images(2, 8, 5, 6))
    for name in maps:
        maps[name] = maps[name].to(memory_format=torch.channels_last)
    for level in (*network(maps).values(), up(maps["a"])):
        assert level.is_contiguous(memory_format=torch.channels_last)
        assert not level.is_contiguous()


def test_measure_of_a_detector(torchvision: Any) -> None:
    model = retinanet().eval()
    report = fuse(model).measure([images(3, 75, 99)])
    assert isinstance(report, Report)
    traffic = report.total
    assert traffic is not None
    # Two merges, to 5x7 and to 10x13, of 16 channels in float32.
    sizes = [3 * 4, 5 * 7, 10 * 13]
    eager = sum(a + b + 3 * b for a, b in itertools.pairwise(sizes))
    fused_ = sum(a + 2 * b for a, b in itertools.pairwise(sizes))
    assert (traffic.calls, traffic.fused_launches, traffic.eager_launches) == (1, 2, 4)
    assert (traffic.eager_bytes, traffic.fused_bytes) == (64 * eager, 64 * fused_)
