"""Static counts of machine instructions: what a kernel's loops execute for each element.

Reads what ``nvdisasm -c`` prints of a cubin. A GPU is not needed, nor torch; times follow from no
count, but a loop that needs more instructions than the memory system leaves room for is slow for
certain.

The method, for a loop (a natural loop of the control-flow graph) that moves vectors: among all ways
once around it on which each vector is also worked on, the one with the fewest instructions per
vector, whether or not the conditions on it can hold together. Elements are those of the vectors it
moves: REDUCE reads every element of the gradient as part of one, EXPAND writes every element of the
result so. Loops inside are gone through once or not at all. What is done once for many elements,
such as finishing a row, is not on the cheapest way and not in the figure: a lower bound.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
_LABEL = re.compile(r"^(\.L_[\w.]+|\$[^:]+):")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_PREDICATE = re.compile(r"^@(!?)(U?P\w+)\s+")
_TARGET = re.compile(r"`\(([^)]+)\)")
_TARGETS = re.compile(r"BRANCH_TARGETS ([^*\"]+)")

#: Ways that move more vectors are taken for ways that move so many.
_MOST_VECTORS = 8
#: Additions of floats. Products alone, as where a weight scales a copy, are no work on a sum.
_ADDITIONS = ("FADD", "FFMA", "DADD", "DFMA")


@dataclass
class Block:
    """Instructions that are executed one after the other."""

    instructions: list[str] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class LoopCount:
    """The cheapest way once around a loop.

    Attributes:
        instructions: on it.
        vectors: moved on it.
        additions: of floats on it.
    """

    instructions: int
    vectors: int
    additions: int


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


def basic_blocks(lines: list[str]) -> list[Block]:
    """The control-flow graph of a kernel: block 0 is its entry; calls count as one instruction."""
    blocks = [Block()]
    labels: dict[str, int] = {}
    targets: list[tuple[int, str]] = []
    falls = True  # whether the last block runs on into the next
    for line in lines:
        if match := _LABEL.match(line):
            if blocks[-1].instructions or match.group(1).startswith("$"):
                if falls and blocks[-1].instructions:
                    blocks[-1].successors.append(len(blocks))
                blocks.append(Block())
                falls = True
            labels[match.group(1)] = len(blocks) - 1
            continue
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        text = match.group(2)
        conditional = _PREDICATE.match(text)
        operation = _PREDICATE.sub("", text)
        name = operation.split()[0]
        block = blocks[-1]
        block.instructions.append(name)
        if name.startswith(("BRA", "BRX", "EXIT", "RET", "JMP")):
            here = len(blocks) - 1
            if name.startswith("BRA") and (target := _TARGET.search(operation)):
                targets.append((here, target.group(1)))
            elif listed := _TARGETS.search(line):
                targets += [(here, label.strip()) for label in listed.group(1).split(",")]
            # A branch on a uniform predicate has it as an operand.
            falls = bool(conditional) or bool(re.search(r"\bU?!?U?P\d", operation))
            if falls:
                block.successors.append(here + 1)
            blocks.append(Block())
            falls = True
    for source, label in targets:
        if label in labels:
            blocks[source].successors.append(labels[label])
    for block in blocks:
        block.successors = [s for s in dict.fromkeys(block.successors) if s < len(blocks)]
    return blocks


def _back_edges(blocks: list[Block]) -> tuple[set[tuple[int, int]], list[int]]:
    """Edges to a block that is still being visited, and the blocks in postorder."""
    back: set[tuple[int, int]] = set()
    order: list[int] = []
    state = [0] * len(blocks)  # 1: being visited, 2: done
    stack = [(0, iter(blocks[0].successors))]
    state[0] = 1
    while stack:
        node, successors = stack[-1]
        for successor in successors:
            if state[successor] == 1:
                back.add((node, successor))
            elif state[successor] == 0:
                state[successor] = 1
                stack.append((successor, iter(blocks[successor].successors)))
                break
        else:
            state[node] = 2
            order.append(node)
            stack.pop()
    return back, order


def loops(blocks: list[Block]) -> dict[int, set[int]]:
    """The natural loops: header -> the blocks in it."""
    back, _ = _back_edges(blocks)
    predecessors: dict[int, list[int]] = defaultdict(list)
    for i, block in enumerate(blocks):
        for successor in block.successors:
            predecessors[successor].append(i)
    found: dict[int, set[int]] = {}
    for tail, header in back:
        body = found.setdefault(header, {header})
        pending = [tail]
        while pending:
            node = pending.pop()
            if node not in body:
                body.add(node)
                pending += predecessors[node]
    return found


def _moves(name: str, operation: str, width: int) -> int:
    """Whether an instruction moves ``width`` bytes per lane: ``LDG.E.128`` and the like."""
    if not name.startswith(operation):
        return 0
    sizes = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
    bytes_moved = next((sizes[part] for part in name.split(".") if part in sizes), 4)
    return int(bytes_moved == width)


def count_loops(
    lines: list[str], operation: str, width: int, per_vector: int, work: int
) -> list[LoopCount]:
    """Counts for the loop that moves vectors with the fewest instructions, and those around it.

    Args:
        lines: of the kernel, from :func:`functions`.
        operation: what moves a vector: ``"LDG"`` or ``"STG"``.
        width: bytes of one such instruction.
        per_vector: instructions for one vector (a vector may be wider than an instruction).
        work: floating-point additions that each vector takes at least.

    Returns:
        Outer loops first; nothing where no loop moves vectors.
    """
    blocks = basic_blocks(lines)
    back, postorder = _back_edges(blocks)
    position = {node: i for i, node in enumerate(reversed(postorder))}
    found: list[tuple[set[int], LoopCount]] = []
    for header, body in loops(blocks).items():
        best = _cheapest(blocks, header, body, back, position, operation, width, per_vector, work)
        if best is not None:
            found.append((body, LoopCount(*best)))
    if not found:
        return []
    innermost, _ = min(found, key=lambda item: item[1].instructions / item[1].vectors)
    around = [(len(body), count) for body, count in found if body >= innermost]
    return [count for _, count in sorted(around, key=lambda item: -item[0])]


def _cheapest(
    blocks: list[Block], header: int, body: set[int], back: set[tuple[int, int]],
    position: dict[int, int], operation: str, width: int, per_vector: int, work: int,
) -> tuple[int, int, int] | None:  # fmt: skip
    """(instructions, vectors, additions) of the way around with the fewest per vector."""
    most = _MOST_VECTORS * per_vector
    enough = _MOST_VECTORS * work
    # (moves, additions) -> fewest instructions on a way from the header to the end of a block
    ways: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
    ways[header][0, 0] = 0
    ends: dict[tuple[int, int], int] = {}
    for node in sorted(body, key=lambda n: position[n]):
        names = blocks[node].instructions
        moves = sum(_moves(name, operation, width) for name in names)
        additions = sum(name.startswith(_ADDITIONS) for name in names)
        for (moved, worked), length in ways[node].items():
            state = (min(moved + moves, most), min(worked + additions, enough))
            total = length + len(names)
            for successor in blocks[node].successors:
                edge = (node, successor)
                into = ends if edge in back and successor == header else None
                if into is None and successor in body and edge not in back:
                    into = ways[successor]
                if into is not None and total < into.get(state, total + 1):
                    into[state] = total
    candidates = [
        (length, moved // per_vector, worked)
        for (moved, worked), length in ends.items()
        if moved >= per_vector and worked >= work * (moved // per_vector)
    ]
    return min(candidates, key=lambda c: (c[0] / c[1], -c[1]), default=None)
