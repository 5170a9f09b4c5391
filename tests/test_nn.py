"""Modules: equal to the ones they are twins of, with every option in effect."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch
from conftest import require_or_skip
from torch import Tensor, nn

import msr_cuda
from msr_cuda import testing
from msr_cuda.nn import (
    FeaturePyramidNetwork,
    Resample,
    ResampleCat,
    ResampleMax,
    ResamplePyramid,
    ResampleSum,
)

Levels = OrderedDict[str, Tensor]


@pytest.fixture(scope="module")
def torchvision_ops() -> Any:
    require_or_skip("torchvision_on_cpu")
    require_or_skip("torchvision")
    return require_or_skip("torchvision.ops")


def assert_equal_to_twin(actual: Tensor, expected: Tensor, what: str) -> None:
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype == torch.float64, what
    assert expected.abs().max() > 0, f"{what} is zero, so the comparison says nothing"
    error = (actual - expected).abs().max()
    assert error <= testing.SWAPPED_RTOL * expected.abs().max(), f"{what} is off by {error}"


def assert_same_gradients(module: nn.Module, twin: nn.Module) -> None:
    expected = dict(twin.named_parameters())
    assert expected
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        twin_grad = expected[name].grad
        assert twin_grad is not None, name
        assert_equal_to_twin(parameter.grad, twin_grad, f"the gradient of {name}")


UPSAMPLES = {
    "nearest size 2-D": (dict(size=(7, 11)), (2, 3, 5, 4)),
    "nearest by 2": (dict(scale_factor=2), (2, 3, 5, 7)),
    "nearest by 1.5 and 2.25": (dict(scale_factor=(1.5, 2.25)), (1, 2, 7, 6)),
    "nearest down": (dict(scale_factor=0.4), (1, 2, 11, 13)),
    "nearest recomputed": (dict(scale_factor=1.5, recompute_scale_factor=True), (1, 2, 7, 9)),
    "nearest 1-D": (dict(scale_factor=3), (2, 3, 5)),
    "nearest 3-D": (dict(size=(3, 5, 9)), (1, 2, 4, 3, 5)),
    "nearest-exact": (dict(size=9, mode="nearest-exact"), (1, 2, 5, 7)),
    "linear": (dict(scale_factor=2.5, mode="linear"), (2, 3, 7)),
    "bilinear size": (dict(size=(13, 4), mode="bilinear"), (2, 3, 5, 9)),
    "bilinear by 1.7": (dict(scale_factor=1.7, mode="bilinear"), (2, 3, 5, 9)),
    "bilinear recomputed": (
        dict(scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
        (2, 3, 5, 9),
    ),
    "bilinear corners": (dict(size=(9, 9), mode="bilinear", align_corners=True), (1, 2, 4, 7)),
    "trilinear": (dict(scale_factor=2, mode="trilinear"), (1, 2, 3, 4, 5)),
    "bicubic": (dict(scale_factor=1.7, mode="bicubic"), (2, 3, 5, 9)),
    "bicubic corners": (dict(size=(9, 4), mode="bicubic", align_corners=True), (1, 2, 5, 7)),
    "area": (dict(size=(3, 8), mode="area"), (1, 2, 7, 5)),
    "same size": (dict(size=(5, 7), mode="bilinear"), (1, 2, 5, 7)),
}


@pytest.mark.parametrize("case", UPSAMPLES)
def test_resample_equals_upsample(case: str) -> None:
    options, shape = UPSAMPLES[case]
    module, twin = Resample(**options), nn.Upsample(**options)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    x_twin = x.detach().clone().requires_grad_()
    actual, expected = module(x), twin(x_twin)
    assert_equal_to_twin(actual, expected, "the result")
    g = torch.randn_like(expected)
    actual.backward(g)
    expected.backward(g)
    assert x.grad is not None
    assert x_twin.grad is not None
    assert_equal_to_twin(x.grad, x_twin.grad, "the gradient")


def test_resample_looks_like_upsample() -> None:
    module = Resample(scale_factor=(2, 3), mode="bilinear", align_corners=True)
    twin = nn.Upsample(scale_factor=(2, 3), mode="bilinear", align_corners=True)
    assert repr(module) == repr(twin).replace("Upsample", "Resample")
    assert isinstance(module, nn.Upsample)
    assert module.scale_factor == (2.0, 3.0)
    assert vars(module).keys() == vars(twin).keys()


def test_resample_leaves_integer_maps_to_torch() -> None:
    mask = torch.randint(0, 256, (1, 2, 5, 7), dtype=torch.uint8)
    options = dict(scale_factor=1.5, mode="nearest")
    result = Resample(**options)(mask)
    assert result.dtype == torch.uint8
    assert torch.equal(result, nn.Upsample(**options)(mask))


def test_resample_rejects_unknown_modes() -> None:
    with pytest.raises(ValueError, match="resample: expected mode"):
        Resample(scale_factor=2, mode="sinc")(torch.rand(1, 1, 4, 4))


def maps(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


OPTIONS = {
    "default": ({}, None),
    "bilinear": (dict(mode="bilinear"), None),
    "corners": (dict(mode="bilinear", align_corners=True), None),
    "size": ({}, (12, 5)),
    "scale factors": (dict(mode="bilinear", scale_factors=[None, 1.5]), (9, 13)),
    "per input": (dict(mode=["nearest", "bilinear"], align_corners=[None, True]), (11, 10)),
    "antialias": (dict(mode="bilinear", antialias=True), (4, 5)),
    "antialias per input": (dict(mode="bilinear", antialias=[True, False]), (4, 5)),
    "relu": (dict(activation="relu"), None),
    "dtype": (dict(dtype=torch.float32), None),
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("kind", ["sum", "weighted sum", "cat"])
def test_every_option_reaches_the_operator(case: str, kind: str) -> None:
    options, size = OPTIONS[case]
    inputs = maps((2, 3, 9, 13), (2, 3, 6, 9))
    module: nn.Module
    if kind == "cat":
        module = ResampleCat(**options)
        expected = msr_cuda.resample_cat(inputs, size, **options)
        default = msr_cuda.resample_cat(inputs)
    else:
        weights = None
        module = ResampleSum(2 if kind == "weighted sum" else None, **options)
        if kind == "weighted sum":
            weights = torch.tensor([0.5, -1.5])
            module.load_state_dict({"weight": weights})
        expected = msr_cuda.resample_sum(inputs, size, weights=weights, **options)
        default = msr_cuda.resample_sum(inputs, weights=weights)
    assert torch.equal(module(inputs, size), expected)
    if case != "default":
        same = default.dtype == expected.dtype and torch.equal(default, expected)
        assert not same, "the case does not show whether the option is used"


#: Constructor options of ResampleSum, and the parameters that they make.
PARAMETERS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "softmax": (dict(num_weights=2, normalize="softmax"), {"weight": (2,)}),
    "fast": (dict(num_weights=2, normalize="fast"), {"weight": (2,)}),
    "eps": (dict(num_weights=2, normalize="fast", eps=0.5), {"weight": (2,)}),
    "channel weights": (
        dict(num_weights=2, num_channels=3, channel_weights=True),
        {"weight": (2, 3)},
    ),
    "softmax of channel weights": (
        dict(num_weights=2, num_channels=3, channel_weights=True, normalize="softmax"),
        {"weight": (2, 3)},
    ),
    "scale": (dict(num_channels=3, scale=True), {"scale": (3,)}),
    "bias": (dict(num_channels=3, bias=True), {"bias": (3,)}),
    "out_scale": (dict(out_scale=0.25), {}),
    "all": (
        dict(num_weights=2, num_channels=3, scale=True, bias=True, out_scale=3.0),
        {"weight": (2,), "scale": (3,), "bias": (3,)},
    ),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_parameter_of_a_sum_reaches_the_operator(case: str) -> None:
    options, shapes = PARAMETERS[case]
    inputs = maps((2, 3, 9, 13), (2, 3, 6, 9))
    module = ResampleSum(**options, mode="bilinear", activation="silu")
    state = module.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes
    default = ResampleSum(mode="bilinear", activation="silu")(inputs)
    start = module(inputs)
    if not options.keys() & {"normalize", "out_scale"}:
        assert_equal_to_twin(start, default, "the sum with parameters as they start")

    values = {name: torch.rand(shape) + 0.1 for name, shape in shapes.items()}
    module.load_state_dict(values)
    arguments: dict[str, Any] = {
        "weights" if name == "weight" else name: value.clone().requires_grad_()
        for name, value in values.items()
    }
    constants = {
        name: options[name] for name in ("normalize", "eps", "out_scale") if name in options
    }
    expected = msr_cuda.resample_sum(
        inputs, mode="bilinear", activation="silu", **arguments, **constants
    )
    result = module(inputs)
    assert torch.equal(result, expected)
    assert not torch.equal(result, default), "the case does not show whether the option is used"
    if not shapes:
        return
    result.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in module.named_parameters():
        twin = arguments["weights" if name == "weight" else name]
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
        assert torch.equal(parameter.grad, twin.grad)


@pytest.mark.parametrize("normalize", ["softmax", "fast"])
def test_normalized_weights_start_as_a_mean(normalize: str) -> None:
    inputs = maps((2, 3, 9, 13), (2, 3, 6, 9), (2, 3, 4, 5))
    mean = msr_cuda.resample_sum(inputs, out_scale=1 / 3)
    assert_equal_to_twin(ResampleSum(3, normalize=normalize, eps=0)(inputs), mean, "the mean")


def test_sources_may_be_poolings() -> None:
    mode = ["nearest", msr_cuda.Pool("max", 3, 2, 1)]
    inputs = maps((2, 3, 4, 6), (2, 3, 8, 12))
    assert torch.equal(
        ResampleSum(mode=mode)(inputs),
        inputs[0] + nn.functional.max_pool2d(inputs[1], 3, 2, 1),
    )
    pooled = nn.functional.max_pool2d(inputs[1], 3, 2, 1)
    assert torch.equal(ResampleCat(mode=mode)(inputs), torch.cat([inputs[0], pooled], 1))


def test_weights_start_as_ones_and_are_learned() -> None:
    module = ResampleSum(3, mode="bilinear", activation="relu")
    inputs = maps((2, 4, 8, 8), (2, 4, 4, 4), (2, 4, 3, 5), dtype=torch.float32)
    assert list(module.state_dict()) == ["weight"]
    assert torch.equal(module.weight, torch.ones(3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loss = (module(inputs) - 1).square().mean()
    loss.backward()
    assert module.weight.grad is not None
    assert (module.weight.grad != 0).all()
    optimizer.step()
    assert (module(inputs) - 1).square().mean() < loss
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in inputs)
    module.reset_parameters()
    assert torch.equal(module.weight, torch.ones(3))


def test_weight_gradient_equals_that_of_torch() -> None:
    module = ResampleSum(2, mode="bilinear").double()
    inputs = maps((2, 3, 9, 13), (2, 3, 4, 7))
    module(inputs).square().sum().backward()
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    up = nn.functional.interpolate(inputs[1].detach(), (9, 13), mode="bilinear")
    (weight[0] * inputs[0].detach() + weight[1] * up).square().sum().backward()
    assert module.weight.grad is not None
    assert weight.grad is not None
    assert_equal_to_twin(module.weight.grad, weight.grad, "the gradient of weight")


def test_representations() -> None:
    assert repr(ResampleSum()) == "ResampleSum(mode='nearest')"
    assert repr(ResampleSum(2, activation="relu")) == (
        "ResampleSum(num_weights=2, mode='nearest', activation='relu')"
    )
    cat = ResampleCat(
        mode="bilinear", align_corners=False, scale_factors=[2.0, None], dtype=torch.float16
    )
    assert repr(cat) == (
        "ResampleCat(mode='bilinear', align_corners=False, scale_factors=[2.0, None], "
        "dtype=torch.float16)"
    )


def test_representations_of_parameters() -> None:
    module = ResampleSum(
        2, num_channels=4, channel_weights=True, normalize="fast", eps=0.01, scale=True, bias=True,
        out_scale=0.5, mode="linear", antialias=True,
    )  # fmt: skip
    assert repr(module) == (
        "ResampleSum(num_weights=2, num_channels=4, channel_weights=True, scale=True, bias=True, "
        "mode='linear', antialias=True, normalize='fast', eps=0.01, out_scale=0.5)"
    )
    assert repr(ResampleSum(num_channels=4, bias=True)) == (
        "ResampleSum(num_channels=4, bias=True, mode='nearest')"
    )
    assert repr(ResampleCat(antialias=[True, False], mode="bicubic")) == (
        "ResampleCat(mode='bicubic', antialias=[True, False])"
    )


def test_sum_can_be_copied_and_placed() -> None:
    placed = ResampleSum(2, num_channels=3, scale=True, bias=True, device="meta")
    assert {p.device.type for p in placed.parameters()} == {"meta"}
    assert len(list(placed.parameters())) == 3
    module = copy.deepcopy(ResampleSum(2, mode="bilinear"))
    inputs = maps((1, 2, 4, 4), (1, 2, 2, 2))
    assert torch.equal(module(inputs), msr_cuda.resample_sum(inputs, mode="bilinear"))


@pytest.mark.parametrize("name", ["num_weights", "num_channels"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (True, TypeError), (2.0, TypeError)])
def test_sum_rejects_numbers(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"ResampleSum: expected {name} to be"):
        ResampleSum(**{name: value}, bias=name == "num_channels")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=True), "expected num_channels with scale=True, got None"),
        (dict(num_weights=2, channel_weights=True), "expected num_channels with channel_weights="),
        (dict(num_channels=3), "expected num_channels only with channel_weights, scale, bias"),
        (dict(normalize="fast"), "expected num_weights with normalize='fast', got None"),
        (
            dict(num_channels=3, channel_weights=True),
            "expected num_weights with channel_weights=True, got None",
        ),
    ],
)
def test_sum_rejects_options_that_lack_a_number(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^ResampleSum: {message}"):
        ResampleSum(**options)


class PoolBlock(nn.Module):
    """An extra block with a parameter, by the signature alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        assert len(x) == len(results)
        return [*results, self.convolution(results[-1])], [*names, "pool"]


