"""Finds the modules that a recipe knows, and changes their classes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import _chain, _registry
from ._chain import Chain, Wiring
from ._hooks import has_hooks
from ._registry import ModuleType, Recipe, describe
from ._report import Report, Site

Filter = Callable[[nn.Module, str], bool]


def fuse(
    model: nn.Module,
    *,
    strict: bool = False,
    filter: Filter | None = None,
    algebra: bool = False,
) -> Report:
    """Swaps the modules of a model that a recipe knows for their fused twins, in place.

    Parameters, buffers, hooks, ``state_dict`` and the modules themselves stay; their class changes.
    So optimizers, checkpoints and references keep working, and the model can be copied, pickled,
    compiled and wrapped in DDP. Wrap with ``fully_shard`` and parametrize after fusing, because
    they change the class too. Calling it again changes nothing more. See :mod:`msr_cuda.swap` for
    :func:`unfuse`.

    Recipes exist for :class:`torch.nn.Upsample`, for necks, decoders and heads of torchvision,
    timm, segmentation_models_pytorch, transformers, effdet, MONAI, diffusers, ultralytics, mmdet,
    mmpose, mmseg, detectron2, YOLOX and basicsr (docs/models.md has the models), for the losses
    that transformers and detectron2 compute from upsampled logits, and whatever
    :func:`msr_cuda.swap.register` added. A module is left alone, and the report says why, if its
    class has a ``forward`` that is not the known one, if it was given a ``forward`` of its own, if
    a hook would be bypassed, or if the operators do not take its options. A hook that is put on an
    absorbed module later, as on the ``Upsample`` that a ``Concat`` does the work of, does not see
    the upsampled map: ``unfuse`` first.

    Args:
        model: any module; it may itself be one that a recipe knows.
        strict: raise if nothing is fused, or if a module that a recipe knows is left alone for
            another reason than ``filter``, or that it has nothing to fuse with. Nothing has been
            changed then.
        filter: ``filter(module, name) -> bool``, called for each module that could be fused, with
            its first name in the model; False leaves it alone. Modules that are fused together
            (ultralytics) are asked for one by one, and all of them have to agree.
        algebra: also reorder 1x1 convolutions and resamplings, which commute in real arithmetic:
            fewer operations and bytes, and other rounding; see :mod:`msr_cuda.swap.algebra`. What
            is fused already stays as it is: ``unfuse`` first.

    Returns:
        Report: one entry for each module that a recipe knows, fused or not.

    Raises:
        RuntimeError: see ``strict``.
        TypeError: ``model`` is not a module.

    Warns:
        UserWarning: nothing was fused.
    """
    return _swap("fuse", model, strict, filter, algebra)[0]


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
    found = _modules("unfuse", model)
    listed = {id(module) for module, _ in found}
    for module, names in found:
        original = _registry.original_of(type(module))
        if original is not None:
            restore.append((module, original))
        else:
            _expect_no_changed_twin(module, names[0])
        wiring = _chain.wiring_of(module)
        # Of modules that work together, half would compute something else.
        for member in () if wiring is None else wiring.members:
            if id(member) not in listed:
                listed.add(id(member))
                found.append((member, (f"what works with {names[0] or 'the model'}",)))
    for module, original in restore:
        _set_class(module, original, None)
    return len(restore)


@contextlib.contextmanager
def fused(
    model: nn.Module,
    *,
    strict: bool = False,
    filter: Filter | None = None,
    algebra: bool = False,
) -> Iterator[Report]:
    """Fuses for the length of a ``with`` block, also if that raises.

    ::

        with msr_cuda.fused(model) as report:
            model(x)

    Only what it swapped itself is restored: modules that were fused before stay fused.
    """
    report, plans = _swap("fused", model, strict, filter, algebra)
    try:
        yield report
    finally:
        changed = []
        for plan in plans:
            if type(plan.module) is plan.twin:
                _set_class(plan.module, plan.original, None)
            # unfuse() within the block may have given the class back already.
            elif type(plan.module) is not plan.original:
                changed.append(plan)
        for plan in changed:
            raise _changed_class("fused", plan.name, plan.twin, plan.module)


class _Plan(NamedTuple):
    """One change of class."""

    module: nn.Module
    name: str
    original: ModuleType
    twin: ModuleType
    wiring: Wiring | None = None


class _Survey:
    """What is found in a model, and what is to be done about it."""

    def __init__(
        self, function: str, model: nn.Module, filter: Filter | None, algebra: bool
    ) -> None:
        self.filter = filter
        self.algebra = algebra
        self.swapped: list[Site] = []
        self.skipped: list[Site] = []
        self.objections: list[Site] = []  # those of the skipped that the filter did not choose
        self.plans: list[_Plan] = []
        modules = _modules(function, model)
        self._names = {id(module): names for module, names in modules}
        # Below: id of a child -> names of what absorbs it.
        self._absorbed: dict[int, tuple[str, ...]] = {}
        # Modules of chains: id of a site -> its entry in the report; ids of the others.
        self._sites: dict[int, Site] = {}
        self._members: set[int] = set()
        for module, names in modules:
            for chain in _chain.find(module):
                self._add_chain(chain, names)
        for module, names in modules:
            self._add_module(module, names)

    def _add_chain(self, chain: Chain, container: tuple[str, ...]) -> None:
        """Decides about a chain, whose site then waits for its turn in the report."""
        recipes = [_chain.recipe_of(twin) for _, twin in chain.members]
        twin = recipes[0].twin
        names = self._names[id(chain.site)]
        class_name = describe(type(chain.site))
        reasons = list(chain.reasons)
        for (module, _), recipe in zip(chain.members, recipes, strict=True):
            label = self._names[id(module)][0]
            reasons += [
                reason if module is chain.site else f"{label}: {reason}"
                for reason in _objections(module, recipe)
            ]
            if has_hooks(module):
                reasons.append(f"a hook on {label} would see another map than now")
            member_names = self._names[id(module)]
            if len(member_names) != len(container) or not _is_below(member_names, container):
                reasons.append(f"{label} is used elsewhere, too")
        if reasons:
            site = Site(names, class_name, None, "; ".join(reasons))
            self.objections.append(site)
        elif not all(self._accepts(module) for module, _ in chain.members):
            site = Site(names, class_name, None, "left out by the filter")
        else:
            others = [self._names[id(m)][0] for m, _ in chain.members if m is not chain.site]
            how = f"{_summary(twin).removesuffix('.')}, in place of {', '.join(others)}."
            site = Site(names, class_name, describe(twin), how)
            wiring = Wiring(chain.site, tuple(module for module, _ in chain.members), chain.data)
            for module, member_twin in chain.members:
                name = self._names[id(module)][0]
                self.plans.append(_Plan(module, name, type(module), member_twin, wiring))
                self._members.add(id(module))
        self._sites[id(chain.site)] = site

    def _add_module(self, module: nn.Module, names: tuple[str, ...]) -> None:
        if id(module) in self._sites:
            site = self._sites[id(module)]
            (self.skipped if site.twin is None else self.swapped).append(site)
            return
        if id(module) in self._members or _is_below(names, self._absorbed.get(id(module), ())):
            return
        cls = type(module)
        found = _examine(module, names, self.algebra)
        if found is None:
            reason = _registry.reason_to_leave(cls)
            if reason is not None:
                self.skipped.append(Site(names, describe(cls), None, reason))
            return
        if isinstance(found, Site):
            self.swapped.append(found)
            self._absorb(cls, module, names)
            return
        recipe, reasons, remark = found
        if reasons:
            site = Site(names, describe(cls), None, "; ".join(reasons))
            self.skipped.append(site)
            self.objections.append(site)
        elif not self._accepts(module):
            self.skipped.append(Site(names, describe(cls), None, "left out by the filter"))
        else:
            assert recipe is not None
            twin = _registry.twin_for(recipe, cls)
            how = _summary(twin) + remark
            self.swapped.append(Site(names, describe(cls), describe(twin), how))
            self.plans.append(_Plan(module, names[0], cls, twin))
            self._absorb(twin, module, names)

    def _accepts(self, module: nn.Module) -> bool:
        return self.filter is None or self.filter(module, self._names[id(module)][0])

    def _absorb(self, twin: ModuleType, module: nn.Module, names: tuple[str, ...]) -> None:
        for child in _registry.absorbed_modules(twin, module):
            self._absorbed[id(child)] = (*self._absorbed.get(id(child), ()), *names)


def _swap(
    function: str, model: nn.Module, strict: bool, filter: Filter | None, algebra: bool
) -> tuple[Report, list[_Plan]]:
    _registry.load_recipes()
    survey = _Survey(function, model, filter, algebra)
    swapped, skipped, objections = survey.swapped, survey.skipped, survey.objections
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
            + ", ".join(sorted({describe(recipe.target) for recipe in _registry.recipes(algebra)}))
        )
        if strict:
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=4 if function == "fused" else 3)
    for plan in survey.plans:
        _set_class(plan.module, plan.twin, plan.wiring)
    return Report(model, swapped, skipped), survey.plans


def _is_below(names: tuple[str, ...], parents: tuple[str, ...]) -> bool:
    """Whether all the names are of children of the parents: nothing else uses that module."""
    prefixes = tuple(f"{parent}." if parent else "" for parent in parents)
    return bool(prefixes) and all(name.startswith(prefixes) for name in names)


def _examine(
    module: nn.Module, names: tuple[str, ...], algebra: bool
) -> Site | tuple[Recipe | None, list[str], str] | None:
    """What a module is: no site (None), fused already (its Site), or a site.

    Of that: the recipe, the objections, and what the report should add.
    """
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        known = {recipe.target.__name__ for recipe in _registry.recipes(algebra)}
        if getattr(module, "original_name", None) in known:
            return None, ["is a ScriptModule: fuse the Python module, and trace that"], ""
        return None
    wiring = _chain.wiring_of(module)
    if wiring is not None and wiring.site is not module:
        return None
    original, twin = _registry.original_of(cls), _registry.twin_below(cls)
    if original is not None:
        return Site(names, describe(original), describe(cls), "fused already", fresh=False)
    if twin is not None:
        how = f"fused already; its class has been changed to {describe(cls)} since"
        return Site(names, describe(_registry._originals[twin]), describe(twin), how, fresh=False)
    recipes = _registry.recipes_for(cls, algebra)
    if any(cls.forward is recipe.twin.forward for recipe in recipes):  # those of msr_cuda.nn
        return None
    declined: list[str] = []
    for recipe in recipes:
        reasons = _objections(module, recipe)
        if not reasons:
            return recipe, [], f" Not by algebra: {'; '.join(declined)}." if declined else ""
        declined = reasons
    return (recipes[-1], declined, "") if recipes else None


def _objections(module: nn.Module, recipe: Recipe) -> list[str]:
    cls = type(module)
    if _registry.original_of(cls) is not None:
        return ["is fused by itself: unfuse it first"]
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
        if has_hooks(child):
            reasons.append(f"a hook on {name} would be bypassed")
        if "forward" in vars(child):
            reasons.append(f"the own forward attribute of {name} would be bypassed")
    return reasons


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


def _set_class(module: nn.Module, cls: ModuleType, wiring: Wiring | None) -> None:
    module.__class__ = cls
    # Past Module.__setattr__ and __delattr__: it is no parameter, buffer or child.
    if wiring is None:
        vars(module).pop(_chain.ATTRIBUTE, None)
    else:
        vars(module)[_chain.ATTRIBUTE] = wiring


def _expect_no_changed_twin(module: nn.Module, name: str) -> None:
    twin = _registry.twin_below(type(module))
    if twin is not None:
        raise _changed_class("unfuse", name, twin, module)


def _changed_class(function: str, name: str, twin: ModuleType, module: nn.Module) -> RuntimeError:
    return RuntimeError(
        f"{function}: expected {name or 'the model'} to have the class {describe(twin)} "
        f"that it was fused to, got {describe(type(module))}: undo first what changed it since "
        "(fully_shard and parametrize do)"
    )
