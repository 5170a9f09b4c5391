"""What the instructions of sm_90 do to the registers and memory of a block: for sass_machine.py."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sass import MachineError
from sass_memory import MEMORY_HANDLERS

if TYPE_CHECKING:
    from sass_machine import Block, Getter, Mask, Words


def _as_bits(values: Any) -> Any:
    return np.asarray(values, np.float32).view(np.uint32)


def signed(values: Any) -> Any:
    """The same bits as signed integers."""
    return np.asarray(values, np.uint32).view(np.int32)


def _truncated(values: Any, low: int, high: int) -> Any:
    """Whole floats as integers, clamped; NaN is 0."""
    return np.clip(np.nan_to_num(values, nan=0.0), float(low), float(high))


_COMPARISONS = {
    "EQ": operator.eq, "NE": operator.ne, "LT": operator.lt,
    "LE": operator.le, "GT": operator.gt, "GE": operator.ge,
}  # fmt: skip


def _is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P[0-7T]", text) is not None


def _split(operands: list[str]) -> tuple[str, list[str], list[str], list[str]]:
    """Destination, predicates written, sources, predicates read."""
    target, rest = operands[0], operands[1:]
    written, read = [], []
    while rest and _is_predicate(rest[0]):
        written.append(rest.pop(0))
    while rest and _is_predicate(rest[-1]):
        read.insert(0, rest.pop())
    return target, written, rest, read


def _iadd3(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, carries, sources, read = _split(operands)
    # With carries in, a negative term is a complement: its one comes as a carry.
    terms = [block.carried(text) for text in sources]
    bits = [block.predicate(text) for text in read] if "X" in parts else []

    def run() -> None:
        total = terms[0]() + terms[1]() + (terms[2]() if len(terms) > 2 else np.uint64(0))
        for bit in bits:
            total = total + bit()
        total = np.broadcast_to(total, block.threads)
        carry = total >> np.uint64(32)
        block.write(target, (total & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        for least, name in enumerate(carries, 1):
            block.write_predicate(name, carry >= least)

    return run


def _imad(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, written, (a_text, b_text, c_text), read = _split(operands)
    if written:
        raise MachineError("a carry")
    a, b = block.integer(a_text), block.integer(b_text)
    if "WIDE" in parts or "HI" in parts:
        c_pair = block.pair(c_text)

        def wide() -> None:
            x, y = a(), b()
            if "U32" not in parts:
                x, y = signed(x), signed(y)
            product = np.asarray(x).astype(np.int64) * np.asarray(y).astype(np.int64)
            total = np.broadcast_to(product, block.threads).astype(np.uint64) + c_pair()
            if "WIDE" in parts:
                block.write_pair(target, total)
                return
            # The high word of product and addend, without losing what carries out of 64 bits.
            block.write(target, (total >> np.uint64(32)).astype(np.uint32))

        def wide_unsigned() -> None:
            x = np.asarray(a()).astype(np.uint64)
            product = np.broadcast_to(x * np.asarray(b()).astype(np.uint64), block.threads)
            total = product + c_pair()
            if "WIDE" in parts:
                block.write_pair(target, total)
            else:
                block.write(target, (total >> np.uint64(32)).astype(np.uint32))

        return wide_unsigned if "U32" in parts else wide
    c = block.integer(c_text)
    carry = block.predicate(read[0]) if "X" in parts else None

    def run() -> None:
        total = a() * b() + c()
        block.write(target, total if carry is None else total + carry().astype(np.uint32))

    return run


def _viadd(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    a, b = block.integer(operands[1]), block.integer(operands[2])
    return lambda: block.write(operands[0], a() + b())


def _minimum(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """VIMNMX, and VIADDMNMX, which adds before."""
    *sources, which = operands[1:]
    terms = [block.integer(text) for text in sources]
    is_minimum = block.predicate(which)

    def run() -> None:
        *first, last = [np.broadcast_to(term(), block.threads) for term in terms]
        x, y = sum(first[1:], first[0]), last
        if "U32" not in parts:
            x, y = signed(x), signed(y)
        result = np.where(is_minimum(), np.minimum(x, y), np.maximum(x, y))
        block.write(operands[0], result.view(np.uint32))

    return run


def _lea(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, carries, sources, read = _split(operands)
    high = "HI" in parts
    extended = "SX32" in parts
    negated = sources[0].startswith("-")
    a = block.integer(sources[0].lstrip("-"))
    b = block.integer(sources[1])
    c = block.integer(sources[2]) if high and not extended else None
    shift = int(sources[-1], 0)
    bit = block.predicate(read[0]) if "X" in parts else None

    def run() -> None:
        low = np.broadcast_to(np.asarray(a()), block.threads)
        wide = low.astype(np.uint64)
        if extended:
            wide = signed(low).astype(np.int64).view(np.uint64)
        elif c is not None:
            wide = wide | np.asarray(c()).astype(np.uint64) << np.uint64(32)
        wide = wide << np.uint64(shift)
        word = (wide >> np.uint64(32)) if high else (wide & np.uint64(0xFFFFFFFF))
        if negated:
            word = (~word.astype(np.uint32)).astype(np.uint64) + np.uint64(1)
        total = word + np.asarray(b()).astype(np.uint64)
        if bit is not None:
            total = total + bit()
        block.write(target, (total & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        for name in carries:
            block.write_predicate(name, total >> np.uint64(32) > 0)

    return run


def _lookup(table: int, a: Any, b: Any, c: Any) -> Any:
    """A bitwise function of three, given by its table."""
    result = np.uint32(0)
    for row in range(8):
        if table >> row & 1:
            term = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result = result | term
    return result


def _lop3(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, written = operands[0], None
    rest = operands[1:]
    if _is_predicate(target):
        written, target, rest = target, operands[1], operands[2:]
    a, b, c = (block.integer(text) for text in rest[:3])
    # What the predicate says before is joined with what the result says.
    table, before = int(rest[3], 0), block.predicate(rest[4])
    join = np.logical_and if "PAND" in parts else np.logical_or

    def run() -> None:
        result = np.broadcast_to(_lookup(table, a(), b(), c()), block.threads)
        joined = join(result != 0, before())
        block.write(target, result)
        if written:
            block.write_predicate(written, joined)

    return run


def _plop3(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    targets, sources, tables = operands[:2], operands[2:5], operands[5:7]
    values = [block.predicate(text) for text in sources]

    def run() -> None:
        index = sum(v().astype(np.int64) << (2 - i) for i, v in enumerate(values))
        results = [(int(table, 0) >> index) & 1 != 0 for table in tables]
        for target, result in zip(targets, results, strict=True):
            block.write_predicate(target, result)

    return run


def _combined(result: Any, parts: list[str], other: Any) -> Any:
    if "AND" in parts:
        return result & other
    return result | other if "OR" in parts else result ^ other


def _isetp(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, complement, a_text, b_text, other_text, *extended = operands
    a, b, other = block.integer(a_text), block.integer(b_text), block.predicate(other_text)
    low = block.predicate(extended[0]) if extended else None
    kind = parts[0]
    compare = _COMPARISONS[kind]

    def run() -> None:
        x, y = np.broadcast_to(a(), block.threads), b()
        if "U32" not in parts:
            x, y = signed(x), signed(y)
        result = compare(x, y)
        if low is not None:  # of the high words: equal ones leave it to the low words
            if kind == "NE":
                result = result | low()
            elif kind == "EQ":
                result = result & low()
            else:
                result = (x != y) & result | (x == y) & low()
        block.write_predicate(target, _combined(result, parts, other()))
        block.write_predicate(complement, _combined(~result, parts, other()))

    return run


def _float_compare(
    block: Block, parts: list[str], operands: list[str], number: Callable[[str], Getter]
) -> Callable[[], None]:
    target, complement, a_text, b_text, other_text = operands
    a, b, other = number(a_text), number(b_text), block.predicate(other_text)
    kind = parts[0]

    def run() -> None:
        x, y = np.broadcast_to(a(), block.threads), np.broadcast_to(b(), block.threads)
        unordered = np.isnan(x) | np.isnan(y)
        if kind == "MAX":  # which of the two is the larger; and whether the second is no number
            block.write_predicate(target, (x >= y) | np.isnan(y))
            block.write_predicate(complement, np.isnan(y))
            return
        if kind in _COMPARISONS:
            result = _COMPARISONS[kind](x, y) & ~unordered
        elif kind.removesuffix("U") in _COMPARISONS:
            result = _COMPARISONS[kind.removesuffix("U")](x, y) | unordered
        else:
            raise MachineError(f"comparison {kind}")
        block.write_predicate(target, _combined(result, parts, other()))
        block.write_predicate(complement, _combined(~result, parts, other()))

    return run


def _select(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, a_text, b_text, which = operands
    a, b, chosen = block.integer(a_text), block.integer(b_text), block.predicate(which)
    return lambda: block.write(target, np.where(chosen(), a(), b()))


def _select_float(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, a_text, b_text, which = operands
    a, b, chosen = block.number(a_text), block.number(b_text), block.predicate(which)
    return lambda: block.write(target, np.where(chosen(), _as_bits(a()), _as_bits(b())))


def _permute(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, a_text, selector, b_text = operands
    a, b, chosen = block.integer(a_text), block.integer(b_text), int(selector, 0)

    def run() -> None:
        wide = np.asarray(a()).astype(np.uint64) | np.asarray(b()).astype(np.uint64) << np.uint64(
            32
        )
        result = np.zeros(block.threads, np.uint64)
        for i in range(4):
            nibble = chosen >> 4 * i & 0xF
            byte = wide >> np.uint64(8 * (nibble & 7)) & np.uint64(0xFF)
            if nibble & 8:
                byte = (byte >> np.uint64(7)) * np.uint64(0xFF)
            result |= byte << np.uint64(8 * i)
        block.write(target, result.astype(np.uint32))

    return run


def _shift(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """SHF, of the pair (low, high); a shift by as much as there is clears all."""
    target, low_text, by_text, high_text = operands
    low, by, high = (block.integer(text) for text in (low_text, by_text, high_text))
    left, kind, takes_high = parts[0] == "L", parts[1], "HI" in parts
    if "W" in parts:
        raise MachineError("a shift that wraps")
    signed = kind.startswith("S")

    def run() -> None:
        a = np.broadcast_to(low(), block.threads).astype(np.uint64)
        c = np.broadcast_to(high(), block.threads).astype(np.uint64)
        most = 64 if "64" in kind else 32
        count = np.minimum(np.asarray(by()), most).astype(np.uint64)
        pair = a | c << np.uint64(32)
        if left:
            value = np.where(count >= 64, np.uint64(0), pair << np.minimum(count, np.uint64(63)))
        elif signed:
            arithmetic = pair.view(np.int64) >> np.minimum(count, np.uint64(63)).astype(np.int64)
            value = arithmetic.view(np.uint64)
        else:
            value = np.where(count >= 64, np.uint64(0), pair >> np.minimum(count, np.uint64(63)))
        word = value >> np.uint64(32) if takes_high else value & np.uint64(0xFFFFFFFF)
        block.write(target, word.astype(np.uint32))

    return run


def _move(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    value = block.integer(operands[1])
    return lambda: block.write(operands[0], value())


def _clear(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """CS2R of nothing: a pair of zeros, or one where it says 32."""
    if operands[1] != "SRZ":
        raise MachineError(f"operand {operands[1]}")
    if "32" in parts:
        return lambda: block.write(operands[0], np.uint32(0))
    return lambda: block.write_pair(operands[0], np.zeros(block.threads, np.uint64))


def _special(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    thread = np.arange(block.threads, dtype=np.uint32)
    values: dict[str, Any] = {
        "SR_TID.X": thread, "SR_CTAID.X": np.uint32(block.index), "SR_CgaCtaId": np.uint32(0),
        "SR_LANEID": thread % np.uint32(block.warp), "SR_TID.Y": np.uint32(0),
        "SR_TID.Z": np.uint32(0),
    }  # fmt: skip
    value = values[operands[1]]
    return lambda: block.write(operands[0], value)


def _absolute(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    value = block.integer(operands[1])
    return lambda: block.write(operands[0], np.abs(signed(value())).view(np.uint32))


def _fadd(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    a, b = block.number(operands[1]), block.number(operands[2])
    return lambda: block.write(operands[0], _as_bits(a() + b()))


def _fmul(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    a, b = block.number(operands[1]), block.number(operands[2])
    return lambda: block.write(operands[0], _as_bits(a() * b()))


def _ffma(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    a, b, c = (block.number(text) for text in operands[1:4])

    def run() -> None:
        # The product of two floats is exact in double. The sum then rounds twice, to odd first.
        product = np.asarray(a()).astype(np.float64) * np.asarray(b()).astype(np.float64)
        addend = np.broadcast_to(np.asarray(c()).astype(np.float64), block.threads)
        product = np.broadcast_to(product, block.threads)
        total = product + addend
        part = total - product
        rest = (product - (total - part)) + (addend - part)
        bits = total.view(np.int64)
        inexact = (rest != 0) & np.isfinite(total) & (bits & 1 == 0)
        towards = np.where((rest > 0) == (total > 0), 1, -1)
        total = np.where(inexact, (bits + towards).view(np.float64), total)
        block.write(operands[0], _as_bits(total.astype(np.float32)))

    return run


def _float_minimum(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    a, b, which = block.number(operands[1]), block.number(operands[2]), block.predicate(operands[3])
    least = np.minimum if "NAN" in parts else np.fmin
    most = np.maximum if "NAN" in parts else np.fmax
    return lambda: block.write(
        operands[0], np.where(which(), _as_bits(least(a(), b())), _as_bits(most(a(), b())))
    )


def _half_maximum(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """HMNMX2: pairs of halves against zero, the larger of each."""
    target, pair, zero, which = operands
    if parts not in (["NAN"], ["BF16_V2", "NAN"]) or zero != "RZ.H0_H0" or which != "!PT":
        raise MachineError(f"maximum of halves {parts} {operands}")
    value = block.integer(pair)
    infinity = np.uint32(0x7C00 if parts == ["NAN"] else 0x7F80)

    def run() -> None:
        result = np.zeros(block.threads, np.uint32)
        for shift in (np.uint32(0), np.uint32(16)):
            half = value() >> shift & np.uint32(0xFFFF)
            is_nan = (half & np.uint32(0x7FFF)) > infinity
            kept = np.where(is_nan, 0x7FFF, np.where(half & np.uint32(0x8000), 0, half))
            result |= kept.astype(np.uint32) << shift
        block.write(target, result)

    return run


def _float_set(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """FSET.BF.GTU: 1.0 where the first is larger or either is no number, else 0."""
    target, a_text, b_text, other = operands
    if parts != ["BF", "GTU", "AND"] or other != "PT":
        raise MachineError(f"comparison to a number {parts} {operands}")
    a, b = block.number(a_text), block.number(b_text)

    def run() -> None:
        is_set = ~(np.broadcast_to(a(), block.threads) <= b())
        block.write(target, _as_bits(is_set.astype(np.float32)))

    return run


def _dadd(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    a, b = block.double(operands[1]), block.double(operands[2])
    return lambda: block.write_pair(operands[0], np.broadcast_to(a() + b(), block.threads))


def _dmul(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    a, b = block.double(operands[1]), block.double(operands[2])
    return lambda: block.write_pair(operands[0], np.broadcast_to(a() * b(), block.threads))


def _dfma(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    a, b, c = (block.double(text) for text in operands[1:4])

    def run() -> None:
        # Extended precision holds what matters of the product.
        product = np.asarray(a()).astype(np.longdouble) * np.asarray(b()).astype(np.longdouble)
        total = np.broadcast_to(product + np.asarray(c()).astype(np.longdouble), block.threads)
        block.write_pair(operands[0], total.astype(np.float64))

    return run


def _half_float(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    if parts != ["F32"]:
        raise MachineError("arithmetic of halves")
    return _fadd(block, [], operands)


def _half_constant(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """HFMA2 of nothing and a constant: how compilers load one on a pipe that is free."""
    if operands[1:3] != ["-RZ", "RZ"] and operands[1:3] != ["RZ", "RZ"]:
        raise MachineError("arithmetic of halves")
    pair = np.array([operands[4], operands[3]], np.float16).view(np.uint16)
    value = np.uint32(int(pair[0]) | int(pair[1]) << 16)
    return lambda: block.write(operands[0], value)


def _pack(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    high, low = block.number(operands[1]), block.number(operands[2])

    def half(values: Any) -> Any:
        values = np.broadcast_to(np.asarray(values, np.float32), block.threads)
        if "BF16" in parts:
            bits = values.view(np.uint32).astype(np.uint64)
            bits += np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))
            rounded = (bits >> np.uint64(16)).astype(np.uint32)
            return np.where(np.isnan(values), np.uint32(0x7FFF), rounded)
        halves = values.astype(np.float16).view(np.uint16).astype(np.uint32)
        return np.where(np.isnan(values), np.uint32(0x7FFF), halves)

    return lambda: block.write(operands[0], half(high()) << np.uint32(16) | half(low()))


def _to_float(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """I2F and I2FP."""
    source = block.pair(operands[1]) if "S64" in parts else block.integer(operands[1])

    def run() -> None:
        value = np.broadcast_to(source(), block.threads)
        if "S64" in parts:
            value = value.view(np.int64)
        elif "U32" not in parts:
            value = signed(value)
        wide = value.astype(np.float64)
        if "F64" in parts:
            block.write_pair(operands[0], wide)
            return
        narrow = wide.astype(np.float32)
        if "RP" in parts:
            up = np.nextafter(narrow, np.float32(np.inf))
            narrow = np.where(narrow.astype(np.float64) < wide, up, narrow)
        block.write(operands[0], _as_bits(narrow))

    return run


def _to_integer(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """F2I."""
    source = (block.double if "F64" in parts else block.number)(operands[1])
    rounding = np.floor if "FLOOR" in parts else np.ceil if "CEIL" in parts else np.rint
    rounding = np.trunc if "TRUNC" in parts else rounding

    def run() -> None:
        value = rounding(np.broadcast_to(source(), block.threads).astype(np.float64))
        if "S64" in parts:
            clamped = _truncated(value, -(2**63), 2**63 - 1024)
            block.write_pair(operands[0], clamped.astype(np.int64).view(np.uint64))
        elif "U32" in parts:
            block.write(operands[0], _truncated(value, 0, 2**32 - 1).astype(np.uint32))
        else:
            whole = _truncated(value, -(2**31), 2**31 - 1).astype(np.int32)
            block.write(operands[0], whole.view(np.uint32))

    return run


def _round(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    rounding = np.floor if "FLOOR" in parts else np.ceil if "CEIL" in parts else np.rint
    rounding = np.trunc if "TRUNC" in parts else rounding
    if "F64" in parts:
        wide = block.double(operands[1])
        return lambda: block.write_pair(operands[0], rounding(wide()))
    value = block.number(operands[1])
    return lambda: block.write(operands[0], _as_bits(rounding(value())))


def _convert(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    if parts == ["F32", "F64"]:
        wide = block.double(operands[1])
        return lambda: block.write(operands[0], _as_bits(wide().astype(np.float32)))
    if parts == ["F64", "F32"]:
        value = block.number(operands[1])
        return lambda: block.write_pair(operands[0], value().astype(np.float64))
    raise MachineError(f"conversion {parts}")


def _reciprocal(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    if parts != ["RCP"]:
        raise MachineError(f"function {parts}")
    value = block.number(operands[1])
    return lambda: block.write(operands[0], _as_bits(np.float32(1) / value()))


def _shuffle(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    _, target, source, by_text, _ = operands
    if parts != ["BFLY"]:
        raise MachineError(f"shuffle {parts}")
    value, by = block.integer(source), block.integer(by_text)

    def run() -> None:
        lane = np.arange(block.threads)
        other = lane ^ np.broadcast_to(np.asarray(by()), block.threads).astype(np.int64)
        block.write(target, value()[np.minimum(other, block.threads - 1)])

    return run


def lanes_of(block: Block, mask: Mask) -> Words:
    """A bit for each lane of the warp, for each thread."""
    here = np.zeros(block.warps * block.warp, np.uint64)
    here[: block.threads] = mask
    bits = (here.reshape(-1, block.warp) << np.arange(block.warp, dtype=np.uint64)).sum(1)
    return bits.astype(np.uint32)[block.warp_of]


def _vote(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    """To a register, the lanes that say yes; to a predicate, whether any or all of them do."""
    *targets, voted = operands
    if parts not in (["ANY"], ["ALL"]):
        raise MachineError(f"vote {parts}")
    chosen = block.predicate(voted)

    def run() -> None:
        yes = lanes_of(block, block.active & chosen())
        needed = lanes_of(block, block.active) if parts == ["ALL"] else None
        for target in targets:
            if _is_predicate(target):
                block.write_predicate(target, yes != 0 if needed is None else yes == needed)
            else:
                block.write(target, yes)

    return run


def _match(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    value = block.integer(operands[1])

    def run() -> None:
        values, result = value(), np.zeros(block.threads, np.uint32)
        for number in np.unique(values[block.active]):
            same = block.active & (values == number)
            result = np.where(same, lanes_of(block, same), result)
        block.write(operands[0], result)

    return run


def _reduce_or(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    if parts != ["OR"]:
        raise MachineError(f"reduction {parts}")
    value = block.integer(operands[1])

    def run() -> None:
        padded = np.zeros(block.warps * block.warp, np.uint32)
        padded[: block.threads] = np.where(block.active, value(), 0)
        ors = np.bitwise_or.reduce(padded.reshape(-1, block.warp), axis=1)
        block.write(operands[0], ors[block.warp_of])

    return run


def _from_predicates(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    target, _, base_text, mask = operands
    base, chosen = block.integer(base_text), int(mask, 0)

    def run() -> None:
        bits = sum(block.predicates[i].astype(np.uint32) << np.uint32(i) for i in range(7))
        kept = base() & np.uint32(~chosen & 0xFFFFFFFF)
        block.write(target, kept | bits & np.uint32(chosen))

    return run


def _to_predicates(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    _, source, mask = operands
    value, chosen = block.integer(source), int(mask, 0)

    def run() -> None:
        for i in range(7):
            if chosen >> i & 1:
                block.write_predicate(f"P{i}", value() >> np.uint32(i) & np.uint32(1) != 0)

    return run


def _nothing(block: Block, parts: list[str], operands: list[str]) -> Callable[[], None]:
    return lambda: None


HANDLERS: dict[str, Callable[[Block, list[str], list[str]], Callable[[], None]]] = {
    "IADD3": _iadd3, "IMAD": _imad, "VIADD": _viadd, "VIMNMX": _minimum, "VIADDMNMX": _minimum,
    "LEA": _lea, "LOP3": _lop3, "PLOP3": _plop3, "ISETP": _isetp, "SEL": _select,
    "FSEL": _select_float, "PRMT": _permute, "SHF": _shift, "MOV": _move, "CS2R": _clear,
    "S2R": _special, "S2UR": _special, "R2UR": _move, "IABS": _absolute, "FADD": _fadd,
    "FMUL": _fmul, "FFMA": _ffma, "FMNMX": _float_minimum,
    "HMNMX2": _half_maximum, "FSET": _float_set, "DADD": _dadd, "DMUL": _dmul,
    "DFMA": _dfma, "HADD2": _half_float, "HFMA2": _half_constant, "F2FP": _pack, "I2F": _to_float,
    "I2FP": _to_float, "F2I": _to_integer, "FRND": _round, "F2F": _convert, "MUFU": _reciprocal,
    **MEMORY_HANDLERS, "SHFL": _shuffle, "VOTEU": _vote,
    "MATCH": _match, "REDUX": _reduce_or, "P2R": _from_predicates, "R2P": _to_predicates,
    "NOP": _nothing,
    "FSETP": lambda block, parts, ops: _float_compare(block, parts, ops, block.number),
    "DSETP": lambda block, parts, ops: _float_compare(block, parts, ops, block.double),
}  # fmt: skip
