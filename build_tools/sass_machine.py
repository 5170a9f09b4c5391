"""Runs blocks of a kernel's machine code (sm_90, as ``nvdisasm -c`` prints it) and counts.

A GPU is not needed. Each thread of a block has its registers in one column of an array, and an
instruction is carried out for all threads that are at it at once. What is counted is what a
multiprocessor issues: each instruction once for each warp with a thread at it, whatever its
predicate; where the threads of a warp part, both ways.

The meaning of the instructions is not documented. What is here was inferred from what compilers
make of known programs, and is held to it: tests compare what kernels write here, bit for bit, with
what the same kernels write when g++ compiles them. An instruction or a form of one that is not
known, an address outside of the memory given, an access that is not aligned: MachineError, never a
guess.

No time follows from a count: latencies, cache misses and bank conflicts are not modelled.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sass import Instruction, MachineError, Program
from sass_instructions import HANDLERS, lanes_of, signed
from sass_memory import Memory

Words: TypeAlias = npt.NDArray[np.uint32]
Mask: TypeAlias = npt.NDArray[np.bool_]
Getter: TypeAlias = Callable[[], Any]

WARP = 32
#: Where the parameters begin in constant bank 0, and what else a kernel finds there.
PARAMETERS_AT = 0x210
_STACK_AT, _PARAMETER_ADDRESS_AT, _MEMORY_DESCRIPTOR_AT = 0x28, 0x198, 0x208
#: Shared memory begins with what belongs to the driver.
SHARED_BEGIN = 0x400
#: Of local memory, of which a kernel's frame is the end.
STACK_BYTES = 0x1000

_LABEL_OPERAND = re.compile(r"`\((.+)\)$")

_READY, _AT_CONVERGENCE, _AT_BARRIER, _AT_WARPSYNC, _EXITED = range(5)


class Block:
    """One block of a launch, before and while it runs.

    Args:
        program: the kernel.
        threads: of the block, in one dimension.
        index: of the block in the grid, which has one dimension.
        blocks: in the grid.
        parameters: as constant memory has them.
        memory: what the kernel may reach; the parameters are added.
        shared_bytes: static and dynamic.
    """

    warp = WARP

    def __init__(
        self, program: Program, threads: int, index: int, blocks: int, parameters: bytes,
        memory: Sequence[npt.NDArray[np.uint8]], shared_bytes: int,
    ) -> None:  # fmt: skip
        self.program = program
        self.threads, self.index = threads, index
        self.warps = -(-threads // WARP)
        self.warp_of = np.arange(threads) // WARP
        readable = np.frombuffer(parameters, np.uint8)
        self.memory = Memory([*memory, readable])
        bank = bytearray(PARAMETERS_AT)
        struct.pack_into("<6I", bank, 0, threads, 1, 1, blocks, 1, 1)
        struct.pack_into("<I", bank, _STACK_AT, STACK_BYTES)
        struct.pack_into("<Q", bank, _PARAMETER_ADDRESS_AT, readable.ctypes.data)
        struct.pack_into("<Q", bank, _MEMORY_DESCRIPTOR_AT, 0)
        self.bank = np.frombuffer(bytes(bank) + parameters, np.uint8)
        self.shared = np.full(SHARED_BEGIN + shared_bytes, 0xFF, np.uint8)
        self.local = np.full((threads, STACK_BYTES), 0xFF, np.uint8)
        self.registers = np.full((256, threads), 0xDEADBEEF, np.uint32)
        self.registers[255] = 0
        self.uniform = np.full((64, threads), 0xDEADBEEF, np.uint32)
        self.uniform[63] = 0
        self.predicates = np.zeros((8, threads), bool)
        self.predicates[7] = True
        self.uniform_predicates = self.predicates.copy()
        self.position = np.zeros(threads, np.int64)  # of the next instruction
        self.status = np.full(threads, _READY)
        self.active = np.ones(threads, bool)  # while an instruction runs: where it has an effect
        self.group = self.active  # and who is at it
        self.numbers = {ins.address: i for i, ins in enumerate(program.instructions)}
        #: How often each instruction was issued.
        self.issued = np.zeros(len(program.instructions), np.int64)
        self._actions: list[Callable[[], None] | None] = [None] * len(program.instructions)
        # Convergence barriers: for each register and thread the set it waits with.
        self._sets = np.full((16, threads), -1, np.int64)
        self._missing: list[int] = []  # of each set: threads still to come
        self._waits_with = np.full(threads, -1, np.int64)
        self._lanes_named = np.zeros(threads, np.uint32)

    # ---- the order of threads -------------------------------------------------------------------

    def run(self) -> None:
        """Until every thread has ended."""
        with np.errstate(all="ignore"):
            while True:
                ready = self.status == _READY
                if not ready.any():
                    if (self.status == _EXITED).all():
                        return
                    if (self.status[self.status != _EXITED] == _AT_BARRIER).all():
                        self.status[self.status == _AT_BARRIER] = _READY
                        continue
                    raise MachineError("threads wait for each other")
                self._run_group(ready)

    def _run_group(self, ready: Mask) -> None:
        """The threads that are furthest behind, up to a branch or to where others are."""
        begin = int(self.position[ready].min())
        group = ready & (self.position == begin)
        others = ready & ~group
        end = int(self.position[others].min()) if others.any() else len(self.issued)
        warps = len(np.unique(self.warp_of[group]))
        self.group = group
        i = begin
        while i < end:
            instruction = self.program.instructions[i]
            self.issued[i] += warps
            self.active = group
            if instruction.guard:
                self.active = group & self.predicate(instruction.guard)()
            control = _CONTROL.get(instruction.name.split(".")[0])
            if control is not None:
                self.position[group] = i + 1
                control(self, instruction)
                return
            action = self._actions[i]
            if action is None:
                action = self._actions[i] = self._decode(instruction)
            action()
            i += 1
        if end >= len(self.issued):
            raise MachineError("ran beyond the end of the code")
        self.position[group] = end

    def _jump(self, target: int) -> None:
        self.position[self.active] = self.numbers[target]

    def _label(self, operand: str) -> int:
        match = _LABEL_OPERAND.search(operand)
        if match is None or match.group(1) not in self.program.labels:
            raise MachineError(f"no such label: {operand}")
        return self.program.labels[match.group(1)]

    def _branch(self, instruction: Instruction) -> None:
        *conditions, target = instruction.operands
        if instruction.name.startswith("BRA.DIV"):
            # To where lanes are brought together, unless all that are named are here.
            self.active = self.active & ~self._all_lanes_here(self.integer(conditions[0])())
            conditions = []
        for condition in conditions:
            self.active = self.active & self.predicate(condition)()
        self._jump(self._label(target))

    def _all_lanes_here(self, lanes: Words) -> Mask:
        here: Mask = (lanes & ~lanes_of(self, self.group)) == 0
        return here

    def _call(self, instruction: Instruction) -> None:
        self._jump(self._label(instruction.operands[-1]))

    def _return(self, instruction: Instruction) -> None:
        register = instruction.operands[0].split()[0]
        for address in np.unique(self.integer(register)()[self.active]):
            chosen = self.active & (self.integer(register)() == address)
            self.position[chosen] = self.numbers[int(address)]

    def _exit(self, _: Instruction) -> None:
        self.status[self.active] = _EXITED
        for register in range(16):
            self._leave(register)
        self._release()

    def _barrier(self, _: Instruction) -> None:
        self.status[self.active] = _AT_BARRIER

    def _warpsync(self, instruction: Instruction) -> None:
        """Wait for the lanes that a mask names."""
        if instruction.name != "WARPSYNC":
            raise MachineError(f"lanes meet out of line: {instruction}")
        self.status[self.active] = _AT_WARPSYNC
        self._lanes_named[self.active] = self.integer(instruction.operands[0])()[self.active]
        here = lanes_of(self, self.status == _AT_WARPSYNC)
        waits = (self.status == _AT_WARPSYNC) & (self._lanes_named & ~here != 0)
        self.status[(self.status == _AT_WARPSYNC) & ~waits] = _READY

    def _open(self, instruction: Instruction) -> None:
        """BSSY: the threads of a warp that are here will meet again."""
        register = int(instruction.operands[0][1:])
        first = len(self._missing)
        self._sets[register][self.active] = first + self.warp_of[self.active]
        counts = np.bincount(self.warp_of[self.active], minlength=self.warps)
        self._missing += [int(count) for count in counts]

    def _close(self, instruction: Instruction) -> None:
        """BSYNC: wait for those that set out together."""
        register = int(instruction.operands[0][1:])
        self._waits_with[self.active] = self._sets[register][self.active]
        self.status[self.active] = _AT_CONVERGENCE
        self._leave(register)
        self._release()

    def _break(self, instruction: Instruction) -> None:
        """BREAK: these will not come."""
        self._leave(int(instruction.operands[0][1:]))
        self._release()

    def _leave(self, register: int) -> None:
        sets = self._sets[register]
        for which, count in zip(*np.unique(sets[self.active], return_counts=True), strict=True):
            if which >= 0:
                self._missing[which] -= int(count)
        sets[self.active] = -1

    def _release(self) -> None:
        for which in np.unique(self._waits_with[self.status == _AT_CONVERGENCE]):
            if which < 0 or self._missing[which] == 0:
                here = (self._waits_with == which) & (self.status == _AT_CONVERGENCE)
                self.status[here] = _READY
                self._waits_with[here] = -1

    # ---- operands -------------------------------------------------------------------------------

    def predicate(self, text: str) -> Getter:
        negated, name = text.startswith("!"), text.lstrip("!")
        bank = self.uniform_predicates if name.startswith("U") else self.predicates
        row = bank[7 if name.endswith("T") else int(name[-1])]
        return (lambda: ~row) if negated else (lambda: row)

    def row(self, text: str) -> Any:
        if text in ("RZ", "SRZ"):
            return self.registers[255]
        if text == "URZ":
            return self.uniform[63]
        match = re.fullmatch(r"(U?)R(\d+)", text)
        if match is None:
            raise MachineError(f"operand {text!r}")
        return (self.uniform if match.group(1) else self.registers)[int(match.group(2))]

    def integer(self, text: str) -> Getter:
        """Of 32 bits, without sign."""
        if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
            value = np.uint32(int(text, 0) & 0xFFFFFFFF)
            return lambda: value
        if text.startswith("-"):
            row = self.row(text[1:])
            return lambda: np.uint32(0) - row
        if text.startswith("~"):
            row = self.row(text[1:])
            return lambda: ~row
        if match := re.fullmatch(r"\|(\w+)\|", text):
            row = self.row(match.group(1))
            return lambda: np.abs(signed(row)).view(np.uint32)
        row = self.row(text)
        return lambda: row

    def carried(self, text: str) -> Getter:
        """As a term of a sum whose carry counts: of 33 bits, -x being ~x + 1."""
        if text.startswith("-") and not text.startswith("-0x"):
            row = self.row(text[1:])
            return lambda: (~row).astype(np.uint64) + np.uint64(1)
        value = self.integer(text)
        return lambda: np.asarray(value()).astype(np.uint64)

    def pair(self, text: str) -> Getter:
        """Of 64 bits: a register and the next one."""
        if text in ("RZ", "URZ"):
            return lambda: np.zeros(self.threads, np.uint64)
        if re.match(r"-?0x", text):
            value = np.uint64(int(text, 0) & (2**64 - 1))
            return lambda: value
        bank = self.uniform if text.startswith("U") else self.registers
        number = int(re.sub(r"\D", "", text))
        low, high = bank[number], bank[number + 1]
        return lambda: low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)

    def number(self, text: str) -> Getter:
        negated = text.startswith("-")
        body = text.lstrip("-")
        absolute = body.startswith("|")
        body = body.strip("|")
        half = None
        if match := re.fullmatch(r"(\w+)\.H([01])_H[01]", body):
            body, half = match.group(1), int(match.group(2))
        if re.fullmatch(r"\+?(INF|[\d.e+-]+)", body):
            value: Any = np.float32(body)
            return lambda: -value if negated else value
        row = self.row(body)

        def get() -> Any:
            if half is None:
                number = row.view(np.float32)
            else:
                bits = (row >> np.uint32(16 * half)).astype(np.uint16)
                number = bits.view(np.float16).astype(np.float32)
            number = np.abs(number) if absolute else number
            return -number if negated else number

        return get

    def double(self, text: str) -> Getter:
        negated = text.startswith("-")
        body = text.lstrip("-")
        absolute = body.startswith("|")
        body = body.strip("|")
        if re.fullmatch(r"\+?(INF|[\d.e+-]+)", body):
            value: Any = np.float64(body)
            return lambda: -value if negated else value
        pair = self.pair(body)

        def get() -> Any:
            number = pair().view(np.float64)
            number = np.abs(number) if absolute else number
            return -number if negated else number

        return get

    def write(self, text: str, values: Any) -> None:
        if text not in ("RZ", "URZ"):
            np.copyto(self.row(text), values, where=self.active, casting="unsafe")

    def write_pair(self, text: str, values: Any) -> None:
        if text in ("RZ", "URZ"):
            return
        bank = self.uniform if text.startswith("U") else self.registers
        number = int(re.sub(r"\D", "", text))
        wide = np.asarray(values).view(np.uint64)
        low = (wide & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        np.copyto(bank[number], low, where=self.active)
        np.copyto(bank[number + 1], (wide >> np.uint64(32)).astype(np.uint32), where=self.active)

    def write_predicate(self, text: str, values: Any) -> None:
        if text.endswith("T"):
            return
        bank = self.uniform_predicates if text.startswith("U") else self.predicates
        np.copyto(bank[int(text[-1])], values, where=self.active)

    # ---- instructions ---------------------------------------------------------------------------

    def _decode(self, instruction: Instruction) -> Callable[[], None]:
        base, *parts = instruction.name.split(".")
        uniform = base[1:] if base.startswith("U") else ""
        handler = HANDLERS.get(base) or HANDLERS.get(uniform)
        if handler is None:
            raise MachineError(f"unknown instruction: {instruction}")
        try:
            return handler(self, parts, list(instruction.operands))
        except (MachineError, ValueError, IndexError, KeyError, TypeError) as error:
            raise MachineError(f"{instruction}: {error}") from error


_CONTROL: dict[str, Callable[[Block, Instruction], None]] = {
    "BRA": Block._branch, "CALL": Block._call, "RET": Block._return, "EXIT": Block._exit,
    "BAR": Block._barrier, "BSSY": Block._open, "BSYNC": Block._close, "BREAK": Block._break,
    "WARPSYNC": Block._warpsync,
}  # fmt: skip
