"""Loads and stores of sm_90: for sass_machine.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sass import MachineError

if TYPE_CHECKING:
    from sass_machine import Block, Getter

_ADDRESS = re.compile(r"^(?:desc\[UR\d+\])?\[([^\]]*)\]$")
_CONSTANT = re.compile(r"^c\[0x0\]\[([^\]]*)\]$")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def _width(parts: Sequence[str]) -> int:
    return next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)


class Memory:
    """The arrays that a kernel may reach, at the addresses that they have in this process."""

    def __init__(self, arrays: Sequence[npt.NDArray[np.uint8]]) -> None:
        self._regions = [(array.ctypes.data, array) for array in arrays if array.size]

    def _indices(self, addresses: Any, width: int) -> tuple[npt.NDArray[np.uint8], Any]:
        if (addresses % width).any():
            raise MachineError(f"access of {width} bytes that is not aligned")
        for begin, array in self._regions:
            if (addresses >= begin).all() and (addresses + width <= begin + array.size).all():
                return array, (addresses - begin)[:, None].astype(np.int64) + np.arange(width)
        raise MachineError(f"access of {width} bytes at 0x{int(addresses[0]):x}, outside of memory")

    def load(self, addresses: Any, width: int) -> npt.NDArray[np.uint8]:
        """Bytes ``[len(addresses), width]``."""
        array, indices = self._indices(addresses, width)
        return array[indices]

    def store(self, addresses: Any, values: npt.NDArray[np.uint8]) -> None:
        array, indices = self._indices(addresses, values.shape[1])
        array[indices] = values


def _address(block: Block, text: str, wide: bool) -> Getter:
    """What ``[R2.64+UR4+0x10]`` says."""
    match = _ADDRESS.match(text)
    if match is None:
        raise MachineError(f"operand {text!r}")
    terms: list[Getter] = []
    constant = 0
    for term in match.group(1).replace("+-", "+-").split("+"):
        if re.match(r"-?0x", term):
            constant += int(term, 0)
        elif term.endswith(".64"):
            terms.append(block.pair(term.removesuffix(".64")))
        elif wide and term.startswith("U"):
            terms.append(block.pair(term))
        elif wide and term != "RZ":
            raise MachineError(f"operand {text!r}")
        else:
            narrow = block.integer(term)
            terms.append(lambda narrow=narrow: narrow().astype(np.uint64))  # type: ignore[misc]
    offset = np.uint64(constant & (2**64 - 1))
    keep = np.uint64(2**64 - 1 if wide else 2**32 - 1)

    def get() -> Any:
        total = np.full(block.threads, offset)
        for term in terms:
            total = total + term()
        return total & keep

    return get


def _registers_of(block: Block, text: str, width: int) -> list[Any]:
    if text == "RZ":
        return [block.registers[255]] * max(1, width // 4)
    return [block.registers[int(text[1:]) + i] for i in range(max(1, width // 4))]


def _write_loaded(block: Block, target: str, raw: Any, parts: list[str]) -> None:
    """``raw``: bytes [active threads, width]."""
    width = raw.shape[1]
    if width < 4:
        word = np.zeros(len(raw), np.uint32)
        for i in range(width):
            word |= raw[:, i].astype(np.uint32) << np.uint32(8 * i)
        if any(part in ("S8", "S16") for part in parts):
            shift = np.int32(32 - 8 * width)
            word = ((word << np.uint32(shift)).view(np.int32) >> shift).view(np.uint32)
        words = word[:, None]
    else:
        words = np.ascontiguousarray(raw).view(np.uint32)
    if target in ("RZ", "URZ"):
        return
    bank = block.uniform if target.startswith("U") else block.registers
    first = int(re.sub(r"\D", "", target))
    for i in range(words.shape[1]):
        bank[first + i][block.active] = words[:, i]


def _store_bytes(block: Block, source: str, width: int) -> Any:
    rows = [row[block.active] for row in _registers_of(block, source, width)]
    return np.ascontiguousarray(np.stack(rows, 1)).view(np.uint8)[:, :width]


def _load_global(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    width, address = _width(parts), _address(block, operands[1], wide=True)

    def run() -> None:
        if block.active.any():
            raw = block.memory.load(address()[block.active], width)
            _write_loaded(block, operands[0], raw, parts)

    return run


def _store_global(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    width, address = _width(parts), _address(block, operands[0], wide=True)

    def run() -> None:
        if block.active.any():
            values = _store_bytes(block, operands[1], width)
            block.memory.store(address()[block.active], values)

    return run


def _in_array(array: npt.NDArray[np.uint8], addresses: Any, width: int, what: str) -> Any:
    if (addresses % width).any():
        raise MachineError(f"access of {width} bytes of {what} that is not aligned")
    if len(addresses) and int(addresses.max()) + width > array.size:
        raise MachineError(f"access to byte {int(addresses.max())} of {array.size} of {what}")
    return addresses[:, None].astype(np.int64) + np.arange(width)


def _load_shared(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    width, address = _width(parts), _address(block, operands[1], wide=False)

    def run() -> None:
        at = _in_array(block.shared, address()[block.active], width, "shared memory")
        _write_loaded(block, operands[0], block.shared[at], parts)

    return run


def _store_shared(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    width, address = _width(parts), _address(block, operands[0], wide=False)

    def run() -> None:
        at = _in_array(block.shared, address()[block.active], width, "shared memory")
        block.shared[at] = _store_bytes(block, operands[1], width)

    return run


def _load_constant(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    match = _CONSTANT.match(operands[1])
    if match is None:
        raise MachineError(f"operand {operands[1]!r}")
    width, address = _width(parts), _address(block, f"[{match.group(1)}]", wide=False)

    def run() -> None:
        at = _in_array(block.bank, address()[block.active], width, "constant memory")
        _write_loaded(block, operands[0], block.bank[at], parts)

    return run


def _load_local(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    width, address = _width(parts), _address(block, operands[1], wide=False)

    def run() -> None:
        at = _in_array(block.local[0], address()[block.active], width, "local memory")
        _write_loaded(
            block, operands[0], block.local[np.flatnonzero(block.active)[:, None], at], parts
        )

    return run


def _store_local(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    width, address = _width(parts), _address(block, operands[0], wide=False)

    def run() -> None:
        at = _in_array(block.local[0], address()[block.active], width, "local memory")
        rows = np.flatnonzero(block.active)[:, None]
        block.local[rows, at] = _store_bytes(block, operands[1], width)

    return run


MEMORY_HANDLERS: dict[str, Callable[[Block, list[str], list[str]], Callable[[], None]]] = {
    "LDG": _load_global, "LD": _load_global, "STG": _store_global, "ST": _store_global,
    "LDS": _load_shared, "STS": _store_shared, "LDC": _load_constant,
    "LDL": _load_local, "STL": _store_local,
}  # fmt: skip
