"""What a program compiled for a TPU or a GPU does, read from its text: traffic, its parts, collectives, cycles.

XLA's own cost analysis counts the body of a loop once, also if the loop makes twelve turns, and does not say which
buffers lie in on-chip memory; for a GPU without one it says nothing. All of it stands in the program's text: a loop
says how often it turns, or its condition compares with that number, and a shape such as
`bf16[128,197,768]{2,1,0:T(8,128)(2,1)S(1)}` says how it is padded (T) and that it is on a TPU's chip (S(1)).
"""

import collections
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Parts of a train step, by the first pattern that is found in an operation's name: of `jax.named_scope`s, of modules.
PARTS = {
    "augmentation": r"/augment/",
    "scan": r"while/body/(\w+/)*(dynamic_update_slice|dynamic_slice|squeeze)$",  # stacks of what is kept by layer
    "attention": r"/attn/",
    "MLP": r"/mlp/",
    "norms": r"[/_.](pe_)?norm\d?[/_.]",
}
OTHER = "other"
_BITS = {"pred": 8, "bf16": 16, "f16": 16}  # of types whose name does not end in their size
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota"}
_NAMES = ("AllocateBuffer", "ConcatBitcast")  # custom calls of a TPU that only name buffers
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand is put into the first
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.+?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def operation(self) -> str:
        """The name that JAX has given it: scopes, modules, primitive."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""


Computations = dict[str, list[Instruction]]


class Kernel(NamedTuple):
    """An instruction of a program, as far as it moves anything."""

    name: str
    operation: str  # by JAX's names
    times: float  # that it is executed; in a conditional the mean over its branches
    bytes: int  # of memory read and written each time, padding included
    cycles: int  # each time, by the compiler's estimate
    collective: str  # its kind, or ""
    moved: int  # bytes of a collective's result

    @property
    def part(self) -> str:
        return next((part for part, pattern in PARTS.items() if re.search(pattern, self.operation)), OTHER)


class Program(NamedTuple):
    """Sums over a whole execution on one chip; every loop body counts as often as the loop turns."""

    hbm_bytes: float  # read and written, padding included
    cycles: float  # the compiler's estimates, added up; transfers that overlap with work have none
    collectives: dict[str, float]  # how often each kind is executed
    collective_bytes: float  # results of those
    parts: dict[str, float]  # of hbm_bytes, by `PARTS`


def analyse(text: str) -> Program:
    """Reads `compiled.as_text()`; of a conditional, the mean of the branches counts."""
    total, kinds, parts = collections.Counter(), collections.Counter(), dict.fromkeys((*PARTS, OTHER), 0.0)
    for kernel in kernels(text):
        total["bytes"] += kernel.times * kernel.bytes
        total["cycles"] += kernel.times * kernel.cycles
        parts[kernel.part] += kernel.times * kernel.bytes
        if kernel.collective:
            kinds[kernel.collective] += kernel.times
            total["moved"] += kernel.times * kernel.moved
    return Program(total["bytes"], total["cycles"], dict(kinds), total["moved"], parts)


def kernels(text: str) -> Iterator[Kernel]:
    """All instructions of `compiled.as_text()` that move anything, in their order."""
    computations, entry = _parse(text)

    def visit(name: str, times: float) -> Iterator[Kernel]:
        known = {i.name: i for i in computations[name]}
        shapes = {i.name: i.shape for i in computations[name]}
        for i in computations[name]:
            for inner, often in _inside(i, computations):
                yield from visit(inner, times * often)
            if i.opcode in ("while", "call", "conditional", "async"):
                continue
            cycles = re.search(r'"estimated_cycles":"(\d+)"', i.text)
            kind = i.opcode if i.opcode in COLLECTIVES else ""
            found = Kernel(
                i.name,
                _operation(i, known, computations),
                times,
                _traffic(i, shapes, computations),
                int(cycles[1]) if cycles else 0,
                kind,
                size(i.shape, on_chip=True) if kind else 0,
            )
            if found.bytes or found.cycles or found.collective:
                yield found

    yield from visit(entry, 1)


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


def _parse(text: str) -> tuple[Computations, str]:
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        header = re.match(r"^(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            root, name, shape, opcode, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.partition(")")[0])
            current.append(_plain(Instruction(name, shape, opcode, tuple(operands), line, bool(root))))
    return computations, entry


def _plain(i: Instruction) -> Instruction:
    """What an asynchronous instruction was before; of its shape (operands, result, ..) the second is left."""
    base = i.opcode.removesuffix("-start")
    if base == i.opcode or base in ("copy", "slice"):
        return i
    parts = _elements(i.shape)
    one_shape = base == "all-reduce" or len(parts) < 2  # which has no operands in its tuple
    return i._replace(opcode=base, shape=i.shape if one_shape else parts[1])


def _elements(shape: str) -> list[str]:
    """The parts of a tuple's shape."""
    parts, depth = [""], 0
    for letter in shape[1:-1] if shape.startswith("(") else "":
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _inside(i: Instruction, computations: Computations) -> list[tuple[str, float]]:
    """The computations that an instruction executes, and how often."""
    if i.opcode == "while":
        return [(_called(i, "body"), _turns(i, computations))]
    if i.opcode == "call":
        return [(_called(i, "to_apply"), 1)]
    if i.opcode == "async":
        return [(_called(i, "calls"), 1)]
    if i.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", i.text)
        roles = ("true_computation", "false_computation")
        names = re.findall(r"%([\w.\-]+)", listed[1]) if listed else [_called(i, role) for role in roles]
        return [(name, 1 / len(names)) for name in names]
    return []


