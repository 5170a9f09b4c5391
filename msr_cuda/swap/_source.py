"""Recognizes a function by its source, whatever the version of Python."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


@functools.cache
def fingerprint(function: Callable[..., Any]) -> str:
    """A hash of what a Python function does.

    Of its source, that is, without comments, docstring and annotations.

    A recipe names the fingerprints of the ``forward`` it was written for, see
    :func:`msr_cuda.swap.register`. It is the same in every version of Python (bytecode is not).

    Raises:
        OSError: the source is not available.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    if not isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise OSError(f"fingerprint: expected the source of a function, got {type(tree).__name__}")
    if ast.get_docstring(tree) is not None:
        del tree.body[0]
    return hashlib.sha256(_serialize(tree).encode()).hexdigest()[:16]


def same_code(first: object, second: object) -> bool:
    """Whether two syntax trees, or lists of them, do the same."""
    return _serialize(first) == _serialize(second)


def _serialize(node: object) -> str:
    """As ``ast.dump``, but without what versions of Python print differently."""
    if isinstance(node, list):
        return "[" + ",".join(map(_serialize, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name, value in ast.iter_fields(node):
        if value is None and not isinstance(node, ast.Constant):
            continue
        # Newer versions have fields that are empty in older code.
        if value == [] or name in ("annotation", "returns", "type_comment", "kind"):
            continue
        parts.append(f"{name}={_serialize(value)}")
    return f"{type(node).__name__}({','.join(parts)})"
