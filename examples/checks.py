"""What must stay the same when a model is swapped, checked on any model.

The numbers: outputs and all gradients in float64, where two correct implementations differ by
rounding alone and a wrong one shows. Two runs: bit for bit. Undoing the swap: the model as it was.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from msr_cuda.testing import SWAPPED_RTOL

Tensors = dict[str, Tensor]


class Subject(NamedTuple):
    """A model and how it is run."""

    name: str
    about: str
    model: nn.Module
    arguments: Callable[[nn.Module, Tensor], tuple[object, ...]]  # of a call of the model
    predict: Callable[[nn.Module, Tensor], Tensors]  # inference
    learn: Callable[[nn.Module, Tensor], tuple[Tensors, Tensor]]  # outputs and the loss


class Check(NamedTuple):
    """One line of the verdict."""

    what: str
    measured: float  # largest relative difference, or the number of things that differ
    allowed: float
    passed: bool
    remark: str = ""


def training_step(subject: Subject, model: nn.Module, image: Tensor) -> tuple[Tensors, Tensors]:
    """One forward and backward: the outputs, and the gradients of the parameters that got one."""
    model.zero_grad(set_to_none=True)
    outputs, loss = subject.learn(model, image)
    loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {name: output.detach() for name, output in outputs.items()}, gradients


def compare(what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Check:
    """The largest difference, relative to the largest magnitude of the tensor it is in.

    A tensor that is missing on one side fails the check, and so does one that is zero throughout:
    it would be equal whatever the swap did.
    """
    label = f"{what} ({len(before)})"
    failed = Check(label, float("inf"), SWAPPED_RTOL, False)
    if before.keys() != after.keys() or not before:
        odd = sorted(before.keys() ^ after.keys()) or ["any"]
        return failed._replace(remark=f"not in both runs: {', '.join(odd)}")
    dead = [name for name, tensor in before.items() if not tensor.any()]
    if dead:
        return failed._replace(remark=f"zero throughout: {', '.join(dead)}")
    differences = {
        name: float((after[name] - tensor).abs().max() / tensor.abs().max())
        for name, tensor in before.items()
    }
    worst = max(differences, key=lambda name: _nan_is_worst(differences[name]))
    value = differences[worst]
    return Check(label, value, SWAPPED_RTOL, value <= SWAPPED_RTOL, f"most in {worst}")


def same_numbers(
    subject: Subject, original: nn.Module, swapped: nn.Module, image: Tensor
) -> list[Check]:
    """Outputs and parameter gradients of both models, in float64."""
    # Copies: training steps would change the statistics that batch norms keep.
    before = training_step(subject, copy.deepcopy(original).double(), image.double())
    after = training_step(subject, copy.deepcopy(swapped).double(), image.double())
    return [
        compare("float64 outputs", before[0], after[0]),
        compare("float64 parameter gradients", before[1], after[1]),
    ]


def repeatable(subject: Subject, swapped: nn.Module, image: Tensor) -> Check:
    """Whether two training steps from the same state agree bit for bit."""
    with deterministic_libraries():
        first, second = (training_step(subject, copy.deepcopy(swapped), image) for _ in range(2))
    tensors = {f"{kind} {name}": (tensor, again[name])
               for kind, once, again in zip(("output", "gradient"), first, second, strict=True)
               for name, tensor in once.items()}  # fmt: skip
    differ = [name for name, (a, b) in tensors.items() if not torch.equal(a, b)]
    remark = f"first: {differ[0]}" if differ else ""
    what = f"{_dtype_name(image)} tensors that differ between two runs (of {len(tensors)})"
    return Check(what, len(differ), 0, not differ, remark)


def restored(subject: Subject, original: nn.Module, model: nn.Module, image: Tensor) -> Check:
    """Whether ``model`` is again what ``original``, a copy from before the swap, is."""
    differ = []
    if [type(m) for m in original.modules()] != [type(m) for m in model.modules()]:
        differ.append("classes")
    before, after = original.state_dict(), model.state_dict()
    if list(before) != list(after) or any(not torch.equal(before[k], after[k]) for k in before):
        differ.append("state_dict")
    with torch.no_grad(), deterministic_libraries():
        a, b = subject.predict(original, image), subject.predict(model, image)
    if a.keys() != b.keys():
        differ.append("names of outputs")
    else:
        differ += [
            f"output {name}" for name, tensor in a.items() if not torch.equal(tensor, b[name])
        ]
    what = "differences to the original after unfuse"
    return Check(what, len(differ), 0, not differ, ", ".join(differ))


@contextlib.contextmanager
def deterministic_libraries() -> Iterator[None]:
    """Keeps the rest of the model (convolutions above all) from hiding what the swap does.

    It changes nothing for msr_cuda, whose kernels are deterministic always.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def _nan_is_worst(value: float) -> float:
    return float("inf") if value != value else value


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
