"""Loads the compiled operators once, and keeps the reason if that cannot be done.

Importing this builds nothing and prints nothing. Environment:

- ``MSR_CUDA_DISABLE_EXTENSION=1``: behave as if nothing had been compiled.
- ``MSR_CUDA_REQUIRE=1``: raise at import where the operators are missing, so that a test run
  cannot pass on the pure-PyTorch fallback without anybody noticing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import torch

_PACKAGE = pathlib.Path(__file__).resolve().parent
_DISTRIBUTION = "msr-cuda"
_REASON_FILE = "_build_reason.txt"  # setup.py writes it


def _flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _folders() -> Iterator[pathlib.Path]:
    """Where the binary may lie.

    Next to this file, or where pip put it: run from the root of a checkout, Python imports the
    checkout's package and not the installed one, and only the latter has the binary.
    """
    yield _PACKAGE
    # All of them: a checkout's *.egg-info comes first and lists no binary.
    for distribution in importlib.metadata.distributions(name=_DISTRIBUTION):
        folder = pathlib.Path(str(distribution.locate_file("msr_cuda")))
        if folder.is_dir() and folder.resolve() != _PACKAGE:
            yield folder


def build_command(kind: str = "auto") -> str:
    """The command that builds the extension for this interpreter."""
    pip = f"MSR_CUDA_BUILD={kind} {shlex.quote(sys.executable)} -m pip install"
    checkout = _PACKAGE.parent
    if (checkout / "setup.py").is_file() and (checkout / "csrc").is_dir():
        return f"{pip} --no-build-isolation --no-deps -e {shlex.quote(str(checkout))}"
    return f"{pip} --no-build-isolation --no-deps --force-reinstall <a checkout of msr_cuda>"


def build_reason() -> str | None:
    """What the build left out, and why, as it recorded it; None if nothing was."""
    for folder in _folders():
        path = folder / _REASON_FILE
        if path.is_file():
            return path.read_text(encoding="utf-8").strip()
    return None


def _load() -> tuple[str | None, str | None]:
    """``(path, None)`` of the binary that was loaded, or ``(None, why not)``."""
    if _flag("MSR_CUDA_DISABLE_EXTENSION"):
        return None, "MSR_CUDA_DISABLE_EXTENSION=1 is set"
    failures = []
    for folder in _folders():
        for path in sorted(folder.glob("_C*.so")):
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                failures.append(f"{path} does not load: {error.__cause__ or error}")
            else:
                return str(path), None
    if failures:
        return None, "; ".join(failures)
    reason = build_reason()
    return None, "it was not built" + (f": {reason}" if reason else "")


PATH: str | None
WHY_NOT: str | None
PATH, WHY_NOT = _load()
LOADED: bool = PATH is not None
#: What the binary was compiled with, as it says itself; empty where none is loaded.
BUILD: dict[str, Any] = json.loads(torch.ops.msr_cuda.build_info()) if LOADED else {}

if not LOADED and _flag("MSR_CUDA_REQUIRE"):
    raise ImportError(
        f"msr_cuda: MSR_CUDA_REQUIRE=1, but its compiled extension is not loaded: {WHY_NOT}. "
        f"To build it: {build_command()}"
    )


def has_kernels(device_type: str) -> bool:
    """Whether the loaded binary holds kernels for ``"cpu"`` or ``"cuda"``."""
    if device_type == "cpu":
        return LOADED
    if device_type == "cuda":
        return bool(BUILD.get("with_cuda", False))
    return False
