"""What a program compiled for a TPU does, read from its text: HBM traffic, collectives and the compiler's cycles.

XLA's own cost analysis counts the body of a loop once, also if the loop makes twelve turns, and does not say which
buffers lie in on-chip memory. Both stand in the program's text: a loop's condition compares with the number of turns,
and a shape `bf16[128,197,768]{2,1,0:T(8,128)(2,1)S(1)}` says how it is padded (T) and that it is on the chip (S(1)).
"""

import collections
import functools
import math
import re
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_BITS = {"pred": 8, "bf16": 16, "f16": 16}  # of types whose name does not end in their size
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota"}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.+?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    root: bool


class Program(NamedTuple):
    """Sums over a whole execution on one chip; every loop body counts as often as the loop turns."""

    hbm_bytes: float  # read and written, padding included
    cycles: float  # the compiler's estimates, added up; transfers that overlap with work have none
    collectives: dict[str, float]  # how often each kind is executed
    collective_bytes: float  # results of those


def analyse(text: str) -> Program:
    """Reads `compiled.as_text()`; of a conditional, the mean of the branches counts."""
    computations, entry = _parse(text)
    total = collections.Counter()

    def visit(name, times):
        shapes = {i.name: i.shape for i in computations[name]}
        for i in computations[name]:
            if i.opcode == "while":
                visit(_called(i, "body"), times * _turns(computations[_called(i, "condition")]))
            elif i.opcode == "call":
                visit(_called(i, "to_apply"), times)
            elif i.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", i.text)
                names = re.findall(r"%([\w.\-]+)", branches[1]) if branches else _branches(i)
                for branch in names:
                    visit(branch, times / len(names))
            else:
                total["bytes"] += times * _traffic(i, shapes, computations)
                found = re.search(r'"estimated_cycles":"(\d+)"', i.text)
                total["cycles"] += times * int(found[1]) if found else 0
                kind = i.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    total[kind] += times
                    total["moved"] += times * size(i.shape, on_chip=True)

    visit(entry, 1)
    kinds = {kind: total[kind] for kind in COLLECTIVES if total[kind]}
    return Program(total["bytes"], total["cycles"], kinds, total["moved"])


@functools.cache
def size(shape: str, on_chip: bool = False) -> int:
    """Bytes of all arrays of a (tuple) shape, padded to their tiles; those in on-chip memory only if `on_chip`."""
    return sum(_array_size(*found.groups(), on_chip) for found in _SHAPE.finditer(shape))


def _array_size(kind: str, dims: str, order: str | None, layout: str | None, on_chip: bool) -> int:
    layout = layout or ""
    if kind == "token" or (not on_chip and re.search(r"S\(\d+\)", layout)):
        return 0
    sides = [int(side) for side in dims.split(",") if side]
    minor_first = [sides[int(axis)] for axis in (order or "").split(",") if axis] or sides[::-1]
    tile = re.search(r"T\(([\d,]+)\)", layout)
    for place, step in enumerate(reversed(tile[1].split(","))) if tile else ():
        if place < len(minor_first):
            minor_first[place] = math.ceil(minor_first[place] / int(step)) * int(step)
    bits = _BITS.get(kind) or int(re.search(r"\d+", kind)[0])
    return math.prod(minor_first) * bits // 8


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        header = re.match(r"^(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            root, name, shape, opcode, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
            current.append(Instruction(name, shape, opcode, tuple(operands), line, bool(root)))
    return computations, entry


def _called(i: Instruction, role: str) -> str:
    return re.search(rf"\b{role}=%([\w.\-]+)", i.text)[1]


def _branches(i: Instruction) -> list[str]:
    return [_called(i, "true_computation"), _called(i, "false_computation")]


def _turns(condition: list[Instruction]) -> int:
    """How often a counted loop turns: the constant that its condition compares with."""
    limits = [int(n) for i in condition for n in re.findall(r" s32\[\]\S* constant\((\d+)\)", i.text)]
    return max(limits, default=1)


def _traffic(i: Instruction, shapes: dict[str, str], computations: dict[str, list[Instruction]]) -> int:
    """Bytes that one execution of an instruction reads from and writes to HBM."""
    if i.opcode in _FREE or i.opcode.endswith("-done") or i.opcode == "custom-call":
        return 0  # those custom calls only name buffers: AllocateBuffer, ConcatBitcast
    if i.opcode in ("copy-start", "slice-start"):
        parts = _SHAPE.findall(i.shape)
        result = parts[0] if i.opcode == "copy-start" else parts[-2]
        sides = sum(not re.search(r"S\(\d+\)", layout) for _, _, _, layout in parts[:-1])
        return min(sides, 2) * _array_size(*result, on_chip=True)
    read = [size(shapes.get(name, "")) for name in i.operands]
    written = size(i.shape)
    if i.opcode == "dynamic-slice":
        return 2 * written
    if i.opcode == "dynamic-update-slice":
        return 2 * read[1]
    if i.opcode == "fusion":
        body = _Body(computations[_called(i, "calls")], computations)
        for place, whole in enumerate(read):
            if whole:
                read[place] = min(whole, body.read(place))
                written -= max(0, whole - changed) if (changed := body.changed(place)) is not None else 0
    return sum(read) + max(written, 0)


class _Body:
    """What a fusion does with its operands: it may read only a slice of one, or put a slice into it, in place."""

    def __init__(self, body: list[Instruction], computations: dict[str, list[Instruction]]):
        self._body, self._computations = body, computations
        self._by_name = {i.name: i for i in body}

    def read(self, place: int) -> int:
        """Bytes of operand number `place` that are read."""
        total = 0
        for user, position in self._users(place):
            if user.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
                total += size(user.shape, on_chip=True)
            elif user.opcode == "fusion":
                total += _Body(self._computations[_called(user, "calls")], self._computations).read(position)
            elif user.opcode != "dynamic-update-slice" or position != 0:
                return size(self._parameter(place).shape, on_chip=True)
        return total

    def changed(self, place: int) -> int | None:
        """Bytes of operand number `place` that are written if it is changed in place, else None."""
        updates = [i for i, position in self._users(place) if i.opcode == "dynamic-update-slice" and position == 0]
        return sum(size(self._by_name[i.operands[1]].shape, on_chip=True) for i in updates) if updates else None

    def _parameter(self, place: int) -> Instruction:
        return next(i for i in self._body if i.opcode == "parameter" and f" parameter({place})" in i.text)

    def _users(self, place: int) -> list[tuple[Instruction, int]]:
        parameter = self._parameter(place)
        return [
            (i, position)
            for i in self._body
            if i.opcode != "bitcast"
            for position, name in enumerate(i.operands)
            if self._origin(name) is parameter
        ]

    def _origin(self, name: str) -> Instruction:
        """What a value is, seen through what moves nothing."""
        while self._by_name[name].opcode == "bitcast":
            name = self._by_name[name].operands[0]
        return self._by_name[name]
