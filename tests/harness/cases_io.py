"""Cases of kernel calls with their expected results, and the file that carries them.

A test process that has torch and the reference makes cases; a process under sanitizers, which has
NumPy alone, replays them (replay.py). An array travels with its strides, the memory between its
elements, and its address modulo 16, since all of these decide which kernel runs and what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array: TypeAlias = npt.NDArray[Any]

ALIGNMENT = 16  # bytes: the widest load of a kernel, and what every allocator gives


class Carried(NamedTuple):
    """Half or bfloat16 elements as uint16: NumPy has no bfloat16. The harness takes it as it is."""

    bits: Array
    dtype: str


ArrayLike: TypeAlias = Array | Carried
Argument: TypeAlias = int | float | str | ArrayLike | Sequence[ArrayLike | None] | None


@dataclass(frozen=True)
class Expected:
    """What an output must hold: equal for integers, else within atol + rtol * abs(values).

    Attributes:
        values: float64 for floating-point outputs, whatever their type; a NaN expects a NaN.
        rtol: relative tolerance.
        atol: absolute tolerance, for all elements or for each.
    """

    values: Array
    rtol: float = 0.0
    atol: float | Array = 0.0


@dataclass(frozen=True)
class Case:
    """One call ``function(**arguments)`` of the harness module.

    Attributes:
        name: for messages.
        function: its name in the module, with a dot for that of a submodule.
        arguments: those named in ``expected`` are outputs: their contents do not matter, they are
            poisoned before each call. All others must come back unchanged.
        expected: by argument; a list for an argument that is a list of arrays (None: not checked).
        kernels: names of kernels that the call must launch, as launches give them or, for one
            instance of a template, as in ``msr::scale_kernel<float, 4>``.
    """

    name: str
    function: str
    arguments: Mapping[str, Argument]
    expected: Mapping[str, Expected | Sequence[Expected | None]]
    kernels: Sequence[str] = field(default=())


def from_torch(tensor: torch.Tensor) -> ArrayLike:
    """The tensor's memory (shared, not copied) as an argument."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return Carried(tensor.view(torch.uint16).numpy(), str(tensor.dtype).removeprefix("torch."))
    return tensor.numpy()


def elements(array: ArrayLike) -> Array:
    return array.bits if isinstance(array, Carried) else array


def dtype_name(array: ArrayLike) -> str:
    return array.dtype if isinstance(array, Carried) else array.dtype.name


def like(array: ArrayLike, new_elements: Array) -> ArrayLike:
    """The same kind of argument with other elements."""
    return Carried(new_elements, array.dtype) if isinstance(array, Carried) else new_elements


def memory(array: Array) -> Array:
    """All elements from the array's first to its last in memory, those between its own included."""
    if array.size == 0:
        return array.reshape(-1)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        raise ValueError(f"memory: expected strides of whole elements, got {array.strides}")
    last = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
    return np.lib.stride_tricks.as_strided(
        array, (last // array.itemsize + 1,), (array.itemsize,), writeable=array.flags.writeable
    )


def replica(array: Array) -> Array:
    """A copy with the same strides and alignment, whose memory ends where the array's does.

    So AddressSanitizer sees an access beyond the end (before the beginning, if that is aligned).
    """
    source = memory(array)
    padding = array.ctypes.data % ALIGNMENT if array.size else 0
    buffer = np.empty(padding + source.nbytes, np.uint8)
    if buffer.ctypes.data % ALIGNMENT:
        raise RuntimeError(f"replica: expected memory aligned to {ALIGNMENT} bytes")
    target = buffer[padding:].view(source.dtype) if source.nbytes else source.copy()
    target[...] = source
    return np.lib.stride_tricks.as_strided(target, array.shape, array.strides)


class _Writer:
    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def _store(self, array: Array) -> str:
        key = f"array{len(self.arrays)}"
        self.arrays[key] = array
        return key

    def argument(self, value: Argument) -> dict[str, Any]:
        if value is None or isinstance(value, (int, float, str)):
            return {"value": value}
        if isinstance(value, (np.ndarray, Carried)):
            array = elements(value)
            return {
                "array": self._store(memory(array)),
                "shape": array.shape,
                "strides": array.strides,
                "offset": array.ctypes.data % ALIGNMENT if array.size else 0,
                "carries": value.dtype if isinstance(value, Carried) else None,
            }
        return {"list": [self.argument(item) for item in value]}

    def expected(self, value: Expected | Sequence[Expected | None] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        if not isinstance(value, Expected):
            return {"list": [self.expected(item) for item in value]}
        return {
            "values": self._store(np.ascontiguousarray(value.values)),
            "shape": value.values.shape,
            "rtol": float(value.rtol),
            "atol": self._store(np.asarray(value.atol, np.float64)),
        }


class _Reader:
    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays

    def argument(self, record: dict[str, Any]) -> Argument:
        if "value" in record:
            return record["value"]
        if "list" in record:
            return [self.argument(item) for item in record["list"]]
        stored = self.arrays[record["array"]]
        buffer = np.empty(record["offset"] + stored.nbytes, np.uint8)
        flat = buffer[record["offset"] :].view(stored.dtype) if stored.size else stored
        flat[...] = stored
        array = np.lib.stride_tricks.as_strided(flat, record["shape"], record["strides"])
        return Carried(array, record["carries"]) if record["carries"] else array

    def expected(self, record: dict[str, Any] | None) -> Any:
        if record is None:
            return None
        if "list" in record:
            return [self.expected(item) for item in record["list"]]
        values = self.arrays[record["values"]].reshape(record["shape"])
        return Expected(values, record["rtol"], self.arrays[record["atol"]])


def write_cases(path: str | Path, cases: Iterable[Case]) -> None:
    """Writes an .npz file: the arrays, and a JSON index of the cases that use them."""
    writer = _Writer()
    index = [
        {
            "name": case.name,
            "function": case.function,
            "arguments": {k: writer.argument(v) for k, v in case.arguments.items()},
            "expected": {k: writer.expected(v) for k, v in case.expected.items()},
            "kernels": list(case.kernels),
        }
        for case in cases
    ]
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with open(path, "wb") as file:
        np.savez(file, index=text, **writer.arrays)


def read_cases(path: str | Path) -> list[Case]:
    """The cases of a file that :func:`write_cases` wrote."""
    with np.load(path) as file:
        reader = _Reader(dict(file))
    index = json.loads(reader.arrays["index"].tobytes())
    return [
        Case(
            name=record["name"],
            function=record["function"],
            arguments={k: reader.argument(v) for k, v in record["arguments"].items()},
            expected={k: reader.expected(v) for k, v in record["expected"].items()},
            kernels=record["kernels"],
        )
        for record in index
    ]
