"""fuse(model, algebra=True): 1x1 convolutions on the other side of a resampling."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import require_or_skip
from swapping import fused_names, images, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import msr_cuda
from msr_cuda.swap import fuse, register, unfuse, unregister
from msr_cuda.swap.algebra import _pointwise


def lively(model: nn.Module) -> nn.Module:
    """With norms whose statistics and factors are not those of no norm."""
    generator = torch.Generator().manual_seed(3)

    def draw(x: Tensor, low: float, high: float) -> None:
        with torch.no_grad():
            x.copy_(torch.rand(x.shape, generator=generator) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            draw(module.running_mean, -0.2, 0.2)
            draw(module.running_var, 0.5, 2)
            draw(module.weight, 0.5, 1.5)
            draw(module.bias, -0.5, 0.5)
    return model


def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = dict(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, decoder_hidden_size=16)
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **sizes))


def segmentation(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import segmentation_models_pytorch

        build = getattr(segmentation_models_pytorch, name)
        model: nn.Module = build("resnet18", encoder_weights=None, classes=3, **options)
        return model

    return make


def deeplab() -> nn.Module:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead

    return DeepLabHead(6, 3, (1, 2, 3))


class LowAndHigh(nn.Module):
    """LR-ASPP's head, called with tensors."""

    def __init__(self) -> None:
        from torchvision.models.segmentation.lraspp import LRASPPHead

        super().__init__()
        self.head = LRASPPHead(6, 8, 3, 4)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return self.head({"low": low, "high": high})


def fusion_block() -> nn.Module:
    from segmentation_models_pytorch.decoders.dpt.decoder import FusionBlock

    return FusionBlock(6)


def depth_layer(package: str, name: str, config: str) -> Callable[[], nn.Module]:
    """A fusion layer of a depth model in transformers."""

    def make() -> nn.Module:
        import importlib

        import transformers

        module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
        options = getattr(transformers, config)(fusion_hidden_size=6)
        return getattr(module, f"{name}FeatureFusionLayer")(options)

    return make


IMAGES = (images(2, 3, 64, 96),)
MAP = (images(2, 6, 9, 7),)
PAIR = (images(2, 6, 17, 13), images(2, 8, 5, 4))
LEVELS = (images(2, 6, 9, 7), images(2, 6, 9, 7, seed=6))
RESIZED = (images(2, 6, 9, 7), images(2, 6, 5, 4, seed=6))
SIZED = {"hidden_state": LEVELS[0], "residual": RESIZED[1], "size": (15, 20)}

ZOE_DEPTH = depth_layer("zoedepth", "ZoeDepth", "ZoeDepthConfig")
TIPS = depth_layer("tipsv2_dpt", "Tipsv2Dpt", "Tipsv2DptConfig")

#: Name -> the package, what makes the model, its inputs, the sites.
MODELS: dict[str, tuple[str, Callable[[], nn.Module], Any, list[str]]] = {
    "SegFormer": ("transformers", segformer, IMAGES, ["", "decode_head"]),
    "Segformer of smp": (
        "segmentation_models_pytorch", segmentation("Segformer", decoder_segmentation_channels=16),
        IMAGES, ["decoder", "segmentation_head.1"],
    ),
    "PSPNet": (
        "segmentation_models_pytorch", segmentation("PSPNet", psp_out_channels=16),
        IMAGES, ["decoder", "segmentation_head.1"],
    ),
    "DeepLabV3 of smp": (
        "segmentation_models_pytorch", segmentation("DeepLabV3", decoder_channels=8),
        IMAGES, ["decoder.aspp", "segmentation_head.1"],
    ),
    "FusionBlock": ("segmentation_models_pytorch", fusion_block, LEVELS, [""]),
    "DeepLabHead": ("torchvision", deeplab, MAP, ["0"]),
    "LR-ASPP": ("torchvision", LowAndHigh, PAIR, ["head"]),
    "DPT": ("transformers", depth_layer("dpt", "DPT", "DPTConfig"), RESIZED, [""]),
    "Depth Anything": (
        "transformers", depth_layer("depth_anything", "DepthAnything", "DepthAnythingConfig"),
        SIZED, [""],
    ),
    "Prompt Depth Anything": (
        "transformers",
        depth_layer("prompt_depth_anything", "PromptDepthAnything", "PromptDepthAnythingConfig"),
        {**SIZED, "prompt_depth": images(2, 1, 8, 8)}, [""],
    ),
    "ZoeDepth": ("transformers", ZOE_DEPTH, RESIZED, [""]),
    "TIPS v2": ("transformers", TIPS, LEVELS, [""]),
    "CHMv2": ("transformers", depth_layer("chmv2", "CHMv2", "CHMv2Config"), SIZED, [""]),
}  # fmt: skip
each_model = pytest.mark.parametrize("name", MODELS)


