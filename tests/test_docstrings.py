"""Docstrings: their examples print what they say, their errors are listed one to a line."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import msr_cuda
import msr_cuda.models

PACKAGES = (msr_cuda.models, msr_cuda.nn, msr_cuda.functional)


def documented() -> list[str]:
    """The modules of the packages that have examples."""
    names = []
    for package in PACKAGES:
        names.append(package.__name__)
        for module in pkgutil.iter_modules(
            getattr(package, "__path__", []), package.__name__ + "."
        ):
            names.append(module.name)
    return names


@pytest.mark.parametrize("name", documented())
def test_examples_of_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    given = {"msr_cuda": msr_cuda, "torch": torch, "OrderedDict": OrderedDict}
    results = doctest.testmod(module, extraglobs=given, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_examples_are_found() -> None:
    finder = doctest.DocTestFinder()
    assert any(test.examples for test in finder.find(msr_cuda.nn.ResampleSum))


def misread_errors(docstring: str) -> list[str]:
    """Lines below ``Raises:`` and ``Warns:`` of which the site would make something else.

    It reads the name of an error at the beginning of a line alone, and takes whatever else stands
    there for one.
    """
    sections = re.findall(r"^(?:Raises|Warns):\n((?:    .*\n?)+)", docstring, re.M)
    lines = [line for section in sections for line in section.splitlines()]
    begins = re.compile(r" {4}(?! )(?![A-Za-z.]+(?:, [A-Za-z.]+)*: )")
    return [s for s in lines if begins.match(s) or re.search(r"\. \w+(Error|Warning): ", s)]


def test_errors_are_listed_one_to_a_line() -> None:
    assert misread_errors("Raises:\n    TypeError: a. ValueError: b.\n")
    assert misread_errors("Raises:\n    TypeError: a thing. Nothing was\n    changed.\n")
    assert not misread_errors("Raises:\n    TypeError, ValueError: a thing, as\n        said.\n")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in Path(msr_cuda.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, documented):
                assert misread_errors(ast.get_docstring(node) or "") == [], path