def pyramid_inputs() -> Levels:
    # Odd, not halved, and the last two of one size: levels that need no resampling occur.
    sizes = [(25, 31), (13, 15), (7, 8), (7, 8)]
    return OrderedDict(
        (f"f{i}", torch.randn(2, 4 * (i + 1), *size, dtype=torch.float64))
        for i, size in enumerate(sizes)
    )


def norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


@pytest.mark.parametrize("norm_layer", [None, norm])
@pytest.mark.parametrize("extra", [False, True])
def test_pyramid_equals_torchvision(torchvision_ops: Any, norm_layer: Any, extra: bool) -> None:
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    def make(cls: Any) -> Any:
        torch.manual_seed(1)
        block = LastLevelP6P7(8, 8) if extra else None
        return cls([4, 8, 12, 16], 8, block, norm_layer).double()

    module, twin = make(FeaturePyramidNetwork), make(torchvision_ops.FeaturePyramidNetwork)
    expected_state = twin.state_dict()
    assert list(module.state_dict()) == list(expected_state)
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected_state[name]), f"{name} starts differently"
    x = pyramid_inputs()
    actual, expected = module(OrderedDict(x)), twin(OrderedDict(x))
    assert list(actual) == list(expected)
    for name, level in actual.items():
        assert_equal_to_twin(level, expected[name], name)
    sum(level.square().sum() for level in actual.values()).backward()
    sum(level.square().sum() for level in expected.values()).backward()
    assert_same_gradients(module, twin)


