"""What all tests share. MSR_CUDA_REQUIRE=1 turns every skip for something missing into a
failure."""

from __future__ import annotations

import importlib
import os
import pathlib
import sys
from types import ModuleType

import pytest
import torch

from msr_cuda import _extension

pytest_plugins = ["support"]
pytest.register_assert_rewrite("swap_checks")

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
# Before any test hides torchvision: the shim looks for it once, when it is imported.
importlib.import_module("torchvision_on_cpu")

REQUIRE = os.environ.get("MSR_CUDA_REQUIRE", "") not in ("", "0")


def missing(reason: str) -> None:
    """Skips a test for want of something, or fails where everything is required to be there."""
    if REQUIRE:
        pytest.fail(f"MSR_CUDA_REQUIRE=1, but {reason}")
    pytest.skip(reason, allow_module_level=True)


def require_or_skip(name: str) -> ModuleType:
    """Imports an optional package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing(f"{name} cannot be imported: {error}")
        raise


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def need_kernel(device: str) -> None:
    """Skips a test where there are no kernels for the device."""
    if not _extension.has_kernels(device):
        missing(f"no {device} kernels: {_extension.WHY_NOT}")


@pytest.fixture
def kernel(device: str) -> str:
    """A device that has kernels, for tests that pass ``impl="kernel"``."""
    need_kernel(device)
    return device


@pytest.fixture
def kernels() -> None:
    """The CPU has kernels."""
    need_kernel("cpu")


@pytest.fixture(params=["kernel", "reference"])
def impl(request: pytest.FixtureRequest, device: str) -> str:
    if request.param == "kernel":
        need_kernel(device)
    return str(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
