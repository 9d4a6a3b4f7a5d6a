"""What image files say of themselves that whoever trains on them should know, gathered over many."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from lape_jax.data import ahead, decode
from lape_jax.data.corrupt import CorruptImage
from lape_jax.data.example import Source

START = 100  # examples that are looked at when a run starts
CHUNK = 8  # ... as a task for a thread
Seen = TypeVar("Seen")


@dataclasses.dataclass
class Notes:
    """What was noticed of images that were read.

    Attributes:
        read: how many.
        turned: how many of them have an EXIF orientation other than 1.
        dim: the names of those that will be nearly black, see `lape_jax.data.pictures`.
    """

    read: int = 0
    turned: int = 0
    dim: list[str] = dataclasses.field(default_factory=list)

    def add(self, orientation: int, dim: bool, name: str) -> None:
        """One of them, see `decode.Decoded`."""
        self.read += 1
        self.turned += orientation != 1
        if dim:
            self.dim.append(name)

    def update(self, other: "Notes") -> None:
        """Others as well."""
        self.read, self.turned, self.dim = self.read + other.read, self.turned + other.turned, self.dim + other.dim

    def lines(self, orientation: str = "") -> list[str]:
        """What is to be said of them; `orientation` is what is done with it, "" if that is not decided yet."""
        said = []
        if self.turned:
            done = {
                "view": "which is followed (data.orientation=view)",
                "stored": "which is not followed: --config.data.orientation=view does",
                "": "which data.orientation=view follows, and data.orientation=stored does not",
            }[orientation]
            said.append(f"{self.turned:,} of {self.read:,} images read carry an EXIF orientation, {done}")
        if self.dim:
            said.append(f"{len(self.dim):,} of {self.read:,} images read, as {self.dim[0]}: {DIM}")
        return said


DIM = "nearly black, as the upper 2 of 16 bits are not used (12 bits in 16?): scale to all 16, or to 8"


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced.

    >>> spread(7, 3)
    [0, 2, 4]
    """
    number = min(count, most)
    return [count * i // number for i in range(number)]


def each(look: Callable[[int], Seen], indices: Sequence[int], threads: int) -> Iterator[Seen]:
    """What `look` makes of each index, in order, made by threads; without those for which it raises CorruptImage."""

    def part(chosen: Sequence[int]) -> list[Seen]:
        found = []
        for index in chosen:
            try:
                found.append(look(index))
            except CorruptImage:
                continue
        return found

    for found in ahead.each(part, (indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)), threads):
        yield from found


def start(source: Source, orientation: str, threads: int) -> list[str]:
    """What is to be said of a training set when a run starts, after a look at START of its examples."""

    def look(index: int) -> tuple[int, bool, str]:
        example = source[index]
        return *decode.examine(example.image, 3, example.name)[1:], example.name

    notes = Notes()
    for found in each(look, spread(len(source), START), threads):
        notes.add(*found)
    return notes.lines(orientation)
