"""Twins whose ``forward`` is the library's own, with a few statements replaced.

Most libraries resample and fuse in the middle of a long ``forward``. A recipe says which statements
of it become which others; everything else stays the library's, word for word. The source is known:
it is that of a fingerprint that the recipe names, so the statements are where they should be.

A recipe may name classes that were never imported. Its twin is made once they are, and when a
pickle asks for it::

    REWRITES = Rewrites(__name__)
    __getattr__ = REWRITES.find

    REWRITES.add(
        "package.module:Class",
        fingerprints=["0123456789abcdef"],
        summary="Upsampling and sum in one pass.",
        edits={"x = F.interpolate(x, scale_factor=2) + skip":
               "x = msr.add(msr.up(x, scale_factor=2), skip)"},
    )

In the new statements, ``msr`` is :mod:`msr_cuda.swap._glue`, and ``recipe`` the file of recipes.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import linecache
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from . import _glue, _registry
from ._registry import ModuleType
from ._source import fingerprint, same_code

#: Decorators that only write documentation.
_DOCUMENTATION = {"auto_docstring", "add_start_docstrings", "replace_return_docstrings"}


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """One class and what changes in its ``forward``; see :meth:`Rewrites.add`."""

    module: str
    name: str
    fingerprints: Sequence[str]
    summary: str
    edits: Mapping[str, str]
    forward: Callable[..., Any] | None
    methods: Mapping[str, Sequence[str]]
    skip_reasons: Callable[[Any], list[str]] | None
    absorbed_modules: Callable[[Any], list[nn.Module]] | None
    on_made: Callable[[ModuleType], None] | None
    keeps_name: bool


class Rewrites:
    """The twins of one file of recipes."""

    def __init__(self, recipes: str) -> None:
        """``recipes`` is the full name of that file's module, to which the twins belong."""
        self._recipes = recipes
        self._pending: dict[str, Rewrite] = {}
        self._left: dict[str, str] = {}

    def add(
        self,
        *targets: str,
        fingerprints: Sequence[str],
        summary: str,
        edits: Mapping[str, str] | None = None,
        forward: Callable[..., Any] | None = None,
        twin: str | None = None,
        methods: Mapping[str, Sequence[str]] | None = None,
        skip_reasons: Callable[[Any], list[str]] | None = None,
        absorbed_modules: Callable[[Any], list[nn.Module]] | None = None,
        on_made: Callable[[ModuleType], None] | None = None,
        keeps_name: bool = False,
    ) -> None:
        """Adds one recipe for classes with the same code.

        Args:
            targets: ``module:Class``.
            fingerprints: of each ``forward`` that the edits fit.
            summary: what one pass does; appears in the report.
            edits: statements of the ``forward``, or an expression in it, each with its replacement.
            forward: a whole new one in their place, for forwards that differ in their statements.
            twin: name of the new class; None: ``Fused`` and that of the target.
            methods: fingerprints of other methods whose work the new statements do.
            skip_reasons, absorbed_modules: as :func:`msr_cuda.swap.register` has them.
            on_made: called with the twin, where a library has to be told of a class.
            keeps_name: whether the twin's ``__name__`` is the target's, for a library that saves
                models by it. Its ``__qualname__`` is its own, which pickles and reports go by.

        Raises:
            ValueError: both ``edits`` and ``forward``, or none, or a twin of that name.
        """
        if (edits is None) == (forward is None):
            raise ValueError("Rewrites.add: expected either edits or forward")
        for target in targets:
            module, _, name = target.partition(":")
            label = twin or f"Fused{name}"
            if label in self._pending:
                raise ValueError(f"Rewrites.add: expected a new name of a twin, got {label}")
            self._pending[label] = Rewrite(
                module, name, fingerprints, summary, edits or {}, forward, methods or {},
                skip_reasons, absorbed_modules, on_made, keeps_name,
            )  # fmt: skip

    def leave(self, *targets: str, reason: str) -> None:
        """Adds classes (``module:Class``) that reports list as left alone, and why."""
        for target in targets:
            self._left[target] = reason

    def load(self) -> None:
        """Makes and registers the twins of all classes that are imported by now.

        Warns:
            UserWarning: a module of the library does not have such a class. Once.
        """
        for target, reason in list(self._left.items()):
            module, _, name = target.partition(":")
            if sys.modules.get(module) is not None:
                del self._left[target]
                cls = getattr(sys.modules[module], name, None)
                if cls is not None:
                    _registry.leave(cls, reason)
        for label, rewrite in list(self._pending.items()):
            if sys.modules.get(rewrite.module) is None:
                continue
            try:
                self._make(label, rewrite)
            except ImportError as error:
                warnings.warn(f"a recipe does not fit this version: {error}", stacklevel=5)

    def find(self, name: str) -> ModuleType:
        """A twin by name, as the ``__getattr__`` of the module of recipes."""
        rewrite = self._pending.get(name)
        if rewrite is None:
            raise AttributeError(f"module {self._recipes!r} has no attribute {name!r}")
        importlib.import_module(rewrite.module)
        return self._make(name, rewrite)

    def _make(self, label: str, rewrite: Rewrite) -> ModuleType:
        # First: making it might ask for it again, and a class that is missing is missed once.
        del self._pending[label]
        module = sys.modules[rewrite.module]
        target: ModuleType | None = getattr(module, rewrite.name, None)
        if target is None:
            raise ImportError(f"{rewrite.module} has no class {rewrite.name}")
        recipes = sys.modules[self._recipes]
        members: dict[str, Any] = {
            "__module__": self._recipes,
            "__doc__": rewrite.summary,
            "forward": _new_forward(target, label, rewrite, recipes),
            "skip_reasons": staticmethod(_reasons(target, rewrite)),
        }
        if rewrite.absorbed_modules is not None:
            members["absorbed_modules"] = staticmethod(rewrite.absorbed_modules)
        twin: ModuleType = types.new_class(
            label, (target,), exec_body=lambda namespace: namespace.update(members)
        )
        if rewrite.keeps_name:
            twin.__name__ = target.__name__
        setattr(recipes, label, twin)
        _registry.register(target, forward_fingerprints=rewrite.fingerprints)(twin)
        if rewrite.on_made is not None:
            rewrite.on_made(twin)
        return twin


