"""Chooses between the compiled kernels and the reference."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _extension, _spec

Impl = Literal["auto", "kernel", "reference"]


def unsupported_reasons(inputs: Sequence[Tensor]) -> list[str]:
    """Why no kernel can take these (valid) inputs, whatever is done with them; empty if one can."""
    return _unsupported(inputs[0].device.type)


def _unsupported(device: str) -> list[str]:
    reasons = []
    if not _extension.has_kernels(device):
        reasons.append(_extension.WHY_NOT or f"the extension was built without {device} kernels")
    if _spec.in_functorch():
        reasons.append("a torch.func transform is active")
    if forward_ad._current_level >= 0:
        reasons.append("forward-mode AD is active")
    # The exporter traces or compiles, which can be asked faster than itself.
    captured = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
    if captured and torch.onnx.is_in_onnx_export():
        reasons.append("ONNX has no operators of msr_cuda's")
    return reasons


_warned: set[str] = set()


def reasons_for_reference(
    name: str,
    impl: str,
    inputs: Sequence[Tensor],
    reasons: Sequence[str] = (),
    device: str | None = None,
) -> list[str]:
    """Why this call runs in plain PyTorch; empty: it runs on a kernel.

    Args:
        name: of the public function.
        impl: as the user gave it.
        inputs: the maps.
        reasons: why there is no kernel for what is done with them.
        device: the type of their device, if the caller knows it.

    Raises:
        RuntimeError: ``impl="kernel"`` and there are reasons.
        ValueError: an unknown ``impl``.
    """
    if impl == "reference":
        return ['impl="reference"']
    if impl not in ("auto", "kernel"):
        raise ValueError(
            f'{name}: expected impl to be "auto", "kernel" or "reference", got {impl!r}'
        )
    found = unsupported_reasons(inputs) if device is None else _unsupported(device)
    if reasons:
        found += reasons
    if not found:
        return found
    if impl == "kernel":
        raise RuntimeError(f'{name}: impl="kernel", but ' + "; ".join(found))
    # A warning would break the capture of a full graph.
    if inputs[0].is_cuda and not torch.compiler.is_compiling():
        reason = "; ".join(found)
        if reason not in _warned:
            _warned.add(reason)
            # Level 4: the caller of the public function.
            warnings.warn(f"msr_cuda.{name} runs in plain PyTorch: {reason}", stacklevel=4)
    return found
