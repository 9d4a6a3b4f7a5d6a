"""The same weights for images of another size, without training."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lape_jax.errors import UserError
from lape_jax.nn.join import FOLDED
from lape_jax.port.params import first_few
from lape_jax.port.transfer import transfer


def at_size(model: nn.Module, variables: Mapping[str, Any], size: int) -> tuple[nn.Module, dict]:
    """`model` for images of `size` x `size` pixels, and its variables.

    Position tables and tables of relative biases are interpolated (see `lape_jax.port.transfer.transfer`), sinusoids
    computed for the new grid, and RoPE, which knows no grid, stays as it is. LaPE's norms then act on the new table.

    Raises:
        UserError: the model cannot have such images; its tables cannot be interpolated, or are constants
            (join="folded"); or `variables` are not its own.
    """
    if getattr(model, "joining", None) == FOLDED:
        raise UserError("join='folded' has constants for one image size: take the model before it is folded")
    other = model.clone(image_size=size)
    other.check()
    shapes = flatten_dict(other.variable_shapes())
    fresh = unflatten_dict({path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()})
    found, moved = transfer(variables, model, fresh, other)
    if left := [*moved.initialised, *moved.dropped]:
        raise UserError(f"{first_few(left)} cannot be interpolated for images of {size} x {size} pixels")
    return other, found
