"""Finds the modules that a recipe knows, and changes their classes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import _registry
from ._registry import ModuleType, Recipe, describe
from ._report import Report, Site

Filter = Callable[[nn.Module, str], bool]


def fuse(model: nn.Module, *, strict: bool = False, filter: Filter | None = None) -> Report:
    """Swaps the modules of a model that a recipe knows for their fused twins, in place.

    Parameters, buffers, hooks, ``state_dict`` and the modules themselves stay; their class changes.
    So optimizers, checkpoints and references keep working, and the model can be copied, pickled,
    compiled and wrapped in DDP. Wrap with ``fully_shard`` and parametrize after fusing, because
    they change the class too. Calling it again changes nothing more. See :mod:`msr_cuda.swap` for
    :func:`unfuse`.

    Recipes exist for :class:`torch.nn.Upsample`, torchvision's ``FeaturePyramidNetwork``, and
    whatever :func:`msr_cuda.swap.register` added. A module is left alone, and the report says why,
    if its class has a ``forward`` that is not the known one, if it was given a ``forward`` of its
    own, if a hook would be bypassed, or if the operators do not take its options.

    Args:
        model: any module; it may itself be one that a recipe knows.
        strict: raise if nothing is fused, or if a module that a recipe knows is left alone for
            another reason than ``filter``. Nothing has been changed then.
        filter: ``filter(module, name) -> bool``, called for each module that could be fused, with
            its first name in the model; False leaves it alone.

    Returns:
        Report: one entry for each module that a recipe knows, fused or not.

    Raises:
        RuntimeError: see ``strict``. TypeError: ``model`` is not a module.

    Warns:
        UserWarning: nothing was fused.
    """
    return _swap("fuse", model, strict, filter)[0]


def unfuse(model: nn.Module) -> int:
    """Gives every module that :func:`fuse` swapped its class back, also in a copy of that model.

    Returns:
        The number of modules restored.

    Raises:
        RuntimeError: the class of a swapped module was changed after it. Nothing has been changed
        then.
    """
    _registry.load_recipes()
    restore: list[tuple[nn.Module, ModuleType]] = []
    for module, names in _modules("unfuse", model):
        original = _registry.original_of(type(module))
        twin = _registry.twin_below(type(module))
        if original is not None:
            restore.append((module, original))
        elif twin is not None:
            raise _changed_class("unfuse", names, twin, module)
    for module, original in restore:
        _set_class(module, original)
    return len(restore)


@contextlib.contextmanager
def fused(
    model: nn.Module, *, strict: bool = False, filter: Filter | None = None
) -> Iterator[Report]:
    """Fuses for the length of a ``with`` block, also if that raises.

    ::

        with msr_cuda.fused(model) as report:
            model(x)

    Only what it swapped itself is restored: modules that were fused before stay fused.
    """
    report, plans = _swap("fused", model, strict, filter)
    try:
        yield report
    finally:
        changed = []
        for plan in plans:
            if type(plan.module) is plan.twin:
                _set_class(plan.module, plan.original)
            # unfuse() within the block may have given the class back already.
            elif type(plan.module) is not plan.original:
                changed.append(plan)
        for plan in changed:
            raise _changed_class("fused", plan.site.names, plan.twin, plan.module)


class _Plan(NamedTuple):
    module: nn.Module
    site: Site
    original: ModuleType
    twin: ModuleType


def _swap(
    function: str, model: nn.Module, strict: bool, filter: Filter | None
) -> tuple[Report, list[_Plan]]:
    _registry.load_recipes()
    swapped: list[Site] = []
    skipped: list[Site] = []
    plans: list[_Plan] = []
    objections: list[Site] = []
    absorbed: dict[int, tuple[str, ...]] = {}  # id of a child -> names of what absorbs it
    for module, names in _modules(function, model):
        cls = type(module)
        if _is_below(names, absorbed.get(id(module), ())):
            continue
        found = _examine(module, names)
        if found is None:
            continue
        if isinstance(found, Site):
            swapped.append(found)
            for child in _registry.absorbed_modules(cls, module):
                absorbed[id(child)] = (*absorbed.get(id(child), ()), *names)
            continue
        recipe, reasons = found
        if reasons:
            site = Site(names, describe(cls), None, "; ".join(reasons))
            skipped.append(site)
            objections.append(site)
        elif filter is not None and not filter(module, names[0]):
            skipped.append(Site(names, describe(cls), None, "left out by the filter"))
        else:
            assert recipe is not None
            twin = _registry.twin_for(recipe, cls)
            site = Site(names, describe(cls), describe(twin), _summary(twin))
            swapped.append(site)
            plans.append(_Plan(module, site, cls, twin))
            for child in _registry.absorbed_modules(twin, module):
                absorbed[id(child)] = (*absorbed.get(id(child), ()), *names)
    if strict and objections:
        raise RuntimeError(
            f"{function}: strict=True, but {len(objections)} of {len(swapped) + len(skipped)} "
            "modules have to be left alone: "
            + "; ".join(f"{site.label} ({site.how})" for site in objections)
        )
    if not swapped:
        message = f"{function}: nothing to fuse in {describe(type(model))}: " + (
            "; ".join(f"{site.label} ({site.how})" for site in skipped)
            if skipped
            else "it has no module of "
            + ", ".join(sorted(describe(recipe.target) for recipe in _registry.recipes()))
        )
        if strict:
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=4 if function == "fused" else 3)
    for plan in plans:
        _set_class(plan.module, plan.twin)
    return Report(model, swapped, skipped), plans


def _is_below(names: tuple[str, ...], parents: tuple[str, ...]) -> bool:
    """Whether all the names are of children of the parents: nothing else uses that module."""
    prefixes = tuple(f"{parent}." if parent else "" for parent in parents)
    return bool(prefixes) and all(name.startswith(prefixes) for name in names)


def _examine(
    module: nn.Module, names: tuple[str, ...]
) -> Site | tuple[Recipe | None, list[str]] | None:
    """What a module is: no site (None), fused already (its Site), or a site with objections."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        known = {recipe.target.__name__ for recipe in _registry.recipes()}
        if getattr(module, "original_name", None) in known:
            return None, ["is a ScriptModule: fuse the Python module, and trace that"]
        return None
    original, twin = _registry.original_of(cls), _registry.twin_below(cls)
    if original is not None:
        return Site(names, describe(original), describe(cls), "fused already", fresh=False)
    if twin is not None:
        how = f"fused already; its class has been changed to {describe(cls)} since"
        return Site(names, describe(_registry._originals[twin]), describe(twin), how, fresh=False)
    recipe = _registry.recipe_for(cls)
    if recipe is None or cls.forward is recipe.twin.forward:  # the latter are of msr_cuda.nn
        return None
    return recipe, _objections(module, recipe)


