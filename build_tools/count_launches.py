#!/usr/bin/env python3
"""Counts the CUDA kernels that each public operation launches. Needs no GPU.

The operation runs on the CPU; every call of a compiled operator on the way is noted, and handed,
with the same sizes, strides and options, to the shipped CUDA launchers, which the test harness
runs up to the launch itself. Beside them stand the operations of PyTorch that would each be a
kernel of its own, as where weights are normalised; views and new memory are none.

    python build_tools/count_launches.py [--write docs/kernels.md]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from harness import build, cases_io

import msr_cuda
from msr_cuda import _spec

BEGIN, END = "<!-- launches -->", "<!-- end of launches -->"

#: Operations of PyTorch that launch nothing: views, and memory alone.
_NO_KERNEL = (
    "view", "reshape", "expand", "slice", "select", "alias", "detach", "as_strided", "unsqueeze",
    "squeeze", "transpose", "permute", "t.", "split", "narrow", "empty", "_unsafe_view", "unbind",
)  # fmt: skip


@dataclass(frozen=True)
class Launches:
    """What one direction of an operation launches: by kernel template, and PyTorch's own."""

    ours: Counter[str]
    torch: Counter[str]

    def __str__(self) -> str:
        parts = [f"{count} `{name}`" for name, count in sorted(self.ours.items())]
        if self.torch:
            names = ", ".join(f"{name}" for name in sorted(self.torch))
            parts.append(f"{self.torch.total()} of PyTorch ({names})")
        return ", ".join(parts) or "none"


class _Noted(TorchDispatchMode):
    """Runs everything, and keeps the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.torch: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        if name.startswith("msr_cuda::"):
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.calls.append((name.removeprefix("msr_cuda::"), given))
        elif not name.removeprefix("aten::").startswith(_NO_KERNEL):
            self.torch[name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def _optional(call: dict[str, Any], name: str) -> Any:
    """A tensor as the harness takes it, or None."""
    tensor = call.get(name)
    return None if tensor is None or tensor.numel() == 0 else cases_io.from_torch(tensor)


def _common(call: dict[str, Any], count: int, rank: int) -> dict[str, Any]:
    """What gather and spread have in common."""
    spec = call["spec"]
    scales, windows = call.get("scales") or [], call.get("windows") or []
    pixel_weights = call.get("pixel_weights")
    windows = windows if len(windows) == 3 * count * rank else []
    return {
        "modes": np.array([_spec.mode_of(spec, i) for i in range(count)]),
        "cat": int(bool(spec & _spec.CAT)),
        "reduction": int(bool(spec & _spec.MAX)),
        "transposed": int(bool(spec & _spec.TRANSPOSED)),
        "channels_last": int(bool(spec & _spec.CHANNELS_LAST)),
        "acc_is_double": int(bool(spec & _spec.ACCUMULATE_DOUBLE)),
        "scales": np.array(scales) if scales else None,
        "windows": np.array(windows) if windows else None,
        "weights": _optional(call, "weights"),
        "pixel_weights": None
        if pixel_weights is None
        else pixel_weights.detach().flatten(2).numpy(),
        "gate": _optional(call, "gate"),
        "gate_off": _spec.LEAKY_SLOPE if spec & _spec.LEAKY_GATE else 0.0,
        "choice": np.zeros(0, np.int64),
    }


def _result(shape: Sequence[int], spec: int) -> Tensor:
    strides = _spec.dense_strides(shape, bool(spec & _spec.CHANNELS_LAST))
    return torch.empty_strided(tuple(shape), strides, dtype=_spec.result_dtype(spec))


def gather_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Those of the harness for a call of ``msr_cuda::gather``, any overload."""
    inputs = [call["input"]] if "input" in call else call["inputs"]
    size, spec = call.get("size"), call["spec"]
    if isinstance(size, int):
        size = _spec.unpack_size(size, inputs[0].dim() - 2)
    batch = next((x.shape[0] for x in inputs if x.shape[0] != 1), 1)
    channels = sum(x.shape[1] for x in inputs) if spec & _spec.CAT else inputs[0].shape[1]
    out = call.get("out")
    if out is None:
        out = _result((batch, channels, *size), spec)
    activation = _spec.activation_of(spec)
    saves = bool(spec & _spec.SAVE) and activation in _spec.BIT_ACTIVATIONS
    masks = len(inputs) if spec & _spec.MAX else int(saves)
    indices: list[Any] = [None] * len(inputs)
    for i, x in enumerate(inputs):
        if spec & _spec.SAVE and _spec.mode_of(spec, i) == _spec.MAX_POOL:
            indices[i] = np.zeros(x.shape[0] * x.shape[1] * out[0, 0].numel(), np.uint8)
    return _common(call, len(inputs), out.dim() - 2) | {
        "inputs": [cases_io.from_torch(x) for x in inputs],
        "out": cases_io.from_torch(out),
        "activation": _spec.ACTIVATIONS.index(activation),
        "mask": np.zeros(masks * _spec.mask_bytes(out.numel()), np.uint8) if masks else None,
        "index": indices if any(index is not None for index in indices) else None,
        "grad": _optional(call, "grad"),
    }


