"""Swapped models within DDP and FSDP2, and what exporters see of restored ones."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import missing, require_or_skip
from swap_checks import get
from swapping import one_thread, weigh  # noqa: F401
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from zoo import Model

from msr_cuda import testing
from msr_cuda.swap import fuse, unfuse

#: One of each library.
MODELS = [
    ("diffusers", "AutoencoderKL"),
    ("effdet", "EfficientDet-D0, softmax"),
    ("monai", "SegResNet, 2-D"),
    ("smp", "FPN"),
    ("timm", "HRNet"),
    ("torchvision", "FeaturePyramidNetwork"),
    ("transformers", "SegFormer"),
    ("ultralytics", "YOLOv8"),
]
RANKS = 2


def gradients(wrapped: nn.Module, model: nn.Module, entry: Model, x: Tensor) -> dict[str, Tensor]:
    """Of the loss on one rank's images; those of a sharded parameter whole."""
    outputs = {key: value for key, value in entry.run(wrapped, x).items() if value.requires_grad}
    weigh(outputs).backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            found[name] = whole.clone()
    model.zero_grad()
    return found


def wrap(model: nn.Module, wrapper: str) -> nn.Module:
    if wrapper == "DDP":
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    sharded: nn.Module = fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    return sharded


def check(rank: int, library: str, name: str) -> None:
    """Gradients of a fused model, wrapped, are the mean of what the ranks give unwrapped."""
    entry = get(library, name)
    model = entry.new().double()
    image = entry.images(torch.float64)
    parts = [image, -image]
    each = [gradients(model, model, entry, part) for part in parts]
    for wrapper in ("DDP", "FSDP2"):
        twin = copy.deepcopy(model)
        assert fuse(twin).swapped
        wrapped = wrap(twin, wrapper)
        actual = gradients(wrapped, twin, entry, parts[rank])
        means = {key: torch.stack([other[key] for other in each]).mean(0) for key in each[0]}
        largest_of_all = max(float(mean.abs().max()) for mean in means.values())
        for key, mean in means.items():
            largest = float(mean.abs().max())
            if largest < 1e-12 * largest_of_all:
                largest = largest_of_all  # zero but for rounding: a bias of the keys of attention
            error = float((actual[key] - mean).abs().max())
            bound = testing.SWAPPED_RTOL * largest
            assert error <= bound, f"{name} in {wrapper}: {key} is off by {error}, over {bound}"
        if wrapper == "DDP":
            assert unfuse(wrapped) > 0


def work(rank: int, store: str) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        for library, name in MODELS:
            check(rank, library, name)
    finally:
        dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """DDP, and FSDP2's ``fully_shard``."""
    if not (dist.is_available() and dist.is_gloo_available()):
        missing("torch was built without gloo")
    for library, name in MODELS:
        get(library, name)  # or skip
    mp.spawn(work, (str(tmp_path / "store"),), nprocs=RANKS)


@pytest.mark.parametrize(("library", "name"), MODELS)
def test_a_restored_model_is_exported_as_before(library: str, name: str) -> None:
    """To the same ``torch.export`` program, and to the same bytes of ONNX."""
    require_or_skip("onnx")
    entry = get(library, name)
    model = entry.new()
    arguments = (entry.images(),)

    # Of copies: ultralytics' keep maps of their last call, which is the exporter's.
    def program() -> str:
        exported = torch.export.export(copy.deepcopy(model), arguments, strict=False)
        return exported.graph_module.code

    def onnx() -> bytes:
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            torch.onnx.export(copy.deepcopy(model), arguments, file, dynamo=False)
        return file.getvalue()

    before = program(), onnx()
    assert "msr_cuda" not in before[0]
    assert fuse(model).swapped
    assert unfuse(model) > 0
    assert (program(), onnx()) == before
