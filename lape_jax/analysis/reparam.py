"""What a LayerNorm makes of tokens and position that were added before it: the paper's equation 7.

With s(z) = sqrt(var(z) + eps) over the channels of one token and LN(z) = g (z - mean) / s(z) + b,

    LN(x~ + w) = l1 LN(x~) + l2 LN(w) + l3 b,
    l1 = s(x~) / s(x~ + w),   l2 = s(w) / s(x~ + w),   l3 = (s(x~ + w) - s(x~) - s(w)) / s(x~ + w),

where x~ is the residual stream without the position and w is what there is of it in that stream. So g and b of one
LayerNorm serve both, and the weight of the position, l2, is whatever the tokens leave it: it falls as the residual
stream grows from layer to layer. The three add up to 1. The identity is exact for any eps, provided that the s of the
three numbers has the same one as the LayerNorm; the paper's s is the plain standard deviation, eps = 0.

The PE in the residual stream of layer l is w with join="default", l w with "shared" (every layer adds it again) and the
sum of the tables of blocks 1 to l with "unshared". With LaPE there is none: attention sees LN(x) + LNp(w), which is
l1 = l2 = 1 and l3 = 0 by construction, for every token of every image. Nothing is measured there; how strong the
position is beside the tokens says `lape_jax.analysis.energy`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Lambdas(NamedTuple):
    """The factors of equation 7, by token."""

    tokens: jax.Array  # l1, of LN(x~)
    pe: jax.Array  # l2, of LN(w)
    bias: jax.Array  # l3, of b


def spread(z: Float[Array, "*b n d"], eps: float = 0.0) -> Float[Array, "*b n"]:
    """s(z) = sqrt(var(z) + eps) over the channels, biased variance."""
    return jnp.sqrt(jnp.var(z, axis=-1) + eps)


def lambdas(stream: Float[Array, "*b n d"], pe: Float[Array, "n d"], eps: float = 0.0) -> Lambdas:
    """l1, l2 and l3 of every token.

    Args:
        stream: what the LayerNorm is given, x~ + w.
        pe: w, the position in it.
        eps: see above.
    """
    own, both = spread(stream - pe, eps), spread(stream, eps)
    table = jnp.broadcast_to(spread(pe, eps), both.shape)
    return Lambdas(own / both, table / both, (both - own - table) / both)