def gather_jobs_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The same of ``msr_cuda::gather_many``: those of every job, by their number."""
    rank = call["inputs"][0].dim() - 2
    found: dict[str, Any] = {"count": len(call["counts"]), "acc_is_double": 0}
    first = 0
    for j, (number, spec) in enumerate(zip(call["counts"], call["specs"], strict=True)):
        end = first + number
        job = {
            "inputs": call["inputs"][first:end], "size": call["sizes"][j * rank : (j + 1) * rank],
            "spec": spec, "scales": call["scales"][first * rank : end * rank],
            "windows": call["windows"][3 * first * rank : 3 * end * rank],
        }  # fmt: skip
        found |= {f"{j}.{name}": value for name, value in gather_arguments(job).items()}
        first = end
    return found


def spread_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The same for ``msr_cuda::spread``."""
    grad, spec, requests = call["grad"], call["spec"], call["requests"]
    dim = grad.dim()
    shapes = [tuple(call["shapes"][i : i + dim]) for i in range(0, len(call["shapes"]), dim)]
    grads, layouts, wanted = [], 0, 0
    for i, shape in enumerate(shapes):
        bits = requests >> 4 * i
        channels_last = bool(bits & _spec.REQUEST_CHANNELS_LAST)
        dtype = _spec.DTYPES[bits >> _spec.REQUEST_DTYPE_SHIFT & 3]
        strides = _spec.dense_strides(shape, channels_last)
        grads.append(cases_io.from_torch(torch.empty_strided(shape, strides, dtype=dtype)))
        layouts |= channels_last << i
        wanted |= (bits & _spec.REQUEST_WANTED) << i
    values = call.get("inputs") or None
    weights = call.get("weights")
    indices = call.get("indices") or []
    pools = [i for i in range(len(shapes)) if _spec.mode_of(spec, i) == _spec.MAX_POOL]
    index: list[Any] = [None] * len(shapes)
    for i, found in zip(pools, indices, strict=False):
        index[i] = found.numpy()
    return _common(call, len(shapes), dim - 2) | {
        "grad": cases_io.from_torch(grad),
        "grads": grads,
        "grads_channels_last": layouts,
        "wanted": wanted,
        "values": [cases_io.from_torch(x) for x in values] if values else None,
        "dots": np.zeros(weights.shape, np.float32) if values and weights is not None else None,
        "index": index if pools else None,
    }


