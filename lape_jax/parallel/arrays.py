"""Parts of a batch: blank ones, and how this host's part becomes a global array."""

from collections.abc import Mapping

import jax
import numpy as np


def blank(count: int, shapes: Mapping[str, jax.ShapeDtypeStruct], *, mask: float = 0.0) -> dict[str, np.ndarray]:
    """A part of a batch, `count` rows, without any example: zeros, but for the mask.

    Args:
        shapes: of everything in a batch, of one row.
        mask: what stands in the mask.
    """
    zeros = {name: np.zeros((count, *row.shape), row.dtype) for name, row in shapes.items()}
    return zeros | {"mask": np.full(count, mask, np.float32)}


def place(array: np.ndarray, where: jax.sharding.NamedSharding) -> jax.Array:
    """This host's part of an array (all of it, if `where` replicates) as a global array on the devices."""
    return jax.make_array_from_process_local_data(where, array)
