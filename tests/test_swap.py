"""Swapping: what stays and what comes back, what is left alone and why, all of it undoable."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from swapping import (
    InheritingUpsample,
    OverridingUpsample,
    Registering,
    Scaled,
    SelfPickling,
    UNet,
    images,
    one_thread,  # noqa: F401
    reasons,
    scaled_recipe,  # noqa: F401
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

import msr_cuda
from msr_cuda.swap import fuse, fused, unfuse
from msr_cuda.swap.recipes.torch import FusedUpsample

# What stays, and what comes back.


def test_fuse_changes_classes_only() -> None:
    model = UNet().to(memory_format=torch.channels_last)
    before = copy.deepcopy(model)
    modules, parameters = list(model.modules()), list(model.parameters())
    x = images(1, 3, 44, 32)
    expected = model(x)
    fuse(model)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(before.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])
    assert type(model.up1) is FusedUpsample
    assert isinstance(model.up1, nn.Upsample)
    assert vars(model.up1) == vars(before.up1)
    assert not torch.equal(model(x), expected), "bilinear coordinates are exact only when fused"
    assert unfuse(model) == 3
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert torch.equal(model(x), expected)
    assert unfuse(model) == 0


def test_fusing_twice_changes_nothing_more() -> None:
    model = UNet()
    first, second = fuse(model), fuse(model)
    assert len(first.swapped) == len(second.swapped) == 3
    assert all(site.fresh for site in first.swapped)
    assert [(s.names, s.class_name, s.twin) for s in second.swapped] == [
        (s.names, s.class_name, s.twin) for s in first.swapped
    ]
    assert all(not s.fresh and s.how == "fused already" for s in second.swapped)
    assert unfuse(model) == 3
    assert type(model.up1) is nn.Upsample


def test_the_model_itself_can_be_a_site() -> None:
    model = nn.Upsample(scale_factor=2)
    report = fuse(model)
    assert type(model) is FusedUpsample
    assert report.swapped[0].names == ("",)
    assert "(the model)" in str(report)
    unfuse(model)
    assert type(model) is nn.Upsample


def test_shared_modules_are_one_site_with_all_names() -> None:
    up = nn.Upsample(scale_factor=2)
    inner = nn.Sequential(up)
    model = nn.ModuleDict({"a": up, "b": inner, "c": inner})
    report = fuse(model)
    assert [site.names for site in report.swapped] == [("a", "b.0", "c.0")]
    assert unfuse(model) == 1


def test_cyclic_references_end() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2))
    model[0].add_module("parent", model)
    assert [site.names for site in fuse(model).swapped] == [("0",)]


def test_copies_and_pickles_can_be_run_and_restored() -> None:
    model = nn.Sequential(UNet(), InheritingUpsample("mine"))
    x = images(1, 3, 44, 32)
    plain = model(x)
    fuse(model)
    expected = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
        assert torch.equal(twin(x), expected)
        assert unfuse(twin) == 4
        assert type(twin[1]) is InheritingUpsample
        assert twin[1].tag == "mine"
        assert torch.equal(twin(x), plain)
    assert type(model[0].up1) is FusedUpsample


def test_a_pickle_can_be_restored_in_a_new_process(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.UpsamplingBilinear2d(scale_factor=2))
    fuse(model)
    torch.save(model, tmp_path / "model.pt")
    code = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
assert model(torch.rand(1, 1, 3, 4)).shape == (1, 1, 12, 16)
from msr_cuda.swap import unfuse
print([type(m).__name__ for m in model], unfuse(model), [type(m).__name__ for m in model])
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == (
        "['FusedUpsample', 'FusedUpsamplingBilinear2d'] 2 ['Upsample', 'UpsamplingBilinear2d']"
    )


def test_hooks_on_a_site_still_run() -> None:
    model = UNet()
    calls: list[str] = []
    model.up1.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.up1.register_forward_hook(lambda *_: calls.append("after"))
    model.up1.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.up1.register_full_backward_pre_hook(lambda *_: calls.append("before backward"))
    fuse(model)
    # Full backward hooks forbid changing the output in place.
    module: nn.Module = model.up1
    module(torch.rand(1, 2, 3, 3, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "before backward", "backward"]


def test_an_optimizer_made_before_goes_on() -> None:
    model = UNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    fuse(model)
    x = images(2, 3, 44, 32)
    before = [p.detach().clone() for p in model.parameters()]
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    after = list(model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_integer_maps_still_work() -> None:
    model = nn.Upsample(scale_factor=2)
    mask = torch.randint(0, 9, (1, 1, 3, 3), dtype=torch.uint8)
    expected = model(mask)
    fuse(model)
    assert torch.equal(model(mask), expected)


# What is left alone, and why.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scale_factor": 2, "mode": "lanczos"}, "unknown mode 'lanczos'"),
        ({"scale_factor": 2, "mode": "area", "align_corners": False}, "means nothing in 'area'"),
        ({"scale_factor": 2, "align_corners": True}, "align_corners=True means nothing"),
        ({}, "needs exactly one of size and scale_factor"),
        ({"size": 3, "recompute_scale_factor": True}, "recompute_scale_factor=True means nothing"),
    ],
)
def test_options_that_mean_nothing_are_left_alone(options: dict[str, Any], reason: str) -> None:
    module = nn.Upsample(**options)
    (found,) = reasons(nn.Sequential(module))
    assert reason in found
    assert type(module) is nn.Upsample


def test_subclasses_are_fused_only_with_the_known_forward() -> None:
    kept, known = OverridingUpsample(scale_factor=2), InheritingUpsample("tag")
    model = nn.ModuleList([kept, known, nn.UpsamplingNearest2d(scale_factor=2)])
    report = fuse(model)
    assert [site.how for site in report.skipped] == [
        "OverridingUpsample is a Upsample with its own forward"
    ]
    assert type(kept) is OverridingUpsample
    assert [site.names for site in report.swapped] == [("1",), ("2",)]
    assert isinstance(known, InheritingUpsample)
    assert repr(known) == "FusedInheritingUpsample(tag)"
    # One class per class, however often.
    other = InheritingUpsample("other")
    fuse(other)
    assert type(other) is type(known)
    unfuse(model)
    assert [type(m) for m in model] == [
        OverridingUpsample,
        InheritingUpsample,
        nn.UpsamplingNearest2d,
    ]


def test_subclasses_that_cannot_be_derived_from_are_left_alone() -> None:
    assert reasons(SelfPickling(scale_factor=2)) == ["SelfPickling defines how it is pickled"]
    assert reasons(Registering(scale_factor=2)) == ["Registering defines __init_subclass__"]
    assert Registering.subclasses == []


def test_own_forward_is_left_alone() -> None:
    model = nn.Upsample(scale_factor=2)
    model.forward = lambda input: input  # type: ignore[method-assign]
    assert reasons(model) == ["the instance has its own forward attribute"]


def test_script_modules_are_left_alone() -> None:
    model = nn.Sequential(torch.jit.script(nn.Upsample(scale_factor=2)))
    assert reasons(model) == ["is a ScriptModule: fuse the Python module, and trace that"]


def test_modules_of_this_package_are_no_sites() -> None:
    model = nn.Sequential(msr_cuda.nn.Resample(scale_factor=2))
    assert reasons(model) == []
    assert unfuse(model) == 0
    assert type(model[0]) is msr_cuda.nn.Resample


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.usefixtures("scaled_recipe")
def test_parametrized_modules() -> None:
    before = Scaled()
    parametrize.register_parametrization(before, "factor", Double())
    assert reasons(before) == ["its class was changed by torch.nn.utils.parametrize: fuse before"]
    after = Scaled()
    fuse(after)
    parametrize.register_parametrization(after, "factor", Double())
    assert after(torch.ones(1)) == 2
    report = fuse(after)
    assert "its class has been changed to" in report.swapped[0].how
    model = nn.Sequential(nn.Upsample(scale_factor=2), after)
    fuse(model)
    with pytest.raises(
        RuntimeError, match=r"expected 1 to have the class .*FusedScaled that .*got "
    ):
        unfuse(model)
    assert type(model[0]) is FusedUpsample, "a failing unfuse must change nothing"
    parametrize.remove_parametrizations(after, "factor")
    assert unfuse(model) == 2
    assert type(after) is Scaled


def test_nothing_to_fuse_warns_or_raises() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    with pytest.warns(
        UserWarning,
        match=r"nothing to fuse in .*Sequential: it has no module of .*"
        r"torch.nn.modules.upsampling.Upsample",
    ) as caught:
        report = fuse(model)
    assert caught[0].filename == __file__
    assert report.swapped == report.skipped == []
    with pytest.warns(UserWarning, match="nothing to fuse") as caught, fused(model):
        pass
    assert caught[0].filename == __file__
    with pytest.raises(RuntimeError, match="nothing to fuse"):
        fuse(model, strict=True)


def test_strict_changes_nothing_where_it_raises() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="lanczos"))
    with pytest.raises(RuntimeError, match=r"1 of 2 modules .* 1 \(unknown mode 'lanczos'\)"):
        fuse(model, strict=True)
    assert type(model[0]) is nn.Upsample
    assert len(fuse(model).swapped) == 1


def test_filter_chooses_and_is_no_objection() -> None:
    model = UNet()
    seen = []

    def choose(module: nn.Module, name: str) -> bool:
        assert module is model.get_submodule(name)
        seen.append(name)
        return name != "up1"

    report = fuse(model, strict=True, filter=choose)
    assert seen == ["up2", "up1", "final"]
    assert [(s.names, s.how) for s in report.skipped] == [(("up1",), "left out by the filter")]
    assert type(model.up1) is nn.Upsample
    assert type(model.up2) is FusedUpsample


@pytest.mark.parametrize("function", [fuse, unfuse])
def test_rejects_what_is_no_module(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="use: expected model to be a Module, got list"):
        function([nn.Upsample(scale_factor=2)])


# The context manager.


def test_context_restores_what_it_swapped() -> None:
    model = UNet()
    fuse(model, filter=lambda module, name: name == "up1")
    with fused(model) as report:
        assert [site.fresh for site in report.swapped] == [True, False, True]
        assert type(model.up2) is FusedUpsample
    assert [type(m) for m in (model.up2, model.up1, model.final)] == [
        nn.Upsample,
        FusedUpsample,
        nn.Upsample,
    ]


def test_context_restores_after_an_exception() -> None:
    model = UNet()

    def fail() -> None:
        with fused(model):
            assert type(model.up1) is FusedUpsample
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert type(model.up1) is nn.Upsample


def test_context_notices_a_class_that_was_changed_within() -> None:
    model = UNet()
    with fused(model):
        unfuse(model)
    assert type(model.up1) is nn.Upsample

    class Other(FusedUpsample):
        pass

    context = fused(model)
    context.__enter__()
    model.up1.__class__ = Other
    with pytest.raises(RuntimeError, match=r"fused: expected up1 to have the class .*got .*Other"):
        context.__exit__(None, None, None)
    assert type(model.up2) is type(model.final) is nn.Upsample