def _called(i: Instruction, role: str) -> str:
    return re.search(rf"\b{role}=%([\w.\-]+)", i.text)[1]


def _turns(i: Instruction, computations: Computations) -> int:
    """How often a counted loop turns: as it says, or else the constant that its condition compares with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.text)
    if known:
        return int(known[1])
    condition = computations[_called(i, "condition")]
    limits = [int(n) for i in condition for n in re.findall(r" s32\[\]\S* constant\((\d+)\)", i.text)]
    return max(limits, default=1)


def _operation(i: Instruction, known: dict[str, Instruction], computations: Computations) -> str:
    """JAX's name of it, else of what is fused in it, else of what it gets."""
    if i.operation:
        return i.operation
    body = computations[_called(i, "calls")] if i.opcode == "fusion" else []
    inside = next((part.operation for part in sorted(body, key=lambda part: not part.root) if part.operation), "")
    given = (known[name].operation for name in i.operands if name in known)
    return inside or next(filter(None, given), "")


def _traffic(i: Instruction, shapes: dict[str, str], computations: Computations) -> int:
    """Bytes that one execution of an instruction reads from and writes to memory."""
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0
    if i.opcode in ("copy-start", "slice-start"):
        parts = _SHAPE.findall(i.shape)
        result = parts[0] if i.opcode == "copy-start" else parts[-2]
        sides = sum(not re.search(r"S\(\d+\)", layout) for _, _, _, layout in parts[:-1])
        return min(sides, 2) * _array_size(*result, on_chip=True)
    read = [size(shapes.get(name, "")) for name in i.operands]
    written = size(i.shape)
    if i.opcode == "custom-call":
        return 0 if any(f'"{name}"' in i.text for name in _NAMES) else sum(read) + written - _scratch(i)
    if i.opcode in _SLICES:
        return min(read[0], written) + sum(read[1:] if i.opcode == "gather" else ()) + written
    if i.opcode in _UPDATES:
        return 2 * min(read[0], read[_UPDATES[i.opcode]]) + (read[1] if i.opcode == "scatter" else 0)
    if i.opcode == "fusion":
        body = _Body(computations[_called(i, "calls")], computations)
        for place, whole in enumerate(read):
            if whole:
                read[place] = min(whole, body.read(place))
                written -= max(0, whole - changed) if (changed := body.changed(place)) is not None else 0
    return sum(read) + max(written, 0)


def _scratch(i: Instruction) -> int:
    """Bytes of a result that are the workspace of a product, of which hardly anything is touched."""
    return sum(map(size, _elements(i.shape)[1:])) if '"__cublas$' in i.text else 0


class _Body:
    """What a fusion does with its operands: it may read only a slice of one, or put a slice into it, in place."""

    def __init__(self, body: list[Instruction], computations: Computations):
        self._body, self._computations = body, computations
        self._by_name = {i.name: i for i in body}

    def read(self, place: int) -> int:
        """Bytes of operand number `place` that are read."""
        total = 0
        for user, position in self._users(place):
            if user.opcode in _SLICES and position == 0:
                total += size(user.shape, on_chip=True)
            elif user.opcode == "fusion":
                total += _Body(self._computations[_called(user, "calls")], self._computations).read(position)
            elif user.opcode == "scatter" and position == 0:
                total += self._put(user)
            elif user.opcode != "dynamic-update-slice" or position != 0:
                return size(self._parameter(place).shape, on_chip=True)
        return total

    def changed(self, place: int) -> int | None:
        """Bytes of operand number `place` that are written if it is changed in place, else None."""
        updates = [i for i, position in self._users(place) if i.opcode in _UPDATES and position == 0]
        return sum(map(self._put, updates)) if updates else None

    def _put(self, update: Instruction) -> int:
        """Bytes that a slice in place or a scatter may write."""
        return size(self._by_name[update.operands[_UPDATES[update.opcode]]].shape, on_chip=True)

    def _parameter(self, place: int) -> Instruction:
        return next(i for i in self._body if i.opcode == "parameter" and f" parameter({place})" in i.text)

    def _users(self, place: int) -> list[tuple[Instruction, int]]:
        parameter = self._parameter(place)
        return [
            (i, position)
            for i in self._body
            if not self._moves_nothing(i)
            for position, name in enumerate(i.operands)
            if self._origin(name) is parameter
        ]

    def _origin(self, name: str) -> Instruction:
        """What a value is, seen through what moves nothing."""
        while self._moves_nothing(self._by_name[name]):
            name = self._by_name[name].operands[0]
        return self._by_name[name]

    def _moves_nothing(self, i: Instruction) -> bool:
        """Whether it only gives what is there another shape, or on a TPU another tiling of the same order in memory."""
        if i.opcode != "fusion" or "output_to_operand_aliasing={{}: (0, {})}" not in i.text:
            return i.opcode == "bitcast"
        return all(inner.opcode in ("parameter", "copy") for inner in self._computations[_called(i, "calls")])