def _reasons(target: ModuleType, rewrite: Rewrite) -> Callable[[Any], list[str]]:
    """The recipe's own reasons, and methods that are not the known ones."""

    def reasons(module: nn.Module) -> list[str]:
        found = []
        for name, known in rewrite.methods.items():
            if name in vars(module) or fingerprint(getattr(type(module), name)) not in known:
                found.append(f"{_registry.describe(target)}.{name} is not a known one")
        if not found and rewrite.skip_reasons is not None:
            found += rewrite.skip_reasons(module)
        return found

    return reasons


def _new_forward(
    target: ModuleType, label: str, rewrite: Rewrite, recipes: types.ModuleType
) -> Callable[..., Any]:
    """The edited ``forward``; for a source that is not a known one, a stand-in that never runs."""
    original = target.forward
    if _registry.source_reasons(_registry.Recipe(target, target, frozenset(rewrite.fingerprints))):

        def unknown(self: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, *args, **kwargs)

        unknown.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        return unknown
    if rewrite.forward is not None:
        return rewrite.forward
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(original))).body
    assert isinstance(tree, ast.FunctionDef)
    _drop_documentation(tree)
    for old, new in rewrite.edits.items():
        if not _edit(tree, old, new):
            raise RuntimeError(
                f"{label}: the forward of {_registry.describe(target)} has no {old!r}"
            )
    # The class is what `super()` looks for; the globals are those of the library's module.
    source = (
        "def _make(__class__, msr, recipe):\n"
        f"{textwrap.indent(ast.unparse(tree), '    ')}\n"
        "    return forward\n"
    )
    file = f"<{recipes.__name__}.{label}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made: dict[str, Any] = {}
    exec(
        compile(source, file, "exec", dont_inherit=True), sys.modules[rewrite.module].__dict__, made
    )
    forward: Callable[..., Any] = made["_make"](target, _glue, recipes)
    return forward


def _drop_documentation(tree: ast.FunctionDef) -> None:
    """Removes what a function does not need to run: annotations, docstring and its decorators."""
    if ast.get_docstring(tree) is not None:
        del tree.body[0]
    tree.returns = None
    arguments = tree.args
    for argument in (
        *arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg,
        arguments.kwarg,
    ):  # fmt: skip
        if argument is not None:
            argument.annotation = None
    tree.decorator_list = [
        d
        for d in tree.decorator_list
        if getattr(d.func if isinstance(d, ast.Call) else d, "id", None) not in _DOCUMENTATION
    ]


def _edit(tree: ast.FunctionDef, old: str, new: str) -> bool:
    """Replaces statements, or an expression, wherever they are; False: nowhere."""
    before, after = (ast.parse(textwrap.dedent(code)).body for code in (old, new))
    if len(before) == len(after) == 1:
        (first,), (second,) = before, after
        if isinstance(first, ast.Expr) and isinstance(second, ast.Expr):
            replace = _ReplaceExpression(first.value, second.value)
            replace.visit(tree)
            return replace.found
    found = False
    for node in ast.walk(tree):
        for _, block in ast.iter_fields(node):
            if not isinstance(block, list):
                continue
            for i in range(len(block) - len(before) + 1):
                if same_code(block[i : i + len(before)], before):
                    block[i : i + len(before)] = after
                    found = True
                    break
    return found


class _ReplaceExpression(ast.NodeTransformer):
    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self.old, self.new, self.found = old, new, False

    def visit(self, node: ast.AST) -> Any:
        if same_code(node, self.old):
            self.found = True
            return self.new
        return self.generic_visit(node)
