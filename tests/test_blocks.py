"""Properties that every block has; what each computes is in test_blocks_formulas.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import networks
import pytest
import torch
from conftest import need_kernel
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
    SqueezeGate,
    make_fusion,
)

#: Odd sizes, none of them half of another, by the number of axes.
SIZES = {
    1: [(13,), (7,), (5,)],
    2: [(9, 7), (5, 4), (3, 2)],
    3: [(5, 4, 3), (3, 2, 2), (2, 1, 1)],
}


class Block(NamedTuple):
    """A block, and the maps that it is called with.

    Attributes:
        make: the block, from the number of spatial axes.
        channels: of each map; several maps are a list, one map alone is not.
        separate: each map is an argument of its own.
        resamples: whether it does (a gate of channels does not).
    """

    make: Callable[[int], nn.Module]
    channels: tuple[int, ...]
    separate: bool = False
    resamples: bool = True

    def arguments(self, dims: int) -> list[Any]:
        maps = [
            torch.randn(2, c, *size, dtype=torch.float64)
            for c, size in zip(self.channels, SIZES[dims], strict=False)
        ]
        return maps if self.separate or len(maps) == 1 else [maps]

    def module(self, dims: int) -> nn.Module:
        return networks.randomize(self.make(dims).double())


SCALES = (1.0, 0.6, 0.4)
BLOCKS = {
    "pyramid": Block(lambda d: ImagePyramid([1.0, 0.5, 1.5]), (2,)),
    "cubic pyramid": Block(lambda d: ImagePyramid([0.7, 1.3], mode="bicubic"), (2,)),
    "Gaussian pyramid": Block(lambda d: ImagePyramid([0.5, 1.0, 1.5], filter="gaussian"), (2,)),
    "scale convolution, max": Block(lambda d: ScaleConvolution(2, 3, scales=SCALES, dims=d), (2,)),
    "scale convolution, softmax": Block(
        lambda d: ScaleConvolution(2, 3, scales=[0.8, 1.2], fusion="softmax", dims=d), (2,)
    ),
    "scale convolution, strided": Block(
        lambda d: ScaleConvolution(
            2, 4, 5, scales=[1.0, 0.5], fusion="fast", stride=2, groups=2, dims=d
        ),
        (2,),
    ),
    "attention per pixel": Block(lambda d: ScaleAttention(2, 3, dims=d), (2, 2, 2)),
    "attention, 3 wide": Block(
        lambda d: ScaleAttention(2, 2, kernel_size=3, hidden=4, dims=d, activation="relu"), (2, 2)
    ),
    "attention per image": Block(lambda d: ScaleAttention(2, 3, per="image", dims=d), (2, 2, 2)),
    "attention per channel": Block(
        lambda d: ScaleAttention(2, 2, per="channel", dims=d, activation="silu"), (2, 2)
    ),
    "learned scale": Block(lambda d: LearnedScale(SCALES), (2, 2, 2)),
    "learned scale by channel": Block(
        lambda d: LearnedScale(SCALES, channels=2, initial=0.5, width=1.0), (2, 2, 2)
    ),
    "residual": Block(lambda d: ResidualFusion([3, 2, 4], 3, dims=d), (3, 2, 4)),
    "weighted residual": Block(
        lambda d: ResidualFusion([2, 2], 2, weights="fast", dims=d, activation=None), (2, 2)
    ),
    "concat": Block(lambda d: ConcatFusion([3, 2], 4, dims=d), (3, 2)),
    "exchange": Block(lambda d: ExchangeUnit([2, 3, 4], dims=d), (2, 3, 4)),
    "branches": Block(lambda d: ParallelBranches([2, 3], blocks=1, dims=d, mode="linear"), (2, 3)),
    "squeeze": Block(lambda d: SqueezeGate(4, 2), (4,), resamples=False),
    "attention gate": Block(lambda d: AttentionGate(3, 2, dims=d), (3, 2), separate=True),
    "basic": Block(lambda d: BasicBlock(2, 3, stride=2, dims=d), (2,), resamples=False),
    "bottleneck": Block(lambda d: Bottleneck(8, 2, dims=d), (8,), resamples=False),
}


def exchanges(name: str) -> bool:
    """Branches half the size of the one before, rounded up."""
    return name in ("exchange", "branches")


def prepared(name: str, dims: int) -> tuple[nn.Module, list[Any]]:
    block = BLOCKS[name]
    module, arguments = block.module(dims), block.arguments(dims)
    if exchanges(name):
        size, maps = SIZES[dims][0], []
        for channels in block.channels:
            maps.append(torch.randn(2, channels, *size, dtype=torch.float64))
            size = tuple((n + 1) // 2 for n in size)
        arguments = [maps]
    return module, arguments


RESAMPLING = [name for name, block in BLOCKS.items() if block.resamples]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", RESAMPLING)
def test_kernels_and_plain_pytorch_give_the_same(name: str, dims: int) -> None:
    need_kernel("cpu")
    networks.assert_kernel_is_reference(*prepared(name, dims))


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients(name: str) -> None:
    dims = 1 if exchanges(name) or name == "bottleneck" else 2
    module, arguments = prepared(name, dims)
    names, values = (
        zip(*module.named_parameters(), strict=True) if list(module.parameters()) else ((), ())
    )
    maps = [x.requires_grad_() for x in networks.leaves(arguments)]
    is_list = not isinstance(arguments[0], Tensor)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        given, parameters = list(tensors[: len(maps)]), tensors[len(maps) :]
        call = (given,) if is_list else tuple(given)
        state = dict(zip(names, parameters, strict=True))
        return tuple(networks.leaves(torch.func.functional_call(module, state, call)))

    inputs = (*maps, *[v.detach().requires_grad_() for v in values])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("name", BLOCKS)
def test_compiles_to_one_graph(name: str) -> None:
    networks.assert_compiles(*prepared(name, 2))


@pytest.mark.parametrize("name", BLOCKS)
def test_repeats_bit_for_bit(name: str) -> None:
    networks.assert_repeats(*prepared(name, 2))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_keeps_channels_last(name: str, dims: int) -> None:
    networks.assert_keeps_channels_last(*prepared(name, dims))


@pytest.mark.parametrize("name", BLOCKS)
def test_runs_in_autocast(name: str) -> None:
    networks.assert_runs_in_autocast(*prepared(name, 2))


@pytest.mark.parametrize("name", BLOCKS)
def test_copies_and_loads(name: str) -> None:
    module, arguments = prepared(name, 2)
    networks.assert_copies(module, lambda: BLOCKS[name].make(2), arguments)


@pytest.mark.parametrize("name", BLOCKS)
def test_takes_single_pixels(name: str) -> None:
    """Maps of one pixel, in evaluation: batch norm has nothing to estimate from them."""
    module = BLOCKS[name].module(2).eval()
    maps = [torch.randn(1, c, 1, 1, dtype=torch.float64) for c in BLOCKS[name].channels]
    arguments = maps if BLOCKS[name].separate or len(maps) == 1 else [maps]
    outputs = networks.leaves(module(*arguments))
    assert all(y.isfinite().all() for y in outputs)
    sizes = {tuple(y.shape[2:]) for y in outputs}
    assert sizes <= {(1, 1), (2, 2)}  # 2: 1.5 times one pixel


REJECTED = {
    "dims": (lambda: ScaleConvolution(1, 1, dims=4), "expected dims to be 1, 2 or 3, got 4"),
    "even kernel": (lambda: ScaleConvolution(1, 1, 4), "expected kernel_size to be odd, got 4"),
    "no scale": (lambda: ImagePyramid([]), "expected 1 to 8 scales, got 0"),
    "negative scale": (lambda: ImagePyramid([1, -1]), "expected scales to be positive, got"),
    "filter": (lambda: ImagePyramid(filter="box"), "expected filter to be one of"),
    "mode": (lambda: ImagePyramid(mode="area"), "expected mode to be one of"),
    "blur": (lambda: ImagePyramid(blur=0), "expected blur to be positive, got 0"),
    "per": (lambda: ScaleAttention(4, 2, per="row"), "expected per to be one of"),
    "no use of a kernel": (
        lambda: ScaleAttention(4, 2, per="image", kernel_size=3),
        'expected kernel_size only with per="pixel", got 3',
    ),
    "equal scales": (lambda: LearnedScale([1, 1]), "expected different scales, got"),
    "width": (lambda: LearnedScale([1, 2], width=0), "expected width to be positive, got 0"),
    "initial": (lambda: LearnedScale([1, 2], initial=-1), "expected initial to be positive"),
    "weights": (lambda: ResidualFusion([1], 1, weights="hard"), "expected weights to be one of"),
    "fusion": (lambda: make_fusion("mean", [1], 4), "expected kind to be one of"),
    "maps": (
        lambda: ConcatFusion([1, 1], 1)([torch.rand(1, 1, 2, 2)]),
        "ConcatFusion: expected 2 maps, got 1",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejects(case: str) -> None:
    make, message = REJECTED[case]
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        make()


def test_representations_name_the_options() -> None:
    assert repr(ImagePyramid([1, 0.5], filter="gaussian")) == (
        "ImagePyramid(scales=(1.0, 0.5), filter='gaussian', mode='linear', blur=0.5)"
    )
    assert "4, num_scales=2, per='image'" in repr(ScaleAttention(4, 2, per="image"))
    assert "scales=(1.0, 0.5), width=0.5" in repr(LearnedScale([1, 0.5]))
