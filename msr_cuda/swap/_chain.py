"""Sites of several modules: one passes work on, another does it, and a container connects them.

Which module's result goes to which other module is often known to a container only: it calls its
layers in turn, and none of them refers to another. A recipe for the container names such modules as
a :class:`Chain`; all of a chain are swapped and restored together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torch import nn

from . import _registry
from ._registry import ModuleType

PartT = TypeVar("PartT", bound=ModuleType)


class Wiring(NamedTuple):
    """What every module of a fused chain remembers, as the attribute named :data:`ATTRIBUTE`.

    It is no child module, so that ``state_dict`` and ``named_modules`` stay as they are, and a copy
    or a pickle of the whole model has its own.

    Attributes:
        site: the module that does the work.
        members: all modules of the chain, the site included.
        data: what the site's ``forward`` has to know.
    """

    site: nn.Module
    members: tuple[nn.Module, ...]
    data: Any


#: Where :class:`Wiring` is kept.
ATTRIBUTE = "_msr_cuda_wiring"


class Chain(NamedTuple):
    """What a container's recipe found.

    Attributes:
        site: the module that does the work; the one that the report lists.
        members: each module with the twin that it gets, a class decorated with :func:`part`. The
            site comes first.
        data: see :class:`Wiring`.
        reasons: why the chain has to be left alone, empty: it need not. Hooks, changed classes and
            uses of a member outside of the container are found by :func:`msr_cuda.fuse` itself.
    """

    site: nn.Module
    members: tuple[tuple[nn.Module, ModuleType], ...]
    data: Any
    reasons: list[str]


Finder = Callable[[nn.Module], list[Chain]]
_finders: dict[ModuleType, Finder] = {}


def register_container(container: ModuleType) -> Callable[[Finder], Finder]:
    """Decorator: a function that finds the chains in a module of that class, or of a subclass.

    Modules whose chain is fused already are not to be named again.
    """

    def decorate(finder: Finder) -> Finder:
        _finders[container] = finder
        return finder

    return decorate


def part(target: ModuleType, *, forward_fingerprints: list[str]) -> Callable[[PartT], PartT]:
    """Class decorator: a twin of ``target`` for use in chains only.

    As :func:`msr_cuda.swap.register`, but modules of class ``target`` are not swapped by
    themselves.
    """

    def decorate(twin: PartT) -> PartT:
        _registry.check_twin(target, twin)
        _parts[twin] = _registry.make_recipe(target, twin, forward_fingerprints)
        return twin

    return decorate


_parts: dict[ModuleType, _registry.Recipe] = {}


def recipe_of(twin: ModuleType) -> _registry.Recipe:
    """The recipe that :func:`part` made."""
    return _parts[twin]


def find(module: nn.Module) -> list[Chain]:
    """The chains that ``module`` connects."""
    for base in type(module).__mro__:
        if base in _finders:
            return _finders[base](module)
    return []


def wiring_of(module: nn.Module) -> Wiring | None:
    """What a module of a fused chain remembers; None: it is in none."""
    wiring = vars(module).get(ATTRIBUTE)
    return wiring if isinstance(wiring, Wiring) else None
