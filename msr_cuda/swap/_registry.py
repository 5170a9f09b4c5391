"""Which class is swapped for which twin."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar

from torch import nn

from . import algebra as _algebra_package
from . import recipes as _recipes_package
from ._source import fingerprint

ModuleType = type[nn.Module]
TwinT = TypeVar("TwinT", bound=ModuleType)

_OPTIONAL_METHODS = ("skip_reasons", "absorbed_modules")
#: Names that Python puts into every class.
_CLASS_METADATA = frozenset(
    {
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__annotations_cache__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)


class Recipe(NamedTuple):
    """One entry of the registry."""

    target: ModuleType
    twin: ModuleType
    forward_fingerprints: frozenset[str]
    algebra: bool = False  # reorders linear operations: only where that is asked for


# By target, of each kind.
_recipes: dict[ModuleType, Recipe] = {}
_algebra: dict[ModuleType, Recipe] = {}
# Every twin there ever was, with the class it stands for: what unfuse() goes by. A module needs to
# remember nothing, so that a copy or a pickle of it can be restored too.
_originals: dict[ModuleType, ModuleType] = {}
_subclass_twins: dict[tuple[ModuleType, ModuleType], ModuleType] = {}
_left: dict[ModuleType, str] = {}
_unusable: set[str] = set()  # recipes whose import failed


def register(
    target: ModuleType,
    *,
    forward_fingerprints: Collection[str] = (),
    replace: bool = False,
    algebra: bool = False,
) -> Callable[[TwinT], TwinT]:
    """Class decorator: makes :func:`msr_cuda.fuse` swap modules of class ``target`` for this class.

    The decorated class is a subclass of ``target`` that overrides ``forward`` only, with the same
    parameters. It may add helper methods, but no state: instances are never constructed, a module
    of class ``target`` just becomes one. Define it at the top level of a module, so that fused
    models can be pickled.

    Two optional static methods let it decline:

    - ``skip_reasons(module) -> list[str]``: why this module has to be left alone; empty: it need
      not.
    - ``absorbed_modules(module) -> list[Module]``: children that the new ``forward`` does not call,
      as it does their work itself. A module with a hook on one of them is left alone, because the
      hook would not run any more.

    Example::

        class Merge(torch.nn.Module):  # somewhere in a model
            def __init__(self):
                super().__init__()
                self.up = torch.nn.Upsample(scale_factor=2)

            def forward(self, x, skip):
                return torch.relu(self.up(x) + skip)


        @msr_cuda.swap.register(Merge)
        class FusedMerge(Merge):
            '''Upsampling, sum and ReLU in one pass.'''

            @staticmethod
            def skip_reasons(module):
                return [] if type(module.up) is torch.nn.Upsample else ["up is not an Upsample"]

            @staticmethod
            def absorbed_modules(module):
                return [module.up]

            def forward(self, x, skip):
                return msr_cuda.resample_sum(
                    [x, skip], mode=self.up.mode, activation="relu",
                    scale_factors=[self.up.scale_factor, None],
                )

    The first line of its docstring appears in the report. An absorbed child is no site of its own
    (here ``module.up`` stays an ``Upsample``).

    Args:
        target: the class to be swapped. Instances of exactly this class are, and those of
            subclasses that inherit everything of it but ``__init__`` and ``extra_repr``.
        forward_fingerprints: :func:`msr_cuda.swap.fingerprint` of each ``target.forward`` that the
            class was written for. With another one, as of a later release, modules are left alone.
            Empty: any, for a ``target`` in your own code.
        replace: take the place of the class that is registered for ``target``, if there is one.
        algebra: the class computes the same in real arithmetic only, by reordering linear
            operations: it is used by ``fuse(model, algebra=True)``, and goes before one that is
            not.

    Raises:
        TypeError: the class does more than override ``forward``.
        ValueError: ``target`` has a twin.
    """
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise TypeError(f"register: expected target to be a subclass of Module, got {target!r}")
    if target in _originals:
        raise TypeError(f"register: expected target to be no twin, got {describe(target)}")
    library = target.__module__.partition(".")[0]

    def decorate(twin: TwinT) -> TwinT:
        check_twin(target, twin)
        if twin.__module__.partition(".")[0] != __name__.partition(".")[0]:
            load_recipes(library)  # so that `replace` sees what would come later
        registered = _algebra if algebra else _recipes
        known = registered.get(target)
        # Run again, a cell of a notebook defines the same class anew.
        if known is not None and not replace and describe(known.twin) != describe(twin):
            raise ValueError(
                f"register: expected {describe(target)} to have no twin yet (or replace=True), "
                f"got {describe(known.twin)}"
            )
        registered[target] = make_recipe(target, twin, forward_fingerprints, algebra)
        return twin

    return decorate


def unregister(twin: ModuleType) -> None:
    """Takes a registered class out again; modules that became one can still be restored."""
    target = _originals.get(twin)
    for registered in (_recipes, _algebra):
        if target in registered and registered[target].twin is twin:
            del registered[target]
            return
    raise ValueError(f"unregister: expected a registered class, got {twin!r}")


def load_recipes(library: str | None = None) -> None:
    """Imports the recipes of the libraries that are already imported (or of one of them).

    Warns:
        UserWarning: the library is there, but is not laid out as its recipes expect. Once.
    """
    for package in (_recipes_package, _algebra_package):
        for entry, needed in package.NEEDS.items():
            name = f"{package.__name__}.{entry}"
            # Where the module with the classes was never imported, no model has one of them, and
            # importing it might fail. A library that failed to import may have left None there.
            if library not in (None, needed.partition(".")[0]) or sys.modules.get(needed) is None:
                continue
            if name in _unusable:
                continue
            try:
                module = importlib.import_module(name)
                if hasattr(module, "REWRITES"):
                    module.REWRITES.load()  # more of the library may have been imported by now
            except ImportError as error:
                _unusable.add(name)
                warnings.warn(
                    f"the recipes for {entry} do not fit its version: {error}", stacklevel=4
                )


def leave(target: ModuleType, reason: str) -> None:
    """Lists modules of a class in reports as left alone; there is nothing in them to fuse."""
    _left[target] = reason


def reason_to_leave(cls: ModuleType) -> str | None:
    """What :func:`leave` was told."""
    return _left.get(cls)


def recipes(algebra: bool = False) -> list[Recipe]:
    """All that is registered; ``algebra``: those recipes too."""
    return [*(_algebra.values() if algebra else ()), *_recipes.values()]


def recipes_for(cls: ModuleType, algebra: bool = False) -> list[Recipe]:
    """The recipes of a class or of its nearest base that has one, the best first."""
    kinds = (_algebra, _recipes) if algebra else (_recipes,)
    for base in cls.__mro__:
        found = [registered[base] for registered in kinds if base in registered]
        if found:
            return found
    return []


def original_of(cls: ModuleType) -> ModuleType | None:
    """The class that ``cls`` is the twin of."""
    return _originals.get(cls)


def twin_below(cls: ModuleType) -> ModuleType | None:
    """The twin that ``cls`` is a proper subclass of."""
    for base in cls.__mro__[1:]:
        if base in _originals:
            return base
    return None


def twin_for(recipe: Recipe, cls: ModuleType) -> ModuleType:
    """The class that modules of class ``cls`` get: the recipe's, or one that also is a ``cls``."""
    if cls is recipe.target:
        return recipe.twin
    key = (recipe.twin, cls)
    if key not in _subclass_twins:
        twin = types.new_class(
            f"Fused{cls.__name__}",
            (recipe.twin, cls),
            exec_body=lambda namespace: namespace.update(
                __module__=recipe.twin.__module__,
                __doc__=recipe.twin.__doc__,
                __reduce_ex__=_reduce_subclass_twin,
            ),
        )
        _subclass_twins[key] = twin
        _originals[twin] = cls
    return _subclass_twins[key]


