"""What is installed, what was built, which kernels are there, and what to do about what is not."""

from __future__ import annotations

import platform
import re
from typing import Any

import torch

from . import _extension
from ._version import __version__

_KEYS = ("CPU", "CUDA", "Meta", "CompositeExplicitAutograd")


def _operators() -> dict[str, list[str]]:
    """Every operator of our namespace, with the dispatch keys that have a kernel for it.

    The dispatcher is asked: a list written down here could claim what is not there.
    """
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("msr_cuda::")]
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name.removeprefix("msr_cuda::"): [key for key in _KEYS if has(name, key)]
        for name in sorted(names)
    }


def _cpu() -> dict[str, str | None]:
    """The instruction set of the CPU kernels, or why there is none."""
    isa = why_not = None
    if _extension.LOADED:
        try:
            isa = str(torch.ops.msr_cuda.cpu_isa())
        except RuntimeError as error:
            # Without the place in the sources that the message begins with.
            message = str(error)
            why_not = message[max(0, message.find("MSR_CUDA_CPU_ISA")) :]
    else:
        why_not = _extension.WHY_NOT
    return {"isa": isa, "why_not": why_not}


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gb": round(properties.total_memory / 2**30, 1),
            }
        )
    return gpus


def _serves(architectures: str, capability: str) -> bool:
    """Whether code built for ``architectures`` runs on a GPU of this compute capability.

    Machine code serves its own major version from its minor version on; PTX all that came later.
    """
    major, minor = (int(number) for number in capability.split("."))
    for name in re.split(r"[;\s]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([a-z]?)(\+PTX)?", name)
        if match is None:
            return True  # a named list ("Hopper"): do not guess
        built = (int(match.group(1)), int(match.group(2)))
        if match.group(3):  # 9.0a: exactly that
            if built == (major, minor):
                return True
            continue
        if built[0] == major and built[1] <= minor:
            return True
        if match.group(4) and built <= (major, minor):
            return True
    return False


def _advice(gpus: list[dict[str, Any]], cpu: dict[str, str | None]) -> list[str]:
    """What keeps kernels from running here and the command that would change it."""
    build_cuda = _extension.build_command("cuda")
    if not _extension.LOADED:
        if "MSR_CUDA_DISABLE_EXTENSION" in (_extension.WHY_NOT or ""):
            return ["the extension is switched off: unset MSR_CUDA_DISABLE_EXTENSION"]
        command = build_cuda if torch.version.cuda else _extension.build_command("cpu")
        return [f"no kernels ({_extension.WHY_NOT}): {command}"]
    advice = []
    built_for = _extension.BUILD["version"]
    if built_for != __version__:
        advice.append(
            f"the binary is of msr_cuda {built_for}, the package {__version__}: "
            + _extension.build_command()
        )
    if cpu["isa"] is None:
        advice.append(f"every CPU kernel refuses to run ({cpu['why_not']}): change or unset it")
    if torch.version.cuda and not _extension.has_kernels("cuda"):
        reason = _extension.build_reason()
        advice.append(f"no CUDA kernels{f' ({reason})' if reason else ''}: {build_cuda}")
    if _extension.has_kernels("cuda"):
        architectures = _extension.BUILD["cuda_architectures"]
        for gpu in gpus:
            if not _serves(architectures, gpu["capability"]):
                advice.append(
                    f"the CUDA kernels are built for {architectures}, which {gpu['name']} "
                    f"({gpu['capability']}) cannot run: "
                    f"TORCH_CUDA_ARCH_LIST={gpu['capability']} {build_cuda}"
                )
    return advice


def info() -> dict[str, Any]:
    """Versions, how the extension was built and which kernels are there.

    Returns:
        dict: ``msr_cuda``, ``python``, ``torch``, ``torch_cuda``, ``platform`` (str or None);
        ``gpus`` (list of name, capability, memory_gb); ``extension`` (loaded, path, why_not,
        build); ``cpu`` (isa, the instruction set of the CPU kernels, ``"avx512"``, ``"avx2"`` or
        ``"generic"``; why_not, where there is none); ``kernels`` (operator -> dispatch keys that
        have a kernel for it); ``advice`` (list of str: what is missing, with the command that gives
        it). JSON-serialisable.
    """
    gpus = _gpus()
    cpu = _cpu()
    return {
        "msr_cuda": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "gpus": gpus,
        "extension": {
            "loaded": _extension.LOADED,
            "path": _extension.PATH,
            "why_not": _extension.WHY_NOT,
            "build": dict(_extension.BUILD),
        },
        "cpu": cpu,
        "kernels": _operators(),
        "advice": _advice(gpus, cpu),
    }


def format_info(facts: dict[str, Any] | None = None) -> str:
    """The same as text, for people; what ``python -m msr_cuda info`` prints."""
    facts = info() if facts is None else facts
    extension = facts["extension"]
    gpus = [f"{g['name']}, {g['capability']}, {g['memory_gb']} GB" for g in facts["gpus"]]
    rows = [
        ("msr_cuda", facts["msr_cuda"]),
        ("python", f"{facts['python']}, {facts['platform']}"),
        ("torch", f"{facts['torch']}, CUDA {facts['torch_cuda'] or 'none'}"),
        ("GPU", "; ".join(gpus) or "none visible"),
    ]
    if extension["loaded"]:
        build = extension["build"]
        cuda = f"CUDA {build['cuda_toolkit']} for {build['cuda_architectures']}"
        rows.append(("extension", extension["path"]))
        rows.append(
            (
                "built with",
                f"{build['compiler']}, torch {build['torch']} headers, "
                + (cuda if build["with_cuda"] else "no CUDA")
                + (", sanitizers" if build["sanitized"] else ""),
            )
        )
        rows.append(("CPU kernels", facts["cpu"]["isa"] or f"none: {facts['cpu']['why_not']}"))
    else:
        rows.append(("extension", f"none: {extension['why_not']}"))
    lines = [f"{name:<12}{value}" for name, value in rows]
    lines.append("kernels" if facts["kernels"] else "kernels     none: every call runs in PyTorch")
    width = max((len(name) for name in facts["kernels"]), default=0)
    for name, keys in facts["kernels"].items():
        lines.append(f"  {name:<{width}}  {' '.join(keys) or '-'}")
    lines += [f"to do       {line}" for line in facts["advice"]]
    return "\n".join(lines)
