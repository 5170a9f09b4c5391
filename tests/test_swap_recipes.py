"""Recipes of one's own: registration, what they may do, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from swapping import (
    FusedMerge,
    Merge,
    OverridingUpsample,
    Scaled,
    images,
    merge_recipe,  # noqa: F401
    one_thread,  # noqa: F401
    reasons,
)
from torch import Tensor, nn

from msr_cuda import _spec, testing
from msr_cuda.swap import _gather, _registry, fingerprint, fuse, register, unfuse, unregister
from msr_cuda.swap.recipes.torch import FusedUpsample

# Recipes of one's own.


@pytest.mark.usefixtures("merge_recipe")
def test_user_recipe() -> None:
    model = Merge().double()
    x, skip = images(2, 4, 5, 6).double(), images(2, 4, 10, 12).double()
    expected = model(x, skip)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    report = fuse(model, strict=True)
    assert [site.how for site in report.swapped] == ["Upsampling, sum and ReLU in one pass."]
    assert type(model) is FusedMerge
    assert type(model.up) is nn.Upsample, "an absorbed module is no site"
    assert len(fuse(model).swapped) == 1
    actual = model(x, skip)
    actual.square().sum().backward()
    for value, truth in [
        (actual, expected),
        *zip([p.grad for p in model.parameters()], gradients, strict=True),
    ]:
        assert truth.abs().max() > 0
        assert (value - truth).abs().max() <= testing.SWAPPED_RTOL * truth.abs().max()
    unfuse(model)
    assert torch.equal(model(x, skip), expected)


@pytest.mark.usefixtures("merge_recipe")
def test_an_absorbed_module_that_is_used_elsewhere_is_a_site() -> None:
    merge = Merge()
    report = fuse(nn.ModuleDict({"merge": merge, "up": merge.up}))
    assert [site.names for site in report.swapped] == [("merge",), ("merge.up", "up")]


@pytest.mark.parametrize(
    "register_hook",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
@pytest.mark.usefixtures("merge_recipe")
def test_a_hook_on_an_absorbed_module_keeps_the_site(register_hook: str) -> None:
    model = nn.ModuleDict({"merge": Merge()})
    handle = getattr(model["merge"].up, register_hook)(lambda *_: None)
    report = fuse(model)
    assert [(s.names, s.how) for s in report.skipped] == [
        (("merge",), "a hook on up would be bypassed")
    ]
    assert [site.names for site in report.swapped] == [("merge.up",)]
    unfuse(model)
    handle.remove()
    assert [site.names for site in fuse(model).swapped] == [("merge",)]


@pytest.mark.usefixtures("merge_recipe")
def test_own_forward_of_an_absorbed_module_keeps_the_site() -> None:
    model = Merge()
    model.up.forward = lambda input: input  # type: ignore[method-assign]
    assert "the own forward attribute of up would be bypassed" in reasons(model)


@pytest.mark.usefixtures("merge_recipe")
def test_a_recipe_can_decline() -> None:
    model = Merge()
    model.up = nn.Upsample(scale_factor=2, mode="bicubic")
    model.up.__class__ = OverridingUpsample
    assert reasons(model)[0] == "up is not an Upsample"


def test_registration_and_its_end() -> None:
    register(Merge)(FusedMerge)
    model = Merge()
    fuse(model)
    register(Merge)(FusedMerge)  # the same class again, as by a cell of a notebook
    other = type("OtherMerge", (Merge,), {"forward": FusedMerge.forward, "__module__": __name__})
    with pytest.raises(ValueError, match=r"Merge to have no twin yet .*got .*FusedMerge"):
        register(Merge)(other)
    register(Merge, replace=True)(other)
    second = Merge()
    fuse(second)
    assert type(second) is other
    unregister(other)
    with pytest.raises(ValueError, match="unregister: expected a registered class"):
        unregister(other)
    with pytest.warns(UserWarning, match="nothing to fuse"):
        fuse(nn.ModuleList([model.conv]))
    assert unfuse(model) == 1
    assert unfuse(second) == 2, "the other class absorbs nothing, so that second.up was a site"
    assert type(model) is type(second) is Merge


def test_built_in_recipes_can_be_replaced_only_on_request() -> None:
    class Mine(nn.Upsample):
        def forward(self, input: Tensor) -> Tensor:
            return input

    with pytest.raises(ValueError, match="to have no twin yet"):
        register(nn.Upsample)(Mine)


def test_fingerprints_of_another_forward_decline() -> None:
    register(Merge, forward_fingerprints=[fingerprint(Scaled.forward)])(FusedMerge)
    try:
        assert "is not one that" in fuse(Merge()).skipped[0].how
    finally:
        unregister(FusedMerge)
    register(Merge, forward_fingerprints=[fingerprint(Merge.forward)])(FusedMerge)
    try:
        assert len(fuse(Merge()).swapped) == 1
    finally:
        unregister(FusedMerge)


def test_fingerprint_ignores_what_does_nothing() -> None:
    def first(x: Tensor) -> Tensor:
        """Has a docstring."""
        return x + 1  # and a comment

    plain = first

    def first(x):  # type: ignore[no-untyped-def, no-redef]
        return x + 1

    def other(x: Tensor) -> Tensor:
        return x + 1.0

    assert fingerprint(plain) == fingerprint(first)
    assert fingerprint(other) != fingerprint(first)


def forward(self: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    return x


def forward_with_default(self: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
    return x


def twin(**namespace: Any) -> type[nn.Module]:
    return type("Twin", (Merge,), {"forward": forward, **namespace})


@pytest.mark.parametrize(
    ("target", "cls", "message"),
    [
        (int, FusedMerge, "expected target to be a subclass of Module, got <class 'int'>"),
        (FusedUpsample, FusedMerge, "expected target to be no twin"),
        (Merge, FusedUpsample, "expected a subclass of .*Merge"),
        (Merge, Merge, "expected a subclass of .*Merge"),
        (Merge, type("Twin", (Merge,), {}), "to override forward, got none"),
        (Merge, twin(__init__=lambda self: None), "to override forward only, got __init__"),
        (Merge, twin(__setstate__=forward), "to override forward only, got __setstate__"),
        (Merge, twin(extra_repr=forward), "to override forward only, got extra_repr"),
        (Merge, twin(table=[1]), r"to add no state, got table = \[1\]"),
        (Merge, twin(skip_reasons=forward), "skip_reasons to be a staticmethod, got function"),
        (Merge, twin(forward=forward_with_default), r"the parameters \(self, x, skip\) of .*Merge"),
        (Merge, twin(forward=lambda self, x: x), r"the parameters .*got \(self, x\)"),
    ],
)
def test_registration_rejects(target: type, cls: type, message: str) -> None:
    with pytest.raises(TypeError, match=f"register: .*{message}"):
        register(target)(cls)


def test_registration_takes_helpers() -> None:
    cls = register(Merge)(twin(helper=forward, name_of=staticmethod(len)))
    unregister(cls)


def test_recipes_know_how_many_maps_an_operator_takes() -> None:
    assert _gather.MAX_MAPS == _spec.MAX_INPUTS


def test_recipes_that_do_not_fit_a_library_say_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry._recipes_package.NEEDS, "no_such_library", "json")
    monkeypatch.setattr(_registry, "_unusable", set())
    model = nn.Upsample(scale_factor=2)
    with pytest.warns(UserWarning, match="recipes for no_such_library do not fit") as caught:
        assert len(fuse(model).swapped) == 1
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse(model)


def test_recipes_of_libraries_that_no_model_can_use_are_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(_registry._recipes_package.NEEDS, "no_such_library", "no_such_library.nn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse(nn.Upsample(scale_factor=2))
