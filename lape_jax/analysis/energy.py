"""How strong the position is, by itself and beside the tokens, in what attention sees.

What attention sees of a token is the sum of two parts (and, where one LayerNorm serves both, of l3 b):

    LaPE                        LN_l(x_l)         and   the PE that is delivered
    default, shared, unshared   l1 LN_l(x~_l)     and   l2 LN_l(w_l)                   (`lape_jax.analysis.reparam`)

The energy of a part is its mean square over tokens and channels. The LayerNorms come with their biases, as attention
sees them.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lape_jax.analysis.reparam import lambdas, spread


def rms(table: Float[np.ndarray, "n d"]) -> float:
    """Root of the mean square over positions and channels."""
    return float(np.sqrt(np.mean(np.square(table, dtype=np.float64))))


def parts(
    stream: Float[Array, "b n d"],
    pe: Float[Array, "n d"],
    scale: Float[Array, " d"],
    bias: Float[Array, " d"],
    eps: float,
) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
    """l1 LN(x~) and l2 LN(w) of the LayerNorm (scale, bias, eps) of `stream` = x~ + w, with w = `pe`."""
    factors = lambdas(stream, pe, eps)

    def part(z, factor):
        normed = (z - jnp.mean(z, axis=-1, keepdims=True)) / spread(z, eps)[..., None]
        return factor[..., None] * (scale * normed + bias)

    return part(stream - pe, factors.tokens), part(pe, factors.pe)
