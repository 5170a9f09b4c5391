"""Listings of machine code, as ``nvdisasm -c`` prints them of a cubin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_x_\d+|\$[^:]+):")
_NOTE = re.compile(r"\(\*.*?\*\)")  # (*"SpillRefill"*) and the like
_PREDICATE = re.compile(r"^@(!?U?P\w+)\s+")


class MachineError(RuntimeError):
    """The code does something that is not understood, or not allowed."""


@dataclass(frozen=True)
class Instruction:
    """One line of a listing: ``@guard name operands`` at a byte offset."""

    address: int
    guard: str | None
    name: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"/*{self.address:04x}*/ {guard}{self.name} {', '.join(self.operands)}"


@dataclass
class Program:
    """A kernel: its instructions in order, and the offsets of its labels."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def functions(listing: str) -> dict[str, list[str]]:
    """The lines of every kernel, by mangled name."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in listing.splitlines():
        if match := _SECTION.match(line):
            current = found.setdefault(match.group(1), [])
        elif re.match(r"\s*\.section\s", line):
            current = None
        elif current is not None:
            current.append(line)
    return found


def parse(lines: Sequence[str]) -> Program:
    """The program in the lines of a kernel's section."""
    program = Program()
    pending: list[str] = []
    for line in lines:
        if match := _LABEL.match(line):
            pending.append(match.group(1))
            continue
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        address, text = int(match.group(1), 16), _NOTE.sub("", match.group(2)).strip()
        for label in pending:
            program.labels[label] = address
        pending.clear()
        guard = None
        if found := _PREDICATE.match(text):
            guard, text = found.group(1), text[found.end() :]
        name, _, rest = text.partition(" ")
        operands = tuple(part.strip().replace(".reuse", "") for part in rest.split(",") if part)
        program.instructions.append(Instruction(address, guard, name, operands))
    return program
