"""What a reader of the figures needs to know: the machine, the versions, the commit."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent

#: Instruction sets that decide which CPU kernels run, as /proc/cpuinfo calls them.
_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16",
    "amx_bf16", "asimd", "asimdhp", "bf16", "sve", "sve2",
)  # fmt: skip


def machine_facts(device: torch.device) -> dict[str, Any]:
    """The machine. ``gpu`` and ``gpu_driver`` are None where ``device`` is no GPU."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    name, flags = _cpu()
    on_cuda = device.type == "cuda"
    return {
        "platform": platform.platform(),
        "cpu": name,
        "cpu_flags": flags,
        "cpu_cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_cuda else None,
        "gpu_driver": _gpu_driver() if on_cuda else None,
    }


def _cpu() -> tuple[str, list[str]]:
    """The processor's name and those of its instruction sets that matter."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            name = found.group(1).strip()
        if found := re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE):
            flags = set(found.group(1).split())
    return name, [flag for flag in _FLAGS if flag in flags]


def _gpu_driver() -> str | None:
    return _first_line_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def version_facts(*packages: str) -> dict[str, str | None]:
    """Versions of what has a part in the figures, and of ``packages``; None: not installed."""
    import msr_cuda

    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "msr_cuda": msr_cuda.__version__,
    }
    for package in (*packages, "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def commit() -> str | None:
    """The commit of the checkout, with ``-dirty`` if files differ from it; None outside of git."""
    return _first_line_of(["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="])


def _first_line_of(command: list[str]) -> str | None:
    """What a command prints; None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else None


def slug(name: str) -> str:
    """A name as part of a path: ``NVIDIA H200`` -> ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
