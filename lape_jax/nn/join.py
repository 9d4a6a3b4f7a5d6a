"""How a position embedding joins the tokens: the heart of LaPE.

A joining method answers three questions. With alpha the token embeddings, w the position table and x_l what block l
receives:

(a) `stem`: what are x_0 and the PE handed to block 0?
(b) `attend`: what enters the self-attention of block l (and does x_l itself change)?
(c) `attend`, too: which PE is handed on to block l+1?

Three attributes say what a method needs: `normalises_pe`, a PE norm in each block; `table_per_layer`, a table for each
block; `norm1_bias`, the bias of the block's first LayerNorm.

To add a method, write one class here, name it in `JOINS`, and add one test. The PE is batch-free everywhere: (N, D).
Source: LaPE, ICCV 2023, equations 8-11 and section 3.3; names as in the paper's Table 7.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Tokens = Float[Array, "b n d"]
Position = Float[Array, "n d"]
FOLDED = "folded"
Norm = Callable[[jax.Array], jax.Array]  # a LayerNorm; there is no `pe_norm` where `normalises_pe` is False


class Joined(NamedTuple):
    """What `attend` answers for one block."""

    tokens: jax.Array  # the residual stream x_l, perhaps changed
    attention_input: jax.Array  # what the qkv projection sees
    delivered: jax.Array | None  # the PE as this block delivers it, for those who study it
    handed_on: jax.Array | None  # the PE that block l+1 receives


class Default:
    """x_0 = alpha + w; attention sees LN1_l(x_l). The PE then travels in the residual stream."""

    normalises_pe = False
    table_per_layer = False
    norm1_bias = True

    def stem(self, tokens: Tokens, table: Position) -> tuple[Tokens, Position | None]:
        return (tokens + table).astype(tokens.dtype), None

    def attend(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        return Joined(x, norm1(x), None, pe)


class Shared:
    """x_0 = alpha; x_l + w replaces x_l, so w accumulates in the residual stream; attention sees LN1_l(x_l + w)."""

    normalises_pe = False
    table_per_layer = False
    norm1_bias = True

    def stem(self, tokens: Tokens, table: Position) -> tuple[Tokens, Position | None]:
        return tokens, table

    def attend(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        x = (x + pe).astype(x.dtype)
        return Joined(x, norm1(x), pe, pe)


class Unshared(Shared):
    """As `Shared`, but every block adds a table w^(l) of its own."""

    table_per_layer = True


class LapeSharing:
    """x_0 = alpha; attention sees LN1_l(x_l) + LNp_l(w): each block normalises the same table (non-serial LaPE)."""

    normalises_pe = True
    table_per_layer = False
    norm1_bias = True

    def stem(self, tokens: Tokens, table: Position) -> tuple[Tokens, Position | None]:
        return tokens, table

    def attend(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        p = pe_norm(pe)
        return Joined(x, norm1(x) + p, p, pe)


class Lape(LapeSharing):
    """x_0 = alpha; pe_l = LNp_l(pe_{l-1}); attention sees LN1_l(x_l) + pe_l; pe_l is handed on. The published method.

    The sum enters q, k and v, and nothing else: not the residual stream, the MLP or the final LayerNorm.
    """

    def attend(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        p = pe_norm(pe)
        return Joined(x, norm1(x) + p, p, p)


class Folded(LapeSharing):
    """x_0 = alpha; attention sees g_l * (x_l - mean) / sqrt(var + eps) + c_l, where LN1_l has lost its bias to c_l.

    What `lape_jax.port.fold` makes of both kinds of LaPE for inference, with c_l = bias of LN1_l + pe_l: the same sums
    in as many operations as `Default` needs. Not a method of the paper.
    """

    normalises_pe = False
    table_per_layer = True
    norm1_bias = False

    def attend(self, x: Tokens, pe: Position | None, norm1: Norm, pe_norm: Norm | None) -> Joined:
        return Joined(x, norm1(x) + pe, pe, pe)


JOINS = {
    "default": Default(),
    "shared": Shared(),
    "unshared": Unshared(),
    "lape_sharing": LapeSharing(),
    "lape": Lape(),
    FOLDED: Folded(),
}

# The functions of the paper's Table 8: (normalise?, scale: "vector", "scalar" or None, bias?).
PE_NORMS = {
    "layernorm": (True, "vector", True),
    "norm": (True, None, False),
    "scalar": (False, "scalar", False),
    "vector": (False, "vector", False),
    "affine": (False, "vector", True),
    "scalar_norm": (True, "scalar", False),
    "vector_norm": (True, "vector", False),
    "identity": (False, None, False),
}


class PENorm(nn.Module):
    """f(w) = scale * (w - mean) / sqrt(var + eps) + bias over the channels, or the part of it that `kind` names.

    Runs in float32 (float64 if the PE is) whatever the model computes in, with the two-pass variance: a row of zeros,
    such as the class row of the 2-D sinusoid, leaves LNp_0 as the tiny row bias_0, and the next LayerNorm amplifies it
    by up to 1/sqrt(eps) = 1000, along with any error of E[x^2] - E[x]^2.

    Attributes:
        kind: one of `PE_NORMS`.
        eps: added to the (biased) variance, as in the block's LayerNorms.
        bare_rows: so many rows at the start are zero and stay so, being those of tokens that have no PE.
    """

    kind: str = "layernorm"
    eps: float = 1e-6
    bare_rows: int = 0

    @nn.compact
    def __call__(self, pe: Position) -> Position:
        normalise, scale, bias = PE_NORMS[self.kind]
        width = pe.shape[-1]
        y = pe.astype(jnp.promote_types(pe.dtype, jnp.float32))
        if normalise:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
            y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        if scale:
            y = y * self.param("scale", nn.initializers.ones, (width,) if scale == "vector" else (), jnp.float32)
        if bias:
            y = y + self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        if self.bare_rows:
            y = jnp.pad(y[self.bare_rows :], ((self.bare_rows, 0), (0, 0)))
        return y.astype(jnp.promote_types(pe.dtype, jnp.float32))
