"""Twins that are a library's forward with statements replaced, and what those statements call."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, require_or_skip
from swap_checks import get
from swapping import images, reasons
from torch import Tensor, nn
from zoo import offline

from msr_cuda import functional
from msr_cuda.swap import _glue as msr
from msr_cuda.swap import _registry, fingerprint, fuse, unfuse, unregister
from msr_cuda.swap._rewrite import Rewrites
from msr_cuda.swap.recipes import NEEDS

# Interpolations that wait.

INPUTS = {
    "nearest": ((2, 4, 5, 7), {"scale_factor": 2, "mode": "nearest"}),
    "a factor that is no integer": ((2, 4, 7, 4), {"scale_factor": 1.5, "mode": "bilinear"}),
    "recomputed": (
        (2, 4, 7, 4),
        {"scale_factor": 1.5, "mode": "bilinear", "recompute_scale_factor": True},
    ),
    "factors": ((2, 4, 5, 7), {"scale_factor": (2, 3), "mode": "nearest"}),
    "size": ((2, 4, 5, 7), {"size": (9, 8), "mode": "bilinear", "align_corners": True}),
    "one number": ((2, 4, 5, 7), {"size": 6, "mode": "bilinear"}),
    "list": ((2, 4, 5, 7), {"size": [6, 8], "mode": "nearest-exact"}),
    "volume": ((2, 4, 3, 5, 2), {"scale_factor": 2.0, "mode": "trilinear"}),
    "row": ((2, 4, 9), {"size": 21, "mode": "linear"}),
    "smaller": ((2, 4, 9, 8), {"scale_factor": 0.5, "mode": "bilinear"}),
}


@pytest.fixture
def told() -> Iterator[list[functional.Observation]]:
    """What operators ran."""
    found: list[functional.Observation] = []
    functional.observers.append(found.append)
    yield found
    functional.observers.remove(found.append)


@pytest.mark.parametrize("name", INPUTS)
def test_sums_and_concatenations(name: str, told: list[functional.Observation]) -> None:
    shape, options = INPUTS[name]
    x = images(*shape).double()
    resampled = F.interpolate(x, **options)
    base = torch.randn_like(resampled)
    torch.testing.assert_close(msr.add(base, msr.up(x, **options)), base + resampled)
    torch.testing.assert_close(msr.add(msr.up(x, **options), base, base), resampled + base + base)
    torch.testing.assert_close(
        msr.cat([msr.up(x, **options), base]), torch.cat([resampled, base], 1)
    )
    torch.testing.assert_close(
        msr.add(base, msr.up(x, **options), out_scale=0.5), (base + resampled) / 2
    )
    assert len(told) == 4


def test_maps_of_several_kinds(told: list[functional.Observation]) -> None:
    parts = [
        msr.up(images(2, 3, 4, 4), scale_factor=2),
        images(2, 3, 8, 8),
        msr.up(images(2, 3, 3, 5), size=(8, 8), mode="bilinear", align_corners=True),
        msr.up(images(2, 3, 16, 16), scale_factor=0.5, mode="bilinear"),
    ]
    plain = [p.computed() if isinstance(p, msr.Upsampled) else p for p in parts]
    torch.testing.assert_close(msr.add(*parts), sum(plain))
    torch.testing.assert_close(msr.cat(parts), torch.cat(plain, 1))
    assert len(told) == 2


def test_a_sum_in_place_keeps_its_dtype() -> None:
    x, y = images(2, 3, 4, 4).half(), images(2, 3, 8, 8)
    assert msr.add(msr.up(x, scale_factor=2), y, dtype=x.dtype).dtype == torch.float16
    assert msr.add(msr.up(x, scale_factor=2), y).dtype == torch.float32


def one(*shape: int) -> Tensor:
    return images(*shape)


#: What PyTorch broadcasts, or does in a way of its own: the plain code runs.
PLAIN: dict[str, Callable[[], tuple[Any, Any, Callable[..., Any]]]] = {
    "one channel": lambda: (msr.up(one(2, 1, 4, 4), scale_factor=2), one(2, 3, 8, 8), msr.add),
    "batch": lambda: (msr.up(one(1, 3, 4, 4), scale_factor=2), one(2, 3, 8, 8), msr.add),
    "a number": lambda: (msr.up(one(2, 3, 4, 4), scale_factor=2), 1.5, msr.add),
    "one pixel": lambda: (msr.up(one(2, 3, 4, 4), scale_factor=2), one(2, 3, 1, 1), msr.add),
    "no size changes": lambda: (
        msr.up(one(2, 3, 2, 2), scale_factor=1.4, mode="bilinear"),
        one(2, 3, 2, 2),
        msr.add,
    ),
    "antialiased": lambda: (
        msr.up(one(2, 3, 9, 9), size=4, mode="bilinear", antialias=True),
        one(2, 3, 4, 4),
        msr.add,
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_no_operator_does_runs_as_it_was_written(
    name: str, told: list[functional.Observation]
) -> None:
    x, y, function = PLAIN[name]()
    assert torch.equal(function(x, y), F.interpolate(*x) + y)
    assert told == []


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (3, 3, 8, 8), (2, 5, 8, 8), (2, 3, 8)], ids=str)
def test_sizes_that_raise_still_raise(shape: tuple[int, ...]) -> None:
    x, y = msr.up(images(2, 3, 4, 4), scale_factor=2), images(*shape)
    with pytest.raises(RuntimeError, match=r"must match|Sizes of tensors"):
        msr.add(x, y)
    if shape != (2, 5, 8, 8):
        with pytest.raises(RuntimeError, match=r"Sizes of tensors|same number of dimensions"):
            msr.cat([x, y])


@pytest.mark.parametrize(
    "options",
    [
        {"scale_factor": 2, "mode": "nearest", "align_corners": False},
        {"size": (8, 8), "scale_factor": 2},
        {},
        {"size": (8, 8), "mode": "lanczos"},
    ],
    ids=str,
)
def test_options_that_raise_still_raise(options: dict[str, Any]) -> None:
    x = images(2, 3, 4, 4)
    errors = []
    for function in (
        lambda: F.interpolate(x, **options) + images(2, 3, 8, 8),
        lambda: msr.add(msr.up(x, **options), images(2, 3, 8, 8)),
    ):
        with pytest.raises((ValueError, NotImplementedError)) as caught:
            function()
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


# Rewriting.


class Base(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def doubled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    import functools

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        return 2 * function(*args, **kwargs)

    return wrapper


class Neck(Base):
    """Uses what a forward can use: a decorator, super(), a default, globals of its module."""

    @doubled
    def forward(self, x: Tensor, skip: Tensor, *, factor: int = 2) -> Tensor:
        """Sums."""
        x = super().forward(x)
        if factor > 1:
            x = F.interpolate(x, scale_factor=factor)
        return skip + x


EDITS = {
    "x = F.interpolate(x, scale_factor=factor)": "x = msr.up(x, scale_factor=factor)",
    "skip + x": "recipe.merge(skip, x)",
}


@pytest.fixture
def recipes() -> Iterator[types.ModuleType]:
    """A file of recipes."""
    module = types.ModuleType("neck_recipes")
    module.REWRITES = Rewrites(module.__name__)
    module.__getattr__ = module.REWRITES.find
    module.merge = msr.add
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]
    for known in _registry.recipes_for(Neck):
        unregister(known.twin)


def add(recipes: types.ModuleType, edits: dict[str, str] | None = EDITS, **options: Any) -> None:
    known = {"fingerprints": [fingerprint(Neck.forward)], **options}
    recipes.REWRITES.add(f"{__name__}:Neck", summary="One pass.", edits=edits, **known)
    recipes.REWRITES.load()


def test_the_rest_of_a_forward_stays(
    recipes: types.ModuleType, told: list[functional.Observation]
) -> None:
    add(recipes)
    neck = Neck()
    x, skip = images(1, 2, 3, 4), images(1, 2, 6, 8)
    expected, same = neck(x, skip), neck(x, x, factor=1)
    report = fuse(neck)
    assert [site.how for site in report.swapped] == ["One pass."]
    torch.testing.assert_close(neck(x, skip), expected)
    assert len(told) == 1
    torch.testing.assert_close(neck(x, x, factor=1), same)
    twin = type(neck)
    assert twin.__module__ == "neck_recipes" and recipes.FusedNeck is twin
    assert type(pickle.loads(pickle.dumps(neck))) is twin
    # Errors show the new source.
    with pytest.raises(RuntimeError) as caught:
        neck(x, x)
    assert any("recipe.merge(skip, x)" in str(entry) for entry in caught.traceback)
    unfuse(neck)
    assert type(neck) is Neck


def test_a_whole_forward(recipes: types.ModuleType) -> None:
    def forward(self: Any, x: Any, skip: Any, *, factor: int = 2) -> Any:
        return msr.add(skip, msr.up(x, scale_factor=factor))

    add(recipes, None, forward=forward, keeps_name=True)
    neck = Neck()
    x, skip = images(1, 2, 3, 4), images(1, 2, 6, 8)
    fuse(neck)
    assert type(neck).forward is forward
    assert type(neck).__name__ == "Neck" and _registry.describe(type(neck)).endswith(".FusedNeck")
    torch.testing.assert_close(neck(x, skip), skip + F.interpolate(x, scale_factor=2))


@pytest.mark.parametrize("options", [{}, {"forward": Neck.forward}])
def test_edits_or_a_whole_forward(recipes: types.ModuleType, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either edits or forward"):
        add(recipes, EDITS if options else None, **options)


def test_an_unknown_forward_is_left_alone(recipes: types.ModuleType) -> None:
    add(recipes, fingerprints=["0" * 16])
    (reason,) = reasons(Neck())
    assert "is not one that neck_recipes.FusedNeck was written for" in reason


def test_methods_have_to_be_known(recipes: types.ModuleType) -> None:
    add(recipes, methods={"extra_repr": ["0" * 16]})
    (reason,) = reasons(Neck())
    assert reason.endswith("Neck.extra_repr is not a known one")


def test_an_edit_has_to_fit(recipes: types.ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"the forward of .*Neck has no 'x - skip'"):
        add(recipes, {"x - skip": "x"})


def test_a_class_that_is_gone(recipes: types.ModuleType) -> None:
    recipes.REWRITES.add(f"{__name__}:Gone", fingerprints=[], summary="", edits={})
    with pytest.warns(UserWarning, match=r"does not fit this version: .* has no class Gone"):
        recipes.REWRITES.load()
    recipes.REWRITES.load()  # says so once
    with pytest.raises(AttributeError, match="FusedGone"):
        recipes.FusedGone  # noqa: B018


def test_classes_that_are_left(recipes: types.ModuleType) -> None:
    recipes.REWRITES.leave(f"{__name__}:Base", reason="there is nothing in it")
    recipes.REWRITES.load()
    try:
        assert reasons(Base()) == ["there is nothing in it"]
        report = fuse(nn.ModuleList([Base(), nn.Upsample(scale_factor=2)]), strict=True)
        assert len(report.swapped) == len(report.skipped) == 1
    finally:
        del _registry._left[Base]


# All recipes.


@pytest.mark.parametrize("library", sorted(set(NEEDS) - {"torch"}))
def test_every_recipe_fits_the_library_that_is_installed(library: str) -> None:
    """Also those of models that no test makes: every edit is found in a forward that is known."""
    with offline():
        require_or_skip("torchvision_on_cpu")
        require_or_skip("mmcv_without_operators")
        require_or_skip("minimal_packages")
        require_or_skip(NEEDS[library])
    module = require_or_skip(f"msr_cuda.swap.recipes.{library}")
    rewrites = getattr(module, "REWRITES", None)
    for label in [] if rewrites is None else list(rewrites._pending):
        getattr(module, label)  # makes it
    twins = [r for r in _registry.recipes() if r.twin.__module__ == module.__name__]
    assert twins
    for recipe in twins:
        assert _registry.source_reasons(recipe) == []


def test_a_fused_model_is_unpickled_by_a_new_process(tmp_path: Any) -> None:
    entry = get("torchvision", "LRASPP")
    model = entry.new()
    fuse(model)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import torch, torchvision_on_cpu, msr_cuda\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "print([type(m).__name__ for m in model.modules() if 'Fused' in type(m).__name__])\n"
        "print(msr_cuda.unfuse(model))\n"
    )
    arguments = [str(tmp_path / "model.pt"), str(ROOT), str(ROOT / "examples")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["['FusedLRASPP', 'FusedLRASPPHead']", "2"]


def test_hidden_states_of_a_fused_encoder() -> None:
    """transformers looks up by class what it records."""
    entry = get("transformers", "RT-DETR")
    model = entry.new()
    with torch.no_grad():
        expected = model(entry.images(), output_hidden_states=True).encoder_hidden_states
        fuse(model)
        actual = model(entry.images(), output_hidden_states=True).encoder_hidden_states
    assert expected
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