def test_pyramid_equals_torchvision_with_fewer_maps(torchvision_ops: Any) -> None:
    module = FeaturePyramidNetwork([4, 8, 12, 16], 8).double()
    twin = torchvision_ops.FeaturePyramidNetwork([4, 8, 12, 16], 8).double()
    twin.load_state_dict(module.state_dict())
    x = pyramid_inputs()
    fewer = OrderedDict((name, x[name]) for name in ("f0", "f1", "f3"))
    fewer["f2"] = fewer.pop("f3")  # the last map always goes to the last block
    for name, level in module(fewer).items():
        assert_equal_to_twin(level, twin(fewer)[name], name)


def test_pyramid_loads_checkpoints_of_version_1(torchvision_ops: Any) -> None:
    twin = torchvision_ops.FeaturePyramidNetwork([4, 8], 8)
    old = {}
    for name, value in twin.state_dict().items():
        block, index, _, parameter = name.split(".")
        old[f"{block}.{index}.{parameter}"] = value
    module = FeaturePyramidNetwork([4, 8], 8)
    assert module.load_state_dict(old).missing_keys == []
    for name, value in module.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


def test_pyramid_with_extra_block_of_ones_own() -> None:
    module = FeaturePyramidNetwork([4, 8, 12, 16], 8, extra_blocks=PoolBlock()).double()
    levels = module(pyramid_inputs())
    assert list(levels) == ["f0", "f1", "f2", "f3", "pool"]
    assert levels["pool"].shape == (2, 8, 4, 4)