def pixel_weight_grads_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The same for ``msr_cuda::pixel_weight_grads``."""
    inputs, grad = call["inputs"], call["grad"]
    found = np.zeros((grad.shape[0], len(inputs), grad[0, 0].numel()), np.float32)
    return _common(call, len(inputs), grad.dim() - 2) | {
        "inputs": [cases_io.from_torch(x) for x in inputs],
        "grad": cases_io.from_torch(grad),
        "found": found,
    }


_ARGUMENTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "gather": gather_arguments, "gather_many": gather_jobs_arguments, "spread": spread_arguments,
    "pixel_weight_grads": pixel_weight_grads_arguments,
}  # fmt: skip


def launches(harness: ModuleType, noted: _Noted) -> Launches:
    """What the noted calls would launch on a GPU."""
    ours: Counter[str] = Counter()
    for name, call in noted.calls:
        harness.record_launches(True)
        try:
            function = "gather_jobs" if name == "gather_many" else name
            getattr(harness, function)(**_ARGUMENTS[name](call))
        finally:
            harness.record_launches(False)
            recorded = harness.take_recorded()
        ours.update(launch["kernel"].split("<")[0].split("::")[-1] for launch in recorded)
    return Launches(ours, noted.torch)


def count(
    harness: ModuleType, run: Callable[..., Any], *leaves: Tensor
) -> tuple[Launches, Launches]:
    """Forward, and backward to all leaves, of ``run(*leaves)``: a tensor or a list of them."""
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    with _Noted() as forward:
        results = run(*leaves)
    results = [results] if isinstance(results, Tensor) else list(results)
    grads = [torch.ones_like(result) for result in results]
    with _Noted() as backward:
        torch.autograd.grad(results, leaves, grads)
    return launches(harness, forward), launches(harness, backward)


def operations() -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    """Each public operation on maps as networks have them, in half precision."""

    def half(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float16)

    large, small, tiny = half(2, 16, 32, 32), half(2, 16, 16, 16), half(2, 16, 8, 8)
    three = (large, small, tiny)
    linear = {"mode": "bilinear", "impl": "kernel"}
    nearest = {"mode": "nearest", "impl": "kernel"}
    weights = torch.ones(3)

    def sum_of(**options: Any) -> Callable[..., Tensor]:
        return lambda *maps: msr_cuda.resample_sum(maps, **{**linear, **options})

    def weighted(*given: Tensor) -> Tensor:
        return msr_cuda.resample_sum(given[1:], weights=given[0], normalize="fast", **nearest)

    def scaled(*given: Tensor) -> Tensor:
        return msr_cuda.resample_sum(
            given[2:], scale=given[0], bias=given[1], activation="relu", **linear
        )

    def attended(*given: Tensor) -> Tensor:
        return msr_cuda.resample_sum(given[1:], weights=given[0], normalize="softmax", **nearest)

    pools = [msr_cuda.Pool("max", 3, 2, "same"), "nearest"]
    each = [half(2, 16, 32 >> i % 3, 32 >> i % 3) for i in range(12)]

    def many(*maps: Tensor) -> list[Tensor]:
        jobs = [{"inputs": maps[i : i + 3], "mode": "bilinear"} for i in range(0, 12, 3)]
        return msr_cuda.resample_sum_many(jobs, impl="kernel")

    return {
        "`resample`, nearest": (
            lambda x: msr_cuda.resample(x, scale_factor=2, **nearest), (small,)),
        "`resample`, bilinear": (
            lambda x: msr_cuda.resample(x, scale_factor=2, **linear), (small,)),
        "`resample`, bicubic": (
            lambda x: msr_cuda.resample(x, scale_factor=2, mode="bicubic", impl="kernel"),
            (small,)),
        "`resample`, bilinear, antialias, to half": (
            lambda x: msr_cuda.resample(x, scale_factor=0.5, antialias=True, **linear), (small,)),
        "`resample_sum` of 3, ReLU": (sum_of(activation="relu"), three),
        "`resample_sum` of 3, SiLU": (sum_of(activation="silu"), three),
        "`resample_sum` of 3, `weights` [S], fast": (weighted, (weights, *three)),
        "`resample_sum` of 3, `weights` [N, S, 1, H, W], softmax": (
            attended, (torch.ones(2, 3, 1, 32, 32), *three)),
        "`resample_sum` of 3, `scale` and `bias`, ReLU": (
            scaled, (torch.ones(16), torch.zeros(16), *three)),
        "`resample_sum` of a max-pooled and an upsampled map": (
            lambda *maps: msr_cuda.resample_sum(maps, size=(16, 16), impl="kernel", mode=pools),
            (large, tiny)),
        "`resample_cat` of 3": (
            lambda *maps: msr_cuda.resample_cat(maps, **linear), three),
        "`resample_max` of 3": (
            lambda *maps: msr_cuda.resample_max(maps, **linear), three),
        "`resample_pyramid`, 3 levels, antialias": (
            lambda x: msr_cuda.resample_pyramid(
                x, scale_factors=[0.5, 0.25, 0.125], antialias=True, **linear), (large,)),
        "`resample_sum_many`, 4 jobs of 3": (many, tuple(each)),
    }  # fmt: skip


def table(harness: ModuleType) -> list[str]:
    """The lines of the table."""
    rows = ["| operation | forward | backward |", "|---|---|---|"]
    for name, (run, leaves) in operations().items():
        forward, backward = count(harness, run, *leaves)
        rows.append(f"| {name} | {forward} | {backward} |")
    return rows


def with_table(page: str, rows: Sequence[str]) -> str:
    """The page, with the table between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"count_launches: the page has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{after}"


def main() -> int:
    """Prints the table, and writes it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page with the markers")
    arguments = parser.parse_args()
    rows = table(build.load())
    print("\n".join(rows))
    if arguments.write is not None:
        page = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(with_table(page, rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
