"""Imports go one way through the layers, and importing the package has no side effects."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "msr_cuda"

#: layer -> the layers of this package that it may import
ALLOWED = {
    "_version": set(),
    "_extension": set(),
    "_pool": set(),
    "_spec": {"_pool"},
    "_info": {"_extension", "_version"},
    "__main__": {"_info", "swap", "train"},
    "reference": {"_pool", "_spec"},
    "_ops": {"_extension", "_spec"},
    "autograd": {"_ops", "_spec", "reference"},
    "_validate": {"_pool", "_spec"},
    "_dispatch": {"_extension", "_spec"},
    "_plans": {"_spec", "_validate", "autograd"},
    "_losses": {
        "_dispatch",
        "_ops",
        "_plans",
        "_spec",
        "_validate",
        "autograd",
        "reference",
    },
    "functional": {"_dispatch", "_losses", "_plans", "_spec", "_validate", "autograd", "reference"},
    "nn": {"_spec", "functional"},
    "models": {"functional", "nn"},
    "swap": {"_losses", "_pool", "_spec", "functional", "nn", "testing"},
    "train": {"models", "nn"},
    "testing": {"_pool", "_spec", "reference"},
    "__init__": {"_info", "_pool", "_version", "functional", "nn", "swap"},
}


def imported_layers(path: pathlib.Path) -> set[str]:
    """Which layers of the package a file imports, by any spelling."""
    depth = len(path.relative_to(PACKAGE).parts)
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                base = node.module or ""
            elif node.level == depth:
                base = ".".join(filter(None, ("msr_cuda", node.module)))
            else:
                continue  # within its own subpackage
            found = [base] if base.count(".") else [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        names |= {n.split(".")[1] for n in found if n.startswith("msr_cuda.")}
    return names - {own}


def test_imports_go_one_way() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert {f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in files} == set(ALLOWED)
    for file in files:
        layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        extra = imported_layers(file) - ALLOWED[layer]
        assert not extra, f"{file.relative_to(PACKAGE.parent)} imports {sorted(extra)}"


def test_the_rule_sees_imports() -> None:
    assert imported_layers(PACKAGE / "functional.py") == ALLOWED["functional"]


def test_import_prints_nothing_and_changes_nothing() -> None:
    program = """
import torch, torch.nn.functional as F
before = (F.interpolate, torch.nn.Upsample.forward, dict(vars(torch.nn.functional)))
import msr_cuda
assert before == (F.interpolate, torch.nn.Upsample.forward, dict(vars(torch.nn.functional)))
import sys
for name in ("torchvision", "timm", "transformers", "numpy.testing"):
    assert name not in sys.modules, name
"""
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:msr_cuda", "-c", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
