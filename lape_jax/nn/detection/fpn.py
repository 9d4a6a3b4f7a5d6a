"""The feature pyramid of a detector (Lin et al. 2017, arXiv:1612.03144)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

XAVIER = nn.initializers.xavier_uniform()


class Pyramid(nn.Module):
    """Maps of as many channels each, at the strides of four given ones and, as the fifth, at twice the last of them.

    l_i = linear_i(f_i) + each pixel of l_(i+1) four times; map i is a convolution 3x3 of l_i, and the fifth every other
    pixel of the fourth, in rows and in columns.

    Attributes:
        features: channels of all maps.
        dtype: type to compute in.

    Source: open-mmlab/mmdetection 2.22, `models/necks/fpn.py`.
    """

    features: int = 256
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _h _w c"]]) -> list[Float[Array, "b _h2 _w2 d"]]:
        """The five maps, of given ones each of which has half as many rows and columns as the one before."""
        options = {"dtype": self.dtype, "kernel_init": XAVIER}
        path = [nn.Dense(self.features, name=f"lateral_convs_{i}", **options)(map_) for i, map_ in enumerate(maps)]
        for i in reversed(range(len(path) - 1)):
            path[i] = path[i] + path[i + 1].repeat(2, axis=1).repeat(2, axis=2)
        found = [
            nn.Conv(self.features, (3, 3), padding=1, name=f"fpn_convs_{i}", **options)(x) for i, x in enumerate(path)
        ]
        return [*found, found[-1][:, ::2, ::2]]
