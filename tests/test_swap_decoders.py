"""Recipes for segmentation_models_pytorch and timm: options, hooks and what is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_libraries import (
    hrnet,
    narrow_hrnet,
    narrow_segmentation_model,
    smp,  # noqa: F401
    timm,  # noqa: F401
)
from swapping import (
    Case,
    assert_same_in_float64,
    fused_names,
    images,
    one_thread,  # noqa: F401
    reasons,
    run_model,
)
from torch import Tensor, nn

from msr_cuda import functional
from msr_cuda.swap import fuse, unfuse
from msr_cuda.swap.recipes.torch import FusedUpsample

HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


def assert_same(
    model: nn.Module, x: Tensor, sites: list[str] | None = None, **options: Any
) -> nn.Module:
    """Swaps a copy and compares it; returns that copy."""
    model = model.double().eval()
    twin = copy.deepcopy(model)
    report = fuse(twin, **options)
    if sites is not None:
        assert fused_names(report) == sites
    assert_same_in_float64(Case(nn.Identity, (), run_model, []), model, twin, x.double())
    return twin


def unet_block(mode: str = "nearest") -> nn.Module:
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock

    return UnetDecoderBlock(4, 3, 5, interpolation_mode=mode).eval()


def unet_plus_plus_block(mode: str = "nearest") -> nn.Module:
    from segmentation_models_pytorch.decoders.unetplusplus.decoder import DecoderBlock

    return DecoderBlock(4, 3, 5, interpolation_mode=mode).eval()


@pytest.mark.usefixtures("smp")
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("size", [(7, 9), (3, 4), (5, 11), (2, 2)], ids=str)
def test_unet_block_takes_every_size(mode: str, size: tuple[int, int]) -> None:
    block = unet_block(mode).double()
    twin = copy.deepcopy(block)
    fuse(twin, strict=True)
    x, skip = images(2, 4, 3, 4).double(), images(2, 3, *size).double()
    torch.testing.assert_close(twin(x, *size, skip), block(x, *size, skip), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("smp")
@pytest.mark.parametrize("make", [unet_block, unet_plus_plus_block])
def test_unknown_decoder_modes(make: Callable[[str], nn.Module]) -> None:
    assert reasons(make("lanczos")) == ["unknown mode 'lanczos'"]


@pytest.mark.usefixtures("smp")
def test_blocks_reject_skips_of_another_size() -> None:
    block, other = unet_block(), unet_plus_plus_block()
    calls: list[Callable[[], Tensor]] = [
        lambda: block(images(1, 4, 3, 4), 6, 8, images(1, 3, 6, 7)),
        lambda: block(images(2, 4, 3, 4), 6, 8, images(1, 3, 6, 8)),
        lambda: other(images(1, 4, 3, 4), images(1, 3, 6, 7)),
        lambda: other(images(2, 4, 3, 4), images(1, 3, 6, 8)),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            call()
    fuse(nn.ModuleList([block, other]))
    for call in calls:
        with pytest.raises(ValueError, match="expected"):
            call()


@pytest.mark.usefixtures("smp")
def test_unet_plus_plus_block_without_channels() -> None:
    from segmentation_models_pytorch.decoders.unetplusplus.decoder import DecoderBlock

    block = DecoderBlock(4, 3, 0)
    if not getattr(block, "is_empty", False):
        pytest.skip("this version of segmentation_models_pytorch has no such blocks")
    twin = copy.deepcopy(block)
    fuse(twin)
    for skip in (None, images(1, 3, 6, 8)):
        assert twin(images(1, 4, 3, 4), skip).shape == block(images(1, 4, 3, 4), skip).shape


@pytest.mark.usefixtures("smp")
def test_unet_with_center_and_other_depth() -> None:
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = UnetDecoder((3, 4, 5, 6), (8, 7, 6), 3, add_center_block=True)

        def forward(self, x: Tensor) -> Tensor:
            pooled = [nn.functional.adaptive_avg_pool2d(x, n) for n in (40, 20, 9, 5)]
            channels = [3, 4, 5, 6]
            return self.decoder([p[:, :c] for p, c in zip(pooled, channels, strict=True)])

    assert_same(Net(), images(2, 6, 40, 40), [f"decoder.blocks.{i}" for i in range(3)])


@pytest.mark.usefixtures("smp")
@pytest.mark.parametrize("register_hook", HOOKS)
def test_a_hook_on_a_block_sees_what_it_saw(register_hook: str) -> None:
    """In U-Net++ a fused block is given its skips one by one, unless a hook is there to see it."""
    model = narrow_segmentation_model("UnetPlusPlus").eval()
    block = model.decoder.blocks["x_0_1"]
    seen = []
    getattr(block, register_hook)(lambda module, *args: seen.append(args[0]))
    report = fuse(model)
    assert [(site.names, site.how) for site in report.skipped] == [
        (("decoder",), "a hook on blocks.x_0_1 would see skips that are not concatenated")
    ]
    assert "decoder.blocks.x_0_1" in fused_names(report)
    model(images(1, 3, 32, 32)).sum().backward()
    assert len(seen) == 1
    assert all(isinstance(value, Tensor) for value in seen[0])


@pytest.mark.usefixtures("smp")
def test_blocks_that_are_left_out_still_get_one_skip() -> None:
    model = narrow_segmentation_model("UnetPlusPlus")
    twin = assert_same(
        model, images(1, 3, 32, 32), filter=lambda module, name: not name.endswith("x_0_2")
    )
    blocks = twin.decoder.blocks
    assert type(blocks["x_0_2"]).__name__ == "DecoderBlock"
    assert type(blocks["x_1_2"]).__name__ == "FusedDecoderBlock"
    assert type(twin.decoder).__name__ == "FusedUnetPlusPlusDecoder"


@pytest.mark.usefixtures("smp")
def test_unet_plus_plus_concatenates_once() -> None:
    """Every block but the last gets all that it concatenates from one operator."""
    model = narrow_segmentation_model("UnetPlusPlus").eval()
    report = fuse(model).measure(images(1, 3, 32, 32))
    launches = {site.names[0]: site.traffic.fused_launches for site in report.swapped}
    assert launches.pop("decoder") == 0
    assert set(launches.values()) == {1}
    counts = []
    functional.observers.append(lambda observation: counts.append(len(observation.inputs)))
    try:
        model(images(1, 3, 32, 32))
    finally:
        functional.observers.pop()
    assert sorted(counts) == [1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5]


# timm.


@pytest.mark.usefixtures("timm")
def test_features_of_hrnet() -> None:
    from timm import create_model

    # In float64: over a whole network, float32's rounding exceeds any bound on single elements.
    model = create_model("hrnet_w18_small", pretrained=False, features_only=True).eval().double()
    twin = copy.deepcopy(model)
    assert fused_names(fuse(twin)) == ["stage2.0", "stage3.0", "stage4.0"]
    x = images(1, 3, 64, 64).double()
    with torch.no_grad():
        for actual, expected in zip(twin(x), model(x), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.usefixtures("timm")
def test_hrnet_fills_the_list_that_it_is_given() -> None:
    module = narrow_hrnet().eval().stage2[0]
    maps = [images(1, 8, 8, 8), images(1, 12, 4, 4)]
    expected = list(maps)
    module(expected)
    fuse(module)
    actual = list(maps)
    module(actual)
    for a, b, given in zip(actual, expected, maps, strict=True):
        assert torch.equal(a, b)
        assert a is not given


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("register_hook", HOOKS)
@pytest.mark.parametrize("name", ["fuse_act", "fuse_layers.0.1", "fuse_layers.0.1.2"])
def test_a_hook_within_an_hrnet_module_keeps_it(name: str, register_hook: str) -> None:
    model = narrow_hrnet().eval()
    child = model.stage2[0].get_submodule(name)
    calls = []
    handle = getattr(child, register_hook)(lambda *args: calls.append(args))
    report = fuse(model)
    assert [(site.names, site.how) for site in report.skipped] == [
        (("stage2.0",), f"a hook on {name} would be bypassed")
    ]
    # What it leaves is swapped by itself.
    assert type(model.stage2[0].fuse_layers[0][1][2]) is FusedUpsample
    sum(y.sum() for y in model(images(1, 3, 32, 32))).backward()
    assert calls
    unfuse(model)
    handle.remove()
    assert fused_names(fuse(model)) == ["stage2.0", "stage3.0", "stage4.0"]


@pytest.mark.usefixtures("timm")
def test_a_hook_on_a_convolution_of_hrnet_still_runs() -> None:
    model = narrow_hrnet().eval()
    calls = []
    model.stage2[0].fuse_layers[0][1][0].register_forward_hook(lambda *args: calls.append(args))
    assert fuse(model).skipped == []
    model(images(1, 3, 32, 32))
    assert len(calls) == 1


@pytest.mark.usefixtures("timm")
def test_other_activations_of_hrnet_are_called() -> None:
    model = narrow_hrnet()
    calls = []
    for stage, activation in ((model.stage2, nn.SiLU()), (model.stage3, nn.ReLU(inplace=True))):
        stage[0].fuse_act = activation
    model.stage2[0].fuse_act.register_forward_hook(lambda *args: calls.append(args))
    assert_same(model, images(2, 3, 64, 96), ["stage2.0", "stage3.0", "stage4.0"])
    assert len(calls) == 4  # two resolutions, of the model and of its twin


@pytest.mark.usefixtures("timm")
def test_interpolations_of_hrnet_may_differ() -> None:
    model = narrow_hrnet()
    for i, up in enumerate(m for m in model.modules() if isinstance(m, nn.Upsample)):
        if i % 3:
            up.mode = "bilinear"
            up.align_corners = i % 3 == 1
    assert_same(model, images(2, 3, 64, 96), ["stage2.0", "stage3.0", "stage4.0"])


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("replacement", "reason"),
    [
        (nn.Upsample(scale_factor=2, mode="lanczos"), "fuse_layers.0.1.2: unknown mode"),
        (nn.Upsample(size=(8, 8)), "fuse_layers.0.1.2 has a size of its own"),
        (
            nn.Upsample(scale_factor=2, recompute_scale_factor=True),
            "fuse_layers.0.1.2 recomputes its scale factor",
        ),
        (nn.Identity(), "fuse_layers.0.1 is no Sequential of three that ends in an Upsample"),
    ],
    ids=["mode", "size", "recomputed", "none"],
)
def test_hrnet_modules_that_are_left_alone(replacement: nn.Module, reason: str) -> None:
    module = narrow_hrnet().stage2[0]
    module.fuse_layers[0][1][2] = replacement
    report = fuse(nn.ModuleList([module, nn.Upsample(scale_factor=2)]))
    assert [site.names for site in report.skipped if site.names == ("0",)] == [("0",)]
    assert reason in report.skipped[0].how


@pytest.mark.usefixtures("timm")
def test_an_hrnet_module_with_one_branch_is_left_alone() -> None:
    from timm.models.hrnet import BasicBlock, HighResolutionModule

    module = HighResolutionModule(1, BasicBlock, [1], [4], [4], "SUM")
    assert reasons(module) == ["it has a single branch"]


@pytest.mark.usefixtures("timm")
def test_hrnet_after_its_upsamplings_were_fused() -> None:
    """They are absorbed all the same, and everything is restored."""
    model = hrnet().eval()
    fuse(model, filter=lambda module, name: isinstance(module, nn.Upsample))
    upsample = model.stage2[0].fuse_layers[0][1][2]
    assert type(upsample) is FusedUpsample
    report = fuse(model)
    assert fused_names(report) == ["stage2.0", "stage3.0", "stage4.0"]
    unfuse(model)
    assert type(upsample) is nn.Upsample
