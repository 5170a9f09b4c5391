"""Swapped models beside other parts of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import missing
from swapping import (
    Scaled,
    UNet,
    images,
    one_thread,  # noqa: F401
    reasons,
    scaled_recipe,  # noqa: F401
)
from torch import nn

from msr_cuda.swap import fuse, unfuse

# Beside other parts of PyTorch.


def test_compiles_to_one_graph() -> None:
    model = UNet()
    fuse(model)
    x = images(1, 3, 44, 32)
    expected = model(x)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = compiled(x)
    actual.sum().backward()
    torch.testing.assert_close(actual, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    # Unfused, it is compiled anew.
    unfuse(model)
    torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()


def test_measure_runs_a_compiled_model_eagerly() -> None:
    model = UNet()
    report = fuse(model)
    model.compile(backend="aot_eager")
    model(images(1, 3, 44, 32))
    total = report.measure(images(1, 3, 44, 32)).total
    assert total is not None
    assert total.fused_launches == 3
    torch._dynamo.reset()


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    if not (dist.is_available() and dist.is_gloo_available()):
        missing("torch was built without gloo")
    # By file: a port might be taken.
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_wraps_in_ddp() -> None:
    model = UNet()
    fuse(model)
    x = images(2, 3, 44, 32)
    model(x).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped(x).sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert unfuse(wrapped) == 3


@pytest.mark.usefixtures("process_group", "scaled_recipe")
def test_fully_shard_goes_last() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    late, early = Scaled(), Scaled()
    fully_shard(late, mesh=mesh)
    (reason,) = reasons(late)
    assert reason.startswith("its class was changed by torch.distributed.")
    fuse(early)
    fully_shard(early, mesh=mesh)
    early(torch.ones(1)).sum().backward()
    assert early.factor.grad is not None
    with pytest.raises(RuntimeError, match=r"expected the model to have the class .*FusedScaled"):
        unfuse(early)
