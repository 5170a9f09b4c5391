"""Exported, compiled ahead of time and checkpointed, operators stay the operators they are."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import missing
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import msr_cuda
from msr_cuda import Pool, functional


class Operators(nn.Module):
    """Every operator whose result is a map, in every form that kernels know."""

    def forward(self, a: Tensor, b: Tensor, weights: Tensor) -> list[Tensor]:
        found = [
            msr_cuda.resample(a, b.shape[2:], mode="bicubic", antialias=True, impl="kernel"),
            msr_cuda.resample(a, scale_factor=1.5, mode="bilinear", impl="kernel"),
            msr_cuda.resample_sum([a, b], weights=weights[:2], activation="relu", impl="kernel"),
            msr_cuda.resample_sum(
                [a, b], mode=["nearest", "area"], scale=weights, bias=weights, activation="gelu",
                impl="kernel",
            ),
            msr_cuda.resample_cat(
                [b, a, b], mode=[Pool("max", 3, 1, 1), "bilinear", "nearest"], impl="kernel"
            ),
            msr_cuda.resample_max([a, b], mode="bilinear", activation="relu", impl="kernel"),
        ]  # fmt: skip
        found += msr_cuda.resample_pyramid(a, scale_factors=[0.5, 2.0], mode="area", impl="kernel")
        jobs = [{"inputs": [a, b], "activation": "relu"}, {"inputs": [b, a], "mode": "bilinear"}]
        return found + msr_cuda.resample_sum_many(jobs, impl="kernel")


class Modules(nn.Module):
    """Every module of msr_cuda.nn, with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = msr_cuda.nn.FeaturePyramidNetwork([3, 3], 4)
        self.up = msr_cuda.nn.Resample(scale_factor=2.0, mode="bilinear")
        self.sum = msr_cuda.nn.ResampleSum(
            2, num_channels=4, channel_weights=True, normalize="softmax", scale=True, bias=True,
            activation="silu", mode="bilinear",
        )  # fmt: skip
        self.fuse = msr_cuda.nn.ResampleSum(2, normalize="fast", activation="relu")
        self.cat = msr_cuda.nn.ResampleCat(mode="bilinear", activation="relu")

    def forward(self, a: Tensor, b: Tensor, _: Tensor) -> list[Tensor]:
        levels = list(self.pyramid(OrderedDict(a=a, b=b)).values())
        merged = self.sum(levels)
        return [merged, self.fuse([levels[1], merged]), self.cat([self.up(merged), a])]


#: Which of our operators the graph of each has.
EXPECTED = {
    Operators: {"gather.default", "gather.full", "gather.extended", "gather_many.default"},
    Modules: {"gather.default", "gather.full", "gather.extended"},
}
#: ATen's ways of resampling, and of indexing by tables.
DECOMPOSED = ("upsample", "interpolate", "index", "gather", "scatter", "pool", "grid", "take")

every_model = pytest.mark.parametrize("model", EXPECTED, ids=lambda model: model.__name__)