def skip_reasons(twin: ModuleType, module: nn.Module) -> list[str]:
    """What the twin says against this module."""
    method = getattr(twin, "skip_reasons", None)
    return [] if method is None else list(method(module))


def absorbed_modules(twin: ModuleType, module: nn.Module) -> list[nn.Module]:
    """The children that the twin does not call."""
    method = getattr(twin, "absorbed_modules", None)
    return [] if method is None else list(method(module))


def subclass_reasons(recipe: Recipe, cls: ModuleType) -> list[str]:
    """Why modules of a subclass of the recipe's target may behave differently from the target's."""
    target = recipe.target
    derived = cls.__mro__[: cls.__mro__.index(target)]
    inherited = _names(target.__mro__[: target.__mro__.index(nn.Module)])
    overridden = sorted(
        name
        for name in _names(derived) & inherited - {"extra_repr"}
        if not (name.startswith("__") and name.endswith("__"))
    )
    reasons = []
    if overridden:
        reasons.append(
            f"{cls.__qualname__} is a {target.__qualname__} with its own {', '.join(overridden)}"
        )
    # The twin of a subclass is made on the fly, which must have no side effects, and pickles in a
    # way of its own.
    if getattr(cls.__init_subclass__, "__func__", None) is not None:
        reasons.append(f"{cls.__qualname__} defines __init_subclass__")
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        reasons.append(f"{cls.__qualname__} defines how it is pickled")
    return reasons