def test_pyramid_rejects_what_torchvision_rejects() -> None:
    with pytest.raises(ValueError, match="expected in_channels_list to be positive, got 0"):
        FeaturePyramidNetwork([4, 0], 8)
    with pytest.raises(TypeError, match="expected extra_blocks to be a Module or None, got str"):
        FeaturePyramidNetwork([4], 8, extra_blocks="pool")  # type: ignore[arg-type]


def test_importing_imports_no_model_library() -> None:
    code = "import sys, msr_cuda.models, msr_cuda.swap; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    imported = run.stdout.split()
    assert {"msr_cuda.models", "msr_cuda.nn", "msr_cuda.swap"} <= set(imported)
    assert not [name for name in imported if name.partition(".")[0] in ("torchvision", "timm")]


def test_maximum_and_pyramid_are_their_functions() -> None:
    high, low = torch.randn(2, 3, 8, 10), torch.randn(2, 3, 4, 5)
    largest = ResampleMax(mode="bilinear", activation="relu")
    assert repr(largest) == "ResampleMax(mode='bilinear', activation='relu')"
    expected = msr_cuda.resample_max([high, low], mode="bilinear", activation="relu")
    assert torch.equal(largest([high, low]), expected)
    options = {"scale_factors": [0.5, 0.3], "mode": "bilinear", "antialias": True}
    pyramid = ResamplePyramid(**options)
    assert repr(pyramid) == (
        "ResamplePyramid(scale_factors=[0.5, 0.3], mode='bilinear', antialias=True)"
    )
    levels = msr_cuda.resample_pyramid(high, **options)
    assert all(torch.equal(a, b) for a, b in zip(pyramid(high), levels, strict=True))
    assert [tuple(level.shape[2:]) for level in levels] == [(4, 5), (2, 3)]
    with pytest.raises(ValueError, match="exactly one of sizes and scale_factors, got both"):
        ResamplePyramid([3], [0.5])