def example(device: str, batch: int = 2, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    # Sizes differ from each other and from the batch: equal ones would be taken for one symbol.
    shapes = [(batch, 3, 14 + seed, 18 + 3 * seed), (batch, 3, 8 + 2 * seed, 11 + seed), (3,)]
    return [torch.randn(shape, device=device) for shape in shapes]


def dynamic() -> list[dict[int, Any]]:
    dim = torch.export.Dim
    batch = dim("batch", min=1, max=64)
    return [
        {0: batch, 2: dim("height", min=4, max=512), 3: dim("width", min=4, max=512)},
        {0: batch, 2: dim("low_height", min=3, max=512), 3: dim("low_width", min=3, max=512)},
        {},
    ]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, about itself
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def exported(
    model: type[nn.Module], device: str, *, sizes: bool, strict: bool = False
) -> tuple[nn.Module, torch.export.ExportedProgram]:
    module = model().to(device).eval()
    if strict and sizes:  # Dynamo cannot trace every backward for sizes of a range
        module.requires_grad_(False)
    shapes = dynamic() if sizes else None
    program = torch.export.export(
        module, tuple(example(device)), dynamic_shapes=shapes, strict=strict
    )
    return module, program


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """What the graph calls. Strict export keeps what ran without gradients as graphs within it."""
    return {
        str(node.target)
        for module in program.graph_module.modules()
        for node in module.graph.nodes
        if node.op == "call_function"
    }


def assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


@every_model
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("sizes", [False, True], ids=["static", "dynamic"])
def test_exported_graphs_have_plain_operators(
    model: type[nn.Module], sizes: bool, strict: bool, kernel: str
) -> None:
    module, program = exported(model, kernel, sizes=sizes, strict=strict)
    for form in (program, program.run_decompositions()):
        found = operators(form)
        ours = {name.removeprefix("msr_cuda.") for name in found if name.startswith("msr_cuda.")}
        assert ours == EXPECTED[model]
        others = [name.removeprefix("aten.") for name in found if not name.startswith("msr_cuda.")]
        assert not [name for name in others if name.startswith(DECOMPOSED)]
        for batch, seed in ((2, 0), (3, 1), (1, 5)) if sizes else ((2, 0),):
            inputs = example(kernel, batch, seed)
            assert_same_bits(form.module()(*inputs), module(*inputs))


@every_model
@pytest.mark.parametrize("sizes", [False, True], ids=["static", "dynamic"])
def test_exported_programs_can_be_saved(
    model: type[nn.Module], sizes: bool, kernel: str, tmp_path: Path
) -> None:
    module, program = exported(model, kernel, sizes=sizes)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2")
    inputs = example(kernel, 3, 1) if sizes else example(kernel)
    assert_same_bits(loaded.module()(*inputs), module(*inputs))


def test_compiled_ahead_of_time(kernel: str, tmp_path: Path) -> None:
    """By AOTInductor, for all sizes: what it loads again calls the same operators."""
    if not hasattr(torch._inductor, "aoti_compile_and_package"):
        missing("this PyTorch cannot compile ahead of time")
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        missing("there is no C++ compiler")
    module, program = exported(Operators, kernel, sizes=True)
    path = str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    compiled = torch._inductor.aoti_load_package(path)
    for batch, seed in ((2, 0), (3, 1)):
        inputs = example(kernel, batch, seed)
        assert_same_bits(list(compiled(*inputs)), module(*inputs))


@pytest.mark.parametrize("reentrant", [False, True], ids=["not-reentrant", "reentrant"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_checkpointing(reentrant: bool, compiled: bool, kernel: str) -> None:
    """What is computed again for the backward gives the same gradients, bit by bit."""
    inputs = [x.requires_grad_() for x in example(kernel)]

    def block(*inputs: Tensor) -> tuple[Tensor, ...]:  # of a list, PyTorch loses the gradients
        return tuple(Operators()(*inputs))

    def checkpointed(*inputs: Tensor) -> tuple[Tensor, ...]:
        return checkpoint(block, *inputs, use_reentrant=reentrant)

    def gradients(function: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        outputs = function(*inputs)
        torch.manual_seed(1)
        upstream = [torch.randn_like(y) for y in outputs]
        for x in inputs:
            x.grad = None
        torch.autograd.backward(outputs, upstream)
        return [x.grad for x in inputs if x.grad is not None]

    plain = gradients(block)
    assert len(plain) == len(inputs) and all(g.abs().max() > 0 for g in plain)
    if compiled:
        function = torch.compile(checkpointed, fullgraph=True, backend="aot_eager")
        assert_same_bits(gradients(function), plain)
        return
    told: list[object] = []
    functional.observers.append(told.append)
    try:
        assert_same_bits(gradients(checkpointed), plain)
    finally:
        functional.observers.remove(told.append)
    assert len(told) > len(block(*inputs))  # forward, and again as far as needed