def source_reasons(recipe: Recipe, reader: str = "") -> list[str]:
    """Why the forward of the recipe's target is not one that the recipe was written for.

    Args:
        recipe: what is known of the class.
        reader: what to call what was written for it; empty: the recipe's twin.
    """
    if not recipe.forward_fingerprints:
        return []
    name = f"{describe(recipe.target)}.forward"
    try:
        found = fingerprint(recipe.target.forward)
    except (OSError, TypeError):
        return [f"the source of {name} is not available to compare"]
    if found in recipe.forward_fingerprints:
        return []
    reader = reader or describe(recipe.twin)
    return [f"{name} (fingerprint {found}) is not one that {reader} was written for"]


def describe(cls: type) -> str:
    """The full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _names(classes: Collection[type]) -> set[str]:
    return {name for cls in classes for name in vars(cls)}


def make_recipe(
    target: ModuleType,
    twin: ModuleType,
    forward_fingerprints: Collection[str],
    algebra: bool = False,
) -> Recipe:
    """Remembers what ``twin`` stands for, so that :func:`msr_cuda.unfuse` can restore it."""
    _originals[twin] = target
    return Recipe(target, twin, frozenset(forward_fingerprints), algebra)


def check_twin(target: ModuleType, twin: object) -> None:
    """Raises a TypeError, unless ``twin`` just overrides the ``forward`` of ``target``."""
    if not (isinstance(twin, type) and issubclass(twin, target) and twin is not target):
        raise TypeError(f"register: expected a subclass of {describe(target)}, got {twin!r}")
    if twin.forward is target.forward:
        raise TypeError(f"register: expected {describe(twin)} to override forward, got none")
    for cls in twin.__mro__[: twin.__mro__.index(target)]:
        for name, value in vars(cls).items():
            if name in _CLASS_METADATA or name == "forward":
                continue
            if name in _OPTIONAL_METHODS:
                if not isinstance(value, staticmethod):
                    raise TypeError(
                        f"register: expected {describe(cls)}.{name} to be a staticmethod, "
                        f"got {type(value).__name__}"
                    )
            elif hasattr(target, name):
                if getattr(target, name) is value:
                    continue  # repeated by an __init_subclass__ of the library
                raise TypeError(
                    f"register: expected {describe(cls)} to override forward only, got {name}"
                )
            elif not isinstance(value, (types.FunctionType, staticmethod, classmethod, property)):
                raise TypeError(
                    f"register: expected {describe(cls)} to add no state, got {name} = {value!r}"
                )
    expected, got = _parameters(target.forward), _parameters(twin.forward)
    if expected != got:
        raise TypeError(
            f"register: expected {describe(twin)}.forward to have the parameters "
            f"({', '.join(map(str, expected))}) of {describe(target)}, "
            f"got ({', '.join(map(str, got))})"
        )


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [p.replace(annotation=inspect.Parameter.empty) for p in parameters]


def _reduce_subclass_twin(self: Any, protocol: int) -> tuple[Any, ...]:
    """Pickles an instance of a class that cannot be imported by name."""
    cls = type(self)
    reduced: Any = object.__reduce_ex__(self, max(protocol, 2))
    return (_new_subclass_twin, (cls.__mro__[1], _originals[cls]), *reduced[2:])


def _new_subclass_twin(twin: ModuleType, cls: ModuleType) -> nn.Module:
    made = twin_for(Recipe(_originals[twin], twin, frozenset()), cls)
    return made.__new__(made)