def _objections(module: nn.Module, recipe: Recipe) -> list[str]:
    cls = type(module)
    changed = [base for base in cls.__mro__ if base.__module__.startswith("torch.distributed.")]
    if changed:
        return [f"its class was changed by {describe(changed[0])}: fuse before"]
    if parametrize.is_parametrized(module):
        return ["its class was changed by torch.nn.utils.parametrize: fuse before"]
    reasons = _registry.source_reasons(recipe)
    if cls is not recipe.target:
        reasons += _registry.subclass_reasons(recipe, cls)
    if "forward" in vars(module):
        reasons.append("the instance has its own forward attribute")
    if reasons:
        # The module may not be what the recipe's own methods expect.
        return reasons
    reasons = _registry.skip_reasons(recipe.twin, module)
    if reasons:
        return reasons
    names = {id(child): name for name, child in module.named_modules()}
    for child in _registry.absorbed_modules(recipe.twin, module):
        name = names.get(id(child), describe(type(child)))
        if _has_hooks(child):
            reasons.append(f"a hook on {name} would be bypassed")
        if "forward" in vars(child):
            reasons.append(f"the own forward attribute of {name} would be bypassed")
    return reasons


def _has_hooks(module: nn.Module) -> bool:
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def _modules(function: str, model: nn.Module) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """Every module once, with all of its names; the model's own is the empty string."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: expected model to be a Module, got {type(model).__name__}")
    found: dict[int, tuple[nn.Module, list[str]]] = {}
    for name, module in _walk(model, "", frozenset()):
        found.setdefault(id(module), (module, []))[1].append(name)
    return [(module, tuple(names)) for module, names in found.values()]


def _walk(module: nn.Module, name: str, parents: frozenset[int]) -> Iterator[tuple[str, nn.Module]]:
    """A module and all below it, parents first; one that is held twice comes twice."""
    yield name, module
    parents |= {id(module)}
    for child_name, child in module._modules.items():
        # A module that holds a parent of its own as a child would go on for ever.
        if child is not None and id(child) not in parents:
            yield from _walk(child, f"{name}.{child_name}" if name else child_name, parents)


def _summary(twin: ModuleType) -> str:
    return (twin.__doc__ or "fused").strip().splitlines()[0]


def _set_class(module: nn.Module, cls: ModuleType) -> None:
    module.__class__ = cls


def _changed_class(
    function: str, names: tuple[str, ...], twin: ModuleType, module: nn.Module
) -> RuntimeError:
    return RuntimeError(
        f"{function}: expected {names[0] or 'the model'} to have the class {describe(twin)} "
        f"that it was fused to, got {describe(type(module))}: undo first what changed it since "
        "(fully_shard and parametrize do)"
    )
