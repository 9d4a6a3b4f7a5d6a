"""What a data set gives: examples, by index."""

import dataclasses
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

Item = TypeVar("Item", covariant=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """An image as it is stored (an encoded file, or pixels), its class, and a name by which a person can find it."""

    image: bytes | UInt8[np.ndarray, "h w c"]
    label: int
    name: str


@runtime_checkable
class Source(Protocol[Item]):
    """A data set of examples, or of what a task has instead of them.

    Reading is safe from many threads at once and raises CorruptImage for what cannot be read.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...
