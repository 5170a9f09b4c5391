"""Exported, compiled ahead of time and as ONNX, networks give the numbers that they give here."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import missing, require_or_skip
from networks import randomize
from torch import Tensor, nn
from training import one_thread  # noqa: F401

from msr_cuda.models import (
    MultiScaleEncoder,
    MultiScaleResNet,
    ScaleMixtureResNet,
    SegmentationNet,
    multiscale_encoder,
    multiscale_resnet18,
)
from msr_cuda.nn import BasicBlock

SHAPE = (2, 3, 45, 52)


def segmentation() -> nn.Module:
    encoder = multiscale_encoder("resnet18", width=4, out_indices=(1, 2, 3, 4))
    return SegmentationNet(encoder, 3, channels=8)


def mixture() -> nn.Module:
    encoder = multiscale_encoder(
        "resnet18", width=4, scales=[1.0, 0.71, 0.5], fusion=None, out_indices=(4,)
    )
    return ScaleMixtureResNet(encoder, 5)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: multiscale_resnet18(width=4, num_classes=5, fusion="softmax"),
    "segmentation": segmentation,
    "mixture": mixture,
}
every_network = pytest.mark.parametrize("name", NETWORKS)


class Shallow(nn.Module):
    """Each kind of network on the first stages of a trunk: compilers take long."""

    def __init__(self) -> None:
        super().__init__()

        def encoder(fusion: str | None) -> MultiScaleEncoder:
            return MultiScaleEncoder(BasicBlock, [1], out_indices=(1,), width=4, fusion=fusion)

        self.classifier = MultiScaleResNet(encoder("softmax"), 5)
        self.segmentation = SegmentationNet(encoder("sum"), 3, channels=8)
        self.mixture = ScaleMixtureResNet(encoder(None), 5)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.classifier(x), self.segmentation(x), self.mixture(x)]


def ready(network: nn.Module) -> nn.Module:
    """In evaluation, with statistics that normalize to other than what is there."""
    torch.manual_seed(0)
    return randomize(network).eval().requires_grad_(False)


def images(*shape: int) -> Tensor:
    return torch.rand(shape or SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, about itself
        yield


def called(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@every_network
def test_exported(name: str, kernels: None) -> None:
    """With our operators in place of PyTorch's ways of resampling."""
    network = ready(NETWORKS[name]())
    program = torch.export.export(network, (images(),))
    names = called(program)
    assert any(name.startswith("msr_cuda.") for name in names)
    assert not any("upsample" in name or "interpolate" in name for name in names)
    assert torch.equal(program.module()(images()), network(images()))


def test_exported_for_all_sizes(kernels: None, tmp_path: Path) -> None:
    """And for any number of images; from a file."""
    network = ready(Shallow())
    sizes = {axis: torch.export.Dim(name, min=32, max=512) for axis, name in ((2, "h"), (3, "w"))}
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(network, (images(),), dynamic_shapes=[batch | sizes])
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2")
    for shape in (SHAPE, (1, 3, 64, 32), (3, 3, 37, 49)):
        x = images(*shape)
        for ours, theirs in zip(loaded.module()(x), network(x), strict=True):
            assert torch.equal(ours, theirs)


@every_network
def test_onnx_has_plain_operators(name: str) -> None:
    """Also where there are kernels: ONNX has none of them. Run by the reference of the format."""
    onnx = require_or_skip("onnx")
    evaluator = require_or_skip("onnx.reference").ReferenceEvaluator
    network, x = ready(NETWORKS[name]()), images()
    file = io.BytesIO()
    torch.onnx.export(network, (x,), file, dynamo=False)
    model = onnx.load_from_string(file.getvalue())
    assert {node.domain for node in model.graph.node} == {""}
    (found,) = evaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    expected = network(x)
    limit = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=limit)


def check_compiled(network: nn.Module, folder: Path) -> None:
    """By AOTInductor; convolutions may be by other algorithms then."""
    if not hasattr(torch._inductor, "aoti_compile_and_package"):
        missing("this PyTorch cannot compile ahead of time")
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        missing("there is no C++ compiler")
    x = images()
    program = torch.export.export(network, (x,))
    path = str(folder / "network.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    results = torch._inductor.aoti_load_package(path)(x), network(x)
    found, expected = ([y] if isinstance(y, Tensor) else list(y) for y in results)
    for ours, theirs in zip(found, expected, strict=True):
        limit = 1e-4 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=limit)


def test_compiled_ahead_of_time(kernels: None, tmp_path: Path) -> None:
    check_compiled(ready(Shallow().classifier), tmp_path)


@pytest.mark.slow
@every_network
def test_whole_networks_compiled_ahead_of_time(name: str, kernels: None, tmp_path: Path) -> None:
    check_compiled(ready(NETWORKS[name]()), tmp_path)