def make(name: str) -> tuple[nn.Module, Any, list[str]]:
    package, build, inputs, sites = MODELS[name]
    require_or_skip("torchvision_on_cpu")
    require_or_skip("torchvision")
    require_or_skip(package)
    return lively(build()), inputs, sites


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    output = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return list(output.values()) if isinstance(output, dict) else [output]


@each_model
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_agrees_in_float64(name: str, training: bool) -> None:
    model, inputs, sites = make(name)
    found = msr_cuda.verify(model.train(training), inputs, algebra=True)
    assert found, found
    assert fused_names(found.report) == sites
    projected = [site for site in found.report.swapped if ".Projected" in str(site.twin)]
    assert projected, found.report


@each_model
def test_saves_operations_and_bytes(name: str) -> None:
    model, inputs, _ = make(name)
    report = fuse(model.eval(), algebra=True)
    if isinstance(inputs, dict):
        report.measure(**inputs)
    else:
        report.measure(*inputs)
    assert report.total is not None
    assert 0 < report.total.fused_operations < report.total.eager_operations
    assert report.total.fused_bytes < report.total.eager_bytes
    assert "multiply-adds saved" in str(report)


@each_model
def test_is_undone(name: str) -> None:
    model, inputs, _ = make(name)
    model.eval()
    state, classes = model.state_dict(), [type(m) for m in model.modules()]
    with torch.no_grad():
        before = call(model, inputs)
        fuse(model, algebra=True)
        assert list(model.state_dict()) == list(state)
        twin = copy.deepcopy(model)
        unfuse(model)
        after = call(model, inputs)
        copied = call(twin, inputs)
    assert [type(m) for m in model.modules()] == classes
    assert all(map(torch.equal, before, after))
    for x, y in zip(before, copied, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["SegFormer", "PSPNet", "DeepLabHead", "LR-ASPP", "DPT"])
def test_compiles_whole(name: str) -> None:
    model, inputs, _ = make(name)
    report = fuse(model.eval(), algebra=True)
    with torch.no_grad():
        plain = call(model, inputs)  # first: models of transformers prepare hooks then
        for site in report.swapped:
            module = model.get_submodule(site.names[0])
            module.forward = torch.compile(module.forward, backend="eager", fullgraph=True)
        compiled = call(model, inputs)
    assert all(map(torch.equal, compiled, plain))


def test_running_statistics_are_those_of_the_model() -> None:
    model, inputs, _ = make("DeepLabHead")
    twin = copy.deepcopy(model.double()).train()
    model.train()
    fuse(twin, algebra=True)
    x = inputs[0].double()
    for module in (model, twin):
        torch.manual_seed(0)
        module(x)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(twin.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)
        assert buffer.abs().sum() > 0


def test_autocast_keeps_the_dtype() -> None:
    model, inputs, _ = make("SegFormer")
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = call(model, inputs)[0]
        fuse(model, algebra=True)
        after = call(model, inputs)[0]
    assert after.dtype == before.dtype == torch.bfloat16
    torch.testing.assert_close(after, before, rtol=0.1, atol=0.05)


# What comes after fusing.


def pruned(conv: nn.Module) -> None:
    prune.l1_unstructured(conv, "weight", amount=0.5)


def parametrized(conv: nn.Module) -> None:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    parametrize.register_parametrization(conv, "weight", Halved(), unsafe=True)


def watched(conv: nn.Module) -> None:
    conv.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize("change", [pruned, parametrized, watched])
@pytest.mark.parametrize("name", ["SegFormer", "PSPNet", "DeepLabHead", "Segformer of smp"])
def test_changes_of_the_convolution_after_fusing_count(
    name: str, change: Callable[[nn.Module], None]
) -> None:
    """The original forward runs then: it calls the convolution."""
    convolution = {
        "SegFormer": "decode_head.linear_fuse",
        "PSPNet": "decoder.conv.0",
        "DeepLabHead": "0.project.0",
        "Segformer of smp": "decoder.fuse_stage.0",
    }[name]
    model, inputs, _ = make(name)
    twin = copy.deepcopy(model.eval())
    fuse(twin, algebra=True)
    with torch.no_grad():
        untouched = call(twin, inputs)
        for module in (model, twin):
            change(module.get_submodule(convolution))
        expected, actual = call(model, inputs), call(twin, inputs)
    for x, y, z in zip(expected, actual, untouched, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5)
        assert (y - z).abs().max() > 1e-3 * z.abs().max()


