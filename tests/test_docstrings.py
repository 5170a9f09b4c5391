"""The examples in docstrings print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections import OrderedDict

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
