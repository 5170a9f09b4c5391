"""Every sample input that PyTorch tests its own interpolation with, against F.interpolate."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Case
from conftest import require_or_skip
from torch import Tensor

import msr_cuda
from msr_cuda import testing

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

#: OpInfo -> mode of the samples that do not name one. The names by variant are F.interpolate's.
OPERATORS = {
    "nn.functional.interpolate": None,
    "nn.functional.upsample_bilinear": "bilinear",
    "nn.functional.upsample_nearest": "nearest",
    "_upsample_bilinear2d_aa": "bilinear",
}
VARIANTS = {
    "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area",
}  # fmt: skip


@functools.cache
def opinfos() -> dict[tuple[str, str], Any]:
    """The OpInfos of every operator that resamples, by name and variant."""
    require_or_skip("expecttest")  # which torch.testing._internal needs
    from torch.testing._internal.common_methods_invocations import op_db

    return {
        (op.name, op.variant_test_name): op
        for op in op_db
        if "interpolate" in op.name or "upsample" in op.name
    }


def arguments(name: str, sample: Any) -> dict[str, Any] | None:
    """A sample's arguments as F.interpolate takes them; None where it cannot express them."""
    given = dict(sample.kwargs)
    if sample.args:
        (given["size"],) = sample.args
    if name == "_upsample_bilinear2d_aa":
        if "scales_h" in given:
            return None  # a size together with scales that do not lead to it
        given["size"] = given.pop("output_size")
        given["scale_factor"] = given.pop("scale_factors", None)
        given["antialias"] = True
    if name == "nn.functional.upsample_bilinear":
        given["align_corners"] = True
    if OPERATORS[name] is not None:
        given["mode"] = OPERATORS[name]
    return given


def samples(dtype: torch.dtype, device: str) -> list[tuple[str, Tensor, dict[str, Any] | None]]:
    """All samples; those of an operator without this dtype are its float32 ones, converted."""
    return [
        (f"{name}.{variant}", sample.input.detach().to(dtype), arguments(name, sample))
        for (name, variant), op in opinfos().items()
        for sample in op.sample_inputs(device, dtype if dtype in op.dtypes else torch.float32)
    ]


def truth(x: Tensor, given: dict[str, Any]) -> Tensor:
    """F.interpolate in float64; nearest picks pixels by ATen's float32 rule.

    For float64 maps ATen's CPU kernels scale nearest coordinates in float64; here one rule serves
    every dtype. Indices are resampled in float32, and the map is read at them.
    """
    if "nearest" not in given["mode"]:
        return F.interpolate(x, **given)
    places = torch.arange(float(x.shape[2:].numel()), device=x.device).view(1, 1, *x.shape[2:])
    picked = F.interpolate(places, **given)
    return x.flatten(2)[:, :, picked.long().flatten()].unflatten(2, picked.shape[2:])


def test_all_operators_are_known() -> None:
    """Also in another release of PyTorch: what its list adds has to be mapped here."""
    assert {name for name, _ in opinfos()} == set(OPERATORS)
    found = {variant for name, variant in opinfos() if name == "nn.functional.interpolate"}
    assert found >= VARIANTS


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_sample(dtype: torch.dtype, device: str) -> None:
    everything = samples(dtype, device)
    compared: Counter[str] = Counter()
    for name, x, given in everything:
        if given is None:
            continue
        what = f"{name} {tuple(x.shape)} {given}"
        x.requires_grad_()
        x64 = x.detach().double().requires_grad_()
        output = msr_cuda.resample(x, **given)
        expected = truth(x64, given)
        assert output.dtype == dtype, what
        testing.assert_within(output, expected, what=what)
        grad = torch.randn_like(expected).to(dtype)
        (ours,) = torch.autograd.grad(output, x, grad)
        (gradient,) = torch.autograd.grad(expected, x64, grad.double())
        call = Case(name, "resample", (), given).prepared([x64])
        norm = testing.gradient_term_norm(grad, x.shape, call.modes[0], call.scale_factors[0])
        testing.assert_within(ours, gradient, term_norm=norm, what=f"gradient of {what}")
        compared[name] += 1
    # None is left out but what F.interpolate cannot say, and no operator as a whole.
    left_out = Counter(name for name, _, given in everything if given is None)
    assert compared + left_out == Counter(name for name, _, _ in everything)
    assert set(left_out) <= {"_upsample_bilinear2d_aa."} and left_out.total() <= 4, left_out
    assert len(compared) == len(opinfos()) and min(compared.values()) >= 3, compared
    assert compared.total() >= 150, compared