def test_what_is_changed_before_is_left_alone() -> None:
    model, _, _ = make("DeepLabHead")
    watched(model[0].project[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing may be left to fuse
        report = fuse(model, algebra=True)
    (site,) = [s for s in (*report.skipped, *report.swapped) if s.names == ("0",)]
    assert "a hook on project.0 would be bypassed" in site.how
    assert site.twin is None or ".Projected" not in site.twin


# The registry.


class Head(nn.Module):
    def __init__(self, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(torch.cat([x, F.interpolate(y, x.shape[2:])], 1))


class FusedHead(Head):
    """One pass into the concatenation."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(msr_cuda.resample_cat([x, y]))


class ProjectedHead(Head):
    """Projected first."""

    @staticmethod
    def skip_reasons(module: Head) -> list[str]:
        return _pointwise.pointwise_reasons(module.conv, "conv")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return _pointwise.project(self.conv, [x, y], x.shape[2:], mode="nearest")


@pytest.fixture
def heads() -> Iterator[None]:
    register(Head)(FusedHead)
    register(Head, algebra=True)(ProjectedHead)
    yield
    unregister(ProjectedHead)
    unregister(FusedHead)


@pytest.mark.usefixtures("heads")
def test_algebra_is_asked_for_and_goes_first() -> None:
    model = Head()
    with msr_cuda.fused(model):
        assert type(model) is FusedHead
    with msr_cuda.fused(model, algebra=True) as report:
        assert type(model) is ProjectedHead
        assert [site.how for site in report.swapped] == ["Projected first."]
    wide = Head(3)
    report = fuse(wide, algebra=True)
    assert type(wide) is FusedHead
    (site,) = report.swapped
    reason = "conv is not a 1x1 convolution of stride 1 and one group; conv pads"
    assert site.how == f"One pass into the concatenation. Not by algebra: {reason}."
    assert unfuse(wide) == 1
    assert type(wide) is Head


# The arithmetic.

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = (9, 10, 6)
ACTIVATIONS = [
    None, nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.LeakyReLU(0.3), nn.SiLU(), nn.GELU(),
    nn.GELU("tanh"), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(),
]  # fmt: skip


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("norm", ["none", "eval", "train", "no statistics", "no factors"])
def test_project(rank: int, activation: nn.Module | None, norm: str) -> None:
    size = SIZE[:rank]
    coarse, fine = [n // 4 for n in size], [2 * n for n in size]
    shapes = [(2, *coarse), (1, *size), (3, *fine), (2, *[1] * rank), (2, *size)]
    maps = [torch.randn(3, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    conv = CONVOLUTIONS[rank](10, 5, 1, bias=norm != "eval").double()
    layer: nn.Module | None = None
    if norm != "none":
        options = {"track_running_stats": norm != "no statistics", "affine": norm != "no factors"}
        layer = NORMS[rank](5, **options).double().train(norm == "train")
        for x in (*layer.parameters(), *layer.buffers()):
            if x.is_floating_point():
                nn.init.uniform_(x, 0.5, 1.5)
    mode = ("linear", "bilinear", "trilinear")[rank - 1]
    ours = copy.deepcopy(layer)
    actual = _pointwise.project(
        conv, maps, size, mode=mode, align_corners=True, norm=ours, activation=activation
    )
    resized = [F.interpolate(x, size, mode=mode, align_corners=True) for x in maps]
    expected = conv(torch.cat(resized, 1))
    for module in (layer, activation):
        expected = expected if module is None else module(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    parameters = [*maps, *conv.parameters()]
    weights = torch.randn_like(expected)
    theirs = [*parameters, *(layer.parameters() if layer else ())]
    own = [*parameters, *(ours.parameters() if ours else ())]
    for x, y in zip(
        torch.autograd.grad(actual, own, weights),
        torch.autograd.grad(expected, theirs, weights),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_project_is_one_pass_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norm and activation are arguments of the one fused call; no map is resampled by itself."""
    seen: list[Any] = []
    monkeypatch.setattr(msr_cuda.functional, "observers", [seen.append])
    conv, norm = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3).eval()
    maps = [images(1, 2, 4, 4), images(1, 2, 8, 8)]
    y = _pointwise.project(conv, maps, (8, 8), mode="bilinear", norm=norm, activation=nn.ReLU())
    (observation,) = seen
    assert observation.function == "resample_sum"
    assert observation.activation == "relu"
    assert [tuple(x.shape) for x in observation.inputs] == [(1, 3, 8, 8), (1, 3, 4, 4)]
    assert observation.output is y


def test_pointwise_reasons() -> None:
    assert _pointwise.pointwise_reasons(nn.Conv2d(2, 3, 1), "conv") == []
    assert _pointwise.pointwise_reasons(nn.Conv1d(2, 3, 1, padding="same"), "conv") == []
    for conv in (nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 1, stride=2), nn.Conv2d(2, 2, 3)):
        (reason,) = _pointwise.pointwise_reasons(conv, "head")
        assert reason.startswith("head is not a 1x1 convolution")
    assert _pointwise.pointwise_reasons(nn.Conv2d(2, 2, 1, padding=1), "head") == ["head pads"]
    (reason,) = _pointwise.pointwise_reasons(nn.Linear(2, 2), "head")
    assert reason == "head is a Linear, not a plain convolution"
