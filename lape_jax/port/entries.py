"""What the tables of names are made of: which entry of a PyTorch state dict is which parameter, and how axes move."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Axes(NamedTuple):
    """How the axes of an entry move between the two."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Axes(lambda x: x, lambda x: x)
LINEAR = Axes(np.transpose, np.transpose)  # (out, in) <-> (in, out)
CONV = Axes(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
ROWS = Axes(lambda x: x[0], lambda x: x[None])  # (1, rows, D) <-> (rows, D)


class Entry(NamedTuple):
    """One entry of a state dict, and where its values belong."""

    names: tuple[str, ...]  # the one that is written first; any is read
    shape: tuple[int, ...]
    path: str
    layer: int | None  # index on the leading axis of the parameter, if that is stacked
    axes: Axes


def torch_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """The shape in PyTorch of a parameter that has `shape` here."""
    return axes.to_torch(np.broadcast_to(np.float32(0), shape)).shape
